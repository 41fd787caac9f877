//! Fetches single parts of images again, for a store that heals itself.

use std::io;
use std::sync::Arc;

use tokio::runtime::Handle;

use super::{PullError, PullOptions, blocking};
use crate::manifest::{CONFIG_MAX_BYTES, Descriptor};
use crate::registry::{Purpose, Repository};
use crate::store::{FetchError, Healed, ImageStore, Lost, Problem};

impl ImageStore {
    /// Mends what [`verify`](Self::verify) found, as [`heal`](Self::heal) does, and fetches what is lost from the
    /// registry of the image that needs it, or its mirrors. Nothing is fetched that is whole. Dropping the future does
    /// not stop what has begun.
    pub async fn heal_from_registry(
        &self,
        problem: &Problem,
        options: &PullOptions,
    ) -> Result<Healed, PullError> {
        let (store, problem, options) = (self.clone(), problem.clone(), options.clone());
        let runtime = Handle::current();
        blocking(move || {
            let fetch = |lost: &Lost, take: &mut dyn FnMut(&[u8]) -> io::Result<()>| {
                runtime.block_on(fetch(lost, &options, take))
            };
            Ok(store.heal(&problem, Some(&fetch))?)
        })
        .await
    }
}

async fn fetch(
    lost: &Lost,
    options: &PullOptions,
    take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), FetchError> {
    let repository = Repository::open(&lost.image, &options.access(), Purpose::Pull)?;
    let repository = Arc::new(repository);
    if lost.is_manifest {
        let (_, json) = repository.manifest(Some(&lost.digest)).await?;
        return Ok(take(&json)?);
    }
    let blob = Descriptor {
        media_type: String::new(),
        digest: lost.digest.clone(),
        size: lost.size_bytes.unwrap_or_default(),
        platform: None,
        annotations: Default::default(),
        artifact_type: None,
    };
    if lost.size_bytes.is_none() {
        let what = "a document of the image";
        let content = repository.small_blob(&blob, what, CONFIG_MAX_BYTES).await?;
        return Ok(take(&content)?);
    }
    let mut stream = repository.blob(&blob, 0);
    while let Some(piece) = stream.next().await? {
        take(&piece)?;
    }
    Ok(())
}
