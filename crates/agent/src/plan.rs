//! `kube-ipvs plan`: what an empty node would get. No root, no kernel.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use dataplane::{DataPlane, Plan};
use service_model::{Cluster, Event, Family, Rejection};

use crate::cli::{EXIT_REJECTED, Output, PlanArgs};
use crate::config::KubeProxyConfiguration;
use crate::dry_run::DryRun;
use crate::service_settings::{masquerade_bit, model_config, set_from_flags};

pub(crate) fn run(args: &PlanArgs) -> Result<ExitCode> {
    let mut given = KubeProxyConfiguration::default();
    set_from_flags(&mut given, &args.service)?;
    masquerade_bit(&given)?;
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
    for rejection in &rejections {
        eprintln!("rejected: {rejection}");
    }
    Ok(if rejections.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(EXIT_REJECTED)
    })
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
            serde_json::to_writer_pretty(&mut out, &serde_json::json!({ "ops": ops, "rejections": rejections }))?;
            writeln!(out)
        }
    }
}
