//! The log: to standard error, as text or JSON, with a verbosity that can be changed while the program runs.
//!
//! The daemon's lines go through a thread of their own: where the reader of standard error stands still, as a full pipe
//! does, lines are lost and counted, and no thread that programs the kernel waits. Commands write theirs at once.

use std::io::{self, Write};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, registry};

use crate::config::LoggingConfiguration;

/// Lines that wait for the reader at most: some two megabytes.
const WAITING: usize = 8192;

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

/// Begins to log for a command; `RUST_LOG` overrides the verbosity.
pub(crate) fn to_stderr(logging: &LoggingConfiguration) {
    begin(logging, io::stderr);
}

/// Begins to log for the daemon, which waits for no reader. What waits is written, or given up within a second, when the
/// guard is dropped.
pub(crate) fn beside(logging: &LoggingConfiguration) -> (Verbosity, WorkerGuard) {
    let (writer, guard) = lossy(io::stderr(), logging.format == "json");
    (begin(logging, writer), guard)
}

fn lossy(out: impl Write + Send + 'static, json: bool) -> (NonBlocking, WorkerGuard) {
    let lost = Arc::new(OnceLock::new());
    let tells = TellsLost {
        out,
        json,
        lost: Arc::clone(&lost),
        told: 0,
    };
    let builder = NonBlockingBuilder::default().lossy(true).thread_name("log");
    let (writer, guard) = builder.buffered_lines_limit(WAITING).finish(tells);
    let _ = lost.set(writer.error_counter());
    (writer, guard)
}

/// Says how many lines were lost before the next one that is not.
struct TellsLost<W> {
    out: W,
    json: bool,
    lost: Arc<OnceLock<ErrorCounter>>,
    told: usize,
}

impl<W: Write> Write for TellsLost<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        let lost = self.lost.get().map_or(0, ErrorCounter::dropped_lines);
        let lines = lost.saturating_sub(self.told);
        if lines > 0 {
            self.told = lost;
            let (now, message) = (
                jiff::Timestamp::now(),
                "lines of the log are lost, its reader stood still",
            );
            if self.json {
                let fields = serde_json::json!({"message": message, "lines": lines});
                let value = serde_json::json!({"timestamp": now.to_string(), "level": "WARN", "fields": fields, "target": "kube_ipvs::log"});
                writeln!(self.out, "{value}")?;
            } else {
                writeln!(self.out, "{now}  WARN kube_ipvs::log: {message} lines={lines}")?;
            }
        }
        self.out.write_all(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn begin<W: for<'a> MakeWriter<'a> + Send + Sync + 'static>(logging: &LoggingConfiguration, writer: W) -> Verbosity {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level(logging.verbosity)));
    let (filter, handle) = reload::Layer::new(filter);
    let lines = fmt::layer().with_writer(writer).with_ansi(false);
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

    /// Writes where a lock is free, which a test holds.
    #[derive(Clone, Default)]
    struct Reader(Arc<std::sync::Mutex<Vec<u8>>>);

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn f22_a_reader_that_stands_still_stops_nobody() {
        for json in [false, true] {
            let reader = Reader::default();
            let (mut writer, guard) = lossy(reader.clone(), json);
            let (all, written) = (WAITING + 1000, reader.0.lock().unwrap());
            for number in 0..all {
                writer.write_all(format!("line {number}\n").as_bytes()).unwrap();
            }
            drop(written);
            // Whatever waits is written.
            drop(writer);
            drop(guard);
            let text = String::from_utf8(reader.0.lock().unwrap().clone()).unwrap();
            let (told, lines): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.contains("WARN"));
            let lost: usize = told
                .iter()
                .map(|line| {
                    line.rsplit(['=', ':'])
                        .find_map(|end| end.trim_matches(['}', '{', '"']).split(',').next()?.parse().ok())
                        .unwrap_or(0)
                })
                .sum();
            assert!(lines.len() >= WAITING && lines.len() < all, "{}", lines.len());
            assert!(
                told.len() == 1 && (json || lost + lines.len() == all),
                "{told:?} {}",
                lines.len()
            );
            assert!(
                !json || serde_json::from_str::<serde_json::Value>(told[0]).is_ok(),
                "{told:?}"
            );
        }
    }

    #[test]
    fn verbosity_is_set_while_it_runs() {
        let (_log, verbosity) = Verbosity::of_nobody();
        for (number, expect) in [(2, "info"), (4, "debug"), (9, "trace"), (0, "info")] {
            verbosity.set(number).unwrap();
            assert_eq!(verbosity.filter(), expect);
        }
    }
}
