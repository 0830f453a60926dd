//! Proxies that the environment names, as kubeadm puts them into kube-proxy's DaemonSet.

#![allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longer than any wait of a test.
const LONG: Duration = Duration::from_secs(60);

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts the program with variables and a kubeconfig, and gives the first line of the request that arrives at a place.
fn first_line(server: &str, place: &TcpListener, variables: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    let kubeconfig = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        "users": [{"name": "c", "user": {"token": "x"}}],
    });
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_kube-ipvs"))
        .args(["--dry-run", "--hostname-override=n1", "--kubeconfig"])
        .arg(path)
        .env_clear()
        .envs(variables.iter().copied())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let mut daemon = Daemon(child.unwrap());
    place.set_nonblocking(true).unwrap();
    let start = Instant::now();
    let client = loop {
        match place.accept() {
            Ok((client, _)) => break client,
            Err(_) => assert!(daemon.0.try_wait().unwrap().is_none(), "the program ended"),
        }
        assert!(start.elapsed() < LONG, "nobody asked");
        std::thread::sleep(Duration::from_millis(20));
    };
    client.set_nonblocking(false).unwrap();
    BufReader::new(client).lines().next().unwrap().unwrap()
}

fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

#[test]
fn f10_the_proxy_of_the_environment_is_asked() {
    for (server, variable) in [
        ("http://192.0.2.9:6443", "HTTP_PROXY"),
        ("https://192.0.2.9:6443", "HTTPS_PROXY"),
    ] {
        let (proxy, address) = listen();
        let variables = [(variable, address.as_str()), ("NO_PROXY", "10.96.0.0/12,.svc")];
        assert_eq!(
            first_line(server, &proxy, &variables),
            "CONNECT 192.0.2.9:6443 HTTP/1.1"
        );
    }
}

/// The attack of the audit: a proxy that is no use, and `NO_PROXY` with the server.
#[test]
fn f10_a_server_of_no_proxy_is_followed_without_it() {
    for proxy in ["http://192.0.2.8:3128", "ftp://nowhere"] {
        let (server, address) = listen();
        let variables = [("HTTP_PROXY", proxy), ("HTTPS_PROXY", proxy), ("NO_PROXY", "127.0.0.1")];
        let asked = first_line(&format!("http://{address}"), &server, &variables);
        assert!(asked.starts_with("GET /api"), "{asked}");
    }
}
