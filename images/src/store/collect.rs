//! Frees what nobody needs, and checks what is there.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::disk::{self, failed};
use super::record::{self, Record};
use super::{Held, ImageStore, Session, StoreError};
use crate::digest::Digest;
use crate::reference::Reference;

/// What [`ImageStore::gc`] freed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Unpacked layers.
    pub layers: u64,
    /// Manifests and configurations.
    pub blobs: u64,
    /// Their bytes.
    pub freed_bytes: u64,
}

/// Something [`ImageStore::verify`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file or directory.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
    /// The images that need it.
    pub images: Vec<Reference>,
}

impl ImageStore {
    /// Frees what no name needs, except the layer directories in `in_use` (from [`Image::layers`](crate::Image)), by
    /// whatever path they are named.
    pub fn gc(&self, in_use: &HashSet<PathBuf>) -> Result<Collected, StoreError> {
        let session = Session::begin(self)?;
        let in_use = identities(in_use)?;
        let mut collected = Collected::default();
        let mut trash = Vec::new();
        {
            let _lock = self.lock_exclusive()?;
            let mut needed: BTreeSet<Held> = self.living_leases()?;
            needed.extend(record::read_all(self.dir())?.iter().flat_map(Record::held));
            for digest in self.digests("blobs")? {
                if !needed.contains(&Held::Blob(digest.clone())) {
                    trash.push(disk::blob_path(self.dir(), &digest));
                    collected.blobs += 1;
                }
            }
            for diff_id in self.digests("layers")? {
                let path = disk::layer_path(self.dir(), &diff_id);
                let is_used = identity(&path.join("fs"))?.is_some_and(|id| in_use.contains(&id));
                if !needed.contains(&Held::Layer(diff_id)) && !is_used {
                    trash.push(path);
                    collected.layers += 1;
                }
            }
            for path in &mut trash {
                let away = session.temporary();
                std::fs::rename(&*path, &away).map_err(failed("move away", path))?;
                *path = away;
            }
            self.remove_idle_locks()?;
        }
        for path in trash {
            collected.freed_bytes += file_bytes(&path)?;
            disk::remove(&path)?;
        }
        Ok(collected)
    }

    /// Checks that all that the records name is here, that blobs have their digests, and that the files of each layer
    /// have the size that was unpacked (which finds what a power cut left empty).
    pub fn verify(&self) -> Result<Vec<Problem>, StoreError> {
        let mut needed: BTreeMap<Held, Vec<Reference>> = BTreeMap::new();
        for record in record::read_all(self.dir())? {
            for held in record.held() {
                needed
                    .entry(held)
                    .or_default()
                    .push(record.reference.clone());
            }
        }
        let mut problems = Vec::new();
        for (held, images) in needed {
            let (path, found) = match &held {
                Held::Blob(digest) => (
                    disk::blob_path(self.dir(), digest),
                    disk::read_blob(self.dir(), digest).map(drop),
                ),
                Held::Layer(diff_id) => (
                    disk::layer_path(self.dir(), diff_id),
                    self.check_layer(diff_id),
                ),
            };
            if let Err(error) = found {
                let cause = std::error::Error::source(&error);
                let what = match cause {
                    Some(cause) => format!("{error}: {cause}"),
                    None => error.to_string(),
                };
                problems.push(Problem { path, what, images });
            }
        }
        Ok(problems)
    }

    fn check_layer(&self, diff_id: &Digest) -> Result<(), StoreError> {
        let info = disk::read_layer(self.dir(), diff_id)?;
        let fs = disk::layer_path(self.dir(), diff_id).join("fs");
        let found = file_bytes(&fs)?;
        if found == info.file_bytes {
            return Ok(());
        }
        Err(StoreError::Damaged {
            path: fs,
            what: format!(
                "its files hold {found} bytes instead of {}",
                info.file_bytes
            ),
        })
    }

    fn digests(&self, kind: &str) -> Result<Vec<Digest>, StoreError> {
        let dir = self.dir().join(kind);
        let mut digests = Vec::new();
        for algorithm in disk::names(&dir)? {
            for hex in disk::names(&dir.join(&algorithm))? {
                digests.push(format!("{algorithm}:{hex}").parse()?);
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
fn file_bytes(path: &Path) -> Result<u64, StoreError> {
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
