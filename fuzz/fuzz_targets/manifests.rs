//! A file of manifests, in YAML or JSON: read, then served by a node.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzz::attempt::prepare(), |bytes: &[u8]| {
    let events = api_watch::fuzzing::manifests(bytes);
    assert_eq!(events, api_watch::fuzzing::manifests(bytes), "a file read again is the same");
    if !events.is_empty() {
        fuzz::node::serve(&events);
    }
});
