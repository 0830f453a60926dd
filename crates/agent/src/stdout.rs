//! What commands print, on standard output, and what they remark, on standard error.
//!
//! The reader of either may go before the end, as in `kube-ipvs plan | head -1`. That is no error of the program: nothing
//! is said about it, and the exit status is that of a program that SIGPIPE ended. The signal itself stays ignored, as
//! Rust has it, since a socket whose other end is closed raises it, too. `println!` and `eprintln!` panic there, so
//! nothing in this crate uses them.

use std::fmt::Display;
use std::io::{self, BufWriter, ErrorKind, Write};

/// The reader of standard output is gone. It is what is inside of the [`io::Error`] that [`print()`] returns then.
#[derive(Debug, thiserror::Error)]
#[error("the reader of standard output is gone")]
struct ReaderGone;

/// Writes to standard output, and flushes it.
///
/// # Errors
/// What `write` returns, or what the system says. [`reader_is_gone`] tells whether that is all.
pub(crate) fn print(write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    write(&mut out)
        .and_then(|()| out.flush())
        .map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => {
                // What is buffered has no reader either.
                let (..) = out.into_parts();
                io::Error::new(ErrorKind::BrokenPipe, ReaderGone)
            }
            _ => error,
        })
}

/// The same for lines.
///
/// # Errors
/// As [`print()`].
pub(crate) fn print_lines(lines: &[impl Display]) -> io::Result<()> {
    print(|out| lines.iter().try_for_each(|line| writeln!(out, "{line}")))
}

/// Writes a line to standard error. Where that cannot be written there is no place left to say so.
pub(crate) fn remark(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// The error says that [`print()`] lost its reader, and nothing else went wrong.
pub(crate) fn reader_is_gone(error: &(dyn std::error::Error + 'static)) -> bool {
    let io = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    io.and_then(|inner| inner.downcast_ref::<ReaderGone>()).is_some() || error.source().is_some_and(reader_is_gone)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn only_standard_output_is_told() {
        let gone = io::Error::new(ErrorKind::BrokenPipe, ReaderGone);
        let error = Err::<(), _>(gone)
            .context("write the plan")
            .context("more")
            .unwrap_err();
        assert!(reader_is_gone(error.as_ref()));
        // An API server that closes its connection, say.
        let other = Err::<(), _>(io::Error::from(ErrorKind::BrokenPipe))
            .context("connect")
            .unwrap_err();
        assert!(!reader_is_gone(other.as_ref()));
    }
}
