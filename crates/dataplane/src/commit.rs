//! A plan goes to the kernel; what the kernel answers goes into the ledger.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Instant;

use ipvs::{Command, VipCommand};
use rustc_hash::FxHashSet;

use crate::kernel::{Kernel, KernelBroken, OpError};
use crate::ledger::Ledger;
use crate::plan::{Op, Phase, Plan};

/// What a commit did.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Ops that the kernel executed, or that turned out to be done already, by phase.
    pub done: Vec<(Phase, usize)>,
    /// Ops that the kernel refused; they are tried again.
    pub refused: Vec<(Op, OpError)>,
    /// Something was not as the ledger said and was staged anew: planning again is worth while at once.
    pub surprised: bool,
}

/// What an answer means for the ledger.
enum Verdict {
    /// The object is as the op wanted it.
    Done,
    /// The object is there, with a value that must be looked up.
    Exists,
    /// The virtual server is not there, so neither are its real servers.
    ServerMissing,
    /// The real server is not there.
    RealServerMissing,
    /// Refused.
    Refused(OpError),
}

impl Report {
    /// Nothing was written and nothing refused.
    pub fn is_empty(&self) -> bool {
        self.done.is_empty() && self.refused.is_empty()
    }

    /// Ops done, all phases together.
    pub fn total(&self) -> usize {
        self.done.iter().map(|(_, count)| count).sum()
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
    let mut withheld = FxHashSet::default();
    for step in plan.steps() {
        let mut ops = Cow::Borrowed(step);
        if !withheld.is_empty() {
            let (waiting, rest) = step.iter().partition(|op| must_wait(op, ledger, &withheld));
            let waiting: Vec<Op> = waiting;
            waiting
                .iter()
                .for_each(|op| ledger.refuse(op, "no virtual server stands there yet", now));
            ops = Cow::Owned(rest);
        }
        for (op, answer) in ops.iter().zip(kernel.execute(&ops)?) {
            match verdict(op, answer) {
                Verdict::Done => {
                    ledger.done(op);
                    report.count(op.phase());
                }
                Verdict::Exists => {
                    if let Op::Ipvs(Command::NewService(server, _) | Command::NewDest(server, ..)) = op {
                        let present = kernel.read_virtual_server(server)?;
                        ledger.learn_server(server, present.as_ref());
                        report.surprised = true;
                    }
                }
                Verdict::ServerMissing => {
                    if let Op::Ipvs(
                        Command::SetService(server, _) | Command::NewDest(server, ..) | Command::SetDest(server, ..),
                    ) = op
                    {
                        ledger.learn_server(server, None);
                        report.surprised = true;
                    }
                }
                Verdict::RealServerMissing => {
                    if let Op::Ipvs(Command::SetDest(server, real, _)) = op {
                        ledger.real_server_missing(*server, *real);
                        report.surprised = true;
                    }
                }
                Verdict::Refused(error) => {
                    ledger.refuse(op, &error.reason, now);
                    if let Op::Ipvs(Command::NewService(server, _)) = op {
                        withheld.extend(server.address());
                    }
                    report.refused.push((*op, error));
                }
            }
        }
    }
    Ok(report)
}

/// A VIP whose virtual servers were all refused does not go live (L3): its route waits as long as they do.
fn must_wait(op: &Op, ledger: &Ledger, withheld: &FxHashSet<IpAddr>) -> bool {
    matches!(op, Op::Vip(VipCommand::AddRoute(ip)) if withheld.contains(ip) && !ledger.serves(*ip))
}

/// IPVS uses its errno freely; what each means for each op (measured on Linux 7.2, and the conformance tests pin it):
/// "missing" on delete is success, "exists" on add means compare.
fn verdict(op: &Op, answer: Result<(), OpError>) -> Verdict {
    let Err(error) = answer else { return Verdict::Done };
    match (op, error.errno) {
        (Op::Ipvs(Command::NewService(..) | Command::NewDest(..)), libc::EEXIST) => Verdict::Exists,
        (Op::Ipvs(Command::DelService(_)), libc::ESRCH) => Verdict::Done,
        (Op::Ipvs(Command::DelDest(..)), libc::ENOENT | libc::ESRCH) => Verdict::Done,
        (Op::Ipvs(Command::SetDest(..)), libc::ENOENT) => Verdict::RealServerMissing,
        (Op::Ipvs(Command::SetService(..) | Command::NewDest(..) | Command::SetDest(..)), libc::ESRCH) => {
            Verdict::ServerMissing
        }
        (Op::Vip(VipCommand::AddRoute(_) | VipCommand::AddAddress(_)), libc::EEXIST) => Verdict::Done,
        (Op::Vip(VipCommand::DelRoute(_)), libc::ESRCH) => Verdict::Done,
        (Op::Vip(VipCommand::DelAddress(_)), libc::EADDRNOTAVAIL) => Verdict::Done,
        _ => Verdict::Refused(error),
    }
}
