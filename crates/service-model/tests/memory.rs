//! What the model keeps, in bytes, counted by the allocator.

#![allow(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use service_model::{
    Change, Cluster, Config, Endpoint, EndpointPort, EndpointSlice, Event, Family, ObjectName, Protocol, Service,
    ServicePort,
};

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is handed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn ip(net: u8, number: u32) -> IpAddr {
    let [_, _, high, low] = number.to_be_bytes();
    [10, net, high, low].into()
}

/// Hints that no other object names go with the object that names them.
fn f11_zone_hints_leave_with_their_slice() {
    let slice = |round: u32| EndpointSlice {
        name: ObjectName::new("d", "s-abcde"),
        service: "s".into(),
        headless_label: false,
        family: Some(Family::V4),
        ports: [].into_iter().collect(),
        endpoints: (0..100)
            .map(|number| Endpoint {
                address: ip(1, number),
                node_name: None,
                ready: true,
                serving: true,
                terminating: false,
                zone_hints: [format!("some-zone-{round}-{number}").into()].into_iter().collect(),
                node_hints: [].into_iter().collect(),
            })
            .collect(),
        last_change: None,
        invalid: Vec::new(),
    };
    let mut cluster = Cluster::new(Config::of_node("here"));
    let mut held_after = |rounds: std::ops::Range<u32>| {
        for round in rounds {
            cluster.apply(Event::EndpointSlice(Change::Applied(slice(round))));
            cluster.take_touched();
        }
        let name = ObjectName::new("d", "s-abcde");
        cluster.apply(Event::EndpointSlice(Change::Deleted(name)));
        cluster.take_touched();
        HELD.load(Ordering::Relaxed)
    };
    // A table of the cluster may be larger or smaller after each; one slice has 100 names of 19 bytes.
    let first = held_after(0..1);
    let last = held_after(1..200);
    assert!(last < first + 2_000, "{first} bytes, then {last}");
}

/// One test: the allocator counts for the whole process.
#[test]
fn what_is_kept() {
    f11_zone_hints_leave_with_their_slice();
    twenty_thousand_services();
}

/// 20,000 services with five endpoints each: what the design promises to hold in far less than 100 MiB, together with
/// the ledger.
fn twenty_thousand_services() {
    let mut cluster = Cluster::new(Config::of_node("here"));
    let before = HELD.load(Ordering::Relaxed);
    for number in 0..20_000 {
        let name = ObjectName::new("some-namespace", &format!("some-service-{number}"));
        let mut service = Service::new(name);
        service.cluster_ips.push(ip(96, number));
        service.ports.push(ServicePort {
            position: 0,
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: 0,
        });
        cluster.apply(Event::Service(Change::Applied(service)));
        let endpoints = (0..5)
            .map(|net| Endpoint {
                address: ip(128 + net, number),
                node_name: Some("some-node-of-the-cluster".into()),
                ready: true,
                serving: true,
                terminating: false,
                zone_hints: ["zone-a".into()].into_iter().collect(),
                node_hints: [].into_iter().collect(),
            })
            .collect();
        cluster.apply(Event::EndpointSlice(Change::Applied(EndpointSlice {
            name: ObjectName::new("some-namespace", &format!("some-service-{number}-abcde")),
            service: format!("some-service-{number}").into(),
            headless_label: false,
            family: Some(Family::V4),
            ports: [EndpointPort {
                name: "http".into(),
                protocol: Protocol::Tcp,
                port: 8080,
            }]
            .into_iter()
            .collect(),
            endpoints,
            last_change: None,
            invalid: Vec::new(),
        })));
        cluster.take_touched();
    }
    let held = HELD.load(Ordering::Relaxed) - before;
    assert!(held < 32 << 20, "{held} bytes, {} a service", held / 20_000);
}
