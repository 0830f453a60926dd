//! The ledger against a model of the tables that takes restore texts as the command does.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at what it did not expect"
)]

use std::fmt::Write;

use proptest::prelude::*;
use service_model::{
    Capture, Change, Cluster, Config, Endpoint, EndpointPort, EndpointSlice, Event, IpMode, LoadBalancerIngress,
    Protocol, Service, ServicePort, ServiceType, Source, TrafficPolicy,
};

use super::*;

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Chains with their rules, by table and name; and the rules of the kernel's own chains.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    chains: BTreeMap<(String, String), Vec<String>>,
    jumps: BTreeSet<(String, String, String)>,
}

impl Model {
    /// # Panics
    /// The command would refuse the text.
    fn restore(&mut self, text: &str) {
        let mut table = String::new();
        let mut declared = BTreeSet::new();
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                name.clone_into(&mut table);
                declared.clear();
            } else if let Some(chain) = line.strip_prefix(':') {
                let name = chain.strip_suffix(" - [0:0]").expect(line);
                assert!(declared.insert(name.to_owned()), "twice: {line}");
                self.chains.insert((table.clone(), name.to_owned()), Vec::new());
            } else if let Some(jump) = line.strip_prefix("-I ") {
                let (chain, rest) = jump.split_once(' ').expect(line);
                assert!(
                    self.jumps.insert((table.clone(), chain.to_owned(), rest.to_owned())),
                    "twice: {line}"
                );
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let (chain, rest) = rule.split_once(' ').expect(line);
                assert!(declared.contains(chain), "not declared: {line}");
                let rules = self.chains.get_mut(&(table.clone(), chain.to_owned())).expect(line);
                rules.push(rest.to_owned());
            } else if let Some(chain) = line.strip_prefix("-X ") {
                let there = self.chains.remove(&(table.clone(), chain.to_owned()));
                assert_eq!(there, Some(Vec::new()), "{line}");
            } else {
                assert_eq!(line, "COMMIT");
                self.check_references(&table);
            }
        }
    }

    fn check_references(&self, of: &str) {
        for ((table, chain), rules) in self.chains.iter().filter(|((table, _), _)| table == of) {
            for rule in rules {
                let target = rule.split(" -j ").nth(1).unwrap_or_default();
                let to = target.split(' ').next().unwrap_or_default();
                let there = !to.starts_with("KUBE-") || self.chains.contains_key(&(table.clone(), to.to_owned()));
                assert!(there, "{chain}: {rule}");
            }
        }
    }

    /// As `iptables-save`.
    fn save(&self) -> String {
        let mut text = String::new();
        for table in TABLES {
            writeln!(text, "# Generated\n*{table}\n:INPUT ACCEPT [0:0]").unwrap();
            let chains = || self.chains.iter().filter(|((of, _), _)| *of == table.to_string());
            for ((_, name), _) in chains() {
                writeln!(text, ":{name} - [0:0]").unwrap();
            }
            for (_, chain, jump) in self.jumps.iter().filter(|(of, ..)| *of == table.to_string()) {
                writeln!(text, "-A {chain} {jump}").unwrap();
            }
            for ((_, name), rules) in chains() {
                rules
                    .iter()
                    .for_each(|rule| writeln!(text, "-A {name} {rule}").unwrap());
            }
            writeln!(text, "COMMIT").unwrap();
        }
        text
    }

    /// Without the chain that is shared with the kubelet, and stays.
    fn ours(&self) -> Self {
        let mut rest = self.clone();
        rest.chains.retain(|(_, name), _| name != "KUBE-FIREWALL");
        rest
    }
}

/// What a random service is.
#[derive(Clone, Debug)]
struct Spec {
    service_type: ServiceType,
    internal: TrafficPolicy,
    external: TrafficPolicy,
    /// On this node or not; ready or terminating.
    endpoints: BTreeMap<u8, (bool, bool)>,
    affinity: Option<u32>,
    ranges: bool,
    ports: u8,
}

type World = BTreeMap<u8, Spec>;

fn worlds() -> impl Strategy<Value = Vec<World>> {
    let policy = || prop_oneof![Just(TrafficPolicy::Cluster), Just(TrafficPolicy::Local)];
    let service_type = prop_oneof![
        Just(ServiceType::ClusterIp),
        Just(ServiceType::NodePort),
        Just(ServiceType::LoadBalancer)
    ];
    let endpoints = proptest::collection::btree_map(1..6_u8, (any::<bool>(), any::<bool>()), 0..4);
    let affinity = prop_oneof![Just(None), Just(Some(600))];
    let spec = (
        service_type,
        policy(),
        policy(),
        endpoints,
        affinity,
        any::<bool>(),
        1..3_u8,
    )
        .prop_map(
            |(service_type, internal, external, endpoints, affinity, ranges, ports)| Spec {
                service_type,
                internal,
                external,
                endpoints,
                affinity,
                ranges,
                ports,
            },
        );
    let world = proptest::collection::btree_map(1..5_u8, spec, 0..4);
    proptest::collection::vec(world, 1..5)
}

fn name(number: u8) -> ObjectName {
    ObjectName::new("d", &format!("s{number}"))
}

fn program(number: u8, spec: &Spec) -> Program {
    let mut cluster = Cluster::new(Config {
        capture: Capture::Redirect {
            localhost_node_ports: true,
        },
        ..Config::of_node("here")
    });
    let of = |family: Family, v4: &str, v6: &str| {
        let text = if family == Family::V4 { v4 } else { v6 };
        text.replace('N', &number.to_string()).parse().unwrap()
    };
    let ports: Vec<_> = (0..spec.ports)
        .map(|position| ServicePort {
            position: position.into(),
            name: format!("p{position}").into(),
            protocol: if position == 0 { Protocol::Tcp } else { Protocol::Udp },
            port: 80 + u16::from(position),
            node_port: if spec.service_type == ServiceType::ClusterIp {
                0
            } else {
                30_000 + u16::from(number) * 10 + u16::from(position)
            },
        })
        .collect();
    let ingress = FAMILIES.map(|family| LoadBalancerIngress {
        position: 0,
        ip: of(family, "203.0.113.N", "2001:db8:1b::N"),
        mode: IpMode::Vip,
    });
    cluster.apply(Event::Service(Change::Applied(Service {
        service_type: spec.service_type,
        cluster_ips: FAMILIES
            .map(|family| of(family, "10.96.0.N", "fd00::N"))
            .into_iter()
            .collect(),
        ports: ports.iter().cloned().collect(),
        load_balancer_ingress: ingress.to_vec(),
        source_ranges: if spec.ranges {
            vec!["198.18.0.0/16".parse().ok(), None]
        } else {
            Vec::new()
        },
        affinity: spec.affinity,
        external_traffic_policy: spec.external,
        internal_traffic_policy: spec.internal,
        health_check_node_port: 32_000 + u16::from(number),
        ..Service::new(name(number))
    })));
    for family in FAMILIES {
        let endpoints = spec.endpoints.iter().map(|(last, (local, ready))| Endpoint {
            address: match family {
                Family::V4 => format!("10.244.0.{last}").parse().unwrap(),
                Family::V6 => format!("fd00:10::{last}").parse().unwrap(),
            },
            node_name: Some(if *local { "here" } else { "there" }.into()),
            ready: *ready,
            serving: true,
            terminating: !*ready,
            zone_hints: [].into_iter().collect(),
            node_hints: [].into_iter().collect(),
        });
        cluster.apply(Event::EndpointSlice(Change::Applied(EndpointSlice {
            name: ObjectName::new("d", &format!("s{number}-{family:?}")),
            service: format!("s{number}").into(),
            headless_label: false,
            family: Some(family),
            ports: ports
                .iter()
                .map(|port| EndpointPort {
                    name: port.name.clone(),
                    protocol: port.protocol,
                    port: 8080,
                })
                .collect(),
            endpoints: endpoints.collect(),
            last_change: None,
            invalid: Vec::new(),
        })));
    }
    cluster.program(&name(number))
}

/// Of one world.
fn fresh(world: &World) -> Tables {
    let mut tables = Tables::new(Settings::default());
    for (number, spec) in world {
        tables.want(&name(*number), &program(*number, spec));
    }
    tables
}

fn change(tables: &mut Tables, before: &World, now: &World) {
    for number in before.keys().filter(|number| !now.contains_key(number)) {
        tables.want(&name(*number), &Program::default());
    }
    for (number, spec) in now {
        tables.want(&name(*number), &program(*number, spec));
    }
}

fn write(tables: &mut Tables, family: Family, model: &mut Model) -> Option<Restore> {
    let restore = tables.plan(family)?;
    model.restore(&restore.text);
    tables.written(&restore);
    assert_eq!(tables.plan(family), None);
    Some(restore)
}

fn whole(tables: &Tables, family: Family) -> Model {
    let mut model = Model::default();
    model.restore(&tables.plan(family).unwrap().text);
    model
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever changed, what is written piece by piece is what is written at once, and what is written is not written
    /// again; with sizes that are right.
    #[test]
    fn parts_add_up_to_the_whole(history in worlds(), places in any::<bool>()) {
        let mut tables = Tables::new(Settings::default());
        let mut models = [Model::default(), Model::default()];
        let mut before = World::new();
        for (step, world) in history.iter().enumerate() {
            change(&mut tables, &before, world);
            let mut expect = fresh(world);
            if places && step > 0 {
                let at = NodePortPlaces::At(vec!["192.0.2.1".parse().unwrap()]);
                tables.want_node_ports(Family::V4, at.clone());
                expect.want_node_ports(Family::V4, at);
            }
            for (family, model) in FAMILIES.into_iter().zip(&mut models) {
                let restore = write(&mut tables, family, model);
                let scope = restore.map(|restore| restore.scope);
                prop_assert!(scope != Some(Scope::Full) || step == 0);
                prop_assert_eq!(&model.ours(), &whole(&expect, family).ours());
                let (filter, nat): (Vec<_>, Vec<_>) = model.chains.iter().partition(|((table, _), _)| table == "filter");
                let count = |chains: Vec<(_, &Vec<String>)>| chains.iter().map(|(_, rules)| rules.len()).sum::<usize>();
                let counted = RuleCounts { filter: count(filter), nat: count(nat) };
                prop_assert_eq!(tables.rules(family), counted);
            }
            change(&mut tables, world, world);
            for family in FAMILIES {
                prop_assert_eq!(tables.plan(family), None);
            }
            before = world.clone();
        }
    }

    /// A start on tables of another state ends as a start on empty ones; so does a repair.
    #[test]
    fn what_is_found_is_taken_into_account(old in worlds(), new in worlds(), lost in any::<proptest::sample::Index>()) {
        let (old, new) = (&old[0], &new[0]);
        for family in FAMILIES {
            let mut model = whole(&fresh(old), family);
            let mut tables = fresh(new);
            tables.found(family, &model.save());
            write(&mut tables, family, &mut model);
            let expect = whole(&fresh(new), family);
            prop_assert_eq!(&model.ours(), &expect.ours());
            prop_assert_eq!(tables.found(family, &model.save()), Found::default());
            prop_assert_eq!(tables.plan(family), None);

            // Somebody deletes a chain.
            let names: Vec<_> = model.chains.keys().filter(|(_, name)| name != "KUBE-FIREWALL").cloned().collect();
            model.chains.remove(lost.get(&names));
            prop_assert_eq!(tables.found(family, &model.save()).differ, 1);
            write(&mut tables, family, &mut model);
            prop_assert_eq!(model.ours(), expect.ours());
        }
    }
}

fn spec(endpoints: u8) -> Spec {
    Spec {
        service_type: ServiceType::NodePort,
        internal: TrafficPolicy::Cluster,
        external: TrafficPolicy::Cluster,
        endpoints: (1..=endpoints).map(|last| (last, (true, true))).collect(),
        affinity: None,
        ranges: false,
        ports: 1,
    }
}

#[test]
fn one_endpoint_writes_the_chain_that_leads_to_it() {
    let world: World = (1..=20).map(|number| (number, spec(5))).collect();
    let mut tables = fresh(&world);
    let mut model = Model::default();
    let full = write(&mut tables, Family::V4, &mut model).unwrap();
    tables.want(&name(7), &program(7, &spec(4)));
    let part = write(&mut tables, Family::V4, &mut model).unwrap();
    assert_eq!((full.scope, part.scope), (Scope::Full, Scope::Partial));
    // SVC, EXT and an SEP for each endpoint.
    assert_eq!(own_chains(&full), 20 * 7);
    let expect = "*nat\n:KUBE-SVC-H - [0:0]\n:KUBE-SEP-H - [0:0]\n-A KUBE-SVC-H … KUBE-SEP-H\n-A KUBE-SVC-H … KUBE-SEP-H\n\
                  -A KUBE-SVC-H … KUBE-SEP-H\n-A KUBE-SVC-H … KUBE-SEP-H\n-X KUBE-SEP-H\nCOMMIT\n";
    assert_eq!(shape(&part.text), expect);
    // Only a service without endpoints is in another place than before.
    tables.want(&name(7), &program(7, &spec(0)));
    let part = write(&mut tables, Family::V4, &mut model).unwrap();
    let shared: Vec<_> = part
        .text
        .lines()
        .filter(|line| line.starts_with(':') && !is_of_a_service(&line[1..]))
        .collect();
    let expect = [
        ":KUBE-SERVICES - [0:0]",
        ":KUBE-EXTERNAL-SERVICES - [0:0]",
        ":KUBE-SERVICES - [0:0]",
        ":KUBE-NODEPORTS - [0:0]",
    ];
    assert_eq!(shared, expect);
}

/// Without what tells chains apart, and what is between the chain and the target of a rule.
fn shape(text: &str) -> String {
    let name = |word: &str| match word.rsplit_once('-') {
        Some((start, hash)) if hash.len() == 16 => format!("{start}-H"),
        _ => word.to_owned(),
    };
    let line = |line: &str| {
        let words: Vec<_> = line.split(' ').map(name).collect();
        match words.as_slice() {
            [add, chain, .., target] if add == "-A" => format!("{add} {chain} … {target}\n"),
            words => format!("{}\n", words.join(" ")),
        }
    };
    text.lines().map(line).collect()
}

/// `iptables -F INPUT` leaves our chains alone.
#[test]
fn a_jump_that_is_gone_is_made_again() {
    let world = World::from([(1, spec(1))]);
    let mut tables = fresh(&world);
    let mut model = Model::default();
    write(&mut tables, Family::V4, &mut model).unwrap();
    assert_eq!(tables.found(Family::V4, &model.save()), Found::default());
    let whole = model.clone();
    model.jumps.retain(|(_, chain, _)| chain != "PREROUTING");
    assert_ne!(model, whole);
    assert_eq!(tables.found(Family::V4, &model.save()).differ, 1);
    let expect = "*nat\n-I PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\nCOMMIT\n";
    assert_eq!(write(&mut tables, Family::V4, &mut model).unwrap().text, expect);
    assert_eq!(model, whole);
}

/// The kubelet's rules are no drift of ours; others in our chains are, and cost no more than their chain.
#[test]
fn rules_of_others_are_told_from_ours() {
    let mut tables = fresh(&World::from([(1, spec(1))]));
    tables.want_node_ports(Family::V4, NodePortPlaces::EveryLocal { loopback: true });
    let mut model = Model::default();
    write(&mut tables, Family::V4, &mut model).unwrap();
    let save = model.save();
    let with = |rule: &str| save.replace("-A KUBE-FIREWALL", &format!("{rule}\n-A KUBE-FIREWALL"));
    let theirs =
        with("-A KUBE-FIREWALL -m mark --mark 0x8000 -j DROP\n:KUBE-MARK-DROP - [0:0]\n-A KUBE-MARK-DROP -j DROP");
    assert_eq!(tables.found(Family::V4, &theirs), Found::default());
    assert_eq!(tables.found(Family::V4, &with("-A KUBE-FORWARD -j DROP")).differ, 1);
    let repair = write(&mut tables, Family::V4, &mut model).unwrap();
    assert_eq!(repair.text.matches("\n:").count(), 1, "{}", repair.text);
}

fn own_chains(restore: &Restore) -> usize {
    let is_own = |line: &&str| line.strip_prefix(':').is_some_and(is_of_a_service);
    restore.text.lines().filter(is_own).count()
}

#[test]
fn a_large_cluster_names_no_endpoints_until_all_is_written_again() {
    let small: World = (1..=6).map(|number| (number, spec(160))).collect();
    let mut tables = fresh(&small);
    let mut model = Model::default();
    let is_named = |restore: &Restore| restore.text.contains(" -> ");
    assert!(is_named(&write(&mut tables, Family::V4, &mut model).unwrap()));
    tables.want(&name(7), &program(7, &spec(100)));
    let large = write(&mut tables, Family::V4, &mut model).unwrap();
    assert!(large.scope == Scope::Full && !is_named(&large));
    tables.want(&name(7), &program(7, &spec(1)));
    let shrunk = write(&mut tables, Family::V4, &mut model).unwrap();
    assert!(shrunk.scope == Scope::Partial && !is_named(&shrunk));
    tables.forget(Family::V4);
    assert!(is_named(&write(&mut tables, Family::V4, &mut model).unwrap()));
}

#[test]
fn who_is_who_concerns_every_service() {
    let mut tables = fresh(&World::from([(1, spec(1))]));
    let mut model = Model::default();
    write(&mut tables, Family::V4, &mut model).unwrap();
    let pods = Some(Source::Interface("cni0".into()));
    let local = LocalTraffic {
        pods: pods.clone(),
        insiders: pods.clone(),
        own_pods: pods,
    };
    tables.want_local_traffic(Family::V4, local.clone());
    let again = write(&mut tables, Family::V4, &mut model).unwrap();
    assert_eq!(again.scope, Scope::Full);
    assert!(again.text.contains("! -i \"cni0\""));
    tables.want_local_traffic(Family::V4, local);
    assert_eq!(tables.plan(Family::V4), None);
}

#[test]
fn filter_comes_before_nat() {
    let restore = fresh(&World::from([(1, spec(1))])).plan(Family::V6).unwrap();
    let tables: Vec<_> = restore.text.lines().filter(|line| line.starts_with('*')).collect();
    assert_eq!(tables, ["*filter", "*nat"]);
    assert_eq!(
        restore.rules.filter + restore.rules.nat,
        restore.text.matches("-A ").count()
    );
}
