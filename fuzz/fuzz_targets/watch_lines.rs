//! The bytes of a watch: the same events, however they are cut into pieces.

#![no_main]

use api_watch::fuzzing::watch;
use libfuzzer_sys::fuzz_target;
use service_model::Kind;

fuzz_target!(init: fuzz::attempt::prepare(), |bytes: &[u8]| {
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
        let whole = watch(kind, [bytes].into_iter());
        for piece in [1, 7, 100] {
            assert_eq!(whole, watch(kind, bytes.chunks(piece)), "in pieces of {piece} bytes");
        }
        if !whole.is_empty() {
            fuzz::node::serve(&whole);
        }
    }
});
