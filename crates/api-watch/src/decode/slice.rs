//! EndpointSlices.

use std::borrow::Cow;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::Deserialize;
use service_model::{Endpoint, EndpointPort, EndpointSlice, Family, ObjectName};

use super::field::{PortDoc, address, port_number, protocol, refuse};
use super::metadata::{Metadata, Text, text};

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SliceDoc<'a> {
    #[serde(borrow)]
    pub(super) metadata: Metadata<'a>,
    #[serde(borrow)]
    address_type: Option<Text<'a>>,
    #[serde(borrow)]
    ports: Option<Vec<PortDoc<'a>>>,
    #[serde(borrow)]
    endpoints: Option<Vec<EndpointDoc<'a>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct EndpointDoc<'a> {
    #[serde(borrow)]
    addresses: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    node_name: Option<Text<'a>>,
    conditions: Option<Conditions>,
    #[serde(borrow)]
    hints: Option<Hints<'a>>,
}

#[derive(Clone, Copy, Default, Deserialize)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Hints<'a> {
    #[serde(borrow)]
    for_zones: Option<Vec<Hint<'a>>>,
    #[serde(borrow)]
    for_nodes: Option<Vec<Hint<'a>>>,
}

#[derive(Deserialize)]
struct Hint<'a> {
    #[serde(borrow, default)]
    name: Cow<'a, str>,
}

/// Transcribes an EndpointSlice.
pub(super) fn slice(name: ObjectName, doc: SliceDoc<'_>) -> EndpointSlice {
    let mut invalid = Vec::new();
    let labels = doc.metadata.labels.unwrap_or_default();
    let family = match text(&doc.address_type).unwrap_or_default() {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        "FQDN" => None,
        other => {
            refuse(&mut invalid, "addressType", format!("unknown address type {other:?}"));
            None
        }
    };
    let mut ports = smallvec::SmallVec::new();
    for (number, port) in doc
        .ports
        .iter()
        .flatten()
        .enumerate()
        .filter(|(_, port)| port.port.is_some())
    {
        let field = format!("ports[{number}]");
        if let (Some(protocol), Some(number)) = (
            protocol(&mut invalid, &field, port),
            port_number(&mut invalid, &field, port.port),
        ) {
            ports.push(EndpointPort {
                name: text(&port.name).unwrap_or_default().into(),
                protocol,
                port: number,
            });
        }
    }
    let mut endpoints = Vec::new();
    if family.is_some() {
        for (number, endpoint) in doc.endpoints.into_iter().flatten().enumerate() {
            let Some(first) = endpoint.addresses.as_ref().and_then(|all| all.first()) else {
                continue;
            };
            if let Some(address) = address(&mut invalid, &format!("endpoints[{number}].addresses[0]"), &first.0) {
                endpoints.push(self::endpoint(address, endpoint));
            }
        }
    }
    EndpointSlice {
        name,
        service: text(&labels.service).unwrap_or_default().into(),
        headless_label: labels.headless,
        family,
        ports,
        endpoints,
        last_change: doc
            .metadata
            .annotations
            .as_ref()
            .and_then(|all| text(&all.last_change))
            .and_then(|time| time.parse::<Timestamp>().ok())
            .and_then(|time| i64::try_from(time.as_nanosecond()).ok()),
        invalid,
    }
}

fn endpoint(address: IpAddr, doc: EndpointDoc<'_>) -> Endpoint {
    let conditions = doc.conditions.unwrap_or_default();
    let hints = doc.hints.unwrap_or_default();
    let names = |hints: &Option<Vec<Hint<'_>>>| hints.iter().flatten().map(|hint| (*hint.name).into()).collect();
    // API: nil is to be interpreted as true of `ready` and of `serving`, as false of `terminating`.
    Endpoint {
        address,
        node_name: text(&doc.node_name).map(Into::into),
        ready: conditions.ready.unwrap_or(true),
        serving: conditions.serving.unwrap_or(true),
        terminating: conditions.terminating.unwrap_or(false),
        zone_hints: names(&hints.for_zones),
        node_hints: names(&hints.for_nodes),
    }
}
