//! A directory of manifests, or a single file, followed through inotify.
//!
//! Read are files that end in `.yaml`, `.yml` or `.json` and do not begin with a dot: the names that editors give
//! to backups and swap files (`x.yaml~`, `.x.yaml.swp`, `#x.yaml#`, `x.yaml.bak`, `4913`) are none of these.
//! Subdirectories are not read. A file is read when its writer closes it, when it is renamed into place, or when a
//! link in the directory changes, as `..data` does when a mounted ConfigMap is updated; never while it is written.
//!
//! A file that is whole is taken in at once; more that come while it is stored are taken in together after it. Only
//! when something is gone does this wait a moment: a file that gets another name, or that an editor replaces, is gone
//! first and there again second, and its pods must not notice.
//!
//! A directory that is not there (yet, or any more) is a problem, and changes nothing: a file system that is late or
//! broken must not end pods. A file that is gone from a directory that can be read is gone.

mod events;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use podling_runtime::chain;
use tokio::time::Instant;

use super::Following;
use super::units::Units;
use crate::manifest::MANIFEST_BYTES_MAX;
use crate::store::{Origin, Problem, Store, StoreError, Writer};
use events::{Changes, Events, Names, is_manifest_name};

/// When the directory is not there, or the store cannot be written, look again after this long. There is no event for
/// a file system that is mounted, or a permission that is given.
const RETRY: Duration = Duration::from_secs(2);

/// Why a directory cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// inotify is not to be had.
    #[error("cannot start watching {path}", path = .path.display())]
    Inotify {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What it says could not be put into the store.
    #[error("cannot take in the manifests of {path}", path = .path.display())]
    Store {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        #[source]
        source: StoreError,
    },
}

/// Takes in what the directory or file says now, and follows it from then on. Blocks for the first part; needs a
/// tokio runtime for the second.
///
/// # Errors
/// When it cannot be watched. Broken manifests, a missing directory and a store that cannot be written (a full disk) are
/// no errors but problems in the store: what it remembers goes on.
pub fn follow(store: &Store, path: &Path) -> Result<Following, DirectoryError> {
    let mut place = Place::read(store, path)?;
    let published = place.publish();
    let task = tokio::spawn(place.follow(published));
    Ok(Following {
        writer: Writer::directory(path),
        tasks: vec![task],
    })
}

/// Takes in what the directory or file says now. Blocks; needs a tokio runtime.
///
/// # Errors
/// As [`follow`], and when the store cannot be written.
pub fn read_once(store: &Store, path: &Path) -> Result<(), DirectoryError> {
    let mut place = Place::read(store, path)?;
    let stored = place.units.publish();
    stored.map_err(|source| DirectoryError::Store {
        path: path.to_owned(),
        source,
    })
}

/// The directory or file, and what it said.
struct Place {
    path: PathBuf,
    units: Units,
    events: Events,
}

impl Place {
    /// Watches and reads.
    fn read(store: &Store, path: &Path) -> Result<Self, DirectoryError> {
        let inotify = |source| DirectoryError::Inotify {
            path: path.to_owned(),
            source,
        };
        // One that is not there yet is told by its name.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_single_file = path.is_file() || (!path.is_dir() && is_manifest_name(&name));
        let names = match is_single_file {
            true => Names::Single(path.file_name().unwrap_or_default().to_owned()),
            false => Names::Manifests,
        };
        let mut place = Place {
            path: path.to_owned(),
            units: Units::remembered(store, &Writer::directory(path)),
            events: Events::new(names).map_err(inotify)?,
        };
        place.watch_and_read_all();
        Ok(place)
    }

    /// Tells the store; false when it must be told again.
    fn publish(&mut self) -> bool {
        let published = self.units.publish();
        if let Err(error) = &published {
            tracing::error!(error = chain(error), "cannot store manifests; trying again");
        }
        published.is_ok()
    }

    async fn follow(mut self, mut published: bool) {
        let mut retry = !published || !self.events.is_watching();
        loop {
            let retry_at = retry.then(|| Instant::now() + RETRY);
            let changes = match self.events.next(retry_at).await {
                Ok(changes) => changes,
                Err(error) => {
                    tracing::error!(%error, path = %self.path.display(), "cannot read file events");
                    Changes::everything()
                }
            };
            // Reading files and committing may block for as long as a slow disk takes.
            let taken = tokio::task::spawn_blocking(move || {
                self.take_in(&changes);
                let published = self.publish();
                (self, published)
            });
            (self, published) = match taken.await {
                Ok(taken) => taken,
                // The runtime is shutting down.
                Err(_) => return,
            };
            retry = !published || !self.events.is_watching();
        }
    }

    fn take_in(&mut self, changes: &Changes) {
        if changes.all || !self.events.is_watching() {
            return self.watch_and_read_all();
        }
        for name in changes.whole.iter().chain(&changes.gone) {
            self.read_file(name);
        }
        for name in &changes.doubtful {
            if !changes.whole.contains(name) && self.is_whole(name) {
                self.read_file(name);
            }
        }
    }

    /// True for a file that appeared without being written, by a link, and for one that could not be read before.
    fn is_whole(&self, name: &str) -> bool {
        use std::os::unix::fs::MetadataExt;
        let path = self.file(name);
        let linked = path
            .symlink_metadata()
            .is_ok_and(|found| found.is_symlink() || found.nlink() > 1);
        linked || self.units.is_unread(&Origin::file(path))
    }

    /// Watches first and reads second, so that no change falls in between.
    fn watch_and_read_all(&mut self) {
        let directory = self.directory();
        let listed = self.watch_and_list(&directory).or_else(|_| {
            self.events.watch_above(&directory);
            // It may have come before that.
            self.watch_and_list(&directory)
        });
        match listed {
            Ok(names) => {
                if self.units.set_trouble(None) {
                    tracing::info!(path = %self.path.display(), "manifests are read again");
                }
                let there = names.iter().map(|name| Origin::file(self.file(name)));
                let there: BTreeSet<Origin> = there.collect();
                for name in &names {
                    self.read_file(name);
                }
                self.units.retain(&there);
            }
            Err(error) => {
                self.events.watch_above(&directory);
                let trouble = self.trouble(&error);
                if self.units.set_trouble(Some(trouble.clone())) {
                    tracing::warn!(problem = %trouble, "manifests not read");
                }
            }
        }
    }

    fn watch_and_list(&mut self, directory: &Path) -> io::Result<BTreeSet<String>> {
        self.events.watch(directory)?;
        self.list()
    }

    fn trouble(&self, error: &io::Error) -> Problem {
        let (message, remedy) = match error.kind() {
            io::ErrorKind::NotFound => (
                "cannot read the manifests: the directory is not there".to_owned(),
                "what it said before stays; make it, and it is followed from then on",
            ),
            _ => (
                format!("cannot read the manifests: {error}"),
                "what it said before stays; make it readable again",
            ),
        };
        Problem::new(Origin::file(&self.path), message).remedy(remedy)
    }

    fn directory(&self) -> PathBuf {
        if self.is_single_file() {
            let parent = self
                .path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            return parent.unwrap_or(Path::new(".")).to_owned();
        }
        self.path.clone()
    }

    fn is_single_file(&self) -> bool {
        matches!(self.events.names(), Names::Single(_))
    }

    fn file(&self, name: &str) -> PathBuf {
        if self.is_single_file() {
            self.path.clone()
        } else {
            self.path.join(name)
        }
    }

    fn list(&self) -> io::Result<BTreeSet<String>> {
        if self.is_single_file() {
            let name = self.path.file_name().unwrap_or_default();
            return Ok(BTreeSet::from([name.to_string_lossy().into_owned()]));
        }
        let mut names = BTreeSet::new();
        for entry in std::fs::read_dir(&self.path)? {
            if let Ok(name) = entry?.file_name().into_string()
                && is_manifest_name(&name)
            {
                names.insert(name);
            }
        }
        Ok(names)
    }

    fn read_file(&mut self, name: &str) {
        let path = self.file(name);
        let origin = Origin::file(&path);
        match read(&path) {
            Ok(bytes) => self.units.set(&origin, &bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => match path.read_link() {
                Ok(target) => {
                    let message = format!(
                        "cannot read the file: it is a link to {}, which is not there",
                        target.display()
                    );
                    self.units
                        .fail(&origin, Problem::new(origin.clone(), message));
                }
                Err(_) => self.units.remove(&origin),
            },
            Err(error) => {
                let problem =
                    Problem::new(origin.clone(), format!("cannot read the file: {error}"));
                self.units.fail(&origin, problem);
            }
        }
    }
}

/// Reads a regular file, one byte more than is allowed at most.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Non-blocking: opening a FIFO must not wait for a writer.
    let nonblocking = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let file = File::options()
        .read(true)
        .custom_flags(nonblocking)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    let most = MANIFEST_BYTES_MAX as u64 + 1;
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}
