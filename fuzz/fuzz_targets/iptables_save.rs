//! What `iptables-save` says, to both who read it: the host's rules, and the iptables mode.

#![no_main]

use dataplane::iptables::{Settings, Tables};
use libfuzzer_sys::fuzz_target;
use service_model::Family;

fuzz_target!(init: fuzz::attempt::prepare(), |text: &str| {
    kube_ipvs::fuzzing::iptables_save(text);
    let mut tables = Tables::new(Settings::default());
    for family in Family::BOTH {
        tables.found(*family, text);
        let restore = tables.plan(*family).expect("nothing is written yet");
        tables.written(&restore);
        tables.found(*family, text);
        let again = tables.found(*family, text);
        assert_eq!((again.stale, again.differ), (0, 0), "the same text again tells nothing new");
    }
});
