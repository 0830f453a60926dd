//! What no Service may take from this node (T41), put together of what is told here: where the API server is, what the
//! host needs, what kube-ipvs itself answers on.

use std::future::pending;
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::Sender;

use api_watch::Peers;
use ipnet::IpNet;
use service_model::{Protected, ProtectedPorts, Protocol};
use tokio::sync::watch;

use crate::host_needs::HostNeeds;
use crate::listeners::Host;
use crate::server_settings::ServerSettings;

/// The sources of what must be kept free, and the last that each gave.
pub(crate) struct Surroundings {
    own: Vec<ProtectedPorts>,
    health_checks: Vec<u16>,
    peers: Peers,
    /// What they tell.
    api_server: watch::Receiver<Vec<SocketAddr>>,
    /// `None` until it has been read.
    host: watch::Receiver<Option<HostNeeds>>,
    /// Has what the host needs read again.
    ask: Sender<()>,
    /// Something was told that [`take`](Self::take) has not given.
    changed: bool,
}

impl Surroundings {
    pub(crate) fn new(servers: &ServerSettings, peers: Peers, host: Host) -> Self {
        let server = |address: Option<SocketAddr>, whose| {
            let address = address.filter(|address| !address.ip().is_loopback())?;
            // A socket of 0.0.0.0 takes IPv6, too.
            let at = (!address.ip().is_unspecified()).then(|| address.ip().into());
            Some(port(at, address.port(), whose))
        };
        let own = [
            server(servers.healthz, "the health check of kube-ipvs"),
            server(servers.metrics, "the metrics of kube-ipvs"),
        ];
        Self {
            own: own.into_iter().flatten().collect(),
            health_checks: Vec::new(),
            api_server: peers.subscribe(),
            peers,
            host: host.needs,
            ask: host.ask,
            changed: true,
        }
    }

    /// Nothing is near, and that is known.
    #[cfg(test)]
    pub(super) fn of_nothing() -> Self {
        let servers = ServerSettings {
            healthz: None,
            metrics: None,
            ..ServerSettings::default()
        };
        let host = Host {
            needs: watch::channel(Some(HostNeeds::default())).1,
            ask: std::sync::mpsc::channel().0,
        };
        Self::new(&servers, Peers::default(), host)
    }

    /// Waits until a source gives something else. What a source that ended gave last stays.
    pub(super) async fn changed(&mut self) {
        tokio::select! {
            () = told(&mut self.api_server) => {}
            () = told(&mut self.host) => {}
        }
        self.changed = true;
    }

    /// Has what the host needs read again.
    pub(super) fn ask(&self) {
        // Nobody hears it where the reader ended, and with it this process.
        let _ = self.ask.send(());
    }

    /// What the host needs is known.
    pub(super) fn is_known(&self) -> bool {
        self.host.borrow().is_some()
    }

    /// Where connections to the API server lead.
    pub(super) fn api_server(&self) -> Vec<SocketAddr> {
        self.api_server.borrow().clone()
    }

    /// What kept the API server away is gone.
    pub(super) fn api_server_is_free(&self) {
        self.peers.freed();
    }

    /// Ports of Services' health checks.
    pub(super) fn set_health_checks(&mut self, ports: Vec<u16>) {
        self.changed |= self.health_checks != ports;
        self.health_checks = ports;
    }

    /// All of it, where something of it has changed. Costs nothing where not.
    pub(super) fn take(&mut self) -> Option<Protected> {
        let is_told = self.api_server.has_changed().unwrap_or(false) | self.host.has_changed().unwrap_or(false);
        if !is_told && !std::mem::take(&mut self.changed) {
            return None;
        }
        self.changed = false;
        let mut all = Protected::default();
        all.ports.extend(self.own.iter().cloned());
        let check = |number: &u16| port(None, *number, "the health check of a Service");
        all.ports.extend(self.health_checks.iter().map(check));
        for peer in &*self.api_server.borrow_and_update() {
            // Where it runs on this node, its port counts also while it is started anew.
            all.ports
                .push(port(Some(peer.ip().into()), peer.port(), "the API server's port"));
            all.addresses.insert(peer.ip(), "the address of the API server".into());
        }
        if let Some(host) = &*self.host.borrow_and_update() {
            all.ports.extend(host.ports.iter().cloned());
            for (address, what) in &host.addresses {
                let address: IpAddr = *address;
                all.addresses.entry(address).or_insert_with(|| what.clone());
            }
        }
        Some(all)
    }
}

async fn told<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        pending::<()>().await;
    }
}

fn port(at: Option<IpNet>, number: u16, whose: &str) -> ProtectedPorts {
    ProtectedPorts {
        protocol: Protocol::Tcp,
        at,
        numbers: number..=number,
        whose: whose.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f01_f06_what_is_told_is_put_together_once() {
        let (api_server, peers) = watch::channel(Vec::new());
        let (tell, needs) = watch::channel(None);
        let (ask, asked) = std::sync::mpsc::channel();
        let mut surroundings = Surroundings::new(&ServerSettings::default(), Peers::default(), Host { needs, ask });
        surroundings.api_server = peers;
        surroundings.ask();
        assert_eq!(asked.try_recv(), Ok(()));
        assert!(!surroundings.is_known());
        let ports = |surroundings: &mut Surroundings| {
            let Protected { addresses, ports } = surroundings.take()?;
            assert_eq!(surroundings.take(), None, "told once");
            let tell = |ports: &ProtectedPorts| format!("{} {:?}", ports.numbers.start(), ports.at);
            Some((addresses, ports.iter().map(tell).collect::<Vec<_>>()))
        };
        // Not the metrics, which are on loopback.
        let (addresses, first) = ports(&mut surroundings).unwrap();
        assert_eq!(first, ["10250 None", "10256 None"]);
        assert!(addresses.is_empty());
        surroundings.set_health_checks(vec![30_123]);
        assert_eq!(ports(&mut surroundings).unwrap().1[2..], ["30123 None"]);
        surroundings.set_health_checks(vec![30_123]);
        assert_eq!(ports(&mut surroundings), None);
        let address = IpAddr::from([192, 0, 2, 1]);
        tell.send_replace(Some(HostNeeds {
            addresses: [(address, "a gateway".into())].into(),
            ports: vec![port(None, 22, "a port on which the host listens")],
        }));
        assert!(surroundings.is_known());
        let (addresses, all) = ports(&mut surroundings).unwrap();
        assert_eq!(all[3..], ["22 None"]);
        assert_eq!(&*addresses[&address], "a gateway");
        // The server's address is more than a gateway.
        api_server.send_replace(vec![SocketAddr::new(address, 6443)]);
        let (addresses, all) = ports(&mut surroundings).unwrap();
        assert_eq!(all[3], "6443 Some(192.0.2.1/32)");
        assert_eq!(&*addresses[&address], "the address of the API server");
        drop((api_server, tell));
        assert_eq!(ports(&mut surroundings), None, "what nobody tells any more stays");
    }
}
