//! Images from registries.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::image::Image;
use crate::platform::Platform;
use crate::reference::Reference;
use crate::store::{ImageStore, StoreError};
use crate::unpack::Limits;

/// How to pull.
#[derive(Clone, Default)]
pub struct PullOptions {
    /// Credentials for the registry; without them, those of the Docker configuration.
    pub credentials: Option<Credentials>,
    /// The Docker configuration; without it `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
    pub docker_config: Option<PathBuf>,
    /// Which registries are spoken to how.
    pub registries: RegistriesConfig,
    /// Take the image of this platform instead of this machine's.
    pub platform: Option<Platform>,
    /// Told how the pull goes on. Called often, from several threads: it should return at once.
    pub progress: Option<Arc<dyn Fn(Progress) + Send + Sync>>,
    /// What a layer may ask for.
    pub limits: Limits,
}

impl fmt::Debug for PullOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullOptions")
            .field("credentials", &self.credentials.is_some())
            .field("registries", &self.registries)
            .field("platform", &self.platform)
            .finish_non_exhaustive()
    }
}

/// Who we are to a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Name and password, used with basic authentication or to get a token.
    Basic {
        /// The name.
        username: String,
        /// The password or access token.
        password: String,
    },
    /// A refresh token, as `docker login` stores it (`identitytoken`).
    IdentityToken(String),
    /// A token that the registry takes as it is.
    Bearer(String),
}

/// Which registries are spoken to how. Registries are named as in references, such as `localhost:5000`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistriesConfig {
    /// Spoken to by HTTP without TLS. No other registry ever is.
    pub plain_http: BTreeSet<String>,
    /// Tried before the registry itself, in order: registry to hosts with the same repositories.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// PEM files with certificate authorities to trust besides the system's.
    pub ca_files: Vec<PathBuf>,
}

/// How a pull goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The manifest is here.
    Resolved {
        /// Its digest.
        digest: Digest,
        /// The layers, the lowest first.
        layers: Vec<LayerSummary>,
    },
    /// A layer is coming in.
    Downloading {
        /// The layer's blob.
        layer: Digest,
        /// Bytes so far.
        bytes: u64,
        /// Bytes of the whole.
        total_bytes: u64,
    },
    /// A layer is verified and is being unpacked.
    Unpacking {
        /// The layer's blob.
        layer: Digest,
    },
    /// A layer is in the store.
    Done {
        /// The layer's blob.
        layer: Digest,
    },
}

/// A layer, before it is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSummary {
    /// The layer's blob.
    pub digest: Digest,
    /// Its compressed size.
    pub size_bytes: u64,
    /// It is in the store already.
    pub present: bool,
}

/// An image that cannot be pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ImageStore {
    /// Fetches an image from its registry. Layers that are here are not fetched again.
    pub async fn pull(
        &self,
        reference: &Reference,
        options: &PullOptions,
    ) -> Result<Image, PullError> {
        todo!("{reference} {options:?}")
    }
}
