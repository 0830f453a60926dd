//! Programs of the system: run, with errors that say which one and what it said; installed where they are missing.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a command line given as words and returns its standard output.
///
/// # Errors
/// It cannot be started, or its status is not zero: with its standard error.
pub fn run(words: &[&str]) -> Result<String> {
    output(command(words)?)
}

/// As [`run`], of one string of words separated by blanks.
///
/// # Errors
/// As [`run`].
pub fn sh(line: &str) -> Result<String> {
    run(&line.split_whitespace().collect::<Vec<_>>())
}

/// Runs a prepared command and returns its standard output.
///
/// # Errors
/// As [`run`].
pub fn output(mut command: Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?}: {}: {}", output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command whose output goes where ours goes.
///
/// # Errors
/// It cannot be started, or its status is not zero.
pub fn show(mut command: Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("start {command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}

/// Feeds a command's standard input.
///
/// # Errors
/// As [`run`].
pub fn feed(words: &[&str], input: &str) -> Result<String> {
    use std::io::Write;
    let mut child = command(words)?
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {words:?}"))?;
    let mut pipe = child.stdin.take().context("no pipe")?;
    let input = input.to_owned();
    let writer = std::thread::spawn(move || pipe.write_all(input.as_bytes()));
    let output = child.wait_with_output()?;
    let written = writer.join();
    if !output.status.success() {
        bail!(
            "{words:?}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    written.ok().context("the writer panicked")??;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The program is on the path.
pub fn exists(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
        || ["/usr/sbin", "/sbin"]
            .iter()
            .any(|directory| Path::new(directory).join(program).is_file())
}

/// Installs what is missing of the Debian packages, each named with a program or file that shows it is there.
///
/// # Errors
/// Something is missing and the machine has no apt-get, or it fails.
pub fn install(wanted: &[(&str, &str)]) -> Result<()> {
    let there = |mark: &str| {
        if mark.starts_with('/') {
            Path::new(mark).exists()
        } else {
            exists(mark)
        }
    };
    let missing: Vec<_> = wanted
        .iter()
        .filter(|(_, mark)| !there(mark))
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !exists("apt-get") {
        bail!(
            "these Debian packages are needed and there is no apt-get to install them: {}",
            missing.join(" ")
        );
    }
    eprintln!("installing Debian packages: {}", missing.join(" "));
    let apt = |words: &[&str]| -> Result<()> {
        let mut command = Command::new("apt-get");
        command
            .args(words)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdout(Stdio::null());
        show(command)
    };
    let install: Vec<_> = ["install", "-y", "-qq", "--no-install-recommends"]
        .into_iter()
        .chain(missing)
        .collect();
    // A fresh machine has no package lists; old ones name packages that are gone.
    let lists = std::fs::read_dir("/var/lib/apt/lists").into_iter().flatten().flatten();
    let known = lists
        .into_iter()
        .any(|list| list.file_name().to_string_lossy().contains("_Packages"));
    if !known || apt(&install).is_err() {
        apt(&["update", "-qq"])?;
        apt(&install)?;
    }
    Ok(())
}

fn command(words: &[&str]) -> Result<Command> {
    let (program, arguments) = words.split_first().context("no command")?;
    let mut command = Command::new(program);
    command.args(arguments);
    Ok(command)
}
