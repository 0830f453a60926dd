//! Accepts in chains of others, for nodes whose FORWARD policy is DROP (T28): an accept of ours elsewhere cannot
//! overrule that drop, so that replies of services would be lost.
//!
//! The daemon executes nothing unless there may be something to do, which it reads from `/proc` and over netlink; then
//! it starts itself once, as `kube-ipvs host-rules` ([`helper`]), which may run iptables (L19). In the same way, once it
//! serves, what a kube-proxy left goes (L15).

#[cfg(fuzzing)]
pub(crate) mod fuzzing;
pub(crate) mod helper;
mod iptables;
mod leftover;
pub(crate) mod removal;
mod ruleset;

use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use nftables::{BaseChain, Family, Hook, Nftables, Policy, Table, TableFamily};
use rustix::process::{Pid, Signal, kill_process_group};
use tracing::{debug, info, warn};

use crate::config::ForwardAccept;

/// After this the helper is ended. It waits itself for the lock of xtables, 10 s for each of a few commands.
const LIMIT: Duration = Duration::from_secs(90);
const LOOK: Duration = Duration::from_millis(50);

/// Starts the helper where there may be something to do, without waiting for it: a thread does and logs.
pub(crate) fn start(mode: ForwardAccept, masquerade_bit: u8) {
    if needed(mode) {
        start_helper(arguments(mode, masquerade_bit), not_ensured);
    }
}

/// The same, and waits for it.
pub(crate) fn run(mode: ForwardAccept, masquerade_bit: u8) {
    if needed(mode)
        && let Err(error) = help(&arguments(mode, masquerade_bit))
    {
        not_ensured(&format!("{error:#}"));
    }
}

fn not_ensured(error: &str) {
    warn!(
        error,
        "accepts in the host's FORWARD chain are not ensured; replies of services may be dropped there"
    );
}

fn needed(mode: ForwardAccept) -> bool {
    let needed = match mode {
        ForwardAccept::Never => false,
        ForwardAccept::Always => true,
        ForwardAccept::Auto => has_legacy_table(Path::new("/proc/net"), "filter") | forward_policy_drops(),
    };
    if !needed {
        debug!(?mode, "no rules of others are looked at");
    }
    needed
}

/// Starts the helper where a kube-proxy may have left something; to be called when its work is done by us. The same
/// settings as for [`start`]: what they want has kube-proxy's names, and stays.
pub(crate) fn start_removal(mode: ForwardAccept, masquerade_bit: u8) {
    if !may_have_leftovers() {
        return debug!("no kube-proxy was here");
    }
    info!("looking for what kube-proxy left, to remove it");
    let mut arguments = arguments(mode, masquerade_bit);
    arguments.push("--kube-proxy-leftovers".to_owned());
    start_helper(arguments, |error| {
        warn!(
            error,
            "what kube-proxy left is not removed: kube-ipvs cleanup tells more"
        );
    });
}

/// Where nothing can be executed, nothing can be removed.
pub(crate) fn tell_leftovers() {
    if may_have_leftovers() {
        warn!(
            "kube-proxy may have left rules, and --deny-exec forbids to remove them: kube-ipvs cleanup --kube-proxy does"
        );
    }
}

/// Told without iptables: ipsets, its main chain by nf_tables, or that there are legacy tables, which tell nothing.
pub(crate) fn may_have_leftovers() -> bool {
    let chain = || {
        let mut nftables = Nftables::open()?;
        let mut has = |family| {
            let nat = Table {
                family,
                name: "nat".to_owned(),
            };
            nftables.has_chain(&nat, "KUBE-SERVICES")
        };
        Ok::<_, nftables::Error>(has(Family::Ip)? || has(Family::Ip6)?)
    };
    // What cannot be told is looked at.
    removal::ipsets().map_or(true, |sets| !sets.is_empty())
        || chain().unwrap_or(true)
        || has_legacy_table(Path::new("/proc/net"), "nat")
}

fn start_helper(arguments: Vec<String>, fail: impl Fn(&str) + Send + 'static) {
    let tell = move || {
        if let Err(error) = help(&arguments) {
            fail(&format!("{error:#}"));
        }
    };
    if let Err(error) = thread::Builder::new().name("host-rules".into()).spawn(tell) {
        warn!(%error, "the thread of the host-rules helper cannot be started");
    }
}

fn arguments(mode: ForwardAccept, masquerade_bit: u8) -> Vec<String> {
    let mode = mode.to_possible_value();
    let mode = mode.as_ref().map_or("auto", clap::builder::PossibleValue::get_name);
    vec![
        "host-rules".to_owned(),
        format!("--iptables-forward-accept={mode}"),
        format!("--iptables-masquerade-bit={masquerade_bit}"),
    ]
}

/// What is in the legacy tables cannot be read without iptables, their policies neither: that there is one is enough.
fn has_legacy_table(proc_net: &Path, table: &str) -> bool {
    ["ip_tables_names", "ip6_tables_names"].iter().any(|name| {
        fs::read_to_string(proc_net.join(name)).is_ok_and(|text| text.lines().any(|line| line.trim() == table))
    })
}

/// iptables-nft's FORWARD has the policy DROP. Chains that iptables does not know are named in a warning: no rule of
/// ours can help there.
fn forward_policy_drops() -> bool {
    match base_chains() {
        Ok(chains) => {
            let Dropping { iptables, others } = dropping(&chains);
            for chain in others {
                warn!(%chain, "a chain that is not of iptables drops what it does not accept; it must accept established connections");
            }
            iptables
        }
        Err(error) => {
            debug!(%error, "the chains of nf_tables cannot be read");
            // An errno: this kernel has no nf_tables. Else it is not known, and the helper looks.
            error.errno().is_none()
        }
    }
}

/// A list that changes while it is read is read again.
fn base_chains() -> Result<Vec<BaseChain>, nftables::Error> {
    let mut nftables = Nftables::open()?;
    let mut tries = 0..5;
    loop {
        match nftables.base_chains() {
            Err(error) if error.errno().is_none() && tries.next().is_some() => debug!(%error, "reading again"),
            done => return done,
        }
    }
}

struct Dropping<'a> {
    iptables: bool,
    others: Vec<&'a BaseChain>,
}

fn dropping(chains: &[BaseChain]) -> Dropping<'_> {
    let forward = |chain: &&BaseChain| chain.hook == Hook::Forward && chain.policy == Policy::Drop;
    let (iptables, others): (Vec<_>, Vec<_>) = chains
        .iter()
        .filter(forward)
        .partition(|chain| chain.family != TableFamily::Inet && chain.table == "filter" && chain.name == "FORWARD");
    let iptables = !iptables.is_empty();
    Dropping { iptables, others }
}

/// Runs the helper to its end and logs what it did.
fn help(arguments: &[String]) -> Result<()> {
    let mut child = Command::new("/proc/self/exe")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // With what it started it is a group, which ends as one.
        .process_group(0)
        .spawn()
        .context("start kube-ipvs host-rules")?;
    let status = wait(&mut child)?;
    let mut text = String::new();
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_string(&mut text).context("read what the helper did")?;
    }
    for did in text.lines() {
        info!(did, "host rules");
    }
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    if let Some(mut pipe) = child.stderr.take() {
        pipe.read_to_string(&mut said).context("read what the helper said")?;
    }
    bail!(
        "kube-ipvs host-rules: {status}: {}",
        said.trim().trim_start_matches("kube-ipvs: ")
    );
}

fn wait(child: &mut Child) -> Result<ExitStatus> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait().context("wait for kube-ipvs host-rules")? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = child.wait();
            bail!("kube-ipvs host-rules did not end within {} s", LIMIT.as_secs());
        }
        thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command as Subcommand};

    #[test]
    fn the_helper_understands_its_arguments() {
        let words = arguments(ForwardAccept::Always, 9);
        let cli = Cli::try_parse_from(["kube-ipvs".to_owned()].into_iter().chain(words)).unwrap();
        let Some(Subcommand::HostRules(args)) = cli.command else {
            panic!("{cli:?}")
        };
        assert_eq!(args.iptables_forward_accept, ForwardAccept::Always);
        assert_eq!((args.iptables_masquerade_bit, args.health_port.len()), (9, 0));
    }

    #[test]
    fn t28_a_legacy_filter_table_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let has = || has_legacy_table(directory.path(), "filter");
        assert!(!has());
        fs::write(directory.path().join("ip_tables_names"), "nat\nmangle\n").unwrap();
        assert!(!has());
        fs::write(directory.path().join("ip6_tables_names"), "nat\nfilter\n").unwrap();
        assert!(has());
    }

    #[test]
    fn t28_a_dropping_chain_is_of_iptables_or_of_another() {
        let chain = |family, table: &str, name: &str, hook, policy| BaseChain {
            family,
            table: table.to_owned(),
            name: name.to_owned(),
            hook,
            policy,
        };
        let check = |chain: BaseChain, iptables: bool, others: &[&str]| {
            let chains = [chain];
            let found = dropping(&chains);
            assert_eq!(found.iptables, iptables, "{chains:?}");
            assert_eq!(found.others.iter().map(ToString::to_string).collect::<Vec<_>>(), others);
        };
        use TableFamily::{Inet, Ip, Ip6};
        check(chain(Ip, "filter", "FORWARD", Hook::Forward, Policy::Drop), true, &[]);
        check(chain(Ip6, "filter", "FORWARD", Hook::Forward, Policy::Drop), true, &[]);
        check(
            chain(Ip, "filter", "FORWARD", Hook::Forward, Policy::Accept),
            false,
            &[],
        );
        check(chain(Ip, "filter", "INPUT", Hook::Input, Policy::Drop), false, &[]);
        let others = |text| [text];
        let nft = chain(Inet, "filter", "forward", Hook::Forward, Policy::Drop);
        check(nft, false, &others("inet filter forward"));
        let lower = chain(Ip, "filter", "forward", Hook::Forward, Policy::Drop);
        check(lower, false, &others("ip filter forward"));
    }
}
