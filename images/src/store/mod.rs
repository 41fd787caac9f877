//! The image store: content by digest, on disk, shared by processes.
//!
//! # Layout
//! ```text
//! <dir>/                                mode 0700: layers hold set-user-ID files of strangers
//!   oci-layout, index.json              an OCI image layout: see layout.rs
//!   blobs/<algorithm>/<hex>             manifests, indexes, configurations and compressed layers, as they came
//!   references/<sha256 of name>.json    a record: the name, and digests of manifest, configuration and layers
//!   layers/<algorithm>/<hex>/           an unpacked layer, by diff ID
//!     fs/                               what overlayfs stacks
//!     layer.json                        its size
//!     files.zst                         its files with their attributes and hashes, to verify them
//!     implied                           directories without an entry, until an image names the layer: see inherit.rs
//!   replaced/<algorithm>-<hex>.<n>/     a damaged layer that a running container may still have below it
//!   dropped/<algorithm>-<hex>           a note: this compressed layer was damaged and is to come back: see dropped.rs
//!   ingest/<algorithm>-<hex>            a blob that has not arrived wholly: see ingest.rs
//!   locks/<name>                        flock: one process at a time unpacks this layer or receives this blob
//!   lock                                flock: see below
//!   tmp/<session>/                      what is not finished; `lease` lists what the session relies on
//! ```
//! The records are the truth; `index.json` is derived from them. A record that cannot be read costs its image only: it is
//! left out by all who read, [`ImageStore::verify`] reports it, and [`ImageStore::heal`] makes it again from `index.json`
//! and the blobs, or moves it out of the way. Until then [`ImageStore::gc`] frees nothing, since it may name any layer,
//! and `index.json` goes on saying of it what it said. Files in `references` without a record's name are passed over.
//!
//! Compressed layers may be dropped once they are unpacked ([`ImageStore::with_kept_blobs`]): then their digests stay
//! in the record, and whoever needs such a layer again (to heal, save or push) needs its registry. Stores of before,
//! which kept none and whose records have only diff IDs, go on working.
//!
//! # Commit order
//! Everything is made under another name and renamed in place when it is whole and on disk:
//! 1. a small blob: write, fsync, rename, fsync of the directory;
//! 2. a layer: receive its blob (in `ingest`) and unpack it (in `tmp`), compare both digests, one syncfs for the two;
//!    then rename the blob, fsync of the directory, rename the layer, fsync of the directory;
//! 3. the record, last: write, fsync, rename, fsync of the directory;
//! 4. `index.json`, in the same way.
//!
//! So whatever has its final name is whole, and a record names only what is here. A crash at any point leaves at most
//! a dead session in `tmp` and an `index.json` of before (both mended by the next [`ImageStore::open`]), blobs and layers
//! that no record names (removed by [`ImageStore::gc`]), and a partial blob in `ingest`, which the next pull goes on with.
//! The tests replay every prefix of these steps, with all that a power cut may lose.
//!
//! A layer that is found damaged (verify.rs) is unpacked again (heal.rs) and exchanged for a whole one in one step (renameat2(2), `RENAME_EXCHANGE`): see
//! replaced.rs. When the disk is full, the partial blob is removed with all else that the pull wrote.
//!
//! # Locks
//! - `tmp/<session>/lease` is locked by the session as long as it lives. A session first writes what it relies on into
//!   its lease, then looks what is there: what a living lease names is never collected.
//! - `lock` is held shared while a session begins or writes its lease, and exclusive while records and `index.json`
//!   change, while dead sessions are removed and while `gc` decides. It is never held over a download or an unpacking.
//! - `locks/<diff ID>` is held while a layer is made, so that a second pull of the same layer waits and finds it done;
//!   `locks/blob-<digest>` while a blob is received. They are taken in this order, one of each for a layer, and no other
//!   lock is taken under them, except `lock` for a moment.
//!
//! Readers take no lock, and make nothing ([`ImageStore::open_to_read`]): records are replaced atomically. What a reader resolved stays until `gc` is called without it
//! in the set of layers in use; who starts containers must keep that set, and hold the image ([`ImageStore::hold`]) until
//! its layers are in it.

mod collect;
pub(crate) mod disk;
mod dropped;
mod heal;
mod hold;
mod ingest;
mod inherit;
#[cfg(test)]
mod journal;
mod layout;
mod record;
mod replaced;
mod session;
mod trust;
mod verify;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::digest::{Digest, DigestError};
use crate::image::{Image, ImageLayer};
use crate::reference::Reference;

pub use collect::Collected;
pub use heal::{Fetch, FetchError, Healed, Lost};
pub use hold::ImageHold;
pub(crate) use ingest::Ingest;
pub(crate) use layout::{IMAGE_NAME, REF_NAME};
pub(crate) use record::Record;
pub(crate) use session::{Held, Session};
pub use trust::JudgeError;
pub use verify::{Part, Problem};

/// The images of one node. Methods block, except [`pull`](Self::pull); use `spawn_blocking` for long ones.
#[derive(Debug, Clone)]
pub struct ImageStore {
    dir: Arc<PathBuf>,
    keep_blobs: bool,
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
    /// A record is damaged: which layers it names is not known.
    #[error(
        "nothing is freed while {path} cannot be read ({what}): `podling images verify` mends it"
    )]
    UnreadableRecord {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// Files that another user's namespace has unpacked cannot be removed.
    #[error(
        "cannot remove {path}: files of other users are in it; do it in the user namespace that unpacked them: \
         `unshare --map-root-user --map-auto podling images …`"
    )]
    OthersFiles {
        /// Where they are.
        path: PathBuf,
    },
    /// A digest in a file of the store is none.
    #[error(transparent)]
    Digest(#[from] DigestError),
}

/// What is told of an image, or a file of images, for which there is no space, however it should have come.
pub(crate) fn no_space(dir: &Path, wanted: &dyn std::fmt::Display) -> String {
    format!(
        "there is not enough space in {} for {wanted}; nothing that came was kept: remove images or other files, and try again",
        dir.display()
    )
}

/// True for the error of a file system, or of somebody's share of it, that is full.
pub(crate) fn is_full(error: &std::io::Error) -> bool {
    let full = [
        std::io::ErrorKind::StorageFull,
        std::io::ErrorKind::QuotaExceeded,
    ];
    full.contains(&error.kind())
}

impl StoreError {
    /// True when the file system has no space left.
    pub fn is_out_of_space(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_full(source))
    }

    /// True when the disk cannot be written to at all.
    pub fn is_read_only(&self) -> bool {
        let read_only = std::io::ErrorKind::ReadOnlyFilesystem;
        matches!(self, Self::Io { source, .. } if source.kind() == read_only)
    }
}

impl ImageStore {
    /// Opens or creates the store in `dir`, and mends what dead processes left unfinished.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let dir = std::path::absolute(dir).map_err(disk::failed("find", dir))?;
        disk::create_private_dir(&dir)?;
        for child in [
            "references",
            "blobs/sha256",
            "layers/sha256",
            "replaced",
            "ingest",
            "locks",
            "tmp",
        ] {
            disk::create_dir(&dir.join(child))?;
        }
        let store = Self {
            dir: Arc::new(dir),
            keep_blobs: true,
        };
        store.repair()?;
        Ok(store)
    }

    /// Opens the store in `dir` to look at it: nothing is made or mended, so that it may be on a disk that cannot be written
    /// to, and what is not there is an empty store. What would write to it fails then.
    ///
    /// # Errors
    /// When there is something else, or it cannot be looked at.
    pub fn open_to_read(dir: &Path) -> Result<Self, StoreError> {
        let dir = std::path::absolute(dir).map_err(disk::failed("find", dir))?;
        match std::fs::read_dir(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(disk::failed("list", &dir)(e));
            }
            _ => {}
        }
        Ok(Self {
            dir: Arc::new(dir),
            keep_blobs: true,
        })
    }

    /// Keeps compressed layers after they are unpacked, or not; they are kept if nothing is said. Without them the
    /// store takes about a third less of the disk, and needs the registry to heal, save or push. [`gc`](Self::gc)
    /// removes those that were kept before.
    #[must_use]
    pub fn with_kept_blobs(mut self, keep: bool) -> Self {
        self.keep_blobs = keep;
        self
    }

    /// Whether compressed layers are kept.
    pub fn keeps_blobs(&self) -> bool {
        self.keep_blobs
    }

    /// Opens a blob as it came, for reading: manifest, index, configuration or, if it is kept, a compressed layer. None
    /// if it is not here. Its content is not compared with its digest.
    pub fn open_blob(&self, digest: &Digest) -> Result<Option<File>, StoreError> {
        disk::open_if_there(&disk::blob_path(&self.dir, digest))
    }

    /// Reads a manifest, index or configuration, and compares its digest.
    pub fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, StoreError> {
        disk::read_blob(&self.dir, digest)
    }

    /// The directory of the store.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn remove_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        disk::remove(&disk::blob_path(&self.dir, digest))
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
    /// repository. A record that cannot be read goes by its name.
    pub fn remove(&self, reference: &Reference) -> Result<Removed, StoreError> {
        let _lock = self.lock_exclusive()?;
        let records = record::read_all(&self.dir)?;
        let (gone, kept): (Vec<_>, Vec<_>) = records
            .into_iter()
            .partition(|record| record.answers(reference));
        for record in &gone {
            record::remove(&self.dir, &record.reference)?;
        }
        let name = record::name_digest(reference);
        let unreadable = match reference.digest() {
            None => record::unreadable(&self.dir, &name)?,
            Some(_) => None,
        };
        if unreadable.is_some() {
            record::remove(&self.dir, reference)?;
        }
        layout::update(&self.dir)?;
        let unreferenced = gone
            .first()
            .map(|record| record.manifest.clone())
            .filter(|manifest| kept.iter().all(|record| record.manifest != *manifest));
        Ok(Removed {
            references: gone
                .into_iter()
                .map(|record| record.reference)
                .chain(unreadable.map(|_| reference.canonical()))
                .collect(),
            unreferenced,
        })
    }

    /// Gives an image another name, as `docker tag` does.
    pub fn tag(&self, image: &Reference, name: &Reference) -> Result<Option<Image>, StoreError> {
        let session = Session::begin(self)?;
        let Some(record) = self.find_record(image)? else {
            return Ok(None);
        };
        session.hold(&record.held(true))?;
        // It may have been removed and collected before it was held.
        if self.find_record(image)?.as_ref() != Some(&record) {
            return Ok(None);
        }
        session.commit(&[record.renamed(name)])?;
        self.resolve(name)
    }

    /// All names with what they need.
    pub(crate) fn records(&self) -> Result<Vec<Record>, StoreError> {
        record::read_all(&self.dir)
    }

    /// False when some record cannot be read, and what it needs is not known.
    pub(crate) fn records_are_whole(&self) -> Result<bool, StoreError> {
        Ok(record::scan(&self.dir)?.unreadable.is_empty())
    }

    pub(crate) fn find_record(&self, reference: &Reference) -> Result<Option<Record>, StoreError> {
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
        let mut parts = Vec::new();
        let mut size_bytes = 0;
        for (i, part) in record.layers.iter().enumerate() {
            let layer = disk::read_layer(&self.dir, &part.diff_id)?;
            let directory = disk::layer_path(&self.dir, &part.diff_id).join("fs");
            parts.push(ImageLayer {
                diff_id: part.diff_id.clone(),
                blob: part.blob.clone(),
                directory: directory.clone(),
                file_bytes: layer.file_bytes,
            });
            // Overlayfs refuses a directory that is given twice. Of the same layer twice only the upper one shows.
            let is_again = |above: &record::RecordLayer| above.diff_id == part.diff_id;
            if record.layers[i + 1..].iter().any(is_again) {
                continue;
            }
            size_bytes += layer.file_bytes;
            if layer.root_is_opaque {
                layers.clear();
            }
            layers.push(directory);
        }
        let references = records
            .iter()
            .filter(|other| other.manifest == record.manifest)
            .map(|other| other.reference.clone())
            .collect();
        Ok(Image {
            references,
            digest: record.manifest.clone(),
            index: record.index.clone(),
            config_digest: record.config.clone(),
            created: config.created().as_ref().and_then(|text| text.parse().ok()),
            config,
            layers,
            parts,
            size_bytes,
            trust: record.trust.clone(),
        })
    }
}

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod heal_tests;
#[cfg(test)]
mod load_tests;
#[cfg(test)]
mod replay;
#[cfg(test)]
mod tests;
