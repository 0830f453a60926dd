//! `kube-ipvs plan`: what an empty node would get. No root, no kernel. Settings are the daemon's, made as the daemon makes
//! them.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use api_watch::Directory;
use dataplane::iptables::{Restore, Tables};
use dataplane::{DataPlane, Plan};
use service_model::{Change, Cluster, Event, Family, ObjectName, Program, Rejection};
use tracing::warn;

use crate::cli::{DaemonArgs, EXIT_REJECTED, Output, PlanArgs};
use crate::config::Configuration;
use crate::dry_run::DryRun;
use crate::log;
use crate::mode::Mode;
use crate::settings::Settings;
use crate::stdout::{print, remark};

pub(crate) fn run(args: PlanArgs) -> Result<ExitCode> {
    let PlanArgs {
        manifests,
        node_ip,
        output,
        configuration: given,
    } = args;
    let configuration = Configuration::load(&given)?;
    log::to_stderr(&configuration.kube_proxy.logging);
    configuration.report();
    if let Some(path) = &given.write_config_to {
        configuration.write(path)?;
        return Ok(ExitCode::SUCCESS);
    }
    let daemon = DaemonArgs {
        manifests: Some(manifests.clone()),
        configuration: given,
        ..DaemonArgs::default()
    };
    let settings = Settings::new(configuration, daemon)?;
    let mut cluster = Cluster::new(settings.model.clone());
    let directory = Directory::read(&manifests).with_context(|| format!("manifests {}", manifests.display()))?;
    let batch = directory.batch();
    let this_node = |event: &Event| matches!(event, Event::Node(Change::Applied(node)) if node.name.name() == &*settings.model.node_name);
    if !batch.iter().any(this_node) {
        warn!(
            node = %settings.model.node_name,
            "no Node object of this name is among the manifests: the node's zone, pod ranges and addresses are unknown"
        );
    }
    cluster.extend(batch);
    let node_ips = if node_ip.is_empty() {
        cluster.primary_addresses()
    } else {
        node_ip
    };
    cluster.apply(Event::NodeAddresses(node_ips));

    let programs: Vec<_> = cluster
        .take_touched()
        .into_iter()
        .map(|service| {
            let program = cluster.program(&service);
            (service, program)
        })
        .collect();
    for (service, program) in &programs {
        if program.elsewhere > 0 {
            let addresses = program.elsewhere;
            warn!(%service, addresses, "load-balancer addresses of other nodes are left to these");
        }
        if let Some((scheduler, remark)) = program
            .own_scheduler
            .and_then(|own| Some((own, own.at_equal_weights()?)))
        {
            warn!(%service, %scheduler, remark, "this scheduler needs weights that differ");
        }
    }
    let unreadable = cluster.take_unreadable().unwrap_or_default();
    let of_programs = programs
        .iter()
        .flat_map(|(_, program)| program.rejections.iter().cloned());
    let rejected = Rejected {
        objects: unreadable.into_iter().chain(of_programs).collect(),
        texts: directory.faults().map(str::to_owned).collect(),
    };
    let printed = match settings.mode {
        Mode::Ipvs => print_ops(&ipvs(&settings, &cluster, &programs), &rejected, output),
        Mode::Iptables => print_restores(&iptables(&settings, &cluster, &programs), &rejected, output),
    };
    for text in &rejected.texts {
        remark(format_args!("rejected: {text}"));
    }
    for rejection in &rejected.objects {
        remark(format_args!("rejected: {rejection}"));
    }
    printed.context("write the plan")?;
    Ok(if rejected.objects.is_empty() && rejected.texts.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_REJECTED)
    })
}

/// What the plan leaves out.
struct Rejected {
    /// Objects, and fields of objects.
    objects: BTreeSet<Rejection>,
    /// What no object could be made of: the file, perhaps the place, and why.
    texts: Vec<String>,
}

fn ipvs(settings: &Settings, cluster: &Cluster, programs: &[(ObjectName, Program)]) -> Plan {
    let mut plane = DataPlane::new(DryRun::nowhere(), settings.data_plane());
    for family in [Family::V4, Family::V6] {
        plane.want_local_traffic(family, cluster.local_traffic(family));
    }
    for (service, program) in programs {
        plane.want(service, program);
    }
    plane.plan(Instant::now())
}

fn iptables(settings: &Settings, cluster: &Cluster, programs: &[(ObjectName, Program)]) -> Vec<Restore> {
    // The daemon sets it at its start, before it reads it.
    let tcp_be_liberal = settings.start.conntrack.tcp_be_liberal;
    let mut tables = Tables::new(settings.iptables(tcp_be_liberal));
    for family in [Family::V4, Family::V6] {
        tables.want_local_traffic(family, cluster.local_traffic(family));
        tables.want_node_ports(family, cluster.node_port_places(family));
    }
    for (service, program) in programs {
        tables.want(service, program);
    }
    let plans = [Family::V4, Family::V6].map(|family| tables.plan(family));
    plans.into_iter().flatten().collect()
}

fn print_ops(plan: &Plan, rejected: &Rejected, output: Output) -> io::Result<()> {
    print(|out| match output {
        Output::Text => write!(out, "{plan}"),
        Output::Json => {
            let ops: Vec<_> = plan
                .ops()
                .iter()
                .map(|op| serde_json::json!({ "phase": op.phase().to_string(), "object": op.key().to_string(), "op": op.to_string() }))
                .collect();
            print_json(out, "ops", &ops, rejected)
        }
    })
}

fn print_restores(restores: &[Restore], rejected: &Rejected, output: Output) -> io::Result<()> {
    let command = |family| match family {
        Family::V4 => "iptables-restore --noflush",
        Family::V6 => "ip6tables-restore --noflush",
    };
    print(|out| match output {
        // The comment is one for the command, too.
        Output::Text => restores
            .iter()
            .try_for_each(|restore| write!(out, "# {}\n{}", command(restore.family), restore.text)),
        Output::Json => {
            let restores: Vec<_> = restores
                .iter()
                .map(|restore| serde_json::json!({ "command": command(restore.family), "input": restore.text }))
                .collect();
            print_json(out, "restores", &restores, rejected)
        }
    })
}

fn print_json(out: &mut dyn Write, what: &str, plan: &[serde_json::Value], rejected: &Rejected) -> io::Result<()> {
    let rejections: Vec<_> = rejected
        .objects
        .iter()
        .map(|rejection| {
            serde_json::json!({
                "kind": rejection.kind.to_string(),
                "object": rejection.object.as_str(),
                "field": rejection.field,
                "reason": rejection.reason,
            })
        })
        .collect();
    serde_json::to_writer_pretty(
        &mut *out,
        &serde_json::json!({ what: plan, "rejections": rejections, "unreadable": rejected.texts }),
    )?;
    writeln!(out)
}
