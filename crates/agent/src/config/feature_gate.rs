//! Feature gates, by the syntax and the defaults of Kubernetes.
//!
//! A drop-in is of no one release of Kubernetes: the cluster's release may have gates that this program has never heard of,
//! and locks that it does not share. So a gate is never an error. Those with an effect here have it, the others are named.

use std::collections::BTreeMap;

use super::gate_table::{GATES, KUBERNETES_RELEASE};

/// How far a gate's feature is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Alpha,
    Beta,
    Stable,
    Deprecated,
}

impl Stage {
    /// As the label `stage` of `kubernetes_feature_enabled` has it (component-base/featuregate).
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Alpha => "ALPHA",
            Self::Beta => "BETA",
            Self::Stable => "",
            Self::Deprecated => "DEPRECATED",
        }
    }
}

/// May a gate be set to something else than its default?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lock {
    Free,
    Locked,
}

/// T32. On since Kubernetes 1.36 (KEP-5707); upstream means to turn it off in 1.40.
const ALLOW_SERVICE_EXTERNAL_IPS: &str = "AllowServiceExternalIPs";
/// Lets `/flagz` be served.
const COMPONENT_FLAGZ: &str = "ComponentFlagz";
/// Lets `/statusz` be served.
const COMPONENT_STATUSZ: &str = "ComponentStatusz";
/// Lets text and JSON logs be split and buffered.
pub(super) const LOGGING_ALPHA_OPTIONS: &str = "LoggingAlphaOptions";
/// Lets JSON be a format.
pub(super) const LOGGING_BETA_OPTIONS: &str = "LoggingBetaOptions";
/// Upstream's way to turn its IPVS mode off (KEP-5495).
const KUBE_PROXY_IPVS: &str = "KubeProxyIPVS";
/// Those that something here asks for.
const USED: [&str; 5] = [
    ALLOW_SERVICE_EXTERNAL_IPS,
    COMPONENT_FLAGZ,
    COMPONENT_STATUSZ,
    LOGGING_ALPHA_OPTIONS,
    LOGGING_BETA_OPTIONS,
];

pub(crate) type Gates = BTreeMap<String, bool>;

fn gate(name: &str) -> Option<(Stage, bool, Lock)> {
    let found = GATES.iter().find(|(known, ..)| *known == name);
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

/// What a log says once about gates that a kube-proxy would refuse, and about those without effect.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Remarks {
    /// One sentence for all of them, `None` = there are none.
    pub(super) odd: Option<String>,
    /// `KubeProxyIPVS: false` beside the mode `ipvs`.
    pub(super) ipvs_is_off: bool,
    /// Known gates, set as upstream allows it, that change nothing here.
    pub(super) without_effect: Vec<String>,
}

/// Looks at all gates that are given.
pub(super) fn remarks(gates: &Gates, mode: &str) -> Remarks {
    let mut remarks = Remarks::default();
    let (mut unknown, mut locked) = (Vec::new(), Vec::new());
    for (name, on) in gates {
        match gate(name) {
            None => unknown.push(name.as_str()),
            Some((_, default, Lock::Locked)) if default != *on => locked.push(format!("{name}={on}")),
            Some(_) if name == KUBE_PROXY_IPVS && !on && mode == "ipvs" => remarks.ipvs_is_off = true,
            Some(_) if USED.contains(&name.as_str()) => {}
            Some(_) => remarks.without_effect.push(name.clone()),
        }
    }
    let unknown =
        (!unknown.is_empty()).then(|| format!("not known in Kubernetes {KUBERNETES_RELEASE}: {}", unknown.join(", ")));
    let locked = (!locked.is_empty()).then(|| format!("set against their lock there: {}", locked.join(", ")));
    let odd: Vec<_> = unknown.into_iter().chain(locked).collect();
    remarks.odd = (!odd.is_empty()).then(|| format!("feature gates without effect, {}", odd.join("; ")));
    remarks
}

/// A gate with an effect here, as `kubernetes_feature_enabled` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FeatureGate {
    pub(crate) name: &'static str,
    pub(crate) stage: Stage,
    pub(crate) enabled: bool,
}

/// Every gate with an effect here.
pub(crate) fn in_use(gates: &Gates) -> Vec<FeatureGate> {
    let of = |name: &'static str| {
        gate(name).map(|(stage, ..)| FeatureGate {
            name,
            stage,
            enabled: enabled(gates, name),
        })
    };
    USED.into_iter().filter_map(of).collect()
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

/// Gate `ComponentFlagz`.
pub(crate) fn serves_flagz(gates: &Gates) -> bool {
    enabled(gates, COMPONENT_FLAGZ)
}

/// Gate `ComponentStatusz`.
pub(crate) fn serves_statusz(gates: &Gates) -> bool {
    enabled(gates, COMPONENT_STATUSZ)
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

    /// Upstream refuses these, each release others.
    #[test]
    fn unknown_and_locked_gates_are_one_remark_that_names_them() {
        let remarks = |text: &str, mode: &str| remarks(&parse(text).unwrap(), mode);
        let odd = |text: &str| remarks(text, "ipvs").odd.unwrap_or_default();
        assert_eq!(
            odd("Nope=true,LaterThanThis=false,MultiCIDRServiceAllocator=false,ContextualLogging=true"),
            "feature gates without effect, not known in Kubernetes 1.37: LaterThanThis, Nope; \
             set against their lock there: MultiCIDRServiceAllocator=false"
        );
        assert!(odd("Nope=true").ends_with(": Nope"));
        assert!(odd("MultiCIDRServiceAllocator=false").starts_with("feature gates without effect, set against"));
        let fine =
            "MultiCIDRServiceAllocator=true,AllAlpha=false,ContextualLogging=false,AllowServiceExternalIPs=false";
        let found = remarks(fine, "ipvs");
        assert_eq!(found.odd, None);
        assert_eq!(
            found.without_effect,
            ["AllAlpha", "ContextualLogging", "MultiCIDRServiceAllocator"]
        );
        assert_eq!(remarks("", "ipvs"), Remarks::default());
    }

    /// kube-proxy 1.37 refuses the mode `ipvs` with that gate off, 1.36 does not know the gate.
    #[test]
    fn the_gate_of_upstreams_ipvs_mode_does_not_turn_ours_off() {
        let remarks = |text: &str, mode: &str| remarks(&parse(text).unwrap(), mode);
        assert!(remarks("KubeProxyIPVS=false", "ipvs").ipvs_is_off);
        for (text, mode) in [("KubeProxyIPVS=false", "iptables"), ("KubeProxyIPVS=true", "ipvs")] {
            let found = remarks(text, mode);
            assert_eq!((found.odd, found.ipvs_is_off), (None, false), "{text} {mode}");
            assert_eq!(found.without_effect, [KUBE_PROXY_IPVS]);
        }
    }

    /// 1.35 refuses a gate that is on while one that it depends on is off.
    #[test]
    fn gates_may_contradict_each_other() {
        let found = remarks(
            &parse("UnlockWhileProcessingFIFO=true,AtomicFIFO=false").unwrap(),
            "ipvs",
        );
        assert_eq!(found.odd, None);
    }

    #[test]
    fn gates_in_use_have_their_stage_and_what_they_are_set_to() {
        let used = |text: &str| {
            let gates = in_use(&parse(text).unwrap());
            let row = |gate: FeatureGate| format!("{} {:?} {}", gate.name, gate.stage.label(), gate.enabled);
            gates.into_iter().map(row).collect::<Vec<_>>()
        };
        assert_eq!(
            used("AllBeta=false,LoggingBetaOptions=true"),
            [
                "AllowServiceExternalIPs \"\" true",
                "ComponentFlagz \"BETA\" false",
                "ComponentStatusz \"BETA\" false",
                "LoggingAlphaOptions \"ALPHA\" false",
                "LoggingBetaOptions \"BETA\" true",
            ]
        );
        let gates = parse("ComponentFlagz=false").unwrap();
        assert!(!serves_flagz(&gates) && serves_statusz(&gates));
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
