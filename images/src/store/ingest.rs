//! Blobs on their way into the store: what arrived survives the process and a reboot, and is gone on with.
//!
//! A partial blob is only bytes that were once received: nothing of it is believed until the whole has its digest. Its
//! name is locked by who appends to it, so that two pulls share one download.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;

use super::disk::{self, failed};
use super::{ImageStore, Session, StoreError};
use crate::digest::Digest;
use crate::unpack::{Pieces, pieces};

/// A partial blob that nobody went on with for so long is given up: its tag has moved on.
pub(super) const PARTIAL_MAX_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

/// The disk is told to write a blob in parts of this size while the rest arrives, so that little is left to wait for at
/// the end.
const WRITE_BACK_BYTES: u64 = 8 << 20;

/// A blob that is being received, and locked for this session.
#[derive(Debug)]
pub(crate) struct Ingest {
    path: PathBuf,
    file: File,
    /// Bytes that were there before; they come by again, to be hashed.
    before: u64,
    /// Bytes of those that came by.
    repeated: u64,
    /// Bytes that were appended, and up to where the disk was told of them.
    appended: u64,
    told: u64,
    _lock: File,
}

/// The lock file's name below `locks`.
fn lock_name(digest: &Digest) -> String {
    format!("blob-{}-{}", digest.algorithm().name(), digest.hex())
}

impl Session {
    /// Waits until no other session receives this blob, and opens what is there of its `size` bytes.
    pub(crate) fn receive(&self, digest: &Digest, size: u64) -> Result<Ingest, StoreError> {
        let dir = self.store().dir();
        let lock = disk::lock_name(dir, &lock_name(digest), FlockOperation::LockExclusive)?;
        let path = disk::ingest_path(dir, digest);
        let file = disk::open_to_append(&path)?;
        let mut before = file.metadata().map_err(failed("look at", &path))?.len();
        if before > size {
            disk::truncate(&file, &path, 0)?;
            before = 0;
        }
        Ok(Ingest {
            path,
            file,
            before,
            repeated: 0,
            appended: before,
            told: before,
            _lock: lock,
        })
    }
}

/// What there is of a blob that has not arrived wholly.
pub(crate) struct Partial {
    pub(crate) bytes: u64,
    /// Nobody went on with it for so long that the collector takes it.
    pub(crate) is_given_up: bool,
}

impl ImageStore {
    /// The downloads that have not come to their end.
    pub(crate) fn partial_downloads(&self) -> Result<Vec<Partial>, StoreError> {
        let dir = self.dir().join("ingest");
        let names = disk::names(&dir)?.into_iter();
        let partial = names.filter_map(|name| {
            // What is gone by now takes nothing.
            let metadata = std::fs::symlink_metadata(dir.join(name)).ok()?;
            Some(Partial {
                bytes: metadata.len(),
                is_given_up: is_older(&metadata, PARTIAL_MAX_AGE),
            })
        });
        Ok(partial.collect())
    }
}

/// True when nothing was written for so long.
fn is_older(metadata: &std::fs::Metadata, age: Duration) -> bool {
    let modified = metadata.modified().ok();
    let since = modified.and_then(|time| time.elapsed().ok());
    since.is_some_and(|since| since >= age)
}

impl Ingest {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// How many bytes are here from an earlier time.
    pub(crate) fn before(&self) -> u64 {
        self.before
    }

    /// What is here from an earlier time.
    pub(crate) fn pieces_before(&self) -> Result<impl Pieces + use<>, StoreError> {
        let mut file = File::open(&self.path).map_err(failed("open", &self.path))?;
        file.seek(SeekFrom::Start(0))
            .map_err(failed("read", &self.path))?;
        Ok(pieces(file.take(self.before)))
    }

    /// Takes the blob's pieces in order, and writes those that are new.
    pub(crate) fn keep(&mut self, piece: &[u8]) -> io::Result<()> {
        let len = piece.len() as u64;
        if self.repeated + len <= self.before {
            self.repeated += len;
            return Ok(());
        }
        disk::append(&mut self.file, &self.path, piece)?;
        self.appended += len;
        if self.appended - self.told >= WRITE_BACK_BYTES {
            disk::begin_to_write(&self.file, self.told..self.appended)?;
            self.told = self.appended;
        }
        Ok(())
    }

    /// Forgets what is here: it was wrong, or there is no space for it.
    pub(crate) fn discard(self) -> Result<(), StoreError> {
        disk::remove(&self.path)
    }
}

impl ImageStore {
    /// Removes partial downloads that nobody has gone on with for `min_age`, and that no pull is going on with now.
    /// Gives the bytes freed.
    pub fn remove_partial_downloads(&self, min_age: Duration) -> Result<u64, StoreError> {
        let _lock = self.lock_exclusive()?;
        let dir = self.dir().join("ingest");
        let mut freed = 0;
        for name in disk::names(&dir)? {
            let path = dir.join(&name);
            let Ok(metadata) = std::fs::symlink_metadata(&path) else {
                continue;
            };
            if !is_older(&metadata, min_age) {
                continue;
            }
            let lock = format!("blob-{name}");
            match disk::lock_name(self.dir(), &lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(_held) => {
                    disk::remove(&path)?;
                    freed += metadata.len();
                }
                Err(StoreError::Io { source, .. })
                    if source.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        Ok(freed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_disk_is_told_to_write_meanwhile_stays_whole() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(&dir.path().join("images")).unwrap();
        let session = Session::begin(&store).unwrap();
        let content: Vec<u8> = (0..2 * WRITE_BACK_BYTES + 100_001)
            .map(|i| (i / 251) as u8)
            .collect();
        let digest = Digest::sha256(&content);
        let size = content.len() as u64;
        let (here, coming) = content.split_at(300_001);
        let mut ingest = session.receive(&digest, size).unwrap();
        ingest.keep(here).unwrap();
        drop(ingest);
        let mut ingest = session.receive(&digest, size).unwrap();
        assert_eq!(ingest.before(), here.len() as u64);
        ingest.keep(here).unwrap();
        for piece in coming.chunks(99_999) {
            ingest.keep(piece).unwrap();
        }
        assert!(ingest.told > WRITE_BACK_BYTES);
        assert!(std::fs::read(ingest.path()).unwrap() == content);
    }
}
