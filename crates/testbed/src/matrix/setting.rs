//! What a whole proxy is told, and how its node's pods are linked: one world each.

/// How a proxy knows that traffic comes from a pod of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detector {
    /// Its source is in the cluster's range.
    ClusterCidr,
    /// Its source is in the node's range.
    NodeCidr,
    /// It comes through the bridge.
    BridgeInterface,
    /// It comes through an interface with the prefix.
    InterfaceNamePrefix,
    /// It does not: mode ClusterCIDR without a range.
    None,
}

impl Detector {
    /// `detectLocalMode`.
    pub fn mode(self) -> &'static str {
        match self {
            Self::ClusterCidr | Self::None => "ClusterCIDR",
            Self::NodeCidr => "NodeCIDR",
            Self::BridgeInterface => "BridgeInterface",
            Self::InterfaceNamePrefix => "InterfaceNamePrefix",
        }
    }
}

/// How pods hang on their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fabric {
    /// Routed on nodes A and C, on a bridge on B.
    Mixed,
    /// Each on a link of its own.
    Routed,
    /// On a bridge.
    Bridged,
}

/// Addresses that NodePorts answer on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodePortAddresses {
    /// All of the node.
    All,
    /// Those in the network of nodes.
    Cidr,
    /// `primary`.
    Primary,
}

/// The settings of a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name, which begins the names of its cells; empty = the base.
    pub name: &'static str,
    /// `detectLocalMode` and what belongs to it.
    pub detector: Detector,
    /// Node objects have `podCIDRs`.
    pub pod_cidrs: bool,
    /// `masqueradeAll`.
    pub masquerade_all: bool,
    /// `nodePortAddresses`.
    pub node_port_addresses: NodePortAddresses,
    /// Links of pods.
    pub fabric: Fabric,
    /// External IPs are addresses of a node (T18). Apart, since a proxy that binds them elsewhere cuts that node off.
    pub node_external_ips: bool,
    /// Somebody else set the policy of FORWARD to DROP on node C (T28).
    pub forward_drop: bool,
}

/// The world that most cells are in.
pub const BASE: Setting = Setting {
    name: "",
    detector: Detector::ClusterCidr,
    pod_cidrs: true,
    masquerade_all: false,
    node_port_addresses: NodePortAddresses::All,
    fabric: Fabric::Mixed,
    node_external_ips: false,
    forward_drop: false,
};

/// All worlds.
pub const SETTINGS: [Setting; 11] = [
    BASE,
    Setting {
        name: "masquerade-all",
        masquerade_all: true,
        ..BASE
    },
    Setting {
        name: "node-cidr",
        detector: Detector::NodeCidr,
        ..BASE
    },
    Setting {
        name: "bridge-interface",
        detector: Detector::BridgeInterface,
        fabric: Fabric::Bridged,
        ..BASE
    },
    Setting {
        name: "interface-prefix",
        detector: Detector::InterfaceNamePrefix,
        fabric: Fabric::Routed,
        ..BASE
    },
    Setting {
        name: "no-detector",
        detector: Detector::None,
        ..BASE
    },
    Setting {
        name: "no-pod-cidrs",
        pod_cidrs: false,
        ..BASE
    },
    Setting {
        name: "nodeport-cidr",
        node_port_addresses: NodePortAddresses::Cidr,
        ..BASE
    },
    Setting {
        name: "nodeport-primary",
        node_port_addresses: NodePortAddresses::Primary,
        ..BASE
    },
    Setting {
        name: "node-external-ips",
        node_external_ips: true,
        ..BASE
    },
    Setting {
        name: "forward-drop",
        forward_drop: true,
        ..BASE
    },
];
