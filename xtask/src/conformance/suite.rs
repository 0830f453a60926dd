//! Upstream's tests: which there are, which are asked for, and one of them run. Each runs in a process of its own, so it
//! has a log, a time limit and a report of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::verdict::{Outcome, Verdict};

/// All tests that are looked at are of this group of upstream's.
const GROUP: &str = "[sig-network] ";
/// Of one test, after which it is interrupted. The longest of them takes five minutes.
const LIMIT: Duration = Duration::from_secs(600);
/// What an interrupted test gets for taking down what it made.
const GRACE: Duration = Duration::from_secs(60);

/// Tests that are not asked for: a part of the name, and why. The first that fits counts.
const LEFT_OUT: &[(&str, &str)] = &[
    ("[sig-network] DNS", "about the name service, not the Service proxy"),
    (
        "[Feature:PerformanceDNS]",
        "about the name service, not the Service proxy",
    ),
    ("[sig-network] Netpol", "NetworkPolicy is the network plugin's"),
    ("[sig-network] Ingress", "about objects of the API alone"),
    ("[sig-network] DefaultIngressClass", "about objects of the API alone"),
    ("[Feature:LoadBalancer]", "needs a cloud's load balancers"),
    ("[Feature:Networking-IPv4]", "needs the internet"),
    ("[Feature:Networking-IPv6]", "needs the internet"),
    ("[Feature:Networking-DNS]", "needs the internet"),
    ("[Feature:Networking-Performance]", "measures, decides nothing"),
    (
        "[Feature:LocalhostNodePorts]",
        "NodePorts at the loopback address are of kube-proxy's iptables mode alone (T16)",
    ),
    (
        "should be rejected for evicted pods",
        "needs a kubelet that limits local storage, which it cannot on a tmpfs",
    ),
    (
        "[Feature:KubeProxyNFAcct]",
        "counters of kube-proxy's iptables mode alone",
    ),
];

/// What a run of every change asks: one test for each of the things that a proxy does.
const SHORT: &[&str] = &[
    "Services should serve endpoints on same port and different protocols",
    "Services should have session affinity work for NodePort service",
    "Services should be rejected when no endpoints exist",
    "Services should allow pods to hairpin back to themselves through services",
    "Services should fallback to local terminating endpoints when there are no ready endpoints with externalTrafficPolicy=Local",
    "Conntrack should be able to preserve UDP traffic when server pod cycles for a NodePort service",
    "Networking Granular Checks: Services should function for service endpoints using hostNetwork",
];

/// A test that is not asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LeftOut {
    pub(crate) test: String,
    pub(crate) why: &'static str,
}

/// Upstream's program, and where it may write.
#[derive(Clone, Debug)]
pub(crate) struct Suite {
    pub(crate) program: PathBuf,
    pub(crate) kubeconfig: PathBuf,
    /// kubectl, for tests that run it.
    pub(crate) kubectl: PathBuf,
    pub(crate) scratch: PathBuf,
    pub(crate) logs: PathBuf,
}

/// Ginkgo's report, as far as it is read.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    #[serde(default)]
    spec_reports: Vec<Spec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    #[serde(default)]
    leaf_node_text: String,
    state: String,
    #[serde(default)]
    run_time: u64,
    failure: Option<Failure>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    message: Option<String>,
}

impl Spec {
    fn name(&self) -> String {
        let mut words = self.container_hierarchy_texts.clone().unwrap_or_default();
        words.push(self.leaf_node_text.clone());
        words.join(" ")
    }
}

impl Suite {
    /// The names of all tests of the network.
    ///
    /// # Errors
    /// The program does not run, or its report is none.
    pub(crate) fn list(&self) -> Result<Vec<String>> {
        let report = self.scratch.join("tests.json");
        let mut command = self.command(&report);
        command.arg("-ginkgo.dry-run");
        testbed::tool::output(command)?;
        let mut names: Vec<_> = specs(&report)?.iter().map(Spec::name).collect();
        names.retain(|name| name.starts_with(GROUP));
        names.sort();
        Ok(names)
    }

    /// Runs one test to its end, or to its time limit. What it says is in a log under its number.
    ///
    /// # Errors
    /// The program cannot be started.
    pub(crate) fn run(&self, number: usize, test: &str) -> Result<Verdict> {
        let start = Instant::now();
        let report = self.scratch.join(format!("report-{number}.json"));
        let path = self.logs.join(format!("{number:03}.log"));
        let log = fs::OpenOptions::new().create(true).append(true).open(&path)?;
        let mut command = self.command(&report);
        command
            .arg(format!("-ginkgo.focus={}$", escaped(test)))
            .arg(format!("-ginkgo.timeout={}s", LIMIT.as_secs()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut child = command.spawn().with_context(|| format!("start {command:?}"))?;
        while child.try_wait()?.is_none() {
            if start.elapsed() > LIMIT + GRACE {
                child.kill()?;
                child.wait()?;
            }
            thread::sleep(Duration::from_millis(100));
        }
        let outcome = match specs(&report) {
            Ok(specs) => outcome(&specs, test),
            Err(error) => Outcome::Failed(format!("no report: {error:#}")),
        };
        let _ = fs::remove_file(report);
        Ok(Verdict {
            test: test.to_owned(),
            outcome,
            seconds: start.elapsed().as_secs(),
            log: path,
        })
    }

    fn command(&self, report: &Path) -> Command {
        let mut command = Command::new(&self.program);
        command
            .current_dir(&self.scratch)
            .arg(format!("-kubeconfig={}", self.kubeconfig.display()))
            .arg(format!("-kubectl-path={}", self.kubectl.display()))
            .arg(format!("-e2e-output-dir={}", self.scratch.display()))
            .args(["-provider=skeleton", "-ginkgo.no-color", "-ginkgo.v"])
            .arg(format!("-ginkgo.json-report={}", report.display()));
        command
    }
}

/// Of a list of tests those to run, in two parts: beside each other, and alone. The rest is named with its reason.
pub(crate) fn choose(
    names: Vec<String>,
    short: bool,
    filter: Option<&str>,
) -> (Vec<String>, Vec<String>, Vec<LeftOut>) {
    let (mut together, mut alone, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
    for test in names {
        if let Some((_, why)) = LEFT_OUT.iter().find(|(part, _)| test.contains(part)) {
            left_out.push(LeftOut { test, why });
            continue;
        }
        let plain = test.strip_prefix(GROUP).unwrap_or(&test);
        if short && !SHORT.iter().any(|wanted| plain.starts_with(wanted))
            || filter.is_some_and(|filter| !test.contains(filter))
        {
            continue;
        }
        if test.contains("[Serial]") || test.contains("[Disruptive]") {
            alone.push(test);
        } else {
            together.push(test);
        }
    }
    (together, alone, left_out)
}

/// A test of the short list has this in its name.
pub(crate) fn short_has(text: &str) -> bool {
    SHORT.iter().any(|name| name.contains(text))
}

fn specs(report: &Path) -> Result<Vec<Spec>> {
    let text = fs::read_to_string(report).with_context(|| format!("read {}", report.display()))?;
    parse(&text)
}

fn parse(text: &str) -> Result<Vec<Spec>> {
    let reports: Vec<Report> = serde_json::from_str(text).context("read ginkgo's report")?;
    if reports.is_empty() {
        bail!("ginkgo's report has no suite");
    }
    Ok(reports.into_iter().flat_map(|report| report.spec_reports).collect())
}

/// How a test ended. What fails around it (the set-up of the suite) fails it as well.
fn outcome(specs: &[Spec], test: &str) -> Outcome {
    let said = |spec: &Spec| {
        let message = spec.failure.as_ref().and_then(|failure| failure.message.as_deref());
        message.unwrap_or_default().trim().to_owned()
    };
    let is_it = |spec: &&Spec| spec.leaf_node_type == "It" && spec.name() == test;
    let around = specs
        .iter()
        .find(|spec| spec.leaf_node_type != "It" && !["passed", "skipped", "pending"].contains(&spec.state.as_str()));
    if let Some(around) = around {
        return Outcome::Failed(format!("{}: {}", around.leaf_node_type, said(around)));
    }
    match specs.iter().find(is_it) {
        Some(spec) => match spec.state.as_str() {
            "passed" => Outcome::Passed,
            // One that was not chosen at all has no words and no time.
            "skipped" | "pending" if spec.run_time > 0 => Outcome::Skipped(said(spec)),
            "skipped" | "pending" => Outcome::Failed("ginkgo did not choose it".to_owned()),
            state => Outcome::Failed(format!("{state}: {}", said(spec))),
        },
        None => Outcome::Failed("ginkgo did not report it".to_owned()),
    }
}

/// As a regular expression of Go that fits the text alone.
fn escaped(text: &str) -> String {
    let mut expression = String::new();
    for letter in text.chars() {
        if r"\.+*?()|[]{}^$".contains(letter) {
            expression.push('\\');
        }
        expression.push(letter);
    }
    expression
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at what it did not expect")]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn tests_are_run_together_alone_or_not_at_all() {
        let all = names(&[
            "[sig-network] DNS should provide DNS for the cluster [Conformance]",
            "[sig-network] Services should allow pods to hairpin back to themselves through services",
            "[sig-network] Services should be updated after adding or deleting ports",
            "[sig-network] Services should work after restarting kube-proxy [Disruptive]",
        ]);
        let (together, alone, left_out) = choose(all.clone(), false, None);
        assert_eq!(together, all.get(1..3).unwrap());
        assert_eq!(alone, all.get(3..).unwrap());
        assert_eq!(left_out.iter().map(|out| &out.test).collect::<Vec<_>>(), [&all[0]]);
        let (together, alone, _) = choose(all.clone(), true, None);
        assert_eq!((together, alone), (names(&[&all[1]]), Vec::new()));
        let (together, alone, _) = choose(all.clone(), false, Some("restarting"));
        assert_eq!((together, alone), (Vec::new(), names(&[&all[3]])));
    }

    #[test]
    fn a_focus_fits_its_name_alone() {
        assert_eq!(
            escaped("[sig-network] a.b (c) [Slow]"),
            r"\[sig-network\] a\.b \(c\) \[Slow\]"
        );
    }

    #[test]
    fn how_a_test_ended_is_in_the_report() {
        let spec = |kind: &str, name: &str, state: &str, time: u64, said: &str| {
            format!(
                r#"{{"ContainerHierarchyTexts":["[sig-network] X"],"LeafNodeType":"{kind}","LeafNodeText":"{name}","State":"{state}","RunTime":{time},"Failure":{{"Message":"{said}"}}}}"#
            )
        };
        let check = |specs: &[String], expected: &Outcome| {
            let report = format!(r#"[{{"SpecReports":[{}]}}]"#, specs.join(","));
            assert_eq!(outcome(&parse(&report).unwrap(), "[sig-network] X a"), *expected);
        };
        let other = spec("It", "a b", "failed", 5, "not this one");
        let failed = |text: &str| Outcome::Failed(text.to_owned());
        check(&[other.clone(), spec("It", "a", "passed", 5, "")], &Outcome::Passed);
        check(
            &[other.clone(), spec("It", "a", "skipped", 5, "needs 3 zones")],
            &Outcome::Skipped("needs 3 zones".to_owned()),
        );
        check(
            &[spec("It", "a", "skipped", 0, "")],
            &failed("ginkgo did not choose it"),
        );
        check(&[other], &failed("ginkgo did not report it"));
        check(&[spec("It", "a", "timedout", 5, "late")], &failed("timedout: late"));
        check(
            &[
                spec("SynchronizedBeforeSuite", "", "failed", 5, "no nodes"),
                spec("It", "a", "skipped", 5, ""),
            ],
            &failed("SynchronizedBeforeSuite: no nodes"),
        );
        assert!(parse("[]").is_err());
    }
}
