//! A node that is told events: model, then both data planes, on a kernel in memory.

use std::time::Instant;

use dataplane::fake::FakeKernel;
use dataplane::iptables::Tables;
use dataplane::{DataPlane, iptables};
use service_model::{Capture, Cluster, Config, Event, Family, Kind, Limits, ObjectName, Program};

/// This node's name, in all that targets make.
pub const NAME: &str = "node-1";

/// The settings of the node that targets use. Its limits are low, so that small inputs reach them.
pub fn config(capture: Capture) -> Config {
    Config {
        capture,
        limits: Limits {
            real_servers: 4096,
            source_ranges: 512,
        },
        ..Config::of_node(NAME)
    }
}

/// Serves objects in both modes.
///
/// # Panics
/// Where something does that it must not.
pub fn serve(events: &[Event]) {
    let redirect = Capture::Redirect {
        localhost_node_ports: true,
    };
    for capture in [Capture::Bind, redirect] {
        let mut cluster = Cluster::new(config(capture));
        cluster.apply(Event::NodeAddresses(vec![
            [192, 0, 2, 1].into(),
            [0xfd00, 0, 0, 0, 0, 0, 0, 1].into(),
        ]));
        cluster.extend(events.iter().cloned());
        cluster.extend([Kind::Service, Kind::EndpointSlice, Kind::Node].map(Event::Complete));
        cluster.apply(Event::OtherNodesComplete);
        drop(cluster.take_unreadable());
        let programs: Vec<_> = cluster
            .take_touched()
            .into_iter()
            .map(|name| (name.clone(), cluster.program(&name)))
            .collect();
        match capture {
            Capture::Bind => balance(&programs),
            Capture::Redirect { .. } => redirect_all(&cluster, &programs),
        }
    }
}

fn balance(programs: &[(ObjectName, Program)]) {
    let mut plane = DataPlane::new(FakeKernel::new(), dataplane::Settings::default());
    let now = Instant::now();
    for (name, program) in programs {
        plane.want(name, program);
    }
    plane.adopt().expect("the kernel in memory can be read");
    for op in plane.plan(now).ops() {
        drop(op.to_string());
    }
    let report = plane.commit(now).expect("the kernel in memory takes ops");
    assert!(!report.surprised, "the kernel in memory is as it was read");
}

fn redirect_all(cluster: &Cluster, programs: &[(ObjectName, Program)]) {
    let mut tables = Tables::new(iptables::Settings::default());
    for family in Family::BOTH {
        tables.want_local_traffic(*family, cluster.local_traffic(*family));
        tables.want_node_ports(*family, cluster.node_port_places(*family));
    }
    for (name, program) in programs {
        tables.want(name, program);
    }
    for family in Family::BOTH {
        let restore = tables.plan(*family).expect("nothing is written yet");
        assert!(restore.text.lines().all(|line| !line.contains('\0')));
        tables.written(&restore);
        assert!(tables.plan(*family).is_none(), "what is written is not written again");
    }
}
