//! Frees what nobody needs.

use std::collections::{BTreeSet, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::disk::{self, failed};
use super::record::{self, Record};
use super::{Held, ImageStore, Session, StoreError, ingest, replaced};
use crate::digest::Digest;

/// What [`ImageStore::gc`] freed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Unpacked layers.
    pub layers: u64,
    /// Manifests, configurations and compressed layers.
    pub blobs: u64,
    /// Their bytes, and those of downloads that nobody went on with.
    pub freed_bytes: u64,
}

impl ImageStore {
    /// Frees what no name needs, except the layer directories in `in_use` (from [`Image::layers`](crate::Image)), by
    /// whatever path they are named. Frees compressed layers, too, if they are not kept, and downloads that nobody went
    /// on with for a week.
    ///
    /// # Errors
    /// When a record cannot be read: nothing is freed as long as it is not known what it names.
    pub fn gc(&self, in_use: &HashSet<PathBuf>) -> Result<Collected, StoreError> {
        let session = Session::begin(self)?;
        let in_use = identities(in_use)?;
        let mut collected = Collected::default();
        let mut trash = Vec::new();
        {
            let _lock = self.lock_exclusive()?;
            let mut needed: BTreeSet<Held> = self.living_leases()?;
            let records = record::scan(self.dir())?;
            if let Some(record) = records.unreadable.first() {
                return Err(StoreError::UnreadableRecord {
                    path: record.path(self.dir()),
                    what: record.what.clone(),
                });
            }
            let held = |record: &Record| record.held(self.keeps_blobs());
            needed.extend(records.whole.iter().flat_map(held));
            let is_used = |diff_id: &Digest| {
                let fs = disk::layer_path(self.dir(), diff_id).join("fs");
                Ok(identity(&fs)?.is_some_and(|id| in_use.contains(&id)))
            };
            for digest in self.digests("blobs")? {
                if !needed.contains(&Held::Blob(digest.clone())) {
                    trash.push(disk::blob_path(self.dir(), &digest));
                    collected.blobs += 1;
                }
            }
            for diff_id in self.digests("layers")? {
                if !needed.contains(&Held::Layer(diff_id.clone())) && !is_used(&diff_id)? {
                    trash.push(disk::layer_path(self.dir(), &diff_id));
                    collected.layers += 1;
                }
            }
            let is_needed = |digest: &Digest| needed.contains(&Held::Blob(digest.clone()));
            for note in self.idle_drop_notes(is_needed)? {
                disk::remove(&note)?;
            }
            trash.extend(replaced::unused(self.dir(), is_used)?);
            for path in &mut trash {
                let away = session.temporary();
                disk::move_away(path, &away)?;
                *path = away;
            }
            self.remove_idle_locks()?;
        }
        collected.freed_bytes += self.remove_partial_downloads(ingest::PARTIAL_MAX_AGE)?;
        let mut left = None;
        for path in trash {
            let bytes = file_bytes(&path);
            match disk::remove(&path) {
                Ok(()) => collected.freed_bytes += bytes?,
                // The others go all the same.
                Err(error) => left = left.or(Some(error)),
            }
        }
        left.map_or(Ok(collected), Err)
    }

    fn digests(&self, kind: &str) -> Result<Vec<Digest>, StoreError> {
        let dir = self.dir().join(kind);
        let mut digests = Vec::new();
        for algorithm in disk::names(&dir)? {
            for hex in disk::names(&dir.join(&algorithm))? {
                // What has no digest for a name is not of the store.
                digests.extend(format!("{algorithm}:{hex}").parse::<Digest>());
            }
        }
        Ok(digests)
    }

    fn remove_idle_locks(&self) -> Result<(), StoreError> {
        let dir = self.dir().join("locks");
        for name in disk::names(&dir)? {
            let path = dir.join(name);
            match disk::lock(&path, FlockOperation::NonBlockingLockExclusive) {
                // Removed while we hold it: who waits for it sees that the name is another file's.
                Ok(_held) => disk::remove(&path)?,
                Err(StoreError::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// Device and inode of a directory, which are the same by every path to it; none if it is not there.
fn identity(path: &Path) -> Result<Option<(u64, u64)>, StoreError> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(Some((metadata.dev(), metadata.ino()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("look at", path)(e)),
    }
}

fn identities(paths: &HashSet<PathBuf>) -> Result<HashSet<(u64, u64)>, StoreError> {
    let identities = paths.iter().map(|path| identity(path));
    identities.filter_map(Result::transpose).collect()
}

/// The sum of all regular files' sizes; each hard-linked file counts once.
pub(super) fn file_bytes(path: &Path) -> Result<u64, StoreError> {
    let mut seen = HashSet::new();
    let mut sum = 0;
    let mut todo = vec![path.to_owned()];
    while let Some(path) = todo.pop() {
        let metadata = std::fs::symlink_metadata(&path).map_err(failed("look at", &path))?;
        if metadata.is_dir() {
            for entry in std::fs::read_dir(&path).map_err(failed("list", &path))? {
                todo.push(entry.map_err(failed("list", &path))?.path());
            }
        } else if metadata.is_file() && (metadata.nlink() == 1 || seen.insert(metadata.ino())) {
            sum += metadata.len();
        }
    }
    Ok(sum)
}
