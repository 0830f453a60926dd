//! Which of the endpoints that slices name count, and for what.

use super::*;

/// zalando/skipper#3151, kubernetes/kubernetes#80579: what has no port of the service takes no traffic.
#[test]
fn health_checks_count_what_takes_traffic() {
    let local = Service {
        external_traffic_policy: TrafficPolicy::Local,
        health_check_node_port: 31_000,
        ..everywhere(1)
    };
    let count = |slices: Vec<EndpointSlice>| {
        let mut cluster = cluster();
        apply_service(&mut cluster, local.clone());
        for slice in slices {
            apply_slice(&mut cluster, slice);
        }
        cluster.program(&name(1)).health_check.unwrap().v4.unwrap()
    };
    let here = |part, ports: &[(&str, Protocol)]| EndpointSlice {
        ports: ports
            .iter()
            .map(|(name, protocol)| EndpointPort {
                name: (*name).into(),
                protocol: *protocol,
                port: 8080,
            })
            .collect(),
        ..slice(1, part, vec![endpoint(1, "here")])
    };
    let there = || slice(1, 9, vec![endpoint(2, "there")]);
    let tcp = ("", Protocol::Tcp);
    assert_eq!(count(vec![here(0, &[tcp]), there()]), 1);
    assert_eq!(count(vec![here(0, &[]), there()]), 0);
    assert_eq!(count(vec![here(0, &[("other", Protocol::Tcp)]), there()]), 0);
    assert_eq!(count(vec![here(0, &[("", Protocol::Udp)]), there()]), 0);
    // The copy that counts is elsewhere, or not ready.
    let moved = slice(
        1,
        1,
        vec![
            Endpoint {
                ready: false,
                ..endpoint(1, "here")
            },
            endpoint(1, "there"),
        ],
    );
    assert_eq!(count(vec![moved]), 0);
}

/// Two copies of one address, in one slice and in two, either way round. Words as in `policy`: `L`ocal, `r`eady, `s`erving,
/// `t`erminating, `-` = it names no node.
#[test]
fn the_copy_that_can_serve_counts() {
    let copy = |word: &str| {
        let has = |letter: char| word.contains(letter);
        Endpoint {
            node_name: (!has('-')).then(|| if has('L') { "here".into() } else { "there".into() }),
            ready: has('r'),
            serving: has('r') || has('s'),
            terminating: has('t'),
            ..endpoint(1, "there")
        }
    };
    let target = |slices: Vec<EndpointSlice>| {
        let mut cluster = one(everywhere(1));
        cluster.apply(Event::EndpointSlice(Change::Deleted(ObjectName::new("d", "s1-0"))));
        for slice in slices {
            apply_slice(&mut cluster, slice);
        }
        let endpoints = of_kind(&cluster, AddressKind::ClusterIp).endpoints;
        endpoints.first().map(|target| target.local)
    };
    let check = |first: &str, second: &str, expect: Option<bool>| {
        for (a, b) in [(first, second), (second, first)] {
            let two = vec![slice(1, 1, vec![copy(a)]), slice(1, 2, vec![copy(b)])];
            let backwards = two.iter().rev().cloned().collect();
            assert_eq!(target(two), expect, "{a} {b}");
            assert_eq!(target(backwards), expect, "{b} {a}");
            assert_eq!(target(vec![slice(1, 1, vec![copy(a), copy(b)])]), expect, "{a} {b}");
        }
    };
    // k/k#121556, #121231: by hand in `addresses` and in `notReadyAddresses`.
    check("r", "", Some(false));
    check("Lr", "s", Some(true));
    check("Lr", "st", Some(true));
    check("Lr", "r", Some(true));
    check("Lst", "", Some(true));
    // It serves and does not terminate, so it is not ready for a reason.
    check("Lst", "s", None);
    check("Lrt", "r", Some(false));
    check("Lr", "-r", Some(true));
    check("L", "", None);
}
