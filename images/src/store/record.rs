//! Records: which image a name means.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::disk::{self, failed};
use super::{Held, StoreError};
use crate::digest::Digest;
use crate::reference::Reference;
use crate::trust::Trust;

/// The version of the format; another one is refused.
const RECORD_VERSION: u32 = 1;

/// A name and its image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// [`RECORD_VERSION`].
    version: u32,
    /// The name, in its canonical form.
    pub(crate) reference: Reference,
    /// The manifest of this platform.
    pub(crate) manifest: Digest,
    /// The index it was chosen from, which `name@digest` may also mean.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) index: Option<Digest>,
    /// The configuration.
    pub(crate) config: Digest,
    /// Diff IDs, the lowest layer first.
    pub(crate) layers: Vec<Digest>,
    /// Where it came from, and its signatures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trust: Option<Trust>,
}

impl Record {
    pub(crate) fn new(
        reference: &Reference,
        manifest: Digest,
        index: Option<Digest>,
        config: Digest,
        layers: Vec<Digest>,
    ) -> Self {
        Self {
            version: RECORD_VERSION,
            reference: reference.canonical(),
            manifest,
            index,
            config,
            layers,
            trust: None,
        }
    }

    /// The same, with what is known of where it came from.
    pub(crate) fn trusted(self, trust: Trust) -> Self {
        Self {
            trust: Some(trust),
            ..self
        }
    }

    /// The same image under another name.
    pub(crate) fn renamed(&self, name: &Reference) -> Self {
        Self {
            reference: name.canonical(),
            ..self.clone()
        }
    }

    /// All that the image consists of.
    pub(crate) fn held(&self) -> Vec<Held> {
        let blobs = [
            Some(&self.manifest),
            self.index.as_ref(),
            Some(&self.config),
        ];
        let signatures = self.trust.iter().flat_map(|trust| &trust.signatures);
        let signatures = signatures.flat_map(|s| std::iter::once(&s.manifest).chain(&s.blobs));
        let blobs = blobs.into_iter().flatten().chain(signatures);
        let blobs = blobs.cloned().map(Held::Blob);
        let layers = self.layers.iter().cloned().map(Held::Layer);
        blobs.chain(layers).collect()
    }

    /// True when `reference` means this image.
    pub(crate) fn answers(&self, reference: &Reference) -> bool {
        match reference.digest() {
            None => self.reference == *reference,
            Some(digest) => {
                self.reference.registry() == reference.registry()
                    && self.reference.repository() == reference.repository()
                    && (self.manifest == *digest || self.index.as_ref() == Some(digest))
            }
        }
    }

    pub(super) fn path(dir: &Path, reference: &Reference) -> PathBuf {
        let name = Digest::sha256(reference.canonical().to_string().as_bytes());
        dir.join("references").join(format!("{}.json", name.hex()))
    }

    pub(super) fn write(&self, dir: &Path, temporary: &Path) -> Result<(), StoreError> {
        let path = Self::path(dir, &self.reference);
        let content =
            serde_json::to_vec_pretty(self).map_err(|e| failed("write", &path)(e.into()))?;
        disk::write_atomically(&path, temporary, &content)
    }
}

pub(super) fn read(dir: &Path, reference: &Reference) -> Result<Option<Record>, StoreError> {
    read_file(&Record::path(dir, reference))
}

/// All records, sorted by name.
pub(super) fn read_all(dir: &Path) -> Result<Vec<Record>, StoreError> {
    let dir = dir.join("references");
    let mut records = Vec::new();
    for name in disk::names(&dir)? {
        // One that was removed since is gone, not damaged.
        records.extend(read_file(&dir.join(name))?);
    }
    records.sort_by(|a, b| a.reference.cmp(&b.reference));
    Ok(records)
}

pub(super) fn remove(dir: &Path, reference: &Reference) -> Result<(), StoreError> {
    let path = Record::path(dir, reference);
    disk::remove(&path)?;
    disk::sync_parent(&path)
}

fn read_file(path: &Path) -> Result<Option<Record>, StoreError> {
    let record: Record = match disk::read_json(path) {
        Ok(record) => record,
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    if record.version != RECORD_VERSION {
        return Err(StoreError::Damaged {
            path: path.to_owned(),
            what: format!("version {} is not supported", record.version),
        });
    }
    Ok(Some(record))
}
