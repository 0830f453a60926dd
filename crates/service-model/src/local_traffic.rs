//! How this node tells who a client is: a pod, a pod of this node, or somebody else (`detectLocalMode`; T2, T11).

use ipnet::IpNet;

use crate::config::DetectLocal;
use crate::object::Family;

/// Where traffic comes from, as a rule can see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// From an address within this range.
    Within(IpNet),
    /// In by this interface.
    Interface(Box<str>),
    /// In by an interface whose name begins so.
    InterfacePrefix(Box<str>),
}

/// Who is who among the clients of one family that are not this node itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalTraffic {
    /// Pods, as `detectLocalMode` tells them; others are masqueraded at cluster IPs (T11). `None` = it cannot tell.
    pub pods: Option<Source>,
    /// Insiders at load balancers' addresses and external IPs (T2): pods, else what comes from this node's pod range.
    /// `None` = this node alone.
    pub insiders: Option<Source>,
    /// Those of the insiders whose replies pass this node; the rest is masqueraded. `None` = none for sure.
    pub own_pods: Option<Source>,
}

impl LocalTraffic {
    /// Insiders at a NodePort (T2): this node's pods alone, or all insiders where nothing tells these apart. `None` = this
    /// node alone. Clients in the cluster "may need to take traffic policy into account when picking a node" for a
    /// NodePort (`spec.externalTrafficPolicy` of a Service), so pods of other nodes come from outside.
    pub fn node_port_insiders(&self) -> Option<&Source> {
        self.own_pods.as_ref().or(self.insiders.as_ref())
    }

    /// By the detector, and this node's `spec.podCIDRs`.
    pub(crate) fn new(detect: &DetectLocal, pod_cidrs: &[IpNet], family: Family) -> Self {
        let of_family = |cidrs: &[IpNet]| {
            let ours = |cidr: &&IpNet| cidr.addr().is_ipv4() == (family == Family::V4);
            cidrs.iter().find(ours).copied().map(Source::Within)
        };
        let own = of_family(pod_cidrs);
        let pods = match detect {
            DetectLocal::ClusterCidr(cidrs) => of_family(cidrs),
            DetectLocal::NodeCidr => own.clone(),
            DetectLocal::BridgeInterface(name) => Some(Source::Interface(name.clone())),
            DetectLocal::InterfaceNamePrefix(prefix) => Some(Source::InterfacePrefix(prefix.clone())),
        };
        Self {
            insiders: pods.clone().or_else(|| own.clone()),
            own_pods: match detect {
                DetectLocal::ClusterCidr(_) | DetectLocal::NodeCidr => own,
                DetectLocal::BridgeInterface(_) | DetectLocal::InterfaceNamePrefix(_) => pods.clone(),
            },
            pods,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(detect: &DetectLocal, pod_cidrs: &[&str], expect: [Option<&str>; 4]) {
        let cidrs: Vec<IpNet> = pod_cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
        let found = LocalTraffic::new(detect, &cidrs, Family::V4);
        let text = |source: Option<&Source>| {
            source.map(|source| match source {
                Source::Within(range) => range.to_string(),
                Source::Interface(name) => name.to_string(),
                Source::InterfacePrefix(prefix) => format!("{prefix}*"),
            })
        };
        let found = [
            found.pods.as_ref(),
            found.insiders.as_ref(),
            found.own_pods.as_ref(),
            found.node_port_insiders(),
        ];
        let found = found.map(text);
        assert_eq!(found, expect.map(|text| text.map(str::to_owned)), "{detect:?}");
    }

    #[test]
    fn t02_t11_who_is_who() {
        let cluster = DetectLocal::ClusterCidr(vec!["fd00::/48".parse().unwrap(), "10.0.0.0/8".parse().unwrap()]);
        let (all, own) = (Some("10.0.0.0/8"), Some("10.1.0.0/24"));
        check(&cluster, &["fd00:1::/64", "10.1.0.0/24"], [all, all, own, own]);
        // Nothing tells this node's pods from others'.
        check(&cluster, &[], [all, all, None, all]);
        check(&DetectLocal::default(), &["10.1.0.0/24"], [None, own, own, own]);
        check(&DetectLocal::default(), &[], [None; 4]);
        check(&DetectLocal::NodeCidr, &["10.1.0.0/24"], [own; 4]);
        check(&DetectLocal::NodeCidr, &["fd00::/64"], [None; 4]);
        let bridge = DetectLocal::BridgeInterface("cni0".into());
        check(&bridge, &["10.1.0.0/24"], [Some("cni0"); 4]);
        check(
            &DetectLocal::InterfaceNamePrefix("veth".into()),
            &[],
            [Some("veth*"); 4],
        );
    }
}
