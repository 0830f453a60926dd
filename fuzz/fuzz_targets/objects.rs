//! API objects as JSON, as each of the kinds: decoded, then served by a node.

#![no_main]

use api_watch::fuzzing::object;
use libfuzzer_sys::fuzz_target;
use service_model::Kind;

fuzz_target!(init: fuzz::attempt::prepare(), |text: &[u8]| {
    let kinds = [Kind::Service, Kind::EndpointSlice, Kind::Node];
    let events: Vec<_> = kinds.into_iter().filter_map(|kind| object(kind, text)).collect();
    if !events.is_empty() {
        fuzz::node::serve(&events);
    }
});
