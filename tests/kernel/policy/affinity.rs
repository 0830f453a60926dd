//! Session affinity by traffic, for every kind of address (T20).

use std::collections::BTreeSet;

use serde_json::json;

use super::scene::{Client, Scene, service, slices};

const PODS: [&str; 4] = ["pod-a1", "pod-a2", "pod-b1", "pod-b2"];

/// Questions of one client to one address.
fn ask(scene: &Scene, client: Client, to: &str, udp: bool) -> Vec<String> {
    let one = |_| {
        if udp {
            scene.ask_udp(client, to)
        } else {
            scene.ask(client, to)
        }
    };
    (0..4).map(one).collect()
}

#[test]
fn t20_affinity_holds_at_every_kind_of_address() {
    let mut scene = Scene::new();
    let ports = |first: u16| {
        json!([
            {"name": "tcp", "port": 80, "nodePort": first},
            {"name": "udp", "protocol": "UDP", "port": 80, "nodePort": first},
        ])
    };
    let endpoints = json!([{"name": "tcp", "port": 8080}, {"name": "udp", "protocol": "UDP", "port": 5353}]);
    let add = |number: u16, affinity: &str| {
        let name = format!("s{number}");
        let spec = json!({
            "type": "LoadBalancer", "sessionAffinity": affinity, "ports": ports(30_000 + number),
            "clusterIPs": [format!("10.96.3.{number}"), format!("fd00:10:96::3:{number}")],
            "externalIPs": [format!("198.51.100.{number}"), format!("2001:db8:51::{number}")],
            "load_balancer": [format!("203.0.113.{number}"), format!("2001:db8:113::{number}")],
        });
        scene.put(&name, &service(&name, spec));
        scene.put(&format!("{name}-endpoints"), &slices(&name, &endpoints, &PODS));
    };
    add(1, "ClientIP");
    add(2, "None");
    scene.start();
    let places = |number: u16| {
        [
            format!("10.96.3.{number}:80"),
            format!("[fd00:10:96::3:{number}]:80"),
            format!("192.0.2.10:{}", 30_000 + number),
            format!("[2001:db8::10]:{}", 30_000 + number),
            format!("203.0.113.{number}:80"),
            format!("[2001:db8:113::{number}]:80"),
            format!("198.51.100.{number}:80"),
            format!("[2001:db8:51::{number}]:80"),
        ]
    };
    for client in [Client::Outside, Client::Pod] {
        for udp in [false, true] {
            for (sticky, loose) in places(1).iter().zip(&places(2)) {
                let answers = ask(&scene, client, sticky, udp);
                assert!(PODS.contains(&&*answers[0]), "{client:?} {sticky} {answers:?}");
                assert!(
                    answers.iter().all(|answer| *answer == answers[0]),
                    "{client:?} {sticky} {answers:?}"
                );
                // The same without affinity goes around.
                let answers: BTreeSet<_> = ask(&scene, client, loose, udp).into_iter().collect();
                assert_eq!(answers.len(), 4, "{client:?} {loose} {answers:?}");
            }
        }
    }

    // Where the endpoint of a client goes, the next one is the client's, at once.
    let at = "10.96.3.1:80";
    let before = scene.ask(Client::Outside, at);
    let rest: Vec<_> = PODS.into_iter().filter(|pod| *pod != before).collect();
    scene.put("s1-endpoints", &slices("s1", &endpoints, &rest));
    crate::daemon::eventually(&false, || scene.ask(Client::Outside, at) == before);
    let answers = ask(&scene, Client::Outside, at, false);
    assert!(
        rest.contains(&&*answers[0]) && answers.iter().all(|answer| *answer == answers[0]),
        "{answers:?}"
    );
}
