//! An API server behind a proxy that makes tunnels.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::io::{Read, Write, copy};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use api_watch::{ApiConfig, ApiServer, CallObserver, Patience, Peers};
use serde_json::json;
use service_model::{Event, Kind};
use testbed::fake_api::FakeApi;
use tokio::sync::watch;
use tokio::time::timeout;

/// Longer than any wait of a test.
const LONG: Duration = Duration::from_secs(60);

/// A proxy that leads every tunnel to one place, whatever it is asked for, and tells the heads of what it was asked.
fn proxy(to: SocketAddr) -> (SocketAddr, mpsc::Receiver<String>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, heads) = mpsc::channel();
    thread::spawn(move || {
        for client in listener.incoming() {
            let tell = tell.clone();
            thread::spawn(move || serve(client?, to, &tell));
        }
        Ok::<_, std::io::Error>(())
    });
    (address, heads)
}

fn serve(mut client: TcpStream, to: SocketAddr, tell: &mpsc::Sender<String>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.extend_from_slice(&byte);
    }
    let _ = tell.send(String::from_utf8_lossy(&head).into_owned());
    let mut server = TcpStream::connect(to)?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || copy(&mut from_client, &mut to_server).map(|_| to_server.shutdown(Shutdown::Write)));
    copy(&mut server, &mut client)?;
    Ok(())
}

#[tokio::test]
async fn f10_a_server_behind_the_proxy_of_the_kubeconfig_is_followed() {
    let api = FakeApi::start().await.unwrap();
    let (address, heads) = proxy(api.address);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    // Nobody has the server's address; only the proxy leads to it.
    let cluster = |proxy: &str| json!({"server": "http://192.0.2.9:6443", "proxy-url": proxy});
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "this",
        "clusters": [
            {"name": "other", "cluster": cluster("http://192.0.2.8:1")},
            {"name": "ours", "cluster": cluster(&format!("http://me:p%40ss@{address}"))},
        ],
        "contexts": [
            {"name": "that", "context": {"cluster": "other", "user": "me"}},
            {"name": "this", "context": {"cluster": "ours", "user": "me"}},
        ],
        "users": [{"name": "me", "user": {"token": "x"}}],
    });
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    let peers = Peers::default();
    let server = ApiServer::connect(&ApiConfig {
        kubeconfig: Some(path),
        master: None,
        node_name: "n1".to_owned(),
        patience: Patience::default(),
        observer: CallObserver::default(),
        peers: peers.clone(),
    })
    .await
    .unwrap();
    let (sender, mut batches) = tokio::sync::mpsc::channel(16);
    tokio::spawn(server.watch(sender, watch::channel(false).1));
    timeout(LONG, async {
        while !batches.recv().await.unwrap().contains(&Event::Complete(Kind::Service)) {}
    })
    .await
    .unwrap();
    // Neither must be taken by a Service (F1).
    let learned = peers.subscribe();
    for one in [address, ([192, 0, 2, 9], 6443).into()] {
        assert!(learned.borrow().contains(&one), "{:?}", learned.borrow());
    }
    let head = heads.recv().unwrap().to_lowercase();
    assert!(head.starts_with("connect 192.0.2.9:6443 http/1.1\r\n"), "{head}");
    assert!(
        head.contains("\r\nproxy-authorization: basic bwu6cebzcw==\r\n"),
        "{head}"
    );
}
