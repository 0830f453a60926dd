//! Frontends → kernel objects, in values of the crate `ipvs`. Pure.

use std::net::IpAddr;

use ipvs::{
    Flags, Persistence, Protocol, RealServer, RealServerConfig, SchedulerName, VirtualServer, VirtualServerConfig,
};
use service_model::{Frontend, ObjectName, Program, Scheduler};

/// Weight of an endpoint that takes new connections. Upstream's value: the same for all.
const WEIGHT: u16 = 1;

/// A virtual server with its real servers and the VIP that leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// Identity.
    pub server: VirtualServer,
    /// What is set on it.
    pub config: VirtualServerConfig,
    /// The address to bind; `None` where it is already one of the node's (T7, NodePorts).
    pub vip: Option<IpAddr>,
    /// Real servers, in the order of insertion (T23).
    pub real_servers: Vec<(RealServer, RealServerConfig)>,
}

/// In which order services are programmed where many are at once (L3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// `default/kubernetes`: what every other agent on the node needs to reach the API server.
    ApiServer,
    /// A service with port 53.
    Dns,
    /// Every other.
    Ordinary,
}

/// The priority of a service.
pub fn priority(service: &ObjectName, program: &Program) -> Priority {
    if service.as_str() == "default/kubernetes" {
        Priority::ApiServer
    } else if program.frontends.iter().any(|frontend| frontend.key.port == 53) {
        Priority::Dns
    } else {
        Priority::Ordinary
    }
}

/// One frontend's objects.
pub fn compile(frontend: &Frontend) -> Compiled {
    let address = frontend.key.address;
    Compiled {
        server: VirtualServer::Address {
            address,
            port: frontend.key.port,
            protocol: protocol(frontend.key.protocol),
        },
        config: VirtualServerConfig {
            scheduler: scheduler_name(frontend.scheduler),
            flags: scheduler_flags(frontend.scheduler),
            persistence: frontend.affinity.map(|timeout| Persistence {
                timeout,
                prefix_len: if address.is_ipv4() { 32 } else { 128 },
            }),
        },
        vip: (!frontend.node_address).then_some(address),
        real_servers: frontend
            .endpoints
            .iter()
            .map(|target| {
                (
                    RealServer {
                        address: target.address,
                    },
                    RealServerConfig::masquerade(WEIGHT),
                )
            })
            .collect(),
    }
}

fn protocol(protocol: service_model::Protocol) -> Protocol {
    match protocol {
        service_model::Protocol::Tcp => Protocol::Tcp,
        service_model::Protocol::Udp => Protocol::Udp,
        service_model::Protocol::Sctp => Protocol::Sctp,
    }
}

/// The kernel's name of a scheduler that a user chose.
pub fn scheduler_name(scheduler: Scheduler) -> SchedulerName {
    SchedulerName::new(scheduler.as_str()).expect("every name of the enumeration fits the kernel's field")
}

/// `mh` hashes the port too, as upstream's does, and falls back to the next server when the chosen one has
/// weight 0 (T21, k/k PR#138688). The others have no flags or need none.
fn scheduler_flags(scheduler: Scheduler) -> Flags {
    match scheduler {
        Scheduler::Maglev => Flags(Flags::MH_FALLBACK.0 | Flags::MH_PORT.0),
        _ => Flags::default(),
    }
}
