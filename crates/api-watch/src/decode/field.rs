//! Single fields: text and numbers → types; what cannot be read is named.

use std::net::IpAddr;

use serde::Deserialize;
use service_model::{InvalidField, Protocol, TrafficPolicy, parse_ip};

use super::metadata::{Text, text};

/// A port of a Service or of an EndpointSlice.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PortDoc<'a> {
    #[serde(borrow)]
    pub(super) name: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) protocol: Option<Text<'a>>,
    pub(super) port: Option<i64>,
    pub(super) node_port: Option<i64>,
}

pub(super) fn refuse(invalid: &mut Vec<InvalidField>, field: &str, reason: String) {
    invalid.push(InvalidField {
        field: field.into(),
        reason: reason.into(),
    });
}

pub(super) fn protocol(invalid: &mut Vec<InvalidField>, field: &str, port: &PortDoc<'_>) -> Option<Protocol> {
    match text(&port.protocol).unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        other => {
            refuse(
                invalid,
                &format!("{field}.protocol"),
                format!("unknown protocol {other:?}"),
            );
            None
        }
    }
}

pub(super) fn port_number(invalid: &mut Vec<InvalidField>, field: &str, port: Option<i64>) -> Option<u16> {
    let field = format!("{field}.port");
    if port.is_none() {
        refuse(invalid, &field, "is missing".to_owned());
        return None;
    }
    number_in(invalid, &field, port, 1)
}

/// A number between `least` and 65535; a missing one is 0.
pub(super) fn number_in(invalid: &mut Vec<InvalidField>, field: &str, number: Option<i64>, least: u16) -> Option<u16> {
    let number = number.unwrap_or_default();
    let found = u16::try_from(number).ok().filter(|number| *number >= least);
    if found.is_none() {
        refuse(invalid, field, format!("{number} is not between {least} and 65535"));
    }
    found
}

/// An unknown policy restricts no less than the one that restricts (T1, T4).
pub(super) fn traffic_policy(invalid: &mut Vec<InvalidField>, field: &str, given: Option<&str>) -> TrafficPolicy {
    match given.unwrap_or_default() {
        "" | "Cluster" => TrafficPolicy::Cluster,
        "Local" => TrafficPolicy::Local,
        other => {
            refuse(invalid, field, format!("unknown policy {other:?}; Local is used"));
            TrafficPolicy::Local
        }
    }
}

pub(super) fn address(invalid: &mut Vec<InvalidField>, field: &str, given: &str) -> Option<IpAddr> {
    let found = parse_ip(given);
    if found.is_none() {
        refuse(invalid, field, format!("{given:?} is not an IP address"));
    }
    found
}
