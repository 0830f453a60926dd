//! Notifications of rtnetlink: a VIP's route or address went, or `kube-ipvs0` itself (L9).

use std::net::IpAddr;

use netlink::{Notification, TransportError};
use netlink_packet_core::Parseable;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};

use crate::error::{Error, transport};
use crate::vip::{NETLINK_ROUTE, RTM_DELADDR, RTM_DELLINK, RTM_DELROUTE};
use crate::vip_command::{DEVICE, RTPROT_KUBE_IPVS};

// linux/rtnetlink.h
const RTNLGRP_LINK: u32 = 1;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV4_ROUTE: u32 = 7;
const RTNLGRP_IPV6_IFADDR: u32 = 9;
const RTNLGRP_IPV6_ROUTE: u32 = 11;

/// What went. The kernel tells who did it for IPv4 alone (net/ipv6/addrconf.c, `inet6_ifa_notify`), so who listens has to
/// know what he removed himself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// The local route of a VIP.
    Route(IpAddr),
    /// An address of some interface, which may be `kube-ipvs0`.
    Address(IpAddr),
    /// `kube-ipvs0` with all its addresses.
    Device,
    /// Notifications were lost: anything.
    Unknown,
}

/// Hears of what goes, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct VipMonitor(netlink::Monitor);

impl VipMonitor {
    /// Listens from now on.
    ///
    /// # Errors
    /// Where the socket cannot be made.
    pub fn open() -> Result<Self, Error> {
        let groups = [
            RTNLGRP_LINK,
            RTNLGRP_IPV4_IFADDR,
            RTNLGRP_IPV4_ROUTE,
            RTNLGRP_IPV6_IFADDR,
            RTNLGRP_IPV6_ROUTE,
        ];
        let inner =
            netlink::Monitor::open(NETLINK_ROUTE, &groups).map_err(transport("listen to routes and addresses"))?;
        Ok(Self(inner))
    }

    /// Waits until something went, whoever did it.
    ///
    /// # Errors
    /// Where the transport broke.
    pub fn wait(&mut self) -> Result<Vec<Gone>, Error> {
        let mut all = Vec::new();
        while all.is_empty() {
            match self.0.receive(|message| all.extend(gone(&message))) {
                Ok(()) => {}
                Err(TransportError::Overrun) => all.push(Gone::Unknown),
                Err(error) => return Err(transport("listen to routes and addresses")(error)),
            }
        }
        Ok(all)
    }
}

pub(crate) fn gone(message: &Notification<'_>) -> Option<Gone> {
    match message.kind {
        RTM_DELROUTE => {
            let route = RouteMessage::parse(message.payload).ok()?;
            if u8::from(route.header.protocol) != RTPROT_KUBE_IPVS {
                return None;
            }
            route.attributes.iter().find_map(|attribute| match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(Gone::Route(IpAddr::V4(*ip))),
                RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(Gone::Route(IpAddr::V6(*ip))),
                _ => None,
            })
        }
        RTM_DELADDR => {
            let address = AddressMessage::parse(message.payload).ok()?;
            // IPv4 tells the address itself as Local, IPv6 as Address.
            let local = address.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(ip) => Some(*ip),
                _ => None,
            });
            let any = address.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            });
            local.or(any).map(Gone::Address)
        }
        RTM_DELLINK => {
            let link = LinkMessage::parse(message.payload).ok()?;
            let name = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfName(name) if name == DEVICE);
            link.attributes.iter().any(name).then_some(Gone::Device)
        }
        _ => None,
    }
}
