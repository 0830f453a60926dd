//! Many services with endpoints: as model events, and as the IPVS commands that they come to.

use std::net::{IpAddr, SocketAddr};

use ipvs::{Command, Flags, Protocol, RealServer, RealServerConfig, SchedulerName, VirtualServer, VirtualServerConfig};
use service_model::{
    Change, Config, Endpoint, EndpointPort, EndpointSlice, Event, Family, ObjectName, Service, ServicePort,
};

/// A node that serves NodePorts on all addresses.
pub(crate) fn config() -> Config {
    Config::of_node("n")
}

/// VIPs as routes alone.
pub(crate) const ROUTES_ALONE: dataplane::Settings = dataplane::Settings {
    with_addresses: false,
    masquerade_bit: 14,
    drain_timeout: std::time::Duration::from_secs(900),
    families: Family::BOTH,
};

/// Additions of virtual servers with real servers.
pub(crate) fn table(servers: u32, reals: u8) -> Vec<Command> {
    let scheduler = SchedulerName::new("rr").unwrap();
    let config = VirtualServerConfig {
        scheduler,
        flags: Flags::default(),
        persistence: None,
    };
    let mut commands = Vec::new();
    for number in 0..servers {
        let server = VirtualServer::Address {
            address: vip(number),
            port: 80,
            protocol: Protocol::Tcp,
        };
        commands.push(Command::NewService(server, config));
        commands.extend((0..reals).map(|real| {
            let address = SocketAddr::new(pod(number, real), 8080);
            Command::NewDest(server, RealServer { address }, RealServerConfig::masquerade(1))
        }));
    }
    commands
}

/// The cluster IP of a service.
pub(crate) fn vip(number: u32) -> IpAddr {
    let [_, _, high, low] = number.to_be_bytes();
    [10, 96, high, low].into()
}

/// An endpoint of a service.
pub(crate) fn pod(number: u32, endpoint: u8) -> IpAddr {
    let [_, _, high, low] = number.to_be_bytes();
    [10, 128 + endpoint, high, low].into()
}

/// A service of one TCP port.
pub(crate) fn service(number: u32) -> Event {
    let mut service = Service::new(ObjectName::new("d", &format!("s{number}")));
    service.cluster_ips.push(vip(number));
    service.ports.push(ServicePort {
        position: 0,
        name: "".into(),
        protocol: service_model::Protocol::Tcp,
        port: 80,
        node_port: 0,
    });
    Event::Service(Change::Applied(service))
}

/// Its EndpointSlice.
pub(crate) fn slice(number: u32, endpoints: u8) -> Event {
    let endpoint = |endpoint| Endpoint {
        address: pod(number, endpoint),
        node_name: None,
        ready: true,
        serving: true,
        terminating: false,
        zone_hints: [].into_iter().collect(),
        node_hints: [].into_iter().collect(),
    };
    Event::EndpointSlice(Change::Applied(EndpointSlice {
        name: ObjectName::new("d", &format!("s{number}-x")),
        service: format!("s{number}").into(),
        headless_label: false,
        family: Some(Family::V4),
        ports: [EndpointPort {
            name: "".into(),
            protocol: service_model::Protocol::Tcp,
            port: 8080,
        }]
        .into_iter()
        .collect(),
        endpoints: (0..endpoints).map(endpoint).collect(),
        last_change: None,
        invalid: Vec::new(),
    }))
}
