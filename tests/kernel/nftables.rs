//! The crate `nftables` against a real kernel, with nft as the second opinion: nft's listing of what we wrote by netlink
//! is its listing of what it made of our text.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use nftables::message::fingerprint;
use nftables::set::ElementData;
use nftables::{
    Chain, ChainKind, Command, DataType, Element, Family, Field, Hook, Interface, Is, Nftables, Rule, Set, SetData,
    Statement, Table, Value, Verdict,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use testbed::netns::{Netns, isolate};
use testbed::tool;

use crate::seen;

fn table(family: Family) -> Table {
    Table {
        family,
        name: "kube-ipvs".to_owned(),
    }
}

fn address(family: Family) -> DataType {
    match family {
        Family::Ip => DataType::Ipv4Addr,
        Family::Ip6 => DataType::Ipv6Addr,
    }
}

fn ip(family: Family, last: u8) -> Value {
    Value::Ip(match family {
        Family::Ip => [10, 96, 0, last].into(),
        Family::Ip6 => [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)].into(),
    })
}

fn set(name: &str, key: Vec<DataType>, data: SetData) -> Set {
    Set {
        name: name.to_owned(),
        key,
        data,
        intervals: false,
        timeouts: false,
    }
}

/// A range whose prefix is so long; 0 = of one address.
fn range(family: Family, length: u8) -> IpNet {
    let (address, all): (IpAddr, u8) = match family {
        Family::Ip => ([10, 96, 0, 0].into(), 32),
        Family::Ip6 => ([0xfd00, 0, 0, 0, 0, 0, 0, 0].into(), 128),
    };
    IpNet::new(address, if length == 0 { all } else { length })
        .unwrap()
        .trunc()
}

/// One set of each form.
fn sets(family: Family) -> [Set; 8] {
    let (a, proto, port) = (address(family), DataType::InetProto, DataType::InetService);
    [
        set("vips", vec![a], SetData::None),
        set("services", vec![a, proto, port], SetData::Verdict),
        set("local", vec![a, proto, port], SetData::Values(vec![a, port])),
        set("marks", vec![a, proto, port], SetData::Values(vec![DataType::Mark])),
        set("own-marks", vec![DataType::Mark], SetData::None),
        Set {
            intervals: true,
            ..set("sources", vec![a, proto, port, a], SetData::None)
        },
        Set {
            timeouts: true,
            ..set("draining", vec![a, proto, port, a, port], SetData::None)
        },
        Set {
            intervals: true,
            ..set("pods", vec![a, proto], SetData::None)
        },
    ]
}

fn elements(family: Family, set: &Set) -> Vec<Element> {
    let key = |last: u8| -> Vec<Value> {
        let (mut ports, mut addresses) = (80_u16, 0_u8);
        let one = |data_type: &DataType| match data_type {
            DataType::InetProto => Value::Proto(if last.is_multiple_of(2) { 6 } else { 17 }),
            DataType::InetService => {
                ports += 1;
                Value::Port(ports)
            }
            DataType::Mark => Value::Mark(u32::from(last) << 16),
            DataType::Ipv4Addr | DataType::Ipv6Addr => {
                addresses += 100;
                ip(family, addresses + last)
            }
        };
        set.key.iter().map(one).collect()
    };
    (1..=3)
        .map(|last| Element {
            data: match &set.data {
                SetData::None => ElementData::None,
                SetData::Verdict => ElementData::Verdict(match last {
                    1 => Verdict::Drop,
                    2 => Verdict::Return,
                    _ => Verdict::Goto("refuse".to_owned()),
                }),
                SetData::Values(types) if types.len() == 1 => ElementData::Values(vec![Value::Mark(0x4000)]),
                SetData::Values(_) => ElementData::Values(vec![ip(family, last), Value::Port(8080)]),
            },
            end: set.intervals.then(|| {
                let mut end = key(last);
                if let (2, Some(first)) = (last, end.first_mut()) {
                    *first = ip(family, 110);
                }
                end
            }),
            timeout: set.timeouts.then(|| Duration::from_secs(3600)),
            ..Element::plain(key(last))
        })
        .collect()
}

/// A ruleset with every statement.
fn everything(family: Family) -> Vec<Command> {
    let table = table(family);
    let mut commands = vec![Command::AddTable(table.clone(), String::new())];
    let chain = |name: &str, hook| {
        Command::AddChain(
            table.clone(),
            Chain {
                name: name.to_owned(),
                hook,
            },
        )
    };
    commands.extend([
        chain("refuse", None),
        chain("pre", Some((ChainKind::Filter, Hook::Prerouting, -110))),
        chain("pre-nat", Some((ChainKind::Nat, Hook::Prerouting, -105))),
        chain("in", Some((ChainKind::Filter, Hook::Input, 0))),
        chain("out-nat", Some((ChainKind::Nat, Hook::Output, -105))),
        chain("forward", Some((ChainKind::Filter, Hook::Forward, 7))),
        chain("post", Some((ChainKind::Nat, Hook::Postrouting, 90))),
    ]);
    let sets = sets(family);
    commands.extend(sets.iter().map(|set| Command::AddSet(table.clone(), set.clone())));
    commands.extend(
        sets.iter()
            .map(|set| Command::AddElements(table.clone(), set.clone(), elements(family, set))),
    );
    let rule = |chain: &str, statements: Vec<Statement>| {
        Command::AddRule(
            table.clone(),
            Rule {
                chain: chain.to_owned(),
                statements,
                comment: format!("T{}", chain.len()),
            },
        )
    };
    let place = || vec![Field::Daddr, Field::L4Proto, Field::Dport];
    commands.extend([
        rule("refuse", vec![Statement::Proto(6), Statement::RejectTcp]),
        rule("refuse", vec![Statement::RejectPort]),
        rule(
            "pre",
            vec![
                Statement::CtNew,
                Statement::In(place(), "services".into()),
                Statement::MarkOr(0x4000),
            ],
        ),
        rule(
            "pre",
            vec![
                Statement::NotIn(
                    vec![Field::Daddr, Field::L4Proto, Field::Dport, Field::Saddr],
                    "sources".into(),
                ),
                Statement::Verdict(Verdict::Return),
            ],
        ),
        rule(
            "pre",
            vec![
                Statement::From(Is::So, Interface::Named("cni0".into())),
                Statement::MarkAnd(!0x4000),
            ],
        ),
        rule(
            "pre",
            vec![
                Statement::From(Is::Not, Interface::Prefix("veth".into())),
                Statement::SaddrWithin(Is::Not, range(family, 24)),
                Statement::CtDnat,
                Statement::Verdict(Verdict::Return),
            ],
        ),
        rule(
            "pre",
            vec![
                Statement::SaddrWithin(Is::So, range(family, 13)),
                Statement::SaddrWithin(Is::Not, range(family, 0)),
                Statement::In(vec![Field::Mark], "own-marks".into()),
                Statement::Verdict(Verdict::Return),
            ],
        ),
        rule(
            "pre",
            vec![
                Statement::MarkIs {
                    mask: 0x4000,
                    value: 0x4000,
                },
                Statement::Verdict(Verdict::Accept),
            ],
        ),
        rule(
            "pre-nat",
            vec![
                Statement::DestinationLocal(Is::So),
                Statement::DnatMap(place(), "local".into()),
            ],
        ),
        rule(
            "out-nat",
            vec![
                Statement::SourceLocal(Is::Not),
                Statement::DnatMap(place(), "local".into()),
            ],
        ),
        rule(
            "pre-nat",
            vec![
                Statement::In(vec![Field::Daddr], "vips".into()),
                Statement::DnatToItself,
            ],
        ),
        rule(
            "in",
            vec![Statement::CtNew, Statement::VerdictMap(place(), "services".into())],
        ),
        rule(
            "in",
            vec![
                Statement::CtConfirmed,
                Statement::In(vec![Field::ReplySaddr, Field::L4Proto, Field::Dport], "local".into()),
                Statement::Verdict(Verdict::Drop),
            ],
        ),
        rule(
            "in",
            vec![
                Statement::CtConfirmed,
                Statement::In(
                    vec![Field::ReplySaddr, Field::L4Proto, Field::ReplySport],
                    "local".into(),
                ),
                Statement::Verdict(Verdict::Drop),
            ],
        ),
        rule(
            "in",
            vec![
                Statement::CtNew,
                Statement::In(vec![Field::Daddr], "vips".into()),
                Statement::Verdict(Verdict::Jump("refuse".into())),
            ],
        ),
        rule(
            "forward",
            vec![
                Statement::In(vec![Field::Saddr, Field::L4Proto], "pods".into()),
                Statement::Verdict(Verdict::Drop),
            ],
        ),
        rule(
            "post",
            vec![
                Statement::MarkIs {
                    mask: 0x4000,
                    value: 0x4000,
                },
                Statement::Masquerade,
            ],
        ),
    ]);
    commands
}

/// nft 1.0.6 (Debian 12) turns the one byte of `meta l4proto` around in look-ups of concatenated intervals, which the
/// kernel refuses (EOPNOTSUPP, `nft_byteorder_init`). And it knows no length of a connection's ports in a look-up of more
/// than one field. It can list such rules but not load them.
fn nft_cannot_load(command: &Command) -> bool {
    let with_protocol =
        |fields: &[Field], set: &str| fields.contains(&Field::L4Proto) && ["sources", "pods"].contains(&set);
    let of_connection = |fields: &[Field]| fields.contains(&Field::ReplySport);
    let Command::AddRule(_, rule) = command else {
        return false;
    };
    rule.statements.iter().any(|statement| match statement {
        Statement::In(fields, set) | Statement::NotIn(fields, set) => {
            with_protocol(fields, set) || of_connection(fields)
        }
        _ => false,
    })
}

#[test]
fn what_we_write_is_what_nft_makes_of_our_text() {
    for family in [Family::Ip, Family::Ip6] {
        let (unloadable, commands): (Vec<_>, Vec<_>) = everything(family).into_iter().partition(nft_cannot_load);
        assert_eq!(unloadable.len(), 3);
        isolate().unwrap();
        Nftables::open().unwrap().commit(&commands).unwrap();
        let ours = seen::ruleset(&Netns::current().unwrap());
        let ruleset = tool::sh("nft list ruleset").unwrap();
        isolate().unwrap();
        let script: String = commands.iter().map(|command| format!("{command}\n")).collect();
        tool::feed(&["nft", "-f", "-"], &script).unwrap_or_else(|error| panic!("{error}\n{script}"));
        assert_eq!(
            ours,
            seen::ruleset(&Netns::current().unwrap()),
            "{ruleset}\n---\n{}",
            tool::sh("nft list ruleset").unwrap()
        );
        // The others: nft lists them as we print them.
        Nftables::open().unwrap().commit(&unloadable).unwrap();
        let ruleset = tool::sh("nft list ruleset").unwrap();
        for command in &unloadable {
            let Command::AddRule(_, rule) = command else {
                unreachable!()
            };
            let text = rule.text(family);
            assert!(
                ruleset.lines().any(|line| line.trim() == text),
                "{text}\n---\n{ruleset}"
            );
        }
    }
}

#[test]
fn elements_and_rules_are_read_as_they_were_written() {
    for family in [Family::Ip, Family::Ip6] {
        isolate().unwrap();
        let mut nftables = Nftables::open().unwrap();
        let commands = everything(family);
        nftables.commit(&commands).unwrap();
        for set in sets(family) {
            let read: BTreeSet<_> = nftables
                .elements(&table(family), &set)
                .unwrap()
                .into_iter()
                .map(without_time)
                .collect();
            let written = elements(family, &set).into_iter().map(without_time).map(|mut element| {
                element.end = element.end.filter(|end| *end != element.key);
                element
            });
            assert_eq!(read, written.collect(), "{set}");
        }
        let mut read = nftables.rules(&table(family)).unwrap();
        let mut written: Vec<_> = commands
            .iter()
            .filter_map(|command| match command {
                Command::AddRule(_, rule) => Some((rule.chain.clone(), fingerprint(family, rule))),
                _ => None,
            })
            .collect();
        // By chain; within a chain the order is the kernel's.
        read.sort_by(|a, b| a.0.cmp(&b.0));
        written.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(read, written);
    }
}

fn without_time(mut element: Element) -> Element {
    if let Some(left) = element.timeout.take() {
        assert!(left > Duration::from_secs(3000) && left <= Duration::from_secs(3600));
    }
    element
}

#[test]
fn a_refused_command_undoes_the_whole() {
    isolate().unwrap();
    let mut nftables = Nftables::open().unwrap();
    let table = table(Family::Ip);
    let vips = set("vips", vec![DataType::Ipv4Addr], SetData::None);
    nftables
        .commit(&[
            Command::AddTable(table.clone(), String::new()),
            Command::AddSet(table.clone(), vips.clone()),
        ])
        .unwrap();
    let add = |last: u8| {
        Command::AddElements(
            table.clone(),
            vips.clone(),
            vec![Element::plain(vec![ip(Family::Ip, last)])],
        )
    };
    let delete = |last: u8| {
        Command::DeleteElements(
            table.clone(),
            vips.clone(),
            vec![Element::plain(vec![ip(Family::Ip, last)])],
        )
    };
    let before = nftables.counters();
    nftables.commit(&[add(1), add(2)]).unwrap();
    let after = nftables.counters();
    assert_eq!(
        (
            after.messages - before.messages,
            after.system_calls - before.system_calls
        ),
        (4, 2)
    );
    let error = nftables.commit(&[add(3), delete(9), add(4)]).unwrap_err();
    assert_eq!(error.errno(), Some(libc::ENOENT));
    assert_eq!(error.to_string(), "delete element ip kube-ipvs vips { 10.96.0.9 }");
    let count = |nftables: &mut Nftables| nftables.elements(&table, &vips).unwrap().len();
    assert_eq!(count(&mut nftables), 2);
    // The same element again is no error.
    nftables.commit(&[add(1), delete(2)]).unwrap();
    assert_eq!(count(&mut nftables), 1);
    nftables.commit(&[]).unwrap();
    nftables.commit(&[Command::DeleteTable(table.clone())]).unwrap();
    assert_eq!(
        nftables.elements(&table, &vips).unwrap_err().errno(),
        Some(libc::ENOENT)
    );
    assert_eq!(nftables.rules(&table).unwrap().len(), 0);
    assert_eq!(
        nftables
            .commit(&[Command::DeleteTable(table.clone())])
            .unwrap_err()
            .errno(),
        Some(libc::ENOENT)
    );
}

#[test]
fn thousands_of_elements_in_one_transaction() {
    isolate().unwrap();
    let mut nftables = Nftables::open().unwrap();
    let table = table(Family::Ip);
    let places = set(
        "services",
        vec![DataType::Ipv4Addr, DataType::InetProto, DataType::InetService],
        SetData::Verdict,
    );
    nftables
        .commit(&[
            Command::AddTable(table.clone(), String::new()),
            Command::AddSet(table.clone(), places.clone()),
        ])
        .unwrap();
    let all: Vec<_> = (0..20_000_u32)
        .map(|number| {
            let [_, _, high, low] = number.to_be_bytes();
            let key = vec![Value::Ip([10, 96, high, low].into()), Value::Proto(6), Value::Port(80)];
            Element::verdict(key, Verdict::Return)
        })
        .collect();
    let commands: Vec<_> = all
        .chunks(200)
        .map(|some| Command::AddElements(table.clone(), places.clone(), some.to_vec()))
        .collect();
    nftables.commit(&commands).unwrap();
    assert_eq!(nftables.elements(&table, &places).unwrap().len(), 20_000);
}

#[test]
fn any_elements_come_back() {
    let mut runner = TestRunner::new(Config {
        cases: 32,
        failure_persistence: None,
        ..Config::default()
    });
    let key = (any::<[u8; 4]>(), any::<u8>(), any::<u16>());
    runner
        .run(&prop::collection::btree_set(key, 0..50), |keys| {
            isolate().unwrap();
            let mut nftables = Nftables::open().unwrap();
            let table = table(Family::Ip);
            let key = vec![DataType::Ipv4Addr, DataType::InetProto, DataType::InetService];
            let map = set("m", key, SetData::Values(vec![DataType::Mark]));
            let all: BTreeSet<_> = keys
                .into_iter()
                .map(|(ip, proto, port)| {
                    let key = vec![Value::Ip(ip.into()), Value::Proto(proto), Value::Port(port)];
                    Element::mapped(key, vec![Value::Mark(u32::from(port) << 8 | u32::from(proto))])
                })
                .collect();
            let mut commands = vec![
                Command::AddTable(table.clone(), String::new()),
                Command::AddSet(table.clone(), map.clone()),
            ];
            if !all.is_empty() {
                commands.push(Command::AddElements(
                    table.clone(),
                    map.clone(),
                    all.iter().cloned().collect(),
                ));
            }
            nftables.commit(&commands).unwrap();
            prop_assert_eq!(
                nftables
                    .elements(&table, &map)
                    .unwrap()
                    .into_iter()
                    .collect::<BTreeSet<_>>(),
                all
            );
            Ok(())
        })
        .unwrap();
}
