//! What the Kubernetes API promises for a question: who answers and which source address it sees, or how it is refused.
//!
//! Written from docs/decisions.md §1 and the API documents it cites, never from a proxy's code, and sharing no function
//! with the product. Where a rule has a number it is named. [`Mode`] matters in the few rows of §4.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::question::{Address, Ask, Expectation, Mode, Promise, Question, Source, Spread};
use super::service::{Endpoint, Place, Policy, Service, State, Vip};
use super::setting::{Detector, Fabric, NodePortAddresses};
use super::site::{Client, Family, HOST_PORT_NUMBER, Node, NodeAddress, ROUTER, pod_name};

/// Where a client is, seen from the node that handles its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    /// A pod of this node.
    LocalPod,
    /// A pod of another node.
    OtherPod,
    /// This node itself.
    Itself,
    /// Neither.
    Outside,
}

/// The answer to a question.
pub fn promise(question: &Question<'_>) -> Promise {
    let oracle = Oracle {
        question,
        node: handler(question),
        decisions: Vec::new(),
    };
    oracle.promise()
}

/// The node whose proxy decides: the one that has the address, else the first on the way.
fn handler(question: &Question<'_>) -> Node {
    match (question.address, question.service.external_ip) {
        (Address::Node(node, _), _) => node,
        // T18: an address of another node is left to that node. The fallback binds nothing, so it can redirect before.
        (Address::External, Vip::Node(node, _)) if question.mode == Mode::Ipvs || question.ask != Ask::Service => node,
        _ => question.client.node(),
    }
}

struct Oracle<'a> {
    question: &'a Question<'a>,
    node: Node,
    decisions: Vec<&'static str>,
}

impl Oracle<'_> {
    fn promise(mut self) -> Promise {
        let expectation = match self.question.ask {
            Ask::Service => self.service(),
            Ask::UndefinedPort => self.undefined(),
            Ask::LastPort => {
                self.cite("T6");
                self.only_at_a_vip(Expectation::Refused)
            }
            Ask::HostPort => self.host_port(),
            Ask::HealthCheck => {
                // A balancer asks at the address that it balances.
                self.cite("T6");
                let source = self.to_the_node();
                self.only_at_a_vip(Expectation::answer(&self.node.host(), source))
            }
            Ask::NodePort if self.at_the_balancer() => {
                // T10: a port that is a NodePort, at an address that no node has.
                self.cite("T10");
                Expectation::answer(ROUTER, self.untouched())
            }
            Ask::NodePort => {
                self.cite("T6");
                self.cite("T16");
                self.only_at_a_vip(Expectation::Refused)
            }
            Ask::Echo => {
                self.cite("T8");
                self.only_at_a_vip(Expectation::Echo)
            }
        };
        if self.question.setting.forward_drop {
            self.cite("T28");
        }
        self.decisions.sort_unstable();
        self.decisions.dedup();
        Promise {
            expectation,
            decisions: self.decisions,
        }
    }

    fn cite(&mut self, decision: &'static str) {
        self.decisions.push(decision);
    }

    /// What IPVS mode promises since a VIP is local; in the fallback the packet leaves the node like any other (§4).
    fn only_at_a_vip(&self, expectation: Expectation) -> Expectation {
        match self.question.mode {
            Mode::Ipvs => expectation,
            Mode::Iptables => Expectation::NoAnswer,
        }
    }

    /// The node has this address by itself, not because a service has it.
    fn is_nodes_own(&self) -> bool {
        let ip = self.question.ip();
        self.node.addresses(self.question.family).contains(&ip)
    }

    fn undefined(&mut self) -> Expectation {
        if self.is_nodes_own() {
            // T7: the node's own daemon answers.
            self.cite("T7");
            return Expectation::answer(&self.node.host(), self.to_the_node());
        }
        self.cite("T6");
        self.only_at_a_vip(Expectation::Refused)
    }

    /// What a daemon of the node sees.
    fn to_the_node(&self) -> Source {
        match self.position() {
            Position::Itself => Source::Within(self.node),
            _ => Source::Client,
        }
    }

    /// A pod's hostPort where no service has it: at the node's own addresses the pod's, at a VIP nobody's.
    fn host_port(&mut self) -> Expectation {
        self.cite("T30");
        if self.is_nodes_own() {
            return Expectation::answer(&pod_name(Node::A, 2), self.untouched());
        }
        self.cite("T6");
        self.only_at_a_vip(Expectation::Refused)
    }

    fn position(&self) -> Position {
        match self.question.client {
            Client::Pod(node) | Client::Endpoint(node) if node == self.node => Position::LocalPod,
            Client::Pod(_) | Client::Endpoint(_) | Client::Far => Position::OtherPod,
            Client::Host(node) if node == self.node => Position::Itself,
            Client::Host(_) | Client::Outside(_) => Position::Outside,
        }
    }

    /// The local-traffic detector says that the packet comes from a pod; `None` = there is no detector.
    fn detected(&self) -> Option<bool> {
        let position = self.position();
        match self.question.setting.detector {
            Detector::None => None,
            // A range of the whole cluster holds pods of other nodes as well.
            Detector::ClusterCidr => Some(matches!(position, Position::LocalPod | Position::OtherPod)),
            Detector::NodeCidr | Detector::BridgeInterface | Detector::InterfaceNamePrefix => {
                Some(position == Position::LocalPod)
            }
        }
    }

    fn service(&mut self) -> Expectation {
        let question = self.question;
        let service = question.service;
        if !service.labels.is_empty() {
            // Another proxy's; here it is an address like any other.
            self.cite("T24");
            return Expectation::NoAnswer;
        }
        let claims = claims(question);
        if claims.len() > 1 {
            self.cite("T19");
        }
        let strongest = claims
            .first()
            .filter(|claim| (claim.0.number, claim.1) != (service.number, question.address));
        if let Some((service, address)) = strongest.copied() {
            let promise = promise(&Question {
                service,
                address,
                ..*question
            });
            self.decisions.extend(promise.decisions);
            return promise.expectation;
        }
        if self.at_the_balancer() {
            // The balancer serves by itself; the packet goes there untouched.
            self.cite("T24");
            return Expectation::answer(ROUTER, self.untouched());
        }
        if let Address::Node(_, which) = question.address
            && !self.node_port_answers(which)
        {
            return Expectation::Refused;
        }
        if question.address == Address::External && matches!(service.external_ip, Vip::Node(..)) {
            self.cite("T18");
        }
        if question.address == Address::LoadBalancer && !service.ranges.is_empty() {
            self.cite("T15");
            if !self.in_ranges() {
                return Expectation::Silence;
            }
        }
        let internal = question.address == Address::ClusterIp;
        let policy = if internal { service.internal } else { service.external };
        let insider = !internal && policy == Policy::Local && self.insider();
        if insider || (!internal && policy == Policy::Local && self.is_told_apart_at_a_node_port()) {
            self.cite("T2");
        }
        let everywhere = usable(service.endpoints.iter());
        let local = usable(service.endpoints.iter().filter(|one| one.place.node() == self.node));
        if everywhere.is_empty() {
            self.cite("T5");
            return Expectation::Refused;
        }
        let chosen = if policy == Policy::Local && !insider {
            if local.is_empty() {
                self.cite(if internal { "T4" } else { "T1" });
                return Expectation::Silence;
            }
            local
        } else {
            self.hinted(everywhere)
        };
        if service.affinity {
            self.cite("T20");
        }
        if service.port == HOST_PORT_NUMBER {
            self.cite("T30");
        }
        let bridged = match question.setting.fabric {
            Fabric::Routed => false,
            Fabric::Mixed => self.node == Node::B,
            Fabric::Bridged => true,
        };
        let pod_here = |endpoint: &&Endpoint| matches!(endpoint.place, Place::Pod(node, _) if node == self.node);
        if bridged && self.position() == Position::LocalPod && chosen.iter().any(pod_here) {
            self.cite("T31");
        }
        let by: BTreeMap<String, Source> = chosen
            .into_iter()
            .map(|endpoint| (endpoint.place.name(), self.source(endpoint.place, policy)))
            .collect();
        let spread = if service.affinity { Spread::One } else { Spread::All };
        Expectation::Answer(by, spread)
    }

    /// The load balancer's address is the balancer's own.
    fn at_the_balancer(&self) -> bool {
        self.question.address == Address::LoadBalancer && self.question.service.load_balancer == Vip::Proxy
    }

    /// The source of traffic that no proxy has to do with.
    fn untouched(&self) -> Source {
        match self.question.client {
            Client::Host(node) => Source::Node(node),
            _ => Source::Client,
        }
    }

    /// T16, T17.
    fn node_port_answers(&mut self, which: NodeAddress) -> bool {
        let question = self.question;
        let all = question.setting.node_port_addresses == NodePortAddresses::All;
        if which == NodeAddress::Loopback {
            self.cite("T17");
            // `iptables.localhostNodePorts`, true unless said otherwise, for IPv4 alone.
            return question.mode == Mode::Iptables && question.family == Family::V4 && all;
        }
        self.cite("T16");
        let network = matches!(which, NodeAddress::Internal | NodeAddress::Second);
        match question.setting.node_port_addresses {
            NodePortAddresses::All => true,
            NodePortAddresses::Cidr => network,
            NodePortAddresses::Primary => which == NodeAddress::Internal,
        }
    }

    /// T15: the node is allowed if one of its addresses is.
    fn in_ranges(&self) -> bool {
        let family = self.question.family;
        let sources = self.question.client.addresses(family);
        self.question
            .service
            .ranges
            .iter()
            .filter_map(|range| range.split_once('/'))
            .filter_map(|(net, length)| Some((net.parse().ok()?, length.parse().ok()?)))
            .any(|(net, length)| sources.iter().any(|source| within(*source, net, length)))
    }

    /// T2. "Traffic sent to an External IP or LoadBalancer IP from within the cluster will always get "Cluster" semantics,
    /// but clients sending to a NodePort from within the cluster may need to take traffic policy into account when picking
    /// a node" (`spec.externalTrafficPolicy`).
    fn insider(&self) -> bool {
        match self.position() {
            Position::Itself => true,
            // By the detector, else by the node's podCIDRs.
            Position::LocalPod => self.detected().unwrap_or(self.question.setting.pod_cidrs),
            Position::OtherPod => self.detected() == Some(true) && !self.is_told_apart_at_a_node_port(),
            Position::Outside => false,
        }
    }

    /// T2: at a NodePort, a pod that the detector takes for a local one, and of which podCIDRs tell that it is another
    /// node's.
    fn is_told_apart_at_a_node_port(&self) -> bool {
        matches!(self.question.address, Address::Node(..))
            && self.position() == Position::OtherPod
            && self.detected() == Some(true)
            && self.question.setting.pod_cidrs
    }

    /// The client is known as a pod of this node: by its interface or by the node's podCIDRs.
    fn is_known_as_own(&self) -> bool {
        let by_interface = match self.question.setting.detector {
            Detector::BridgeInterface | Detector::InterfaceNamePrefix => true,
            Detector::ClusterCidr | Detector::NodeCidr | Detector::None => false,
        };
        self.position() == Position::LocalPod && (by_interface || self.question.setting.pod_cidrs)
    }

    /// T25: hints count if every ready endpoint has one and one of them is for this node's zone.
    fn hinted<'e>(&mut self, all: Vec<&'e Endpoint>) -> Vec<&'e Endpoint> {
        let ready = all
            .iter()
            .all(|endpoint| endpoint.state == State::Ready && endpoint.hinted);
        let zone = self.node.zone();
        let near: Vec<_> = all
            .iter()
            .copied()
            .filter(|endpoint| endpoint.place.node().zone() == zone)
            .collect();
        if ready && !near.is_empty() {
            self.cite("T25");
            return near;
        }
        all
    }

    fn source(&mut self, endpoint: Place, policy: Policy) -> Source {
        let position = self.position();
        let node = self.node;
        // To an address of this node itself no packet leaves it, so nothing masquerades it (T9).
        if endpoint == Place::Host(node) {
            if !matches!(self.question.address, Address::ClusterIp) {
                self.cite("T9");
            }
            return if position == Position::Itself {
                Source::Within(node)
            } else {
                Source::Client
            };
        }
        if position == Position::Itself {
            self.cite("T12");
            return Source::Node(node);
        }
        if self.question.client == client_of(endpoint) && position == Position::LocalPod {
            self.cite("T13");
            return Source::Node(node);
        }
        let masqueraded = if self.question.address == Address::ClusterIp {
            if self.question.setting.masquerade_all {
                self.cite("T14");
                true
            } else {
                self.cite("T11");
                self.detected() == Some(false)
            }
        } else if policy == Policy::Cluster {
            self.cite("T9");
            true
        } else {
            self.cite("T3");
            // T2: else the reply would go straight to the other node's pod.
            self.insider() && !self.is_known_as_own()
        };
        if masqueraded {
            Source::Node(node)
        } else {
            Source::Client
        }
    }
}

/// T19: the services and addresses that claim what is asked, by their right: cluster IPs before load balancers before
/// external IPs, then the older service.
fn claims<'a>(question: &Question<'a>) -> Vec<(&'a Service, Address)> {
    let (ip, family) = (question.ip(), question.family);
    if matches!(question.address, Address::Node(..)) {
        return Vec::new();
    }
    let services = question.services.iter();
    let mut all: Vec<_> = services
        .filter(|service| service.labels.is_empty() && service.port == question.service.port)
        .flat_map(|service| {
            let has_vip = service.load_balancer != Vip::Proxy;
            let claims = [
                (Address::ClusterIp, service.cluster_ip(family), true),
                (Address::LoadBalancer, service.load_balancer_ip(family), has_vip),
                (Address::External, service.external_ip(family), true),
            ];
            let same = claims
                .into_iter()
                .filter(move |(_, claimed, programmed)| *programmed && *claimed == ip);
            same.map(move |(address, ..)| (service, address))
        })
        .collect();
    all.sort_by_key(|(service, address)| (*address, service.number));
    all
}

/// The client that an endpoint is.
fn client_of(endpoint: Place) -> Client {
    match endpoint {
        Place::Pod(node, 1) => Client::Endpoint(node),
        // No client of the matrix.
        Place::Pod(node, _) | Place::Host(node) => Client::Host(node),
    }
}

/// Ready endpoints; where there is none, those that terminate and still serve (KEP-1669).
fn usable<'e>(all: impl Iterator<Item = &'e Endpoint> + Clone) -> Vec<&'e Endpoint> {
    let ready: Vec<_> = all.clone().filter(|endpoint| endpoint.state == State::Ready).collect();
    if ready.is_empty() {
        all.filter(|endpoint| endpoint.state == State::Terminating).collect()
    } else {
        ready
    }
}

/// An address is in a network.
fn within(ip: IpAddr, net: IpAddr, length: u32) -> bool {
    let same = |a: u128, b: u128, bits: u32| length == 0 || (a ^ b) >> (bits.saturating_sub(length)) == 0;
    match (ip, net) {
        (IpAddr::V4(ip), IpAddr::V4(net)) => same(ip.to_bits().into(), net.to_bits().into(), 32),
        (IpAddr::V6(ip), IpAddr::V6(net)) => same(ip.to_bits(), net.to_bits(), 128),
        _ => false,
    }
}
