//! Records: which image a name means, and what it consists of.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::disk::{self, failed};
use super::{Held, StoreError};
use crate::digest::Digest;
use crate::image::LayerBlob;
use crate::manifest::{self, Document, Manifest};
use crate::reference::Reference;
use crate::trust::Trust;

/// The version of the format that is written.
const RECORD_VERSION: u32 = 2;
/// Records of this version have only the layers' diff IDs; they are read, and written again when they change.
const RECORD_VERSION_DIFF_IDS: u32 = 1;

/// A name and its image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    /// The version of the format.
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
    /// The lowest first.
    pub(crate) layers: Vec<RecordLayer>,
    /// Where it came from, and its signatures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trust: Option<Trust>,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct RecordLayer {
    /// The digest of the decompressed layer, which names its directory.
    pub(crate) diff_id: Digest,
    /// The layer as the manifest describes it, whether it is kept or not. Unknown only in old records whose manifest is
    /// damaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) blob: Option<LayerBlob>,
}

/// A record of version 1.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OldRecord {
    #[serde(rename = "version")]
    _version: u32,
    reference: Reference,
    manifest: Digest,
    #[serde(default)]
    index: Option<Digest>,
    config: Digest,
    layers: Vec<Digest>,
    #[serde(default)]
    trust: Option<Trust>,
}

impl OldRecord {
    fn upgrade(self, dir: &Path) -> Record {
        let manifest = disk::read_blob(dir, &self.manifest)
            .ok()
            .and_then(|json| match manifest::parse_document(&json) {
                Ok(Document::Manifest(manifest)) => Some(*manifest),
                _ => None,
            })
            .filter(|manifest| manifest.layers.len() == self.layers.len());
        let layers = match manifest {
            Some(manifest) => layers(&manifest, self.layers),
            None => self.layers.into_iter().map(RecordLayer::unknown).collect(),
        };
        Record {
            version: RECORD_VERSION,
            reference: self.reference,
            manifest: self.manifest,
            index: self.index,
            config: self.config,
            layers,
            trust: self.trust,
        }
    }
}

impl RecordLayer {
    fn unknown(diff_id: Digest) -> Self {
        Self {
            diff_id,
            blob: None,
        }
    }
}

/// Pairs the layers of a manifest with the diff IDs of its configuration.
fn layers(manifest: &Manifest, diff_ids: Vec<Digest>) -> Vec<RecordLayer> {
    let pairs = manifest.layers.iter().zip(diff_ids);
    let layer = |(layer, diff_id): (&manifest::Descriptor, Digest)| RecordLayer {
        diff_id,
        blob: Some(LayerBlob {
            digest: layer.digest.clone(),
            media_type: layer.media_type.clone(),
            size_bytes: layer.size,
        }),
    };
    pairs.map(layer).collect()
}

impl Record {
    /// The image `reference`: a manifest with its digest and that of the index it was chosen from, and the diff IDs of
    /// its configuration, as many as the manifest has layers.
    pub(crate) fn new(
        reference: &Reference,
        (digest, manifest): (Digest, &Manifest),
        index: Option<Digest>,
        diff_ids: Vec<Digest>,
    ) -> Self {
        Self {
            version: RECORD_VERSION,
            reference: reference.canonical(),
            manifest: digest,
            index,
            config: manifest.config.digest.clone(),
            layers: layers(manifest, diff_ids),
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

    /// All that the image consists of; the compressed layers only if they are kept.
    pub(crate) fn held(&self, keep_blobs: bool) -> Vec<Held> {
        let kept = self
            .layers
            .iter()
            .filter(|_| keep_blobs)
            .filter_map(|layer| layer.blob.as_ref())
            .map(|blob| Held::Blob(blob.digest.clone()));
        let layers = self.layers.iter();
        let layers = layers.map(|layer| Held::Layer(layer.diff_id.clone()));
        let documents = self.documents().cloned().map(Held::Blob);
        documents.chain(layers).chain(kept).collect()
    }

    /// Manifest, index and configuration, and the signatures.
    pub(crate) fn documents(&self) -> impl Iterator<Item = &Digest> {
        let documents = [
            Some(&self.manifest),
            self.index.as_ref(),
            Some(&self.config),
        ];
        let signatures = self.trust.iter().flat_map(|trust| &trust.signatures);
        let signatures = signatures.flat_map(|s| std::iter::once(&s.manifest).chain(&s.blobs));
        documents.into_iter().flatten().chain(signatures)
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
    read_file(dir, &Record::path(dir, reference))
}

/// All records, sorted by name.
pub(super) fn read_all(dir: &Path) -> Result<Vec<Record>, StoreError> {
    let references = dir.join("references");
    let mut records = Vec::new();
    for name in disk::names(&references)? {
        // One that was removed since is gone, not damaged.
        records.extend(read_file(dir, &references.join(name))?);
    }
    records.sort_by(|a, b| a.reference.cmp(&b.reference));
    Ok(records)
}

pub(super) fn remove(dir: &Path, reference: &Reference) -> Result<(), StoreError> {
    let path = Record::path(dir, reference);
    disk::remove(&path)?;
    disk::sync_parent(&path)
}

fn read_file(dir: &Path, path: &Path) -> Result<Option<Record>, StoreError> {
    let json: serde_json::Value = match disk::read_json(path) {
        Ok(json) => json,
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(e) => return Err(e),
    };
    let damaged = |what: String| StoreError::Damaged {
        path: path.to_owned(),
        what,
    };
    let malformed = |e: serde_json::Error| damaged(e.to_string());
    let version = json.get("version").and_then(serde_json::Value::as_u64);
    if version == Some(u64::from(RECORD_VERSION_DIFF_IDS)) {
        let old: OldRecord = serde_json::from_value(json).map_err(malformed)?;
        return Ok(Some(old.upgrade(dir)));
    }
    if version.is_some_and(|version| version != u64::from(RECORD_VERSION)) {
        return Err(damaged(format!(
            "version {} is not supported",
            version.unwrap_or_default()
        )));
    }
    serde_json::from_value(json).map_err(malformed).map(Some)
}
