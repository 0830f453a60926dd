//! Where clients that are tied to an endpoint go when it leaves.

use std::net::{Ipv4Addr, SocketAddrV4};

use rustix::net::{AddressFamily, SocketType, sockopt};

use super::*;

const CART: &str = "10.96.1.2:80";

/// k/k#71809, k/k#81587 (T20): a client with session affinity to an endpoint that drains is not held there.
#[test]
fn affinity_moves_after_removal() {
    let world = World::new().unwrap();
    let manifests = examples();
    let _daemon = start(&world.node, manifests.path(), &[]);
    let cart: SocketAddr = CART.parse().unwrap();
    let (kept, first) = connect(&world.client, cart);
    for _ in 0..5 {
        assert_eq!(ask_tcp(&world.client, cart).unwrap().0, first, "affinity holds");
    }
    let address = testbed::world::PODS.iter().find(|pod| pod.name == first).unwrap().v4;
    let file = manifests.path().join("30-cart.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let lines = text.lines().filter(|line| !line.contains(&format!("[{address}]")));
    fs::write(&file, lines.collect::<Vec<_>>().join("\n")).unwrap();
    eventually(&Some("0".to_owned()), || {
        weight(&world.node, CART, &format!("{address}:8080"))
    });
    let second = ask_tcp(&world.client, cart).unwrap().0;
    assert_ne!(second, first);
    for _ in 0..5 {
        assert_eq!(
            ask_tcp(&world.client, cart).unwrap().0,
            second,
            "and stays where it went"
        );
    }
    answer_rest(kept).expect("what was open goes on");
}

/// A connection from a port of the client's own choice.
fn connect_from(netns: &Netns, port: u16, to: SocketAddr) -> (TcpStream, String) {
    netns
        .run(|| {
            let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
            sockopt::set_socket_reuseaddr(&socket, true)?;
            rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))?;
            rustix::net::connect(&socket, &to)?;
            let stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(std::time::Duration::from_secs(3)))?;
            let mut line = String::new();
            BufReader::new(stream.try_clone()?).read_line(&mut line)?;
            Ok((stream, line.split(' ').next().unwrap_or_default().to_owned()))
        })
        .unwrap()
}

/// k/k#81775: the kernel remembers a closed connection for two minutes; one from the same port meanwhile is a new one,
/// and not for the endpoint that is gone.
#[test]
fn source_port_reuse_after_scale_down() {
    let world = World::new().unwrap();
    let manifests = examples();
    let _daemon = start(&world.node, manifests.path(), &[]);
    let mut tied = Vec::new();
    for port in 40_000..40_003 {
        let (stream, name) = connect_from(&world.client, port, web());
        if name == "pod-a1" {
            tied.push(port);
        }
        // The server's end comes first, so that the client's port is free at once.
        answer_rest(stream).unwrap();
    }
    assert_eq!(tied.len(), 1, "round robin reaches each");
    set_first_endpoint(manifests.path(), false);
    eventually(&Some("0".to_owned()), || weight(&world.node, WEB, GOING));
    for _ in 0..3 {
        // The client's own memory of the closed connection is another matter.
        let (stream, name) = connect_from(&world.client, tied[0], web());
        assert_ne!(name, "pod-a1");
        answer_rest(stream).unwrap();
    }
}
