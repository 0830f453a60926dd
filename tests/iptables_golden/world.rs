//! The worlds: objects, what the proxies are told, and the node that they run on. From the connectivity matrix, seen by
//! a node with endpoints and by one without; and from `tests/cases`.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use serde_json::{Value, json};
use testbed::matrix::cell::plans;
use testbed::matrix::proxy::{Kind, flags, upstream_settings};
use testbed::matrix::question::Mode;
use testbed::matrix::service::{Service, nodes};
use testbed::matrix::site::{Family, Node};
use testbed::matrix::upstream::KubeProxySettings;

/// Where the API server of each world listens.
pub(crate) const API: ([u8; 4], u16) = ([127, 0, 0, 1], 8001);

/// One world.
pub(crate) struct World {
    pub(crate) name: String,
    pub(crate) objects: Vec<Value>,
    pub(crate) upstream: KubeProxySettings,
    /// Flags of ours that say the same.
    pub(crate) flags: Vec<String>,
    /// Addresses of the node's interfaces, without loopback.
    pub(crate) addresses: Vec<IpAddr>,
}

/// Cases that upstream cannot be given, with the reason.
const NOT_COMPARED: &[(&str, &str)] = &[
    ("bad-fields", "kube-proxy's restore fails as a whole on a port 70000"),
    (
        "enhancements-4858-source-range-unreadable",
        "kube-proxy opens to all what it cannot read (T15)",
    ),
    (
        "enhancements-5781-load-balancer-link-local",
        "kube-proxy serves what the API server would not let in (T35)",
    ),
    (
        "kubernetes-121556-one-address-ready-and-not",
        "which copy counts for kube-proxy is left to the order of a map (T34)",
    ),
    (
        "what-restricts-and-cannot-be-read",
        "kube-proxy opens what it cannot read (T36)",
    ),
];

pub(crate) fn worlds() -> Vec<World> {
    let mut worlds: Vec<_> = plans(Mode::Iptables)
        .iter()
        .flat_map(|plan| {
            [Node::A, Node::C].map(|node| {
                let objects = plan.services.iter().flat_map(Service::manifests);
                let objects = objects.chain(nodes(&plan.setting));
                let name = match plan.setting.name {
                    "" => "base",
                    name => name,
                };
                World {
                    name: format!("{name}-{}", node.name()),
                    objects: objects.collect(),
                    upstream: upstream_settings(Kind::KubeProxyIptables, &node.name(), &plan.setting, API.into()),
                    flags: flags(&plan.setting),
                    addresses: Family::ALL.iter().flat_map(|family| node.addresses(*family)).collect(),
                }
            })
        })
        // What only the data path tells apart.
        .filter(|world| !world.name.starts_with("forward-drop"))
        .collect();
    worlds.extend(more());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let mut cases: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    cases.sort();
    worlds.extend(cases.iter().filter_map(|path| case(path)));
    worlds
}

/// What neither the matrix nor a case has.
fn more() -> [World; 3] {
    let plans = plans(Mode::Iptables);
    let base = &plans[0].setting;
    let world = |name: &str, services: Vec<Service>| World {
        name: name.to_owned(),
        objects: services
            .iter()
            .flat_map(Service::manifests)
            .chain(nodes(base))
            .collect(),
        upstream: upstream_settings(Kind::KubeProxyIptables, "node-a", base, API.into()),
        flags: flags(base),
        addresses: Family::ALL
            .iter()
            .flat_map(|family| Node::A.addresses(*family))
            .collect(),
    };
    let few = || vec![Service::new(1, "a", "ab"), Service::new(2, "none", "none")];
    let mut no_localhost = world("no-localhost-node-ports", few());
    no_localhost.upstream.localhost_node_ports = false;
    no_localhost
        .flags
        .push("--iptables-localhost-nodeports=false".to_owned());
    let mut chosen_localhost = world("chosen-localhost", few());
    let cidrs = ["192.0.2.0/24", "127.0.0.0/8"];
    chosen_localhost.upstream.node_port_addresses = cidrs.map(str::to_owned).to_vec();
    chosen_localhost
        .flags
        .push(format!("--nodeport-addresses={}", cidrs.join(",")));
    // More than a thousand, of one family.
    let mut large = world("large-cluster", few());
    let slice = large
        .objects
        .iter_mut()
        .find(|object| object["addressType"] == "IPv4")
        .unwrap();
    let ready = slice["endpoints"][0].clone();
    let many = (0..400_u16).map(|number| {
        let mut one = ready.clone();
        let [high, low] = number.to_be_bytes();
        one["addresses"] = json!([IpAddr::from([10, 244, 100 + high, low])]);
        one
    });
    slice["endpoints"] = many.collect();
    [no_localhost, chosen_localhost, large]
}

fn case(path: &Path) -> Option<World> {
    let name = path.file_name()?.to_string_lossy().into_owned();
    if NOT_COMPARED.iter().any(|(not, _)| *not == name) {
        return None;
    }
    let text = fs::read_to_string(path.join("manifests/objects.yaml")).ok()?;
    let mut objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
    objects.iter_mut().for_each(store);
    let is_node = |object: &Value| object["kind"] == "Node" && object["metadata"]["name"] == "node-a";
    if !objects.iter().any(is_node) {
        objects.push(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.10"}]},
        }));
    }
    let arguments = fs::read_to_string(path.join("arguments")).unwrap_or_default();
    let flag = |name: &str| {
        let of = |line: &str| line.strip_prefix(name)?.strip_prefix('=').map(str::to_owned);
        arguments.lines().find_map(of)
    };
    let list = |text: Option<String>| text.map_or(Vec::new(), |text| text.split(',').map(str::to_owned).collect());
    let node = objects.iter().find(|object| is_node(object)).unwrap();
    let own = node["status"]["addresses"].as_array().unwrap();
    let own: Vec<_> = own
        .iter()
        .map(|one| one["address"].as_str().unwrap().to_owned())
        .collect();
    let addresses: BTreeSet<IpAddr> = list(flag("--node-ip"))
        .iter()
        .chain(&own)
        .map(|address| address.parse().unwrap())
        .collect();
    let usable = |ip: &IpAddr| !ip.is_loopback() && !matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
    Some(World {
        name,
        upstream: KubeProxySettings {
            node: "node-a".to_owned(),
            server: API.into(),
            mode: "iptables",
            detect_local_mode: "ClusterCIDR",
            cluster_cidr: flag("--cluster-cidr").unwrap_or_default(),
            bridge_interface: String::new(),
            interface_name_prefix: String::new(),
            masquerade_all: false,
            localhost_node_ports: true,
            node_port_addresses: list(flag("--nodeport-addresses")),
            feature_gates: list(flag("--feature-gates")).iter().map(|gate| gate_of(gate)).collect(),
        },
        flags: arguments
            .lines()
            .filter(|line| !line.starts_with("--node-ip"))
            .map(str::to_owned)
            .collect(),
        addresses: addresses.into_iter().filter(usable).collect(),
        objects,
    })
}

/// `Name=true`, as it is in a file.
fn gate_of(text: &str) -> (String, bool) {
    let (name, on) = text.split_once('=').unwrap();
    (name.to_owned(), on.parse().unwrap())
}

/// What an API server adds to an object that it stores, as far as kube-proxy needs it.
fn store(object: &mut Value) {
    let default = |at: &mut Value, field: &str, value: Value| {
        if at[field].is_null() {
            at[field] = value;
        }
    };
    match object["kind"].as_str() {
        Some("Service") => {
            let spec = &mut object["spec"];
            default(spec, "type", "ClusterIP".into());
            let one = spec["clusterIP"].clone();
            default(spec, "clusterIPs", if one.is_null() { json!([]) } else { json!([one]) });
            let ips = spec["clusterIPs"].as_array().unwrap().clone();
            default(spec, "clusterIP", ips.first().cloned().unwrap_or_default());
            let family = |ip: &Value| {
                if ip.as_str().unwrap().contains(':') {
                    "IPv6"
                } else {
                    "IPv4"
                }
            };
            let families: Vec<_> = ips.iter().filter(|ip| *ip != "None").map(family).collect();
            default(spec, "ipFamilies", json!(families));
            default(spec, "sessionAffinity", "None".into());
            if spec["sessionAffinity"] == "ClientIP" {
                default(
                    spec,
                    "sessionAffinityConfig",
                    json!({"clientIP": {"timeoutSeconds": 10800}}),
                );
            }
            for port in spec["ports"].as_array_mut().into_iter().flatten() {
                default(port, "protocol", "TCP".into());
            }
        }
        Some("EndpointSlice") => {
            for port in object["ports"].as_array_mut().into_iter().flatten() {
                default(port, "protocol", "TCP".into());
                default(port, "name", "".into());
            }
        }
        _ => {}
    }
}

impl World {
    /// `spec.podCIDRs` of the node.
    pub(crate) fn own_pods(&self, v4: bool) -> Option<IpNet> {
        let is_ours = |object: &&Value| object["kind"] == "Node" && object["metadata"]["name"] == *self.upstream.node;
        let node = self.objects.iter().find(is_ours)?;
        let mut cidrs = node["spec"]["podCIDRs"].as_array()?.iter();
        cidrs.find_map(|cidr| cidr.as_str()?.parse().ok().filter(|net| of_family(net, v4)))
    }

    /// `clusterCIDR`, where that tells pods.
    pub(crate) fn cluster_pods(&self, v4: bool) -> Option<IpNet> {
        let mut cidrs = self.upstream.cluster_cidr.split(',');
        cidrs.find_map(|cidr| cidr.parse().ok().filter(|net| of_family(net, v4)))
    }

    /// No mode of detection tells pods.
    pub(crate) fn has_no_detector(&self, v4: bool) -> bool {
        self.upstream.detect_local_mode == "ClusterCIDR" && self.cluster_pods(v4).is_none()
    }

    /// The node's addresses of a family that `nodePortAddresses` selects; `None` = all that there are.
    pub(crate) fn node_port_addresses(&self, v4: bool) -> Option<Vec<IpAddr>> {
        let given = &self.upstream.node_port_addresses;
        let primary = || {
            let is_ours =
                |object: &&Value| object["kind"] == "Node" && object["metadata"]["name"] == *self.upstream.node;
            let node = self.objects.iter().find(is_ours).unwrap();
            let all = node["status"]["addresses"].as_array().unwrap().iter();
            let mut of_family = all
                .map(|one| one["address"].as_str().unwrap().parse::<IpAddr>().unwrap())
                .filter(|ip| ip.is_ipv4() == v4);
            of_family.next().map(IpNet::from)
        };
        let nets: Vec<IpNet> = if given == &["primary"] {
            primary().into_iter().collect()
        } else {
            let all = given.iter().map(|cidr| cidr.parse().unwrap());
            all.filter(|net| of_family(net, v4)).collect()
        };
        let selected = |ip: &&IpAddr| ip.is_ipv4() == v4 && nets.iter().any(|net| net.contains(*ip));
        let localhost = [IpAddr::from([127, 0, 0, 1])];
        let all = self.addresses.iter().chain(&localhost);
        (!nets.is_empty()).then(|| all.filter(selected).copied().collect())
    }
}

fn of_family(net: &IpNet, v4: bool) -> bool {
    net.addr().is_ipv4() == v4
}
