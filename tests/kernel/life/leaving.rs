//! Where clients that are tied to an endpoint go when it leaves.

use std::net::{Ipv4Addr, SocketAddrV4};

use rustix::net::{AddressFamily, SocketType, sockopt};

use super::*;

const CART: &str = "10.96.1.2:80";

/// k/k#71809, k/k#81587 (T20): a client with session affinity to an endpoint that drains is not held there.
#[test]
fn affinity_moves_after_removal() {
    for mode in Mode::ALL {
        let world = mode.world();
        let manifests = examples();
        let _daemon = start(&world.node, manifests.path(), &[mode.flag(), &run_dir(&manifests)]);
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
        let real = format!("{address}:8080");
        eventually(&false, || mode.leads(&world.node, CART, &real));
        let second = ask_tcp(&world.client, cart).unwrap().0;
        assert_ne!(second, first);
        for _ in 0..5 {
            let answer = ask_tcp(&world.client, cart).unwrap().0;
            assert_eq!(answer, second, "{mode:?}: and stays where it went");
        }
        answer_rest(kept).expect("what was open goes on");
    }
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
    for mode in Mode::ALL {
        let world = mode.world();
        let manifests = examples();
        let _daemon = start(&world.node, manifests.path(), &[mode.flag(), &run_dir(&manifests)]);
        // Round robin needs three.
        let tied = (40_000..40_060).find(|port| {
            let (stream, name) = connect_from(&world.client, *port, web());
            // The server's end comes first, so that the client's port is free at once.
            answer_rest(stream).unwrap();
            name == "pod-a1"
        });
        set_first_endpoint(manifests.path(), false);
        eventually(&false, || mode.leads(&world.node, WEB, GOING));
        for _ in 0..3 {
            // The client's own memory of the closed connection is another matter.
            let (stream, name) = connect_from(&world.client, tied.expect("each is reached"), web());
            assert_ne!(name, "pod-a1", "{mode:?}");
            answer_rest(stream).unwrap();
        }
    }
}
