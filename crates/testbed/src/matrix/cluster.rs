//! The cluster as namespaces: three nodes on one network with a router, pods on links or a bridge, a client outside at
//! each node, a pod of a node without a proxy. Addresses are those of [`super::site`].

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result};

use super::capture;
use super::server::{Place, Servers, is_supported};
use super::service::Protocol;
use super::setting::{Fabric, Setting};
use super::site::{
    BRIDGE, Client, DAEMON_PORT, Family, HEALTH_CHECK_PORTS, HOST_NETWORK_PORT, HOST_PORT_NUMBER, LINK_PREFIX, Node,
    NodeAddress, POD_PORT, ROUTER, balancer, far_gateway, pod_address, pod_name, router,
};
use crate::link::link;
use crate::netns::Netns;
use crate::tool;

/// What the nodes' kernels are told as kubelet, CNI plugins or distributions do; nothing of it is a proxy's to set.
const NODE_SYSCTLS: &str = "net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.all.accept_dad=0 \
    net.ipv6.conf.default.accept_dad=0 net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1";

/// The running cluster.
pub struct Cluster {
    /// The nodes' namespaces.
    pub nodes: BTreeMap<Node, Netns>,
    /// Namespaces of all clients.
    pub clients: BTreeMap<Client, Netns>,
    /// Of the router, where an API server can listen.
    pub router: Netns,
    /// Pods that are endpoints, by name.
    endpoints: BTreeMap<String, Netns>,
    _servers: Vec<Servers>,
}

impl Cluster {
    /// Builds it.
    ///
    /// # Errors
    /// Not root, or a tool or kernel feature is missing.
    pub fn new(setting: &Setting) -> Result<Self> {
        let router = Netns::new()?;
        router.sh(
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0 \
             net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0",
        )?;
        router.sh("ip link add lan0 type bridge")?;
        router.sh("ip link set lan0 up")?;
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            clients: BTreeMap::new(),
            router,
            endpoints: BTreeMap::new(),
            _servers: Vec::new(),
        };
        for node in Node::ALL {
            let netns = Netns::new()?;
            netns.sh(&format!("sysctl -qw {NODE_SYSCTLS}"))?;
            cluster.nodes.insert(node, netns.clone());
            cluster.clients.insert(Client::Host(node), netns);
            cluster.attach_node(node, setting).with_context(|| node.name())?;
        }
        cluster.attach_far_pod()?;
        cluster.set_up_router()?;
        for node in Node::ALL {
            cluster.serve_on_node(node)?;
        }
        if setting.forward_drop {
            // Not where endpoints are: what goes to a pod directly is not the proxy's to let pass.
            let netns = cluster.netns(Node::C)?;
            netns.sh("iptables -P FORWARD DROP")?;
            netns.sh("ip6tables -P FORWARD DROP")?;
        }
        // Any group may send echo requests.
        for netns in cluster.clients.values() {
            netns.run(|| tool::run(&["sysctl", "-qw", "net.ipv4.ping_group_range=0 2147483647"]))?;
        }
        Ok(cluster)
    }

    fn netns(&self, node: Node) -> Result<&Netns> {
        self.nodes.get(&node).context("no such node")
    }

    fn attach_node(&mut self, node: Node, setting: &Setting) -> Result<()> {
        let netns = self.netns(node)?.clone();
        let port = format!("lan-{}", node.letter());
        link(&self.router, &port, &netns, "lan")?;
        self.router.sh(&format!("ip link set {port} master lan0"))?;
        let mut lines = String::new();
        for family in Family::ALL {
            let internal = node.address(family, NodeAddress::Internal);
            writeln!(
                lines,
                "addr add {internal}/{} dev lan{}",
                of(family, (24, 64)),
                nodad(family)
            )?;
            if node == Node::A {
                // An external IP of the worlds; other nodes bind it, since no Node object names it. So the node itself
                // must not speak from it: IPv6 would, as the latest address, IPv4 never does.
                let second = node.address(family, NodeAddress::Second);
                let (length, nodad) = (of(family, (24, 64)), nodad(family));
                writeln!(lines, "addr add {second}/{length} dev lan preferred_lft 0{nodad}")?;
            }
            writeln!(lines, "route add default via {}", router(family))?;
            for other in Node::ALL.into_iter().filter(|other| *other != node) {
                for network in networks_behind(other, family) {
                    let via = other.address(family, NodeAddress::Internal);
                    writeln!(lines, "route add {network} via {via}")?;
                }
            }
        }
        batch(&netns, &lines)?;

        let outside = Netns::new()?;
        link(&netns, "edge", &outside, "eth0")?;
        let client = Client::Outside(node);
        for family in Family::ALL {
            let gateway = node.address(family, NodeAddress::Edge);
            stub(&netns, "edge", gateway, &outside, address(client, family)?)?;
        }
        self.clients.insert(client, outside);
        self.attach_pods(node, setting)
    }

    fn attach_pods(&mut self, node: Node, setting: &Setting) -> Result<()> {
        let netns = self.netns(node)?.clone();
        let bridged = match setting.fabric {
            Fabric::Routed => false,
            Fabric::Bridged => true,
            Fabric::Mixed => node == Node::B,
        };
        if bridged {
            netns.sh(&format!("ip link add {BRIDGE} type bridge"))?;
            netns.sh(&format!("ip link set {BRIDGE} up"))?;
            for family in Family::ALL {
                let gateway = node.address(family, NodeAddress::Gateway);
                let length = of(family, (24, 64));
                netns.sh(&format!("ip addr add {gateway}/{length} dev {BRIDGE}{}", nodad(family)))?;
            }
        }
        let attach = |name: &str, addresses: Vec<IpAddr>| -> Result<Netns> {
            let pod = Netns::new()?;
            let interface = format!("{LINK_PREFIX}-{name}");
            link(&netns, &interface, &pod, "eth0")?;
            if bridged {
                on_bridge(&netns, node, &interface, &pod, &addresses)?;
            } else {
                routed(&netns, node, &interface, &pod, &addresses)?;
            }
            Ok(pod)
        };
        let client = Client::Pod(node);
        let addresses = Family::ALL.map(|family| address(client, family)).into_iter();
        let pod = attach("client", addresses.collect::<Result<_>>()?)?;
        self.clients.insert(client, pod);
        if node == Node::C {
            return Ok(());
        }
        for number in [1, 2] {
            let name = pod_name(node, number);
            let pod = attach(
                &name,
                Family::ALL.map(|family| pod_address(family, node, number)).to_vec(),
            )?;
            capture::install_in_pod(&pod)?;
            let places = protocols().map(|protocol| Place {
                protocol,
                at: (Ipv6Addr::UNSPECIFIED, POD_PORT).into(),
                name: name.clone(),
            });
            self._servers.push(Servers::start(&pod, places.collect())?);
            if number == 1 {
                self.clients.insert(Client::Endpoint(node), pod.clone());
            }
            self.endpoints.insert(name, pod);
        }
        Ok(())
    }

    fn attach_far_pod(&mut self) -> Result<()> {
        let node = self.netns(Node::A)?.clone();
        let pod = Netns::new()?;
        link(&node, "far", &pod, "eth0")?;
        for family in Family::ALL {
            stub(&node, "far", far_gateway(family), &pod, address(Client::Far, family)?)?;
        }
        self.clients.insert(Client::Far, pod);
        Ok(())
    }

    fn set_up_router(&mut self) -> Result<()> {
        let mut lines = String::new();
        let mut places = Vec::new();
        for family in Family::ALL {
            let length = of(family, (24, 64));
            writeln!(lines, "addr add {}/{length} dev lan0{}", router(family), nodad(family))?;
            let host = of(family, (32, 128));
            writeln!(lines, "addr add {}/{host} dev lo{}", balancer(family), nodad(family))?;
            for node in Node::ALL {
                for network in networks_behind(node, family) {
                    writeln!(
                        lines,
                        "route add {network} via {}",
                        node.address(family, NodeAddress::Internal)
                    )?;
                }
            }
        }
        batch(&self.router, &lines)?;
        for family in Family::ALL {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                places.push(Place {
                    protocol,
                    at: (balancer(family), 80).into(),
                    name: ROUTER.to_owned(),
                });
            }
        }
        self._servers.push(Servers::start(&self.router, places)?);
        // Node ports of services, at the balancer's address (T10).
        let (v4, v6) = (balancer(Family::V4), balancer(Family::V6));
        let table = format!(
            "table inet matrix-balancer {{
               chain prerouting {{ type nat hook prerouting priority dstnat;
                 ip daddr {v4} meta l4proto {{ tcp, udp }} th dport 30000-32767 dnat ip to {v4}:80;
                 ip6 daddr {v6} meta l4proto {{ tcp, udp }} th dport 30000-32767 dnat ip6 to [{v6}]:80;
               }}
             }}"
        );
        self.router.run(|| tool::feed(&["nft", "-f", "-"], &table)).map(drop)
    }

    /// Endpoints with hostNetwork, and a daemon on all addresses.
    fn serve_on_node(&mut self, node: Node) -> Result<()> {
        let netns = self.netns(node)?.clone();
        let mut places = vec![Place {
            protocol: Protocol::Tcp,
            at: (Ipv6Addr::UNSPECIFIED, DAEMON_PORT).into(),
            name: node.host(),
        }];
        // UDP answers from the address that was asked only if it is bound to it; what is asked at others is answered
        // from a wrong one, which is no silence either.
        let own = Family::ALL.into_iter().flat_map(|family| node.addresses(family));
        let all = own.chain([IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()]);
        let mut daemon: Vec<SocketAddr> = all.map(|address| (address, DAEMON_PORT).into()).collect();
        // The last one is dual-stack.
        daemon.retain(|address| address.ip() != IpAddr::from(Ipv4Addr::UNSPECIFIED));
        places.extend(daemon.into_iter().map(|at| Place {
            protocol: Protocol::Udp,
            at,
            name: node.host(),
        }));
        for family in Family::ALL {
            for protocol in protocols() {
                places.push(Place {
                    protocol,
                    at: (node.address(family, NodeAddress::Internal), HOST_NETWORK_PORT).into(),
                    name: format!("hostnet-{}", node.letter()),
                });
            }
        }
        // The proxy's own server, if it has one, cannot bind then, and says so.
        places.extend(HEALTH_CHECK_PORTS.map(|port| Place {
            protocol: Protocol::Tcp,
            at: (Ipv6Addr::UNSPECIFIED, port).into(),
            name: node.host(),
        }));
        capture::install_in_node(&netns)?;
        if node == Node::A {
            redirect_host_port(&netns)?;
        }
        self._servers.push(Servers::start(&netns, places)?);
        Ok(())
    }

    /// Where endpoints are, with names.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = (&str, &Netns)> {
        let pods = self.endpoints.iter().map(|(name, netns)| (name.as_str(), netns));
        let nodes = self.nodes.iter().map(|(node, netns)| (node.letter(), netns));
        pods.chain(nodes)
    }

    /// A command line on each node.
    ///
    /// # Errors
    /// It fails on one.
    pub fn on_nodes(&self, line: &str) -> Result<()> {
        for netns in self.nodes.values() {
            netns.sh(line)?;
        }
        Ok(())
    }
}

/// Those of this kernel.
fn protocols() -> impl Iterator<Item = Protocol> {
    Protocol::ALL.into_iter().filter(|protocol| is_supported(*protocol))
}

/// As the portmap plugin: every local destination with the port.
fn redirect_host_port(netns: &Netns) -> Result<()> {
    let mut rules = String::new();
    for family in Family::ALL {
        let (word, pod) = match family {
            Family::V4 => ("ip", pod_address(family, Node::A, 2).to_string()),
            Family::V6 => ("ip6", format!("[{}]", pod_address(family, Node::A, 2))),
        };
        for protocol in ["tcp", "udp"] {
            writeln!(
                rules,
                "fib daddr type local {protocol} dport {HOST_PORT_NUMBER} dnat {word} to {pod}:{POD_PORT};"
            )?;
        }
    }
    let table = format!(
        "table inet matrix-hostport {{
           chain redirects {{ {rules} }}
           chain prerouting {{ type nat hook prerouting priority dstnat; jump redirects; }}
           chain output {{ type nat hook output priority -100; jump redirects; }}
         }}"
    );
    netns.run(|| tool::feed(&["nft", "-f", "-"], &table)).map(drop)
}

fn address(client: Client, family: Family) -> Result<IpAddr> {
    client
        .addresses(family)
        .first()
        .copied()
        .context("a client without address")
}

fn of(family: Family, (v4, v6): (u8, u8)) -> u8 {
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

fn nodad(family: Family) -> &'static str {
    match family {
        Family::V4 => "",
        Family::V6 => " nodad",
    }
}

fn batch(netns: &Netns, lines: &str) -> Result<()> {
    netns.run(|| tool::feed(&["ip", "-batch", "-"], lines)).map(drop)
}

/// What is reached through a node.
fn networks_behind(node: Node, family: Family) -> Vec<String> {
    let wide = |address: IpAddr| match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            format!("{a}.{b}.{c}.0/24")
        }
        IpAddr::V6(v6) => {
            let net = u128::from(v6) >> 64 << 64;
            format!("{}/64", Ipv6Addr::from(net))
        }
    };
    let mut all = vec![node.pod_cidr(family), wide(node.address(family, NodeAddress::Edge))];
    if node == Node::A {
        all.push(wide(far_gateway(family)));
    }
    all
}

/// One host behind one interface of a node, on a network of their own.
fn stub(node: &Netns, interface: &str, gateway: IpAddr, host: &Netns, address: IpAddr) -> Result<()> {
    let family = if gateway.is_ipv4() { Family::V4 } else { Family::V6 };
    let (length, nodad) = (of(family, (24, 64)), nodad(family));
    node.sh(&format!("ip addr add {gateway}/{length} dev {interface}{nodad}"))?;
    batch(
        host,
        &format!("addr add {address}/{length} dev eth0{nodad}\nroute add default via {gateway}\n"),
    )
}

fn on_bridge(node: &Netns, of_node: Node, interface: &str, pod: &Netns, addresses: &[IpAddr]) -> Result<()> {
    node.sh(&format!("ip link set {interface} master {BRIDGE}"))?;
    // As the bridge plugin's hairpinMode, so that a pod reaches itself.
    node.sh(&format!("bridge link set dev {interface} hairpin on"))?;
    let mut lines = String::new();
    for (family, address) in Family::ALL.into_iter().zip(addresses) {
        let length = of(family, (24, 64));
        writeln!(lines, "addr add {address}/{length} dev eth0{}", nodad(family))?;
        writeln!(
            lines,
            "route add default via {}",
            of_node.address(family, NodeAddress::Gateway)
        )?;
    }
    batch(pod, &lines)
}

fn routed(node: &Netns, of_node: Node, interface: &str, pod: &Netns, addresses: &[IpAddr]) -> Result<()> {
    let (mut near, mut far) = (String::new(), String::new());
    for (family, address) in Family::ALL.into_iter().zip(addresses) {
        let gateway = of_node.address(family, NodeAddress::Gateway);
        let (host, nodad) = (of(family, (32, 128)), nodad(family));
        writeln!(near, "addr add {gateway}/{host} dev {interface}{nodad}")?;
        writeln!(near, "route add {address}/{host} dev {interface}")?;
        writeln!(far, "addr add {address}/{host} dev eth0{nodad}")?;
        writeln!(far, "route add {gateway}/{host} dev eth0")?;
        writeln!(far, "route add default via {gateway} dev eth0")?;
    }
    batch(node, &near)?;
    batch(pod, &far)
}
