//! What makes the store's directory an OCI image layout (image-spec, image-layout.md), so that other tools read it in
//! place: `skopeo inspect oci:<dir>:<name>`.
//!
//! `index.json` is derived from the records, which are the truth: it is written after them, and repaired when the
//! store is opened. What it says of a record that cannot be read is left as it is: the record is made again from
//! that, if it can be (heal.rs). Each name is an entry, with the name in the annotation that skopeo and umoci look
//! for, and in containerd's. Layers that are not kept are missing blobs, which the specification allows.

use std::path::Path;

use serde_json::{Value, json};

use super::disk;
use super::record::Record;
use super::{StoreError, record};
use crate::digest::Digest;
use crate::manifest::OCI_MANIFEST;
use crate::reference::Reference;

/// Docker's name of the annotation; the value is all of the name.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// containerd's.
pub(crate) const IMAGE_NAME: &str = "io.containerd.image.name";
const LAYOUT_FILE: &str = "oci-layout";
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const INDEX: &str = "index.json";
/// Beside `index.json`, until it is whole; what a crash left is overwritten.
const NEW: &str = "index.json.new";

/// Makes `oci-layout` and `index.json` what they should be. `lock` must be held exclusively.
pub(super) fn repair(dir: &Path) -> Result<(), StoreError> {
    if std::fs::read(dir.join(LAYOUT_FILE)).ok().as_deref() != Some(LAYOUT) {
        disk::write_atomically(&dir.join(LAYOUT_FILE), &dir.join(NEW), LAYOUT)?;
    }
    disk::remove(&dir.join(NEW))?;
    update(dir)
}

/// Writes `index.json` if the records say something else. `lock` must be held exclusively.
pub(super) fn update(dir: &Path) -> Result<(), StoreError> {
    let path = dir.join(INDEX);
    let records = record::scan(dir)?;
    let mut entries: Vec<Value> = records
        .whole
        .iter()
        .filter_map(|record| entry(dir, record))
        .collect();
    if !records.unreadable.is_empty() {
        let is_kept = |name: &Digest| records.unreadable.iter().any(|record| record.name == *name);
        entries.extend(old_entries(dir).into_iter().filter(|old| {
            named(old).is_some_and(|(reference, _)| is_kept(&record::name_digest(&reference)))
        }));
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": entries,
    });
    let content = index.to_string().into_bytes();
    if std::fs::read(&path).ok().as_ref() == Some(&content) {
        return Ok(());
    }
    disk::write_atomically(&path, &dir.join(NEW), &content)
}

/// The image that `index.json` says the record had, by the digest of its name.
pub(super) fn find(dir: &Path, name: &Digest) -> Option<(Reference, Digest)> {
    let entries = old_entries(dir);
    let mut named = entries.iter().filter_map(named);
    named.find(|(reference, _)| record::name_digest(reference) == *name)
}

/// What `index.json` holds; nothing if it is damaged.
fn old_entries(dir: &Path) -> Vec<Value> {
    let index: Option<Value> = disk::read_json(&dir.join(INDEX)).ok();
    let entries = index
        .as_ref()
        .and_then(|index| index["manifests"].as_array());
    entries.cloned().unwrap_or_default()
}

/// The name and the manifest of an entry.
fn named(entry: &Value) -> Option<(Reference, Digest)> {
    let reference = entry["annotations"][IMAGE_NAME].as_str()?.parse().ok()?;
    Some((reference, entry["digest"].as_str()?.parse().ok()?))
}

/// None if the manifest is damaged, which [`verify`](super::ImageStore::verify) reports.
fn entry(dir: &Path, record: &Record) -> Option<Value> {
    let json = disk::read_blob(dir, &record.manifest).ok()?;
    let manifest: Value = serde_json::from_slice(&json).ok()?;
    let name = record.reference.to_string();
    Some(json!({
        "mediaType": manifest.get("mediaType").and_then(Value::as_str).unwrap_or(OCI_MANIFEST),
        "digest": record.manifest.to_string(),
        "size": json.len(),
        "annotations": {REF_NAME: name, IMAGE_NAME: name},
    }))
}
