//! What must be in the registry for an image: read from the store, before anything is sent.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

use super::PushError;
use crate::digest::Digest;
use crate::manifest::{self, Document, Manifest, OCI_INDEX, OCI_MANIFEST};
use crate::reference::Reference;
use crate::store::{Held, ImageStore, Record, Session};

/// All that a push sends.
#[derive(Debug)]
pub(super) struct Plan {
    /// What the image will be known by.
    pub(super) digest: Digest,
    /// Manifests, then the index that names them, if there is one.
    pub(super) documents: Vec<PlannedDocument>,
    /// Configurations and layers, each once.
    pub(super) blobs: Vec<Upload>,
    /// How many platforms are sent.
    pub(super) platforms: usize,
    /// Platforms of the index that are not here.
    pub(super) left_out: usize,
    /// Names of the image, whose repositories may have blobs that are not here: that which is pushed first.
    pub(super) names: Vec<Reference>,
}

/// A manifest or an index, as it is sent.
#[derive(Debug)]
pub(super) struct PlannedDocument {
    pub(super) digest: Digest,
    pub(super) media_type: String,
    pub(super) json: Vec<u8>,
}

/// A configuration or a layer.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) digest: Digest,
    pub(super) size_bytes: u64,
    /// Another repository of the target's registry that may have it.
    pub(super) mount_from: Option<String>,
}

/// An image for one platform that is here.
struct Part {
    document: PlannedDocument,
    manifest: Manifest,
}

/// Finds out what an image consists of, and holds all of it.
pub(super) fn plan(
    store: &ImageStore,
    session: &Session,
    source: &Reference,
    target: &Reference,
) -> Result<Plan, PushError> {
    let not_here = || PushError::NotHere(Box::new(source.clone()));
    let record = store.find_record(source)?.ok_or_else(not_here)?;
    session.hold(&record.held(true))?;
    let image = store.resolve(source)?.ok_or_else(not_here)?;
    let unusable = |e| PushError::Manifest {
        reference: Box::new(source.clone()),
        source: e,
    };
    let (parts, index, left_out) = match of_index(store, session, &record)? {
        Some(found) => found,
        None => {
            let json = store.read_blob(&record.manifest)?;
            let Document::Manifest(manifest) = manifest::parse_document(&json).map_err(unusable)?
            else {
                return Err(not_here());
            };
            let document = document(record.manifest.clone(), json, OCI_MANIFEST);
            (
                vec![Part {
                    document,
                    manifest: *manifest,
                }],
                None,
                0,
            )
        }
    };
    let mount_from = image
        .references
        .iter()
        .find(|name| {
            name.registry() == target.registry() && name.repository() != target.repository()
        })
        .map(|name| name.repository().to_owned());
    let mut seen = BTreeSet::new();
    let descriptors = parts.iter().flat_map(|part| {
        let config = std::iter::once(&part.manifest.config);
        config.chain(&part.manifest.layers)
    });
    let blobs = descriptors
        .filter(|blob| seen.insert(blob.digest.clone()))
        .map(|blob| Upload {
            digest: blob.digest.clone(),
            size_bytes: blob.size,
            mount_from: mount_from.clone(),
        })
        .collect();
    let platforms = parts.len();
    let documents: Vec<_> = parts
        .into_iter()
        .map(|part| part.document)
        .chain(index)
        .collect();
    let digest = documents
        .last()
        .map_or_else(|| record.manifest.clone(), |last| last.digest.clone());
    Ok(Plan {
        digest,
        documents,
        blobs,
        platforms,
        left_out,
        names: std::iter::once(source.canonical())
            .chain(image.references)
            .collect(),
    })
}

type OfIndex = (Vec<Part>, Option<PlannedDocument>, usize);

/// The platforms of the image's index that are here, the index to send with them, and how many are not here. None for an
/// image without an index, or whose index is of no use.
fn of_index(
    store: &ImageStore,
    session: &Session,
    record: &Record,
) -> Result<Option<OfIndex>, PushError> {
    let Some(digest) = &record.index else {
        return Ok(None);
    };
    let json = store.read_blob(digest)?;
    let Ok(Document::Index(entries)) = manifest::parse_document(&json) else {
        return Ok(None);
    };
    let mut parts = Vec::new();
    let mut left_out = 0;
    for entry in &entries {
        match part(store, session, record, &entry.digest)? {
            Some(part) => parts.push(part),
            None => left_out += 1,
        }
    }
    if left_out == 0 {
        let index = document(digest.clone(), json, OCI_INDEX);
        return Ok(Some((parts, Some(index), 0)));
    }
    match parts.len() {
        // Its manifest is not named by the index itself, but by one below it.
        0 => Ok(None),
        1 => Ok(Some((parts, None, left_out))),
        _ => {
            let here: BTreeSet<_> = parts.iter().map(|part| &part.document.digest).collect();
            let index = reduced(&json, &here);
            Ok(index.map(|index| (parts, Some(index), left_out)))
        }
    }
}

/// The image for one platform, if all of it is here. Of the platform that the record is for, compressed layers may be
/// missing: they are fetched when it turns out that the registry needs them.
fn part(
    store: &ImageStore,
    session: &Session,
    record: &Record,
    digest: &Digest,
) -> Result<Option<Part>, PushError> {
    session.hold(&[Held::Blob(digest.clone())])?;
    let Ok(json) = store.read_blob(digest) else {
        return Ok(None);
    };
    let Ok(Document::Manifest(manifest)) = manifest::parse_document(&json) else {
        return Ok(None);
    };
    let blobs = || std::iter::once(&manifest.config).chain(&manifest.layers);
    let held: Vec<_> = blobs()
        .map(|blob| Held::Blob(blob.digest.clone()))
        .collect();
    session.hold(&held)?;
    let is_the_records = *digest == record.manifest;
    for blob in blobs() {
        if !is_the_records && store.open_blob(&blob.digest)?.is_none() {
            return Ok(None);
        }
    }
    Ok(Some(Part {
        document: document(digest.clone(), json, OCI_MANIFEST),
        manifest: *manifest,
    }))
}

/// An index with only these of its entries; all else stays as it is.
fn reduced(json: &[u8], keep: &BTreeSet<&Digest>) -> Option<PlannedDocument> {
    let mut index: Value = serde_json::from_slice(json).ok()?;
    index.get_mut("manifests")?.as_array_mut()?.retain(|entry| {
        let digest = entry.get("digest").and_then(Value::as_str);
        let digest = digest.and_then(|text| text.parse::<Digest>().ok());
        digest.is_some_and(|digest| keep.contains(&digest))
    });
    let json = serde_json::to_vec(&index).ok()?;
    Some(document(Digest::sha256(&json), json, OCI_INDEX))
}

/// A document with the media type that it states, else the usual one.
fn document(digest: Digest, json: Vec<u8>, usual: &str) -> PlannedDocument {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
    }
    let typed = serde_json::from_slice::<Typed>(&json).ok();
    let media_type = typed.and_then(|typed| typed.media_type);
    PlannedDocument {
        digest,
        media_type: media_type.unwrap_or_else(|| usual.to_owned()),
        json,
    }
}
