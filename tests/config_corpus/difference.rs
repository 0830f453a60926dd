//! What we read otherwise than kube-proxy, each with its reason. A row changes what kube-proxy is asked, or what it says,
//! into what is expected of us, and tells whether it had to.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::Case;
use crate::outcome::Outcome;

/// An intended difference.
pub(crate) struct Difference {
    /// It, and why it is meant.
    pub(crate) what: &'static str,
    pub(crate) ask: fn(&Case, &mut Option<String>, &mut Vec<String>) -> bool,
    pub(crate) expect: fn(&Case, &mut Outcome) -> bool,
    /// Minor releases of kube-proxy that it is one beside, both ends included.
    since: u16,
    until: u16,
}

impl Difference {
    /// This, where it is one beside a release.
    pub(crate) fn of(&self, minor: u16) -> Option<&Self> {
        (self.since..=self.until).contains(&minor).then_some(self)
    }

    const fn until(self, minor: u16) -> Self {
        Self { until: minor, ..self }
    }

    const fn since(self, minor: u16) -> Self {
        Self { since: minor, ..self }
    }
}

const fn asked(what: &'static str, ask: fn(&Case, &mut Option<String>, &mut Vec<String>) -> bool) -> Difference {
    Difference {
        what,
        ask,
        expect: |_, _| false,
        since: 0,
        until: u16::MAX,
    }
}

const fn expected(what: &'static str, expect: fn(&Case, &mut Outcome) -> bool) -> Difference {
    Difference {
        what,
        ask: |_, _, _| false,
        expect,
        since: 0,
        until: u16::MAX,
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
        "our own document behind it is read strictly, and once; upstream does not look at it",
        |case, outcome| {
            let text = case.config.as_deref().unwrap_or_default();
            let complaint = if text.contains("fallbacks: none") {
                "unknown field `fallbacks`"
            } else if text.matches("kind: KubeIpvsConfiguration").count() > 1 {
                "second KubeIpvsConfiguration"
            } else {
                return false;
            };
            *outcome = Outcome::refused(complaint);
            true
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
        "a gate that this release does not have is a warning: the cluster's release may have it",
        |_, outcome| accepted_if(outcome, true, "unrecognized feature gate: "),
    ),
    expected("a gate against its lock is a warning", |_, outcome| {
        accepted_if(outcome, true, ", feature is locked to ")
    })
    // In 1.33 the gate of the case is free.
    .since(34),
    expected(
        "a gate that is on while one that it depends on is off has its effect, if any",
        |_, outcome| accepted_if(outcome, true, "but depends on features that are disabled"),
    )
    .since(36),
    expected(
        "KubeProxyIPVS turns off upstream's mode, not that of this program",
        |case, outcome| {
            let off = case.mode() == "ipvs";
            accepted_if(outcome, off, "must be iptables, nftables or blank")
        },
    )
    .since(37),
    expected(
        "--proxy-port-range, which upstream has removed, is accepted with a warning",
        |_, outcome| accepted_if(outcome, true, "unknown flag: --proxy-port-range"),
    ),
    expected(
        "showHiddenMetricsForVersion is of any release: upstream's has to be the one before it",
        |case, outcome| {
            let version = case.field("showHiddenMetricsForVersion");
            let version = version.as_str().unwrap_or_default();
            let is_number = |text: &str| text.parse::<u32>().is_ok();
            let release = version
                .split_once('.')
                .is_some_and(|(major, minor)| is_number(major) && is_number(minor));
            if release {
                return HIDDEN.iter().any(|complaint| accepted_if(outcome, true, complaint));
            }
            let said = HIDDEN.iter().any(|complaint| refused_for(outcome, complaint));
            if said {
                *outcome = Outcome::refused(&format!(
                    "Invalid value: \"{version}\": --show-hidden-metrics-for-version must be omitted or name a minor \
                     release of Kubernetes, such as '1.36'"
                ));
            }
            said
        },
    ),
    expected(
        "nodePortAddresses are read as from 1.37: with the keywords primary, localhost and all, each once",
        |case, outcome| {
            let said = [
                "must be a valid CIDR\"",
                "must be a valid CIDR,",
                "can't use both 'primary' and CIDRs",
            ];
            let said = said.iter().any(|complaint| refused_for(outcome, complaint));
            let addresses = case.node_port_addresses();
            let applies = said && !addresses.is_empty();
            if applies {
                *outcome = as_from_1_37(&addresses);
            }
            applies
        },
    )
    .until(36),
    expected(
        "values in a complaint are JSON, as from 1.34 (apimachinery/pkg/util/validation/field/errors.go), not Go code",
        |_, outcome| {
            let Outcome::Refused { complaints, .. } = outcome else {
                return false;
            };
            let before = std::mem::take(complaints);
            let after = before
                .iter()
                .map(|complaint| with_json(complaint).unwrap_or_else(|| complaint.clone()));
            *complaints = after.collect();
            *complaints != before
        },
    )
    .until(33),
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

/// How releases say that `showHiddenMetricsForVersion` is of another one.
const HIDDEN: [&str; 2] = [
    "--show-hidden-metrics-for-version must be omitted",
    "invalid showHiddenMetricsForVersion",
];

/// What pkg/proxy/apis/config/validation says from 1.37 about these `nodePortAddresses`.
fn as_from_1_37(addresses: &[String]) -> Outcome {
    let mut seen = BTreeSet::new();
    let complaint = |address: &String| {
        let keyword = ["primary", "localhost", "all"].contains(&address.as_str());
        if keyword {
            return (!seen.insert(address.clone())).then(|| format!("Duplicate value: \"{address}\""));
        }
        let wrong = address.parse::<IpNet>().is_err();
        wrong.then(|| {
            format!(
                "Invalid value: \"{address}\": must be a valid CIDR or one of the keywords 'primary', 'localhost', 'all'"
            )
        })
    };
    let complaints: BTreeSet<_> = addresses.iter().filter_map(complaint).collect();
    if complaints.is_empty() {
        return Outcome::Accepted;
    }
    Outcome::Refused {
        text: format!("{complaints:?}"),
        complaints,
    }
}

fn refused_for(outcome: &Outcome, complaint: &str) -> bool {
    matches!(outcome, Outcome::Refused { text, .. } if text.contains(complaint))
}

fn accepted_if(outcome: &mut Outcome, applies: bool, complaint: &str) -> bool {
    let applies = applies && refused_for(outcome, complaint);
    if applies {
        *outcome = Outcome::Accepted;
    }
    applies
}

/// A complaint with its value as JSON, where it is a Go literal.
fn with_json(complaint: &str) -> Option<String> {
    let value = complaint.strip_prefix("Invalid value: ")?;
    let (json, rest) = if let Some(text) = value.strip_prefix("v1.Duration{Duration:") {
        let (nanoseconds, rest) = text.split_once('}')?;
        (format!("\"{}\"", duration(nanoseconds.parse().ok()?)?), rest)
    } else if let Some(text) = value.strip_prefix("[]string{") {
        let (items, rest) = text.split_once('}')?;
        (format!("[{}]", items.replace("\", \"", "\",\"")), rest)
    } else {
        let digits = value.strip_prefix("0x")?;
        let end = digits.find(|digit: char| !digit.is_ascii_hexdigit())?;
        let (digits, rest) = digits.split_at(end);
        (u64::from_str_radix(digits, 16).ok()?.to_string(), rest)
    };
    Some(format!("Invalid value: {json}{rest}"))
}

/// Whole seconds as Go's `time.Duration` prints them.
fn duration(nanoseconds: i64) -> Option<String> {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let nanoseconds = nanoseconds.unsigned_abs();
    let whole = nanoseconds.is_multiple_of(1_000_000_000);
    let seconds = nanoseconds / 1_000_000_000;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    whole.then(|| match (hours, minutes) {
        (0, 0) => format!("{sign}{seconds}s"),
        (0, _) => format!("{sign}{minutes}m{seconds}s"),
        _ => format!("{sign}{hours}h{minutes}m{seconds}s"),
    })
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
