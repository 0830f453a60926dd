//! What all objects carry: names, versions, and those labels and annotations that are in use.

use std::borrow::Cow;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use service_model::{Kind, ObjectName};

/// A string that borrows from the text where it has no escapes.
#[derive(Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata<'a> {
    #[serde(borrow, default)]
    pub(super) name: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) namespace: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) resource_version: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) creation_timestamp: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) deletion_timestamp: Option<Text<'a>>,
    #[serde(borrow)]
    pub(super) labels: Option<Labels<'a>>,
    #[serde(borrow)]
    pub(super) annotations: Option<Annotations<'a>>,
}

#[derive(Default, Deserialize)]
pub(super) struct Labels<'a> {
    #[serde(
        default,
        deserialize_with = "is_there",
        rename = "service.kubernetes.io/service-proxy-name"
    )]
    pub(super) other_proxy: bool,
    #[serde(default, deserialize_with = "is_there", rename = "service.kubernetes.io/headless")]
    pub(super) headless: bool,
    #[serde(borrow, rename = "kubernetes.io/service-name")]
    pub(super) service: Option<Text<'a>>,
    #[serde(borrow, rename = "topology.kubernetes.io/zone")]
    pub(super) zone: Option<Text<'a>>,
}

#[derive(Default, Deserialize)]
pub(super) struct Annotations<'a> {
    #[serde(borrow, rename = "kube-ipvs.io/scheduler")]
    pub(super) scheduler: Option<Text<'a>>,
    #[serde(borrow, rename = "kube-ipvs.io/drain-timeout")]
    pub(super) drain_timeout: Option<Text<'a>>,
    #[serde(borrow, rename = "endpoints.kubernetes.io/last-change-trigger-time")]
    pub(super) last_change: Option<Text<'a>>,
    #[serde(borrow, rename = "k8s.io/initial-events-end")]
    pub(super) initial_events_end: Option<Text<'a>>,
}

impl Metadata<'_> {
    pub(super) fn name(&self, kind: Kind) -> ObjectName {
        match kind {
            Kind::Node => ObjectName::cluster_scoped(&self.name),
            // A manifest may leave it out; an object of the API never does.
            Kind::Service | Kind::EndpointSlice => {
                ObjectName::new(text(&self.namespace).unwrap_or("default"), &self.name)
            }
        }
    }

    pub(super) fn version(&self) -> String {
        text(&self.resource_version).unwrap_or_default().to_owned()
    }
}

/// A label counts by its name, whatever its value; that of YAML's `label:` is null, which the API reads as empty.
fn is_there<'a, D: Deserializer<'a>>(from: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(from).map(|_| true)
}

pub(super) fn text<'a>(text: &'a Option<Text<'_>>) -> Option<&'a str> {
    text.as_ref().map(|text| &*text.0)
}
