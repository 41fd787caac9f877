//! Checks what is there.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::collect::file_bytes;
use super::disk;
use super::record::{self, Record};
use super::{Held, ImageStore, StoreError};
use crate::digest::Digest;
use crate::reference::Reference;

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
    /// Checks that all that the records name is here, that blobs have their digests, and that the files of each layer
    /// have the size that was unpacked (which finds what a power cut left empty). A compressed layer that is not kept is
    /// no problem.
    pub fn verify(&self) -> Result<Vec<Problem>, StoreError> {
        let mut needed: BTreeMap<Held, Vec<Reference>> = BTreeMap::new();
        for record in record::read_all(self.dir())? {
            for held in self.expected(&record) {
                let images = needed.entry(held).or_default();
                images.push(record.reference.clone());
            }
        }
        let mut problems = Vec::new();
        for (held, images) in needed {
            let (path, found) = match &held {
                Held::Blob(digest) => (
                    disk::blob_path(self.dir(), digest),
                    disk::check_blob(self.dir(), digest, &mut |_| ()).map(drop),
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

    /// What an image should have here: all of it, and those of its compressed layers that were kept.
    fn expected(&self, record: &Record) -> Vec<Held> {
        let kept = record.layers.iter().filter_map(|layer| {
            let digest = &layer.blob.as_ref()?.digest;
            let is_here = disk::blob_path(self.dir(), digest).exists();
            is_here.then(|| Held::Blob(digest.clone()))
        });
        record.held(false).into_iter().chain(kept).collect()
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
}
