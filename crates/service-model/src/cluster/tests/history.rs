//! Any order of events leads where a fresh start on the same objects leads.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// What exists: everything that events tell, by name.
#[derive(Clone, Debug, Default)]
struct Objects {
    services: BTreeMap<u8, Service>,
    slices: BTreeMap<(u8, u8), EndpointSlice>,
    others: BTreeMap<u8, Node>,
    here: Option<Node>,
    addresses: Vec<IpAddr>,
    others_complete: bool,
}

#[derive(Clone, Debug)]
enum Step {
    Service(u8, Option<Service>),
    Slice((u8, u8), Option<EndpointSlice>),
    Other(u8, Option<Node>),
    Here(Node),
    Addresses(Vec<IpAddr>),
    OthersComplete,
    OthersForgotten,
}

impl Objects {
    fn take(&mut self, step: Step) -> Event {
        fn put<K: Ord, V: Clone>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>, name: ObjectName) -> Change<V> {
            match value {
                Some(value) => {
                    map.insert(key, value.clone());
                    Change::Applied(value)
                }
                None => {
                    map.remove(&key);
                    Change::Deleted(name)
                }
            }
        }
        match step {
            Step::Service(n, service) => Event::Service(put(&mut self.services, n, service, name(n))),
            Step::Slice((n, part), slice) => {
                let name = ObjectName::new("d", &format!("s{n}-{part}"));
                Event::EndpointSlice(put(&mut self.slices, (n, part), slice, name))
            }
            Step::Other(n, node) => {
                let name = ObjectName::cluster_scoped(&format!("node-{n}"));
                Event::Node(put(&mut self.others, n, node, name))
            }
            Step::Here(node) => {
                self.here = Some(node.clone());
                Event::Node(Change::Applied(node))
            }
            Step::Addresses(addresses) => {
                self.addresses.clone_from(&addresses);
                Event::NodeAddresses(addresses)
            }
            Step::OthersComplete => {
                self.others_complete = true;
                Event::OtherNodesComplete
            }
            Step::OthersForgotten => {
                self.others_complete = false;
                self.others.clear();
                Event::OtherNodesForgotten
            }
        }
    }

    /// A cluster that was told these objects only, in an order of its own.
    fn fresh(&self, backwards: bool) -> Cluster {
        let mut events: Vec<Event> = Vec::new();
        events.extend(self.services.values().cloned().map(Change::Applied).map(Event::Service));
        events.extend(
            self.slices
                .values()
                .cloned()
                .map(Change::Applied)
                .map(Event::EndpointSlice),
        );
        events.extend(
            self.others
                .values()
                .chain(&self.here)
                .cloned()
                .map(Change::Applied)
                .map(Event::Node),
        );
        events.push(Event::NodeAddresses(self.addresses.clone()));
        events.extend(self.others_complete.then_some(Event::OtherNodesComplete));
        if backwards {
            events.reverse();
        }
        let mut cluster = alone();
        events.into_iter().for_each(|event| cluster.apply(event));
        cluster
    }
}

fn address_pool() -> impl Strategy<Value = IpAddr> {
    // Few, so that they meet: cluster IPs, external IPs, load balancers', nodes'.
    prop::sample::select(vec![
        "10.0.0.1",
        "10.0.0.2",
        "192.0.2.1",
        "192.0.2.2",
        "fd00::1",
        "fd00::2",
    ])
    .prop_map(ip)
}

fn any_service(number: u8) -> impl Strategy<Value = Service> {
    let policy = || prop::sample::select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local]);
    let kinds = prop::sample::select(vec![
        ServiceType::ClusterIp,
        ServiceType::NodePort,
        ServiceType::LoadBalancer,
        ServiceType::ExternalName,
    ]);
    let addresses = || prop::collection::vec(address_pool(), 0..3);
    let ports = prop::collection::vec((0..2_u16, 0..2_u16, any::<bool>()), 1..3);
    (
        kinds,
        addresses(),
        addresses(),
        addresses(),
        ports,
        (policy(), policy()),
        0..2_i64,
        prop::bool::weighted(0.1),
    )
        .prop_map(
            move |(service_type, cluster, external, ingress, ports, policies, created, excluded)| Service {
                service_type,
                created,
                other_proxy: excluded,
                cluster_ips: cluster.into_iter().collect(),
                external_ips: external
                    .into_iter()
                    .enumerate()
                    .map(|(position, ip)| ExternalIp { position, ip })
                    .collect(),
                load_balancer_ingress: ingress
                    .into_iter()
                    .enumerate()
                    .map(|(position, ip)| LoadBalancerIngress {
                        position,
                        ip,
                        mode: IpMode::Vip,
                    })
                    .collect(),
                ports: ports
                    .into_iter()
                    .enumerate()
                    .map(|(position, (port, node_port, udp))| ServicePort {
                        position,
                        name: if udp { "u".into() } else { "".into() },
                        protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
                        port: 80 + port,
                        node_port: node_port * 80,
                    })
                    .collect(),
                external_traffic_policy: policies.0,
                internal_traffic_policy: policies.1,
                ..Service::new(name(number))
            },
        )
}

fn any_slice(number: u8, part: u8) -> impl Strategy<Value = EndpointSlice> {
    let endpoint = (
        1..5_u8,
        any::<bool>(),
        0..5_u8,
        prop::option::weighted(0.85, prop::sample::select(vec!["a", "b"])),
    )
        .prop_map(|(last, local, state, zone)| Endpoint {
            ready: state < 2,
            serving: state < 3,
            // The last one is not ready, and stays.
            terminating: state == 2 || state == 3,
            zone_hints: zone.into_iter().map(Into::into).collect(),
            ..endpoint(last, if local { "here" } else { "there" })
        });
    prop::collection::vec(endpoint, 0..4).prop_map(move |endpoints| slice(number, part, endpoints))
}

fn any_node(text: String) -> impl Strategy<Value = Node> {
    (
        prop::sample::select(vec!["", "a", "b"]),
        prop::collection::vec(address_pool(), 0..3),
    )
        .prop_map(move |(zone, mut addresses)| {
            addresses.sort();
            addresses.dedup();
            Node {
                addresses,
                ..node(&text, zone, &[])
            }
        })
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..4_u8).prop_flat_map(|n| prop::option::weighted(0.8, any_service(n)).prop_map(move |s| Step::Service(n, s))),
        5 => (0..4_u8, 0..2_u8).prop_flat_map(|(n, p)| {
            prop::option::weighted(0.8, any_slice(n, p)).prop_map(move |s| Step::Slice((n, p), s))
        }),
        2 => (0..2_u8).prop_flat_map(|n| {
            prop::option::of(any_node(format!("node-{n}"))).prop_map(move |node| Step::Other(n, node))
        }),
        2 => Just(Step::OthersComplete),
        1 => Just(Step::OthersForgotten),
        2 => any_node("here".to_owned()).prop_map(Step::Here),
        1 => prop::collection::btree_set(address_pool(), 0..4).prop_map(|set| Step::Addresses(set.into_iter().collect())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Programs that are kept and renewed only where an event touched them are those of a fresh start, whatever the
    /// order of its events and however many of them are folded together; and no place belongs to two services.
    #[test]
    fn any_history_ends_as_a_fresh_start(steps in prop::collection::vec((any_step(), any::<bool>()), 1..40)) {
        let (mut objects, mut cluster, mut backlog) = (Objects::default(), alone(), Backlog::default());
        let mut kept: BTreeMap<ObjectName, Program> = BTreeMap::new();
        let last = steps.len() - 1;
        for (at, (step, folded)) in steps.into_iter().enumerate() {
            backlog.push(vec![objects.take(step)]);
            if folded && at < last {
                continue;
            }
            cluster.catch_up(&mut backlog);
            for name in cluster.take_touched() {
                kept.insert(name.clone(), cluster.program(&name));
            }
        }
        for backwards in [false, true] {
            let fresh = objects.fresh(backwards);
            for number in 0..4 {
                let (name, empty) = (name(number), Program::default());
                prop_assert_eq!(kept.get(&name).unwrap_or(&empty), &fresh.program(&name));
            }
        }
        let keys: Vec<_> = kept.values().flat_map(|program| &program.frontends).map(|frontend| frontend.key).collect();
        let distinct: HashSet<_> = keys.iter().copied().collect();
        prop_assert_eq!(keys.len(), distinct.len());
    }

    /// Slices may be named in any way and hold their endpoints in any order.
    #[test]
    fn names_and_order_of_slices_do_not_matter(
        service in any_service(1),
        slices in prop::collection::vec(any_slice(1, 0), 1..4),
        names in Just(vec![0_u8, 1, 2, 3]).prop_shuffle(),
    ) {
        let program = |names: &[u8], turn: bool| {
            let mut cluster = cluster();
            cluster.apply(Event::Service(Change::Applied(service.clone())));
            // Hints are for this node, for others, or missing.
            cluster.apply(Event::Node(Change::Applied(node("here", "a", &[]))));
            for (slice, part) in slices.iter().zip(names) {
                let mut endpoints = slice.endpoints.clone();
                if turn {
                    endpoints.reverse();
                }
                let renamed = EndpointSlice { endpoints, name: ObjectName::new("d", &format!("s1-{part}")), ..slice.clone() };
                cluster.apply(Event::EndpointSlice(Change::Applied(renamed)));
            }
            cluster.program(&name(1))
        };
        prop_assert_eq!(program(&[0, 1, 2, 3], false), program(&names, true));
    }

    /// An object that is sent again touches nothing.
    #[test]
    fn the_same_again_is_nothing(steps in prop::collection::vec(any_step(), 1..20)) {
        let (mut objects, mut cluster) = (Objects::default(), alone());
        for step in steps {
            cluster.apply(objects.take(step.clone()));
            cluster.take_touched();
            cluster.apply(objects.take(step));
            prop_assert_eq!(cluster.take_touched(), Vec::<ObjectName>::new());
        }
    }
}
