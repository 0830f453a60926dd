//! What can go wrong between objects and us.

use std::path::PathBuf;

/// Errors that end an operation. What is wrong with one object or file ends none: it is a rejection, or a warning.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kubeconfig cannot be read, or lacks something.
    #[error("kubeconfig {}", path.display())]
    Kubeconfig {
        /// Its path.
        path: PathBuf,
        /// The cause.
        source: Box<kube::config::KubeconfigError>,
    },
    /// Neither kubeconfig nor master was given, and this is not a pod.
    #[error("no --kubeconfig, no --master, and no service account of a pod")]
    InCluster(#[source] Box<kube::config::InClusterError>),
    /// `--master` is not a URL.
    #[error("master {url:?} is not a URL")]
    Master {
        /// What was given.
        url: String,
        /// The cause.
        source: http::uri::InvalidUri,
    },
    /// The connection goes through a proxy that cannot be used.
    #[error("the proxy that {named_by} names {reason}")]
    Proxy {
        /// The environment variable, or the field.
        named_by: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Certificates or credentials cannot be used.
    #[error("set up the connection to {url}")]
    Client {
        /// The API server.
        url: String,
        /// The cause.
        source: Box<kube::Error>,
    },
    /// The directory cannot be listed.
    #[error("read directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Nobody takes events any more: the reader of the channel is gone.
    #[error("nobody takes events any more")]
    Closed,
}
