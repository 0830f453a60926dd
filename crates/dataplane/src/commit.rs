//! A plan goes to the kernel; what the kernel answers goes into the ledger.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Instant;

use foldhash::HashSet;
use ipvs::{Command, RealServer, SchedulerName, VipCommand, VirtualServer};
use nftables::Family;

use crate::element::{ElementKey, Place, family_of};
use crate::kernel::{Kernel, KernelBroken, OpError};
use crate::ledger::Ledger;
use crate::plan::{Op, Phase, Plan, PolicyCommand};

/// What a commit did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Ops that the kernel executed, or that turned out to be done already, by phase.
    pub done: Vec<(Phase, usize)>,
    /// Ops that the kernel refused; they are tried again.
    pub refused: Vec<(Op, OpError)>,
    /// Virtual servers that got `rr`, since the kernel lacks the scheduler named (T22).
    pub fallen_back: Vec<(VirtualServer, SchedulerName)>,
    /// Something was not as the ledger said and was staged anew: planning again is worth while at once.
    pub surprised: bool,
    /// It was a share, and more is to be written.
    pub more: bool,
    /// All that was wanted when a report said so last has been tried.
    pub caught_up: bool,
    /// Ops that were sent, by [`Op::name`] and the kernel's errno, 0 = executed.
    pub answers: Vec<(&'static str, i32, u64)>,
}

/// What an answer means for the ledger.
enum Verdict {
    /// The object is as the op wanted it.
    Done,
    /// The object is there, with a value that must be looked up.
    Exists(VirtualServer),
    /// The virtual server is not there, so neither are its real servers.
    ServerMissing(VirtualServer),
    /// The real server is not there.
    RealServerMissing(VirtualServer, RealServer),
    /// The kernel has no such scheduler.
    SchedulerMissing(VirtualServer),
    /// The element is there with another value (`true`), or is not there.
    ElementDiffers(ElementKey, bool),
    /// There is no such table.
    TableMissing(Family),
    /// Refused.
    Refused(OpError),
}

impl Report {
    /// Nothing was written and nothing refused.
    pub fn is_empty(&self) -> bool {
        self.total() == 0 && self.refused.is_empty()
    }

    /// Ops done, all phases together. A look for flows to be ended is none: every start looks, since the process before
    /// may have been killed before it did.
    pub fn total(&self) -> usize {
        let wrote = |(phase, _): &&(Phase, usize)| *phase != Phase::Flows;
        self.done.iter().filter(wrote).map(|(_, count)| count).sum()
    }

    fn answered(&mut self, op: &Op, answer: &Result<(), OpError>) {
        let (name, errno) = (op.name(), answer.as_ref().err().map_or(0, |error| error.errno));
        match self.answers.iter_mut().find(|(n, e, _)| (*n, *e) == (name, errno)) {
            Some((.., count)) => *count += 1,
            None => self.answers.push((name, errno, 1)),
        }
    }

    fn count(&mut self, phase: Phase) {
        match self.done.last_mut() {
            Some((last, count)) if *last == phase => *count += 1,
            _ => self.done.push((phase, 1)),
        }
    }

    /// Adds a later commit's report to this one.
    pub fn append(&mut self, later: Self) {
        self.done.extend(later.done);
        self.refused.extend(later.refused);
        self.surprised = later.surprised;
        self.answers.extend(later.answers);
    }
}

/// Executes a plan step by step. An empty plan does not touch the kernel.
///
/// # Errors
/// Where the way to the kernel broke; the ledger is then to be adopted anew.
pub fn commit(
    plan: &Plan,
    ledger: &mut Ledger,
    kernel: &mut impl Kernel,
    now: Instant,
) -> Result<Report, KernelBroken> {
    let mut report = Report::default();
    let mut withheld = Withheld::default();
    for step in plan.steps() {
        let mut ops = Cow::Borrowed(step);
        if !withheld.is_empty() {
            let mut rest = Vec::with_capacity(step.len());
            for op in step {
                if withheld.comes_later(op, ledger) {
                    continue;
                }
                match withheld.reason(op, ledger) {
                    Some(reason) => ledger.refuse(op, reason, now),
                    None => rest.push(op.clone()),
                }
            }
            ops = Cow::Owned(rest);
        }
        for (op, answer) in ops.iter().zip(kernel.execute(&ops)?) {
            report.answered(op, &answer);
            let error = answer.as_ref().err().cloned();
            let surprise = match verdict(op, answer) {
                Verdict::Done => {
                    ledger.done(op);
                    report.count(op.phase());
                    false
                }
                Verdict::Exists(server) => {
                    let present = kernel.read_virtual_server(&server)?;
                    ledger.learn_server(&server, present.as_ref());
                    true
                }
                Verdict::ServerMissing(server) => {
                    ledger.learn_server(&server, None);
                    true
                }
                Verdict::RealServerMissing(server, real) => {
                    ledger.real_server_missing(server, real);
                    true
                }
                Verdict::SchedulerMissing(server) => {
                    ledger.scheduler_missing(server);
                    withheld.anew.extend(server.address());
                    report.surprised = true;
                    false
                }
                Verdict::ElementDiffers(key, there) => {
                    ledger.element_differs(key, there);
                    true
                }
                Verdict::TableMissing(family) => {
                    ledger.table_missing(family);
                    true
                }
                Verdict::Refused(error) => {
                    refuse(op, error, ledger, &mut withheld, &mut report, now);
                    false
                }
            };
            match error {
                // Where the kernel surprises us again with the same object, that one waits: it must not take every share.
                Some(error) if surprise && !ledger.surprise(op.key()) => {
                    refuse(op, error, ledger, &mut withheld, &mut report, now);
                }
                _ => report.surprised |= surprise,
            }
        }
    }
    Ok(report)
}

fn refuse(op: &Op, error: OpError, ledger: &mut Ledger, withheld: &mut Withheld, report: &mut Report, now: Instant) {
    ledger.refuse(op, &error.reason, now);
    withheld.refused(op);
    report.refused.push((op.clone(), error));
}

/// What must not happen since something before it was refused (L3): a VIP whose virtual servers were all refused does
/// not go live, and a virtual server does not stand without its policies.
#[derive(Default)]
struct Withheld {
    vips: HashSet<IpAddr>,
    places: HashSet<Place>,
    families: HashSet<Family>,
    /// Addresses of virtual servers that the next plan adds in another way.
    anew: HashSet<IpAddr>,
}

impl Withheld {
    fn is_empty(&self) -> bool {
        self.vips.is_empty() && self.places.is_empty() && self.families.is_empty() && self.anew.is_empty()
    }

    /// The op stays staged, without a wait: the next plan has it behind its virtual server.
    fn comes_later(&self, op: &Op, ledger: &Ledger) -> bool {
        matches!(op, Op::Vip(VipCommand::AddRoute(ip)) if self.anew.contains(ip) && !ledger.serves(*ip))
    }

    fn refused(&mut self, op: &Op) {
        match op {
            Op::Policy(PolicyCommand::Install(rules)) => drop(self.families.insert(rules.family)),
            Op::Policy(PolicyCommand::Add(key, _) | PolicyCommand::Replace(key, _)) => self.places.extend(key.place()),
            Op::Ipvs(Command::NewService(server, _)) => self.vips.extend(server.address()),
            _ => {}
        }
    }

    /// Why an op must wait, where it must.
    fn reason(&self, op: &Op, ledger: &Ledger) -> Option<&'static str> {
        match op {
            Op::Vip(VipCommand::AddRoute(ip)) if self.vips.contains(ip) && !ledger.serves(*ip) => {
                Some("no virtual server stands there yet")
            }
            Op::Ipvs(Command::NewService(server, _)) if self.lacks_policies(server) => {
                Some("its policies do not stand yet")
            }
            Op::Ipvs(Command::NewDest(server, ..)) if self.lacks_policies(server) && !ledger.has(server) => {
                Some("its policies do not stand yet")
            }
            Op::Vip(VipCommand::AddRoute(ip)) if self.families.contains(&family_of(*ip)) => {
                Some("no policies stand yet")
            }
            _ => None,
        }
    }

    fn lacks_policies(&self, server: &VirtualServer) -> bool {
        Place::of(server)
            .is_some_and(|place| self.places.contains(&place) || self.families.contains(&family_of(place.address)))
    }
}

/// IPVS uses its errno freely; what each means for each op (measured on Linux 7.2, and the conformance tests pin it):
/// "missing" on delete is success, "exists" on add means compare.
fn verdict(op: &Op, answer: Result<(), OpError>) -> Verdict {
    let Err(error) = answer else { return Verdict::Done };
    match (op, error.errno) {
        (Op::Policy(PolicyCommand::Delete(_) | PolicyCommand::Revoke(_)), libc::ENOENT) => Verdict::Done,
        (Op::Policy(PolicyCommand::Add(key, _)), libc::EEXIST) => Verdict::ElementDiffers(*key, true),
        (Op::Policy(PolicyCommand::Add(key, _)), libc::ENOENT) => Verdict::TableMissing(key.family()),
        (Op::Policy(PolicyCommand::Replace(key, _)), libc::ENOENT) => Verdict::ElementDiffers(*key, false),
        (Op::Ipvs(Command::NewService(server, config) | Command::SetService(server, config)), libc::ENOENT)
            if !Ledger::is_last_scheduler(config) =>
        {
            Verdict::SchedulerMissing(*server)
        }
        (Op::Ipvs(Command::NewService(server, _) | Command::NewDest(server, ..)), libc::EEXIST) => {
            Verdict::Exists(*server)
        }
        (Op::Ipvs(Command::DelService(_)), libc::ESRCH) => Verdict::Done,
        (Op::Ipvs(Command::DelDest(..)), libc::ENOENT | libc::ESRCH) => Verdict::Done,
        (Op::Ipvs(Command::SetDest(server, real, _)), libc::ENOENT) => Verdict::RealServerMissing(*server, *real),
        (
            Op::Ipvs(Command::SetService(server, _) | Command::NewDest(server, ..) | Command::SetDest(server, ..)),
            libc::ESRCH,
        ) => Verdict::ServerMissing(*server),
        (Op::Vip(VipCommand::AddRoute(_) | VipCommand::AddAddress(_)), libc::EEXIST) => Verdict::Done,
        (Op::Vip(VipCommand::DelRoute(_)), libc::ESRCH) => Verdict::Done,
        (Op::Vip(VipCommand::DelAddress(_)), libc::EADDRNOTAVAIL) => Verdict::Done,
        _ => Verdict::Refused(error),
    }
}
