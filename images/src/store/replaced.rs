//! Layers that were damaged and are replaced, and that running containers may still have below them.
//!
//! An overlay mount holds on to the directories it was given, whatever names they have later. So a damaged layer is
//! exchanged for the whole one in a single step, and kept aside: containers that run go on with what they have, the
//! next mount has the whole one. It is removed when no layer in use has its diff ID, at the latest after a reboot.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::collect::file_bytes;
use super::disk;
use super::{ImageStore, StoreError};
use crate::digest::Digest;

impl ImageStore {
    /// The sizes of the files of all damaged layers that were replaced and are still here.
    pub(crate) fn replaced_sizes(&self) -> Result<Vec<u64>, StoreError> {
        let replaced = self.dir().join("replaced");
        let names = disk::names(&replaced)?.into_iter();
        let size = |name: String| file_bytes(&replaced.join(name).join("fs"));
        names.map(size).collect()
    }
}

/// A name for a layer that is to be replaced.
pub(super) fn path(dir: &Path, diff_id: &Digest) -> Result<PathBuf, StoreError> {
    let replaced = dir.join("replaced");
    disk::create_dir(&replaced)?;
    let taken: HashSet<String> = disk::names(&replaced)?.into_iter().collect();
    let prefix = prefix(diff_id);
    // The layer's lock is held: nobody else looks for a name of this layer.
    let free = (0_u64..)
        .map(|number| format!("{prefix}{number}"))
        .find(|name| !taken.contains(name))
        .unwrap_or_default();
    Ok(replaced.join(free))
}

/// Those of layers that no container uses.
pub(super) fn unused(
    dir: &Path,
    is_used: impl Fn(&Digest) -> Result<bool, StoreError>,
) -> Result<Vec<PathBuf>, StoreError> {
    let replaced = dir.join("replaced");
    let mut unused = Vec::new();
    for name in disk::names(&replaced)? {
        let used = match diff_id(&name) {
            Some(diff_id) => is_used(&diff_id)?,
            None => false,
        };
        if !used {
            unused.push(replaced.join(name));
        }
    }
    Ok(unused)
}

fn prefix(diff_id: &Digest) -> String {
    format!("{}-{}.", diff_id.algorithm().name(), diff_id.hex())
}

fn diff_id(name: &str) -> Option<Digest> {
    let (digest, _) = name.rsplit_once('.')?;
    digest.replacen('-', ":", 1).parse().ok()
}
