//! Images from files: OCI layout, OCI archive, docker-archive.

use crate::platform::Platform;
use crate::reference::Reference;
use crate::store::StoreError;
use crate::unpack::Limits;

/// How to load.
#[derive(Debug, Clone, Default)]
pub struct LoadOptions {
    /// The name to give to the image, instead of those in the archive. The archive must then hold one image.
    pub reference: Option<Reference>,
    /// Take images of this platform instead of this machine's.
    pub platform: Option<Platform>,
    /// What a layer may ask for.
    pub limits: Limits,
}

/// Images that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
