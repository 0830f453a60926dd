//! How much work a change is: counted in messages and system calls, which no noise can change.

use std::time::Instant;

use dataplane::DataPlane;
use dataplane::live::LiveKernel;
use ipvs::{Ipvs, Vips};
use service_model::{Change, Cluster, Event, Kind, ObjectName};
use testbed::netns::{Netns, isolate};

use crate::load::{config, service, slice};
use crate::seen;

/// A node with services, all written.
fn node(services: u32) -> (Cluster, DataPlane<LiveKernel>) {
    let mut cluster = Cluster::new(config());
    for number in 0..services {
        cluster.apply(service(number));
        cluster.apply(slice(number, 5));
    }
    cluster.apply(Event::NodeAddresses(Vec::new()));
    let mut vips = Vips::open().unwrap();
    vips.ensure_device().unwrap();
    let mut plane = DataPlane::new(LiveKernel::new(Ipvs::open().unwrap(), vips), false);
    plane.adopt().unwrap();
    commit(&mut cluster, &mut plane);
    (cluster, plane)
}

/// What a commit of the waiting changes cost: ops, IPVS messages, rtnetlink messages, system calls.
fn commit(cluster: &mut Cluster, plane: &mut DataPlane<LiveKernel>) -> (usize, u64, u64, u64) {
    let before = plane.kernel().counters();
    for name in cluster.take_touched() {
        let program = cluster.program(&name);
        plane.want(&name, &program);
    }
    let report = plane.commit(Instant::now()).unwrap();
    assert!(report.refused.is_empty(), "{:?}", report.refused);
    let after = plane.kernel().counters();
    (
        report.total(),
        after.ipvs.messages - before.ipvs.messages,
        after.route.messages - before.route.messages,
        after.ipvs.system_calls + after.route.system_calls - before.ipvs.system_calls - before.route.system_calls,
    )
}

#[test]
fn one_endpoint_is_one_message_whatever_the_size() {
    let mut costs = Vec::new();
    for services in [10, 10_000] {
        isolate().unwrap();
        let (mut cluster, mut plane) = node(services);
        cluster.apply(slice(3, 6));
        let cost = commit(&mut cluster, &mut plane);
        assert_eq!((cost.0, cost.1, cost.2), (1, 1, 0));
        let added = "-a -t 10.96.0.3:80 -r 10.133.0.3:8080 -m -w 1";
        assert!(seen::ipvsadm(&Netns::current().unwrap()).contains(added));
        costs.push(cost);
        // The same again is nothing; back again is one message.
        cluster.apply(slice(3, 6));
        assert_eq!(commit(&mut cluster, &mut plane), (0, 0, 0, 0));
        cluster.apply(slice(3, 5));
        assert_eq!(commit(&mut cluster, &mut plane).1, 1);
    }
    assert_eq!(costs[0], costs[1]);
    // One sendmsg, one recvmsg.
    assert_eq!(costs[0].3, 2);
}

#[test]
fn adopting_ten_thousand_services_writes_nothing() {
    isolate().unwrap();
    let (mut cluster, plane) = node(10_000);
    drop(plane);
    for number in 0..10_000 {
        cluster.apply(Event::Service(Change::Deleted(ObjectName::new(
            "d",
            &format!("s{number}"),
        ))));
        cluster.apply(service(number));
    }
    cluster.apply(Event::Complete(Kind::Service));
    let mut plane = DataPlane::new(LiveKernel::new(Ipvs::open().unwrap(), Vips::open().unwrap()), false);
    for name in cluster.take_touched() {
        plane.want(&name, &cluster.program(&name));
    }
    plane.adopt().unwrap();
    assert_eq!(plane.commit(Instant::now()).unwrap().total(), 0);
}
