//! What can be asked of IPVS to change, as values.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use crate::uapi;
use crate::virtual_server::{
    Family, Flags, Forward, Protocol, RealServer, RealServerConfig, VirtualServer, VirtualServerConfig,
};

/// One change of the IPVS tables: one netlink message, one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `IPVS_CMD_NEW_SERVICE`. Exists: EEXIST. Unknown scheduler: ENOENT.
    NewService(VirtualServer, VirtualServerConfig),
    /// `IPVS_CMD_SET_SERVICE`; real servers and connections stay. Missing: ESRCH.
    SetService(VirtualServer, VirtualServerConfig),
    /// `IPVS_CMD_DEL_SERVICE`, with its real servers. Missing: ESRCH.
    DelService(VirtualServer),
    /// `IPVS_CMD_NEW_DEST`. Virtual server missing: ESRCH. Exists: EEXIST.
    NewDest(VirtualServer, RealServer, RealServerConfig),
    /// `IPVS_CMD_SET_DEST`. Missing: ENOENT.
    SetDest(VirtualServer, RealServer, RealServerConfig),
    /// `IPVS_CMD_DEL_DEST`. Missing: ENOENT.
    DelDest(VirtualServer, RealServer),
}

impl Command {
    /// The virtual server that it is about.
    pub fn virtual_server(&self) -> &VirtualServer {
        match self {
            Self::NewService(server, _)
            | Self::SetService(server, _)
            | Self::DelService(server)
            | Self::NewDest(server, ..)
            | Self::SetDest(server, ..)
            | Self::DelDest(server, _) => server,
        }
    }

    /// The kernel's name of the command.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NewService(..) => "IPVS_CMD_NEW_SERVICE",
            Self::SetService(..) => "IPVS_CMD_SET_SERVICE",
            Self::DelService(_) => "IPVS_CMD_DEL_SERVICE",
            Self::NewDest(..) => "IPVS_CMD_NEW_DEST",
            Self::SetDest(..) => "IPVS_CMD_SET_DEST",
            Self::DelDest(..) => "IPVS_CMD_DEL_DEST",
        }
    }
}

impl fmt::Display for Command {
    /// The line that `ipvsadm -R` takes and, for additions, that `ipvsadm -Sn` prints.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NewService(server, config) => service(f, "-A", server, config),
            Self::SetService(server, config) => service(f, "-E", server, config),
            Self::DelService(server) => write!(f, "-D {}", Place(server)),
            Self::NewDest(server, real, config) => destination(f, "-a", server, real, config),
            Self::SetDest(server, real, config) => destination(f, "-e", server, real, config),
            Self::DelDest(server, real) => write!(f, "-d {} -r {real}", Place(server)),
        }
    }
}

/// A virtual server as `ipvsadm`'s options name it.
struct Place<'a>(&'a VirtualServer);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self.0 {
            VirtualServer::Address {
                address,
                port,
                protocol,
            } => {
                let option = match protocol {
                    Protocol::Tcp => "-t",
                    Protocol::Udp => "-u",
                    Protocol::Sctp => "--sctp-service",
                };
                write!(f, "{option} {}", SocketAddr::new(address, port))
            }
            VirtualServer::Mark {
                mark,
                family: Family::V4,
            } => write!(f, "-f {mark}"),
            VirtualServer::Mark {
                mark,
                family: Family::V6,
            } => write!(f, "-f {mark} -6"),
        }
    }
}

fn service(
    f: &mut fmt::Formatter<'_>,
    verb: &str,
    server: &VirtualServer,
    config: &VirtualServerConfig,
) -> fmt::Result {
    write!(f, "{verb} {} -s {}", Place(server), config.scheduler)?;
    if let Some(persistence) = config.persistence {
        write!(f, " -p {}", persistence.timeout)?;
        match server.family() {
            Family::V4 if persistence.prefix_len < 32 => {
                let mask = u32::MAX
                    .checked_shl(32 - u32::from(persistence.prefix_len))
                    .unwrap_or(0);
                write!(f, " -M {}", Ipv4Addr::from(mask))?;
            }
            Family::V6 if persistence.prefix_len < 128 => write!(f, " -M {}", persistence.prefix_len)?,
            _ => {}
        }
    }
    if config.flags.contains(Flags::ONE_PACKET) {
        f.write_str(" -o")?;
    }
    scheduler_flags(f, config)
}

/// ipvsadm names the flags of `sh` and `mh`, and numbers those of others.
fn scheduler_flags(f: &mut fmt::Formatter<'_>, config: &VirtualServerConfig) -> fmt::Result {
    let names = match config.scheduler.as_str() {
        "sh" => ["sh-fallback", "sh-port", "flag-3"],
        "mh" => ["mh-fallback", "mh-port", "flag-3"],
        _ => ["flag-1", "flag-2", "flag-3"],
    };
    let bits = [
        uapi::IP_VS_SVC_F_SCHED1,
        uapi::IP_VS_SVC_F_SCHED2,
        uapi::IP_VS_SVC_F_SCHED3,
    ];
    let set = bits
        .iter()
        .zip(names)
        .filter(|(bit, _)| config.flags.contains(Flags(**bit)));
    for (number, (_, name)) in set.enumerate() {
        write!(f, "{}{name}", if number == 0 { " -b " } else { "," })?;
    }
    Ok(())
}

fn destination(
    f: &mut fmt::Formatter<'_>,
    verb: &str,
    server: &VirtualServer,
    real: &RealServer,
    config: &RealServerConfig,
) -> fmt::Result {
    let forward = match config.forward {
        Forward::Masquerade => "-m",
        Forward::Tunnel => "-i",
        // ipvsadm sets neither of the other two; it prints them as it does direct routing.
        Forward::Route | Forward::Local | Forward::Bypass => "-g",
    };
    write!(f, "{verb} {} -r {real} {forward} -w {}", Place(server), config.weight)?;
    if config.upper_threshold != 0 {
        write!(f, " -x {}", config.upper_threshold)?;
    }
    if config.lower_threshold != 0 {
        write!(f, " -y {}", config.lower_threshold)?;
    }
    Ok(())
}
