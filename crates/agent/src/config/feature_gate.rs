//! Feature gates, by the syntax, the rules and the defaults of Kubernetes.

use std::collections::BTreeMap;

use super::gate_table::GATES;

/// How far a gate's feature is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Alpha,
    Beta,
    Stable,
    Deprecated,
}

/// May a gate be set to something else than its default?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    Free,
    Locked,
}

/// T32. Deprecated and on since Kubernetes 1.36 (KEP-5707); upstream means to turn it off in 1.40.
const ALLOW_SERVICE_EXTERNAL_IPS: &str = "AllowServiceExternalIPs";
/// Gates of later releases that are known here, beside those of [`GATES`].
const LATER: &[(&str, Stage, bool, Lock)] = &[(ALLOW_SERVICE_EXTERNAL_IPS, Stage::Deprecated, true, Lock::Free)];
/// Lets text and JSON logs be split and buffered.
pub(super) const LOGGING_ALPHA_OPTIONS: &str = "LoggingAlphaOptions";
/// Lets JSON be a format.
pub(super) const LOGGING_BETA_OPTIONS: &str = "LoggingBetaOptions";
/// Those that something here asks for.
const USED: [&str; 3] = [ALLOW_SERVICE_EXTERNAL_IPS, LOGGING_ALPHA_OPTIONS, LOGGING_BETA_OPTIONS];

pub(crate) type Gates = BTreeMap<String, bool>;

fn gate(name: &str) -> Option<(Stage, bool, Lock)> {
    let found = GATES.iter().chain(LATER).find(|(known, ..)| *known == name);
    found.map(|(_, stage, default, lock)| (*stage, *default, *lock))
}

/// Reads `Name=bool` pairs, separated by commas; of a repeated name the last one stands.
///
/// # Errors
/// A pair without a value, or with one that is no boolean by Go's rules.
pub(super) fn parse(text: &str) -> Result<Gates, String> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    let gate = |pair: &str| {
        let (name, value) = pair
            .split_once('=')
            .ok_or_else(|| format!("missing bool value for {pair:?}"))?;
        let on = super::flag_value::parse_bool(value.trim())
            .ok_or_else(|| format!("invalid value {:?} of {name}, must be true or false", value.trim()))?;
        Ok((name.trim().to_owned(), on))
    };
    pairs.map(gate).collect()
}

/// What upstream refuses, in its words.
pub(super) fn errors(gates: &Gates) -> Vec<String> {
    let error = |(name, on): (&String, &bool)| match gate(name) {
        None => Some(format!("unrecognized feature gate: {name}")),
        Some((_, default, Lock::Locked)) if default != *on => Some(format!(
            "cannot set feature gate {name} to {on}, feature is locked to {default}"
        )),
        Some(_) => None,
    };
    gates.iter().filter_map(error).collect()
}

/// Gates that are given and change nothing here.
pub(super) fn without_effect(gates: &Gates) -> Vec<&str> {
    let names = gates.keys().map(String::as_str);
    names.filter(|name| !USED.contains(name)).collect()
}

/// What a gate is set to: by itself, by `AllAlpha` or `AllBeta`, by its default.
pub(super) fn enabled(gates: &Gates, name: &str) -> bool {
    let given = |name: &str| gates.get(name).copied();
    let Some((stage, default, _)) = gate(name) else {
        return false;
    };
    let by_stage = match stage {
        Stage::Alpha => given("AllAlpha"),
        Stage::Beta => given("AllBeta"),
        Stage::Stable | Stage::Deprecated => None,
    };
    given(name).or(by_stage).unwrap_or(default)
}

/// Gate `AllowServiceExternalIPs`.
pub(crate) fn allow_service_external_ips(gates: &Gates) -> bool {
    enabled(gates, ALLOW_SERVICE_EXTERNAL_IPS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_by_the_rules_of_go() {
        let gates = |text: &str| {
            parse(text).map(|gates| {
                gates
                    .into_iter()
                    .map(|(name, on)| format!("{name}={on}"))
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(gates("").unwrap(), [""; 0]);
        assert_eq!(gates("B=T, A = 0 ,,B=false").unwrap(), ["A=false", "B=false"]);
        assert_eq!(gates("A").unwrap_err(), "missing bool value for \"A\"");
        assert_eq!(
            gates("A=yes").unwrap_err(),
            "invalid value \"yes\" of A, must be true or false"
        );
    }

    #[test]
    fn unknown_and_locked_gates_are_refused() {
        let refused = |text: &str| errors(&parse(text).unwrap());
        assert_eq!(refused("Nope=true"), ["unrecognized feature gate: Nope"]);
        assert_eq!(
            refused("MultiCIDRServiceAllocator=false"),
            ["cannot set feature gate MultiCIDRServiceAllocator to false, feature is locked to true"]
        );
        let fine =
            "MultiCIDRServiceAllocator=true,AllAlpha=false,ContextualLogging=false,AllowServiceExternalIPs=false";
        assert_eq!(refused(fine), [""; 0]);
        assert_eq!(
            without_effect(&parse("ContextualLogging=true,AllowServiceExternalIPs=true").unwrap()),
            ["ContextualLogging"]
        );
    }

    #[test]
    fn a_gate_is_set_by_name_by_stage_or_by_default() {
        let on = |text: &str, name: &str| enabled(&parse(text).unwrap(), name);
        assert!(!on("", LOGGING_ALPHA_OPTIONS) && on("", LOGGING_BETA_OPTIONS));
        assert!(on("AllAlpha=true", LOGGING_ALPHA_OPTIONS));
        assert!(!on("AllAlpha=true,LoggingAlphaOptions=false", LOGGING_ALPHA_OPTIONS));
        assert!(!on("AllBeta=false", LOGGING_BETA_OPTIONS));
    }

    #[test]
    fn external_ips_are_allowed_unless_the_gate_says_no() {
        let allowed = |text: &str| allow_service_external_ips(&parse(text).unwrap());
        assert!(allowed(""));
        assert!(allowed("AllowServiceExternalIPs=true,AllAlpha=false"));
        assert!(!allowed("AllowServiceExternalIPs=false"));
    }
}
