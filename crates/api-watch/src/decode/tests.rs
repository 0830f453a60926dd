//! Text in, model out.

use proptest::prelude::*;
use serde_json::{Value, json};

use std::net::IpAddr;

use service_model::{
    EndpointSlice, ExternalIp, IpMode, LoadBalancerIngress, Protocol, Service, ServicePort, ServiceType, TrafficPolicy,
    parse_cidr, parse_ip,
};

use super::*;

fn service_of(doc: &Value) -> Service {
    match object(Kind::Service, doc).unwrap().event {
        Event::Service(Change::Applied(service)) => service,
        other => panic!("{other:?}"),
    }
}

fn slice_of(doc: &Value) -> EndpointSlice {
    match object(Kind::EndpointSlice, doc).unwrap().event {
        Event::EndpointSlice(Change::Applied(slice)) => slice,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_field_of_a_service() {
    let text = json!({
        "metadata": {
            "name": "web", "namespace": "shop", "resourceVersion": "17", "creationTimestamp": "1970-01-01T00:01:40Z",
            "labels": {"app": "x", "service.kubernetes.io/headless": ""},
            "annotations": {"kube-ipvs.io/scheduler": "mh", "kube-ipvs.io/drain-timeout": "1m30s", "other": "y"}
        },
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"],
            "ports": [{"name": "http", "port": 80, "nodePort": 30080, "targetPort": "http"}, {"name": "dns", "protocol": "UDP", "port": 53}],
            "externalIPs": ["192.0.2.1", "::ffff:192.0.2.2", "010.001.2.3"],
            "loadBalancerSourceRanges": [" 192.0.2.77/24 ", "fd00::/8"],
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
            "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local", "healthCheckNodePort": 31000
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}, {"ip": "198.51.100.2", "ipMode": "Proxy"}, {"hostname": "x.example"}]}}
    })
    .to_string();
    let mut from = serde_json::Deserializer::from_str(&text);
    let decoded = object(Kind::Service, &mut from).unwrap();
    assert_eq!(
        (decoded.name.as_str(), decoded.resource_version.as_str()),
        ("shop/web", "17")
    );
    let Event::Service(Change::Applied(service)) = decoded.event else {
        panic!()
    };
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    let port = |position, name: &str, protocol, port, node_port| ServicePort {
        position,
        name: name.into(),
        protocol,
        port,
        node_port,
    };
    let ingress = |position, text: &str, mode| LoadBalancerIngress {
        position,
        ip: ip(text),
        mode,
    };
    let external = |position, text: &str| ExternalIp { position, ip: ip(text) };
    assert_eq!(
        service,
        Service {
            created: 100,
            drain_timeout: Some(std::time::Duration::from_secs(90)),
            scheduler: Some("mh".into()),
            service_type: ServiceType::LoadBalancer,
            cluster_ips: [ip("10.0.0.1"), ip("fd00::1")].into_iter().collect(),
            ports: [
                port(0, "http", Protocol::Tcp, 80, 30080),
                port(1, "dns", Protocol::Udp, 53, 0)
            ]
            .into_iter()
            .collect(),
            external_ips: vec![
                external(0, "192.0.2.1"),
                external(1, "192.0.2.2"),
                external(2, "10.1.2.3")
            ],
            load_balancer_ingress: vec![
                ingress(0, "198.51.100.1", IpMode::Vip),
                ingress(1, "198.51.100.2", IpMode::Proxy)
            ],
            source_ranges: vec!["192.0.2.0/24".parse().ok(), "fd00::/8".parse().ok()],
            affinity: Some(60),
            external_traffic_policy: TrafficPolicy::Local,
            internal_traffic_policy: TrafficPolicy::Local,
            health_check_node_port: 31000,
            ..Service::new(ObjectName::new("shop", "web"))
        }
    );
}

#[test]
fn an_empty_service_has_the_defaults() {
    let mut expect = Service::new(ObjectName::new("default", "a"));
    assert_eq!(service_of(&json!({"metadata": {"name": "a"}})), expect);
    let nulls = json!({"metadata": {"name": "a", "labels": null}, "spec": {"ports": null, "clusterIP": "None", "clusterIPs": ["None"]}, "status": null});
    assert_eq!(service_of(&nulls), expect);
    expect.affinity = Some(10_800);
    assert_eq!(
        service_of(&json!({"metadata": {"name": "a"}, "spec": {"sessionAffinity": "ClientIP"}})),
        expect
    );
}

#[test]
fn a_drain_timeout_that_is_none_is_named() {
    let service =
        service_of(&json!({"metadata": {"name": "a", "annotations": {"kube-ipvs.io/drain-timeout": "soon"}}}));
    assert_eq!(service.drain_timeout, None);
    let invalid = &service.invalid[0];
    assert_eq!(&*invalid.field, "metadata.annotations[kube-ipvs.io/drain-timeout]");
    assert!(
        invalid.reason.starts_with("invalid duration \"soon\""),
        "{}",
        invalid.reason
    );
}

#[test]
fn what_cannot_be_read_is_named() {
    let check = |spec: Value, expect: &[&str]| {
        let service = service_of(&json!({"metadata": {"name": "a"}, "spec": spec}));
        let found: Vec<_> = service
            .invalid
            .iter()
            .map(|i| format!("{}: {}", i.field, i.reason))
            .collect();
        assert_eq!(found, expect);
    };
    check(
        json!({"ports": [{"port": 70000}]}),
        &["spec.ports[0].port: 70000 is not between 1 and 65535"],
    );
    check(
        json!({"ports": [{"port": 1}, {"port": 0}]}),
        &["spec.ports[1].port: 0 is not between 1 and 65535"],
    );
    check(json!({"ports": [{"name": "x"}]}), &["spec.ports[0].port: is missing"]);
    check(
        json!({"ports": [{"port": -1}]}),
        &["spec.ports[0].port: -1 is not between 1 and 65535"],
    );
    check(
        json!({"ports": [{"port": 1, "nodePort": 65536}]}),
        &["spec.ports[0].nodePort: 65536 is not between 0 and 65535"],
    );
    check(
        json!({"ports": [{"port": 1, "protocol": "ICMP"}]}),
        &["spec.ports[0].protocol: unknown protocol \"ICMP\""],
    );
    check(
        json!({"clusterIP": "10.0.0"}),
        &["spec.clusterIP: \"10.0.0\" is not an IP address"],
    );
    check(
        json!({"externalIPs": ["1.2.3.4", "256.1.1.1"]}),
        &["spec.externalIPs[1]: \"256.1.1.1\" is not an IP address"],
    );
    check(
        json!({"loadBalancerSourceRanges": ["1.2.3.4"]}),
        &["spec.loadBalancerSourceRanges[0]: \"1.2.3.4\" is not a CIDR; it admits nobody"],
    );
    check(
        json!({"loadBalancerSourceRanges": ["10.0.0.0/8", "", "::ffff:192.0.2.0/88"]}),
        &[
            "spec.loadBalancerSourceRanges[1]: \"\" is not a CIDR; it admits nobody",
            "spec.loadBalancerSourceRanges[2]: \"::ffff:192.0.2.0/88\" is not a CIDR; it admits nobody",
        ],
    );
    check(json!({"type": "Magic"}), &["spec.type: unknown type \"Magic\""]);
    check(
        json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}),
        &["spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0 is not between 1 and 86400; 10800 is used"],
    );
    check(
        json!({"externalTrafficPolicy": "local"}),
        &["spec.externalTrafficPolicy: unknown policy \"local\"; Local is used"],
    );
    check(
        json!({"internalTrafficPolicy": "PreferLocal"}),
        &["spec.internalTrafficPolicy: unknown policy \"PreferLocal\"; Local is used"],
    );
    check(
        json!({"sessionAffinity": "Cookie"}),
        &["spec.sessionAffinity: unknown affinity \"Cookie\"; None is used"],
    );
    check(
        json!({"healthCheckNodePort": 70000}),
        &["spec.healthCheckNodePort: 70000 is not between 0 and 65535"],
    );
}

/// T15, T1, T4: what the model gets of them restricts all the same.
#[test]
fn what_restricts_and_cannot_be_read_restricts() {
    let service = service_of(&json!({"metadata": {"name": "a"}, "spec": {
        "loadBalancerSourceRanges": ["192.0.2.7", " 010.0.0.0/8 ", "::ffff:192.0.2.0/120"],
        "externalTrafficPolicy": "local", "internalTrafficPolicy": "Lokal",
    }}));
    let ranges = [None, "10.0.0.0/8".parse().ok(), "192.0.2.0/24".parse().ok()];
    assert_eq!(service.source_ranges, ranges);
    let policies = (service.external_traffic_policy, service.internal_traffic_policy);
    assert_eq!(policies, (TrafficPolicy::Local, TrafficPolicy::Local));
    let ingress = |mode: &str| {
        let status = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1", "ipMode": mode}]}});
        let service = service_of(&json!({"metadata": {"name": "a"}, "status": status}));
        (service.load_balancer_ingress.len(), service.invalid.len())
    };
    assert_eq!((ingress("VIP"), ingress("vip")), ((1, 0), (0, 1)));
}

/// `label:` in YAML is null; the API reads it as an empty value, and the label is there (T24).
#[test]
fn a_label_is_there_whatever_its_value() {
    for value in [json!(null), json!(""), json!("other")] {
        let labels =
            json!({"service.kubernetes.io/service-proxy-name": value, "service.kubernetes.io/headless": value});
        let service = service_of(&json!({"metadata": {"name": "a", "labels": labels}}));
        assert!(service.other_proxy, "{value}");
        let slice = slice_of(&json!({"metadata": {"name": "a", "labels": labels}, "addressType": "IPv4"}));
        assert!(slice.headless_label, "{value}");
    }
}

/// A condition that is no truth value says nothing of who takes traffic: nothing is taken from such an object.
#[test]
fn conditions_and_hints_of_another_shape_are_an_error() {
    let with = |endpoint: Value| {
        let slice = json!({"metadata": {"name": "a"}, "addressType": "IPv4", "endpoints": [endpoint]});
        object(Kind::EndpointSlice, &slice).is_ok()
    };
    assert!(with(
        json!({"addresses": ["10.1.0.1"], "conditions": {"ready": null}, "hints": null})
    ));
    for condition in ["ready", "serving", "terminating"] {
        for value in [json!("false"), json!(0), json!([])] {
            assert!(!with(
                json!({"addresses": ["10.1.0.1"], "conditions": {condition: value}})
            ));
        }
    }
    assert!(!with(json!({"addresses": ["10.1.0.1"], "hints": {"forZones": ["a"]}})));
    assert!(!with(
        json!({"addresses": ["10.1.0.1"], "hints": {"forNodes": {"name": "a"}}})
    ));
}

#[test]
fn another_shape_is_an_error() {
    assert!(
        object(
            Kind::Service,
            &json!({"metadata": {"name": "a"}, "spec": {"ports": [{"port": "http"}]}})
        )
        .is_err()
    );
    assert!(object(Kind::Service, &json!({"spec": {}})).is_err());
    assert!(object(Kind::Service, &json!([])).is_err());
}

#[test]
fn slices() {
    let slice = slice_of(&json!({
        "metadata": {
            "name": "web-1", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "1970-01-01T00:00:01.5Z"}
        },
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080}, {"name": "any"}],
        "endpoints": [
            {"addresses": ["10.1.0.1", "10.1.0.9"], "conditions": {}, "nodeName": "n1",
             "hints": {"forZones": [{"name": "z"}], "forNodes": [{"name": "n"}]}},
            {"addresses": ["10.1.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": []},
            {"addresses": ["pod"]}
        ]
    }));
    assert_eq!((&*slice.service, slice.last_change), ("web", Some(1_500_000_000)));
    assert_eq!(slice.ports.len(), 1);
    let [first, second] = slice.endpoints.as_slice() else {
        panic!("{slice:?}")
    };
    assert!(first.ready && first.serving && !first.terminating);
    assert_eq!(
        (
            first.zone_hints.len(),
            first.node_hints.len(),
            first.node_name.as_deref()
        ),
        (1, 1, Some("n1"))
    );
    assert!(!second.ready && second.serving && second.terminating);
    assert_eq!(&*slice.invalid[0].field, "endpoints[3].addresses[0]");

    let names = slice_of(
        &json!({"metadata": {"name": "x"}, "addressType": "FQDN", "endpoints": [{"addresses": ["a.example"]}]}),
    );
    assert_eq!((names.family, names.endpoints.len(), names.invalid.len()), (None, 0, 0));
}

#[test]
fn nodes() {
    let decoded = object(
        Kind::Node,
        &json!({
            "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z"}, "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"podCIDR": "10.1.0.0/24", "taints": [{"key": "k", "effect": "NoSchedule"}]},
            "status": {"addresses": [
                {"type": "ExternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "n1"},
                {"type": "InternalIP", "address": "10.0.0.1"}, {"type": "InternalIP", "address": "fd00::1"}
            ]}
        }),
    )
    .unwrap();
    let Event::Node(Change::Applied(node)) = decoded.event else {
        panic!()
    };
    assert_eq!(node.name.as_str(), "n1");
    assert_eq!(
        node.addresses,
        ["10.0.0.1", "fd00::1", "192.0.2.1"].map(|ip| ip.parse::<IpAddr>().unwrap())
    );
    assert!(node.deleting);
    assert_eq!(
        (&*node.zone, &*node.taints[0], node.pod_cidrs[0].to_string()),
        ("z", "k", "10.1.0.0/24".into())
    );
}

/// What is not read must not be silent.
#[test]
fn fields_of_nodes_that_cannot_be_read_are_named() {
    let invalid = |spec: Value| {
        let status = json!({"addresses": [
            {"type": "InternalIP", "address": "10.0.0.1"}, {"type": "InternalIP", "address": "10.0.0"},
            {"type": "Hostname", "address": "n1"}, {"type": "ExternalIP", "address": ""}
        ]});
        let decoded = object(
            Kind::Node,
            &json!({"metadata": {"name": "n1"}, "spec": spec, "status": status}),
        );
        let Event::Node(Change::Applied(node)) = decoded.unwrap().event else {
            panic!()
        };
        assert_eq!((node.addresses.len(), node.pod_cidrs.len()), (1, 1));
        let told: Vec<_> = node
            .invalid
            .iter()
            .map(|it| format!("{}: {}", it.field, it.reason))
            .collect();
        told
    };
    let addresses = [
        "status.addresses[1].address: \"10.0.0\" is not an IP address",
        "status.addresses[3].address: \"\" is not an IP address",
    ];
    let several = invalid(json!({"podCIDR": "x", "podCIDRs": ["10.1.0.0/24", "fd00::/129"]}));
    let range = "spec.podCIDRs[1]: \"fd00::/129\" is not a CIDR";
    assert_eq!(several, [&addresses[..], &[range]].concat());
    assert_eq!(invalid(json!({"podCIDR": "10.1.0.0/24"})), addresses);
}

proptest! {
    #[test]
    fn never_panics_on_text(text in "[\\PC]{0,200}") {
        for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
            let mut from = serde_json::Deserializer::from_str(&text);
            let _ = object(kind, &mut from);
        }
        let _ = (parse_ip(&text), parse_cidr(&text));
    }

    #[test]
    fn ports_are_never_cut(port: i64) {
        let service = service_of(&json!({"metadata": {"name": "a"}, "spec": {"ports": [{"port": port}]}}));
        prop_assert_eq!(service.ports.first().map(|p| i64::from(p.port)), Some(port).filter(|p| (1..=65_535).contains(p)));
        prop_assert_eq!(service.ports.is_empty(), !service.invalid.is_empty());
    }
}
