//! The docker-archive, as skopeo and Docker before 25 write it: `manifest.json` names configurations and uncompressed
//! layers.
//!
//! The format has no manifest of the image, so what is loaded of it elsewhere has the same configuration digest (which
//! Docker calls the image ID) and diff IDs, and another manifest digest. Deliberately absent: `repositories` and a
//! directory for each layer, which only Docker before 1.10 read.

use std::collections::BTreeSet;
use std::io::{BufRead, Write};

use serde_json::json;

use super::{Archive, Chosen, SaveError, buffered};
use crate::compression::decompress;
use crate::digest::{Digest, HashingReader};
use crate::manifest::Descriptor;
use crate::reference::Reference;
use crate::store::ImageStore;

pub(super) fn write_archive(
    store: &ImageStore,
    chosen: &[Chosen],
    archive: &mut Archive<impl Write>,
) -> Result<(), SaveError> {
    let mut seen = BTreeSet::new();
    let mut items = Vec::new();
    for image in chosen {
        let tags = image.names.iter().map(tag).collect::<Result<Vec<_>, _>>()?;
        let mut layers = Vec::new();
        for (layer, part) in image.layers.iter().zip(&image.record.layers) {
            let diff_id = &part.diff_id;
            let name = format!("{}.tar", diff_id.hex());
            if seen.insert(name.clone()) {
                write_layer(store, image, (layer, diff_id), &name, archive)?;
            }
            layers.push(name);
        }
        let config = &image.config.digest;
        let name = format!("{}.json", config.hex());
        if seen.insert(name.clone()) {
            let (file, bytes) = store.blob_to_save(image, config)?;
            archive.checked(&name, buffered(file), bytes, config, config)?;
        }
        items.push(item(&name, &tags, &layers));
    }
    archive.bytes("manifest.json", &manifest_file(items))
}

/// An image in `manifest.json`, field by field in the order that Docker has them.
pub(super) fn item(config: &str, tags: &[String], layers: &[String]) -> String {
    format!(
        r#"{{"Config":{},"RepoTags":{},"Layers":{}}}"#,
        json!(config),
        json!(tags),
        json!(layers)
    )
}

pub(super) fn manifest_file(items: impl IntoIterator<Item = String>) -> Vec<u8> {
    let items: Vec<_> = items.into_iter().collect();
    format!("[{}]", items.join(",")).into_bytes()
}

fn tag(name: &Reference) -> Result<String, SaveError> {
    match name.digest() {
        None => Ok(name.to_string()),
        Some(_) => Err(SaveError::NoTag(Box::new(name.clone()))),
    }
}

/// The header comes first and tells the size, so a compressed layer is read twice: once to know, once to write.
fn write_layer(
    store: &ImageStore,
    image: &Chosen,
    (layer, diff_id): (&Descriptor, &Digest),
    name: &str,
    archive: &mut Archive<impl Write>,
) -> Result<(), SaveError> {
    let damaged = |_| SaveError::Damaged(layer.digest.clone());
    let open = || Ok::<_, SaveError>(buffered(store.blob_to_save(image, &layer.digest)?.0));
    let hashed = decompress(open()?)
        .and_then(|plain| HashingReader::new(plain, diff_id.algorithm()).finish());
    let (found, bytes) = hashed.map_err(damaged)?;
    if found != *diff_id {
        return Err(SaveError::Damaged(layer.digest.clone()));
    }
    let mut blob = open()?;
    blob.fill_buf().map_err(damaged)?;
    let plain = decompress(blob).map_err(damaged)?;
    archive.checked(name, plain, bytes, diff_id, &layer.digest)
}
