//! How tests ended, and what may not be: kube-ipvs fails what a mode of kube-proxy passes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::proxy::Proxy;

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Passed,
    /// It failed beside others and passed alone.
    PassedAlone(String),
    Failed(String),
    /// By itself, with its reason.
    Skipped(String),
}

impl Outcome {
    pub(crate) fn passed(&self) -> bool {
        matches!(self, Self::Passed | Self::PassedAlone(_))
    }
}

/// One test with one proxy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Verdict {
    pub(crate) test: String,
    pub(crate) outcome: Outcome,
    pub(crate) seconds: u64,
    /// What the test said.
    pub(crate) log: PathBuf,
}

/// Verdicts of every proxy.
pub(crate) type Verdicts = BTreeMap<Proxy, Vec<Verdict>>;

/// How a proxy did in a test. `None` = it was not asked, or its run ended before.
pub(crate) fn outcome<'a>(verdicts: &'a Verdicts, proxy: Proxy, test: &str) -> Option<&'a Outcome> {
    let verdict = verdicts.get(&proxy)?.iter().find(|verdict| verdict.test == test);
    verdict.map(|verdict| &verdict.outcome)
}

/// Tests that kube-ipvs does not pass, though a mode of kube-proxy in the same run does; where no kube-proxy ran, those
/// that it does not pass. One sentence each.
pub(crate) fn complaints(verdicts: &Verdicts) -> Vec<String> {
    let theirs: Vec<_> = verdicts.keys().copied().filter(|proxy| !proxy.is_ours()).collect();
    let mut tests: Vec<_> = verdicts
        .values()
        .flatten()
        .map(|verdict| verdict.test.as_str())
        .collect();
    tests.sort_unstable();
    tests.dedup();
    let mut complaints = Vec::new();
    for (proxy, test) in verdicts
        .keys()
        .filter(|proxy| proxy.is_ours())
        .flat_map(|proxy| tests.iter().map(|test| (*proxy, *test)))
    {
        let ours = outcome(verdicts, proxy, test);
        if ours.is_some_and(Outcome::passed) {
            continue;
        }
        let passes = |theirs: &&Proxy| outcome(verdicts, **theirs, test).is_some_and(Outcome::passed);
        let by: Vec<_> = theirs.iter().filter(passes).map(|proxy| proxy.name()).collect();
        if !by.is_empty() {
            complaints.push(format!(
                "{} does not pass what {} pass: {test}",
                proxy.name(),
                by.join(", ")
            ));
        } else if theirs.is_empty() && !matches!(ours, Some(Outcome::Skipped(_))) {
            complaints.push(format!("{} does not pass: {test}", proxy.name()));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(list: &[(Proxy, &str, Outcome)]) -> Verdicts {
        let mut verdicts = Verdicts::new();
        for (proxy, test, outcome) in list {
            verdicts.entry(*proxy).or_default().push(Verdict {
                test: (*test).to_owned(),
                outcome: outcome.clone(),
                seconds: 1,
                log: PathBuf::new(),
            });
        }
        verdicts
    }

    #[test]
    fn what_a_mode_of_kube_proxy_passes_must_be_passed() {
        let failed = || Outcome::Failed("late".to_owned());
        let skipped = || Outcome::Skipped("one node".to_owned());
        let check = |list: &[(Proxy, &str, Outcome)], expected: &[&str]| {
            assert_eq!(complaints(&verdicts(list)), expected);
        };
        let (ours, theirs) = (Proxy::KubeIpvs, Proxy::KubeProxyNftables);
        check(&[(ours, "a", Outcome::Passed), (theirs, "a", failed())], &[]);
        check(
            &[
                (ours, "a", Outcome::PassedAlone("late".to_owned())),
                (theirs, "a", Outcome::Passed),
            ],
            &[],
        );
        check(&[(ours, "a", failed()), (theirs, "a", failed())], &[]);
        let complaint = "kube-ipvs does not pass what kube-proxy-nftables pass: a";
        check(&[(ours, "a", failed()), (theirs, "a", Outcome::Passed)], &[complaint]);
        check(&[(ours, "a", skipped()), (theirs, "a", Outcome::Passed)], &[complaint]);
        // One that is missing is none that passes.
        check(
            &[(ours, "b", Outcome::Passed), (theirs, "a", Outcome::Passed)],
            &[complaint],
        );
        // Alone, every failure counts.
        check(
            &[(ours, "a", failed()), (ours, "b", skipped())],
            &["kube-ipvs does not pass: a"],
        );
        check(
            &[(ours, "a", Outcome::Passed), (Proxy::KubeIpvsIptables, "a", failed())],
            &["kube-ipvs-iptables does not pass: a"],
        );
    }
}
