//! What must be in the registry for an image: read from the store, before anything is sent.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

use super::PushError;
use super::signatures::{self, PlannedSignatures};
use crate::digest::Digest;
use crate::image::{Image, LayerBlob};
use crate::manifest::{self, Document, Manifest, OCI_INDEX, OCI_MANIFEST};
use crate::reference::Reference;
use crate::store::{Held, ImageStore, Record, Session};
use crate::whole_index::Walk;

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
    /// Signatures of what is sent.
    pub(super) signatures: Vec<PlannedSignatures>,
    /// Signatures of something else than what is sent, such as the index of more platforms than are here.
    pub(super) signatures_left_out: usize,
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
    let mut plan = plan_image(store, session, &record, (source, target))?;
    // Damaged ones are those that `podling images verify` tells of; the image is sent without them.
    let (images, _) = store.signatures(&record);
    (plan.signatures, plan.signatures_left_out) = signatures::plan(images, &plan.documents);
    Ok(plan)
}

/// Without the signatures.
fn plan_image(
    store: &ImageStore,
    session: &Session,
    record: &Record,
    (source, target): (&Reference, &Reference),
) -> Result<Plan, PushError> {
    let not_here = || PushError::NotHere(Box::new(source.clone()));
    let image = store.resolve(source)?.ok_or_else(not_here)?;
    let names: Vec<_> = std::iter::once(source.canonical())
        .chain(image.references.iter().cloned())
        .collect();
    let mount_from = mount_from(&image, target);
    if let Some(whole) = whole_index(store, session, record)? {
        return Ok(whole.plan(names, mount_from));
    }
    let (parts, index, left_out) = match of_index(store, session, record)? {
        Some(found) => found,
        None => (vec![only_part(store, record, source)?], None, 0),
    };
    let blobs = uploads(&parts, mount_from.as_ref());
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
        signatures: Vec::new(),
        signatures_left_out: 0,
        documents,
        blobs,
        platforms,
        left_out,
        names,
    })
}

/// Another repository of the target's registry that may have the image.
fn mount_from(image: &Image, target: &Reference) -> Option<String> {
    let is_beside = |name: &&Reference| {
        name.registry() == target.registry() && name.repository() != target.repository()
    };
    let found = image.references.iter().find(is_beside);
    found.map(|name| name.repository().to_owned())
}

/// The image of a record without an index.
fn only_part(store: &ImageStore, record: &Record, source: &Reference) -> Result<Part, PushError> {
    let json = store.read_blob(&record.manifest)?;
    match manifest::parse_document(&json) {
        Ok(Document::Manifest(manifest)) => Ok(Part {
            document: document(record.manifest.clone(), json, OCI_MANIFEST),
            manifest: *manifest,
        }),
        Ok(Document::Index(_)) => Err(PushError::NotHere(Box::new(source.clone()))),
        Err(error) => Err(PushError::Manifest {
            reference: Box::new(source.clone()),
            source: error,
        }),
    }
}

/// Configurations and layers, each once.
fn uploads(parts: &[Part], mount_from: Option<&String>) -> Vec<Upload> {
    let mut seen = BTreeSet::new();
    let descriptors = parts.iter().flat_map(|part| {
        let config = std::iter::once(&part.manifest.config);
        config.chain(&part.manifest.layers)
    });
    descriptors
        .filter(|blob| seen.insert(&blob.digest))
        .map(|blob| Upload {
            digest: blob.digest.clone(),
            size_bytes: blob.size,
            mount_from: mount_from.cloned(),
        })
        .collect()
}

/// An index of which all is here: it is sent with all that it names, also what is no image.
struct Whole {
    digest: Digest,
    /// Manifests, then indexes, each after those that it names.
    documents: Vec<PlannedDocument>,
    blobs: Vec<LayerBlob>,
    platforms: usize,
}

impl Whole {
    fn plan(self, names: Vec<Reference>, mount_from: Option<String>) -> Plan {
        let upload = |blob: LayerBlob| Upload {
            digest: blob.digest,
            size_bytes: blob.size_bytes,
            mount_from: mount_from.clone(),
        };
        Plan {
            digest: self.digest,
            documents: self.documents,
            blobs: self.blobs.into_iter().map(upload).collect(),
            platforms: self.platforms,
            left_out: 0,
            signatures: Vec::new(),
            signatures_left_out: 0,
            names,
        }
    }
}

/// The image's index, if all that it names is here. Of the platform that the record is for, compressed layers may be
/// missing.
fn whole_index(
    store: &ImageStore,
    session: &Session,
    record: &Record,
) -> Result<Option<Whole>, PushError> {
    let Some(index) = &record.index else {
        return Ok(None);
    };
    let (mut manifests, mut indexes) = (Vec::new(), Vec::new());
    let mut platforms = 0;
    let mut walk = Walk::new(index.clone());
    while let Some(digest) = walk.next().cloned() {
        session.hold(&[Held::Blob(digest.clone())])?;
        let Ok(json) = store.read_blob(&digest) else {
            return Ok(None);
        };
        // What is odd is sent image by image, or refused there.
        if walk.take(&json).is_err() {
            return Ok(None);
        }
        let kind = manifest::parse_document(&json);
        platforms += usize::from(matches!(kind, Ok(Document::Manifest(_))));
        match kind {
            Ok(Document::Index(_)) => indexes.push(document(digest, json, OCI_INDEX)),
            _ => manifests.push(document(digest, json, OCI_MANIFEST)),
        }
    }
    let blobs = walk.finish().blobs;
    let held = blobs.iter().map(|blob| Held::Blob(blob.digest.clone()));
    session.hold(&held.collect::<Vec<_>>())?;
    let own = record.layers.iter().filter_map(|layer| layer.blob.as_ref());
    let own: BTreeSet<_> = own.map(|blob| &blob.digest).collect();
    for blob in &blobs {
        if !own.contains(&blob.digest) && store.open_blob(&blob.digest)?.is_none() {
            return Ok(None);
        }
    }
    // Found from the top down, sent from the bottom up.
    manifests.extend(indexes.into_iter().rev());
    Ok(Some(Whole {
        digest: index.clone(),
        documents: manifests,
        blobs,
        platforms,
    }))
}

type OfIndex = (Vec<Part>, Option<PlannedDocument>, usize);

/// Of an index of which something is not here: the platforms that are, the index of these to send with them, and how many
/// are not here. None for an image without an index, or whose index is of no use.
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
            None if manifest::is_image_entry(entry) => left_out += 1,
            // What stands beside images, such as attestations, is no platform.
            None => {}
        }
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
