//! Feature gates, by the syntax and with the defaults of Kubernetes.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use tracing::warn;

/// T32. Deprecated and on since Kubernetes 1.36 (KEP-5707); upstream means to turn it off in 1.40.
const ALLOW_SERVICE_EXTERNAL_IPS: (&str, bool) = ("AllowServiceExternalIPs", true);

/// Reads `Name=bool` pairs; of a repeated name the last one stands. Gates that nothing here knows are named in a
/// warning.
///
/// # Errors
/// A pair without a value, or with one that is no boolean by Go's rules.
pub(crate) fn parse(pairs: &[String]) -> Result<BTreeMap<String, bool>> {
    let mut gates = BTreeMap::new();
    for pair in pairs.iter().map(|pair| pair.trim()).filter(|pair| !pair.is_empty()) {
        let (name, value) = pair
            .split_once('=')
            .with_context(|| format!("feature gates: missing bool value for {pair:?}"))?;
        let on = match value.trim() {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => true,
            "0" | "f" | "F" | "FALSE" | "false" | "False" => false,
            other => bail!("feature gates: invalid value {other:?} of {name}, must be true or false"),
        };
        gates.insert(name.trim().to_owned(), on);
    }
    let unused: Vec<_> = gates
        .keys()
        .filter(|name| *name != ALLOW_SERVICE_EXTERNAL_IPS.0)
        .collect();
    if !unused.is_empty() {
        warn!(gates = ?unused, "feature gates without effect in this version");
    }
    Ok(gates)
}

/// Gate `AllowServiceExternalIPs`.
pub(crate) fn allow_service_external_ips(gates: &BTreeMap<String, bool>) -> bool {
    let (name, default) = ALLOW_SERVICE_EXTERNAL_IPS;
    gates.get(name).copied().unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_by_the_rules_of_go() {
        let gates = |text: &str| {
            let pairs: Vec<_> = text.split(',').map(str::to_owned).collect();
            parse(&pairs).map(|gates| {
                gates
                    .into_iter()
                    .map(|(name, on)| format!("{name}={on}"))
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(gates("").unwrap(), [""; 0]);
        assert_eq!(gates("B=T, A = 0 ,,B=false").unwrap(), ["A=false", "B=false"]);
        let wrong = |text: &str| gates(text).unwrap_err().to_string();
        assert_eq!(wrong("A"), "feature gates: missing bool value for \"A\"");
        assert_eq!(
            wrong("A=yes"),
            "feature gates: invalid value \"yes\" of A, must be true or false"
        );
    }

    #[test]
    fn external_ips_are_allowed_unless_the_gate_says_no() {
        let allowed = |pairs: &[(&str, bool)]| {
            allow_service_external_ips(&pairs.iter().map(|(name, on)| ((*name).to_owned(), *on)).collect())
        };
        assert!(allowed(&[]));
        assert!(allowed(&[("AllowServiceExternalIPs", true), ("Other", false)]));
        assert!(!allowed(&[("AllowServiceExternalIPs", false)]));
    }
}
