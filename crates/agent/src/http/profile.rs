//! `/debug/pprof/`: where the program spends its time, in the format of `go tool pprof`. CPU alone: there is no profile of
//! the heap or of threads.

use std::time::Duration;

use anyhow::{Context, Result};
use form_urlencoded::parse;
use http::StatusCode;
use pprof::ProfilerGuardBuilder;
use pprof::protos::Message;
use tracing::warn;

use super::{Answer, TEXT, answer};

/// Samples a second.
const FREQUENCY: i32 = 100;
/// Where `seconds` is not given, as in Go.
const SECONDS: u64 = 30;
/// Below the longest connection.
const SECONDS_MAX: u64 = 300;

const INDEX: &str = "<html><head><title>/debug/pprof/</title></head><body>/debug/pprof/<br><br>
<a href=\"profile?seconds=30\">profile</a>: CPU profile, ?seconds= says how long<br>
<a href=\"cmdline\">cmdline</a>: the command line<br>
</body></html>
";

/// Answers what is below `/debug/pprof/`; `None` = there is no such thing.
pub(super) async fn answer_pprof(rest: &str, query: &str) -> Option<Answer> {
    Some(match rest {
        "" => answer(StatusCode::OK, "text/html; charset=utf-8", INDEX),
        "cmdline" => answer(StatusCode::OK, TEXT, std::env::args().collect::<Vec<_>>().join("\0")),
        "profile" => match cpu(seconds(query)).await {
            Ok(profile) => answer(StatusCode::OK, "application/octet-stream", profile),
            Err(error) => {
                warn!(error = format!("{error:#}"), "no profile");
                answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error:#}\n"))
            }
        },
        _ => return None,
    })
}

fn seconds(query: &str) -> Duration {
    let given = parse(query.as_bytes()).find(|(name, _)| name == "seconds");
    let seconds = given.and_then(|(_, value)| value.parse().ok()).unwrap_or(SECONDS);
    Duration::from_secs(seconds.clamp(1, SECONDS_MAX))
}

/// One at a time: a second one is refused by the profiler.
async fn cpu(time: Duration) -> Result<Vec<u8>> {
    // Unwinding out of these may meet a lock that their caller holds.
    let blocked = ["libc", "libgcc", "pthread", "vdso"];
    let builder = ProfilerGuardBuilder::default().frequency(FREQUENCY);
    let guard = builder.blocklist(&blocked).build().context("start the profiler")?;
    tokio::time::sleep(time).await;
    // Symbols are looked up, which takes long.
    let encode = move || {
        let report = guard.report().build().context("build the profile")?;
        Ok(report.pprof().context("build the profile")?.encode_to_vec())
    };
    tokio::task::spawn_blocking(encode)
        .await
        .context("the thread of the profile panicked")?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_long_a_profile_takes() {
        let check = |query, expect| assert_eq!(seconds(query).as_secs(), expect);
        check("", 30);
        check("seconds=5&x=1", 5);
        check("seconds=0", 1);
        check("seconds=86400", 300);
        check("seconds=x", 30);
    }
}
