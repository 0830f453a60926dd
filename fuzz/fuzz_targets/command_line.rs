//! The command line: a word is a line.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzz::attempt::prepare(), |text: &str| {
    kube_ipvs::fuzzing::command_line(text.lines());
});
