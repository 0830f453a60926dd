//! For fuzz targets alone: texts of others, with what holds of them whatever they say.

use std::ffi::OsString;

use crate::cli::Cli;
use crate::config::{self, Configuration};
use crate::host_rules;

/// The file of `--config`.
///
/// # Panics
/// Where what would be written of it is not read as the same.
pub fn configuration(text: &str) {
    config::fuzzing::file(text);
}

/// Words of a command line, the program's name not among them. No file is read.
pub fn command_line<'a>(words: impl Iterator<Item = &'a str>) {
    let words = ["kube-ipvs"].into_iter().chain(words).map(OsString::from);
    let Ok(mut cli) = Cli::parse_from_go(words) else {
        return;
    };
    cli.daemon.configuration.config = None;
    if let Ok(configuration) = Configuration::load(&cli.daemon.configuration) {
        configuration.report();
    }
}

/// What `iptables-save` says.
///
/// # Panics
/// Where what goes and what stays contradict each other.
pub fn iptables_save(text: &str) {
    host_rules::fuzzing::saved(text);
}
