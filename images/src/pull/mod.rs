//! Images from registries, by the OCI Distribution API.
//!
//! ```text
//! mirrors, registry ─► manifest or index ─► manifest for the platform ─► verdict ─► configuration ─► layers, 3 at a time ─► record
//!                                          each layer: one stream of download, digest, unpacking, diff ID ─► store
//! ```
//! A layer is unpacked while it arrives, aside, and becomes visible when both its digests are right. A download that
//! breaks goes on where it stopped, if the registry can, also after the process or the machine was started again.
//! Nothing is fetched that is in the store. Another pull of the same layer, in this process or another, is waited for,
//! and what it leaves unfinished is gone on with.
//!
//! Dropping the future stops the downloads; what had arrived stays for the next pull, and nothing of it is visible. A
//! full disk ends the pull, and all that it wrote is removed.
//!
//! How registries are spoken to, and what they may cost, is the business of [`crate::registry`].

mod complete;
mod download;
mod layer;
mod mend;
mod signatures;

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::{StreamExt, TryStreamExt, stream};

use crate::digest::Digest;
use crate::image::Image;
use crate::manifest::{
    self, CONFIG_MAX_BYTES, Descriptor, Document, INDEX_DEPTH_MAX, Manifest, ManifestError,
};
use crate::platform::Platform;
use crate::reference::Reference;
use crate::registry::{
    Access, Credentials, Keyring, Purpose, RegistriesConfig, RegistryError, Repository, Retry,
    RetryListener,
};
use crate::store::{self, Held, ImageStore, Record, Session, StoreError};
use crate::trust::{Distrust, Origin, Policy};
use crate::unpack::{Limits, UnpackError};

pub use complete::FetchedBlobs;
pub(crate) use complete::fetch_blob;

/// As many as Docker and containerd fetch at once.
const PARALLEL_LAYERS: usize = 3;

/// How to pull.
#[derive(Clone, Default)]
pub struct PullOptions {
    /// Credentials for the registry; without them, those of the keyring and of the Docker configuration.
    pub credentials: Option<Credentials>,
    /// Tried before the Docker configuration: all that match, one after the other.
    pub keyring: Keyring,
    /// The Docker configuration; without it `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
    pub docker_config: Option<PathBuf>,
    /// Which registries are spoken to how.
    pub registries: RegistriesConfig,
    /// Which images may come; without one, all.
    pub policy: Option<Arc<Policy>>,
    /// Bring all signatures that lie beside the image, whatever the policy asks for: to push, save or judge it later.
    pub signatures: bool,
    /// Take the image of this platform instead of this machine's.
    pub platform: Option<Platform>,
    /// Told how the pull goes on. Called often, from several threads: it should return at once.
    pub progress: Option<Arc<dyn Fn(Progress) + Send + Sync>>,
    /// What a layer may ask for.
    pub limits: Limits,
}

impl PullOptions {
    fn access(&self) -> Access {
        Access {
            credentials: self.credentials.clone(),
            keyring: self.keyring.clone(),
            docker_config: self.docker_config.clone(),
            registries: self.registries.clone(),
            retries: RetryListener::of(self.progress.as_ref(), Progress::Retrying),
        }
    }
}

impl fmt::Debug for PullOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PullOptions")
            .field("credentials", &self.credentials.is_some())
            .field("keyring", &self.keyring)
            .field("registries", &self.registries)
            .field("policy", &self.policy.as_ref().map(|policy| policy.file()))
            .field("signatures", &self.signatures)
            .field("platform", &self.platform)
            .finish_non_exhaustive()
    }
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
    /// The registry did not help, and is asked again after a wait.
    Retrying(Retry),
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
    /// The registry does not give the image.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The signature policy does not allow it. No layer was fetched.
    #[error(transparent)]
    Distrust(#[from] Distrust),
    /// The image cannot be used.
    #[error("cannot use the image {reference}")]
    Manifest {
        /// The image.
        reference: Box<Reference>,
        /// Why not.
        #[source]
        source: ManifestError,
    },
    /// A layer cannot be unpacked.
    #[error("cannot unpack layer {layer} of {reference}")]
    Layer {
        /// The image.
        reference: Box<Reference>,
        /// The layer's blob.
        layer: Digest,
        /// Why not.
        #[source]
        source: UnpackError,
    },
    /// The disk is full.
    #[error("{}", store::no_space(.dir, .reference))]
    NoSpace {
        /// The image.
        reference: Box<Reference>,
        /// The store.
        dir: PathBuf,
        /// What found no space.
        #[source]
        source: Box<PullError>,
    },
    /// The runtime is shutting down.
    #[error("the pull was cancelled")]
    Cancelled,
    /// The image was pulled, and removed at once by another.
    #[error("the image {0} vanished from the store while it was being pulled")]
    Vanished(Box<Reference>),
}

impl PullError {
    /// True when trying again later may help, without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Registry(error) => error.is_transient(),
            Self::Cancelled => true,
            _ => false,
        }
    }

    /// True when the store's file system has no space left.
    pub fn is_out_of_space(&self) -> bool {
        match self {
            Self::NoSpace { .. } => true,
            Self::Store(e) => e.is_out_of_space(),
            Self::Layer { source, .. } => source.is_out_of_space(),
            _ => false,
        }
    }
}

impl ImageStore {
    /// Fetches an image from its registry. Layers that are here are not fetched again.
    pub async fn pull(
        &self,
        reference: &Reference,
        options: &PullOptions,
    ) -> Result<Image, PullError> {
        if let Some(policy) = &options.policy {
            policy.rules(&Origin::Docker, reference).check_rejected()?;
        }
        let store = self.clone();
        let session = blocking(move || Ok(Session::begin(&store)?)).await?;
        let platform = options.platform.clone().unwrap_or_else(Platform::current);
        let repository = Repository::open(reference, &options.access(), Purpose::Pull)?;
        let repository = Arc::new(repository);
        let document = self.find_manifest(reference, &repository).await?;
        let pull = Pull {
            reference,
            options,
            platform,
            session: Arc::new(session),
            repository,
            is_full: Arc::default(),
        };
        let record = pull.run(document).await;
        let record = record.map_err(|e| no_space(e, pull.session.store(), pull.reference))?;
        let store = self.clone();
        let session = Arc::clone(&pull.session);
        let resolved = blocking(move || {
            session.commit(std::slice::from_ref(&record))?;
            Ok(store.resolve(&record.reference)?)
        });
        let image = resolved.await?;
        image.ok_or_else(|| PullError::Vanished(Box::new(reference.clone())))
    }

    /// The manifest or index that a reference names. Of a name that is here already, the registry is only asked whether
    /// it means the same still: a few bytes, which registries do not count as a pull.
    async fn find_manifest(
        &self,
        reference: &Reference,
        repository: &Repository,
    ) -> Result<(Digest, Vec<u8>), PullError> {
        let (store, name) = (self.clone(), reference.clone());
        let known = blocking(move || Ok(store.known_document(&name)?)).await?;
        if let Some((known, json)) = known
            && reference.digest().is_none()
        {
            match repository.resolve().await {
                Ok(Some(digest)) if digest == known => return Ok((known, json)),
                Ok(_) => {}
                // Some registries do not know this kind of question.
                Err(e) if is_not_understood(&e) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(repository.manifest(reference.digest()).await?)
    }

    /// What the name meant when it was pulled: the index, or the manifest.
    fn known_document(
        &self,
        reference: &Reference,
    ) -> Result<Option<(Digest, Vec<u8>)>, StoreError> {
        let Some(record) = self.find_record(reference)? else {
            return Ok(None);
        };
        let digest = record.index.unwrap_or(record.manifest);
        // A damaged one is fetched again.
        let content = self.read_blob(&digest).ok();
        Ok(content.map(|content| (digest, content)))
    }
}

/// True when the registry answered, but not to this question.
fn is_not_understood(error: &RegistryError) -> bool {
    matches!(
        error.decisive(),
        RegistryError::Status {
            status: 400 | 405 | 501,
            ..
        } | RegistryError::Protocol { .. }
            | RegistryError::WebPage { .. }
    )
}

/// One run of [`ImageStore::pull`].
struct Pull<'a> {
    reference: &'a Reference,
    options: &'a PullOptions,
    platform: Platform,
    session: Arc<Session>,
    repository: Arc<Repository>,
    /// Some layer found no space left on the disk.
    is_full: Arc<AtomicBool>,
}

impl Pull<'_> {
    /// Brings all parts of the image into the store.
    async fn run(&self, document: (Digest, Vec<u8>)) -> Result<Record, PullError> {
        let (digest, manifest, index) = self.manifest_for_platform(document).await?;
        let trust = self.judge(&digest, index.as_ref()).await?;
        let config = self.config(&manifest.config).await?;
        let layer_count = manifest.layers.len();
        let config = manifest::parse_config(&config, layer_count, &self.platform)
            .map_err(self.unusable())?;
        let held: Vec<_> = config.diff_ids.iter().cloned().map(Held::Layer).collect();
        let session = Arc::clone(&self.session);
        blocking(move || Ok(session.hold(&held)?)).await?;
        let layers: Vec<_> = manifest.layers.iter().zip(&config.diff_ids).collect();
        self.report(|| Progress::Resolved {
            digest: digest.clone(),
            layers: layers
                .iter()
                .map(|(layer, diff_id)| LayerSummary {
                    digest: layer.digest.clone(),
                    size_bytes: layer.size,
                    present: self.session.has_layer(diff_id),
                })
                .collect(),
        });
        // An image may have the same layer twice.
        let mut seen = HashSet::new();
        let unique = layers
            .into_iter()
            .filter(|(_, diff_id)| seen.insert(*diff_id));
        // Boxed here, in a plain loop: the compiler cannot see that a closure's futures are `Send`.
        let fetches: Vec<BoxFuture<'_, _>> = unique
            .map(|(layer, diff_id)| self.layer(layer, diff_id).boxed())
            .collect();
        stream::iter(fetches)
            .buffer_unordered(PARALLEL_LAYERS)
            .try_collect::<()>()
            .await?;
        Ok(Record::new(self.reference, (digest, &manifest), index, config.diff_ids).trusted(trust))
    }

    /// Follows indexes down to the manifest. Gives its digest and that of the first index.
    async fn manifest_for_platform(
        &self,
        (mut digest, mut json): (Digest, Vec<u8>),
    ) -> Result<(Digest, Manifest, Option<Digest>), PullError> {
        let mut index = None;
        for _ in 0..=INDEX_DEPTH_MAX {
            self.put_blob(&digest, &json).await?;
            match manifest::parse_document(&json).map_err(self.unusable())? {
                Document::Manifest(manifest) => return Ok((digest, *manifest, index)),
                Document::Index(entries) => {
                    index.get_or_insert(digest);
                    let entry =
                        manifest::choose(&entries, &self.platform).map_err(self.unusable())?;
                    (digest, json) = self.child(&entry.digest).await?;
                }
            }
        }
        let reason = "indexes are nested too deep".to_owned();
        Err(self.unusable()(ManifestError::Unusable(reason)))
    }

    /// A manifest that an index names, from the store if it is there.
    async fn child(&self, digest: &Digest) -> Result<(Digest, Vec<u8>), PullError> {
        match self.held_blob(digest).await {
            Some(json) => Ok((digest.clone(), json)),
            None => Ok(self.repository.manifest(Some(digest)).await?),
        }
    }

    /// A small blob of the store that is whole.
    async fn held_blob(&self, digest: &Digest) -> Option<Vec<u8>> {
        let (session, digest) = (Arc::clone(&self.session), digest.clone());
        let read = blocking(move || {
            session.hold(&[Held::Blob(digest.clone())])?;
            Ok(session.store().read_blob(&digest)?)
        });
        read.await.ok()
    }

    async fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, PullError> {
        let json = match self.held_blob(&descriptor.digest).await {
            Some(json) => json,
            None => {
                let repository = &self.repository;
                repository
                    .small_blob(descriptor, "a configuration", CONFIG_MAX_BYTES)
                    .await?
            }
        };
        self.put_blob(&descriptor.digest, &json).await?;
        Ok(json)
    }

    async fn put_blob(&self, digest: &Digest, content: &[u8]) -> Result<(), PullError> {
        let session = Arc::clone(&self.session);
        let (digest, content) = (digest.clone(), content.to_vec());
        blocking(move || Ok(session.put_blob(&digest, &content)?)).await
    }

    fn report(&self, progress: impl FnOnce() -> Progress) {
        if let Some(listener) = &self.options.progress {
            listener(progress());
        }
    }

    fn unusable(&self) -> impl FnOnce(ManifestError) -> PullError + use<> {
        let reference = Box::new(self.reference.clone());
        move |source| PullError::Manifest { reference, source }
    }
}

/// Says what it means that the disk is full.
fn no_space(error: PullError, store: &ImageStore, image: &Reference) -> PullError {
    if !error.is_out_of_space() {
        return error;
    }
    PullError::NoSpace {
        reference: Box::new(image.clone()),
        dir: store.dir().to_owned(),
        source: Box::new(error),
    }
}

/// Runs what blocks on a thread for that.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PullError> + Send + 'static,
) -> Result<T, PullError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(PullError::Cancelled),
        },
    }
}

#[cfg(test)]
mod bundle_tests;
#[cfg(test)]
mod signature_tests;
#[cfg(test)]
mod tests;
