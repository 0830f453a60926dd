//! Messages of the IPVS family: commands encoded, answers decoded. Pure; decoding never panics.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink::attribute::{array, put, put_be16, put_nested, put_str, put_u16, put_u32};
use netlink::{Attribute, Attributes};

use crate::command::Command;
use crate::scheduler::SchedulerName;
use crate::uapi::*;
use crate::virtual_server::{
    Family, Flags, Forward, Persistence, Protocol, RealServer, RealServerConfig, VirtualServer, VirtualServerConfig,
};

/// Counters of a virtual or real server, since it was made or zeroed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients.
    pub packets_in: u64,
    /// Packets to clients.
    pub packets_out: u64,
    /// Bytes from clients.
    pub bytes_in: u64,
    /// Bytes to clients.
    pub bytes_out: u64,
}

/// A virtual server as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualServerState {
    /// Identity.
    pub server: VirtualServer,
    /// What is set on it.
    pub config: VirtualServerConfig,
    /// Counters.
    pub statistics: Statistics,
}

/// A real server as the kernel tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RealServerState {
    /// Identity.
    pub server: RealServer,
    /// What is set on it.
    pub config: RealServerConfig,
    /// Connections in an established state.
    pub active: u32,
    /// Other connections.
    pub inactive: u32,
    /// Persistence templates.
    pub persistent: u32,
    /// Counters.
    pub statistics: Statistics,
}

/// Idle times after which the kernel forgets a connection, in seconds; 0 when set = leave as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Established TCP.
    pub tcp: u32,
    /// TCP after a FIN.
    pub tcp_fin: u32,
    /// UDP.
    pub udp: u32,
}

/// `IPVS_CMD_GET_INFO`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Info {
    /// IPVS version, as 0xMMmmpp.
    pub version: u32,
    /// Size of the connection table, in buckets.
    pub connection_table: u32,
}

// linux/socket.h
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Appends a command's payload behind the generic netlink header, and tells the command's number.
pub fn encode(command: &Command, buffer: &mut Vec<u8>) -> u8 {
    let number = match command {
        Command::NewService(..) => IPVS_CMD_NEW_SERVICE,
        Command::SetService(..) => IPVS_CMD_SET_SERVICE,
        Command::DelService(_) => IPVS_CMD_DEL_SERVICE,
        Command::NewDest(..) => IPVS_CMD_NEW_DEST,
        Command::SetDest(..) => IPVS_CMD_SET_DEST,
        Command::DelDest(..) => IPVS_CMD_DEL_DEST,
    };
    match command {
        Command::NewService(server, config) | Command::SetService(server, config) => {
            put_service(buffer, server, Some(config));
        }
        Command::DelService(server) => put_service(buffer, server, None),
        Command::NewDest(server, real, config) | Command::SetDest(server, real, config) => {
            put_service(buffer, server, None);
            put_destination(buffer, real, Some(config));
        }
        Command::DelDest(server, real) => {
            put_service(buffer, server, None);
            put_destination(buffer, real, None);
        }
    }
    number
}

/// Appends `IPVS_CMD_ATTR_SERVICE`; without configuration what identifies it only.
pub fn put_service(buffer: &mut Vec<u8>, server: &VirtualServer, config: Option<&VirtualServerConfig>) {
    put_nested(buffer, IPVS_CMD_ATTR_SERVICE, |buffer| {
        let family = server.family();
        put_u16(
            buffer,
            IPVS_SVC_ATTR_AF,
            if family == Family::V4 { AF_INET } else { AF_INET6 },
        );
        match server {
            VirtualServer::Address {
                address,
                port,
                protocol,
            } => {
                put_u16(buffer, IPVS_SVC_ATTR_PROTOCOL, ip_protocol(*protocol));
                put_address(buffer, IPVS_SVC_ATTR_ADDR, *address);
                put_be16(buffer, IPVS_SVC_ATTR_PORT, *port);
            }
            VirtualServer::Mark { mark, .. } => put_u32(buffer, IPVS_SVC_ATTR_FWMARK, *mark),
        }
        let Some(config) = config else { return };
        put_str(buffer, IPVS_SVC_ATTR_SCHED_NAME, config.scheduler.as_str());
        let persistent = if config.persistence.is_some() {
            IP_VS_SVC_F_PERSISTENT
        } else {
            0
        };
        let mut flags = (config.flags.0 | persistent).to_ne_bytes().to_vec();
        flags.extend_from_slice(&u32::MAX.to_ne_bytes());
        put(buffer, IPVS_SVC_ATTR_FLAGS, &flags);
        put_u32(
            buffer,
            IPVS_SVC_ATTR_TIMEOUT,
            config.persistence.map_or(0, |persistence| persistence.timeout),
        );
        let prefix = config.persistence.map(|persistence| persistence.prefix_len);
        match family {
            Family::V4 => {
                let mask = u32::MAX
                    .checked_shl(32 - u32::from(prefix.unwrap_or(32).min(32)))
                    .unwrap_or(0);
                put(buffer, IPVS_SVC_ATTR_NETMASK, &mask.to_be_bytes());
            }
            Family::V6 => put_u32(buffer, IPVS_SVC_ATTR_NETMASK, prefix.unwrap_or(128).into()),
        }
    });
}

fn put_destination(buffer: &mut Vec<u8>, real: &RealServer, config: Option<&RealServerConfig>) {
    put_nested(buffer, IPVS_CMD_ATTR_DEST, |buffer| {
        let address = real.address.ip();
        put_address(buffer, IPVS_DEST_ATTR_ADDR, address);
        put_be16(buffer, IPVS_DEST_ATTR_PORT, real.address.port());
        put_u16(
            buffer,
            IPVS_DEST_ATTR_ADDR_FAMILY,
            if address.is_ipv4() { AF_INET } else { AF_INET6 },
        );
        let Some(config) = config else { return };
        let method = match config.forward {
            Forward::Masquerade => IP_VS_CONN_F_MASQ,
            Forward::Local => IP_VS_CONN_F_LOCALNODE,
            Forward::Tunnel => IP_VS_CONN_F_TUNNEL,
            Forward::Route => IP_VS_CONN_F_DROUTE,
            Forward::Bypass => IP_VS_CONN_F_BYPASS,
        };
        put_u32(buffer, IPVS_DEST_ATTR_FWD_METHOD, method);
        put_u32(buffer, IPVS_DEST_ATTR_WEIGHT, config.weight.into());
        put_u32(buffer, IPVS_DEST_ATTR_U_THRESH, config.upper_threshold);
        put_u32(buffer, IPVS_DEST_ATTR_L_THRESH, config.lower_threshold);
    });
}

/// Appends the payload of `IPVS_CMD_SET_CONFIG`.
pub fn put_timeouts(buffer: &mut Vec<u8>, timeouts: Timeouts) {
    put_u32(buffer, IPVS_CMD_ATTR_TIMEOUT_TCP, timeouts.tcp);
    put_u32(buffer, IPVS_CMD_ATTR_TIMEOUT_TCP_FIN, timeouts.tcp_fin);
    put_u32(buffer, IPVS_CMD_ATTR_TIMEOUT_UDP, timeouts.udp);
}

fn put_address(buffer: &mut Vec<u8>, kind: u16, address: IpAddr) {
    match address {
        IpAddr::V4(address) => put(buffer, kind, &address.octets()),
        IpAddr::V6(address) => put(buffer, kind, &address.octets()),
    }
}

fn ip_protocol(protocol: Protocol) -> u16 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

fn protocol_of(number: u16) -> Option<Protocol> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|protocol| ip_protocol(*protocol) == number)
}

/// Reads a command that somebody sent: the inverse of [`encode`]. `None` where it is none of ours or lacks a part.
pub fn decode_command(number: u8, payload: &[u8]) -> Option<Command> {
    let service = find(payload, IPVS_CMD_ATTR_SERVICE)?;
    let server = server_of(service)?;
    let real = || destination_of(find(payload, IPVS_CMD_ATTR_DEST)?, server.family());
    Some(match number {
        IPVS_CMD_NEW_SERVICE => Command::NewService(server, config_of(service, server.family())?),
        IPVS_CMD_SET_SERVICE => Command::SetService(server, config_of(service, server.family())?),
        IPVS_CMD_DEL_SERVICE => Command::DelService(server),
        IPVS_CMD_NEW_DEST => real().map(|(real, config)| Command::NewDest(server, real, config))?,
        IPVS_CMD_SET_DEST => real().map(|(real, config)| Command::SetDest(server, real, config))?,
        IPVS_CMD_DEL_DEST => Command::DelDest(server, real()?.0),
        _ => return None,
    })
}

/// Reads a virtual server from the payload of an answer. `None` where it lacks a part or has a protocol unknown here.
pub fn decode_service(payload: &[u8]) -> Option<VirtualServerState> {
    let attributes = find(payload, IPVS_CMD_ATTR_SERVICE)?;
    let server = server_of(attributes)?;
    let statistics = statistics_of(attributes, IPVS_SVC_ATTR_STATS64, IPVS_SVC_ATTR_STATS);
    Some(VirtualServerState {
        server,
        config: config_of(attributes, server.family())?,
        statistics,
    })
}

/// Reads a real server of a virtual server of this family.
pub fn decode_destination(payload: &[u8], family: Family) -> Option<RealServerState> {
    let attributes = find(payload, IPVS_CMD_ATTR_DEST)?;
    let (server, config) = destination_of(attributes, family)?;
    let count = |kind| get(attributes, kind).and_then(|a| a.u32()).unwrap_or(0);
    Some(RealServerState {
        server,
        config,
        active: count(IPVS_DEST_ATTR_ACTIVE_CONNS),
        inactive: count(IPVS_DEST_ATTR_INACT_CONNS),
        persistent: count(IPVS_DEST_ATTR_PERSIST_CONNS),
        statistics: statistics_of(attributes, IPVS_DEST_ATTR_STATS64, IPVS_DEST_ATTR_STATS),
    })
}

/// Reads `IPVS_CMD_GET_CONFIG`'s answer; what is missing is 0.
pub fn decode_timeouts(payload: &[u8]) -> Timeouts {
    let value = |kind| get(Attributes(payload), kind).and_then(|a| a.u32()).unwrap_or(0);
    Timeouts {
        tcp: value(IPVS_CMD_ATTR_TIMEOUT_TCP),
        tcp_fin: value(IPVS_CMD_ATTR_TIMEOUT_TCP_FIN),
        udp: value(IPVS_CMD_ATTR_TIMEOUT_UDP),
    }
}

/// Reads `IPVS_CMD_GET_INFO`'s answer; what is missing is 0.
pub fn decode_info(payload: &[u8]) -> Info {
    let value = |kind| get(Attributes(payload), kind).and_then(|a| a.u32()).unwrap_or(0);
    Info {
        version: value(IPVS_INFO_ATTR_VERSION),
        connection_table: value(IPVS_INFO_ATTR_CONN_TAB_SIZE),
    }
}

fn find(payload: &[u8], kind: u16) -> Option<Attributes<'_>> {
    get(Attributes(payload), kind).map(|attribute| attribute.nested())
}

fn get(mut attributes: Attributes<'_>, kind: u16) -> Option<Attribute<'_>> {
    attributes.find(|attribute| attribute.kind == kind)
}

fn server_of(attributes: Attributes<'_>) -> Option<VirtualServer> {
    let family = family_of(get(attributes, IPVS_SVC_ATTR_AF)?.u16()?)?;
    if let Some(mark) = get(attributes, IPVS_SVC_ATTR_FWMARK)
        .and_then(|a| a.u32())
        .filter(|mark| *mark != 0)
    {
        return Some(VirtualServer::Mark { mark, family });
    }
    Some(VirtualServer::Address {
        address: address_of(&get(attributes, IPVS_SVC_ATTR_ADDR)?, family)?,
        port: get(attributes, IPVS_SVC_ATTR_PORT)?.be16()?,
        protocol: protocol_of(get(attributes, IPVS_SVC_ATTR_PROTOCOL)?.u16()?)?,
    })
}

fn config_of(attributes: Attributes<'_>, family: Family) -> Option<VirtualServerConfig> {
    let flags = get(attributes, IPVS_SVC_ATTR_FLAGS)?.u32()?;
    let netmask = get(attributes, IPVS_SVC_ATTR_NETMASK)?;
    let prefix_len = match family {
        Family::V4 => u8::try_from(u32::from_be_bytes(array(netmask.payload)?).leading_ones()).ok()?,
        Family::V6 => u8::try_from(netmask.u32()?).ok()?,
    };
    let timeout = get(attributes, IPVS_SVC_ATTR_TIMEOUT)?.u32()?;
    Some(VirtualServerConfig {
        scheduler: SchedulerName::new(get(attributes, IPVS_SVC_ATTR_SCHED_NAME)?.str()?)?,
        flags: Flags(flags & !(IP_VS_SVC_F_PERSISTENT | IP_VS_SVC_F_HASHED)),
        persistence: (flags & IP_VS_SVC_F_PERSISTENT != 0).then_some(Persistence { timeout, prefix_len }),
    })
}

fn destination_of(attributes: Attributes<'_>, family: Family) -> Option<(RealServer, RealServerConfig)> {
    let value = |kind| get(attributes, kind).and_then(|a| a.u32());
    // Older kernels do not tell the family: it is the virtual server's (all but tunnels must agree, anyway).
    let told = get(attributes, IPVS_DEST_ATTR_ADDR_FAMILY).and_then(|a| a.u16());
    let family = told.map_or(Some(family), family_of)?;
    let address = address_of(&get(attributes, IPVS_DEST_ATTR_ADDR)?, family)?;
    let port = get(attributes, IPVS_DEST_ATTR_PORT)?.be16()?;
    let forward = match value(IPVS_DEST_ATTR_FWD_METHOD).unwrap_or(0) & IP_VS_CONN_F_FWD_MASK {
        IP_VS_CONN_F_MASQ => Forward::Masquerade,
        IP_VS_CONN_F_LOCALNODE => Forward::Local,
        IP_VS_CONN_F_TUNNEL => Forward::Tunnel,
        IP_VS_CONN_F_DROUTE => Forward::Route,
        IP_VS_CONN_F_BYPASS => Forward::Bypass,
        _ => return None,
    };
    let config = RealServerConfig {
        forward,
        // An int in the kernel; what others set beyond our range is shown as the nearest.
        weight: u16::try_from(value(IPVS_DEST_ATTR_WEIGHT).unwrap_or(0)).unwrap_or(u16::MAX),
        upper_threshold: value(IPVS_DEST_ATTR_U_THRESH).unwrap_or(0),
        lower_threshold: value(IPVS_DEST_ATTR_L_THRESH).unwrap_or(0),
    };
    Some((
        RealServer {
            address: SocketAddr::new(address, port),
        },
        config,
    ))
}

/// 64-bit counters where the kernel tells them (since 4.1), else the 32-bit ones for connections and packets.
fn statistics_of(attributes: Attributes<'_>, wide: u16, narrow: u16) -> Statistics {
    let wide = get(attributes, wide);
    let Some(found) = wide.or_else(|| get(attributes, narrow)) else {
        return Statistics::default();
    };
    let value = |kind| {
        let attribute = get(found.nested(), kind)?;
        attribute.u64().or_else(|| attribute.u32().map(u64::from))
    };
    let value = |kind| value(kind).unwrap_or(0);
    Statistics {
        connections: value(IPVS_STATS_ATTR_CONNS),
        packets_in: value(IPVS_STATS_ATTR_INPKTS),
        packets_out: value(IPVS_STATS_ATTR_OUTPKTS),
        bytes_in: value(IPVS_STATS_ATTR_INBYTES),
        bytes_out: value(IPVS_STATS_ATTR_OUTBYTES),
    }
}

fn family_of(number: u16) -> Option<Family> {
    match number {
        AF_INET => Some(Family::V4),
        AF_INET6 => Some(Family::V6),
        _ => None,
    }
}

/// The kernel tells a 16-byte union for both families; who sends may give 4 bytes for IPv4.
fn address_of(attribute: &Attribute<'_>, family: Family) -> Option<IpAddr> {
    Some(match family {
        Family::V4 => Ipv4Addr::from(array::<4>(attribute.payload)?).into(),
        Family::V6 => Ipv6Addr::from(array::<16>(attribute.payload)?).into(),
    })
}

#[cfg(test)]
mod tests;
