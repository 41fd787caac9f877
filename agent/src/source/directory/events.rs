//! What inotify says of a directory, or of the place where it is to appear.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify::{self, ReadFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until, timeout_at};

/// After a file is gone, wait this long for it to come back, perhaps under another name: less than anybody notices,
/// enough for an editor or a `mv`.
const SETTLE: Duration = Duration::from_millis(3);
/// But never longer than this in all.
const SETTLE_MAX: Duration = Duration::from_millis(50);
/// True for the names of files that are read.
pub(super) fn is_manifest_name(name: &str) -> bool {
    let ends = [".yaml", ".yml", ".json"];
    !name.starts_with('.') && !name.starts_with('#') && ends.iter().any(|end| name.ends_with(end))
}

/// Which names in the directory are read.
#[derive(Debug, Clone)]
pub(super) enum Names {
    Manifests,
    /// The path is a file, to be read whatever its name.
    Single(OsString),
}

impl Names {
    fn contain(&self, name: &str) -> bool {
        match self {
            Self::Manifests => is_manifest_name(name),
            Self::Single(own) => own == name,
        }
    }
}

/// What has changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Files that were written or moved here, and are whole.
    pub(super) whole: BTreeSet<String>,
    /// Files that have vanished, and were not there again since.
    pub(super) gone: BTreeSet<String>,
    /// Files that may still be being written: those that were created, or whose attributes changed.
    pub(super) doubtful: BTreeSet<String>,
    /// Look at everything.
    pub(super) all: bool,
}

impl Changes {
    /// Nothing of it is known.
    pub(super) fn everything() -> Self {
        Self {
            all: true,
            ..Self::default()
        }
    }

    fn is_empty(&self) -> bool {
        !self.all && self.whole.is_empty() && self.gone.is_empty() && self.doubtful.is_empty()
    }

    /// Nothing that may come back in a moment is missing.
    fn is_settled(&self) -> bool {
        !self.all && self.gone.is_empty()
    }

    fn note_whole(&mut self, name: &str) {
        self.gone.remove(name);
        self.whole.insert(name.to_owned());
    }

    fn note_gone(&mut self, name: &str) {
        self.whole.remove(name);
        self.gone.insert(name.to_owned());
    }
}

/// inotify, on one directory, or on the nearest that is there above it.
pub(super) struct Events {
    inotify: AsyncFd<OwnedFd>,
    watched: Option<i32>,
    /// The directory in which the next part of the path is to appear.
    above: Option<i32>,
    names: Names,
}

impl Events {
    #[expect(
        deprecated,
        reason = "its successor is unsafe; an OwnedFd is the same open file for its whole life"
    )]
    pub(super) fn new(names: Names) -> io::Result<Self> {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        Ok(Self {
            inotify: AsyncFd::new(inotify::init(flags)?)?,
            watched: None,
            above: None,
            names,
        })
    }

    /// Which names are read.
    pub(super) fn names(&self) -> &Names {
        &self.names
    }

    /// True when what happens to the directory is heard of.
    pub(super) fn is_watching(&self) -> bool {
        self.watched.is_some()
    }

    /// Watches the directory.
    ///
    /// # Errors
    /// When it is not there, or cannot be read.
    pub(super) fn watch(&mut self, directory: &Path) -> io::Result<()> {
        let flags = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            // Links appear without being closed.
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let descriptor = inotify::add_watch(self.inotify.get_ref(), directory, flags)?;
        self.watched = Some(descriptor);
        if let Some(above) = self.above.take() {
            // It may be gone, and its watch with it.
            inotify::remove_watch(self.inotify.get_ref(), above).unwrap_or_default();
        }
        Ok(())
    }

    /// Watches where the directory, or the first part of its path that is missing, is to appear. What cannot be
    /// watched, as behind a link or where something is mounted, is found by looking again.
    pub(super) fn watch_above(&mut self, directory: &Path) {
        self.watched = None;
        let flags = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let above = directory.ancestors().find(|above| above.is_dir());
        let watched =
            above.and_then(|above| inotify::add_watch(self.inotify.get_ref(), above, flags).ok());
        if let Some(before) = std::mem::replace(&mut self.above, watched)
            && self.above != Some(before)
        {
            inotify::remove_watch(self.inotify.get_ref(), before).unwrap_or_default();
        }
    }

    /// Waits for changes, and until they have settled; or until `retry_at`.
    pub(super) async fn next(&mut self, retry_at: Option<Instant>) -> io::Result<Changes> {
        let mut changes = Changes::default();
        while changes.is_empty() {
            tokio::select! {
                ready = self.inotify.readable() => {
                    ready?.clear_ready();
                    self.drain(&mut changes)?;
                }
                () = sleep_until(retry_at.unwrap_or_else(Instant::now)), if retry_at.is_some() => {
                    return Ok(Changes::everything());
                }
            }
        }
        let latest = Instant::now() + SETTLE_MAX;
        while !changes.is_settled() {
            let quiet = (Instant::now() + SETTLE).min(latest);
            match timeout_at(quiet, self.inotify.readable()).await {
                Err(_) => break,
                Ok(ready) => {
                    ready?.clear_ready();
                    self.drain(&mut changes)?;
                }
            }
        }
        Ok(changes)
    }

    fn drain(&mut self, changes: &mut Changes) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut reader = inotify::Reader::new(self.inotify.get_ref(), &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let flags = event.events();
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                changes.all = true;
                continue;
            }
            if self.above == Some(event.wd()) {
                changes.all = true;
                continue;
            }
            // Events of a directory that was watched before.
            if Some(event.wd()) != self.watched {
                continue;
            }
            if flags.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::IGNORED)
            {
                self.watched = None;
                changes.all = true;
                continue;
            }
            let Some(name) = event.file_name().and_then(|name| name.to_str().ok()) else {
                continue;
            };
            if name.starts_with("..") {
                // All links of a mounted ConfigMap change at once.
                changes.all = true;
            } else if !self.names.contain(name) {
                continue;
            } else if flags.intersects(ReadFlags::CREATE | ReadFlags::ATTRIB) {
                changes.doubtful.insert(name.to_owned());
            } else if flags.intersects(ReadFlags::MOVED_FROM | ReadFlags::DELETE) {
                changes.note_gone(name);
            } else {
                changes.note_whole(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_file_is_taken_in_at_once() {
        let mut changes = Changes::default();
        changes.note_whole("a.yaml");
        assert!(changes.is_settled());
    }

    #[test]
    fn a_file_that_is_gone_may_come_back() {
        let mut changes = Changes::default();
        changes.note_gone("a.yaml");
        assert!(!changes.is_settled());
        // Under another name.
        changes.note_whole("b.yaml");
        assert!(!changes.is_settled());
        // An editor has written it anew.
        changes.note_whole("a.yaml");
        assert!(changes.is_settled());
        assert!(changes.whole.contains("a.yaml"));
    }
}
