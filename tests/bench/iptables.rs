//! What writing costs in the iptables mode, through the node's own programs: everything, one endpoint, a service that
//! loses its last one; and what the audit reads.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use dataplane::iptables::{Installed, IptablesPlane, Programs, Settings};
use dataplane::plane::Plane;
use service_model::{Capture, Cluster, Config, Event, Family};
use testbed::netns::Netns;

use crate::{ENDPOINTS, load};

/// Changes of one endpoint, of each of which the median is told.
const CHANGES: u32 = 9;

/// One run of a program.
struct Run {
    what: &'static str,
    family: Family,
    lines: usize,
    took: Duration,
}

/// Programs that are timed.
struct Timed {
    inner: Installed,
    runs: Rc<RefCell<Vec<Run>>>,
}

impl Timed {
    fn run<T>(&mut self, what: &'static str, family: Family, text: &str, work: impl FnOnce(&mut Installed) -> T) -> T {
        let start = Instant::now();
        let result = work(&mut self.inner);
        self.runs.borrow_mut().push(Run {
            what,
            family,
            lines: text.lines().count(),
            took: start.elapsed(),
        });
        result
    }
}

impl Programs for Timed {
    fn save(&mut self, family: Family) -> Result<String, String> {
        self.run("save", family, "", |programs| programs.save(family))
    }

    fn restore(&mut self, family: Family, text: &str) -> Result<(), String> {
        self.run("restore", family, text, |programs| programs.restore(family, text))
    }
}

pub(crate) fn measure(services: u32) {
    for variant in ["nft", "legacy"] {
        let netns = Netns::new().unwrap();
        // The kubelet's chain decides.
        netns
            .sh(&format!("iptables-{variant} -t mangle -N KUBE-KUBELET-CANARY"))
            .unwrap();
        netns
            .run(|| {
                of_variant(services);
                Ok(())
            })
            .unwrap();
    }
}

fn of_variant(services: u32) {
    let installed = Installed::find().unwrap();
    println!("iptables-{}", installed.variant().as_str());
    let runs = Rc::new(RefCell::new(Vec::new()));
    let timed = Timed {
        inner: installed,
        runs: Rc::clone(&runs),
    };
    let mut plane = IptablesPlane::new(timed, Settings::default());
    let mut cluster = Cluster::new(Config {
        capture: Capture::Redirect {
            localhost_node_ports: false,
        },
        ..load::config()
    });
    for number in 0..services {
        cluster.apply(load::service(number));
        cluster.apply(load::slice(number, ENDPOINTS));
    }
    let mut step = |name: &str, event: Option<Event>| -> Duration {
        let start = Instant::now();
        event.into_iter().for_each(|event| cluster.apply(event));
        for family in [Family::V4, Family::V6] {
            plane.want_local_traffic(family, cluster.local_traffic(family));
            plane.want_node_ports(family, cluster.node_port_places(family));
        }
        for service in cluster.take_touched() {
            let program = cluster.program(&service);
            plane.want(&service, &program);
        }
        if name == "full" {
            plane.adopt().unwrap();
        }
        plane.commit(start, usize::MAX).unwrap();
        let took = start.elapsed();
        let runs = std::mem::take(&mut *runs.borrow_mut());
        let programs: Duration = runs.iter().map(|run| run.took).sum();
        let told: Vec<_> = runs.iter().map(ToString::to_string).collect();
        println!(
            "  {name}: {:.1} ms, {:.1} ms of it in programs: {}",
            milliseconds(took),
            milliseconds(programs),
            told.join(", ")
        );
        took
    };
    step("full", None);
    let mut all: Vec<_> = (0..CHANGES)
        .map(|number| {
            step(
                "one endpoint more",
                Some(load::slice(number * 31 % services, ENDPOINTS + 1)),
            )
        })
        .collect();
    all.sort_unstable();
    println!(
        "  one endpoint more, median: {:.1} ms",
        milliseconds(all[all.len() / 2])
    );
    step("the last endpoint gone", Some(load::slice(services / 2, 0)));
    let start = Instant::now();
    let saved = plane.adopt().unwrap();
    println!("  audit: {:.1} ms, {saved:?}", milliseconds(start.elapsed()));
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            what,
            family,
            lines,
            took,
        } = self;
        write!(f, "{what} {family:?} {lines} lines {:.1} ms", milliseconds(*took))
    }
}
