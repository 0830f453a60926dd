//! What we read otherwise than kube-proxy, each with its reason. A row changes what kube-proxy is asked, or what it says,
//! into what is expected of us, and tells whether it had to.

use serde_json::{Value, json};

use crate::Case;
use crate::outcome::Outcome;

/// An intended difference.
pub(crate) struct Difference {
    /// It, and why it is meant.
    pub(crate) what: &'static str,
    pub(crate) ask: fn(&Case, &mut Option<String>, &mut Vec<String>) -> bool,
    pub(crate) expect: fn(&Case, &mut Outcome) -> bool,
}

const fn asked(what: &'static str, ask: fn(&Case, &mut Option<String>, &mut Vec<String>) -> bool) -> Difference {
    Difference {
        what,
        ask,
        expect: |_, _| false,
    }
}

const fn expected(what: &'static str, expect: fn(&Case, &mut Outcome) -> bool) -> Difference {
    Difference {
        what,
        ask: |_, _, _| false,
        expect,
    }
}

/// In the order in which they are made.
pub(crate) const DIFFERENCES: &[Difference] = &[
    asked(
        "a blank mode is ipvs, which is what the program is for",
        |case, config, flags| {
            let blank = case.mode().is_empty();
            if blank {
                match config {
                    Some(text) => {
                        let Ok(documents) = serde_saphyr::from_multiple::<Value>(text) else {
                            return false;
                        };
                        let Some(mut tree @ Value::Object(_)) = documents.into_iter().next() else {
                            return false;
                        };
                        if tree["kind"] != "KubeProxyConfiguration" {
                            return false;
                        }
                        tree["mode"] = json!("ipvs");
                        *text = tree.to_string();
                    }
                    None => flags.insert(0, "--proxy-mode=ipvs".to_owned()),
                }
            }
            blank
        },
    ),
    expected(
        "--ipvs-min-sync-period is 0s where it is not given, as documented; upstream's flags give the IPVS mode the 1s of the iptables mode",
        |case, outcome| {
            let Outcome::Written { configuration, .. } = outcome else {
                return false;
            };
            let applies = case.config.is_none()
                && case.flag("ipvs-min-sync-period").is_none()
                && configuration["mode"] == "ipvs"
                && configuration["ipvs"]["minSyncPeriod"] == "1s";
            if applies {
                configuration["ipvs"]["minSyncPeriod"] = json!("0s");
            }
            applies
        },
    ),
    expected(
        "a file's splitStream is kept, without effect; upstream loses it when it looks for flags of logging",
        |case, outcome| {
            let Outcome::Written { configuration, .. } = outcome else {
                return false;
            };
            let split = case
                .config
                .as_ref()
                .is_some_and(|text| text.contains("splitStream: true"));
            if split {
                for format in ["text", "json"] {
                    configuration["logging"]["options"][format]["splitStream"] = json!(true);
                }
            }
            split
        },
    ),
    expected("the mode nftables is not of this program", |_, outcome| {
        refused_if(
            outcome,
            |configuration| configuration["mode"] == "nftables",
            "Invalid value: \"nftables\": this program has the modes ipvs and iptables, kube-proxy has nftables",
        )
    }),
    expected(
        "a scheduler that no kernel has is refused at once; upstream finds out with the first Service",
        |_, outcome| {
            refused_if(
                outcome,
                |configuration| configuration["ipvs"]["scheduler"] == "best",
                "unknown scheduler \"best\", must be one of rr, lc, dh, sh, sed, nq, wrr, wlc, lblc, lblcr, mh, fo, ovf, twos",
            )
        },
    ),
    expected("a name that no interface can have is refused", |_, outcome| {
        refused_if(
            outcome,
            |configuration| {
                let name = configuration["detectLocal"]["bridgeInterface"].as_str();
                name.is_some_and(|name| name.len() > 15)
            },
            "Invalid value: \"a-name-of-16-chr\": is longer than 15 bytes, which no interface name is",
        )
    }),
    expected(
        "the second document is ours, and read strictly; upstream does not look at it",
        |case, outcome| {
            let misspelled = case
                .config
                .as_ref()
                .is_some_and(|text| text.contains("fallbacks: none"));
            if misspelled {
                *outcome = Outcome::refused("unknown field `fallbacks`");
            }
            misspelled
        },
    ),
    expected(
        "an empty --cluster-cidr is none, as it is in a file",
        |case, outcome| {
            let empty = case.flag("cluster-cidr").is_some_and(|value| value.is_empty());
            accepted_if(outcome, empty, "must be a valid CIDR block")
        },
    ),
    expected(
        "the gate AllowServiceExternalIPs of later releases is known (T32)",
        |_, outcome| accepted_if(outcome, true, "unrecognized feature gate: AllowServiceExternalIPs"),
    ),
    expected(
        "--proxy-port-range, which upstream has removed, is accepted with a warning",
        |_, outcome| accepted_if(outcome, true, "unknown flag: --proxy-port-range"),
    ),
    expected(
        "the release before ours is 1.33; this build of upstream's has no version",
        |case, outcome| {
            let ours = case.config.as_ref().is_some_and(|text| text.contains("\"1.33\""));
            accepted_if(outcome, ours, "--show-hidden-metrics-for-version")
                || said_otherwise(outcome, "'0.18446744073709551615'", "'1.33'")
        },
    ),
    expected("what a blank mode stands for is said", |_, outcome| {
        said_otherwise(
            outcome,
            "(blank means the best-available proxy [currently iptables])",
            "(blank means ipvs; nftables is kube-proxy's only)",
        )
    }),
    expected("fields are named as they are written", |case, outcome| {
        let of = case.mode();
        said_otherwise(
            outcome,
            "KubeProxyConfiguration.MinSyncPeriod",
            &format!("{of}.minSyncPeriod"),
        )
    }),
];

fn refused_if(outcome: &mut Outcome, applies: fn(&Value) -> bool, complaint: &str) -> bool {
    let Outcome::Written { configuration, .. } = outcome else {
        return false;
    };
    let applies = applies(configuration);
    if applies {
        *outcome = Outcome::refused(complaint);
    }
    applies
}

fn accepted_if(outcome: &mut Outcome, applies: bool, complaint: &str) -> bool {
    let Outcome::Refused { text, .. } = outcome else {
        return false;
    };
    let applies = applies && text.contains(complaint);
    if applies {
        *outcome = Outcome::Accepted;
    }
    applies
}

fn said_otherwise(outcome: &mut Outcome, upstream: &str, ours: &str) -> bool {
    let Outcome::Refused { complaints, .. } = outcome else {
        return false;
    };
    let before = std::mem::take(complaints);
    let applies = before.iter().any(|complaint| complaint.contains(upstream));
    *complaints = before
        .into_iter()
        .map(|complaint| complaint.replace(upstream, ours))
        .collect();
    applies
}
