//! The file with the values that sysctls had before we changed them, below /run: it goes with a reboot, as they do.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use crate::error::Error;
use crate::sysctl::failed;

/// A file of lines `net/ipv4/ip_forward = 0`, which `sysctl -p FILE` takes, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldValues {
    path: PathBuf,
}

impl OldValues {
    /// At a path; nothing needs to be there.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Values by name; none where there is no file. Lines that are none are passed over.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn read(&self) -> Result<BTreeMap<String, String>, Error> {
        let text = match fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => String::new(),
            Err(error) => return Err(failed("read", &self.path)(error)),
        };
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        Ok(pairs
            .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
            .collect())
    }

    /// Adds values of names that it does not have yet: what a restart finds is our own value. Nothing to add: nothing is
    /// written.
    ///
    /// # Errors
    /// Where it cannot be read or written.
    pub(crate) fn keep<'a>(&self, values: impl Iterator<Item = (&'a str, &'a str)>) -> Result<(), Error> {
        let mut values = values.peekable();
        if values.peek().is_none() {
            return Ok(());
        }
        let mut all = self.read()?;
        for (name, value) in values {
            all.entry(name.to_owned()).or_insert_with(|| value.to_owned());
        }
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder).map_err(failed("make", folder))?;
        }
        let text: String = all.iter().map(|(name, value)| format!("{name} = {value}\n")).collect();
        // Whole or not at all, whenever this process ends.
        let new = self.path.with_extension("new");
        fs::write(&new, text).map_err(failed("write", &new))?;
        fs::rename(&new, &self.path).map_err(failed("write", &self.path))
    }

    /// Removes the file, and its folder where that is empty then; none there is fine.
    ///
    /// # Errors
    /// Where it cannot be removed.
    pub fn forget(&self) -> Result<(), Error> {
        match fs::remove_file(&self.path) {
            Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                Err(failed("remove", &self.path)(error))
            }
            _ => {
                // Not empty: others keep something there.
                let _ = self.path.parent().map(fs::remove_dir);
                Ok(())
            }
        }
    }

    /// There is something to forget.
    pub fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Where it is.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }
}
