//! The connection to the API server: where it is, who we are, how a dead one is noticed.

use std::path::PathBuf;
use std::time::Duration;

use http::{HeaderValue, Uri};
use hyper::rt::{Read, Write};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{Service, ServiceBuilder};
use tracing::info;

use crate::call::{CallObserver, Told};
use crate::error::Error;
use crate::peers::{Learn, Peers};
use crate::proxy::{self, Proxy, Scheme};

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
    /// Where connections lead is written there.
    pub peers: Peers,
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
    /// How long other Nodes stay known after the last service with an external or load-balancer IP went.
    pub other_nodes: Duration,
    /// The longest wait of their first list after the first such service came.
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
            long_node_list_every: Duration::from_secs(24 * 3600),
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
        let (found, proxy) = find(config).await?;
        let url = found.cluster_url.to_string();
        if let Some(Proxy { uri, .. }) = &proxy {
            info!(server = url, proxy = %uri, "the API server is asked through a proxy");
        }
        Ok(Self {
            config: config.clone(),
            client: client(found, proxy, config)?,
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

    pub(crate) fn peers(&self) -> &Peers {
        &self.config.peers
    }

    /// Makes the client anew: certificates and tokens on disk may have been replaced.
    pub(crate) async fn renew(&mut self) -> Result<(), Error> {
        let (found, proxy) = find(&self.config).await?;
        self.client = client(found, proxy, &self.config)?;
        Ok(())
    }
}

async fn find(config: &ApiConfig) -> Result<(Config, Option<Proxy>), Error> {
    let mut named = None;
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
            let mut file = Kubeconfig::read_from(path).map_err(wrong)?;
            named = take_proxy(&mut file);
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
    let proxy = proxy::choose(&found.cluster_url, named.as_deref(), |name| std::env::var(name).ok())?;
    Ok((found, proxy))
}

/// The `proxy-url` of the current context's cluster. In its place is one that is not used, so that kube does not look for
/// one in the environment.
fn take_proxy(file: &mut Kubeconfig) -> Option<String> {
    let context = file
        .contexts
        .iter()
        .find(|context| Some(&context.name) == file.current_context.as_ref());
    let of_context = context
        .and_then(|context| context.context.as_ref())
        .map(|context| context.cluster.clone());
    let mut named = None;
    for cluster in &mut file.clusters {
        let is_current = Some(&cluster.name) == of_context.as_ref();
        if let Some(cluster) = &mut cluster.cluster {
            let url = cluster.proxy_url.replace("http://unused.invalid".to_owned());
            named = named.or(url.filter(|_| is_current));
        }
    }
    named
}

/// The way of connections to the API server: TCP, a proxy's tunnel, TLS.
fn client(config: Config, proxy: Option<Proxy>, told: &ApiConfig) -> Result<Client, Error> {
    let observer = &told.observer;
    // Beside the proxy's, since others on this node may go there themselves.
    let server = told.peers.of(&config.cluster_url);
    let Some(proxy) = proxy else {
        return over(tcp(server), config, observer);
    };
    let tcp = tcp(told.peers.of(&proxy.uri));
    let user = proxy.authorization();
    match proxy.scheme {
        Scheme::Http => over(tunnel(proxy.uri, tcp, user), config, observer),
        Scheme::Https => {
            let tls = config.rustls_https_connector_with_connector(tcp);
            let tls = tls.map_err(|source| wrong(&config, source))?;
            over(tunnel(proxy.uri, tls, user), config, observer)
        }
        Scheme::Socks5 => {
            let socks = SocksV5::new(proxy.uri, tcp);
            match proxy.user {
                Some((name, password)) => over(socks.with_auth(name, password), config, observer),
                None => over(socks, config, observer),
            }
        }
    }
}

fn tcp(resolver: Learn) -> HttpConnector<Learn> {
    let mut tcp = HttpConnector::new_with_resolver(resolver);
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_keepalive(Some(KEEPALIVE_IDLE));
    tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    tcp
}

/// CONNECT, for plain HTTP, too.
fn tunnel<C>(proxy: Uri, connector: C, user: Option<HeaderValue>) -> Tunnel<C> {
    let tunnel = Tunnel::new(proxy, connector);
    match user {
        Some(user) => tunnel.with_auth(user),
        None => tunnel,
    }
}

fn wrong(config: &Config, source: kube::Error) -> Error {
    Error::Client {
        url: config.cluster_url.to_string(),
        source: Box::new(source),
    }
}

fn over<C>(connector: C, config: Config, observer: &CallObserver) -> Result<Client, Error>
where
    C: Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: hyper_util::client::legacy::connect::Connection + Read + Write + Send + Unpin + 'static,
    C::Future: Send + 'static,
    C::Error: Into<tower::BoxError>,
{
    let wrong = |source| wrong(&config, source);
    let tls = config.rustls_https_connector_with_connector(connector).map_err(wrong)?;
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
