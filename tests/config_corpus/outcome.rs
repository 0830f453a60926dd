//! What became of a configuration: written, or refused with complaints.

use std::collections::BTreeSet;
use std::process::Output;

use serde_json::Value;

/// What a program made of a configuration.
pub(crate) enum Outcome {
    Written {
        configuration: Value,
        /// Strict decoding had failed.
        lenient: bool,
    },
    Refused {
        /// Value and reason of each field, where the fields are what is wrong.
        complaints: BTreeSet<String>,
        /// All that was said.
        text: String,
    },
    /// Only that it is taken is expected: the other program cannot tell how.
    Accepted,
}

impl Outcome {
    pub(crate) fn of(output: &Output, written: Option<&str>) -> Self {
        let text = String::from_utf8_lossy(&output.stderr).replace("\\\"", "\"");
        match (output.status.code(), written) {
            (Some(0), Some(written)) => {
                let documents: Vec<Value> = serde_saphyr::from_multiple(written).unwrap();
                Self::Written {
                    configuration: documents.into_iter().next().unwrap(),
                    lenient: text.to_lowercase().contains("using lenient decoding"),
                }
            }
            (Some(1), None) => Self::Refused {
                complaints: complaints(&text),
                text,
            },
            other => panic!("status and file: {other:?}: {text}"),
        }
    }

    /// For rows: refused, with one complaint.
    pub(crate) fn refused(complaint: &str) -> Self {
        Self::Refused {
            complaints: BTreeSet::from([complaint.to_owned()]),
            text: complaint.to_owned(),
        }
    }

    /// What is different in ours, where this is what is expected; `names` must be said by both who refuse.
    pub(crate) fn compare(&self, ours: &Self, names: Option<&str>) -> Result<(), String> {
        match (self, ours, names) {
            (Self::Accepted, Self::Written { .. }, _) => Ok(()),
            (Self::Written { lenient: a, .. }, Self::Written { lenient: b, .. }, _) if a != b => {
                Err(format!("decoded leniently: upstream {a}, ours {b}"))
            }
            (Self::Written { .. }, Self::Written { .. }, _) => self.compare_written(ours),
            (Self::Refused { text: a, .. }, Self::Refused { text: b, .. }, Some(name)) => {
                let named = |text: &str| text.to_lowercase().contains(&name.to_lowercase());
                match (named(a), named(b)) {
                    (true, true) => Ok(()),
                    _ => Err(format!("{name:?} is to be named:\n- {a}\n+ {b}")),
                }
            }
            (Self::Refused { complaints: a, text: x }, Self::Refused { complaints: b, text: y }, None) => {
                if a == b && !a.is_empty() {
                    Ok(())
                } else {
                    Err(format!("- {a:#?}\n+ {b:#?}\n{x}\n{y}"))
                }
            }
            _ => Err(format!("upstream: {}\nours: {}", self.short(), ours.short())),
        }
    }

    pub(crate) fn compare_written(&self, ours: &Self) -> Result<(), String> {
        let (
            Self::Written {
                configuration: upstream,
                ..
            },
            Self::Written {
                configuration: ours, ..
            },
        ) = (self, ours)
        else {
            return Err(format!("upstream: {}\nours: {}", self.short(), ours.short()));
        };
        let mut left = Vec::new();
        differences("", upstream, ours, &mut left);
        if left.is_empty() { Ok(()) } else { Err(left.join("\n")) }
    }

    fn short(&self) -> &str {
        match self {
            Self::Written { .. } => "written",
            Self::Refused { text, .. } => text,
            Self::Accepted => "accepted",
        }
    }
}

/// Field by field. An empty list is `null`: Go tells the two apart, and means the same.
fn differences(field: &str, upstream: &Value, ours: &Value, left: &mut Vec<String>) {
    match (upstream, ours) {
        (Value::Object(a), Value::Object(b)) => {
            let names: BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for name in names {
                let of = |object: &serde_json::Map<String, Value>| object.get(name).cloned().unwrap_or("absent".into());
                differences(&format!("{field}.{name}"), &of(a), &of(b), left);
            }
        }
        (Value::Array(list), Value::Null) if list.is_empty() => {}
        (a, b) if a == b => {}
        (a, b) => left.push(format!("{field}: - {a} + {b}")),
    }
}

/// `field: Invalid value: …` of both programs, without the field: upstream names those of its internal type.
fn complaints(text: &str) -> BTreeSet<String> {
    let without_field = |item: &str| item.split_once(": ").map(|(_, complaint)| complaint.trim().to_owned());
    let upstream = ["failed validate: ", "initialize logging: "]
        .iter()
        .find_map(|mark| text.split_once(mark));
    if let Some((_, rest)) = upstream {
        let rest = rest.trim();
        let rest = rest.strip_suffix('"').unwrap_or(rest);
        let rest = rest
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
            .unwrap_or(rest);
        return rest
            .replace(", KubeProxyConfiguration.", "\nKubeProxyConfiguration.")
            .replace(", logging.", "\nlogging.")
            .lines()
            .filter_map(without_field)
            .collect();
    }
    let Some((_, rest)) = text.split_once("invalid configuration") else {
        return BTreeSet::new();
    };
    match rest.split_once(" values:\n") {
        Some((_, lines)) => lines.lines().filter_map(without_field).collect(),
        None => without_field(rest.trim_start_matches(": ")).into_iter().collect(),
    }
}
