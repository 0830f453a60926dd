//! What the node's own network needs (T41): gateways of the main table, and the node's IPv4 subnets. Read, never written.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use netlink::Socket;
use netlink_packet_core::Parseable;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteVia};

use crate::error::{Error, transport};
use crate::vip::{NETLINK_ROUTE, RTM_GETADDR, RTM_GETROUTE, list};

// linux/rtnetlink.h
const RT_TABLE_MAIN: u8 = 254;

/// Whose traffic goes over a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gateway {
    /// Some.
    OfSome,
    /// All that no other route knows better.
    Default,
}

/// An IPv4 subnet that an address of this node is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet {
    /// Its first address.
    pub network: Ipv4Addr,
    /// Length of its prefix.
    pub prefix: u8,
}

impl Subnet {
    /// The one of an address; `None` where it has no broadcast address: /31, /32.
    fn of(address: Ipv4Addr, prefix: u8) -> Option<Self> {
        let mask = u32::MAX.checked_shl(32_u32.checked_sub(prefix.into())?).unwrap_or(0);
        let network = Ipv4Addr::from_bits(address.to_bits() & mask);
        (prefix <= 30).then_some(Self { network, prefix })
    }

    /// Its last address.
    pub fn broadcast(self) -> Ipv4Addr {
        let hosts = u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0);
        Ipv4Addr::from_bits(self.network.to_bits() | hosts)
    }
}

/// Routes and addresses, in the network namespace in which it was opened.
#[derive(Debug)]
pub struct HostNetwork(Socket);

impl HostNetwork {
    /// Opens a socket.
    ///
    /// # Errors
    /// Where it cannot be opened.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::open(NETLINK_ROUTE).map_err(transport("open the route socket"))?;
        socket.check_strictly().map_err(transport("open the route socket"))?;
        Ok(Self(socket))
    }

    /// Gateways of all routes of the main table.
    ///
    /// # Errors
    /// Where the kernel cannot be asked.
    pub fn gateways(&mut self) -> Result<BTreeMap<IpAddr, Gateway>, Error> {
        let mut all = BTreeMap::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut filter = RouteMessage::default();
            filter.header.address_family = family;
            filter.attributes.push(RouteAttribute::Table(RT_TABLE_MAIN.into()));
            let found = list(
                &mut self.0,
                "list routes of the main table",
                RTM_GETROUTE,
                &filter,
                |payload| RouteMessage::parse(payload).map_or_else(|_| Vec::new(), |route| of_route(&route)),
            )?;
            for (address, gateway) in found {
                let known = all.entry(address).or_insert(gateway);
                *known = gateway.max(*known);
            }
        }
        Ok(all)
    }

    /// IPv4 subnets of all interfaces that have a broadcast address; loopback left out.
    ///
    /// # Errors
    /// Where the kernel cannot be asked.
    pub fn subnets(&mut self) -> Result<Vec<Subnet>, Error> {
        let mut filter = AddressMessage::default();
        filter.header.family = AddressFamily::Inet;
        let mut all = list(&mut self.0, "list addresses", RTM_GETADDR, &filter, |payload| {
            let address = AddressMessage::parse(payload).ok()?;
            // Of the peer on a point-to-point link, which is whose subnet the kernel has a route to.
            let ip = address.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(IpAddr::V4(ip)) => Some(*ip),
                _ => None,
            });
            Subnet::of(ip.filter(|ip| !ip.is_loopback())?, address.header.prefix_len)
        })?;
        all.sort_unstable();
        all.dedup();
        Ok(all)
    }
}

/// Older kernels filter nothing, so the table is looked at here, too.
fn of_route(route: &RouteMessage) -> Vec<(IpAddr, Gateway)> {
    if route.header.table != RT_TABLE_MAIN {
        return Vec::new();
    }
    let gateway = match route.header.destination_prefix_length {
        0 => Gateway::Default,
        _ => Gateway::OfSome,
    };
    let mut all = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::MultiPath(hops) => {
                all.extend(hops.iter().flat_map(|hop| hop.attributes.iter().filter_map(address)));
            }
            one => all.extend(address(one)),
        }
    }
    all.into_iter().map(|address| (address, gateway)).collect()
}

fn address(attribute: &RouteAttribute) -> Option<IpAddr> {
    match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(ip)) | RouteAttribute::Via(RouteVia::Inet(ip)) => Some((*ip).into()),
        RouteAttribute::Gateway(RouteAddress::Inet6(ip)) | RouteAttribute::Via(RouteVia::Inet6(ip)) => {
            Some((*ip).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::route::RouteNextHop;

    use super::*;

    #[test]
    fn f06_all_gateways_of_a_route_are_found_but_of_the_main_table_alone() {
        let gateway = |n| RouteAttribute::Gateway(RouteAddress::Inet([192, 0, 2, n].into()));
        let hop = |n| {
            let mut hop = RouteNextHop::default();
            hop.attributes.push(gateway(n));
            hop
        };
        let mut route = RouteMessage::default();
        route.header.table = RT_TABLE_MAIN;
        route.header.destination_prefix_length = 24;
        route.attributes = vec![RouteAttribute::MultiPath(vec![hop(1), hop(2)])];
        let address = |n| IpAddr::from([192, 0, 2, n]);
        let both = [(address(1), Gateway::OfSome), (address(2), Gateway::OfSome)];
        assert_eq!(of_route(&route), both);
        route.header.table = 77;
        assert_eq!(of_route(&route), []);
        let mut route = RouteMessage::default();
        route.header.table = RT_TABLE_MAIN;
        let via = RouteVia::Inet6("2001:db8::1".parse().unwrap());
        route.attributes = vec![gateway(3), RouteAttribute::Via(via)];
        let both = [
            (address(3), Gateway::Default),
            ("2001:db8::1".parse().unwrap(), Gateway::Default),
        ];
        assert_eq!(of_route(&route), both);
    }

    #[test]
    fn f06_a_subnet_has_a_first_and_a_last_address() {
        let check = |address: &str, prefix, expect: Option<(&str, &str)>| {
            let found = Subnet::of(address.parse().unwrap(), prefix);
            let found = found.map(|subnet| (subnet.network.to_string(), subnet.broadcast().to_string()));
            let expect = expect.map(|(network, broadcast)| (network.to_owned(), broadcast.to_owned()));
            assert_eq!(found, expect, "{address}/{prefix}");
        };
        check("192.0.2.10", 24, Some(("192.0.2.0", "192.0.2.255")));
        check("10.1.2.3", 30, Some(("10.1.2.0", "10.1.2.3")));
        check("10.1.2.3", 8, Some(("10.0.0.0", "10.255.255.255")));
        check("10.1.2.3", 0, Some(("0.0.0.0", "255.255.255.255")));
        for prefix in [31, 32, 33, 255] {
            check("10.1.2.3", prefix, None);
        }
    }
}
