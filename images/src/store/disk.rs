//! Paths of the store, and all that changes its directory: files that are whole or not there.
//!
//! Nothing else in the store writes, renames, syncs or removes, but for the files of a layer while it is unpacked. So
//! the crash test can record every step here, and replay what each instant of a power cut would have left.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, CWD, FlockOperation, OFlags, RenameFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::StoreError;
#[cfg(test)]
use super::journal::{self, Step};
use crate::digest::{Digest, Hasher};

/// `layer.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LayerInfo {
    /// Bytes of all regular files.
    pub(crate) file_bytes: u64,
    /// The layer hides all below it.
    #[serde(default)]
    pub(crate) root_is_opaque: bool,
}

/// The list of a layer's files, beside `fs`.
pub(crate) const FILE_LIST: &str = "files.zst";

pub(crate) fn blob_path(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join("blobs")
        .join(digest.algorithm().name())
        .join(digest.hex())
}

pub(crate) fn layer_path(dir: &Path, diff_id: &Digest) -> PathBuf {
    dir.join("layers")
        .join(diff_id.algorithm().name())
        .join(diff_id.hex())
}

pub(crate) fn ingest_path(dir: &Path, digest: &Digest) -> PathBuf {
    let name = format!("{}-{}", digest.algorithm().name(), digest.hex());
    dir.join("ingest").join(name)
}

/// A small blob, checked against its digest.
pub(crate) fn read_blob(dir: &Path, digest: &Digest) -> Result<Vec<u8>, StoreError> {
    let path = blob_path(dir, digest);
    let content = std::fs::read(&path).map_err(failed("read", &path))?;
    if digest.matches(&content) {
        Ok(content)
    } else {
        Err(wrong_digest(path))
    }
}

/// Reads a blob of any size, and compares its digest. `pace` is told the size of each piece that was read.
pub(crate) fn check_blob(
    dir: &Path,
    digest: &Digest,
    pace: &mut dyn FnMut(u64),
) -> Result<u64, StoreError> {
    let path = blob_path(dir, digest);
    let mut file = File::open(&path).map_err(failed("open", &path))?;
    let mut hasher = Hasher::new(digest.algorithm());
    let mut buffer = vec![0; 256 * 1024];
    let mut bytes = 0;
    loop {
        let n = file.read(&mut buffer).map_err(failed("read", &path))?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        bytes += n as u64;
        pace(n as u64);
    }
    if hasher.finish() == *digest {
        Ok(bytes)
    } else {
        Err(wrong_digest(path))
    }
}

fn wrong_digest(path: PathBuf) -> StoreError {
    StoreError::Damaged {
        path,
        what: "its content does not have the digest of its name".to_owned(),
    }
}

pub(crate) fn read_layer(dir: &Path, diff_id: &Digest) -> Result<LayerInfo, StoreError> {
    let path = layer_path(dir, diff_id).join("layer.json");
    read_json(&path)
}

pub(crate) fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, StoreError> {
    let content = std::fs::read(path).map_err(failed("read", path))?;
    serde_json::from_slice(&content).map_err(|e| StoreError::Damaged {
        path: path.to_owned(),
        what: e.to_string(),
    })
}

/// Writes a file under a temporary name, and gives it its final name when it is on disk.
pub(crate) fn write_atomically(
    path: &Path,
    temporary: &Path,
    content: &[u8],
) -> Result<(), StoreError> {
    let mut file = File::create(temporary).map_err(failed("create", temporary))?;
    file.write_all(content)
        .map_err(failed("write", temporary))?;
    #[cfg(test)]
    journal::note(Step::Write(temporary.to_owned(), content.to_vec()));
    sync_file(&file, temporary)?;
    rename(temporary, path)
}

/// Opens or creates a file to append to, and to read.
pub(crate) fn open_to_append(path: &Path) -> Result<File, StoreError> {
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(failed("open", path))?;
    #[cfg(test)]
    journal::note(Step::Append(path.to_owned(), Vec::new()));
    Ok(file)
}

/// Appends; what is there after a power cut is unknown until [`sync_file`] or [`sync_all`].
pub(crate) fn append(
    file: &mut File,
    #[cfg_attr(not(test), expect(unused_variables, reason = "for the journal"))] path: &Path,
    piece: &[u8],
) -> io::Result<()> {
    file.write_all(piece)?;
    #[cfg(test)]
    journal::note(Step::Append(path.to_owned(), piece.to_vec()));
    Ok(())
}

/// Has the kernel begin to write this part of a file, without waiting: nothing is promised before [`sync_file`] or
/// [`sync_all`]. (posix_fadvise(2), `POSIX_FADV_DONTNEED`, which starts the writing of what is not on the disk yet, and
/// forgets what is: a blob is not read again soon.)
pub(crate) fn begin_to_write(file: &File, part: Range<u64>) -> io::Result<()> {
    let len = NonZeroU64::new(part.end - part.start);
    match rustix::fs::fadvise(file, part.start, len, Advice::DontNeed) {
        // Only advice: file systems need not have it.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

pub(crate) fn truncate(file: &File, path: &Path, bytes: u64) -> Result<(), StoreError> {
    file.set_len(bytes).map_err(failed("truncate", path))?;
    #[cfg(test)]
    journal::note(Step::Truncate(path.to_owned(), bytes));
    Ok(())
}

pub(crate) fn sync_file(file: &File, path: &Path) -> Result<(), StoreError> {
    file.sync_all().map_err(failed("sync", path))?;
    #[cfg(test)]
    journal::note(Step::SyncFile(path.to_owned()));
    Ok(())
}

/// Brings all of the file system to the disk, among it the directory `filled`, which was made below `tmp`.
pub(crate) fn sync_all(filled: &Path) -> Result<(), StoreError> {
    #[cfg(test)]
    journal::note(Step::Fill(filled.to_owned(), journal::snapshot(filled)));
    File::open(filled)
        .and_then(|dir| Ok(rustix::fs::syncfs(dir)?))
        .map_err(failed("sync", filled))?;
    #[cfg(test)]
    journal::note(Step::SyncAll(filled.to_owned()));
    Ok(())
}

/// Renames what is on disk already, and makes the renaming last.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    if let Some(parent) = to.parent() {
        create_dir(parent)?;
    }
    std::fs::rename(from, to).map_err(failed("rename to", to))?;
    #[cfg(test)]
    journal::note(Step::Rename(from.to_owned(), to.to_owned()));
    sync_parent(to)
}

/// Renames what is to be removed; it does not matter when that lasts.
pub(crate) fn move_away(from: &Path, to: &Path) -> Result<(), StoreError> {
    std::fs::rename(from, to).map_err(failed("move away", from))?;
    #[cfg(test)]
    journal::note(Step::Rename(from.to_owned(), to.to_owned()));
    Ok(())
}

/// Gives two things on disk each other's names in one step, and makes that last.
pub(crate) fn exchange(a: &Path, b: &Path) -> Result<(), StoreError> {
    rustix::fs::renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)
        .map_err(|e| failed("exchange", b)(e.into()))?;
    #[cfg(test)]
    journal::note(Step::Exchange(a.to_owned(), b.to_owned()));
    sync_parent(a)?;
    sync_parent(b)
}

pub(crate) fn sync_parent(path: &Path) -> Result<(), StoreError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(failed("sync", parent))?;
    #[cfg(test)]
    journal::note(Step::SyncDir(parent.to_owned()));
    Ok(())
}

pub(crate) fn create_dir(path: &Path) -> Result<(), StoreError> {
    if path.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(path).map_err(failed("create", path))?;
    #[cfg(test)]
    journal::note(Step::MakeDir(path.to_owned()));
    // What is put into it must not be lost with it.
    sync_parent(path)
}

/// A directory below `tmp`, which need not last.
pub(crate) fn create_temporary_dir(path: &Path) -> Result<(), StoreError> {
    std::fs::create_dir_all(path).map_err(failed("create", path))
}

pub(crate) fn create_private_dir(path: &Path) -> Result<(), StoreError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed("create", path))
}

/// Opens or creates a lock file and locks it. The lock ends with the file.
pub(crate) fn lock(path: &Path, how: FlockOperation) -> Result<File, StoreError> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(failed("open", path))?;
    loop {
        match rustix::fs::flock(&file, how) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(failed("lock", path)(e.into())),
        }
    }
}

/// Locks a file below `locks`, whose idle files are removed by the collector.
pub(crate) fn lock_name(dir: &Path, name: &str, how: FlockOperation) -> Result<File, StoreError> {
    let path = dir.join("locks").join(name);
    loop {
        let file = lock(&path, how)?;
        // It may have been removed while we waited: then another file has the name.
        let same = match (rustix::fs::fstat(&file), rustix::fs::stat(&path)) {
            (Ok(held), Ok(named)) => (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino),
            _ => false,
        };
        if same {
            return Ok(file);
        }
    }
}

/// Opens a file for reading; none if it is not there.
pub(crate) fn open_if_there(path: &Path) -> Result<Option<File>, StoreError> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path);
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(failed("open", path)(e)),
    }
}

/// The names in a directory; none if it is not there, or is no directory.
pub(crate) fn names(path: &Path) -> Result<Vec<String>, StoreError> {
    let none = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if none.contains(&e.kind()) => return Ok(Vec::new()),
        Err(e) => return Err(failed("list", path)(e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed("list", path))?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Removes a file or a tree; what is not there is removed.
pub(crate) fn remove(path: &Path) -> Result<(), StoreError> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => match std::fs::remove_dir_all(path) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied && !is_root() => {
                let path = path.to_owned();
                return Err(StoreError::OthersFiles { path });
            }
            removed => removed,
        },
        Ok(_) => std::fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(failed("remove", path)(e)),
        Ok(()) => {
            #[cfg(test)]
            journal::note(Step::Remove(path.to_owned()));
            Ok(())
        }
    }
}

pub(crate) fn failed(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> StoreError + use<> {
    let path = path.to_owned();
    move |source| StoreError::Io {
        action,
        path,
        source,
    }
}
