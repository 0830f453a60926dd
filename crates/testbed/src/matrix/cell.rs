//! The cells: services of each world and the questions about them, generated; each has a stable name. Pure.

use std::collections::BTreeSet;

use super::oracle::promise;
use super::question::{Address, Ask, Mode, Promise, Question};
use super::service::{PLACEMENTS, Policy, Protocol, Service, Vip};
use super::setting::{Fabric, NodePortAddresses, SETTINGS, Setting};
use super::site::{Client, Family, HOST_PORT_NUMBER, Node, NodeAddress};

/// One question with its promise.
#[derive(Clone, Debug)]
pub struct Cell {
    /// `world/family/protocol/address/policy/endpoints/client`; the base world is not named.
    pub name: String,
    /// Kind of question, for the table.
    pub group: String,
    /// Index of the service in its world.
    pub service: usize,
    /// Who asks.
    pub client: Client,
    /// Where.
    pub address: Address,
    /// For what.
    pub ask: Ask,
    /// Family.
    pub family: Family,
    /// Protocol.
    pub protocol: Protocol,
    /// What is promised.
    pub promise: Promise,
    /// Part of the quick run.
    pub subset: bool,
}

/// A world and its cells.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its settings.
    pub setting: Setting,
    /// Its services, by number.
    pub services: Vec<Service>,
    /// Its cells.
    pub cells: Vec<Cell>,
}

/// The last service of each world: nobody asks it in a cell.
pub const PROBE: &str = "zz-probe";
/// Of about this many possible cells one is asked, in the base world and in others, beside those that pairs need.
const KEPT: (u64, u64) = (3, 8);
/// Of about this many cells one is in the quick run.
const SUBSET: u64 = 32;

/// All worlds with all cells.
pub fn plans(mode: Mode) -> Vec<Plan> {
    SETTINGS.iter().map(|setting| plan(setting, mode)).collect()
}

fn plan(setting: &Setting, mode: Mode) -> Plan {
    let base = setting.name.is_empty();
    let services = services(setting);
    let mut names = BTreeSet::new();
    let mut cells = Vec::new();
    for (index, service) in services.iter().enumerate() {
        for (client, address, ask, family, protocol) in questions(service, setting) {
            let question = Question {
                setting,
                mode,
                services: &services,
                service,
                client,
                address,
                ask,
                family,
                protocol,
            };
            let name = name(&question);
            if !names.insert(name.clone()) {
                continue;
            }
            cells.push(Cell {
                group: group(&question),
                service: index,
                client,
                address,
                ask,
                family,
                protocol,
                promise: promise(&question),
                subset: (hash(&name) >> 8).is_multiple_of(SUBSET),
                name,
            });
        }
    }
    let mut plan = Plan {
        setting: *setting,
        services,
        cells,
    };
    plan.thin(if base { KEPT.0 } else { KEPT.1 });
    plan.complete_subset();
    plan
}

impl Cell {
    /// Its value in each dimension of the matrix.
    pub fn dimensions(&self, services: &[Service]) -> Vec<String> {
        let service = services.get(self.service);
        let of = |what: fn(&Service) -> &str| service.map_or("", what).to_owned();
        let kind = match service {
            Some(service) if !standard(service) => of(|service| &service.name),
            _ => of(|service| service.policy()),
        };
        vec![
            format!("family {}", self.family.name()),
            format!("protocol {}", self.protocol.name()),
            format!("address {} {:?}", self.address.name(), self.ask),
            format!("policy {kind}"),
            format!("endpoints {}", of(|service| service.placement)),
            format!("client {}", self.client.name()),
        ]
    }

    /// All pairs of these values.
    pub fn pairs(&self, services: &[Service]) -> Vec<(String, String)> {
        let values = self.dimensions(services);
        let mut pairs = Vec::new();
        for (index, first) in values.iter().enumerate() {
            for second in values.iter().skip(index + 1) {
                pairs.push((first.clone(), second.clone()));
            }
        }
        pairs
    }
}

impl Plan {
    /// Leaves one of so many cells of plain services, and those without which a pair of dimensions' values would not
    /// be asked.
    fn thin(&mut self, one_of: u64) {
        let mut there = BTreeSet::new();
        let mut kept = BTreeSet::new();
        for pass in [true, false] {
            for cell in &self.cells {
                let service = self.services.get(cell.service);
                let special = cell.ask != Ask::Service
                    || service.is_some_and(|service| {
                        !standard(service) || is_far_at_a_node_port(cell.client, cell.address, service)
                    });
                if (special || hash(&cell.name).is_multiple_of(one_of)) != pass {
                    continue;
                }
                let mut keys: BTreeSet<_> = cell.pairs(&self.services).into_iter().collect();
                keys.extend(cell.promise.decisions.iter().map(|decision| {
                    let family = cell.family.name();
                    (
                        format!("{decision} {family} {}", cell.group),
                        cell.promise.expectation.kind().to_owned(),
                    )
                }));
                if pass || keys.iter().any(|key| !there.contains(key)) {
                    kept.insert(cell.name.clone());
                    there.extend(keys);
                }
            }
        }
        self.cells.retain(|cell| kept.contains(&cell.name));
    }

    /// Every group and every decision of each group and family is in the quick run.
    fn complete_subset(&mut self) {
        let mut there: BTreeSet<(String, Family, &'static str)> = BTreeSet::new();
        for pass in [true, false] {
            for cell in &mut self.cells {
                let keys: Vec<_> = cell
                    .promise
                    .decisions
                    .iter()
                    .chain(&[""])
                    .map(|decision| (cell.group.clone(), cell.family, *decision))
                    .collect();
                if cell.subset == pass && (pass || keys.iter().any(|key| !there.contains(key))) {
                    cell.subset = true;
                    there.extend(keys);
                }
            }
        }
    }
}

fn name(question: &Question<'_>) -> String {
    let Question { setting, service, .. } = question;
    let mut parts = Vec::new();
    if !setting.name.is_empty() {
        parts.push(setting.name.to_owned());
    }
    parts.push(question.family.name().to_owned());
    parts.push(match question.ask {
        Ask::Echo => "icmp".to_owned(),
        _ => question.protocol.name().to_owned(),
    });
    parts.push(match question.ask {
        Ask::Service => question.address.name(),
        Ask::UndefinedPort => format!("{}-undefined-port", question.address.name()),
        Ask::LastPort => format!("{}-last-port", question.address.name()),
        Ask::HostPort => format!("{}-host-port-there", question.address.name()),
        Ask::HealthCheck => format!("{}-health-check-port", question.address.name()),
        Ask::NodePort => format!("{}-node-port-there", question.address.name()),
        Ask::Echo => format!("{}-echo", question.address.name()),
    });
    if standard(service) {
        parts.push(service.policy().to_owned());
        parts.push(format!("endpoints-{}", service.placement));
    } else {
        parts.push(service.name.clone());
    }
    parts.push(question.client.name());
    parts.join("/")
}

fn group(question: &Question<'_>) -> String {
    let Question { setting, service, .. } = question;
    if !setting.name.is_empty() {
        return format!("world {}", setting.name);
    }
    match question.ask {
        Ask::Echo => return "echo".to_owned(),
        Ask::NodePort if service.load_balancer == Vip::Proxy => return "not ours".to_owned(),
        Ask::UndefinedPort | Ask::LastPort | Ask::NodePort => return "undefined port".to_owned(),
        Ask::HostPort => return "host port".to_owned(),
        Ask::HealthCheck => return "health-check port".to_owned(),
        Ask::Service => {}
    }
    let word = service.name.split('-').next().unwrap_or_default();
    match word {
        "ranges" => "source ranges".to_owned(),
        "affinity" => "session affinity".to_owned(),
        "claim" => "claims".to_owned(),
        "zone" => "topology".to_owned(),
        "foreign" => "not ours".to_owned(),
        "hostport" => "host port".to_owned(),
        _ => match question.address {
            Address::ClusterIp => "cluster IP".to_owned(),
            Address::LoadBalancer => "load balancer".to_owned(),
            Address::External => "external IP".to_owned(),
            Address::Node(..) => "node port".to_owned(),
        },
    }
}

/// FNV-1a, so that the quick run is the same everywhere.
fn hash(text: &str) -> u64 {
    let mixed = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mixed >> 16
}

/// A pod asks another node's NodePort of a service with a Local policy (T2): always asked.
pub(super) fn is_far_at_a_node_port(client: Client, address: Address, service: &Service) -> bool {
    let home = match client {
        Client::Pod(node) | Client::Endpoint(node) => Some(node),
        Client::Far => None,
        Client::Host(_) | Client::Outside(_) => return false,
    };
    service.external == Policy::Local && matches!(address, Address::Node(node, _) if Some(node) != home)
}

fn standard(service: &Service) -> bool {
    service.name.starts_with("svc-")
}

/// Policies × endpoints; in the base world also the services with something of their own. Where external IPs are
/// addresses of a node, those services alone.
fn services(setting: &Setting) -> Vec<Service> {
    use Policy::{Cluster, Local};
    let mut all = Vec::new();
    let mut add = |name: &str, placement, change: &dyn Fn(&mut Service)| {
        let number = u16::try_from(all.len() + 1).unwrap_or_default();
        let mut service = Service::new(number, name, placement);
        change(&mut service);
        all.push(service);
        number
    };
    if setting.node_external_ips {
        add("nodeip-cluster", "ab", &|service| {
            service.external_ip = Vip::Node(Node::A, NodeAddress::Internal);
            service.port = 9001;
        });
        add("nodeip-local", "ab", &|service| {
            service.external_ip = Vip::Node(Node::A, NodeAddress::Internal);
            service.port = 9002;
            service.external = Local;
        });
        add("nodeip-second", "ab", &|service| {
            service.external_ip = Vip::Node(Node::A, NodeAddress::Second);
            service.port = 9003;
        });
        // Where a pod has the same as its hostPort (T30).
        add("nodeip-hostport", "b", &|service| {
            service.external_ip = Vip::Node(Node::A, NodeAddress::Second);
            service.port = HOST_PORT_NUMBER;
        });
        add(PROBE, "ab", &|_| {});
        return all;
    }
    for (internal, external) in [(Cluster, Cluster), (Cluster, Local), (Local, Cluster), (Local, Local)] {
        for placement in PLACEMENTS {
            let mut one = Service::new(0, "", placement);
            (one.internal, one.external) = (internal, external);
            let name = format!("svc-{}-{placement}", one.policy());
            add(&name, placement, &|service| {
                (service.internal, service.external) = (internal, external);
            });
        }
    }
    if setting.name.is_empty() {
        add("ranges-outside", "ab", &|service| {
            service.ranges = vec!["198.18.0.0/16", "2001:db8:18::/48"];
        });
        add("ranges-node-a", "ab", &|service| {
            service.ranges = vec!["192.0.2.1/32", "2001:db8::1/128"];
        });
        add("ranges-pods", "ab", &|service| {
            service.ranges = vec!["10.244.0.0/16", "fd00:10:244::/48"];
            service.external = Local;
        });
        add("ranges-nested", "ab", &|service| {
            service.ranges = vec![
                "198.18.0.0/15",
                "198.18.1.0/24",
                "198.18.1.2/32",
                "2001:db8:18::/47",
                "2001:db8:18:1::/64",
                "2001:db8:18:1::2/128",
            ];
        });
        add("ranges-all", "ab", &|service| {
            service.ranges = vec!["0.0.0.0/0", "::/0"];
        });
        add("ranges-all-and-one", "ab", &|service| {
            service.ranges = vec!["0.0.0.0/0", "198.18.1.0/24", "::/0", "2001:db8:18:1::/64"];
        });
        add("ranges-elsewhere", "ab", &|service| {
            service.ranges = vec!["203.0.113.128/25", "2001:db8:ffff::/48"];
        });
        let shared = add("ranges-shared-closed", "ab", &|service| {
            service.ranges = vec!["198.18.1.0/24", "2001:db8:18:1::/64"];
        });
        add("ranges-shared-other", "ab", &|service| {
            service.ranges = vec!["198.18.3.0/24", "2001:db8:18:3::/64"];
            (service.load_balancer, service.port) = (Vip::Of(shared), 81);
        });
        add("ranges-shared-open", "ab", &|service| {
            (service.load_balancer, service.port) = (Vip::Of(shared), 82);
        });
        add("affinity-cluster", "ab", &|service| service.affinity = true);
        add("affinity-local", "a", &|service| {
            service.affinity = true;
            (service.internal, service.external) = (Local, Local);
        });
        add("zone-cluster", "hinted", &|_| {});
        add("zone-etp-local", "hinted", &|service| service.external = Local);
        let older = add("claim-z-older", "a", &|_| {});
        add("claim-a-lb-younger", "b", &|service| {
            service.load_balancer = Vip::Of(older);
        });
        add("claim-b-external-younger", "b", &|service| {
            service.external_ip = Vip::Of(older);
        });
        add("claim-c-cluster-ip", "b", &|service| {
            service.external_ip = Vip::ClusterIpOf(older);
        });
        add("foreign-proxy-mode", "ab", &|service| {
            service.load_balancer = Vip::Proxy;
        });
        add("foreign-proxy-name", "ab", &|service| {
            service.labels = vec!["service.kubernetes.io/service-proxy-name"];
        });
        add("hostport", "b", &|service| service.port = HOST_PORT_NUMBER);
    }
    add(PROBE, "ab", &|_| {});
    all
}

type Raw = (Client, Address, Ask, Family, Protocol);

/// What is asked of a service.
fn questions(service: &Service, setting: &Setting) -> Vec<Raw> {
    use Protocol::{Sctp, Tcp, Udp};
    let base = setting.name.is_empty();
    let mut all = Vec::new();
    if service.name == PROBE || (!base && !asked_outside_base(service, setting)) {
        return all;
    }
    let plain = standard(service);
    let vips = [Address::ClusterIp, Address::LoadBalancer, Address::External];
    for family in Family::ALL {
        for client in Client::ALL {
            let place = |address, ask, protocols: &[Protocol], all: &mut Vec<Raw>| {
                for protocol in protocols {
                    all.push((client, address, ask, family, *protocol));
                }
            };
            if !base && setting.forward_drop {
                // What is masqueraded is let through in both modes; what is not, other agents have to accept.
                let external = matches!(client, Client::Outside(Node::C) | Client::Pod(Node::C));
                if external && service.external == Policy::Cluster {
                    let node_port = Address::Node(Node::C, NodeAddress::Internal);
                    place(node_port, Ask::Service, &[Tcp, Udp], &mut all);
                    place(Address::LoadBalancer, Ask::Service, &[Tcp, Udp], &mut all);
                }
                if client == Client::Host(Node::C) {
                    place(Address::ClusterIp, Ask::Service, &[Tcp, Udp], &mut all);
                }
                continue;
            }
            for address in addresses(client) {
                // The address is nobody's VIP but one node's own: the clients of other nodes are T18's, by its first
                // two services.
                if address == Address::External
                    && service.external_ip == Vip::Node(Node::A, NodeAddress::Second)
                    && client.node() != Node::A
                {
                    continue;
                }
                let few = matches!(address, Address::Node(node, which)
                    if node != client.node() || which != NodeAddress::Internal);
                let some = matches!(service.placement, "ab" | "a" | "none");
                if plain && few && !some && base && !is_far_at_a_node_port(client, address, service) {
                    continue;
                }
                if setting.node_port_addresses != NodePortAddresses::All && !matches!(address, Address::Node(..)) {
                    continue;
                }
                place(address, Ask::Service, &[Tcp, Udp], &mut all);
                let sctp = matches!(address, Address::ClusterIp) || (matches!(address, Address::Node(..)) && !few);
                if base && sctp && plain && matches!(service.placement, "ab" | "b") {
                    place(address, Ask::Service, &[Sctp], &mut all);
                }
            }
            if base
                && matches!(
                    service.name.as_str(),
                    "svc-cluster-ab" | "svc-etp-local-b" | "svc-cluster-none"
                )
            {
                for address in vips {
                    place(address, Ask::UndefinedPort, &[Tcp, Udp], &mut all);
                    place(address, Ask::NodePort, &[Tcp, Udp], &mut all);
                    place(address, Ask::Echo, &[Tcp], &mut all);
                }
                let own = Address::Node(client.node(), NodeAddress::Internal);
                place(own, Ask::UndefinedPort, &[Tcp, Udp], &mut all);
            }
            if base && service.name == "svc-cluster-ab" {
                for address in vips {
                    place(address, Ask::HostPort, &[Tcp, Udp], &mut all);
                }
                if matches!(client, Client::Host(Node::A) | Client::Outside(Node::A)) {
                    let own = Address::Node(Node::A, NodeAddress::Internal);
                    place(own, Ask::HostPort, &[Tcp], &mut all);
                }
            }
            if base && service.name == "svc-both-local-ab" {
                for address in vips {
                    place(address, Ask::LastPort, &[Tcp, Udp], &mut all);
                }
            }
            if base && matches!(service.name.as_str(), "svc-etp-local-ab" | "svc-etp-local-b") {
                place(Address::LoadBalancer, Ask::HealthCheck, &[Tcp], &mut all);
            }
            if service.load_balancer == Vip::Proxy {
                place(Address::LoadBalancer, Ask::NodePort, &[Tcp, Udp], &mut all);
            }
            if matches!(service.external_ip, Vip::Node(_, which) if which != NodeAddress::Second || client.node() == Node::A)
                && service.port != HOST_PORT_NUMBER
            {
                place(Address::External, Ask::UndefinedPort, &[Tcp], &mut all);
            }
        }
    }
    all
}

/// Worlds beside the base are asked about few services: what the setting could change.
fn asked_outside_base(service: &Service, setting: &Setting) -> bool {
    let few = matches!(service.placement, "a" | "b" | "ab" | "hostnet-ab");
    let policy = match setting.fabric {
        Fabric::Mixed => service.internal == Policy::Cluster || service.external == Policy::Local,
        Fabric::Routed | Fabric::Bridged => true,
    };
    few && policy
}

/// The addresses at which a client looks for a service.
fn addresses(client: Client) -> Vec<Address> {
    let node = client.node();
    let mut all = vec![
        Address::ClusterIp,
        Address::LoadBalancer,
        Address::External,
        Address::Node(node, NodeAddress::Internal),
    ];
    match client {
        Client::Pod(_) => {
            all.push(Address::Node(node, NodeAddress::Gateway));
            all.push(Address::Node(other(node), NodeAddress::Internal));
        }
        Client::Endpoint(_) => all.push(Address::Node(other(node), NodeAddress::Internal)),
        Client::Host(_) => {
            all.push(Address::Node(node, NodeAddress::Loopback));
            all.push(Address::Node(node, NodeAddress::Edge));
            all.push(Address::Node(other(node), NodeAddress::Internal));
        }
        Client::Outside(_) => all.push(Address::Node(node, NodeAddress::Edge)),
        Client::Far => {}
    }
    if node == Node::A && !matches!(client, Client::Endpoint(_)) {
        all.push(Address::Node(node, NodeAddress::Second));
    }
    all
}

fn other(node: Node) -> Node {
    match node {
        Node::A => Node::B,
        Node::B | Node::C => Node::A,
    }
}
