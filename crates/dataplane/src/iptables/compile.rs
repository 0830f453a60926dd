//! A program → the rules and chains of its service in one family. Pure.
//!
//! A service port has a rule for each of its addresses in the chains that all share, which leads to: `SVC` (every
//! endpoint of the cluster), `SVL` (those of this node), `EXT` (from the outside: who is masqueraded, and who is an
//! insider) or `FW` (who may come at all). From `SVC` and `SVL` on to one `SEP` of each endpoint.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use service_model::{
    AddressKind, Family, Frontend, LocalTraffic, Masquerade, NodePortPlaces, ObjectName, Program, Protocol, Refusal,
    Source, SourceRanges, Target as Endpoint, TrafficPolicy,
};

use super::base::{EXTERNAL_SERVICES, MARK_MASQ, NODE_PORTS, PROXY_FIREWALL, SERVICES, destinations};
use super::chain::{Chain, ServiceRules};
use super::name::{ChainName, Prefix, ServicePort};
use super::rule::{Is, Match, Rule, Target, only};

/// What rules depend on besides the program.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    pub(crate) family: Family,
    pub(crate) local: &'a LocalTraffic,
    pub(crate) places: &'a NodePortPlaces,
}

/// Everything that a service is in a family.
pub(crate) fn compile(service: &ObjectName, program: &Program, view: View<'_>) -> ServiceRules {
    let mut rules = ServiceRules::default();
    for port in ports(service, program, view) {
        port.shared(&mut rules);
        port.chains(&mut rules.chains);
    }
    rules
}

/// Its rules in the chains that all share, alone.
pub(crate) fn compile_shared(service: &ObjectName, program: &Program, view: View<'_>) -> ServiceRules {
    let mut rules = ServiceRules::default();
    for port in ports(service, program, view) {
        port.shared(&mut rules);
    }
    rules
}

/// A port of a service in one family.
struct Port<'a> {
    name: ServicePort,
    /// One, where ports have names of their own.
    cluster_ips: Vec<&'a Frontend>,
    /// NodePort, load-balancer addresses, external IPs. They have one policy.
    external: Vec<&'a Frontend>,
    health_check: Option<u16>,
    view: View<'a>,
}

/// The service's ports, by name and protocol, which together make the names of chains.
fn ports<'a>(service: &ObjectName, program: &'a Program, view: View<'a>) -> Vec<Port<'a>> {
    let mut ports: BTreeMap<(&str, Protocol), Port<'a>> = BTreeMap::new();
    let ours = |frontend: &&Frontend| frontend.key.address.is_ipv4() == (view.family == Family::V4);
    for frontend in program.frontends.iter().filter(ours) {
        let protocol = frontend.key.protocol;
        let port = ports.entry((&*frontend.port_name, protocol)).or_insert_with(|| Port {
            name: ServicePort::new(service, &frontend.port_name, protocol),
            cluster_ips: Vec::new(),
            external: Vec::new(),
            health_check: program.health_check.map(|check| check.port),
            view,
        });
        match frontend.kind {
            AddressKind::ClusterIp => port.cluster_ips.push(frontend),
            AddressKind::NodePort | AddressKind::LoadBalancer | AddressKind::ExternalIp => port.external.push(frontend),
            // A data plane that redirects is given none.
            AddressKind::Insiders => {}
        }
    }
    ports.into_values().collect()
}

/// T15: who may connect, where that is not everybody.
fn restricted(frontend: &Frontend) -> Option<&SourceRanges> {
    let some = |ranges: &&SourceRanges| ranges.ranges.iter().all(|range| range.prefix_len() > 0);
    frontend.source_ranges.as_ref().filter(some)
}

impl Port<'_> {
    fn chain(&self, prefix: Prefix) -> ChainName {
        self.name.chain(prefix)
    }

    /// The chain of a policy.
    fn of_policy(&self, policy: TrafficPolicy) -> ChainName {
        self.chain(match policy {
            TrafficPolicy::Cluster => Prefix::Cluster,
            TrafficPolicy::Local => Prefix::Local,
        })
    }

    fn comment(&self, before: &str, after: &str) -> Match {
        Match::Comment(format!("{before}{}{after}", self.name.name))
    }

    fn frontends(&self) -> impl Iterator<Item = &Frontend> {
        self.cluster_ips.iter().chain(&self.external).copied()
    }

    /// Some endpoint, anywhere, takes traffic.
    fn has_endpoints(&self) -> bool {
        self.frontends()
            .any(|frontend| !frontend.endpoints.is_empty() || frontend.refusal == Refusal::Drop)
    }

    /// The external frontends where they have a chain of their own.
    fn reachable_from_outside(&self) -> Option<&Frontend> {
        self.external.first().copied().filter(|_| self.has_endpoints())
    }

    fn source_ranges(&self) -> Option<&SourceRanges> {
        let ranges = self.external.iter().copied().find_map(restricted);
        ranges.filter(|_| self.has_endpoints())
    }

    /// The endpoints of the whole cluster, for policy Cluster and for insiders.
    fn cluster_endpoints(&self) -> &[Endpoint] {
        let by_policy = self
            .frontends()
            .find(|frontend| frontend.policy == TrafficPolicy::Cluster);
        let of_insiders = || self.external.first().map(|frontend| &frontend.insider_endpoints);
        by_policy
            .map(|frontend| &frontend.endpoints)
            .or_else(of_insiders)
            .map_or(&[], Vec::as_slice)
    }

    fn local_endpoints(&self) -> &[Endpoint] {
        let by_policy = self
            .frontends()
            .find(|frontend| frontend.policy == TrafficPolicy::Local);
        by_policy.map_or(&[], |frontend| &frontend.endpoints)
    }

    /// Its rules in the chains that all share.
    fn shared(&self, rules: &mut ServiceRules) {
        let has_endpoints = self.has_endpoints();
        for frontend in &self.cluster_ips {
            if frontend.endpoints.is_empty() {
                self.refuse(frontend, SERVICES, &mut rules.filter);
            } else {
                let to = Target::Jump(self.of_policy(frontend.policy));
                rules.nat.push(Rule {
                    chain: SERVICES,
                    matches: self.at(frontend, self.comment("", " cluster IP")),
                    target: Some(to),
                });
            }
        }
        for frontend in &self.external {
            if has_endpoints {
                rules.nat.push(self.capture(frontend));
            }
            if has_endpoints && restricted(frontend).is_some() {
                let not_by = format!(" traffic not accepted by {}", self.chain(Prefix::Firewall));
                rules.filter.push(Rule {
                    chain: PROXY_FIREWALL,
                    matches: self.at(frontend, self.comment("", &not_by)),
                    target: Some(Target::Drop),
                });
            }
            if frontend.endpoints.is_empty() {
                self.refuse(frontend, EXTERNAL_SERVICES, &mut rules.filter);
            }
        }
        if let Some(port) = self.health_check {
            // Where others drop what they do not know.
            rules.filter.push(Rule {
                chain: NODE_PORTS,
                matches: vec![
                    self.comment("", " health check node port"),
                    Match::Protocol(Protocol::Tcp),
                    Match::Port(port),
                ],
                target: Some(Target::Accept),
            });
        }
    }

    /// What is sent to an address of the outside goes to the chain for that.
    fn capture(&self, frontend: &Frontend) -> Rule {
        let external = Target::Jump(self.chain(Prefix::External));
        let at = |what: &str| self.at(frontend, self.comment("", what));
        match frontend.kind {
            AddressKind::NodePort => Rule {
                chain: NODE_PORTS,
                // Nobody comes to this chain who is not at one of the places.
                matches: vec![
                    self.comment("", ""),
                    Match::Protocol(frontend.key.protocol),
                    Match::Port(frontend.key.port),
                ],
                target: Some(external),
            },
            AddressKind::LoadBalancer => Rule {
                chain: SERVICES,
                matches: at(" loadbalancer IP"),
                target: Some(if restricted(frontend).is_some() {
                    Target::Jump(self.chain(Prefix::Firewall))
                } else {
                    external
                }),
            },
            AddressKind::ClusterIp | AddressKind::ExternalIp | AddressKind::Insiders => Rule {
                chain: SERVICES,
                matches: at(" external IP"),
                target: Some(external),
            },
        }
    }

    /// T1, T4, T5. Insiders at a Local policy have been sent to an endpoint before.
    fn refuse(&self, frontend: &Frontend, chain: ChainName, rules: &mut Vec<Rule>) {
        let (why, target) = match (frontend.refusal, frontend.key.protocol) {
            (Refusal::Drop, _) => (" has no local endpoints", Target::Drop),
            // The kernel limits the rate of ICMP errors, not that of resets.
            (Refusal::Reject, Protocol::Tcp) => (" has no endpoints", Target::Reset),
            (Refusal::Reject, Protocol::Udp | Protocol::Sctp) => (" has no endpoints", Target::Reject),
        };
        let comment = self.comment("", why);
        if frontend.kind != AddressKind::NodePort {
            let matches = self.at(frontend, comment);
            let target = Some(target);
            rules.push(Rule { chain, matches, target });
            return;
        }
        // T16, T17: elsewhere the port is not ours.
        for place in destinations(self.view.family, self.view.places) {
            let port = [Match::Protocol(frontend.key.protocol), Match::Port(frontend.key.port)];
            rules.push(Rule {
                chain,
                matches: [comment.clone()].into_iter().chain(place).chain(port).collect(),
                target: Some(target),
            });
        }
    }

    /// Tells what is sent to a frontend.
    fn at(&self, frontend: &Frontend, comment: Match) -> Vec<Match> {
        vec![
            comment,
            Match::Protocol(frontend.key.protocol),
            Match::To(Is::So, only(frontend.key.address)),
            Match::Port(frontend.key.port),
        ]
    }

    fn chains(&self, chains: &mut Vec<Chain>) {
        let external = self.reachable_from_outside();
        let mut add = |name, rules: Vec<(Vec<Match>, Option<Target>)>| {
            let rule = |(matches, target)| Rule {
                chain: name,
                matches,
                target,
            };
            let rules = rules.into_iter().map(rule).collect();
            chains.push(Chain { name, rules });
        };
        if let Some(frontend) = external {
            add(self.chain(Prefix::External), self.external_chain(frontend));
        }
        if let Some(ranges) = self.source_ranges() {
            add(self.chain(Prefix::Firewall), self.firewall_chain(ranges));
        }
        let mut endpoints = BTreeMap::new();
        for (policy, of_policy) in [
            (TrafficPolicy::Cluster, self.cluster_endpoints()),
            (TrafficPolicy::Local, self.local_endpoints()),
        ] {
            // Upstream's order.
            let sorted: BTreeMap<_, _> = of_policy
                .iter()
                .map(|endpoint| (endpoint.address.to_string(), endpoint.address))
                .collect();
            if !sorted.is_empty() {
                add(self.of_policy(policy), self.policy_chain(policy, &sorted));
            }
            endpoints.extend(sorted);
        }
        for endpoint in endpoints.into_values() {
            add(self.name.endpoint_chain(endpoint), self.endpoint_chain(endpoint));
        }
    }

    fn external_chain(&self, frontend: &Frontend) -> Vec<(Vec<Match>, Option<Target>)> {
        let note = |before: &str| self.comment(before, " external destinations");
        let masquerade = Some(Target::Jump(MARK_MASQ));
        let mut rules = Vec::new();
        if frontend.policy == TrafficPolicy::Cluster {
            // The endpoint may be on another node, past which its replies would go.
            rules.push((vec![note("masquerade traffic for ")], masquerade));
        } else {
            // T2, as if it had been to the load balancer and back.
            let everywhere = Some(Target::Jump(self.chain(Prefix::Cluster)));
            let short = |who: &Source| {
                let from = Match::From(Is::So, who.clone());
                (vec![note("pod traffic for "), from], everywhere)
            };
            let LocalTraffic { insiders, own_pods, .. } = self.view.local;
            rules.extend(own_pods.as_ref().map(short));
            rules.push((
                vec![note("masquerade LOCAL traffic for "), Match::SourceLocal],
                masquerade,
            ));
            rules.push((vec![note("route LOCAL traffic for "), Match::SourceLocal], everywhere));
            if let Some(pods) = insiders.as_ref().filter(|pods| own_pods.as_ref() != Some(*pods)) {
                if own_pods.is_some() {
                    rules.extend(self.far_pods_at_node_ports(pods, !frontend.endpoints.is_empty()));
                }
                let far = vec![
                    note("masquerade pods of other nodes for "),
                    Match::From(Is::So, pods.clone()),
                ];
                rules.push((far, masquerade));
                rules.push(short(pods));
            }
        }
        if !frontend.endpoints.is_empty() {
            rules.push((Vec::new(), Some(Target::Jump(self.of_policy(frontend.policy)))));
        }
        rules
    }

    /// T2: what is left at a NodePort when this node and its own pods are gone comes from outside. A load balancer's address
    /// or external IP at such a place would have lost it to the NodePort (T19).
    fn far_pods_at_node_ports(&self, pods: &Source, endpoints: bool) -> Vec<(Vec<Match>, Option<Target>)> {
        let node_ports = self.external.iter().filter(|one| one.kind == AddressKind::NodePort);
        let target = Some(if endpoints {
            Target::Jump(self.chain(Prefix::Local))
        } else {
            Target::Return
        });
        let rule = |port: u16, place: Vec<Match>| {
            let comment = self.comment("pods of other nodes come from outside to the node port of ", "");
            let from = Match::From(Is::So, pods.clone());
            let at = [Match::Protocol(self.name.protocol), Match::Port(port)];
            let matches = [comment, from].into_iter().chain(place).chain(at).collect();
            (matches, target)
        };
        node_ports
            .flat_map(|one| {
                let places = destinations(self.view.family, self.view.places);
                places.into_iter().map(move |place| (one.key.port, place))
            })
            .map(|(port, place)| rule(port, place))
            .collect()
    }

    /// T15. Who gets to its end goes on untouched, and is dropped in `KUBE-PROXY-FIREWALL`.
    fn firewall_chain(&self, ranges: &SourceRanges) -> Vec<(Vec<Match>, Option<Target>)> {
        let external = Some(Target::Jump(self.chain(Prefix::External)));
        let allow = |who| (vec![self.comment("", " loadbalancer IP"), who], external);
        let mut rules: Vec<_> = ranges
            .ranges
            .iter()
            .map(|range| allow(Match::From(Is::So, Source::Within(*range))))
            .collect();
        if ranges.admits_node {
            // By whatever address of its own it speaks from.
            rules.push(allow(Match::SourceLocal));
        }
        let end = self.comment("other traffic to ", " will be dropped by KUBE-PROXY-FIREWALL");
        rules.push((vec![end], self.is_also_a_node_port().then_some(Target::Accept)));
        rules
    }

    /// What is not let in at a load balancer's address must not come in by a NodePort of the same number: no more rules.
    fn is_also_a_node_port(&self) -> bool {
        let ports = |is: fn(&Frontend) -> bool| {
            let all = self.external.iter().copied();
            all.filter(move |frontend| is(frontend))
                .map(|frontend| frontend.key.port)
        };
        ports(|frontend| frontend.kind == AddressKind::NodePort)
            .any(|port| ports(|frontend| restricted(frontend).is_some()).any(|restricted| restricted == port))
    }

    fn policy_chain(
        &self,
        policy: TrafficPolicy,
        endpoints: &BTreeMap<String, SocketAddr>,
    ) -> Vec<(Vec<Match>, Option<Target>)> {
        let mut rules = Vec::new();
        for frontend in self.cluster_ips.iter().filter(|frontend| frontend.policy == policy) {
            let who = match (frontend.masquerade, &self.view.local.pods) {
                (Masquerade::Always, _) => Some(None),
                (Masquerade::Outsiders, Some(pods)) => Some(Some(Match::From(Is::Not, pods.clone()))),
                (Masquerade::Outsiders | Masquerade::Never, _) => None,
            };
            if let Some(who) = who {
                let mut matches = self.at(frontend, self.comment("", " cluster IP"));
                matches.extend(who);
                rules.push((matches, Some(Target::Jump(MARK_MASQ))));
            }
        }
        let to = |text: &str, address: SocketAddr| {
            let comment = format!("{} -> {text}", self.name.name);
            (vec![Match::EndpointComment(comment)], self.name.endpoint_chain(address))
        };
        if let Some(timeout) = self.frontends().find_map(|frontend| frontend.affinity) {
            for (text, address) in endpoints {
                let (mut matches, chain) = to(text, *address);
                matches.push(Match::Recent(chain, timeout));
                rules.push((matches, Some(Target::Jump(chain))));
            }
        }
        for (before, (text, address)) in endpoints.iter().enumerate() {
            let (mut matches, chain) = to(text, *address);
            let left = endpoints.len() - before;
            matches.extend(Some(Match::OneOf(left)).filter(|_| left > 1));
            rules.push((matches, Some(Target::Jump(chain))));
        }
        rules
    }

    fn endpoint_chain(&self, address: SocketAddr) -> Vec<(Vec<Match>, Option<Target>)> {
        let comment = || Match::EndpointComment(self.name.name.clone());
        let itself = Match::From(Is::So, Source::Within(only(address.ip())));
        let mut matches = vec![comment()];
        if self.frontends().any(|frontend| frontend.affinity.is_some()) {
            matches.push(Match::Remember(self.name.endpoint_chain(address)));
        }
        matches.push(Match::Protocol(self.name.protocol));
        vec![
            // T13.
            (vec![comment(), itself], Some(Target::Jump(MARK_MASQ))),
            (matches, Some(Target::Dnat(address))),
        ]
    }
}
