//! What is followed with list and watch, and which of its objects are asked for.

use form_urlencoded::Serializer;
use service_model::Kind;

/// The watch selectors of kube-proxy from 1.36 on (cmd/kube-proxy/app/server.go). The field is known to API servers from
/// 1.31 on; older ones answer 400.
const OTHER_PROXY: (&str, &str) = ("labelSelector", "!service.kubernetes.io/service-proxy-name");
const HEADLESS: (&str, &str) = ("labelSelector", "!service.kubernetes.io/headless");
const CLUSTER_IP: (&str, &str) = ("fieldSelector", "spec.clusterIP!=None");
pub(crate) const CLUSTER_IP_FIELD: &str = "spec.clusterIP";

/// What a follower follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Collection {
    Services,
    EndpointSlices,
    ThisNode,
}

impl Collection {
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Services => Kind::Service,
            Self::EndpointSlices => Kind::EndpointSlice,
            Self::ThisNode => Kind::Node,
        }
    }

    /// Path and query of a request.
    pub(crate) fn uri(self, node_name: &str, selects_by_field: bool, pairs: &[(&str, &str)]) -> String {
        let this_node = format!("metadata.name={node_name}");
        let (path, selectors): (_, &[(&str, &str)]) = match self {
            // T24. What a selector lets through all the same, the model leaves out.
            Self::Services if selects_by_field => ("/api/v1/services", &[OTHER_PROXY, CLUSTER_IP]),
            Self::Services => ("/api/v1/services", &[OTHER_PROXY]),
            Self::EndpointSlices => ("/apis/discovery.k8s.io/v1/endpointslices", &[HEADLESS]),
            Self::ThisNode => ("/api/v1/nodes", &[("fieldSelector", &this_node)]),
        };
        let query = Serializer::new(String::new())
            .extend_pairs(selectors)
            .extend_pairs(pairs)
            .finish();
        format!("{path}?{query}")
    }
}
