//! L14: a kernel that lacks one module. The mode is right, what is said about it names the module, and traffic flows
//! wherever one of the modes can carry it. `cargo xtask test --level modules` boots a kernel for each test, which lacks
//! the module that the test is named after.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test stops at what it did not expect"
)]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testbed::daemon::{Daemon, binary};
use testbed::fake_api::FakeApi;
use testbed::tool;
use testbed::world::{NODE, World, ask_tcp};

const API: &str = "192.0.2.20:8001";
/// Emulated kernels are slow; only a hang takes so long.
const PATIENCE: Duration = Duration::from_secs(180);
const PLACES: [&str; 3] = ["10.96.1.1:80", "[fd00:10:96::101]:80", "192.0.2.10:30080"];

/// A node, and an API server with the objects of `deploy/examples`.
struct Scene {
    world: World,
    api: FakeApi,
    run_dir: String,
    #[allow(dead_code, reason = "it goes with the scene")]
    folder: tempfile::TempDir,
}

impl Scene {
    fn new(withheld: &str) -> Self {
        let loaded = fs::read_to_string("/proc/modules").unwrap();
        let is_loaded = |name: &str| loaded.lines().any(|line| line.split(' ').next() == Some(name));
        assert!(!is_loaded(withheld), "this kernel is not one without {withheld}");
        assert!(is_loaded("veth"), "this kernel's modules are not known");
        let world = World::new().unwrap();
        // As the network plugin does.
        world.node.sh("sysctl -qw net.ipv4.ip_forward=1").unwrap();
        let api = FakeApi::start_on_a_thread(&world.other, API.parse().unwrap()).unwrap();
        for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples")).unwrap() {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
            for object in objects {
                let collection = match object["kind"].as_str().unwrap() {
                    "Node" => "/api/v1/nodes",
                    "Service" => "/api/v1/services",
                    "EndpointSlice" => "/apis/discovery.k8s.io/v1/endpointslices",
                    kind => panic!("{kind}"),
                };
                api.put(collection, object);
            }
        }
        let folder = tempfile::tempdir().unwrap();
        Self {
            world,
            api,
            run_dir: format!("--run-dir={}", folder.path().join("run").display()),
            folder,
        }
    }

    fn start(&self, more: &[&str]) -> Daemon {
        let server = format!("http://{API}");
        let own = ["--master", &server, "--hostname-override", NODE, &self.run_dir];
        let arguments: Vec<_> = own.into_iter().chain(more.iter().copied()).collect();
        Daemon::start(&self.world.node, &arguments).unwrap()
    }

    /// It serves in this mode; what it said until then.
    fn serves(&self, mode: &str, more: &[&str]) -> Vec<String> {
        let mut daemon = self.start(more);
        daemon.wait_until_serving().unwrap();
        for place in PLACES {
            ask_tcp(&self.world.client, place.parse().unwrap()).unwrap();
        }
        let expect = match mode {
            "ipvs" => (true, [false, false]),
            "iptables-nft" => (false, [true, false]),
            "iptables-legacy" => (false, [false, true]),
            other => panic!("{other}"),
        };
        // What the mode before left goes when this one serves (L15).
        let deadline = Instant::now() + PATIENCE;
        while self.there() != expect {
            assert!(Instant::now() < deadline, "{:?}: {:#?}", self.there(), daemon.said());
            std::thread::sleep(Duration::from_millis(200));
        }
        let said = daemon.said();
        let (status, _) = daemon.terminate().unwrap();
        assert!(status.success());
        said
    }

    /// Are there virtual servers, and rules of the two implementations?
    fn there(&self) -> (bool, [bool; 2]) {
        let node = &self.world.node;
        let servers = node.sh("ipvsadm -Sn").unwrap_or_default();
        let rules = ["nft", "legacy"].map(|variant| {
            let saved = node.sh(&format!("iptables-{variant}-save"));
            saved.unwrap_or_default().contains("-A KUBE-SVC-")
        });
        (!servers.is_empty(), rules)
    }

    /// It serves by the other mode, and everybody who looks can see why.
    fn falls_back(&self, mode: &str, module: &str, more: &[&str]) {
        let said = self.serves(mode, more);
        let module = format!("(kernel module {module})");
        let is_told = |line: &&String| line.contains("effective=iptables") && line.contains(&module);
        assert!(said.iter().any(|line| is_told(&line)), "{said:#?}");
        let note = self.event("FallbackToIptables");
        assert!(note.contains(&module), "{note}");
        let mut refused = self.start(&[&["--fallback=none"], more].concat());
        let status = ended(&mut refused);
        let said = refused.said();
        assert_eq!(status, Some(3), "{said:#?}");
        assert!(said.iter().any(|line| line.contains(&module)), "{said:#?}");
    }

    /// The note of an event on the node.
    fn event(&self, reason: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let posted = self.api.posted();
            if let Some((_, event)) = posted.iter().find(|(_, event)| event["reason"] == json!(reason)) {
                return event["note"].as_str().unwrap().to_owned();
            }
            assert!(Instant::now() < deadline, "no event {reason}: {posted:#?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn is_silent_about(&self, reason: &str) {
        let posted = self.api.posted();
        assert!(
            posted.iter().all(|(_, event)| event["reason"] != json!(reason)),
            "{posted:#?}"
        );
    }

    /// What was written goes, whatever the kernel lacks.
    fn is_cleaned(&self) {
        let clean = || {
            let mut command = Command::new(binary());
            command.args(["--cleanup", &self.run_dir]);
            self.world.node.run(|| tool::output(command)).unwrap()
        };
        assert_ne!(clean(), "");
        assert_eq!(clean(), "");
    }
}

fn ended(daemon: &mut Daemon) -> Option<i32> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = daemon.ended().unwrap() {
            return status.code();
        }
        assert!(Instant::now() < deadline, "{:#?}", daemon.said());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn nothing() {
    let scene = Scene::new("nothing");
    let said = scene.serves("ipvs", &[]);
    assert!(!said.iter().any(|line| line.contains("falling back")), "{said:#?}");
    scene.is_silent_about("FallbackToIptables");
    scene.is_cleaned();
    scene.serves("iptables-nft", &["--proxy-mode=iptables"]);
    scene.is_silent_about("FallbackToIptables");
    scene.is_cleaned();
}

#[test]
fn ip_vs() {
    let scene = Scene::new("ip_vs");
    scene.falls_back("iptables-nft", "ip_vs", &[]);
    scene.is_cleaned();
}

/// The default scheduler, and the one of services whose own is missing (T22).
#[test]
fn ip_vs_rr() {
    let scene = Scene::new("ip_vs_rr");
    scene.falls_back("iptables-nft", "ip_vs_rr", &[]);
    // Nothing needs it where all services have others.
    let said = scene.serves("ipvs", &["--ipvs-scheduler=wlc"]);
    assert!(!said.iter().any(|line| line.contains("falling back")), "{said:#?}");
    scene.is_cleaned();
}

/// T22: not a reason to leave the mode.
#[test]
fn ip_vs_mh() {
    let scene = Scene::new("ip_vs_mh");
    let said = scene.serves("ipvs", &["--ipvs-scheduler=mh"]);
    let is_told = |line: &&String| line.contains("lacks this scheduler") && line.contains("mh");
    assert!(said.iter().any(|line| is_told(&line)), "{said:#?}");
    scene.is_silent_about("FallbackToIptables");
    scene.is_cleaned();
}

#[test]
fn dummy() {
    let scene = Scene::new("dummy");
    scene.falls_back("iptables-nft", "dummy", &[]);
    scene.is_cleaned();
}

/// Then iptables is the old one.
#[test]
fn nf_tables() {
    let scene = Scene::new("nf_tables");
    scene.falls_back("iptables-legacy", "nf_tables", &[]);
    scene.is_cleaned();
}

/// Both modes end flows of UDP with it, and serve without.
#[test]
fn nf_conntrack_netlink() {
    let scene = Scene::new("nf_conntrack_netlink");
    for (mode, arguments) in [("ipvs", &[][..]), ("iptables-nft", &["--proxy-mode=iptables"])] {
        let said = scene.serves(mode, arguments);
        let is_told = |line: &&String| line.contains("WARN") && line.contains("conntrack");
        assert!(said.iter().any(|line| is_told(&line)), "{said:#?}");
        scene.is_silent_about("FallbackToIptables");
        scene.is_cleaned();
    }
}

/// Neither mode can do without: IPVS itself needs it, and so does the table `nat`.
#[test]
fn nf_conntrack() {
    let scene = Scene::new("nf_conntrack");
    for (arguments, status) in [(&[][..], 1), (&["--proxy-mode=iptables"], 1), (&["--fallback=none"], 3)] {
        let mut daemon = scene.start(arguments);
        let ended = ended(&mut daemon);
        let said = daemon.said();
        assert_eq!(ended, Some(status), "{said:#?}");
        let last = said.last().unwrap();
        assert!(last.contains("nf_conntrack"), "{said:#?}");
    }
}
