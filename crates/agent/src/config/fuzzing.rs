//! A file of any text: what holds of it.

use service_model::Family;

use super::document::{self, Documents};
use super::doubt::doubts;
use super::{Configuration, output};

/// Reads it as `--config` does.
///
/// # Panics
/// Where what is written of it is not read as the same.
pub(crate) fn file(text: &str) {
    let Ok(Documents { kube_proxy, own, .. }) = document::read(text) else {
        return;
    };
    let mut configuration = Configuration::of(kube_proxy);
    configuration.own = own.unwrap_or_default();
    let Ok(configuration) = configuration.complete() else {
        return;
    };
    configuration.report();
    for families in [Family::BOTH, Family::V4_ALONE] {
        drop(doubts(&configuration.kube_proxy, families));
    }
    let written = |configuration: &Configuration| {
        output::yaml(&configuration.kube_proxy, &configuration.own).expect("a configuration can be written")
    };
    let once = written(&configuration);
    let Documents {
        kube_proxy,
        own,
        remarks,
    } = document::read(&once).expect("what is written can be read");
    assert!(remarks.is_empty(), "{remarks:?} of\n{once}");
    let mut again = Configuration::of(kube_proxy);
    again.own = own.unwrap_or_default();
    let again = again.complete().expect("what is written is valid");
    assert_eq!(written(&again), once, "what is written reads as the same");
}
