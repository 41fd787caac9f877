//! The image store.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use oci_spec::image::Config;

use crate::build::{BuildError, ImageFile};
use crate::digest::Digest;
use crate::image::Image;
use crate::load::{LoadError, LoadOptions};
use crate::pull::{PullError, PullOptions};
use crate::reference::Reference;

/// The images of one node. Methods block, except [`pull`](Self::pull); use `spawn_blocking` for long ones.
#[derive(Debug, Clone)]
pub struct ImageStore {}

/// What [`ImageStore::remove`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The names that are gone.
    pub references: Vec<Reference>,
    /// The image that has no name any more; [`ImageStore::gc`] frees its space.
    pub unreferenced: Option<Digest>,
}

/// What [`ImageStore::gc`] freed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Unpacked layers.
    pub layers: u64,
    /// Manifests and configurations.
    pub blobs: u64,
    /// Their bytes.
    pub freed_bytes: u64,
}

/// Something [`ImageStore::verify`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file or directory.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
    /// The images that need it.
    pub images: Vec<Reference>,
}

/// A failure of the store itself.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was attempted, such as `open`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

impl ImageStore {
    /// Opens or creates the store in `dir`, and removes what dead processes left unfinished.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        todo!("{dir:?}")
    }

    /// The image of this name, if it is here.
    pub fn resolve(&self, reference: &Reference) -> Result<Option<Image>, StoreError> {
        todo!("{reference}")
    }

    /// All images, sorted by their first name.
    pub fn list(&self) -> Result<Vec<Image>, StoreError> {
        todo!()
    }

    /// Removes a name; a name that is not there is no error.
    pub fn remove(&self, reference: &Reference) -> Result<Removed, StoreError> {
        todo!("{reference}")
    }

    /// Frees what no name needs, except the layer directories in `in_use` (from [`Image::layers`]).
    pub fn gc(&self, in_use: &HashSet<PathBuf>) -> Result<Collected, StoreError> {
        todo!("{in_use:?}")
    }

    /// Checks that all that the records name is here and unharmed.
    pub fn verify(&self) -> Result<Vec<Problem>, StoreError> {
        todo!()
    }

    /// Loads the images of an OCI layout directory, an OCI archive or a docker-archive, told apart by content.
    pub fn load(&self, path: &Path, options: &LoadOptions) -> Result<Vec<Image>, LoadError> {
        todo!("{path:?} {options:?}")
    }

    /// Makes an image of one layer from files of the host. The same files and configuration give the same digest.
    pub fn build_from_files(
        &self,
        reference: &Reference,
        files: &[ImageFile],
        config: &Config,
    ) -> Result<Image, BuildError> {
        todo!("{reference} {files:?} {config:?}")
    }

    /// Fetches an image from its registry. Layers that are here are not fetched again.
    pub async fn pull(
        &self,
        reference: &Reference,
        options: &PullOptions,
    ) -> Result<Image, PullError> {
        todo!("{reference} {options:?}")
    }
}
