//! Where connections to the API server lead, told to who must keep these addresses free (T41).

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::{io, vec};

use http::Uri;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use tokio::sync::{Notify, watch};
use tower::Service;

/// Addresses that are remembered. A name that always has others must not fill the memory; one that was not seen for so
/// long is no peer any more.
const MOST: usize = 64;

/// The peers: the API server's addresses, and those of the proxy that leads to it. One that was learned stays, also where
/// its name is not resolved any more, until as many newer ones have come as are remembered.
#[derive(Clone, Debug, Default)]
pub struct Peers(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    known: watch::Sender<Vec<SocketAddr>>,
    freed: Notify,
}

impl Peers {
    /// Hears of all of them, the newest first, whenever one comes.
    pub fn subscribe(&self) -> watch::Receiver<Vec<SocketAddr>> {
        self.0.known.subscribe()
    }

    /// What kept the peers away is gone: what waits for an answer, or to be tried again, is asked at once. A connection
    /// that was begun before may have our own address, which is not ours any more, and end by a timeout alone.
    pub fn freed(&self) {
        self.0.freed.notify_waiters();
    }

    /// Waits for [`freed`](Self::freed).
    pub(crate) async fn until_freed(&self) {
        self.0.freed.notified().await;
    }

    /// Remembers these as the newest.
    pub(crate) fn learn(&self, addresses: impl IntoIterator<Item = SocketAddr>) {
        for address in addresses {
            let address = SocketAddr::new(address.ip().to_canonical(), address.port());
            self.0.known.send_if_modified(|all| {
                let place = all.iter().position(|known| *known == address);
                if let Some(place) = place {
                    all.remove(place);
                }
                all.insert(0, address);
                all.truncate(MOST);
                place.is_none()
            });
        }
    }

    /// Remembers a URL whose host is an address, as no resolver is asked for that. Returns what remembers the others.
    pub(crate) fn of(&self, uri: &Uri) -> Learn {
        let port = uri.port_u16().unwrap_or(match uri.scheme_str() {
            Some("http") => 80,
            _ => 443,
        });
        let host = uri.host().unwrap_or_default();
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        self.learn(literal.map(|ip| SocketAddr::new(ip, port)));
        Learn {
            inner: GaiResolver::new(),
            peers: self.clone(),
            port,
        }
    }
}

/// The usual resolver, whose answers are remembered before they are used.
#[derive(Clone)]
pub(crate) struct Learn {
    inner: GaiResolver,
    peers: Peers,
    port: u16,
}

impl Service<Name> for Learn {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, io::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (peers, port) = (self.peers.clone(), self.port);
        let answer = self.inner.call(name);
        Box::pin(async move {
            let all: Vec<_> = answer.await?.collect();
            peers.learn(all.iter().map(|address| SocketAddr::new(address.ip(), port)));
            Ok(all.into_iter())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(peers: &Peers) -> Vec<String> {
        peers.subscribe().borrow().iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn f01_addresses_of_urls_and_answers_are_learned() {
        let peers = Peers::default();
        for url in [
            "https://192.0.2.1:6443",
            "https://[2001:db8::1]",
            "http://192.0.2.2/",
            "https://a.example",
        ] {
            let _ = peers.of(&url.parse().unwrap());
        }
        assert_eq!(told(&peers), ["192.0.2.2:80", "[2001:db8::1]:443", "192.0.2.1:6443"]);
        let mut resolver = peers.of(&"https://localhost:6443".parse().unwrap());
        let answer = resolver.call("localhost".parse().unwrap()).await.unwrap();
        assert!(answer.count() >= 1);
        assert!(told(&peers).contains(&"127.0.0.1:6443".to_owned()));
        assert!(
            told(&peers).contains(&"192.0.2.1:6443".to_owned()),
            "what was learned stays"
        );
    }

    #[test]
    fn f01_only_what_is_new_is_told_and_the_oldest_goes() {
        let peers = Peers::default();
        let mut heard = peers.subscribe();
        let address = |number| SocketAddr::from(([192, 0, 2, number], 443));
        peers.learn([address(1)]);
        assert!(heard.has_changed().unwrap());
        heard.mark_unchanged();
        peers.learn([address(1)]);
        peers.learn(["[::ffff:192.0.2.1]:443".parse().unwrap()]);
        assert!(!heard.has_changed().unwrap());
        for number in 2..=64 {
            peers.learn([address(number)]);
            peers.learn([address(1)]);
        }
        assert_eq!(heard.borrow().len(), MOST);
        peers.learn([address(65)]);
        assert_eq!(heard.borrow().len(), MOST);
        assert!(
            heard.borrow().contains(&address(1)),
            "what is used stays, however old it is"
        );
        assert!(!heard.borrow().contains(&address(2)));
    }
}
