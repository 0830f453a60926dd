//! The fallback as a data plane: its tables, the programs that read and write them, and the flows of UDP.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use conntrack::{Conntrack, Filter, Flow, Passes};
use ipvs::Gone;
use service_model::{Family, Frontend, LocalTraffic, NodePortPlaces, ObjectName, Program, Protocol};

use super::chain::Table;
use super::programs::Programs;
use super::restore::{Restored, RuleCounts};
use super::tables::{Found, Settings, Tables};
use crate::adoption::Drift;
use crate::commit::Report;
use crate::kernel::{KernelBroken, chain};
use crate::plan::Phase;
use crate::plane::Plane;
use crate::survey::Survey;

/// What `iptables-save` and `ip6tables-save` said.
pub type Saved = [String; 2];

/// UDP places of a service, and who may answer there. A NodePort is at the unspecified address.
type Places = BTreeMap<SocketAddr, Vec<SocketAddr>>;

/// Rules wanted and written, over the node's programs.
#[derive(Debug)]
pub struct IptablesPlane<P> {
    tables: Tables,
    families: &'static [Family],
    programs: P,
    /// Nobody else ends flows of UDP (L8); none where the kernel has no way.
    conntrack: Option<Conntrack>,
    udp: BTreeMap<ObjectName, Places>,
    /// Places whose flows are to be looked at, with those who may answer.
    flows: Places,
    /// No flows are looked at before then.
    rest_until: Option<Instant>,
    node_ports: NodePortFlows,
    /// Something was written since somebody began to look.
    written: bool,
    /// That nobody has asked for yet.
    restores: Vec<Restored>,
}

/// Tells what is sent to a NodePort of this node from what passes through to the same port of another host.
#[derive(Debug, Default)]
struct NodePortFlows {
    /// Where NodePorts answer; `None` = nowhere, as far as is known.
    v4: Option<NodePortPlaces>,
    v6: Option<NodePortPlaces>,
    /// This node's addresses, without loopback and IPv6 link-local ones.
    own: Vec<IpAddr>,
}

impl NodePortFlows {
    fn has(&self, flow: &Flow) -> bool {
        let to = flow.original.destination;
        let places = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        match (places, to.ip()) {
            (None, _) => false,
            (Some(NodePortPlaces::At(addresses)), ip) => addresses.contains(&ip),
            (Some(NodePortPlaces::EveryLocal { loopback }), ip) if ip.is_loopback() => *loopback,
            // It may be a neighbor's: what we have sent on is ours for sure.
            (Some(NodePortPlaces::EveryLocal { .. }), IpAddr::V6(ip)) if ip.is_unicast_link_local() => {
                flow.reply_source != to
            }
            (Some(NodePortPlaces::EveryLocal { .. }), ip) => self.own.contains(&ip),
        }
    }
}

/// A flow of one of the places that none of those answers who may (L8).
fn is_stale(flow: &Flow, places: &Places, node_ports: &NodePortFlows) -> bool {
    let to = flow.original.destination;
    let any = match to {
        SocketAddr::V4(_) => SocketAddr::new([0; 4].into(), to.port()),
        SocketAddr::V6(_) => SocketAddr::new([0_u16; 8].into(), to.port()),
    };
    let of_node_port = || places.get(&any).filter(|_| node_ports.has(flow));
    let keep = places.get(&to).or_else(of_node_port);
    keep.is_some_and(|keep| keep.binary_search(&flow.reply_source).is_err())
}

impl<P: Programs> IptablesPlane<P> {
    /// Over tables of which nothing is known yet.
    pub fn new(programs: P, settings: Settings) -> Self {
        Self {
            tables: Tables::new(settings),
            families: settings.families,
            programs,
            conntrack: Conntrack::open().ok(),
            udp: BTreeMap::new(),
            flows: Places::new(),
            rest_until: None,
            node_ports: NodePortFlows::default(),
            written: false,
            restores: Vec::new(),
        }
    }

    fn take_in(&mut self, family: Family, saved: &str) -> Drift {
        let found = self.tables.found(family, saved);
        Drift {
            tables: usize::from(found != Found::default()),
            ..Drift::default()
        }
    }

    fn write(&mut self, family: Family, report: &mut Report) -> Result<(), String> {
        let Some(restore) = self.tables.plan(family) else {
            return Ok(());
        };
        self.written = true;
        let start = Instant::now();
        let done = self.programs.restore(family, &restore.text);
        self.restores.push(Restored {
            family,
            scope: restore.scope,
            rules: restore.rules,
            took: start.elapsed(),
            failed: done.is_err(),
        });
        if let Err(error) = done {
            self.tables.forget(family);
            return Err(error);
        }
        self.tables.written(&restore);
        report.done.push((
            Phase::Policies,
            restore.rules.filter + restore.rules.nat + restore.deleted_chains,
        ));
        Ok(())
    }

    /// Not before the rules stand: a flow that begins meanwhile would go where the old ones lead.
    fn end_flows(&mut self, family: Family) {
        let (is_v4, tracked) = match family {
            Family::V4 => (true, conntrack::Family::V4),
            Family::V6 => (false, conntrack::Family::V6),
        };
        let all = std::mem::take(&mut self.flows).into_iter();
        let (places, others): (Places, Places) = all.partition(|(place, _)| place.is_ipv4() == is_v4);
        self.flows = others;
        let (Some(conntrack), false) = (&mut self.conntrack, places.is_empty()) else {
            return;
        };
        let node_ports = &self.node_ports;
        let stale = |flow: &Flow| is_stale(flow, &places, node_ports);
        if let Err(error) = conntrack.delete_where(&Filter::udp(tracked), stale) {
            tracing::warn!(error = chain(&error), "flows of UDP could not be ended by conntrack");
        }
    }
}

impl<P: Programs> Plane for IptablesPlane<P> {
    type Picture = Saved;

    fn want_local_traffic(&mut self, family: Family, local: LocalTraffic) {
        self.tables.want_local_traffic(family, local);
    }

    fn want_node_ports(&mut self, family: Family, places: NodePortPlaces) {
        let known = match family {
            Family::V4 => &mut self.node_ports.v4,
            Family::V6 => &mut self.node_ports.v6,
        };
        *known = Some(places.clone());
        self.tables.want_node_ports(family, places);
    }

    fn want_node_addresses(&mut self, addresses: &[IpAddr]) {
        if self.node_ports.own != addresses {
            self.node_ports.own = addresses.to_vec();
        }
    }

    fn want(&mut self, service: &ObjectName, program: &Program) {
        let now = udp_places(program);
        let before = self.udp.remove(service).unwrap_or_default();
        let gone = before.keys().filter(|place| !now.contains_key(place));
        self.flows.extend(gone.map(|place| (*place, Vec::new())));
        let changed = now.iter().filter(|(place, by)| before.get(place) != Some(by));
        self.flows.extend(changed.map(|(place, by)| (*place, by.clone())));
        if !now.is_empty() {
            self.udp.insert(service.clone(), now);
        }
        self.tables.want(service, program);
    }

    fn adopt(&mut self) -> Result<Drift, KernelBroken> {
        let mut drift = Drift::default();
        for family in self.families.iter().copied() {
            let saved = self.programs.save(family).map_err(broken("read the rules"))?;
            drift.tables += self.take_in(family, &saved).tables;
        }
        Ok(drift)
    }

    /// A family is one restore: there are no shares.
    fn commit(&mut self, now: Instant, _: usize) -> Result<Report, KernelBroken> {
        let mut report = Report {
            caught_up: true,
            ..Report::default()
        };
        // One family that fails must not keep the other from being served.
        let mut failed = None;
        for family in self.families.iter().copied() {
            match self.write(family, &mut report) {
                Ok(()) if self.rest_until.is_none_or(|until| until <= now) => self.end_flows(family),
                Ok(()) => {}
                Err(error) => failed = Some(error),
            }
        }
        match failed {
            None => Ok(report),
            Some(error) => Err(broken("write the rules")(error)),
        }
    }

    fn next_background(&self, _: Instant) -> Option<Instant> {
        None
    }

    fn background(&mut self, _: Instant) -> Result<Report, KernelBroken> {
        Ok(Report::default())
    }

    fn next_retry(&self) -> Option<Instant> {
        self.rest_until.filter(|_| !self.flows.is_empty())
    }

    fn rest_flows(&mut self, until: Instant) {
        self.rest_until = Some(until);
    }

    fn next_look(&self) -> Option<Instant> {
        None
    }

    fn look(&mut self, _: Instant) -> Result<bool, KernelBroken> {
        Ok(false)
    }

    fn begin_audit(&mut self) {
        self.written = false;
    }

    fn audited(&mut self, saved: &Saved) -> Drift {
        let mut drift = Drift::default();
        if !self.written {
            let saved = Family::BOTH.iter().copied().zip(saved);
            for (family, saved) in saved.filter(|(family, _)| self.families.contains(family)) {
                drift.tables += self.take_in(family, saved).tables;
            }
        }
        drift
    }

    fn misses(&self, _: Gone) -> bool {
        false
    }

    fn owner(&self, _: &ipvs::VirtualServer) -> Option<&ObjectName> {
        None
    }

    fn survey(&self) -> Survey {
        let rules = self.families.iter().copied().flat_map(|family| {
            let RuleCounts { filter, nat } = self.tables.rules(family);
            [(family, Table::Filter, filter), (family, Table::Nat, nat)]
        });
        Survey {
            rules: rules.collect(),
            ..Survey::default()
        }
    }

    fn passes(&self) -> [Passes; 2] {
        self.conntrack.as_ref().map(Conntrack::passes).unwrap_or_default()
    }

    fn take_restores(&mut self) -> Vec<Restored> {
        std::mem::take(&mut self.restores)
    }

    fn draining(&self) -> usize {
        0
    }
}

fn udp_places(program: &Program) -> Places {
    let udp = program.frontends.iter().filter(|it| it.key.protocol == Protocol::Udp);
    let answer = |frontend: &Frontend| {
        let all = frontend.endpoints.iter().chain(&frontend.insider_endpoints);
        let mut by: Vec<_> = all.map(|target| target.address).collect();
        by.sort_unstable();
        by.dedup();
        (SocketAddr::new(frontend.key.address, frontend.key.port), by)
    };
    udp.map(answer).collect()
}

fn broken(operation: &'static str) -> impl Fn(String) -> KernelBroken {
    move |error| KernelBroken {
        operation,
        source: error.into(),
    }
}

#[cfg(test)]
mod tests {
    use conntrack::{Tuple, Zone};

    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn flow(to: &str, answered_by: &str) -> Flow {
        Flow {
            original: Tuple {
                source: if to.contains('[') {
                    at("[2001:db8::9]:4000")
                } else {
                    at("198.18.0.9:4000")
                },
                destination: at(to),
                protocol: 17,
            },
            reply_source: at(answered_by),
            answered: true,
            translated: to != answered_by,
            zone: Zone::Default,
            id: 1,
        }
    }

    /// kubernetes/kubernetes#139629: a NodePort's flows are told by the node's addresses, so those of a service without
    /// endpoints end, and those of a service that went (#141371), and no stranger's.
    #[test]
    fn l08_flows_to_a_node_port_end_at_addresses_of_this_node_alone() {
        let every = |loopback| Some(NodePortPlaces::EveryLocal { loopback });
        let only = |address: &str| Some(NodePortPlaces::At(vec![address.parse().unwrap()]));
        let own: Vec<IpAddr> = ["192.0.2.10", "192.0.2.11", "2001:db8::10"]
            .map(|ip| ip.parse().unwrap())
            .into();
        let check = |places: [Option<NodePortPlaces>; 2], keep: &[&str], flow: Flow, expect: bool| {
            let keep: Vec<_> = keep.iter().map(|keep| at(keep)).collect();
            let all = ["0.0.0.0:30053", "[::]:30053", "10.96.0.10:53"].map(|place| (at(place), keep.clone()));
            let [v4, v6] = places.clone();
            let node_ports = NodePortFlows {
                v4,
                v6,
                own: own.clone(),
            };
            let found = is_stale(&flow, &Places::from(all), &node_ports);
            assert_eq!(found, expect, "{flow}, kept {keep:?}, {places:?}");
        };
        let endpoint = "10.244.1.11:5353";
        for keep in [&[][..], &["10.244.1.12:5353"]] {
            let all = || [every(true), every(false)];
            // This node's, sent on and from before the service.
            check(all(), keep, flow("192.0.2.11:30053", endpoint), true);
            check(all(), keep, flow("192.0.2.11:30053", "192.0.2.11:30053"), true);
            check(all(), keep, flow("[2001:db8::10]:30053", "[fd00::11]:5353"), true);
            check(all(), keep, flow("10.96.0.10:53", endpoint), true);
            // Through this node, to another's.
            check(all(), keep, flow("192.0.2.20:30053", "192.0.2.20:30053"), false);
            check(all(), keep, flow("192.0.2.20:30053", "10.9.9.9:30053"), false);
            check(all(), keep, flow("[2001:db8::20]:30053", "[2001:db8::20]:30053"), false);
            check(all(), keep, flow("192.0.2.11:30054", endpoint), false);
            check(all(), keep, flow("[fe80::1]:30053", "[fd00::11]:5353"), true);
            check(all(), keep, flow("[fe80::1]:30053", "[fe80::1]:30053"), false);
            check(all(), keep, flow("127.0.0.1:30053", endpoint), true);
            check([every(false), None], keep, flow("127.0.0.1:30053", endpoint), false);
            check([None, None], keep, flow("192.0.2.11:30053", endpoint), false);
            check(
                [only("192.0.2.10"), None],
                keep,
                flow("192.0.2.10:30053", endpoint),
                true,
            );
            check(
                [only("192.0.2.10"), None],
                keep,
                flow("192.0.2.11:30053", endpoint),
                false,
            );
        }
        check(
            [every(true), None],
            &[endpoint],
            flow("192.0.2.11:30053", endpoint),
            false,
        );
    }
}
