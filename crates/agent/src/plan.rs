//! `kube-ipvs plan`: what an empty node would get. No root, no kernel.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use api_watch::Directory;
use dataplane::iptables::{self, Restore, Tables};
use dataplane::{DataPlane, Plan};
use service_model::{Cluster, Event, Family, Rejection};

use crate::cli::{EXIT_REJECTED, Output, PlanArgs};
use crate::config::Configuration;
use crate::dry_run::DryRun;
use crate::mode::Mode;
use crate::service_settings::{masquerade_bit, mode, model_config};

pub(crate) fn run(args: &PlanArgs) -> Result<ExitCode> {
    let given = Configuration::of_service_flags(&args.service)?.kube_proxy;
    let bit = masquerade_bit(&given)?;
    let mut cluster = Cluster::new(model_config(&given)?);
    let directory =
        Directory::read(&args.manifests).with_context(|| format!("manifests {}", args.manifests.display()))?;
    cluster.extend(directory.batch());
    let node_ips = if args.node_ip.is_empty() {
        cluster.primary_addresses()
    } else {
        args.node_ip.clone()
    };
    cluster.apply(Event::NodeAddresses(node_ips));

    let mut rejected = Rejected {
        objects: cluster.take_unreadable().unwrap_or_default().into_iter().collect(),
        texts: directory.faults().map(str::to_owned).collect(),
    };
    match mode(&given) {
        Mode::Ipvs => plan_ipvs(args, &mut cluster, &mut rejected)?,
        Mode::Iptables => plan_iptables(args, &mut cluster, bit, &mut rejected)?,
    }
    for text in &rejected.texts {
        eprintln!("rejected: {text}");
    }
    for rejection in &rejected.objects {
        eprintln!("rejected: {rejection}");
    }
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

fn plan_ipvs(args: &PlanArgs, cluster: &mut Cluster, rejected: &mut Rejected) -> Result<()> {
    let settings = dataplane::Settings {
        with_addresses: args.vip_addresses,
        ..dataplane::Settings::default()
    };
    let mut plane = DataPlane::new(DryRun::nowhere(), settings);
    for family in [Family::V4, Family::V6] {
        plane.want_local_traffic(family, cluster.local_traffic(family));
    }
    for service in cluster.take_touched() {
        let program = cluster.program(&service);
        plane.want(&service, &program);
        rejected.objects.extend(program.rejections);
    }
    print(&plane.plan(Instant::now()), rejected, args.output).context("write the plan")
}

fn plan_iptables(args: &PlanArgs, cluster: &mut Cluster, masquerade_bit: u8, rejected: &mut Rejected) -> Result<()> {
    let mut tables = Tables::new(iptables::Settings {
        masquerade_bit,
        ..iptables::Settings::default()
    });
    for family in [Family::V4, Family::V6] {
        tables.want_local_traffic(family, cluster.local_traffic(family));
        tables.want_node_ports(family, cluster.node_port_places(family));
    }
    for service in cluster.take_touched() {
        let program = cluster.program(&service);
        tables.want(&service, &program);
        rejected.objects.extend(program.rejections);
    }
    let restores: Vec<_> = [Family::V4, Family::V6]
        .into_iter()
        .filter_map(|family| tables.plan(family))
        .collect();
    print_restores(&restores, rejected, args.output).context("write the plan")
}

fn print(plan: &Plan, rejected: &Rejected, output: Output) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match output {
        Output::Text => write!(out, "{plan}"),
        Output::Json => {
            let ops: Vec<_> = plan
                .ops()
                .iter()
                .map(|op| serde_json::json!({ "phase": op.phase().to_string(), "object": op.key().to_string(), "op": op.to_string() }))
                .collect();
            print_json(&mut out, "ops", &ops, rejected)
        }
    }
}

fn print_restores(restores: &[Restore], rejected: &Rejected, output: Output) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let command = |family| match family {
        Family::V4 => "iptables-restore --noflush",
        Family::V6 => "ip6tables-restore --noflush",
    };
    match output {
        // The comment is one for the command, too.
        Output::Text => restores
            .iter()
            .try_for_each(|restore| write!(out, "# {}\n{}", command(restore.family), restore.text)),
        Output::Json => {
            let restores: Vec<_> = restores
                .iter()
                .map(|restore| serde_json::json!({ "command": command(restore.family), "input": restore.text }))
                .collect();
            print_json(&mut out, "restores", &restores, rejected)
        }
    }
}

fn print_json(out: &mut impl Write, what: &str, plan: &[serde_json::Value], rejected: &Rejected) -> io::Result<()> {
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
