//! An image as JSON: the same keys in `list`, `pull --json`, `load -o json` and `inspect`. Sizes are bytes.

use podling_images::{Digest, Image, ImageLayer, ImageStore, StoreError};
use serde::Serialize;
use serde_json::Value;

use super::trust;

/// An image.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ImageView {
    /// Complete, such as `docker.io/library/nginx:1.27`.
    names: Vec<String>,
    /// Of the manifest.
    digest: String,
    /// Of the index that the manifest was chosen from.
    index: Option<String>,
    /// What Docker calls the image ID.
    config_digest: String,
    platform: String,
    /// RFC 3339.
    created: Option<String>,
    /// Of the unpacked files.
    size: u64,
    /// Of the compressed layers.
    download_size: u64,
    /// The lowest first.
    layers: Vec<LayerView>,
    /// Where it came from, and why it was allowed.
    trust: Value,
}

/// A layer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LayerView {
    diff_id: String,
    /// Of the compressed layer, as registries have it.
    digest: Option<String>,
    media_type: Option<String>,
    size: u64,
    download_size: Option<u64>,
    /// The compressed layer is in the store, too.
    kept: bool,
}

impl ImageView {
    pub(super) fn new(store: &ImageStore, image: &Image) -> Result<Self, StoreError> {
        let layers = image.parts.iter().map(|layer| LayerView::new(store, layer));
        Ok(Self {
            names: image.references.iter().map(ToString::to_string).collect(),
            digest: image.digest.to_string(),
            index: image.index.as_ref().map(Digest::to_string),
            config_digest: image.config_digest.to_string(),
            platform: image.platform().to_string(),
            created: image.created.map(|t| t.to_string()),
            size: image.size_bytes,
            download_size: download_bytes(image),
            layers: layers.collect::<Result<_, _>>()?,
            trust: trust::view(image.trust.as_ref()),
        })
    }

    pub(super) fn all(store: &ImageStore, images: &[Image]) -> Result<Vec<Self>, StoreError> {
        images.iter().map(|image| Self::new(store, image)).collect()
    }
}

impl LayerView {
    fn new(store: &ImageStore, layer: &ImageLayer) -> Result<Self, StoreError> {
        let blob = layer.blob.as_ref();
        let kept = match blob {
            Some(blob) => store.open_blob(&blob.digest)?.is_some(),
            None => false,
        };
        Ok(Self {
            diff_id: layer.diff_id.to_string(),
            digest: blob.map(|blob| blob.digest.to_string()),
            media_type: blob.map(|blob| blob.media_type.clone()),
            size: layer.file_bytes,
            download_size: blob.map(|blob| blob.size_bytes),
            kept,
        })
    }
}

/// What a pull of the image without any of its layers would fetch.
pub(super) fn download_bytes(image: &Image) -> u64 {
    let blobs = image.parts.iter().filter_map(|layer| layer.blob.as_ref());
    blobs.map(|blob| blob.size_bytes).sum()
}
