//! What the collector reads of the machine, and how it removes.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use podling_images::{Digest, Reference};
use podling_runtime::chain;

use super::needs::{Held, Needs};
use crate::pod::context::Context;
use crate::pod::images::{blocking, demo_reference};
use crate::pod::layers::{stacks_in_use, true_path};

/// All images of the store.
pub(super) fn images(context: &Context) -> Result<Vec<Held>, String> {
    let images = context.images.list().map_err(|error| chain(&error))?;
    let held = images.into_iter().map(|image| Held {
        digest: image.digest,
        layers: image.layers.into_iter().map(true_path).collect(),
    });
    Ok(held.collect())
}

/// What images are needed by.
pub(super) fn needs(context: &Context) -> Result<Needs, String> {
    let named = context.store.image_names();
    let named = named.iter().filter_map(|name| Reference::parse(name).ok());
    let pinned = context.config.images.pinned().chain(demo_reference());
    Ok(Needs {
        stacks: stacks_in_use(&context.config.pods_run_dir()),
        wanted: digests(context, named)?,
        pinned: digests(context, pinned)?,
    })
}

/// How many images nothing needs; some of them may be too young to go.
pub(super) fn unneeded(context: &Context) -> Result<usize, String> {
    let needs = needs(context)?;
    let images = images(context)?;
    Ok(images.iter().filter(|image| !needs.keep(image)).count())
}

/// What names mean now; those that mean nothing here are left out.
fn digests(
    context: &Context,
    references: impl Iterator<Item = Reference>,
) -> Result<HashSet<Digest>, String> {
    let unique: BTreeSet<Reference> = references.map(|name| name.canonical()).collect();
    let mut digests = HashSet::new();
    for reference in &unique {
        let image = context.images.resolve(reference);
        digests.extend(image.map_err(|error| chain(&error))?.map(|i| i.digest));
    }
    Ok(digests)
}

/// Takes an image its names, unless it has become needed since; gives the names.
pub(super) async fn image(
    context: &Arc<Context>,
    digest: &Digest,
) -> Result<Option<String>, String> {
    let _alone = context.garbage.removal.write().await;
    let (context, digest) = (Arc::clone(context), digest.clone());
    blocking(move || {
        let mut all = context.images.list().map_err(|error| chain(&error))?;
        all.retain(|image| image.digest == digest);
        let Some(image) = all.pop() else {
            return Ok(None);
        };
        let held = Held {
            digest,
            layers: image.layers.iter().cloned().map(true_path).collect(),
        };
        if needs(&context)?.keep(&held) {
            return Ok(None);
        }
        for reference in &image.references {
            let removed = context.images.remove(reference);
            removed.map_err(|error| chain(&error))?;
        }
        let names: Vec<String> = image.references.iter().map(ToString::to_string).collect();
        Ok(Some(names.join(", ")))
    })
    .await
}

/// Partial downloads that nobody went on with for so long go when there is too little space: longer than pulls back off.
const PARTIAL_AGE: Duration = Duration::from_secs(600);

/// Frees what no image has a name for and no container uses, and downloads that were given up.
pub(super) async fn unnamed(context: &Arc<Context>) -> Result<(), String> {
    let context = Arc::clone(context);
    blocking(move || {
        let stacks = stacks_in_use(&context.config.pods_run_dir());
        let in_use = stacks.into_iter().flatten().collect();
        let freed = context.images.gc(&in_use).map_err(|error| chain(&error))?;
        let partial_bytes = context.images.remove_partial_downloads(PARTIAL_AGE);
        let partial_bytes = partial_bytes.map_err(|error| chain(&error))?;
        tracing::debug!(?freed, partial_bytes, "collected garbage");
        Ok(())
    })
    .await
}
