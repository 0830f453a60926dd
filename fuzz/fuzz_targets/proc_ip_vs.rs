//! `/proc/net/ip_vs`: with its three lines of headings, and without.

#![no_main]

use ipvs::proc_table::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: fuzz::attempt::prepare(), |text: &str| {
    let lines = text.lines().count();
    for text in [text.to_owned(), format!("\n\n\n{text}")] {
        if let Ok(servers) = parse(&text) {
            let told: usize = servers.iter().map(|server| 1 + server.real_servers.len()).sum();
            assert!(told <= lines, "a line tells one server");
        }
    }
});
