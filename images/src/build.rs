//! Images made from files of the host.

use std::path::PathBuf;

use crate::store::StoreError;

/// A file of an image to be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFile {
    /// Where it goes in the image, such as `/podling`. Parent directories are made.
    pub path: PathBuf,
    /// Permission bits, such as 0o755.
    pub mode: u32,
    /// Where it comes from.
    pub source: FileSource,
}

/// Where a file's content comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileSource {
    /// This file of the host.
    Host(PathBuf),
    /// These bytes.
    Bytes(Vec<u8>),
    /// A directory.
    Directory,
    /// A symbolic link to this target.
    Symlink(PathBuf),
}

/// An image that cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
