//! `kube-ipvs plan`: what an empty node would get. No root, no kernel.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
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
    let events = api_watch::read_directory(&args.manifests)
        .with_context(|| format!("manifests {}", args.manifests.display()))?;
    for event in events {
        cluster.apply(event);
    }
    let node_ips = if args.node_ip.is_empty() {
        cluster.primary_addresses()
    } else {
        args.node_ip.clone()
    };
    cluster.apply(Event::NodeAddresses(node_ips));

    let rejections = match mode(&given) {
        Mode::Ipvs => plan_ipvs(args, &mut cluster)?,
        Mode::Iptables => plan_iptables(args, &mut cluster, bit)?,
    };
    for rejection in &rejections {
        eprintln!("rejected: {rejection}");
    }
    Ok(if rejections.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_REJECTED)
    })
}

fn plan_ipvs(args: &PlanArgs, cluster: &mut Cluster) -> Result<BTreeSet<Rejection>> {
    let settings = dataplane::Settings {
        with_addresses: args.vip_addresses,
        ..dataplane::Settings::default()
    };
    let mut plane = DataPlane::new(DryRun::nowhere(), settings);
    for family in [Family::V4, Family::V6] {
        plane.want_local_traffic(family, cluster.local_traffic(family));
    }
    let mut rejections = BTreeSet::new();
    for service in cluster.take_touched() {
        let program = cluster.program(&service);
        plane.want(&service, &program);
        rejections.extend(program.rejections);
    }
    print(&plane.plan(Instant::now()), &rejections, args.output).context("write the plan")?;
    Ok(rejections)
}

fn plan_iptables(args: &PlanArgs, cluster: &mut Cluster, masquerade_bit: u8) -> Result<BTreeSet<Rejection>> {
    let mut tables = Tables::new(iptables::Settings {
        masquerade_bit,
        ..iptables::Settings::default()
    });
    for family in [Family::V4, Family::V6] {
        tables.want_local_traffic(family, cluster.local_traffic(family));
        tables.want_node_ports(family, cluster.node_port_places(family));
    }
    let mut rejections = BTreeSet::new();
    for service in cluster.take_touched() {
        let program = cluster.program(&service);
        tables.want(&service, &program);
        rejections.extend(program.rejections);
    }
    let restores: Vec<_> = [Family::V4, Family::V6]
        .into_iter()
        .filter_map(|family| tables.plan(family))
        .collect();
    print_restores(&restores, &rejections, args.output).context("write the plan")?;
    Ok(rejections)
}

fn print(plan: &Plan, rejections: &BTreeSet<Rejection>, output: Output) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match output {
        Output::Text => write!(out, "{plan}"),
        Output::Json => {
            let ops: Vec<_> = plan
                .ops()
                .iter()
                .map(|op| serde_json::json!({ "phase": op.phase().to_string(), "object": op.key().to_string(), "op": op.to_string() }))
                .collect();
            print_json(&mut out, "ops", &ops, rejections)
        }
    }
}

fn print_restores(restores: &[Restore], rejections: &BTreeSet<Rejection>, output: Output) -> io::Result<()> {
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
            print_json(&mut out, "restores", &restores, rejections)
        }
    }
}

fn print_json(
    out: &mut impl Write,
    what: &str,
    plan: &[serde_json::Value],
    rejections: &BTreeSet<Rejection>,
) -> io::Result<()> {
    let rejections: Vec<_> = rejections
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
    serde_json::to_writer_pretty(&mut *out, &serde_json::json!({ what: plan, "rejections": rejections }))?;
    writeln!(out)
}
