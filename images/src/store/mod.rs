//! The image store: content by digest, on disk, shared by processes.
//!
//! # Layout
//! ```text
//! <dir>/                                mode 0700: layers hold set-user-ID files of strangers
//!   lock                                flock: see below
//!   references/<sha256 of name>.json    a record: the name, and digests of manifest, configuration and layers
//!   blobs/<algorithm>/<hex>             manifests, indexes and configurations, as they came
//!   layers/<algorithm>/<hex>/           an unpacked layer, by diff ID
//!     fs/                               what overlayfs stacks
//!     layer.json                        its size
//!   locks/<hex>                         flock: one process at a time unpacks this layer
//!   tmp/<session>/                      what is not finished; `lease` lists what the session relies on
//! ```
//! Compressed layers are not kept: they are verified, unpacked and dropped.
//!
//! # Commit order
//! Everything is made below `tmp` and renamed in place when it is whole and on disk:
//! 1. a blob: write, hash, fsync, rename, fsync of the directory;
//! 2. a layer: unpack, compare the digests, syncfs, rename, fsync of the directory;
//! 3. the record, last: write, fsync, rename, fsync of the directory.
//!
//! So whatever has its final name is whole, and a record names only what is here. A crash at any point leaves at most
//! a dead session in `tmp` (removed by the next [`ImageStore::open`]) and blobs and layers that no record names
//! (removed by [`ImageStore::gc`]).
//!
//! # Locks
//! - `tmp/<session>/lease` is locked by the session as long as it lives. A session first writes what it relies on into
//!   its lease, then looks what is there: what a living lease names is never collected.
//! - `lock` is held shared while a session begins, writes its lease or commits its record, and exclusive while dead
//!   sessions are removed and while `gc` decides. It is never held over a download or an unpacking.
//! - `locks/<hex>` is held while a layer is made, so that a second pull of the same layer waits and finds it done.
//!   A session holds one of these at a time and takes no other lock under it, except `lock` for a moment.
//!
//! Readers take no lock: records are replaced atomically. What a reader resolved stays until `gc` is called without it
//! in the set of layers in use; who starts containers must keep that set.

mod collect;
mod disk;
mod record;
mod session;
mod trust;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::{Digest, DigestError};
use crate::image::Image;
use crate::reference::Reference;

pub use collect::{Collected, Problem};
pub(crate) use record::Record;
pub(crate) use session::{Held, Session};
pub use trust::JudgeError;

/// The images of one node. Methods block, except [`pull`](Self::pull); use `spawn_blocking` for long ones.
#[derive(Debug, Clone)]
pub struct ImageStore {
    dir: Arc<PathBuf>,
}

/// What [`ImageStore::remove`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The names that are gone.
    pub references: Vec<Reference>,
    /// The image that has no name any more; [`ImageStore::gc`] frees its space.
    pub unreferenced: Option<Digest>,
}

/// A failure of the store itself.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was attempted, such as `open`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A file of the store is not what it should be.
    #[error("{path} is damaged: {what}; remove the file and pull or load the image again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// A digest in a file of the store is none.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

impl ImageStore {
    /// Opens or creates the store in `dir`, and removes what dead processes left unfinished.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let dir = std::path::absolute(dir).map_err(disk::failed("find", dir))?;
        disk::create_private_dir(&dir)?;
        for child in ["references", "blobs", "layers", "locks", "tmp"] {
            disk::create_dir(&dir.join(child))?;
        }
        let store = Self { dir: Arc::new(dir) };
        store.remove_dead_sessions()?;
        Ok(store)
    }

    /// The directory of the store.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The image of this name, if it is here. With a digest, the image is found under any name of its repository.
    pub fn resolve(&self, reference: &Reference) -> Result<Option<Image>, StoreError> {
        let Some(record) = self.find_record(reference)? else {
            return Ok(None);
        };
        let records = record::read_all(&self.dir)?;
        Ok(self.image(&record, &records))
    }

    /// All images, sorted by their first name.
    pub fn list(&self) -> Result<Vec<Image>, StoreError> {
        let records = record::read_all(&self.dir)?;
        let mut by_manifest = BTreeMap::new();
        for record in &records {
            by_manifest.entry(&record.manifest).or_insert(record);
        }
        let mut images: Vec<_> = by_manifest
            .into_values()
            .filter_map(|record| self.image(record, &records))
            .collect();
        images.sort_by(|a, b| a.references.cmp(&b.references));
        Ok(images)
    }

    /// Removes a name; a name that is not there is no error. A digest removes all names of that image in the
    /// repository.
    pub fn remove(&self, reference: &Reference) -> Result<Removed, StoreError> {
        let _lock = self.lock_shared()?;
        let records = record::read_all(&self.dir)?;
        let (gone, kept): (Vec<_>, Vec<_>) = records
            .into_iter()
            .partition(|record| record.answers(reference));
        for record in &gone {
            record::remove(&self.dir, &record.reference)?;
        }
        let unreferenced = gone
            .first()
            .map(|record| record.manifest.clone())
            .filter(|manifest| kept.iter().all(|record| record.manifest != *manifest));
        Ok(Removed {
            references: gone.into_iter().map(|record| record.reference).collect(),
            unreferenced,
        })
    }

    /// Gives an image another name, as `docker tag` does.
    pub fn tag(&self, image: &Reference, name: &Reference) -> Result<Option<Image>, StoreError> {
        let session = Session::begin(self)?;
        let Some(record) = self.find_record(image)? else {
            return Ok(None);
        };
        session.hold(&record.held())?;
        // It may have been removed and collected before it was held.
        if self.find_record(image)?.as_ref() != Some(&record) {
            return Ok(None);
        }
        session.commit(&record.renamed(name))?;
        self.resolve(name)
    }

    fn find_record(&self, reference: &Reference) -> Result<Option<Record>, StoreError> {
        if let Some(record) = record::read(&self.dir, reference)? {
            return Ok(Some(record));
        }
        if reference.digest().is_none() {
            return Ok(None);
        }
        let records = record::read_all(&self.dir)?;
        Ok(records.into_iter().find(|record| record.answers(reference)))
    }

    /// The image of a record; none, with a warning, if part of it is gone or damaged: then it must be fetched again.
    fn image(&self, record: &Record, records: &[Record]) -> Option<Image> {
        match self.read_image(record, records) {
            Ok(image) => Some(image),
            Err(error) => {
                let reference = &record.reference;
                tracing::warn!(%reference, %error, "an image of the store is incomplete");
                None
            }
        }
    }

    fn read_image(&self, record: &Record, records: &[Record]) -> Result<Image, StoreError> {
        let config = disk::read_blob(&self.dir, &record.config)?;
        let path = disk::blob_path(&self.dir, &record.config);
        let config: oci_spec::image::ImageConfiguration =
            serde_json::from_slice(&config).map_err(|e| StoreError::Damaged {
                path,
                what: e.to_string(),
            })?;
        let mut layers = Vec::new();
        let mut size_bytes = 0;
        for (i, diff_id) in record.layers.iter().enumerate() {
            // Overlayfs refuses a directory that is given twice. Of the same layer twice only the upper one shows.
            if record.layers[i + 1..].contains(diff_id) {
                continue;
            }
            let layer = disk::read_layer(&self.dir, diff_id)?;
            size_bytes += layer.file_bytes;
            if layer.root_is_opaque {
                layers.clear();
            }
            layers.push(disk::layer_path(&self.dir, diff_id).join("fs"));
        }
        let references = records
            .iter()
            .filter(|other| other.manifest == record.manifest)
            .map(|other| other.reference.clone())
            .collect();
        Ok(Image {
            references,
            digest: record.manifest.clone(),
            config_digest: record.config.clone(),
            created: config.created().as_ref().and_then(|text| text.parse().ok()),
            config,
            layers,
            size_bytes,
            trust: record.trust.clone(),
        })
    }
}

#[cfg(test)]
mod tests;
