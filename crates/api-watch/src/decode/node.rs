//! Nodes.

use std::borrow::Cow;

use serde::Deserialize;
use service_model::{Node, ObjectName, parse_cidr};

use super::field::{address, refuse};
use super::metadata::{Metadata, Text, text};

#[derive(Deserialize)]
pub(super) struct NodeDoc<'a> {
    #[serde(borrow)]
    pub(super) metadata: Metadata<'a>,
    #[serde(borrow)]
    spec: Option<NodeSpec<'a>>,
    #[serde(borrow)]
    status: Option<NodeStatus<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeSpec<'a> {
    #[serde(borrow, rename = "podCIDR")]
    pod_cidr: Option<Text<'a>>,
    #[serde(borrow, rename = "podCIDRs")]
    pod_cidrs: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    taints: Option<Vec<Taint<'a>>>,
}

#[derive(Deserialize)]
struct Taint<'a> {
    #[serde(borrow, default)]
    key: Cow<'a, str>,
}

#[derive(Deserialize)]
struct NodeStatus<'a> {
    #[serde(borrow)]
    addresses: Option<Vec<NodeAddress<'a>>>,
}

#[derive(Deserialize)]
struct NodeAddress<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    address: Cow<'a, str>,
}

/// Transcribes a Node.
pub(super) fn node(name: ObjectName, doc: NodeDoc<'_>) -> Node {
    let spec = doc.spec.unwrap_or_default();
    let listed = doc.status.and_then(|status| status.addresses).unwrap_or_default();
    let mut invalid = Vec::new();
    let mut of_type = |kind: &str| -> Vec<_> {
        let of_type = listed.iter().enumerate().filter(|(_, listed)| listed.kind == kind);
        let read = of_type.filter_map(|(number, listed)| {
            let field = format!("status.addresses[{number}].address");
            address(&mut invalid, &field, &listed.address)
        });
        read.collect()
    };
    let addresses = [of_type("InternalIP"), of_type("ExternalIP")].concat();
    let several = spec.pod_cidrs.iter().flatten().enumerate();
    let mut cidrs: Vec<_> = several
        .map(|(number, cidr)| (format!("spec.podCIDRs[{number}]"), &*cidr.0))
        .collect();
    if cidrs.is_empty() {
        cidrs.extend(text(&spec.pod_cidr).map(|cidr| ("spec.podCIDR".to_owned(), cidr)));
    }
    let pod_cidrs = cidrs.into_iter().filter_map(|(field, text)| {
        let cidr = parse_cidr(text);
        if cidr.is_none() {
            refuse(&mut invalid, &field, format!("{text:?} is not a CIDR"));
        }
        cidr
    });
    let pod_cidrs = pod_cidrs.collect();
    Node {
        name,
        zone: doc
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| text(&labels.zone))
            .unwrap_or_default()
            .into(),
        addresses,
        pod_cidrs,
        deleting: doc.metadata.deletion_timestamp.is_some(),
        taints: spec.taints.iter().flatten().map(|taint| (*taint.key).into()).collect(),
        invalid,
    }
}

/// Has more than one address of a type.
pub(super) fn has_several_addresses(doc: &NodeDoc<'_>) -> bool {
    let listed = doc.status.as_ref().and_then(|status| status.addresses.as_deref());
    let of_type = |kind: &str| {
        listed
            .iter()
            .flat_map(|listed| listed.iter())
            .filter(|address| address.kind == kind)
            .count()
    };
    of_type("InternalIP") > 1 || of_type("ExternalIP") > 1
}
