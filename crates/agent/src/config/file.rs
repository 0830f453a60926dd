//! The file of `--config` while the daemon runs: a change of what is in it ends the program, which its supervisor starts
//! again (there is no reload, as in kube-proxy).
//!
//! Asked is the content, by notifications of inotify, not by looking from time to time. So a ConfigMap whose link
//! `..data` is swapped is noticed, and one that is written anew with the same content changes nothing. A file that is
//! gone is no change: what it said still holds, and it counts again when it is back.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tracing::warn;

/// Ends of writing, and other files under the same name.
const CHANGES: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ATTRIB);

/// A file that was read, and is watched from before that.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    path: PathBuf,
    content: String,
    notifications: OwnedFd,
}

impl ConfigFile {
    /// # Errors
    /// It cannot be read, or not be watched.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let named = || format!("read configuration {}", path.display());
        let notifications = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)
            .context("open inotify for the configuration")?;
        watch(&notifications, path).with_context(named)?;
        Ok(Self {
            content: fs::read_to_string(path).with_context(named)?,
            path: path.to_owned(),
            notifications,
        })
    }

    pub(super) fn content(&self) -> &str {
        &self.content
    }

    /// Returns when the file says something else.
    ///
    /// # Errors
    /// It can be watched no longer.
    pub(crate) async fn changed(self) -> io::Result<()> {
        #[expect(
            deprecated,
            reason = "its successor is an unsafe fn; an OwnedFd that is moved in stays open as long as it must"
        )]
        let notifications = AsyncFd::new(self.notifications)?;
        let mut gone = false;
        loop {
            // First of all, since it may have changed while nobody waited. A name may stand for another file now.
            watch(notifications.get_ref(), &self.path)?;
            match fs::read(&self.path) {
                Ok(content) if content != self.content.as_bytes() => return Ok(()),
                Ok(_) => gone = false,
                Err(error) => {
                    if !gone {
                        warn!(file = %self.path.display(), %error, "the configuration file cannot be read, what it said still holds");
                    }
                    gone = true;
                }
            }
            let mut ready = notifications.readable().await?;
            let mut buffer = [0; 4096];
            while rustix::io::read(notifications.get_ref(), &mut buffer).is_ok_and(|length| length != 0) {}
            ready.clear_ready();
        }
    }
}

/// Watches the file, the folder of its name, and the folder of what the name stands for. What is watched already stays so.
fn watch(notifications: &OwnedFd, path: &Path) -> io::Result<()> {
    let folder = |path: &Path| match path.parent() {
        Some(folder) if folder != Path::new("") => folder.to_owned(),
        _ => PathBuf::from("."),
    };
    inotify::add_watch(notifications, folder(path), CHANGES)?;
    let target = fs::canonicalize(path).ok().map(|target| folder(&target));
    for other in target.into_iter().chain([path.to_owned()]) {
        match inotify::add_watch(notifications, other, CHANGES) {
            // It comes back under a name that is watched.
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    use super::*;

    /// Longer than any notification takes.
    const QUIET: Duration = Duration::from_millis(300);
    const LIMIT: Duration = Duration::from_secs(30);

    /// Does something to a file once it is waited for, and tells whether that is a change.
    fn notices(path: &Path, act: impl Fn()) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let file = ConfigFile::open(path).unwrap();
        runtime.block_on(async {
            let mut changed = tokio::spawn(file.changed());
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert!(!changed.is_finished());
            act();
            // A last change of the same file, which is noticed for sure, shows that what came before was none.
            if let Ok(changed) = tokio::time::timeout(QUIET, &mut changed).await {
                changed.unwrap().unwrap();
                return true;
            }
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "the end").unwrap();
            tokio::time::timeout(LIMIT, changed).await.unwrap().unwrap().unwrap();
            false
        })
    }

    #[test]
    fn a_file_written_in_place_or_replaced_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, new) = (folder.path().join("config"), folder.path().join("new"));
        fs::write(&path, "1").unwrap();
        assert!(notices(&path, || fs::write(&path, "2").unwrap()));
        assert!(notices(&path, || {
            fs::write(&new, "3").unwrap();
            fs::rename(&new, &path).unwrap();
        }));
        assert!(notices(&path, || {
            fs::remove_file(&path).unwrap();
            fs::write(&path, "4").unwrap();
        }));
    }

    #[test]
    fn the_same_content_another_file_and_a_file_that_is_gone_are_no_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (path, new) = (folder.path().join("config"), folder.path().join("new"));
        for act in [
            &|| fs::write(&path, "1").unwrap(),
            &|| {
                fs::write(&new, "1").unwrap();
                fs::rename(&new, &path).unwrap();
            },
            &|| fs::write(&new, "2").unwrap(),
            &|| fs::remove_file(&path).unwrap(),
        ] as [&dyn Fn(); 4]
        {
            fs::write(&path, "1").unwrap();
            assert!(!notices(&path, act));
        }
    }

    /// What the kubelet does to the volume of a ConfigMap.
    #[test]
    fn the_swap_of_a_config_map_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let volume = folder.path();
        let version = |name: &str, content: &str| {
            fs::create_dir(volume.join(name)).unwrap();
            fs::write(volume.join(name).join("config.conf"), content).unwrap();
            symlink(name, volume.join("..data_tmp")).unwrap();
            fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
        };
        version("..1", "one");
        let path = volume.join("config.conf");
        symlink("..data/config.conf", &path).unwrap();
        assert!(notices(&path, || {
            version("..2", "two");
            fs::remove_dir_all(volume.join("..1")).unwrap();
        }));
        // Another key of the map changed.
        assert!(!notices(&path, || {
            version("..3", "two");
            fs::remove_dir_all(volume.join("..2")).unwrap();
        }));
    }

    /// What changed before anybody waited is noticed, too.
    #[test]
    fn a_change_before_the_wait_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        fs::write(&path, "1").unwrap();
        let file = ConfigFile::open(&path).unwrap();
        fs::write(&path, "2").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime
            .block_on(async { tokio::time::timeout(LIMIT, file.changed()).await })
            .unwrap()
            .unwrap();
    }
}
