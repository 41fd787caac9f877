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

/// The record that an image had, made from its manifest and configuration; none if these are not here whole. Where the
/// image came from, its signatures and its index are not known any more.
pub(super) fn rebuild(dir: &Path, reference: &Reference, manifest: &Digest) -> Option<Record> {
    let Ok(Document::Manifest(parsed)) =
        manifest::parse_document(&disk::read_blob(dir, manifest).ok()?)
    else {
        return None;
    };
    let config = disk::read_blob(dir, &parsed.config.digest).ok()?;
    let config: serde_json::Value = serde_json::from_slice(&config).ok()?;
    let diff_ids = config.pointer("/rootfs/diff_ids")?.as_array()?;
    let diff_ids = diff_ids.iter().map(|id| id.as_str()?.parse().ok());
    let diff_ids: Vec<Digest> = diff_ids.collect::<Option<_>>()?;
    let is_here = |(layer, diff_id): (&manifest::Descriptor, &Digest)| {
        disk::read_layer(dir, diff_id).is_ok() || disk::blob_path(dir, &layer.digest).exists()
    };
    let is_whole =
        parsed.layers.len() == diff_ids.len() && parsed.layers.iter().zip(&diff_ids).all(is_here);
    is_whole.then(|| Record::new(reference, (manifest.clone(), &parsed), None, diff_ids))
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
        path_of(dir, &name_digest(reference))
    }

    pub(super) fn write(&self, dir: &Path, temporary: &Path) -> Result<(), StoreError> {
        let path = Self::path(dir, &self.reference);
        let content =
            serde_json::to_vec_pretty(self).map_err(|e| failed("write", &path)(e.into()))?;
        disk::write_atomically(&path, temporary, &content)
    }
}

/// A record that is damaged, or of a version that is not known here. Which image it names cannot be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unreadable {
    /// The digest of the image's name, which names the file.
    pub(super) name: Digest,
    /// What is wrong with it.
    pub(super) what: String,
    /// It was written by a later version, and is whole for that.
    pub(super) is_newer: bool,
}

impl Unreadable {
    pub(super) fn path(&self, dir: &Path) -> PathBuf {
        path_of(dir, &self.name)
    }
}

/// What the store has of names.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// Sorted by name.
    pub(super) whole: Vec<Record>,
    pub(super) unreadable: Vec<Unreadable>,
}

/// The record of a name; none, too, if it cannot be read.
pub(super) fn read(dir: &Path, reference: &Reference) -> Result<Option<Record>, StoreError> {
    let name = name_digest(reference);
    Ok(read_file(dir, &name)?.and_then(Result::ok))
}

/// All records that can be read, sorted by name.
pub(super) fn read_all(dir: &Path) -> Result<Vec<Record>, StoreError> {
    Ok(scan(dir)?.whole)
}

/// All records. What has no record's name is passed over: it is not of the store.
pub(super) fn scan(dir: &Path) -> Result<Records, StoreError> {
    let mut records = Records::default();
    for file in disk::names(&dir.join("references"))? {
        let hex = file.strip_suffix(".json");
        let Some(name) = hex.and_then(|hex| format!("sha256:{hex}").parse().ok()) else {
            continue;
        };
        match read_file(dir, &name)? {
            Some(Ok(record)) => records.whole.push(record),
            Some(Err(unreadable)) => records.unreadable.push(unreadable),
            // One that was removed since is gone, not damaged.
            None => {}
        }
    }
    records.whole.sort_by(|a, b| a.reference.cmp(&b.reference));
    Ok(records)
}

/// The record that cannot be read, if it is one.
pub(super) fn unreadable(dir: &Path, name: &Digest) -> Result<Option<Unreadable>, StoreError> {
    Ok(read_file(dir, name)?.and_then(Result::err))
}

/// What the name of a record is made of.
pub(super) fn name_digest(reference: &Reference) -> Digest {
    Digest::sha256(reference.canonical().to_string().as_bytes())
}

pub(super) fn path_of(dir: &Path, name: &Digest) -> PathBuf {
    dir.join("references").join(format!("{}.json", name.hex()))
}

pub(super) fn remove(dir: &Path, reference: &Reference) -> Result<(), StoreError> {
    let path = Record::path(dir, reference);
    disk::remove(&path)?;
    disk::sync_parent(&path)
}

/// None if it is not there.
fn read_file(dir: &Path, name: &Digest) -> Result<Option<Result<Record, Unreadable>>, StoreError> {
    let path = path_of(dir, name);
    let unreadable = |what: String, is_newer| {
        Ok(Some(Err(Unreadable {
            name: name.clone(),
            what,
            is_newer,
        })))
    };
    let json: serde_json::Value = match disk::read_json(&path) {
        Ok(json) => json,
        Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(StoreError::Damaged { what, .. }) => return unreadable(what, false),
        // No file at all, or a bad block of the disk.
        Err(StoreError::Io { source, .. }) if is_lasting(&source) => {
            return unreadable(source.to_string(), false);
        }
        Err(e) => return Err(e),
    };
    let version = json.get("version").and_then(serde_json::Value::as_u64);
    let old = u64::from(RECORD_VERSION_DIFF_IDS);
    let parsed = match version {
        Some(version) if version == old => {
            serde_json::from_value(json).map(|old: OldRecord| old.upgrade(dir))
        }
        Some(version) if version != u64::from(RECORD_VERSION) => {
            let what = format!("version {version} is not supported");
            return unreadable(what, version > u64::from(RECORD_VERSION));
        }
        _ => serde_json::from_value(json),
    };
    match parsed {
        Ok(record) => Ok(Some(Ok(record))),
        Err(e) => unreadable(e.to_string(), false),
    }
}

fn is_lasting(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::IsADirectory
        || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}
