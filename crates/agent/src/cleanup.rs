//! `kube-ipvs cleanup` and `--cleanup`: all that we made goes (L13), on request kube-proxy's, too.
//!
//! Found first, then removed, then looked for again: what is found then is left. VIPs go first, as a whole: a place
//! without its virtual server or its rules would be answered by a daemon of the host.

use std::fmt::Display;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Error, Result};
use dataplane::live::LiveKernel;
use dataplane::{Kernel, Snapshot, rules};
use ipvs::sysctl::{self, Restorable};
use ipvs::{Command, Ipvs, OldValues, VipCommand, Vips};
use nftables::{Nftables, Table};

use crate::cli::{CleanupArgs, DaemonArgs, EXIT_ERROR};
use crate::config::{Configuration, KubeIpvsConfiguration};
use crate::host_rules::may_have_leftovers;
use crate::host_rules::removal::{self, Change, Whose};
use crate::instance;
use crate::privilege::require_net_admin;
use crate::stdout::{print_lines, remark};

/// Name of the tables of kube-proxy's nftables mode.
const KUBE_PROXY_TABLE: &str = "kube-proxy";

/// What is to be removed.
#[derive(Debug)]
pub(crate) struct Job {
    whose: Whose,
    old: OldValues,
    dry_run: bool,
}

impl From<&CleanupArgs> for Job {
    fn from(args: &CleanupArgs) -> Self {
        Self {
            whose: if args.kube_proxy { Whose::KubeProxy } else { Whose::Ours },
            old: KubeIpvsConfiguration::from_run_flags(&args.run).old_sysctls(),
            dry_run: args.dry_run,
        }
    }
}

impl Job {
    /// `--cleanup`: who calls it knows it from kube-proxy, and expects kube-proxy's to go.
    pub(crate) fn of_daemon(configuration: &Configuration, args: &DaemonArgs) -> Self {
        Self {
            whose: Whose::KubeProxy,
            old: configuration.own.old_sysctls(),
            dry_run: args.dry_run,
        }
    }
}

/// Removes, and prints what.
///
/// # Errors
/// The kernel cannot be asked. What cannot be removed is no error, but listed, with exit status 1.
pub(crate) fn run(job: Job) -> Result<ExitCode> {
    require_net_admin()?;
    let Job { whose, old, dry_run } = job;
    let found = Garbage::find(whose, old.clone())?;
    if dry_run {
        let printed = print_lines(&found.lines());
        tell("note", &found.notes);
        printed.context("print what would be done")?;
        return Ok(ExitCode::SUCCESS);
    }
    // Looked for before a daemon is: what another one would see is the same.
    let _lock = instance::take_or_refuse()?;
    let mut failures = Vec::new();
    let lines = found.lines();
    found.remove(&mut failures);
    let left = Garbage::find(whose, old)?;
    let remain = left.lines();
    let gone: Vec<_> = lines.into_iter().filter(|line| !remain.contains(line)).collect();
    let printed = print_lines(&gone);
    tell("note", &left.notes);
    let failures: Vec<_> = failures.iter().map(|failure| format!("{failure:#}")).collect();
    tell("failed", &failures);
    tell("left", &remain);
    if left.unseen {
        let unseen = "there may be rules of kube-proxy, which cannot be looked at without iptables";
        tell("left", &[unseen]);
    }
    // Whether something is left is to be known, also where what went has no reader.
    if !remain.is_empty() || left.unseen {
        return Ok(ExitCode::from(EXIT_ERROR));
    }
    printed.context("print what was done")?;
    Ok(ExitCode::SUCCESS)
}

fn tell(what: &str, lines: &[impl Display]) {
    lines.iter().for_each(|line| remark(format_args!("{what}: {line}")));
}

/// What the IPVS mode, ours or kube-proxy's, left in the kernel, without rules of iptables and without sysctls: for the
/// mode that serves in its place (L15). Returns what went.
///
/// # Errors
/// The kernel cannot be asked, or something stays.
pub(crate) fn remove_ipvs() -> Result<Vec<String>> {
    let garbage = Garbage::of_ipvs(true, OldValues::at(PathBuf::new()))?;
    let mut failures = Vec::new();
    garbage.remove(&mut failures);
    match failures.into_iter().next() {
        Some(error) => Err(error),
        None => Ok(garbage.lines()),
    }
}

/// What is there to be removed, in the order in which it goes.
struct Garbage {
    routes: Vec<VipCommand>,
    /// `kube-ipvs0`, with its addresses.
    device: bool,
    virtual_servers: Vec<Command>,
    tables: Vec<Table>,
    rules: Vec<Change>,
    ipsets: Vec<String>,
    sysctls: Vec<Restorable>,
    old_sysctls: OldValues,
    /// What stays although it may be looked for.
    notes: Vec<String>,
    /// kube-proxy's rules may be there, and cannot be looked at.
    unseen: bool,
}

impl Garbage {
    /// Of the kernel's own tables alone.
    fn of_ipvs(kube_proxy: bool, old_sysctls: OldValues) -> Result<Self> {
        let mut snapshot = read()?;
        if !kube_proxy {
            snapshot.former_node_ports.clear();
        }
        let mut tables = Nftables::open()?.tables()?;
        tables.retain(|table| table.name == rules::TABLE);
        Ok(Self {
            routes: snapshot.routes.iter().map(|ip| VipCommand::DelRoute(*ip)).collect(),
            device: Vips::open()?.has_device()?,
            virtual_servers: snapshot.ours().into_iter().map(Command::DelService).collect(),
            tables,
            rules: Vec::new(),
            ipsets: Vec::new(),
            sysctls: Vec::new(),
            old_sysctls,
            notes: Vec::new(),
            unseen: false,
        })
    }

    fn find(whose: Whose, old_sysctls: OldValues) -> Result<Self> {
        let kube_proxy = whose == Whose::KubeProxy;
        let mut garbage = Self::of_ipvs(kube_proxy, old_sysctls)?;
        if kube_proxy {
            let theirs = Nftables::open()?.tables()?.into_iter();
            garbage
                .tables
                .extend(theirs.filter(|table| table.name == KUBE_PROXY_TABLE));
            garbage.ipsets = removal::ipsets()?;
        }
        garbage.sysctls = sysctl::restorable(&garbage.old_sysctls)?;
        match removal::look(whose)? {
            Some(found) => {
                garbage.rules = found.changes;
                garbage.notes = found.notes;
            }
            None => {
                garbage.notes = vec!["there is no iptables on the path, its rules are not looked at".to_owned()];
                garbage.unseen = kube_proxy && may_have_leftovers();
            }
        }
        Ok(garbage)
    }

    /// One line each, as the standard tools would be told.
    fn lines(&self) -> Vec<String> {
        let mut lines: Vec<_> = self.routes.iter().map(|op| format!("ip {op}")).collect();
        lines.extend(self.device.then(|| "ip link del kube-ipvs0".to_owned()));
        lines.extend(self.virtual_servers.iter().map(|op| format!("ipvsadm {op}")));
        lines.extend(self.tables.iter().map(|table| format!("nft delete table {table}")));
        lines.extend(self.rules.iter().flat_map(Change::lines));
        lines.extend(self.ipsets.iter().map(|name| removal::destroy_line(name)));
        let set = |sysctl: &Restorable| format!("sysctl -w {}={}", sysctl.name, sysctl.old);
        lines.extend(self.sysctls.iter().map(set));
        let file = self.old_sysctls.exists();
        lines.extend(file.then(|| format!("rm {}", self.old_sysctls.path().display())));
        lines
    }

    /// One that fails keeps no other from going.
    fn remove(&self, failures: &mut Vec<Error>) {
        let mut fail = |done: Result<()>| failures.extend(done.err());
        let routes = Vips::open().and_then(|mut vips| first_refused(vips.execute(&self.routes)?));
        fail(routes.map_err(Error::from));
        if self.device {
            fail(
                Vips::open()
                    .and_then(|mut vips| vips.delete_device())
                    .map_err(Error::from),
            );
        }
        if !self.virtual_servers.is_empty() {
            let servers = Ipvs::open().and_then(|mut ipvs| first_refused(ipvs.execute(&self.virtual_servers)?));
            fail(servers.map_err(Error::from));
        }
        for table in &self.tables {
            let delete = [nftables::Command::DeleteTable(table.clone())];
            let done = Nftables::open().and_then(|mut nftables| nftables.commit(&delete));
            fail(done.map_err(Error::from));
        }
        for change in &self.rules {
            fail(change.execute());
        }
        if !self.ipsets.is_empty() {
            fail(removal::destroy(&self.ipsets).map(drop));
        }
        let mut restored = true;
        for sysctl in &self.sysctls {
            let done = sysctl::restore(sysctl).map_err(Error::from);
            restored &= done.is_ok();
            fail(done);
        }
        if restored && self.old_sysctls.exists() {
            fail(self.old_sysctls.forget().map_err(Error::from));
        }
    }
}

/// Without IPVS in the kernel there are no virtual servers; everything else may be there.
fn read() -> Result<Snapshot> {
    match Ipvs::open() {
        Ok(_) => Ok(LiveKernel::open()?.read()?),
        Err(error) if error.is_unsupported() => Ok(Snapshot {
            routes: Vips::open()?.routes()?,
            ..Snapshot::default()
        }),
        Err(error) => Err(error.into()),
    }
}

/// The first that was refused; what is gone already is fine.
fn first_refused(answers: Vec<Result<(), ipvs::Error>>) -> Result<(), ipvs::Error> {
    let refused = answers.into_iter().filter_map(Result::err);
    refused
        .filter(|error| !error.is_not_found())
        .map(Err)
        .next()
        .unwrap_or(Ok(()))
}
