//! What the program answers over HTTP, and where.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::Value;

/// Settings of the servers for people and machines.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ServerSettings {
    /// `/healthz`, `/livez`; `None` = not served (`healthzBindAddress`).
    pub(crate) healthz: Option<SocketAddr>,
    /// `/metrics`, `/proxyMode` and others; `None` = not served (`metricsBindAddress`).
    pub(crate) metrics: Option<SocketAddr>,
    /// An address that cannot be bound ends the program, instead of being tried again (`bindAddressHardFail`).
    pub(crate) hard_fail: bool,
    /// `/debug/flags/v` is served (`enableProfiling`).
    pub(crate) profiling: bool,
    /// What `/configz` answers: the configuration in use, as kube-proxy writes it, under its group.
    pub(crate) configuration: Value,
    /// `/statusz` is served (gate `ComponentStatusz`).
    pub(crate) status: bool,
    /// Name and value of every flag, for `/flagz`; `None` = not served (gate `ComponentFlagz`).
    pub(crate) flags: Option<Vec<(String, String)>>,
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            healthz: Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 10256)),
            metrics: Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10249)),
            hard_fail: false,
            profiling: false,
            configuration: Value::Null,
            status: true,
            flags: Some(Vec::new()),
        }
    }
}
