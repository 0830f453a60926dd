//! Any sequence of events: the programs are those of a fresh start on the same objects, no place has two owners, and the
//! steps are bounded by a constant times what there is to look at.

#![no_main]

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use arbitrary::Unstructured;
use dataplane::DataPlane;
use dataplane::fake::FakeKernel;
use fuzz::node::config;
use fuzz::world::{Objects, event, size_of};
use libfuzzer_sys::fuzz_target;
use service_model::fuzzing::steps;
use service_model::{Capture, Cluster, Event, ObjectName, Program};

/// Events of one input.
const EVENTS: usize = 60;
/// Steps for each thing that is to be looked at. One is what is seen; what grows faster than its input meets this.
const STEPS: u64 = 8;
/// Steps that anything may take.
const FREE: u64 = 256;

fuzz_target!(init: fuzz::attempt::prepare(), |bytes: &[u8]| {
    let mut u = Unstructured::new(bytes);
    let capture = match u.arbitrary() {
        Ok(true) => Capture::Bind,
        Ok(false) => Capture::Redirect { localhost_node_ports: false },
        Err(_) => return,
    };
    let mut node = Node::new(capture);
    for _ in 0..EVENTS {
        if u.is_empty() {
            break;
        }
        let Ok(event) = event(&mut u) else { break };
        node.take(event);
    }
    node.is_as_fresh();
});

struct Node {
    capture: Capture,
    objects: Objects,
    cluster: Cluster,
    programs: BTreeMap<ObjectName, Program>,
    plane: DataPlane<FakeKernel>,
}

impl Node {
    fn new(capture: Capture) -> Self {
        Self {
            capture,
            objects: Objects::default(),
            cluster: Cluster::new(config(capture)),
            programs: BTreeMap::new(),
            plane: DataPlane::new(FakeKernel::new(), dataplane::Settings::default()),
        }
    }

    fn take(&mut self, event: Event) {
        // A Node or an address may concern every service, an object the services of its places.
        let everything = |objects: &Objects| objects.whole_size();
        let before = everything(&self.objects);
        self.objects.take(&event);
        let touched = RefCell::new(Vec::new());
        let text = format!("{event:?}");
        let taken = steps(|| {
            self.cluster.apply(event);
            *touched.borrow_mut() = self.cluster.take_touched();
        });
        let whole = before + everything(&self.objects);
        within(taken, whole, &text);
        for name in touched.into_inner() {
            let mut program = Program::default();
            let computed = steps(|| program = self.cluster.program(&name));
            within(computed, self.objects.size(&name) + size_of(&program), &text);
            if self.capture == Capture::Bind {
                self.plane.want(&name, &program);
            }
            self.programs.insert(name, program);
        }
        if self.capture == Capture::Bind {
            self.plane
                .commit(Instant::now())
                .expect("the kernel in memory takes ops");
        }
    }

    fn is_as_fresh(&self) {
        let fresh = self.objects.fresh(Cluster::new(config(self.capture)));
        let empty = Program::default();
        for name in self.programs.keys().chain(self.objects.services()) {
            assert_eq!(
                self.programs.get(name).unwrap_or(&empty),
                &fresh.program(name),
                "{name}"
            );
        }
        let frontends = self.programs.values().flat_map(|program| &program.frontends);
        let mut places = HashSet::new();
        for frontend in frontends {
            assert!(places.insert(frontend.key), "{} has one owner", frontend.key);
        }
    }
}

fn within(steps: u64, size: u64, event: &str) {
    let allowed = FREE + STEPS * size;
    assert!(
        steps <= allowed,
        "{steps} steps for {size} things, {allowed} are allowed: {event}"
    );
}
