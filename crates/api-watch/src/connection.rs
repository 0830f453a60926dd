//! The connection to the API server: where it is, who we are, how a dead one is noticed.

use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::ServiceBuilder;

use crate::call::{CallObserver, Told};
use crate::error::Error;

/// A connection is dead when nothing came for 20 s and three probes, 5 s apart, had no answer: 35 s.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(20);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_RETRIES: u32 = 3;
/// Sent data that is not acknowledged for so long ends a connection, too.
const UNACKNOWLEDGED: Duration = Duration::from_secs(35);
const CONNECT: Duration = Duration::from_secs(10);

/// Where the API server is, and which node asks.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// kubeconfig; its current context is used.
    pub kubeconfig: Option<PathBuf>,
    /// URL; overrides the one in the kubeconfig. Without either, the service account of the pod is used.
    pub master: Option<String>,
    /// This node's name: the only Node that is always followed.
    pub node_name: String,
    /// How long something is waited for.
    pub patience: Patience,
    /// Who is told of each request.
    pub observer: CallObserver,
}

/// How long something is waited for: mostly silence, until it counts as a fault.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the head of a response.
    pub response: Duration,
    /// In a running watch; a server sends a bookmark about every minute.
    pub watch: Duration,
    /// In a streamed list; a server without WatchList may never end it.
    pub streamed_list: Duration,
    /// What the server could not do is asked for again with the first list after so long.
    pub ask_again: Duration,
    /// Other Nodes are known for so long after nobody wants them any more.
    pub other_nodes: Duration,
    /// Their first list comes within so long after somebody wants them.
    pub node_list_spread: Duration,
    /// Their next list comes within half and one and a half of it.
    pub node_list_every: Duration,
    /// Where nodes have more addresses than the short list tells: their long list comes within half and one and a half
    /// of it.
    pub long_node_list_every: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            response: Duration::from_secs(30),
            watch: Duration::from_secs(150),
            streamed_list: Duration::from_secs(10),
            ask_again: Duration::from_secs(1800),
            other_nodes: Duration::from_secs(60),
            node_list_spread: Duration::from_secs(60),
            node_list_every: Duration::from_secs(1200),
            long_node_list_every: Duration::from_secs(12 * 3600),
        }
    }
}

/// How to reach the server, and a client made from it.
#[derive(Clone)]
pub(crate) struct Connection {
    config: ApiConfig,
    pub(crate) client: Client,
    url: String,
}

impl Connection {
    /// Reads what the configuration names. No connection is made yet.
    pub(crate) async fn new(config: &ApiConfig) -> Result<Self, Error> {
        let found = find(config).await?;
        let url = found.cluster_url.to_string();
        Ok(Self {
            config: config.clone(),
            client: client(found, &config.observer)?,
            url,
        })
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn node_name(&self) -> &str {
        &self.config.node_name
    }

    pub(crate) fn patience(&self) -> Patience {
        self.config.patience
    }

    /// Makes the client anew: certificates and tokens on disk may have been replaced.
    pub(crate) async fn renew(&mut self) -> Result<(), Error> {
        self.client = client(find(&self.config).await?, &self.config.observer)?;
        Ok(())
    }
}

async fn find(config: &ApiConfig) -> Result<Config, Error> {
    let master = match &config.master {
        Some(url) => {
            let parsed: Uri = url.parse().map_err(|source| Error::Master {
                url: url.clone(),
                source,
            })?;
            Some(parsed)
        }
        None => None,
    };
    let mut found = match (&config.kubeconfig, master.clone()) {
        (Some(path), _) => {
            let wrong = |source| Error::Kubeconfig {
                path: path.clone(),
                source: Box::new(source),
            };
            let file = Kubeconfig::read_from(path).map_err(wrong)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(wrong)?
        }
        (None, Some(url)) => Config::new(url),
        (None, None) => Config::incluster().map_err(|source| Error::InCluster(Box::new(source)))?,
    };
    if let Some(url) = master {
        found.cluster_url = url;
    }
    Ok(found)
}

fn client(config: Config, observer: &CallObserver) -> Result<Client, Error> {
    if let Some(url) = &config.proxy_url {
        return Err(Error::Proxy { url: url.to_string() });
    }
    let wrong = |source| Error::Client {
        url: config.cluster_url.to_string(),
        source: Box::new(source),
    };
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(KEEPALIVE_IDLE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let tls = config.rustls_https_connector_with_connector(tcp).map_err(wrong)?;
    let transport = Told {
        inner: hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(tls),
        observer: observer.clone(),
    };
    let stack = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(wrong)?)
        .layer(config.extra_headers_layer().map_err(wrong)?)
        .map_err(Into::<tower::BoxError>::into)
        .service(transport);
    Ok(ClientBuilder::new(stack, config.default_namespace).build())
}
