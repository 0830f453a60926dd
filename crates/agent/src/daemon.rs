//! The daemon: what is set up at start, which task and thread does what, and what ends it.

use std::fs;
use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use api_watch::{ApiConfig, ApiServer, CallObserver, Directory, EventSink, EventType, ObjectEvent, Patience, Peers};
use dataplane::iptables::{Installed, IptablesPlane, Programs, Saved};
use dataplane::live::LiveKernel;
use dataplane::rules;
use dataplane::{DataPlane, Kernel, KernelBroken, Plane, Snapshot};
use ipvs::{Ipvs, VipMonitor};
use nftables::Monitor;
use service_model::{Batch, Event, Family};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

use crate::bridge;
use crate::cleanup;
use crate::deny_exec;
use crate::dry_run::DryRun;
use crate::host_rules;
use crate::http::service_health::HealthChecks;
use crate::instance;
use crate::ip_family;
use crate::listeners::{self, Listeners};
use crate::log::Verbosity;
use crate::metrics::Metrics;
use crate::mode::{Choice, Mode, ModeOrigin};
use crate::privilege::require_net_admin;
use crate::progress::Progress;
use crate::servers::Servers;
use crate::settings::{LocalhostNodePorts, Settings, Source};
use crate::start;
use crate::sync::{Channels, Readers, Rescue, Surroundings, Sync, Upkeep};

/// Batches between the API side and the sync thread. When it is full the API side waits.
const CHANNEL: usize = 1024;

/// Runs until SIGTERM or SIGINT; the data path stays as it is (L12).
///
/// # Errors
/// Bad settings, a kernel that lacks something, or a task that must run and ended.
pub(crate) fn run(settings: Settings, verbosity: Verbosity) -> Result<()> {
    let requested = settings.mode;
    info!(version = env!("CARGO_PKG_VERSION"), node = %settings.model.node_name, mode = %requested, "starting");
    if settings.mode_origin == ModeOrigin::Default {
        info!("no mode is given: ipvs, which is this program's default; kube-proxy's is iptables");
    }
    ip_family::tell(settings.model.families);
    if settings.dry_run {
        return match requested {
            Mode::Ipvs => serve(settings, None, verbosity, |settings| {
                let kernel = open_to_read()
                    .inspect_err(|error| warn!("planning for an empty node: {error:#}"))
                    .ok();
                Ok((DataPlane::new(DryRun::over(kernel), settings.data_plane()), None))
            }),
            Mode::Iptables => {
                bail!("--dry-run is of the mode ipvs; `kube-ipvs plan --proxy-mode=iptables` prints rules")
            }
        };
    }
    require_net_admin()?;
    let choice = Choice::make(
        requested,
        settings.mode_origin,
        settings.model.scheduler,
        settings.fallback,
    )?;
    if settings.start.init_only {
        return start::init_only(&settings, choice.effective);
    }
    if settings.deny_exec {
        deny_exec::in_mode(choice.effective)?;
    }
    match choice.effective {
        Mode::Ipvs => serve(settings, Some(choice), verbosity, open_ipvs),
        Mode::Iptables => serve(settings.for_iptables(), Some(choice), verbosity, open_iptables),
    }
}

/// Sources first, the kernel after: bad input must leave the node as it was.
/// `open` gives the data plane, and who listens to what others do to it. Nothing was chosen = nothing is written.
fn serve<P: Plane + Send + 'static>(
    mut settings: Settings,
    choice: Option<Choice>,
    verbosity: Verbosity,
    open: impl FnOnce(&Settings) -> Result<(P, Option<Listeners<P::Picture>>)>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        let (batches, waiting) = mpsc::channel(CHANNEL);
        let node_name = settings.model.node_name.to_string();
        let (other_nodes, wanted) = watch::channel(false);
        let (readers, checks) = readers(&settings, choice.as_ref());
        let observer = {
            let metrics = Arc::clone(&readers.metrics);
            CallObserver::new(move |call| metrics.rest_client.take(call))
        };
        let peers = Peers::default();
        let api = ApiSide { observer, peers: peers.clone() };
        let (sink, source) = start_source(&settings.source, &node_name, batches.clone(), wanted, api).await?;
        let servers = choice.as_ref().map(|choice| Servers {
            settings: settings.servers.clone(),
            mode: choice.effective,
            readers: readers.clone(),
            checks,
            sink: sink.clone(),
            node_name,
            health_timeout: settings.periods.sync * 2,
            verbosity,
        });
        let mut terminate = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("wait for SIGINT")?;
        let config_file = settings.config_file.take();
        // What ends the program from its first moment on, also while it waits for the lock.
        let outside = async {
            let config_changed = async {
                match config_file {
                    Some(file) => file.changed().await,
                    None => pending().await,
                }
            };
            let served = async {
                match servers {
                    Some(servers) => servers.run().await,
                    None => pending().await,
                }
            };
            tokio::select! {
                _ = terminate.recv() => info!("SIGTERM, leaving the data path as it is"),
                _ = interrupt.recv() => info!("SIGINT, leaving the data path as it is"),
                changed = config_changed => {
                    changed.context("watch the configuration file")?;
                    // kube-proxy's words, which its operators look for.
                    bail!("content of the proxy server's configuration file was updated");
                }
                ended = source => return Err(anyhow!(ended.context("the source of objects panicked")?).context("follow objects")),
                ended = served => return Err(ended),
            }
            Ok(())
        };
        let mut outside = pin!(outside);
        let progress = Arc::clone(&readers.progress);
        // Held until the program ends. A dry run writes nothing and needs no lock.
        let _lock = match choice {
            Some(_) => tokio::select! {
                end = &mut outside => return end,
                lock = instance::take(settings.second_instance, |waits| progress.set_standby(waits)) => lock?,
            },
            None => None,
        };
        if let Some(choice) = &choice {
            tell_start(choice, &settings, &sink);
            if let Some(reason) = start::node(&settings.start)? {
                let node = &settings.model.node_name;
                sink.send(ObjectEvent::about_node(node, EventType::Warning, "readOnlySysFS", "StartKubeProxy", reason));
            }
        }
        let (plane, listeners) = open(&settings)?;
        let (heard, host, listener_ended) = listeners::start(listeners)?;
        let addresses = tokio::spawn(follow_node_addresses(batches, host.ask.clone()));
        let surroundings = Surroundings::new(&settings.servers, peers, host);
        let mut listener_ended = pin!(listener_ended);
        let (serving, served) = oneshot::channel();
        let channels = Channels {
            batches: waiting,
            heard,
            surroundings,
            sink,
            readers,
            other_nodes,
            serving,
        };
        let (upkeep, rescue) = match &choice {
            Some(choice) => (
                start::upkeep(&settings, choice.effective),
                Rescue::of_node(settings.model.masquerade_all),
            ),
            None => (Upkeep::of_nothing(), Rescue::of_nothing()),
        };
        if let Some(choice) = choice {
            let (forward, bit, deny_exec) = (settings.forward_accept, settings.masquerade_bit, settings.deny_exec);
            // Not before: until then the other mode's rules, or kube-proxy's, may be what carries traffic (L15).
            tokio::spawn(async move {
                served.await.map(|()| match choice.effective {
                    Mode::Ipvs if deny_exec => host_rules::tell_leftovers(),
                    Mode::Ipvs => host_rules::start_removal(forward, bit),
                    // A large table takes netlink seconds.
                    Mode::Iptables => aside(leave_ipvs),
                })
            });
        }
        let sync = Sync::new(settings.model, plane, channels, settings.periods)
            .with_upkeep(upkeep)
            .with_rescue(rescue);
        let (ended, sync_ended) = oneshot::channel();
        thread::Builder::new()
            .name("sync".into())
            .spawn(move || {
                // Dropped, and so noticed, when the thread panics.
                let _ = ended.send(sync.run());
            })
            .context("start the sync thread")?;

        tokio::select! {
            end = &mut outside => end,
            ended = addresses => Err(ended.context("the address monitor panicked")?.context("follow node addresses")),
            ended = &mut listener_ended => Err(ended.context("listen to the kernel")),
            ended = sync_ended => {
                ended.context("the sync thread panicked")??;
                bail!("the sync thread ended");
            }
        }
    })
}

/// What the sync thread tells others by, and what they read of health checks.
fn readers(settings: &Settings, choice: Option<&Choice>) -> (Readers, watch::Receiver<Arc<HealthChecks>>) {
    let progress = Arc::new(Progress::new());
    let asked = Choice::as_requested(settings.mode);
    let metrics = Metrics::new(
        choice.unwrap_or(&asked).clone(),
        Arc::clone(&progress),
        settings.gates.clone(),
    );
    let (health_checks, checks) = watch::channel(Arc::default());
    let readers = Readers {
        progress,
        metrics: Arc::new(metrics),
        health_checks,
    };
    (readers, checks)
}

/// What observes requests and connections to the API server.
struct ApiSide {
    observer: CallObserver,
    peers: Peers,
}

type SourceTask = tokio::task::JoinHandle<api_watch::Error>;

async fn start_source(
    source: &Source,
    node_name: &str,
    batches: mpsc::Sender<Batch>,
    other_nodes: watch::Receiver<bool>,
    api: ApiSide,
) -> Result<(EventSink, SourceTask)> {
    match source {
        Source::Directory(directory) => {
            let read = Directory::read(directory)?;
            info!(directory = %directory.display(), "following manifests");
            Ok((EventSink::null(), tokio::spawn(read.follow(batches))))
        }
        Source::Api { kubeconfig, master } => {
            let (kubeconfig, master) = (kubeconfig.clone(), master.clone());
            let config = ApiConfig {
                kubeconfig,
                master,
                node_name: node_name.to_owned(),
                patience: Patience::default(),
                observer: api.observer,
                peers: api.peers,
            };
            let server = ApiServer::connect(&config).await?;
            info!(server = server.url(), "following the API server");
            let sink = server.event_sink();
            Ok((sink, tokio::spawn(server.watch(batches, other_nodes))))
        }
    }
}

/// Ends only with an error.
async fn follow_node_addresses(batches: mpsc::Sender<Batch>, ask_host: Sender<()>) -> anyhow::Error {
    let mut watch = match ipvs::node_address::watch().await {
        Ok(watch) => watch,
        Err(error) => return error.into(),
    };
    loop {
        match watch.next().await {
            Ok(addresses) => {
                info!(addresses = addresses.len(), "node addresses");
                // Subnets and gateways are others, too.
                let _ = ask_host.send(());
                if batches.send(vec![Event::NodeAddresses(addresses)]).await.is_err() {
                    return anyhow!("the reader of events is gone");
                }
            }
            Err(error) => return error.into(),
        }
    }
}

/// For `--dry-run`, which no choice of mode comes before: nothing is created, nothing is set.
fn open_to_read() -> Result<LiveKernel> {
    require_ipvs()?;
    Ok(LiveKernel::open()?)
}

/// Sets up what IPVS needs (reference: kube-proxy's start in IPVS mode) and opens the sockets that write.
fn open_ipvs(settings: &Settings) -> Result<(DataPlane<LiveKernel>, Option<Listeners<Snapshot>>)> {
    bridge::warn_where_replies_pass_by(&settings.model.detect_local);
    let mut kernel = LiveKernel::open()?;
    start::ipvs(settings, &mut kernel)?;
    if !settings.deny_exec {
        host_rules::start(settings.forward_accept, settings.masquerade_bit);
    }
    let mut reader = LiveKernel::open()?;
    let listeners = Listeners {
        monitors: Some((Monitor::open(rules::TABLE, kernel.tables_port())?, VipMonitor::open()?)),
        reader: Box::new(move || reader.read()),
    };
    Ok((DataPlane::new(kernel, settings.data_plane()), Some(listeners)))
}

/// The fallback: the node's iptables, of the implementation that its other agents use.
fn open_iptables(settings: &Settings) -> Result<(IptablesPlane<Installed>, Option<Listeners<Saved>>)> {
    let programs = Installed::find().map_err(|error| anyhow!("the iptables mode cannot be used: {error}"))?;
    info!(variant = programs.variant().as_str(), "rules are written with iptables");
    start::iptables(settings);
    let liberal = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal");
    let rules = settings.iptables(liberal.is_ok_and(|text| text.trim() != "0"));
    let (mut reader, families) = (programs, settings.model.families);
    let read = move || {
        let mut save = |family| {
            if !families.contains(&family) {
                return Ok(String::new());
            }
            reader.save(family).map_err(|error| KernelBroken {
                operation: "read the rules",
                source: error.into(),
            })
        };
        Ok([save(Family::V4)?, save(Family::V6)?])
    };
    let listeners = Listeners {
        monitors: None,
        reader: Box::new(read),
    };
    Ok((IptablesPlane::new(programs, rules), Some(listeners)))
}

/// Said in the log and by an event.
const IPVS_IS_IDLE: &str = "the configuration file says mode: iptables, and IPVS would work on this node; kubeadm from 1.37 writes that mode where nobody chose one: mode: ipvs is what kube-ipvs is for";

/// Where an operator looks: events on the Node that it starts and, beside the warning in the log, that it fell back (L14).
fn tell_start(choice: &Choice, settings: &Settings, sink: &EventSink) {
    let node = &settings.model.node_name;
    let event = |event_type, reason, action, note| ObjectEvent::about_node(node, event_type, reason, action, note);
    sink.send(event(EventType::Normal, "Starting", "StartKubeProxy", String::new()));
    if let Some(reason) = &choice.reason {
        let (requested, effective) = (choice.requested, choice.effective);
        let note = format!("mode {requested} was asked for, {effective} is used: {reason}");
        sink.send(event(EventType::Warning, "FallbackToIptables", "ChooseMode", note));
    }
    if choice.ipvs_is_idle {
        warn!("{IPVS_IS_IDLE}");
        sink.send(event(
            EventType::Warning,
            "IptablesModeInFile",
            "ChooseMode",
            IPVS_IS_IDLE.to_owned(),
        ));
    }
    let serves_localhost = choice.effective == Mode::Iptables && settings.localhost_node_ports();
    if !serves_localhost && settings.localhost != LocalhostNodePorts::NotNamed {
        let answers_elsewhere = settings.localhost == LocalhostNodePorts::Named;
        warn!(mode = %choice.effective, answers_elsewhere, "NodePorts do not answer on localhost, which nodePortAddresses names");
    }
}

/// Does what blocks in a thread of its own: the runtime's one thread answers probes and follows the API meanwhile.
fn aside(work: impl FnOnce() + Send + 'static) {
    drop(tokio::task::spawn_blocking(work));
}

/// What a mode before this one left: VIPs on `kube-ipvs0` would go on capturing their traffic.
fn leave_ipvs() {
    match cleanup::remove_ipvs() {
        Ok(lines) if lines.is_empty() => {}
        Ok(lines) => info!(objects = lines.len(), "what the IPVS mode left is removed"),
        Err(error) => warn!(
            error = format!("{error:#}"),
            "what the IPVS mode left is not removed: kube-ipvs cleanup tells more"
        ),
    }
}

fn require_ipvs() -> Result<()> {
    Ipvs::open().map(drop).map_err(|error| {
        if error.is_unsupported() {
            let reason = "this kernel has no IPVS (no generic netlink family IPVS): load the module ip_vs";
            anyhow::Error::from(error).context(reason)
        } else {
            error.into()
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::aside;

    #[test]
    fn f31_what_blocks_does_not_block_the_runtime() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (answer, question) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        runtime.block_on(async {
            // It ends only where another task of the runtime runs meanwhile.
            aside(move || tell.send(question.recv_timeout(Duration::from_secs(10))).unwrap());
            tokio::spawn(async move { answer.send(()).unwrap() }).await.unwrap();
        });
        assert_eq!(told.recv().unwrap(), Ok(()));
    }
}
