//! An image as a caller gets it: its configuration and the unpacked layers.

use std::path::PathBuf;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::trust::Trust;

/// An image of the store, complete and verified.
#[derive(Debug, Clone)]
pub struct Image {
    /// All names it has in the store, sorted.
    pub references: Vec<Reference>,
    /// The digest of its manifest.
    pub digest: Digest,
    /// The digest of the index it was chosen from, if it was.
    pub index: Option<Digest>,
    /// The digest of its configuration: what Docker calls the image ID.
    pub config_digest: Digest,
    /// Entrypoint, environment, user, exposed ports and the like.
    pub config: ImageConfiguration,
    /// Directories to stack with overlayfs, the lowest first. They must not be written to.
    pub layers: Vec<PathBuf>,
    /// All layers that the manifest names, the lowest first, also those that the stack leaves out.
    pub parts: Vec<ImageLayer>,
    /// The size of the unpacked layers on this machine.
    pub size_bytes: u64,
    /// When it was built, as its configuration says.
    pub created: Option<jiff::Timestamp>,
    /// Where it came from, why it was allowed, and its signatures; none if it was made here.
    pub trust: Option<Trust>,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLayer {
    /// The digest of the decompressed layer.
    pub diff_id: Digest,
    /// The compressed layer; unknown only in old stores whose manifest is damaged.
    pub blob: Option<LayerBlob>,
    /// Where it is unpacked.
    pub directory: PathBuf,
    /// Bytes of its files there.
    pub file_bytes: u64,
}

/// A compressed layer, as the manifest describes it. Whether it is kept, [`ImageStore::open_blob`] tells.
///
/// [`ImageStore::open_blob`]: crate::ImageStore::open_blob
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LayerBlob {
    /// Its digest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its size.
    pub size_bytes: u64,
}

impl Image {
    /// What it runs on, as its configuration says.
    pub fn platform(&self) -> Platform {
        Platform {
            os: self.config.os().to_string(),
            architecture: self.config.architecture().to_string(),
            variant: self.config.variant().clone(),
        }
    }

    /// `registry/repository@digest` of the first reference: what Kubernetes shows as `imageID`.
    pub fn pinned_reference(&self) -> Option<Reference> {
        let first = self.references.first()?;
        Some(first.with_digest(self.digest.clone()))
    }
}
