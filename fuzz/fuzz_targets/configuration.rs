//! The file of `--config`: what would be written of it reads as the same.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzz::attempt::prepare(), |text: &str| {
    kube_ipvs::fuzzing::configuration(text);
});
