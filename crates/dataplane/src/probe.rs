//! Can this kernel do what the IPVS mode needs? Asked by doing it, in a scratch network namespace, never by version (L14).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::thread;

use conntrack::{Conntrack, Filter};
use ipvs::{Command, Flags, Ipvs, Protocol, RealServer, RealServerConfig, VipCommand, Vips, VirtualServerConfig};
use nftables::{Family, Nftables};
use service_model::{LocalTraffic, Scheduler};

use crate::compile::scheduler_name;
use crate::element::{ElementKey, ElementValue, Place, SetName};
use crate::kernel::{Kernel, chain};
use crate::live::LiveKernel;
use crate::plan::{Op, PolicyCommand};
use crate::rules::Rules;

/// What a kernel lacks, in a sentence that an operator can act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// The kernel module that would bring it.
    pub module: &'static str,
    /// What was tried and how the kernel refused.
    pub reason: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (kernel module {})", self.reason, self.module)
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Everything is there.
    Able,
    /// It cannot.
    Unable(Missing),
    /// Not all of it could be tried: a scratch namespace needs CAP_SYS_ADMIN. What was tried is there.
    Partly,
}

/// Tries everything that the IPVS mode writes. `scheduler` is the one of services that name none; where it alone is
/// missing, `rr` has to be there, which such services get (T22).
pub fn probe(scheduler: Scheduler) -> Answer {
    if let Err(error) = Ipvs::open() {
        let reason = format!("there is no IPVS: {}", chain(&error));
        return Answer::Unable(if has_connection_tracker() {
            Missing {
                module: "ip_vs",
                reason,
            }
        } else {
            Missing {
                module: "nf_conntrack",
                reason: format!("{reason}, and no connection tracker, which it needs"),
            }
        });
    }
    let scratch = thread::Builder::new()
        .name("probe".into())
        .spawn(move || isolate().then(|| try_all(scheduler)));
    match scratch.map(thread::JoinHandle::join) {
        Ok(Ok(Some(Ok(())))) => Answer::Able,
        Ok(Ok(Some(Err(missing)))) => Answer::Unable(missing),
        _ => match live(scheduler) {
            Ok(()) => Answer::Partly,
            Err(missing) => Answer::Unable(missing),
        },
    }
}

/// Said of a kernel without.
pub(crate) const NO_CONNECTION_TRACKER: &str = "there is no connection tracker (kernel module nf_conntrack)";

/// Asking makes the kernel load it.
pub(crate) fn has_connection_tracker() -> bool {
    let listed = Conntrack::open().and_then(|mut conntrack| {
        let none = Filter::udp(conntrack::Family::V4);
        conntrack.delete_where(&none, |_| false)
    });
    listed.is_ok() || Path::new("/proc/sys/net/netfilter/nf_conntrack_max").exists()
}

/// This thread has a network namespace of its own from now on. False where it may not.
#[allow(
    unsafe_code,
    reason = "unshare(2) is unsafe where it splits the descriptors of a thread; the network is no such part"
)]
pub(crate) fn isolate() -> bool {
    // SAFETY: CLONE_NEWNET alone changes no memory and no descriptor table.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.is_ok()
}

fn place(address: IpAddr) -> Place {
    Place {
        address,
        port: 20_000,
        protocol: Protocol::Tcp,
    }
}

fn server(scheduler: Scheduler, place: Place) -> Command {
    let config = VirtualServerConfig {
        scheduler: scheduler_name(scheduler),
        flags: Flags::default(),
        persistence: None,
    };
    Command::NewService(place.virtual_server(), config)
}

/// As kube-proxy does (`CanUseIPVSProxier`): an address for documentation, for a moment.
fn live(scheduler: Scheduler) -> Result<(), Missing> {
    let place = place(Ipv4Addr::new(198, 51, 100, 0).into());
    let mut ipvs = Ipvs::open().map_err(lacks("ip_vs", "open IPVS"))?;
    schedule(&mut ipvs, scheduler, place)?;
    let delete = Command::DelService(place.virtual_server());
    ipvs.execute(&[delete])
        .map(drop)
        .map_err(lacks("ip_vs", "delete a virtual server"))
}

/// Adds a virtual server with the scheduler, or with `rr`.
fn schedule(ipvs: &mut Ipvs, scheduler: Scheduler, place: Place) -> Result<(), Missing> {
    let mut tries = [scheduler, Scheduler::RoundRobin].into_iter().map(|scheduler| {
        let answers = ipvs
            .execute(&[server(scheduler, place)])
            .map_err(lacks("ip_vs", "add a virtual server"))?;
        answers
            .into_iter()
            .find_map(Result::err)
            .filter(|error| !error.is_exists())
            .map_or(Ok(()), |error| {
                Err(lacks("ip_vs_rr", "add a virtual server with the scheduler rr")(error))
            })
    });
    let first = tries.next().unwrap_or(Ok(()));
    first.or_else(|_| tries.next().unwrap_or(Ok(())))
}

/// Everything, in a namespace of this thread's own.
fn try_all(scheduler: Scheduler) -> Result<(), Missing> {
    let v4 = place(Ipv4Addr::new(198, 51, 100, 1).into());
    let v6 = place("2001:db8::1".parse().unwrap_or(v4.address));
    let mut ipvs = Ipvs::open().map_err(lacks("ip_vs", "open IPVS"))?;
    schedule(&mut ipvs, scheduler, v4)?;
    schedule(&mut ipvs, scheduler, v6)?;
    let mut vips = Vips::open().map_err(lacks("dummy", "open rtnetlink"))?;
    vips.ensure_device().map_err(lacks("dummy", "make a dummy device"))?;
    vips.execute(&[VipCommand::AddAddress(v4.address), VipCommand::AddAddress(v6.address)])
        .map_err(lacks("dummy", "add an address to a dummy device"))?;
    Nftables::open().map_err(lacks("nf_tables", "open nf_tables"))?;
    let mut kernel = LiveKernel::open().map_err(lacks("nf_tables", "open the kernel's tables"))?;
    let mut ops = Vec::new();
    for (family, at) in [(Family::Ip, v4), (Family::Ip6, v6)] {
        let rules = Rules {
            family,
            masquerade_bit: 14,
            local: LocalTraffic::default(),
        };
        ops.push(Op::Policy(PolicyCommand::Install(rules.into())));
        ops.extend(elements(at).map(|(key, value)| Op::Policy(PolicyCommand::Add(key, value))));
    }
    let real = RealServer {
        address: SocketAddr::new(Ipv4Addr::new(198, 51, 100, 2).into(), 80),
    };
    let add = Command::NewDest(v4.virtual_server(), real, RealServerConfig::masquerade(1));
    ops.push(Op::Ipvs(add));
    let answers = kernel.execute(&ops).map_err(|error| Missing {
        module: "nf_tables",
        reason: chain(&error),
    })?;
    let refused = ops
        .iter()
        .zip(answers)
        .find_map(|(op, answer)| Some((op, answer.err()?)));
    match refused {
        None => Ok(()),
        Some((op, error)) => Err(Missing {
            module: if matches!(op, Op::Policy(_)) {
                "nf_tables"
            } else {
                "ip_vs"
            },
            reason: format!("the kernel refused {}: {error}", op.key()),
        }),
    }
}

/// One of each kind of set and map that not every kernel has.
fn elements(at: Place) -> impl Iterator<Item = (ElementKey, ElementValue)> {
    let all = if at.address.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    let range = all
        .parse()
        .ok()
        .map(|range| (ElementKey::Source(at, range), ElementValue::There));
    [
        (ElementKey::Place(SetName::Services, at), ElementValue::There),
        (ElementKey::Place(SetName::Verdicts, at), ElementValue::Refuse),
        (
            ElementKey::Place(SetName::Redirects, at),
            ElementValue::To(SocketAddr::new(at.address, 1)),
        ),
        (
            ElementKey::Draining(at, at.socket()),
            ElementValue::For(Some(crate::drain::LOOK_INTERVAL)),
        ),
    ]
    .into_iter()
    .chain(range)
}

fn lacks<E: std::error::Error>(module: &'static str, what: &'static str) -> impl Fn(E) -> Missing {
    move |error| Missing {
        module,
        reason: format!("cannot {what}: {}", chain(&error)),
    }
}
