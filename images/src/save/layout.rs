//! The OCI image layout (image-spec, image-layout.md), as an archive or in a directory.
//!
//! An image stands in `index.json` once for each of its names. An index that its manifest was chosen from is kept as a
//! blob and named by an annotation of ours, so that `name@digest of the index` means the same image where it is loaded;
//! it does not stand in `index.json` itself, as the images of other platforms are not here. Saved with all platforms, it
//! stands there like any other, without the annotation.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Archive, Chosen, SaveError, buffered, docker};
use crate::digest::{Digest, HashingReader};
use crate::manifest::{INDEX_ANNOTATION, MANIFEST_MAX_BYTES, OCI_INDEX};
use crate::store::{IMAGE_NAME, ImageStore, REF_NAME, disk};
use crate::trust::{StoredSignatures, entry_of, signed_image_annotation};

const LAYOUT_FILE: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

pub(super) fn write_archive(
    store: &ImageStore,
    chosen: &[Chosen],
    archive: &mut Archive<impl Write>,
) -> Result<(), SaveError> {
    archive.bytes("oci-layout", LAYOUT_FILE.as_bytes())?;
    archive.bytes("index.json", &index(entries(store, chosen)?))?;
    archive.directory("blobs/")?;
    let mut algorithm = None;
    for (digest, image) in blobs(chosen) {
        if algorithm.replace(digest.algorithm()) != Some(digest.algorithm()) {
            archive.directory(&format!("blobs/{}/", digest.algorithm().name()))?;
        }
        let (file, bytes) = store.blob_to_save(image, digest)?;
        archive.checked(&blob_name(digest), buffered(file), bytes, digest, digest)?;
    }
    // `docker load` looks for this file, and takes layers as they are.
    let items = chosen.iter().map(|image| {
        let layers = image.layers.iter().map(|layer| blob_name(&layer.digest));
        let tags = image.names.iter().filter(|name| name.digest().is_none());
        let tags: Vec<_> = tags.map(ToString::to_string).collect();
        docker::item(
            &blob_name(&image.config.digest),
            &tags,
            &layers.collect::<Vec<_>>(),
        )
    });
    archive.bytes("manifest.json", &docker::manifest_file(items))
}

pub(super) fn write_directory(
    store: &ImageStore,
    chosen: &[Chosen],
    dir: &Path,
) -> Result<(), SaveError> {
    let entries = entries(store, chosen)?;
    let kept = kept_entries(dir, &entries)?;
    for (digest, image) in blobs(chosen) {
        let target = dir.join(blob_name(digest));
        if has_digest(&target, digest) {
            continue;
        }
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent).map_err(failed("create", parent))?;
        }
        let (file, _) = store.blob_to_save(image, digest)?;
        write_file(&target, buffered(file), digest)?;
    }
    let entries = kept.into_iter().chain(entries).collect();
    write_bytes(&dir.join("oci-layout"), LAYOUT_FILE.as_bytes())?;
    // Last: until here the layout is what it was.
    write_bytes(&dir.join("index.json"), &index(entries))
}

/// The entries of a layout that is there already, without those whose names, or signatures, are to be written.
fn kept_entries(dir: &Path, new: &[Value]) -> Result<Vec<Value>, SaveError> {
    std::fs::create_dir_all(dir).map_err(failed("create", dir))?;
    let mut listing = std::fs::read_dir(dir).map_err(failed("list", dir))?;
    if listing.next().is_none() {
        return Ok(Vec::new());
    }
    let not_a_layout = || SaveError::NotALayout {
        path: dir.to_owned(),
    };
    let path = dir.join("index.json");
    let text = match File::open(&path) {
        Ok(file) => read_small(file).map_err(failed("read", &path))?,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(not_a_layout()),
        Err(e) => return Err(failed("open", &path)(e)),
    };
    let mut index: Value = serde_json::from_slice(&text).map_err(|_| not_a_layout())?;
    let Some(Value::Array(entries)) = index.get_mut("manifests").map(Value::take) else {
        return Err(not_a_layout());
    };
    let names: BTreeSet<_> = new.iter().filter_map(name).collect();
    let is_other = |entry: &Value| match name(entry) {
        Some(name) => !names.contains(name),
        None => new.iter().all(|new| new["digest"] != entry["digest"]),
    };
    Ok(entries.into_iter().filter(is_other).collect())
}

fn read_small(file: File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.take(MANIFEST_MAX_BYTES).read_to_end(&mut text)?;
    Ok(text)
}

fn name(entry: &Value) -> Option<&str> {
    let annotations = entry.get("annotations")?;
    let name = |key| annotations.get(key)?.as_str();
    name(IMAGE_NAME).or_else(|| name(REF_NAME))
}

/// The entries of `index.json`: one for each name, and the signatures.
fn entries(store: &ImageStore, chosen: &[Chosen]) -> Result<Vec<Value>, SaveError> {
    let mut entries = Vec::new();
    for image in chosen {
        for name in &image.names {
            let mut annotations = json!({
                IMAGE_NAME: name.to_string(),
                REF_NAME: name.to_string(),
            });
            if let Some(index) = &image.record.index
                && image.whole.is_none()
            {
                annotations[INDEX_ANNOTATION] = json!(index.to_string());
            }
            if !signatures(image).is_empty() {
                let (key, kind) = signed_image_annotation(&image.media_type());
                annotations[key] = json!(kind);
            }
            let (digest, document) = image.document();
            entries.push(json!({
                "mediaType": image.media_type(),
                "digest": digest.to_string(),
                "size": document.len(),
                "annotations": annotations,
            }));
        }
        for signatures in signatures(image) {
            let manifest = store.read_blob(&signatures.manifest)?;
            entries.push(entry_of(&signatures.manifest, &manifest));
        }
    }
    Ok(entries)
}

fn signatures(image: &Chosen) -> &[StoredSignatures] {
    image
        .record
        .trust
        .as_ref()
        .map_or(&[], |trust| &trust.signatures)
}

fn index(entries: Vec<Value>) -> Vec<u8> {
    json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
        .to_string()
        .into_bytes()
}

/// All blobs of the images, each once, sorted, with an image that needs it.
fn blobs(chosen: &[Chosen]) -> Vec<(&Digest, &Chosen)> {
    let mut seen = BTreeSet::new();
    let mut blobs = Vec::new();
    for image in chosen {
        let layers = image.layers.iter().map(|layer| &layer.digest);
        let whole = image.whole.iter().flat_map(|index| {
            let blobs = index.parts.blobs.iter().map(|blob| &blob.digest);
            index.parts.documents.iter().chain(blobs)
        });
        for digest in image.record.documents().chain(layers).chain(whole) {
            if seen.insert(digest) {
                blobs.push((digest, image));
            }
        }
    }
    blobs.sort_by_key(|(digest, _)| *digest);
    blobs
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

fn has_digest(path: &Path, digest: &Digest) -> bool {
    let Ok(file) = File::open(path) else {
        return false;
    };
    let hashed = HashingReader::new(buffered(file), digest.algorithm()).finish();
    hashed.is_ok_and(|(found, _)| found == *digest)
}

fn write_bytes(path: &Path, content: &[u8]) -> Result<(), SaveError> {
    write_file(path, content, &Digest::sha256(content))
}

/// Whole, with this digest, and on disk, or not there.
fn write_file(path: &Path, content: impl Read, expected: &Digest) -> Result<(), SaveError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".partial");
    let temporary = PathBuf::from(temporary);
    let mut content = HashingReader::new(content, expected.algorithm());
    let written = File::create(&temporary).and_then(|mut file| {
        io::copy(&mut content, &mut file)?;
        file.sync_all()?;
        content.finish()
    });
    let result = match written {
        Ok((digest, _)) if digest == *expected => {
            return Ok(disk::rename(&temporary, path)?);
        }
        Ok(_) => SaveError::Damaged(expected.clone()),
        Err(error) => failed("write", &temporary)(error),
    };
    // What stays is never read: it has not the name of a blob.
    drop(std::fs::remove_file(&temporary));
    Err(result)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SaveError + use<> {
    let path = path.to_owned();
    move |source| SaveError::Directory {
        action,
        path,
        source,
    }
}
