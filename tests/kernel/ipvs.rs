//! The crate `ipvs` against a real kernel: what it writes is read by ipvsadm and ip, what they write by it.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ipvs::{
    Command, Family, Flags, Forward, Ipvs, Persistence, Protocol, RealServer, RealServerConfig, SchedulerName,
    Timeouts, VipCommand, Vips, VirtualServer, VirtualServerConfig, proc_table,
};
use testbed::netns::{Netns, isolate};

use crate::seen;

fn server(address: &str, protocol: Protocol) -> VirtualServer {
    let address: SocketAddr = address.parse().unwrap();
    VirtualServer::Address {
        address: address.ip(),
        port: address.port(),
        protocol,
    }
}

fn config(scheduler: &str) -> VirtualServerConfig {
    VirtualServerConfig {
        scheduler: SchedulerName::new(scheduler).unwrap(),
        flags: Flags::default(),
        persistence: None,
    }
}

fn real(address: &str) -> RealServer {
    RealServer {
        address: address.parse().unwrap(),
    }
}

fn all(ipvs: &mut Ipvs, commands: &[Command]) {
    for (answer, command) in ipvs.execute(commands).unwrap().into_iter().zip(commands) {
        answer.unwrap_or_else(|error| panic!("{command}: {error}"));
    }
}

#[test]
fn what_is_written_is_what_ipvsadm_reads_and_what_is_read_again() {
    isolate().unwrap();
    let here = Netns::current().unwrap();
    let mut ipvs = Ipvs::open().unwrap();
    let mut commands = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        for (address, to) in [("10.0.0.1:80", "10.1.0.1:8080"), ("[fd00::1]:80", "[fd01::1]:8080")] {
            let server = server(address, protocol);
            commands.push(Command::NewService(server, config("rr")));
            commands.push(Command::NewDest(server, real(to), RealServerConfig::masquerade(65_535)));
        }
    }
    for (mark, family, prefix_len) in [(7, Family::V4, 24), (8, Family::V6, 64)] {
        let server = VirtualServer::Mark { mark, family };
        let persistence = Some(Persistence {
            timeout: 86_400,
            prefix_len,
        });
        commands.push(Command::NewService(
            server,
            VirtualServerConfig {
                persistence,
                ..config("wlc")
            },
        ));
    }
    let every = VirtualServerConfig {
        flags: Flags::ONE_PACKET,
        ..config("sh")
    };
    commands.push(Command::NewService(server("10.0.0.2:53", Protocol::Udp), every));
    let flags = Flags(Flags::MH_FALLBACK.0 | Flags::MH_PORT.0);
    commands.push(Command::NewService(
        server("10.0.0.3:53", Protocol::Tcp),
        VirtualServerConfig { flags, ..config("mh") },
    ));
    let limited = RealServerConfig {
        upper_threshold: 100,
        lower_threshold: 50,
        ..RealServerConfig::masquerade(0)
    };
    commands.push(Command::NewDest(
        server("10.0.0.3:53", Protocol::Tcp),
        real("10.1.0.2:53"),
        limited,
    ));
    all(&mut ipvs, &commands);
    // -S leaves out the thresholds.
    let saved = commands
        .iter()
        .map(|command| command.to_string().replace(" -x 100 -y 50", ""))
        .collect();
    assert_eq!(seen::ipvsadm(&here), saved);
    let thresholds = here.sh("ipvsadm -Ln --thresholds -t 10.0.0.3:53").unwrap();
    assert!(thresholds.contains("100        50"), "{thresholds}");

    for command in &commands {
        match *command {
            Command::NewService(server, config) => {
                let state = ipvs.virtual_server(&server).unwrap().unwrap();
                assert_eq!((state.server, state.config), (server, config));
            }
            Command::NewDest(server, real, config) => {
                let reals = ipvs.real_servers(&server).unwrap();
                assert_eq!(
                    reals.iter().map(|real| (real.server, real.config)).collect::<Vec<_>>(),
                    [(real, config)]
                );
            }
            _ => unreachable!(),
        }
    }
    assert_eq!(ipvs.virtual_servers().unwrap().len(), 10);
    assert_eq!(
        ipvs.virtual_server(&server("10.9.9.9:1", Protocol::Tcp))
            .unwrap()
            .map(|_| ()),
        None
    );
    assert_eq!(
        ipvs.real_servers(&server("10.9.9.9:1", Protocol::Tcp)).unwrap().len(),
        0
    );

    // Change and remove.
    let tcp = server("10.0.0.1:80", Protocol::Tcp);
    let weight = RealServerConfig::masquerade(0);
    all(
        &mut ipvs,
        &[
            Command::SetService(tcp, config("lc")),
            Command::SetDest(tcp, real("10.1.0.1:8080"), weight),
            Command::DelDest(server("[fd00::1]:80", Protocol::Tcp), real("[fd01::1]:8080")),
            Command::DelService(server("10.0.0.1:80", Protocol::Udp)),
        ],
    );
    let now = seen::ipvsadm(&here);
    assert!(
        now.contains("-A -t 10.0.0.1:80 -s lc") && now.contains("-a -t 10.0.0.1:80 -r 10.1.0.1:8080 -m -w 0"),
        "{now:?}"
    );
    assert!(
        !now.iter()
            .any(|line| line.contains("fd01::1]:8080") && line.contains(" -t "))
            && !now.iter().any(|line| line.contains("-u 10.0.0.1:80"))
    );
    ipvs.flush().unwrap();
    assert_eq!(seen::ipvsadm(&here).len(), 0);
}

#[test]
fn all_fourteen_schedulers() {
    isolate().unwrap();
    let here = Netns::current().unwrap();
    let mut ipvs = Ipvs::open().unwrap();
    for (number, scheduler) in service_model::Scheduler::ALL.iter().enumerate() {
        let server = server(&format!("10.0.0.{}:80", number + 1), Protocol::Tcp);
        all(&mut ipvs, &[Command::NewService(server, config(scheduler.as_str()))]);
        let line = format!("-A -t 10.0.0.{}:80 -s {scheduler}", number + 1);
        assert!(seen::ipvsadm(&here).contains(&line), "{line}");
    }
    assert_eq!(seen::ipvsadm(&here).len(), 14);
}

#[test]
fn errnos_are_those_that_the_proxy_counts_on() {
    isolate().unwrap();
    let mut ipvs = Ipvs::open().unwrap();
    let (there, missing) = (
        server("10.0.0.1:80", Protocol::Tcp),
        server("10.0.0.2:80", Protocol::Tcp),
    );
    let (a, b) = (real("10.1.0.1:80"), real("10.1.0.2:80"));
    let weight = RealServerConfig::masquerade(1);
    let mut check = |command: Command, errno: i32| {
        let answer = ipvs.execute(&[command]).unwrap().remove(0);
        assert_eq!(
            answer.as_ref().err().and_then(ipvs::Error::errno).unwrap_or(0),
            errno,
            "{command}: {answer:?}"
        );
    };
    check(Command::NewService(there, config("best")), libc::ENOENT);
    check(Command::NewService(there, config("rr")), 0);
    check(Command::NewService(there, config("rr")), libc::EEXIST);
    check(Command::SetService(missing, config("rr")), libc::ESRCH);
    check(Command::SetService(there, config("best")), libc::ENOENT);
    check(Command::DelService(missing), libc::ESRCH);
    check(Command::NewDest(missing, a, weight), libc::ESRCH);
    check(Command::NewDest(there, a, weight), 0);
    check(Command::NewDest(there, a, weight), libc::EEXIST);
    check(Command::SetDest(there, b, weight), libc::ENOENT);
    check(Command::DelDest(there, b), libc::ENOENT);
    check(Command::DelDest(missing, b), libc::ESRCH);
}

#[test]
fn a_refused_command_does_not_touch_its_neighbors() {
    isolate().unwrap();
    let here = Netns::current().unwrap();
    let mut ipvs = Ipvs::open().unwrap();
    // Every third is refused, over several batches.
    let commands: Vec<_> = (0..3000_u16)
        .map(|number| {
            let address = IpAddr::from([10, 0, number.to_be_bytes()[0], number.to_be_bytes()[1]]);
            let scheduler = if number % 3 == 0 { "best" } else { "rr" };
            Command::NewService(
                VirtualServer::Address {
                    address,
                    port: 80,
                    protocol: Protocol::Tcp,
                },
                config(scheduler),
            )
        })
        .collect();
    let answers = ipvs.execute(&commands).unwrap();
    for (number, answer) in answers.iter().enumerate() {
        assert_eq!(answer.is_err(), number % 3 == 0, "{number}: {answer:?}");
    }
    assert_eq!(seen::ipvsadm(&here).len(), 2000);
    let error = answers[0].as_ref().unwrap_err();
    let text = format!("{error}: {}", std::error::Error::source(error).unwrap());
    assert!(
        text.contains("10.0.0.0:80") && text.contains("IPVS_CMD_NEW_SERVICE") && text.contains("ENOENT"),
        "{text}"
    );
}

#[test]
fn ten_thousand_virtual_servers_with_five_real_servers_each() {
    isolate().unwrap();
    let mut ipvs = Ipvs::open().unwrap();
    let commands = crate::load::table(10_000, 5);
    let before = ipvs.counters();
    all(&mut ipvs, &commands);
    let after = ipvs.counters();
    assert_eq!(after.messages - before.messages, 60_000);
    // Batches: hundreds of messages for each system call.
    assert!(after.system_calls - before.system_calls < 2_000, "{after:?}");

    // The kernel's text table says the same as the commands, and as netlink for some.
    let table = proc_table::read().unwrap();
    assert_eq!(table.len(), 10_000);
    assert_eq!(
        table.iter().map(|entry| entry.real_servers.len()).sum::<usize>(),
        50_000
    );
    for entry in table.iter().step_by(997) {
        let mut by_netlink: Vec<_> = ipvs
            .real_servers(&entry.server)
            .unwrap()
            .iter()
            .map(|real| real.server)
            .collect();
        let mut by_text: Vec<_> = entry.real_servers.iter().map(|real| real.server).collect();
        by_netlink.sort_unstable();
        by_text.sort_unstable();
        assert_eq!(by_netlink, by_text);
    }
    assert_eq!(ipvs.virtual_servers().unwrap().len(), 10_000);
}

#[test]
fn the_text_table_tells_what_netlink_tells() {
    isolate().unwrap();
    let here = Netns::current().unwrap();
    for line in [
        "-A -t 10.0.0.1:80 -s mh -p 100 -b mh-port",
        "-A -u [fd00::1]:53 -s rr -o",
        "-A -f 77 -s wlc -p 30 -M 255.255.0.0",
        "-A -f 78 -6 -s ovf",
        "-A --sctp-service 10.0.0.1:99 -s sh",
        "-a -t 10.0.0.1:80 -r 10.1.0.1:1 -m -w 9",
        "-a -t 10.0.0.1:80 -r 10.1.0.1:80 -g",
        "-a -t 10.0.0.1:80 -r 10.1.0.2:80 -i",
        "-a -u [fd00::1]:53 -r [fd01::1]:53 -m -w 0",
        "-a -f 78 -6 -r [fd01::1]:53 -m",
    ] {
        here.sh(&format!("ipvsadm {line}")).unwrap();
    }
    let mut ipvs = Ipvs::open().unwrap();
    let states = ipvs.virtual_servers().unwrap();
    let mut table = proc_table::read().unwrap();
    assert_eq!((states.len(), table.len()), (5, 5));
    for state in states {
        let at = table
            .iter()
            .position(|entry| entry.server == state.server)
            .expect("in both");
        let entry = table.swap_remove(at);
        assert_eq!(entry.scheduler, state.config.scheduler);
        let mut by_netlink: Vec<_> = ipvs
            .real_servers(&state.server)
            .unwrap()
            .iter()
            .map(|r| (r.server, r.config.forward, r.config.weight))
            .collect();
        let mut by_text: Vec<_> = entry
            .real_servers
            .iter()
            .map(|r| (r.server, r.forward, r.weight))
            .collect();
        by_netlink.sort_by_key(|real| real.0);
        by_text.sort_by_key(|real| real.0);
        assert_eq!(by_netlink, by_text);
        assert!(
            by_netlink
                .iter()
                .all(|real| matches!(real.1, Forward::Masquerade | Forward::Route | Forward::Tunnel))
        );
    }
}

#[test]
fn timeouts_information_and_statistics() {
    let world = testbed::world::World::new().unwrap();
    world
        .node
        .run(|| {
            let mut ipvs = Ipvs::open()?;
            let all_of = ipvs.timeouts()?;
            assert_eq!(
                all_of,
                Timeouts {
                    tcp: 900,
                    tcp_fin: 120,
                    udp: 300
                }
            );
            ipvs.set_timeouts(Timeouts {
                tcp: 0,
                tcp_fin: 0,
                udp: 42,
            })?;
            assert_eq!(ipvs.timeouts()?, Timeouts { udp: 42, ..all_of });
            let info = ipvs.info()?;
            assert_eq!((info.version >> 16, info.version >> 8 & 0xff), (1, 2), "{info:?}");
            let server = server("192.0.2.10:7777", Protocol::Tcp);
            all(
                &mut ipvs,
                &[
                    Command::NewService(server, config("rr")),
                    Command::NewDest(server, real("10.244.1.11:8080"), RealServerConfig::masquerade(1)),
                ],
            );
            Ok(())
        })
        .unwrap();
    world.node.sh("sysctl -qw net.ipv4.ip_forward=1").unwrap();
    for _ in 0..3 {
        testbed::world::ask_tcp(&world.client, "192.0.2.10:7777".parse().unwrap()).unwrap();
    }
    world
        .node
        .run(|| {
            let mut ipvs = Ipvs::open()?;
            let server = server("192.0.2.10:7777", Protocol::Tcp);
            // The kernel adds its counters up every two seconds (net/netfilter/ipvs/ip_vs_est.c).
            let deadline = Instant::now() + Duration::from_secs(60);
            let mut state = ipvs.virtual_server(&server)?.unwrap();
            while state.statistics.connections == 0 && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(200));
                state = ipvs.virtual_server(&server)?.unwrap();
            }
            assert_eq!(state.statistics.connections, 3);
            assert!(
                state.statistics.packets_in >= 9 && state.statistics.bytes_out > 0,
                "{:?}",
                state.statistics
            );
            while ipvs.real_servers(&server)?[0].statistics.connections == 0 && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(200));
            }
            assert_eq!(ipvs.real_servers(&server)?[0].statistics.connections, 3);
            ipvs.zero(Some(&server))?;
            assert_eq!(ipvs.virtual_server(&server)?.unwrap().statistics.connections, 0);
            Ok(())
        })
        .unwrap();
}

#[test]
fn routes_and_addresses_are_what_ip_shows() {
    isolate().unwrap();
    let here = Netns::current().unwrap();
    let mut vips = Vips::open().unwrap();
    vips.ensure_device().unwrap();
    vips.ensure_device().unwrap();
    assert!(here.sh("ip -d link show kube-ipvs0").unwrap().contains("dummy"));
    let ips: Vec<IpAddr> = ["10.96.0.1", "10.96.0.2", "fd00::1", "fd00::2"]
        .iter()
        .map(|ip| ip.parse().unwrap())
        .collect();
    let each = |make: fn(IpAddr) -> VipCommand| -> Vec<_> { ips.iter().map(|ip| make(*ip)).collect() };
    let ok = |answers: Vec<Result<(), ipvs::Error>>| answers.into_iter().for_each(|answer| answer.unwrap());
    ok(vips.execute(&each(VipCommand::AddRoute)).unwrap());
    assert_eq!(seen::routes(&here), ips.iter().map(ToString::to_string).collect());
    ok(vips.execute(&each(VipCommand::AddAddress)).unwrap());
    assert_eq!(
        seen::addresses(&here),
        ips.iter()
            .map(|ip| format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 }))
            .collect()
    );
    let mut found = vips.routes().unwrap();
    found.sort();
    assert_eq!(found, ips);
    let mut found: Vec<_> = vips
        .addresses()
        .unwrap()
        .into_iter()
        .filter(|ip| ips.contains(ip))
        .collect();
    found.sort();
    assert_eq!(found, ips);
    // Twice.
    for answer in vips
        .execute(&[each(VipCommand::AddRoute), each(VipCommand::AddAddress)].concat())
        .unwrap()
    {
        assert!(answer.unwrap_err().is_exists());
    }
    ok(vips.execute(&each(VipCommand::DelAddress)).unwrap());
    assert_eq!(seen::addresses(&here).len(), 0);
    ok(vips.execute(&each(VipCommand::DelRoute)).unwrap());
    assert_eq!(seen::routes(&here).len(), 0);
    for answer in vips
        .execute(&[each(VipCommand::DelRoute), each(VipCommand::DelAddress)].concat())
        .unwrap()
    {
        assert!(answer.unwrap_err().is_not_found());
    }
    vips.delete_device().unwrap();
    assert!(here.sh("ip link show kube-ipvs0").is_err());
}

#[test]
fn a_device_of_another_kind_is_named() {
    isolate().unwrap();
    let here = Netns::current().unwrap();
    here.sh("ip link add kube-ipvs0 type bridge").unwrap();
    let error = Vips::open().unwrap().ensure_device().unwrap_err().to_string();
    assert!(error.contains("kube-ipvs0"), "{error}");
}

#[test]
fn node_addresses_come_and_go() {
    let netns = Netns::new().unwrap();
    netns.sh("ip link add kube-ipvs0 type dummy").unwrap();
    netns.sh("ip addr add 10.96.0.1/32 dev kube-ipvs0").unwrap();
    netns.sh("ip link add eth0 type dummy").unwrap();
    netns.sh("ip link set eth0 up").unwrap();
    netns.sh("ip addr add 192.0.2.1/24 dev eth0").unwrap();
    netns.sh("ip link add eth1 type dummy").unwrap();
    netns.sh("ip addr add 192.0.2.1/32 dev eth1").unwrap();
    netns
        .run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let ips = |texts: &[&str]| -> Vec<IpAddr> { texts.iter().map(|ip| ip.parse().unwrap()).collect() };
                let mut watch = ipvs::node_address::watch().await?;
                assert_eq!(watch.next().await?, ips(&["192.0.2.1"]));
                testbed::tool::sh("ip addr add 2001:db8::1/64 dev eth0 nodad")?;
                assert_eq!(watch.next().await?, ips(&["192.0.2.1", "2001:db8::1"]));
                testbed::tool::sh("ip addr add 10.96.0.2/32 dev kube-ipvs0")?;
                testbed::tool::sh("ip addr del 192.0.2.1/24 dev eth0")?;
                testbed::tool::sh("ip addr del 192.0.2.1/32 dev eth1")?;
                let last = ips(&["2001:db8::1"]);
                while watch.next().await? != last {}
                Ok(())
            })
        })
        .unwrap();
}
