//! Images to registries, by the OCI Distribution API.
//!
//! ```text
//! record ─► plan: documents and blobs ─► blobs, 3 at a time ─► manifests ─► index, if all of it is here
//!                                         each: there already? ─► mount ─► upload, which goes on where it broke
//! ```
//! The manifest comes last: who pulls meanwhile finds the old image or the whole new one. All is sent as it came, so that
//! digests stay what they are.
//!
//! Of an image for several platforms those are pushed that are here: all that the index names, then the index itself; some,
//! then an index of these; one, then its manifest alone. [`ImageStore::fetch_all_platforms`] brings the others.
//!
//! A layer that is here only unpacked, and that the registry does not have, is fetched from where the image came from:
//! compressed again it would have another digest.
//!
//! The signatures that came with an image go along, after it: see `signatures`.

mod plan;
mod signatures;
mod upload;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt};
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};

use crate::digest::Digest;
use crate::manifest::ManifestError;
use crate::pull::PullError;
use crate::reference::Reference;
use crate::registry::{
    Access, Credentials, Endpoint, Keyring, Purpose, RegistriesConfig, RegistryError, Repository,
    Request, Retry, RetryListener,
};
use crate::store::{ImageStore, Session, StoreError};
use plan::{Plan, PlannedDocument, Upload};

/// As many as Docker sends at once, about.
const PARALLEL_BLOBS: usize = 3;
/// What a registry answers to a manifest.
const ANSWER_MAX_BYTES: u64 = 64 << 10;

/// How to push.
#[derive(Clone, Default)]
pub struct PushOptions {
    /// Credentials for the registry; without them, those of the keyring and of the Docker configuration.
    pub credentials: Option<Credentials>,
    /// Tried before the Docker configuration: all that match, one after the other.
    pub keyring: Keyring,
    /// The Docker configuration; without it `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
    pub docker_config: Option<PathBuf>,
    /// Which registries are spoken to how.
    pub registries: RegistriesConfig,
    /// Leave the signatures of the image here.
    pub remove_signatures: bool,
    /// Told how the push goes on. Called often, from several threads: it should return at once.
    pub progress: Option<Arc<dyn Fn(PushProgress) + Send + Sync>>,
}

impl fmt::Debug for PushOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PushOptions")
            .field("credentials", &self.credentials.is_some())
            .field("keyring", &self.keyring)
            .field("registries", &self.registries)
            .field("remove_signatures", &self.remove_signatures)
            .finish_non_exhaustive()
    }
}

/// How a push goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushProgress {
    /// It is known what must be there.
    Planned {
        /// The digest that the image will have: of its manifest, or of the index.
        digest: Digest,
        /// Configurations and layers with their sizes, each once.
        blobs: Vec<(Digest, u64)>,
    },
    /// A blob is on its way.
    Uploading {
        /// Which.
        blob: Digest,
        /// Bytes so far.
        bytes: u64,
        /// Bytes of the whole.
        total_bytes: u64,
    },
    /// The registry did not help, and is asked again after a wait.
    Retrying(Retry),
    /// A blob is there.
    Done {
        /// Which.
        blob: Digest,
        /// How it came there.
        how: Arrival,
    },
}

/// How a blob came to a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// It was there already.
    Present,
    /// The registry took it from another of its repositories.
    Mounted,
    /// It was sent.
    Uploaded,
}

/// What was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The image in the registry, with its digest.
    pub reference: Reference,
    /// How many platforms it has there.
    pub platforms: usize,
    /// Platforms that the image's index names, and that were left out because they are not here.
    pub left_out: usize,
    /// Signatures that are beside it there: artifacts, each of one or more.
    pub signatures: usize,
    /// Signatures that are here and were left out, because they are of something else than what was pushed.
    pub signatures_left_out: usize,
}

/// An image that cannot be pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The registry does not take it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// There is no such image in the store.
    #[error("there is no image {0} here: pull or load it first")]
    NotHere(Box<Reference>),
    /// The target has a digest, and the image has another.
    #[error("the image has the digest {digest}, not that of {target}: name the target with a tag")]
    OtherDigest {
        /// What was to be written.
        target: Box<Reference>,
        /// What the image has.
        digest: Digest,
    },
    /// A document of the image cannot be read.
    #[error("cannot push {reference}")]
    Manifest {
        /// The image.
        reference: Box<Reference>,
        /// Why not.
        #[source]
        source: ManifestError,
    },
    /// A layer's blob is not in the store, not in the registry, and cannot be fetched from where the image came from.
    #[error(
        "layer {layer} is here only unpacked (see images.keepBlobs), {registry} does not have it, and it cannot be fetched: load the image again, or push it to where it came from"
    )]
    NotKept {
        /// The blob.
        layer: Digest,
        /// Where it was to go.
        registry: String,
        /// Why it cannot be fetched.
        #[source]
        source: Box<PullError>,
    },
    /// The image is there, and its signatures are not.
    #[error("{target} is in its registry now, but its signatures are not")]
    Signatures {
        /// The image.
        target: Box<Reference>,
        /// Why not.
        #[source]
        source: Box<PushError>,
    },
    /// What lies where signatures should go cannot be added to.
    #[error("the tag `{tag}` is of something else than signatures: {reason}")]
    OtherTag {
        /// The tag beside the image.
        tag: String,
        /// What is wrong with what is there.
        reason: String,
    },
    /// A blob of the store cannot be read.
    #[error("cannot read the blob {blob}")]
    Read {
        /// Which.
        blob: Digest,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The runtime is shutting down.
    #[error("the push was cancelled")]
    Cancelled,
}

impl PushError {
    /// True when trying again later may help, without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Registry(error) => error.is_transient(),
            Self::Signatures { source, .. } => source.is_transient(),
            Self::Cancelled => true,
            _ => false,
        }
    }
}

impl ImageStore {
    /// Sends the image `source` to a registry, under the name `target`. Blobs that are there are not sent again; another
    /// push of the same image goes on where one broke.
    ///
    /// # Errors
    /// When the image or one of its blobs is not here, or the registry does not take it.
    pub async fn push(
        &self,
        source: &Reference,
        target: &Reference,
        options: &PushOptions,
    ) -> Result<Pushed, PushError> {
        let access = Access {
            credentials: options.credentials.clone(),
            keyring: options.keyring.clone(),
            docker_config: options.docker_config.clone(),
            registries: options.registries.clone(),
            retries: RetryListener::of(options.progress.as_ref(), PushProgress::Retrying),
        };
        let (store, name, to) = (self.clone(), source.clone(), target.clone());
        // Held until the end: what is being sent is not collected.
        let (session, plan) = blocking(move || {
            let session = Session::begin(&store)?;
            let plan = plan::plan(&store, &session, &name, &to)?;
            Ok((Arc::new(session), plan))
        })
        .await?;
        if let Some(digest) = target.digest()
            && *digest != plan.digest
        {
            return Err(PushError::OtherDigest {
                target: Box::new(target.clone()),
                digest: plan.digest,
            });
        }
        self.send(target, options, &plan, &session, &access).await?;
        let signatures = match options.remove_signatures {
            true => 0,
            false => plan.signatures.len(),
        };
        Ok(Pushed {
            reference: target.with_digest(plan.digest),
            platforms: plan.platforms,
            left_out: plan.left_out,
            signatures,
            signatures_left_out: plan.signatures_left_out,
        })
    }

    /// Sends all that is planned, by the first endpoint whose credentials are allowed to.
    async fn send(
        &self,
        target: &Reference,
        options: &PushOptions,
        plan: &Plan,
        session: &Arc<Session>,
        access: &Access,
    ) -> Result<(), PushError> {
        let repository = Repository::open(target, access, Purpose::Push)?;
        let mut endpoints = repository.for_push().await?.into_iter().peekable();
        while let Some(endpoint) = endpoints.next() {
            let push = Push {
                store: self,
                target,
                options,
                plan,
                session,
                access,
                endpoint,
            };
            match push.run().await {
                // Other credentials may be allowed to.
                Err(PushError::Registry(RegistryError::Unauthorized { .. }))
                    if endpoints.peek().is_some() => {}
                result => return result,
            }
        }
        Ok(())
    }
}

/// One run of [`ImageStore::push`] with certain credentials.
struct Push<'a> {
    store: &'a ImageStore,
    target: &'a Reference,
    options: &'a PushOptions,
    plan: &'a Plan,
    session: &'a Arc<Session>,
    access: &'a Access,
    endpoint: Arc<Endpoint>,
}

impl Push<'_> {
    async fn run(&self) -> Result<(), PushError> {
        self.report(|| PushProgress::Planned {
            digest: self.plan.digest.clone(),
            blobs: self
                .plan
                .blobs
                .iter()
                .map(|blob| (blob.digest.clone(), blob.size_bytes))
                .collect(),
        });
        // Boxed here, in a plain loop: the compiler cannot see that a closure's futures are `Send`.
        let sendings: Vec<BoxFuture<'_, _>> = self
            .plan
            .blobs
            .iter()
            .map(|blob| self.blob(blob).boxed())
            .collect();
        stream::iter(sendings)
            .buffer_unordered(PARALLEL_BLOBS)
            .try_collect::<()>()
            .await?;
        let (last, others) = match self.plan.documents.split_last() {
            Some(split) => split,
            None => return Ok(()),
        };
        for document in others {
            self.document(document, &document.digest.to_string())
                .await?;
        }
        let name = match self.target.tag() {
            Some(tag) => tag.to_owned(),
            None => last.digest.to_string(),
        };
        self.document(last, &name).await?;
        if self.options.remove_signatures {
            return Ok(());
        }
        // Other credentials are not tried for these: those that may push the image may push these, too.
        let pushed = self.push_signatures().await;
        pushed.map_err(|source| PushError::Signatures {
            target: Box::new(self.target.clone()),
            source: Box::new(source),
        })
    }

    async fn blob(&self, blob: &Upload) -> Result<(), PushError> {
        let how = self.send(blob).await?;
        self.report(|| PushProgress::Done {
            blob: blob.digest.clone(),
            how,
        });
        Ok(())
    }

    /// Puts a manifest or an index, under a tag or its digest. Gives the headers of the answer.
    async fn document(
        &self,
        document: &PlannedDocument,
        name: &str,
    ) -> Result<HeaderMap, PushError> {
        let path = format!("manifests/{name}");
        let mut headers = HeaderMap::new();
        let media_type = HeaderValue::try_from(&document.media_type);
        headers.extend(media_type.ok().map(|value| (CONTENT_TYPE, value)));
        let request = Request {
            method: Method::PUT,
            url: self.endpoint.url(&path),
            headers,
            body: Some(document.json.clone()),
            what: &path,
        };
        // The same content under the same name: it may be sent twice.
        let what = "the answer to a manifest";
        let (headers, _) = self
            .endpoint
            .small_answer(&request, what, ANSWER_MAX_BYTES)
            .await?;
        let stated = headers.get("docker-content-digest");
        let stated = stated.and_then(|value| value.to_str().ok()?.parse::<Digest>().ok());
        match stated {
            Some(actual) if actual != document.digest => Err(RegistryError::Mismatch {
                registry: self.endpoint.registry().to_owned(),
                what: "back the manifest",
                expected: document.digest.clone(),
                actual,
            }
            .into()),
            _ => Ok(headers),
        }
    }

    fn report(&self, progress: impl FnOnce() -> PushProgress) {
        if let Some(listener) = &self.options.progress {
            listener(progress());
        }
    }
}

/// Runs what blocks on a thread for that.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PushError> + Send + 'static,
) -> Result<T, PushError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(PushError::Cancelled),
        },
    }
}

#[cfg(test)]
mod signature_tests;
#[cfg(test)]
mod tests;
