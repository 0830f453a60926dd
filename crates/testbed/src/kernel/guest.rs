//! What happens inside: a script that prepares the guest, runs the job and leaves its status in a file; and outside:
//! a child whose output is passed on and whose time is limited.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::{IN_GUEST, Job};

/// Variables of ours that the guest sees as well.
const PASSED_ON: &[&str] = &["KUBE_IPVS_", "PROPTEST_", "RUST_", "UPDATE"];

/// The files of one run: script in, status out.
pub(super) struct Run {
    folder: TempDir,
}

impl Run {
    /// Writes the script. `last` ends the guest.
    pub(super) fn new(job: &Job, kernel: &str, last: &str) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("kube-ipvs-guest-")
            .tempdir()
            .context("make a folder")?;
        let run = Self { folder };
        let mut text = String::from(
            "#!/bin/sh\nexport PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8\n",
        );
        let ours = std::env::vars().filter(|(name, _)| PASSED_ON.iter().any(|prefix| name.starts_with(prefix)));
        let own = [
            (IN_GUEST.to_owned(), kernel.to_owned()),
            ("TMPDIR".to_owned(), "/run/tmp".to_owned()),
        ];
        for (name, value) in ours.chain(job.environment.iter().cloned()).chain(own) {
            writeln!(text, "export {name}={}", quoted(&value))?;
        }
        text.push_str(
            "mount -t proc proc /proc 2>/dev/null\nmount -t sysfs sysfs /sys 2>/dev/null\nmount -t tmpfs -o mode=755 tmpfs /run\n\
             mkdir -p /run/tmp\nip link set lo up\nulimit -n 65536\n",
        );
        writeln!(text, "cd {}", quoted(&job.directory.to_string_lossy()))?;
        let words: Vec<_> = job.command.iter().map(|word| quoted(word)).collect();
        writeln!(
            text,
            "{} </dev/null 2>&1\necho $? >{}",
            words.join(" "),
            quoted(&run.status_file().to_string_lossy())
        )?;
        writeln!(text, "{last}")?;
        fs::write(run.script(), text).context("write the guest's script")?;
        fs::set_permissions(run.script(), fs::Permissions::from_mode(0o755))?;
        Ok(run)
    }

    pub(super) fn script(&self) -> PathBuf {
        self.folder.path().join("init")
    }

    pub(super) fn status_file(&self) -> PathBuf {
        self.folder.path().join("status")
    }

    /// Runs the command that carries the guest to its end, passes its output on, and reads the job's status.
    pub(super) fn finish(&self, mut carrier: Command, limit: Duration, noise: &[&str]) -> Result<i32> {
        let mut child = carrier
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {:?}", carrier.get_program()))?;
        let (sender, ended) = mpsc::channel();
        pass_on(child.stdout.take(), noise, sender.clone());
        pass_on(child.stderr.take(), noise, sender);
        let result = wait(&mut child, limit);
        // A child of the guest may still hold the pipe; what it says after the end does not matter.
        for _ in 0..2 {
            let _ = ended.recv_timeout(Duration::from_secs(1));
        }
        result?;
        let status =
            fs::read_to_string(self.status_file()).context("the guest ended without leaving its job's status")?;
        status.trim().parse().with_context(|| format!("status {status:?}"))
    }
}

fn wait(child: &mut Child, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    while child.try_wait()?.is_none() {
        if Instant::now() >= deadline {
            // Our own group: the guest's processes and nothing else.
            if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
                rustix::process::kill_process_group(group, rustix::process::Signal::KILL).context("end the guest")?;
            }
            child.wait()?;
            bail!("the guest was ended after {} s", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Copies lines to standard output as they come, without the carriage returns of a console and the kernel's own noise.
fn pass_on(from: Option<impl std::io::Read + Send + 'static>, noise: &[&str], ended: mpsc::Sender<()>) {
    let noise: Vec<_> = noise.iter().map(|text| (*text).to_owned()).collect();
    let Some(from) = from else { return };
    thread::spawn(move || {
        let mut lines = BufReader::new(from);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line).is_ok_and(|length| length != 0) {
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\r', '\n']);
            if !noise.iter().any(|noise| text.contains(noise.as_str())) {
                let _ = writeln!(std::io::stdout(), "{text}");
            }
            line.clear();
        }
        let _ = ended.send(());
    });
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
