//! Random worlds on the real kernel: whatever changed, in whatever order, it ends as a fresh start would.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use dataplane::kernel::Snapshot;
use dataplane::live::LiveKernel;
use dataplane::{DataPlane, Kernel, Settings};
use proptest::prelude::*;
use proptest::test_runner::{Config as ProptestConfig, TestRunner};
use service_model::{
    Change, Cluster, Endpoint, EndpointPort, EndpointSlice, Event, ExternalIp, Family, IpMode, Kind,
    LoadBalancerIngress, Node, ObjectName, Protocol, Service, ServicePort, ServiceType, TrafficPolicy,
};
use testbed::netns::isolate;

use crate::load::config;

/// Sequences; `KUBE_IPVS_WORLDS` says otherwise.
const SEQUENCES: u32 = 60;

type Slices = BTreeMap<(u8, Family), EndpointSlice>;

/// What exists.
#[derive(Clone, Debug, Default)]
struct Objects {
    services: BTreeMap<u8, Service>,
    slices: Slices,
    addresses: Vec<IpAddr>,
}

#[derive(Clone, Debug)]
enum Step {
    Service(u8, Option<Service>),
    Slice(u8, Family, Option<EndpointSlice>),
    Addresses(Vec<IpAddr>),
    /// The process is killed and another one starts.
    Restart,
    /// What waits is written.
    Commit,
}

fn name(number: u8) -> ObjectName {
    ObjectName::new("d", &format!("s{number}"))
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pick<T: Clone + std::fmt::Debug + 'static>(of: &[T]) -> impl Strategy<Value = T> + use<T> {
    prop::sample::select(of.to_vec())
}

fn any_service(number: u8) -> impl Strategy<Value = Service> {
    let policy = || pick(&[TrafficPolicy::Cluster, TrafficPolicy::Local]);
    // Two of each number's own, and one that all have.
    let extra = move || {
        let own = format!("203.0.113.{}", 10 + number);
        prop::collection::btree_set(pick(&[ip(&own), ip("203.0.113.9"), ip("2001:db8::9")]), 0..3)
    };
    let ranges = pick(&[
        "",
        "10.0.0.0/8",
        "10.0.0.0/9 192.0.2.0/24",
        "0.0.0.0/0",
        "2001:db8::/32 10.0.0.0/8",
    ]);
    let ports = prop::collection::btree_set((0..2_u16, 0..3_u8), 1..3);
    (
        pick(&[ServiceType::ClusterIp, ServiceType::NodePort, ServiceType::LoadBalancer]),
        (extra(), extra()),
        ports,
        (policy(), policy()),
        prop::option::of(pick(&[600_u32, 10_800])),
        ranges,
        prop::option::of(pick(&["mh", "lc", "none-such"])),
    )
        .prop_map(
            move |(service_type, (external, ingress), ports, policies, affinity, ranges, scheduler)| {
                let mut service = Service::new(name(number));
                service.created = i64::from(number % 3);
                service.service_type = service_type;
                service.cluster_ips = [ip(&format!("10.96.0.{number}")), ip(&format!("fd00:10:96::{number}"))]
                    .into_iter()
                    .collect();
                service.external_ips = (0..)
                    .zip(external)
                    .map(|(position, ip)| ExternalIp { position, ip })
                    .collect();
                service.load_balancer_ingress = (0..)
                    .zip(ingress)
                    .map(|(position, ip)| LoadBalancerIngress {
                        position,
                        ip,
                        mode: IpMode::Vip,
                    })
                    .collect();
                service.ports = (0..)
                    .zip(ports)
                    .map(|(position, (port, protocol))| ServicePort {
                        position,
                        name: format!("p{protocol}").into(),
                        protocol: protocol_of(protocol),
                        port: 80 + port,
                        node_port: 30_000 + 10 * u16::from(number) + port,
                    })
                    .collect();
                (service.internal_traffic_policy, service.external_traffic_policy) = policies;
                service.affinity = affinity;
                service.source_ranges = ranges.split_whitespace().map(|range| range.parse().ok()).collect();
                service.scheduler = scheduler.map(Into::into);
                service
            },
        )
}

fn protocol_of(number: u8) -> Protocol {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][usize::from(number)]
}

fn any_slice(number: u8, family: Family) -> impl Strategy<Value = EndpointSlice> {
    let endpoint = (1..6_u8, any::<bool>(), 0..4_u8).prop_map(move |(last, local, state)| Endpoint {
        address: match family {
            Family::V4 => ip(&format!("10.244.0.{last}")),
            Family::V6 => ip(&format!("fd00:10:244::{last}")),
        },
        node_name: Some(if local { "n" } else { "other" }.into()),
        ready: state < 2,
        serving: state < 3,
        terminating: state >= 2,
        zone_hints: [].into_iter().collect(),
        node_hints: [].into_iter().collect(),
    });
    prop::collection::vec(endpoint, 0..5).prop_map(move |endpoints| EndpointSlice {
        name: slice_name(number, family),
        service: format!("s{number}").into(),
        headless_label: false,
        family: Some(family),
        ports: (0..3)
            .map(|protocol| EndpointPort {
                name: format!("p{protocol}").into(),
                protocol: protocol_of(protocol),
                port: 8080,
            })
            .collect(),
        endpoints: endpoints.into_iter().collect(),
        last_change: None,
        invalid: Vec::new(),
    })
}

fn slice_name(number: u8, family: Family) -> ObjectName {
    ObjectName::new("d", &format!("s{number}-{family:?}"))
}

fn any_step() -> impl Strategy<Value = Step> {
    let addresses = prop::collection::btree_set(pick(&[ip("192.0.2.1"), ip("192.0.2.2"), ip("2001:db8::9")]), 0..3);
    prop_oneof![
        6 => (1..5_u8).prop_flat_map(|n| {
            prop::option::weighted(0.8, any_service(n)).prop_map(move |service| Step::Service(n, service))
        }),
        6 => (1..5_u8, pick(&[Family::V4, Family::V6])).prop_flat_map(|(n, family)| {
            prop::option::weighted(0.9, any_slice(n, family)).prop_map(move |slice| Step::Slice(n, family, slice))
        }),
        1 => addresses.prop_map(|addresses| Step::Addresses(addresses.into_iter().collect())),
        1 => Just(Step::Restart),
        4 => Just(Step::Commit),
    ]
}

/// One process: what it knows and what it writes.
struct Process {
    cluster: Cluster,
    plane: DataPlane<LiveKernel>,
    now: Instant,
}

impl Process {
    /// Told the objects, as by a list, and committed.
    fn start(objects: &Objects) -> Self {
        let settings = Settings {
            drain_timeout: Duration::from_secs(600),
            ..Settings::default()
        };
        let mut process = Self {
            cluster: Cluster::new(config()),
            plane: DataPlane::new(LiveKernel::open().unwrap(), settings),
            now: Instant::now(),
        };
        let services = objects.services.values().cloned();
        let slices = objects.slices.values().cloned();
        let events = services
            .map(|service| Event::Service(Change::Applied(service)))
            .chain(slices.map(|slice| Event::EndpointSlice(Change::Applied(slice))))
            .chain([
                Event::Node(Change::Applied(this_node(&objects.addresses))),
                Event::NodeAddresses(objects.addresses.clone()),
                Event::Complete(Kind::Service),
                Event::Complete(Kind::EndpointSlice),
                Event::OtherNodesComplete,
            ]);
        events.for_each(|event| process.cluster.apply(event));
        process.want();
        process.plane.adopt().unwrap();
        process.commit();
        process
    }

    fn want(&mut self) {
        for family in [Family::V4, Family::V6] {
            let local = self.cluster.local_traffic(family);
            self.plane.want_local_traffic(family, local);
        }
        for name in self.cluster.take_touched() {
            let program = self.cluster.program(&name);
            self.plane.want(&name, &program);
        }
    }

    fn commit(&mut self) {
        self.want();
        // Shares, so that what belongs together is written in parts.
        loop {
            let report = self.plane.commit_share(self.now, 8).unwrap();
            assert!(report.refused.is_empty(), "{:?}", report.refused);
            if !report.more {
                break;
            }
        }
        while self.plane.has_addresses_to_add(self.now) {
            self.plane.commit_addresses(self.now).unwrap();
        }
    }

    /// Lets those that drain go: nobody is connected. What the kernel holds then, in an order of its own.
    fn rest(&mut self) -> Snapshot {
        self.commit();
        self.plane.look_at_drains(self.now).unwrap();
        self.commit();
        assert!(self.plane.plan(self.now).is_empty(), "{}", self.plane.plan(self.now));
        assert_eq!(self.plane.ledger().draining(), 0);
        let mut snapshot = LiveKernel::open().unwrap().read().unwrap();
        for present in &mut snapshot.virtual_servers {
            present.real_servers.sort_by_key(|(real, _)| *real);
        }
        snapshot.virtual_servers.sort_by_key(|present| present.server);
        snapshot.routes.sort();
        snapshot.addresses.sort();
        for table in &mut snapshot.tables {
            table.elements.sort_by_key(|(key, _)| *key);
        }
        // Where a family was used once its table stays.
        snapshot.tables.retain(|table| !table.elements.is_empty());
        snapshot
    }
}

/// L9, invariants 3 and 6: 1,000 sequences in `cargo xtask crash`, some of them here.
#[test]
fn any_sequence_of_changes_ends_as_a_fresh_start() {
    let sequences = std::env::var("KUBE_IPVS_WORLDS").map_or(SEQUENCES, |text| text.parse().unwrap());
    let config = ProptestConfig {
        cases: sequences,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let steps = prop::collection::vec(any_step(), 1..24);
    let mut runner = TestRunner::new(config);
    let counted = std::cell::Cell::new(0_usize);
    let result = runner.run(&steps, |steps| {
        counted.set(counted.get() + steps.len());
        isolate().unwrap();
        let mut objects = Objects::default();
        let mut process = Process::start(&objects);
        for step in steps {
            match step {
                Step::Service(n, service) => {
                    set(&mut objects.services, n, service.clone());
                    let change = service.map_or_else(|| Change::Deleted(name(n)), Change::Applied);
                    process.cluster.apply(Event::Service(change));
                }
                Step::Slice(n, family, slice) => {
                    set(&mut objects.slices, (n, family), slice.clone());
                    let change = slice.map_or_else(|| Change::Deleted(slice_name(n, family)), Change::Applied);
                    process.cluster.apply(Event::EndpointSlice(change));
                }
                Step::Addresses(addresses) => {
                    objects.addresses.clone_from(&addresses);
                    let node = this_node(&addresses);
                    process.cluster.apply(Event::Node(Change::Applied(node)));
                    process.cluster.apply(Event::NodeAddresses(addresses));
                }
                Step::Restart => process = Process::start(&objects),
                Step::Commit => process.commit(),
            }
        }
        let history = process.rest();
        drop(process);
        isolate().unwrap();
        let fresh = Process::start(&objects).rest();
        prop_assert_eq!(history, fresh);
        Ok(())
    });
    println!("{sequences} sequences of {} changes", counted.get());
    if let Err(error) = result {
        panic!("{error}");
    }
}

fn this_node(addresses: &[IpAddr]) -> Node {
    Node {
        name: ObjectName::cluster_scoped("n"),
        zone: "".into(),
        addresses: addresses.to_vec(),
        pod_cidrs: Vec::new(),
        deleting: false,
        taints: Vec::new(),
        invalid: Vec::new(),
    }
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}
