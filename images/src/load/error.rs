//! Why images cannot be loaded.

use std::path::{Path, PathBuf};

use crate::bundle::BundleError;
use crate::digest::Digest;
use crate::manifest::ManifestError;
use crate::reference::ReferenceError;
use crate::store::{self, StoreError};
use crate::trust::Distrust;
use crate::unpack::UnpackError;

/// Images that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file or directory cannot be read.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// It holds no image that can be used.
    #[error("cannot use the image in {path}")]
    Manifest {
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: ManifestError,
    },
    /// The signature policy does not allow it. No layer was unpacked.
    #[error(transparent)]
    Distrust(#[from] Distrust),
    /// It is none of the formats.
    #[error(
        "{path} is neither an OCI layout or archive (`oci-layout`, `index.json`) nor a docker-archive (`manifest.json`)"
    )]
    UnknownFormat {
        /// The file or directory.
        path: PathBuf,
    },
    /// `manifest.json` is malformed.
    #[error("`manifest.json` in {path} is malformed")]
    DockerManifest {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A file has other content than its name says.
    #[error("`{name}` in {path} is damaged or forged: its digest is {actual}, not {expected}")]
    Mismatch {
        /// The file or directory.
        path: PathBuf,
        /// The blob.
        name: String,
        /// What the image says.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// A blob is longer or shorter than what names it says.
    #[error("`{name}` in {path} has {actual} bytes, not {expected} as the image says")]
    Size {
        /// The file or directory.
        path: PathBuf,
        /// The blob.
        name: String,
        /// What the image says.
        expected: u64,
        /// What it is.
        actual: u64,
    },
    /// A layer cannot be unpacked.
    #[error("cannot unpack layer {layer} of {path}")]
    Layer {
        /// The file or directory.
        path: PathBuf,
        /// The layer's diff ID.
        layer: Digest,
        /// Why not.
        #[source]
        source: UnpackError,
    },
    /// The disk is full.
    #[error("{}", store::no_space(.dir, &.path.display()))]
    NoSpace {
        /// The file or directory.
        path: PathBuf,
        /// The store.
        dir: PathBuf,
        /// What found no space.
        #[source]
        source: Box<LoadError>,
    },
    /// The name in the archive is none.
    #[error("{path} gives the image a name that cannot be used; give one with --name")]
    Name {
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: ReferenceError,
    },
    /// There is no name.
    #[error("the image in {path} has no full name{}; give one with --name", note(.tag))]
    NoName {
        /// The file or directory.
        path: PathBuf,
        /// The tag, where it has one.
        tag: Option<String>,
    },
    /// A name was given for several images.
    #[error("{path} holds {count} images, and one name was given; load it without a name")]
    SeveralImages {
        /// The file or directory.
        path: PathBuf,
        /// How many.
        count: usize,
    },
    /// There is nothing in it.
    #[error("{path} holds no image")]
    Empty {
        /// The file or directory.
        path: PathBuf,
    },
}

impl LoadError {
    /// True when the store's file system has no space left.
    pub fn is_out_of_space(&self) -> bool {
        match self {
            Self::NoSpace { .. } => true,
            Self::Store(e) => e.is_out_of_space(),
            Self::Layer { source, .. } => source.is_out_of_space(),
            // A compressed archive is decompressed into the store first, and one from a pipe copied.
            Self::Bundle(BundleError::Io { source, .. }) => store::is_full(source),
            _ => false,
        }
    }

    /// Says what it means that the disk is full.
    pub(super) fn or_no_space(self, path: &Path, dir: &Path) -> Self {
        if !self.is_out_of_space() {
            return self;
        }
        Self::NoSpace {
            path: path.to_owned(),
            dir: dir.to_owned(),
            source: Box::new(self),
        }
    }
}

fn note(tag: &Option<String>) -> String {
    match tag {
        Some(tag) => format!(" (only the tag `{tag}`)"),
        None => String::new(),
    }
}
