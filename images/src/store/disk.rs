//! Paths of the store, and files that are whole or not there.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::digest::Digest;

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

/// A blob, checked against its digest.
pub(crate) fn read_blob(dir: &Path, digest: &Digest) -> Result<Vec<u8>, StoreError> {
    let path = blob_path(dir, digest);
    let content = std::fs::read(&path).map_err(failed("read", &path))?;
    if digest.matches(&content) {
        Ok(content)
    } else {
        Err(StoreError::Damaged {
            path,
            what: "its content does not have the digest of its name".to_owned(),
        })
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
        .and_then(|()| file.sync_all())
        .map_err(failed("write", temporary))?;
    rename(temporary, path)
}

/// Renames what is on disk already, and makes the renaming last.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    if let Some(parent) = to.parent() {
        create_dir(parent)?;
    }
    std::fs::rename(from, to).map_err(failed("rename to", to))?;
    sync_parent(to)
}

pub(crate) fn sync_parent(path: &Path) -> Result<(), StoreError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(failed("sync", parent))
}

pub(crate) fn create_dir(path: &Path) -> Result<(), StoreError> {
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

/// The names in a directory; none if it is not there.
pub(crate) fn names(path: &Path) -> Result<Vec<String>, StoreError> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
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

/// Removes a file or a tree; what is not there is removed.
pub(crate) fn remove(path: &Path) -> Result<(), StoreError> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(e)),
        _ => Ok(()),
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
