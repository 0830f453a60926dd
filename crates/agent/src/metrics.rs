//! Numbers for Prometheus: who counts writes atomics, who reads gets all of them as text. docs/metrics.md has the list.
//!
//! Nothing that the sync thread writes has a lock. Names and help are written down beside the values, once.

mod build;
pub(crate) mod histogram;
pub(crate) mod kube_proxy;
pub(crate) mod own;
mod page;
pub(crate) mod process;
mod rest_client;
pub(crate) mod slis;
mod virtual_servers;

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, prometheus_text};
use prometheus_client::registry::Registry;

use crate::config::FeatureGate;
use crate::mode::{Choice, Mode};
use crate::progress::Progress;
use kube_proxy::KubeProxy;
use own::Own;
use page::Page;
use rest_client::RestClient;
use virtual_servers::VirtualServers;

pub(crate) use prometheus_text::CONTENT_TYPE;

/// All metrics of the process.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) kube_proxy: KubeProxy,
    pub(crate) own: Own,
    pub(crate) rest_client: RestClient,
    /// Of the IPVS mode alone.
    virtual_servers: Option<VirtualServers>,
    progress: Arc<Progress>,
    gates: Vec<FeatureGate>,
}

impl Metrics {
    pub(crate) fn new(choice: Choice, progress: Arc<Progress>, gates: Vec<FeatureGate>) -> Self {
        Self {
            kube_proxy: KubeProxy::new(choice.effective),
            virtual_servers: (choice.effective == Mode::Ipvs).then(VirtualServers::default),
            own: Own::new(choice),
            rest_client: RestClient::default(),
            progress,
            gates,
        }
    }

    /// The page `/metrics`. Asks IPVS, so it is nothing for a thread that must not wait.
    pub(crate) fn render(self: &Arc<Self>) -> String {
        render(Arc::clone(self))
    }
}

/// The page of one collector.
fn render(collector: impl Collector) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(collector));
    let mut text = String::new();
    // Writing into a String does not fail.
    let _ = prometheus_text::encode(&mut text, &registry);
    text
}

impl Collector for Metrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Page(encoder);
        let queue_age = self.progress.oldest().unwrap_or_default();
        self.own.write(&mut page, queue_age.as_secs_f64())?;
        if let Some(virtual_servers) = &self.virtual_servers {
            virtual_servers.write(&mut page, &self.own.survey.load())?;
        }
        self.kube_proxy.write(&mut page)?;
        build::write(&mut page, &self.gates)?;
        process::write(&mut page)?;
        self.rest_client.write(&mut page)
    }
}
