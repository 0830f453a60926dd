//! The way to the API server, freed where a former process of ours took it (F1): the one write before the picture is
//! complete (L2), since the picture cannot become complete without it.
//!
//! A Service may have had the API server's address as external IP, bound before that was known to be one: its deletion
//! cannot be heard, and what is bound stays. So while nothing has been programmed yet, no address of the API server may be
//! bound here, but for a cluster IP, by which a node may reach the server, too. With the address goes all that is ours at
//! it: IPVS and the policy tables look at what the node itself sends, wherever it is routed to. Where the address is this
//! node's own, nothing but its port is the API server's.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use dataplane::element::{ElementKey, Place, SetName};
use dataplane::live::LiveKernel;
use dataplane::{Kernel, Op, PolicyCommand, Snapshot};
use ipvs::{Command, Ipvs, Protocol, VipCommand};
use tracing::{error, warn};

/// The first look is at once; what is learned later is looked at when it is. Names may mean something else, and others may
/// have written meanwhile.
const PAUSE: Duration = Duration::from_secs(5);

/// Frees addresses, and remembers which.
pub(crate) struct Rescue {
    /// Whose place it is to write.
    writes: bool,
    masquerade_all: bool,
    /// What was looked for last.
    looked_for: Vec<SocketAddr>,
    next: Instant,
    freed: BTreeSet<IpAddr>,
    /// It could not look, and that was said.
    fails: bool,
}

impl Rescue {
    /// Of the node on which this runs.
    pub(crate) fn of_node(masquerade_all: bool) -> Self {
        Self {
            writes: true,
            masquerade_all,
            looked_for: Vec::new(),
            next: Instant::now(),
            freed: BTreeSet::new(),
            fails: false,
        }
    }

    /// Nothing is read, and nothing is written.
    pub(crate) fn of_nothing() -> Self {
        Self {
            writes: false,
            ..Self::of_node(false)
        }
    }

    /// When it looks again, while nothing has been programmed yet.
    pub(super) fn next(&self) -> Option<Instant> {
        self.writes.then_some(self.next)
    }

    /// Looks, where the time has come or these are others than before. True where it freed something.
    pub(super) fn look(&mut self, api_server: &[SocketAddr], now: Instant) -> bool {
        if !self.writes || now < self.next && self.looked_for == api_server {
            return false;
        }
        self.next = now + PAUSE;
        self.looked_for = api_server.to_vec();
        let before = self.freed.len();
        let done = self.free(api_server);
        if let Err(error) = &done
            && !self.fails
        {
            warn!(
                error = format!("{error:#}"),
                "cannot see whether the API server's address is bound here, trying again"
            );
        }
        self.fails = done.is_err();
        self.freed.len() > before
    }

    fn free(&mut self, api_server: &[SocketAddr]) -> Result<()> {
        if api_server.is_empty() || Ipvs::open().is_err_and(|error| error.is_unsupported()) {
            return Ok(());
        }
        let mut kernel = LiveKernel::open()?;
        let mut bound = kernel.vips().routes()?;
        bound.extend(kernel.vips().addresses()?);
        let mut near = api_server.iter().any(|server| bound.contains(&server.ip()));
        for server in api_server {
            near = near || kernel.read_virtual_server(&place(server).virtual_server())?.is_some();
        }
        if !near {
            return Ok(());
        }
        let snapshot = kernel.read()?;
        for place in taken(&snapshot, api_server, self.masquerade_all) {
            let (address, ops) = (place.address, all_at(place, &snapshot));
            for (op, answer) in ops.iter().zip(kernel.execute(&ops)?) {
                match answer {
                    Err(refused) if !is_gone(refused.errno) => bail!("{op}: {}", refused.reason),
                    _ => {}
                }
            }
            error!(%address, "what a former process programmed at the API server's address kept it away: unbound");
            self.freed.insert(address);
        }
        Ok(())
    }

    /// What was freed since the last call.
    pub(super) fn take_freed(&mut self) -> Vec<IpAddr> {
        std::mem::take(&mut self.freed).into_iter().collect()
    }
}

fn place(server: &SocketAddr) -> Place {
    Place {
        address: server.ip(),
        port: server.port(),
        protocol: Protocol::Tcp,
    }
}

fn is_bound(address: IpAddr, snapshot: &Snapshot) -> bool {
    snapshot.routes.contains(&address) || snapshot.addresses.contains(&address)
}

/// Places of the API server that lead elsewhere. A cluster IP has a virtual server at the API server's port. The policy
/// tables tell those of external and load-balancer IPs: these are masqueraded, or lead insiders on.
fn taken(snapshot: &Snapshot, api_server: &[SocketAddr], masquerade_all: bool) -> BTreeSet<Place> {
    let knows = |set, place| {
        let mut elements = snapshot.tables.iter().flat_map(|table| &table.elements);
        elements.any(|(key, _)| *key == ElementKey::Place(set, place))
    };
    let is_external =
        |place: Place| knows(SetName::Redirects, place) || !masquerade_all && knows(SetName::Masquerade, place);
    let has_server = |place: Place| {
        let mut servers = snapshot.virtual_servers.iter();
        servers.any(|present| present.server == place.virtual_server())
    };
    let takes = |place: &Place| is_external(*place) || is_bound(place.address, snapshot) && !has_server(*place);
    api_server.iter().map(place).filter(takes).collect()
}

/// All of ours at the address of a place, in the order of a commit; where the address is this node's own, at the place
/// alone. What is not there is not asked for: the device would be made for an address.
fn all_at(place: Place, snapshot: &Snapshot) -> Vec<Op> {
    let address = place.address;
    let whole = is_bound(address, snapshot);
    let goes = |at: Place| at.address == address && (whole || at == place);
    let route = snapshot
        .routes
        .contains(&address)
        .then_some(VipCommand::DelRoute(address));
    let on_device = snapshot.addresses.contains(&address);
    let bound = on_device.then_some(VipCommand::DelAddress(address));
    let servers = snapshot.virtual_servers.iter().map(|present| present.server);
    let servers = servers.filter(|server| Place::of(server).is_some_and(goes));
    let elements = snapshot.tables.iter().flat_map(|table| &table.elements);
    let elements = elements
        .map(|(key, _)| *key)
        .filter(|key| *key == ElementKey::Vip(address) || key.place().is_some_and(goes));
    let vips = route.into_iter().chain(bound).map(Op::Vip);
    let servers = servers.map(|server| Op::Ipvs(Command::DelService(server)));
    let elements = elements.map(|key| Op::Policy(PolicyCommand::Delete(key)));
    vips.chain(servers).chain(elements).collect()
}

fn is_gone(errno: i32) -> bool {
    matches!(errno, libc::ESRCH | libc::ENOENT | libc::EADDRNOTAVAIL)
}

#[cfg(test)]
mod tests {
    use dataplane::element::ElementValue;
    use dataplane::kernel::{PresentServer, PresentTable};
    use ipvs::{Flags, SchedulerName, VirtualServerConfig};

    use super::*;

    /// A kernel with a virtual server there, and what the policy table says of it.
    fn kernel(server: &str, sets: &[SetName]) -> Snapshot {
        let server = place(&server.parse().unwrap());
        let elements = sets
            .iter()
            .map(|set| (ElementKey::Place(*set, server), ElementValue::There))
            .collect();
        Snapshot {
            virtual_servers: vec![PresentServer {
                server: server.virtual_server(),
                config: VirtualServerConfig {
                    scheduler: SchedulerName::new("rr").unwrap(),
                    flags: Flags::default(),
                    persistence: None,
                },
                real_servers: Vec::new(),
            }],
            tables: vec![PresentTable {
                family: nftables::Family::Ip,
                rules: Vec::new(),
                elements,
            }],
            ..Snapshot::default()
        }
    }

    #[test]
    fn f01_what_leads_elsewhere_is_taken_and_a_cluster_ip_is_not() {
        let api: SocketAddr = "192.0.2.1:6443".parse().unwrap();
        let bound = |snapshot: Snapshot| Snapshot {
            routes: vec![[10, 96, 0, 7].into(), api.ip()],
            ..snapshot
        };
        let check = |snapshot: Snapshot, masquerade_all, expect| {
            let found = taken(&snapshot, &[api], masquerade_all);
            let all: Vec<_> = if expect { vec![place(&api)] } else { Vec::new() };
            assert_eq!(found.into_iter().collect::<Vec<_>>(), all, "{snapshot:?}");
        };
        check(bound(Snapshot::default()), false, true);
        // Any port takes them all.
        check(bound(kernel("192.0.2.1:1", &[SetName::Masquerade])), false, true);
        for set in [SetName::Masquerade, SetName::Redirects] {
            let external = kernel("192.0.2.1:6443", &[SetName::Services, set]);
            check(bound(external.clone()), false, true);
            // The route was removed by hand, which was not enough.
            check(external, false, true);
        }
        // The Service `kubernetes`, its masquerading for all clients, and that of a proxy before us.
        let own = kernel("192.0.2.1:6443", &[SetName::Services, SetName::ClusterIps]);
        check(bound(own), false, false);
        check(bound(kernel("192.0.2.1:6443", &[SetName::Masquerade])), true, false);
        check(bound(kernel("192.0.2.1:6443", &[])), false, false);
        // What kube-ipvs did not make, and what is at other places.
        check(kernel("192.0.2.1:6443", &[]), false, false);
        check(kernel("192.0.2.1:1", &[SetName::Masquerade]), false, false);
        check(Snapshot::default(), false, false);
    }

    #[test]
    fn f01_all_of_ours_at_an_address_goes_and_nothing_else() {
        let mut snapshot = kernel("192.0.2.1:1", &[SetName::Services, SetName::Verdicts]);
        let other = kernel("192.0.2.9:1", &[SetName::Services]);
        snapshot.virtual_servers.extend(other.virtual_servers);
        snapshot.tables.extend(other.tables);
        let (address, another) = ([192, 0, 2, 1].into(), [192, 0, 2, 9].into());
        let vips = [ElementKey::Vip(address), ElementKey::Vip(another)];
        let table = snapshot.tables.first_mut().unwrap();
        table.elements.extend(vips.map(|key| (key, ElementValue::There)));
        snapshot.routes = vec![another, address];
        let at: SocketAddr = "192.0.2.1:6443".parse().unwrap();
        let ops: Vec<_> = all_at(place(&at), &snapshot).iter().map(ToString::to_string).collect();
        assert_eq!(ops.len(), 5, "{ops:#?}");
        assert!(ops.iter().all(|op| op.contains("192.0.2.1")), "{ops:#?}");
        snapshot.addresses = vec![address];
        assert_eq!(all_at(place(&at), &snapshot).len(), 6);
        // An address of the node: its other ports are NodePorts.
        let mut own = kernel("192.0.2.1:6443", &[SetName::Masquerade]);
        let node_port = kernel("192.0.2.1:30080", &[SetName::Masquerade]);
        own.virtual_servers.extend(node_port.virtual_servers);
        own.tables.extend(node_port.tables);
        let ops: Vec<_> = all_at(place(&at), &own).iter().map(ToString::to_string).collect();
        assert_eq!(ops.len(), 2, "{ops:#?}");
        assert!(ops.iter().all(|op| op.contains("6443")), "{ops:#?}");
    }
}
