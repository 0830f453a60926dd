//! The log: to standard error, as text or JSON, with a verbosity that can be changed while the program runs.

use std::io;

use anyhow::{Context, Result};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, registry};

use crate::config::LoggingConfiguration;

/// Sets how much is logged from now on.
#[derive(Clone)]
pub(crate) struct Verbosity(Handle<EnvFilter, Registry>);

impl Verbosity {
    /// As `-v`; `RUST_LOG` counts no more.
    ///
    /// # Errors
    /// There is no log any more.
    pub(crate) fn set(&self, verbosity: u32) -> Result<()> {
        let filter = EnvFilter::new(level(verbosity));
        self.0.reload(filter).context("set the verbosity of the log")
    }
}

/// Levels of klog as those of tracing.
fn level(verbosity: u32) -> &'static str {
    match verbosity {
        0..=3 => "info",
        4..=5 => "debug",
        _ => "trace",
    }
}

/// Begins to log; `RUST_LOG` overrides the verbosity.
pub(crate) fn to_stderr(logging: &LoggingConfiguration) -> Verbosity {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level(logging.verbosity)));
    let (filter, handle) = reload::Layer::new(filter);
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(false);
    let lines = match logging.format.as_str() {
        "json" => lines.json().boxed(),
        _ => lines.boxed(),
    };
    registry().with(filter).with(lines).init();
    Verbosity(handle)
}

#[cfg(test)]
impl Verbosity {
    /// Of a log that nobody writes to; it tells the filter as long as it is kept.
    pub(crate) fn of_nobody() -> (reload::Layer<EnvFilter, Registry>, Self) {
        let (layer, handle) = reload::Layer::new(EnvFilter::new(level(0)));
        (layer, Self(handle))
    }

    pub(crate) fn filter(&self) -> String {
        self.0.with_current(ToString::to_string).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verbosity_is_set_while_it_runs() {
        let (_log, verbosity) = Verbosity::of_nobody();
        for (number, expect) in [(2, "info"), (4, "debug"), (9, "trace"), (0, "info")] {
            verbosity.set(number).unwrap();
            assert_eq!(verbosity.filter(), expect);
        }
    }
}
