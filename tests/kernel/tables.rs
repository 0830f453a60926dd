//! The policy tables as each version of kube-ipvs wrote them, recorded: what a newer one finds on a node (audit F20). A
//! recording has a line for each message of one transaction: type, flags, payload in hexadecimal digits.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::Context;
use data_encoding::HEXLOWER;
use dataplane::element::SetName;
use dataplane::rules::{self, Rules};
use netlink::{Batch, Socket};
use nftables::message::encode;
use nftables::{Command, Family, Nftables};
use service_model::{LocalTraffic, Source};
use testbed::daemon::Daemon;
use testbed::netns::Netns;
use testbed::world::World;

use crate::daemon::{eventually, examples, start};
use crate::seen;

const FAMILIES: [Family; 2] = [Family::Ip, Family::Ip6];
const BRIDGE: &str = "cbr0";
/// linux/netfilter/nfnetlink.h: the marks of a transaction, and the number of nf_tables.
const MARKS: [u16; 2] = [0x10, 0x11];
const NF_TABLES: u16 = 10;
const NLM_F_REQUEST: u16 = 1;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("kernel/tables")
}

fn serve(node: &Netns) -> (tempfile::TempDir, Daemon) {
    let manifests = examples();
    let run_dir = format!("--run-dir={}", manifests.path().join("run").display());
    let bridge = format!("--pod-bridge-interface={BRIDGE}");
    let daemon = start(
        node,
        manifests.path(),
        &[&run_dir, "--detect-local-mode=BridgeInterface", &bridge],
    );
    (manifests, daemon)
}

/// The daemon's rules.
fn rules_of(family: Family) -> Rules {
    let pods = Some(Source::Interface(BRIDGE.into()));
    Rules {
        family,
        masquerade_bit: 14,
        local: LocalTraffic {
            pods: pods.clone(),
            insiders: pods.clone(),
            own_pods: pods,
        },
    }
}

/// What makes the tables that the daemon has written, with their elements.
fn commands() -> anyhow::Result<Vec<Command>> {
    let mut nftables = Nftables::open()?;
    let mut commands = Vec::new();
    for family in FAMILIES {
        let (table, rules) = (rules::table(family), rules_of(family));
        let mut found = nftables.rules(&table)?;
        found.sort_by(|a, b| a.0.cmp(&b.0));
        anyhow::ensure!(found == rules.fingerprints(), "the daemon has other rules");
        commands.extend(rules.commands());
        for set in SetName::ALL.map(|set| set.definition(family)) {
            let mut elements = nftables.elements(&table, &set)?;
            elements.sort_by_key(ToString::to_string);
            if !elements.is_empty() {
                commands.push(Command::AddElements(table.clone(), set, elements));
            }
        }
    }
    Ok(commands)
}

fn record(commands: &[Command]) -> String {
    let mut text = String::new();
    for command in commands {
        let mut payload = Vec::new();
        let (kind, flags) = encode(command, &mut payload);
        let _ = writeln!(text, "{kind} {flags} {}", HEXLOWER.encode(&payload));
    }
    text
}

fn replay(text: &str) -> anyhow::Result<()> {
    let mut batch = Batch::new();
    let mark = |batch: &mut Batch, kind| {
        batch.push(kind, NLM_F_REQUEST, |buffer| buffer.extend([0, 0, 0, 10]));
    };
    mark(&mut batch, MARKS[0]);
    for line in text.lines() {
        let words: Vec<_> = line.split(' ').collect();
        let [kind, flags, payload] = *words.as_slice() else {
            anyhow::bail!("no message: {line}");
        };
        let payload = HEXLOWER.decode(payload.as_bytes())?;
        let kind = NF_TABLES << 8 | kind.parse::<u16>()?;
        batch.push(kind, NLM_F_REQUEST | flags.parse::<u16>()?, |buffer| {
            buffer.extend(payload);
        });
    }
    mark(&mut batch, MARKS[1]);
    let mut socket = Socket::open(12)?;
    for (number, answer) in socket.transaction(batch)?.into_iter().enumerate() {
        answer.with_context(|| format!("message {number}"))?;
    }
    Ok(())
}

/// A daemon that finds these tables has those of a fresh start, and nothing is refused.
fn takes_over(tables: &str, expect: &serde_json::Value, name: &str) {
    let world = World::new().unwrap();
    world.node.run(|| replay(tables)).unwrap();
    let found = seen::ruleset(&world.node);
    assert_ne!(found["nftables"].as_array().map(Vec::len), Some(0), "{name}");
    let (_manifests, daemon) = serve(&world.node);
    eventually(expect, || seen::ruleset(&world.node));
    let refused: Vec<_> = daemon
        .said()
        .into_iter()
        .filter(|line| line.contains("refused an op"))
        .collect();
    assert_eq!(refused, [""; 0], "{name}");
}

#[test]
fn f20_the_tables_of_every_version_are_taken_over() {
    let world = World::new().unwrap();
    let (_manifests, daemon) = serve(&world.node);
    let expect = seen::ruleset(&world.node);
    let ours = record(&world.node.run(commands).unwrap());
    drop(daemon);
    let own = folder().join(concat!(env!("CARGO_PKG_VERSION"), ".txt"));
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&own, &ours).unwrap();
    }
    let recorded = fs::read_to_string(&own).unwrap_or_default();
    assert!(
        recorded == ours,
        "UPDATE=1 records the tables of this version anew, until it is released"
    );
    let mut files: Vec<_> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() >= 2, "{files:?}");
    for file in files {
        takes_over(
            &fs::read_to_string(&file).unwrap(),
            &expect,
            &file.display().to_string(),
        );
    }
}

/// Its rules are right, so nothing but the hash in them tells that a set is not.
#[test]
fn f20_a_table_with_a_set_of_another_kind_is_made_anew() {
    let world = World::new().unwrap();
    let (_manifests, daemon) = serve(&world.node);
    let expect = seen::ruleset(&world.node);
    let mut commands = world.node.run(commands).unwrap();
    drop(daemon);
    // As a version without the hash, whose elements do not end by themselves, would have made it.
    commands.retain(|command| !matches!(command, Command::AddRule(_, rule) if rule.chain == "schema"));
    for command in &mut commands {
        if let Command::AddSet(_, set) = command {
            set.timeouts = false;
        }
    }
    takes_over(&record(&commands), &expect, "no timeouts");
}
