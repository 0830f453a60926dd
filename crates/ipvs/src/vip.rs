//! VIPs: the local route that makes one live, and its address on `kube-ipvs0` for those who look there (L4).

use std::net::IpAddr;

use netlink::socket::NLM_F_REQUEST;
use netlink::{Batch, Counters, Socket, TransportError};
use netlink_packet_core::{Emitable, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};

use crate::error::{Error, transport};
use crate::vip_command::{DEVICE, RTPROT_KUBE_IPVS, VipCommand};

// linux/netlink.h, linux/rtnetlink.h
pub(crate) const NETLINK_ROUTE: isize = 0;
const RTM_NEWLINK: u16 = 16;
pub(crate) const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
pub(crate) const RTM_DELADDR: u16 = 21;
pub(crate) const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
pub(crate) const RTM_DELROUTE: u16 = 25;
pub(crate) const RTM_GETROUTE: u16 = 26;
const RT_TABLE_LOCAL: u8 = 255;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

/// Routes, addresses and the device, in the network namespace in which it was opened.
#[derive(Debug)]
pub struct Vips {
    socket: Socket,
    /// Index of `lo`, where the routes are.
    loopback: u32,
    /// Index of `kube-ipvs0`, once known.
    device: Option<u32>,
}

impl Vips {
    /// Opens a socket for routes and addresses.
    ///
    /// # Errors
    /// Where it cannot be opened, or there is no `lo`.
    pub fn open() -> Result<Self, Error> {
        let mut socket = Socket::open(NETLINK_ROUTE).map_err(transport("open the route socket"))?;
        socket.check_strictly().map_err(transport("open the route socket"))?;
        let (loopback, _) = find_link(&mut socket, "lo")?.ok_or(Error::NoDevice("lo"))?;
        let device = find_link(&mut socket, DEVICE)?.map(|(index, _)| index);
        Ok(Self {
            socket,
            loopback,
            device,
        })
    }

    /// Makes `kube-ipvs0` where it is missing; it is never set up, as kube-proxy's is not. Repeating it does nothing.
    ///
    /// # Errors
    /// [`Error::NotDummy`] where an interface of that name is of another kind, [`Error::is_unsupported`] where the
    /// kernel has no dummy devices, [`Error::is_permission`] without CAP_NET_ADMIN.
    pub fn ensure_device(&mut self) -> Result<(), Error> {
        self.device = match find_link(&mut self.socket, DEVICE)? {
            Some((index, true)) => Some(index),
            Some((_, false)) => return Err(Error::NotDummy(DEVICE)),
            None => {
                let mut link = LinkMessage::default();
                link.attributes.push(LinkAttribute::IfName(DEVICE.into()));
                link.attributes
                    .push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Dummy)]));
                self.change("make kube-ipvs0", RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link)?;
                find_link(&mut self.socket, DEVICE)?.map(|(index, _)| index)
            }
        };
        Ok(())
    }

    /// There is an interface `kube-ipvs0`, of whatever kind.
    ///
    /// # Errors
    /// Where the kernel cannot be asked.
    pub fn has_device(&mut self) -> Result<bool, Error> {
        Ok(find_link(&mut self.socket, DEVICE)?.is_some())
    }

    /// Removes `kube-ipvs0` with its addresses; none there is fine.
    ///
    /// # Errors
    /// [`Error::NotDummy`] where an interface of that name is of another kind.
    pub fn delete_device(&mut self) -> Result<(), Error> {
        self.device = None;
        match find_link(&mut self.socket, DEVICE)? {
            None => Ok(()),
            Some((_, false)) => Err(Error::NotDummy(DEVICE)),
            Some((index, true)) => {
                let mut link = LinkMessage::default();
                link.header.index = index;
                self.change("delete kube-ipvs0", RTM_DELLINK, 0, &link)
            }
        }
    }

    /// Executes commands in order, each on its own, and returns one answer each. Empty in, empty out.
    ///
    /// # Errors
    /// Where the transport broke, or an address is asked for and there is no `kube-ipvs0`.
    pub fn execute(&mut self, commands: &[VipCommand]) -> Result<Vec<Result<(), Error>>, Error> {
        // Somebody may have deleted it.
        let needs_device =
            |command: &VipCommand| matches!(command, VipCommand::AddAddress(_) | VipCommand::DelAddress(_));
        if self.device.is_none() && commands.iter().any(needs_device) {
            self.ensure_device()?;
        }
        let mut batch = Batch::new();
        for command in commands {
            match *command {
                // APPEND: the kernel's own route of an address on kube-ipvs0 may be there already; the same route of
                // ours twice is EEXIST all the same (net/ipv4/fib_trie.c, fib_table_insert).
                VipCommand::AddRoute(ip) if ip.is_ipv4() => {
                    push(&mut batch, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_APPEND, &self.route(ip));
                }
                // IPv6 appends a second one without a word (net/ipv6/ip6_fib.c, fib6_add_rt2node), so EXCL.
                VipCommand::AddRoute(ip) => push(&mut batch, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &self.route(ip)),
                VipCommand::DelRoute(ip) => push(&mut batch, RTM_DELROUTE, 0, &self.route(ip)),
                VipCommand::AddAddress(ip) => {
                    push(&mut batch, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &self.address(ip)?);
                }
                VipCommand::DelAddress(ip) => push(&mut batch, RTM_DELADDR, 0, &self.address(ip)?),
            }
        }
        let answers = self
            .socket
            .execute(batch)
            .map_err(transport("send routes and addresses"))?;
        let answers = answers.into_iter().zip(commands);
        Ok(answers
            .map(|(answer, command)| {
                answer.map_err(|source| Error::Vip {
                    command: *command,
                    source,
                })
            })
            .collect())
    }

    /// Destinations of our routes.
    ///
    /// # Errors
    /// Where the kernel cannot be asked.
    pub fn routes(&mut self) -> Result<Vec<IpAddr>, Error> {
        let mut all = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            filter.header.protocol = RouteProtocol::from(RTPROT_KUBE_IPVS);
            filter.header.kind = RouteType::Local;
            filter.attributes.push(RouteAttribute::Table(RT_TABLE_LOCAL.into()));
            all.extend(list(
                &mut self.socket,
                "list routes",
                RTM_GETROUTE,
                &filter,
                |payload| {
                    let route = RouteMessage::parse(payload).ok()?;
                    let ours =
                        u8::from(route.header.protocol) == RTPROT_KUBE_IPVS && route.header.table == RT_TABLE_LOCAL;
                    route
                        .attributes
                        .iter()
                        .filter(|_| ours)
                        .find_map(|attribute| match attribute {
                            RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
                            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
                            _ => None,
                        })
                },
            )?);
        }
        Ok(all)
    }

    /// Addresses on `kube-ipvs0`; none where it is not there. Looks for the device anew.
    ///
    /// # Errors
    /// Where the kernel cannot be asked.
    pub fn addresses(&mut self) -> Result<Vec<IpAddr>, Error> {
        self.device = find_link(&mut self.socket, DEVICE)?.map(|(index, _)| index);
        let Some(device) = self.device else {
            return Ok(Vec::new());
        };
        let mut all = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = AddressMessage::default();
            filter.header.family = family;
            filter.header.index = device;
            all.extend(list(
                &mut self.socket,
                "list addresses of kube-ipvs0",
                RTM_GETADDR,
                &filter,
                |payload| {
                    let address = AddressMessage::parse(payload)
                        .ok()
                        .filter(|address| address.header.index == device)?;
                    // IPv4 tells the address itself as Local, IPv6 as Address.
                    let local = address.attributes.iter().find_map(|a| {
                        if let AddressAttribute::Local(ip) = a {
                            Some(*ip)
                        } else {
                            None
                        }
                    });
                    local.or_else(|| {
                        address.attributes.iter().find_map(|a| {
                            if let AddressAttribute::Address(ip) = a {
                                Some(*ip)
                            } else {
                                None
                            }
                        })
                    })
                },
            )?);
        }
        Ok(all)
    }

    /// What went over the socket so far.
    pub fn counters(&self) -> Counters {
        self.socket.counters()
    }

    /// `local VIP dev lo table local scope host proto 163`.
    fn route(&self, ip: IpAddr) -> RouteMessage {
        let mut route = RouteMessage::default();
        let (family, prefix, destination) = match ip {
            IpAddr::V4(ip) => (AddressFamily::Inet, 32, RouteAddress::Inet(ip)),
            IpAddr::V6(ip) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(ip)),
        };
        route.header = RouteHeader {
            address_family: family,
            destination_prefix_length: prefix,
            table: RT_TABLE_LOCAL,
            protocol: RouteProtocol::from(RTPROT_KUBE_IPVS),
            scope: RouteScope::Host,
            kind: RouteType::Local,
            ..RouteHeader::default()
        };
        route.attributes = vec![
            RouteAttribute::Destination(destination),
            RouteAttribute::Oif(self.loopback),
        ];
        route
    }

    fn address(&self, ip: IpAddr) -> Result<AddressMessage, Error> {
        let mut address = AddressMessage::default();
        address.header.index = self.device.ok_or(Error::NoDevice(DEVICE))?;
        address.header.family = if ip.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        };
        address.header.prefix_len = if ip.is_ipv4() { 32 } else { 128 };
        address.header.scope = AddressScope::Universe;
        if ip.is_ipv6() {
            // Usable at once: nobody else on a dummy device can have it.
            address.header.flags = AddressHeaderFlags::Nodad;
        }
        address.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
        Ok(address)
    }

    fn change(&mut self, operation: &'static str, kind: u16, flags: u16, message: &impl Emitable) -> Result<(), Error> {
        let mut batch = Batch::new();
        push(&mut batch, kind, flags, message);
        let answers = self.socket.execute(batch).map_err(transport(operation))?;
        answers
            .into_iter()
            .try_for_each(|answer| answer.map_err(|source| Error::Refused { operation, source }))
    }
}

/// A list as a value; a namespace without a single IPv6 route may not know the table, and has none then.
pub(crate) fn list<T, D: IntoIterator<Item = T>>(
    socket: &mut Socket,
    operation: &'static str,
    kind: u16,
    filter: &impl Emitable,
    decode: impl Fn(&[u8]) -> D,
) -> Result<Vec<T>, Error> {
    match socket.list(kind, |buffer| emit(buffer, filter), decode) {
        Err(TransportError::Refused(error)) if error.errno == libc::ENOENT => Ok(Vec::new()),
        listed => listed.map_err(|source| Error::Transport { operation, source }),
    }
}

/// Index of an interface and whether it is a dummy device; `None` where it is not there.
fn find_link(socket: &mut Socket, name: &'static str) -> Result<Option<(u32, bool)>, Error> {
    let operation = "look up an interface";
    let mut filter = LinkMessage::default();
    filter.attributes.push(LinkAttribute::IfName(name.into()));
    let mut found = None;
    let answer = socket.query(
        RTM_GETLINK,
        |buffer| emit(buffer, &filter),
        |payload| {
            found = LinkMessage::parse(payload).ok().map(|link| {
                let kind = |info: &LinkInfo| matches!(info, LinkInfo::Kind(InfoKind::Dummy));
                let dummy = |a: &LinkAttribute| matches!(a, LinkAttribute::LinkInfo(infos) if infos.iter().any(kind));
                (link.header.index, link.attributes.iter().any(dummy))
            });
        },
    );
    match answer.map_err(transport(operation))? {
        Ok(()) => Ok(found),
        Err(error) if error.errno == libc::ENODEV => Ok(None),
        Err(source) => Err(Error::Refused { operation, source }),
    }
}

fn push(batch: &mut Batch, kind: u16, flags: u16, message: &impl Emitable) {
    batch.push(kind, NLM_F_REQUEST | flags, |buffer| emit(buffer, message));
}

fn emit(buffer: &mut Vec<u8>, message: &impl Emitable) {
    let start = buffer.len();
    buffer.resize(start + message.buffer_len(), 0);
    message.emit(buffer.get_mut(start..).unwrap_or_default());
}
