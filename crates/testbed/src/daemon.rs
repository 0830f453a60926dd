//! kube-ipvs as a process of a test: started, waited for by what it says, ended.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::netns::Netns;

/// Environment variable with the path of the program; else `target/debug/kube-ipvs` of the workspace.
pub const BINARY: &str = "KUBE_IPVS_BINARY";

/// The program under test.
pub fn binary() -> PathBuf {
    std::env::var_os(BINARY).map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/debug/kube-ipvs")),
        PathBuf::from,
    )
}

/// A running kube-ipvs. It is killed when this is dropped.
pub struct Daemon {
    child: Child,
    said: Arc<(Mutex<Said>, Condvar)>,
}

/// What came from standard error.
#[derive(Default)]
struct Said {
    lines: Vec<String>,
    /// Nothing more comes.
    whole: bool,
}

impl Daemon {
    /// Starts it in a namespace.
    ///
    /// # Errors
    /// The program is missing.
    pub fn start(netns: &Netns, arguments: &[&str]) -> Result<Self> {
        Self::start_by(netns, &[], arguments)
    }

    /// Starts it by another program (`strace -o …`), which gets its command line appended.
    ///
    /// # Errors
    /// A program is missing.
    pub fn start_by(netns: &Netns, by: &[&str], arguments: &[&str]) -> Result<Self> {
        let binary = binary();
        let program = binary.to_string_lossy();
        let words: Vec<&str> = by
            .iter()
            .copied()
            // The size of the connection tracker's table is the machine's, and not to be set from a namespace.
            .chain([&*program, "--conntrack-max-per-core=0"])
            .chain(arguments.iter().copied())
            .collect();
        let (first, rest) = words.split_first().context("no program")?;
        let mut command = Command::new(first);
        command
            .args(rest)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = netns.spawn(command)?;
        let said = Arc::new((Mutex::new(Said::default()), Condvar::new()));
        let stderr = child.stderr.take().context("no pipe")?;
        let reader = Arc::clone(&said);
        thread::spawn(move || {
            let note = |change: &dyn Fn(&mut Said)| {
                change(&mut reader.0.lock().unwrap_or_else(PoisonError::into_inner));
                reader.1.notify_all();
            };
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                note(&|said| said.lines.push(line.clone()));
            }
            note(&|said| said.whole = true);
        });
        Ok(Self { child, said })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its status, if it has ended. All that it said has been read then.
    ///
    /// # Errors
    /// It cannot be asked for.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        let Some(status) = self.child.try_wait()? else {
            return Ok(None);
        };
        let said = self.said.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A process that it started may hold the pipe for longer.
        drop(
            self.said
                .1
                .wait_timeout_while(said, Duration::from_secs(2), |said| !said.whole),
        );
        Ok(Some(status))
    }

    /// What it said so far, on standard error.
    pub fn said(&self) -> Vec<String> {
        let said = self.said.0.lock().unwrap_or_else(PoisonError::into_inner);
        said.lines.clone()
    }

    /// Waits until it has said something that contains the text, after the first `from` lines. Returns the line.
    ///
    /// # Errors
    /// It does not within a minute, or ends before: with what it said.
    pub fn wait_for(&mut self, from: usize, text: &str) -> Result<String> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let ended = self.ended()?;
            let said = self.said.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(line) = said.lines.iter().skip(from).find(|line| line.contains(text)) {
                return Ok(line.clone());
            }
            if ended.is_some() || Instant::now() >= deadline {
                bail!(
                    "kube-ipvs did not say {text:?}; ended: {ended:?}; it said:\n{}",
                    said.lines.join("\n")
                );
            }
            drop(self.said.1.wait_timeout(said, Duration::from_millis(200)));
        }
    }

    /// Waits for its first complete commit.
    ///
    /// # Errors
    /// As [`wait_for`](Self::wait_for).
    pub fn wait_until_serving(&mut self) -> Result<String> {
        self.wait_for(0, " serving ")
    }

    /// Ends it by SIGTERM.
    ///
    /// # Errors
    /// It cannot be told, or does not end within ten seconds.
    pub fn terminate(mut self) -> Result<(ExitStatus, Vec<String>)> {
        let id = i32::try_from(self.child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw)
            .context("process id")?;
        rustix::process::kill_process(id, rustix::process::Signal::TERM)?;
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(status) = self.ended()? {
                return Ok((status, self.said()));
            }
            if Instant::now() >= deadline {
                bail!(
                    "kube-ipvs did not end after SIGTERM; it said:\n{}",
                    self.said().join("\n")
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
