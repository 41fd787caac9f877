//! An image as a caller gets it: its configuration and the unpacked layers.

use std::path::PathBuf;

use oci_spec::image::ImageConfiguration;

use crate::digest::Digest;
use crate::reference::Reference;
use crate::trust::Trust;

/// An image of the store, complete and verified.
#[derive(Debug, Clone)]
pub struct Image {
    /// All names it has in the store, sorted.
    pub references: Vec<Reference>,
    /// The digest of its manifest.
    pub digest: Digest,
    /// The digest of its configuration: what Docker calls the image ID.
    pub config_digest: Digest,
    /// Entrypoint, environment, user, exposed ports and the like.
    pub config: ImageConfiguration,
    /// Directories to stack with overlayfs, the lowest first. They must not be written to.
    pub layers: Vec<PathBuf>,
    /// The size of the unpacked layers on this machine.
    pub size_bytes: u64,
    /// When it was built, as its configuration says.
    pub created: Option<jiff::Timestamp>,
    /// Where it came from, why it was allowed, and its signatures; none if it was made here.
    pub trust: Option<Trust>,
}

impl Image {
    /// `registry/repository@digest` of the first reference: what Kubernetes shows as `imageID`.
    pub fn pinned_reference(&self) -> Option<Reference> {
        let first = self.references.first()?;
        Some(first.with_digest(self.digest.clone()))
    }
}
