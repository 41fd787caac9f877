//! `podling images rm` and `podling images prune`.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use clap::Args;
use podling_images::{Collected, Image, ImageStore, Reference};
use serde_json::{Value, json};

use super::super::client::AgentClient;
use super::super::{CommandError, Directories, Exit, offline};
use super::OutputArg;
use crate::api::NodeStatus;
use crate::node::Config;

/// Remove images; what no other image and no pod uses is freed
#[derive(Debug, Args)]
#[command(
    visible_alias = "remove",
    after_help = "\
Examples:
  podling images rm nginx:1.27
  podling images list -o name | xargs podling images rm      all of them

An image that a pod runs is refused: nothing is removed then. With --force its name goes, and the
pod keeps the layers that it uses; when its container is made anew, the image is pulled again.
Another name of it can be removed without. JSON has removed (names), layers, blobs and freed
(bytes)."
)]
pub struct RmArgs {
    /// Their names
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// Also remove the name of an image that a pod runs
    #[arg(short, long)]
    pub force: bool,
    #[command(flatten)]
    pub output: OutputArg,
}

/// Free the space of what no image needs
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podling images prune --dry-run        what would be freed
  podling images prune                  what is of no image, and downloads that were given up
  podling images prune --all            also the images that no pod of this machine runs

Pinned images stay: those of `images.pinned` in the configuration file, and those of the agent that
answers in --run-dir. With --all, images that manifests name but that no pod runs
now are removed, too: they are pulled again when they are needed, which takes a registry. JSON has
removed (names), layers, blobs and freed (bytes).")]
pub struct PruneArgs {
    /// Also remove the images that no pod runs
    #[arg(short, long)]
    pub all: bool,
    /// Only say what would be removed
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub output: OutputArg,
}

pub(super) fn remove(
    store: &ImageStore,
    args: &RmArgs,
    directories: &Directories,
) -> Result<Exit, CommandError> {
    let references = super::parse_all(&args.images)?;
    if !args.force {
        refuse_if_run(store, &references, directories)?;
    }
    let (mut exit, mut gone) = (Exit::Done, Vec::new());
    for reference in &references {
        let removed = remove_one(store, reference)?;
        if removed.is_empty() {
            // The others are removed all the same.
            super::missing(reference).report();
            exit = Exit::Negative;
        }
        if !args.output.is_json() {
            for reference in &removed {
                println!("removed {reference}");
            }
        }
        gone.extend(removed);
    }
    let freed = match gone.is_empty() {
        true => Collected::default(),
        false => collect(store, &offline::layers_in_use(directories))?,
    };
    if args.output.is_json() {
        super::print_json(&view(&gone, &freed))?;
        return Ok(exit);
    }
    if !gone.is_empty() {
        println!(
            "freed {} in {} layers",
            super::size(freed.freed_bytes),
            freed.layers
        );
    }
    Ok(exit)
}

/// Whatever pods run goes on with what it has, but would have to be pulled again when it is made anew: that is not done
/// unasked. The plans know, with an agent or without.
fn refuse_if_run(
    store: &ImageStore,
    references: &[Reference],
    directories: &Directories,
) -> Result<(), CommandError> {
    let runs = offline::images_in_use(directories, store.dir());
    for reference in references {
        // What cannot be read runs nowhere, or is told by the removal.
        let Some(image) = store.resolve(reference).ok().flatten() else {
            continue;
        };
        let goes = |name: &Reference| references.iter().any(|r| is_named(r, name, &image));
        let is_last = image.references.iter().all(goes);
        let is_run = |run: &&offline::ImageInUse| {
            let is_it = run.digest == image.digest.to_string();
            is_it && (is_last || run.name.as_ref().is_some_and(goes))
        };
        let pods: BTreeSet<&str> = runs.iter().filter(is_run).map(|run| &*run.pod).collect();
        if !pods.is_empty() {
            let pods = pods.into_iter().collect::<Vec<_>>().join(", ");
            let text = format!("cannot remove {reference}: it is run by {pods}");
            return Err(CommandError::new(text).hint(
                "remove these pods' manifests first; --force removes the name all the same, and pods whose containers are made anew pull the image again",
            ));
        }
    }
    Ok(())
}

/// True when the removal of `removed` takes this name of the image.
fn is_named(removed: &Reference, name: &Reference, image: &Image) -> bool {
    match removed.digest() {
        None => removed.canonical() == name.canonical(),
        Some(digest) => {
            let is_repository =
                removed.registry() == name.registry() && removed.repository() == name.repository();
            is_repository && (*digest == image.digest || image.index.as_ref() == Some(digest))
        }
    }
}

fn remove_one(store: &ImageStore, reference: &Reference) -> Result<Vec<Reference>, CommandError> {
    store
        .remove(reference)
        .map(|removed| removed.references)
        .map_err(|e| CommandError::new(format!("cannot remove {reference}")).because(e))
}

fn collect(store: &ImageStore, in_use: &HashSet<PathBuf>) -> Result<Collected, CommandError> {
    store
        .gc(in_use)
        .map_err(|e| CommandError::new("cannot free the space of what no image needs").because(e))
}

pub(super) fn prune(
    store: &ImageStore,
    args: &PruneArgs,
    directories: &Directories,
    config: &Config,
) -> Result<Exit, CommandError> {
    let in_use = offline::layers_in_use(directories);
    let mut idle = Vec::new();
    if args.all {
        let images = super::all(store)?;
        let mut pinned = super::parse_all(&config.images.pinned)?;
        pinned.extend(pinned_by_agent(directories)?);
        let is_pinned = |image: &Image| pinned.iter().any(|pin| image.references.contains(pin));
        let images = images
            .into_iter()
            .filter(|image| !is_run(image, &in_use) && !is_pinned(image));
        idle = images.flat_map(|image| image.references).collect();
    }
    if args.dry_run {
        return would_free(store, args, &idle);
    }
    let mut removed = Vec::new();
    for reference in &idle {
        removed.extend(remove_one(store, reference)?);
    }
    let freed = collect(store, &in_use)?;
    if args.output.is_json() {
        return super::print_json(&view(&removed, &freed));
    }
    for reference in removed {
        println!("removed {reference}");
    }
    println!(
        "freed {} in {} layers and {} blobs",
        super::size(freed.freed_bytes),
        freed.layers,
        freed.blobs
    );
    Ok(Exit::Done)
}

/// What the agent of this store has pinned, which may have been given another configuration file. One that listens and
/// cannot be asked is an error: none of its images is to go by mistake.
fn pinned_by_agent(directories: &Directories) -> Result<Vec<Reference>, CommandError> {
    let status: NodeStatus = match AgentClient::new(directories).get("/podling/v1/status") {
        Ok(status) => status,
        // Whoever may not speak to an agent may not write to its store either: this is another one.
        Err(e) if e.is_away() || e.is_forbidden() => return Ok(Vec::new()),
        Err(e) => {
            let what = "cannot learn which images the agent has pinned".to_owned();
            return Err(e.into_command_error(what));
        }
    };
    let is_same = same_dir(&status.info.data_dir, &directories.data);
    let pinned = is_same.then_some(status.info.pinned_images);
    super::parse_all(&pinned.unwrap_or_default())
}

fn same_dir(one: &Path, other: &Path) -> bool {
    let canonical = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    canonical(one) == canonical(other)
}

fn view(removed: &[Reference], freed: &Collected) -> Value {
    json!({
        "removed": removed,
        "layers": freed.layers,
        "blobs": freed.blobs,
        "freed": freed.freed_bytes,
    })
}

/// A pod runs it, or one that has all its layers.
fn is_run(image: &Image, in_use: &HashSet<PathBuf>) -> bool {
    image.layers.iter().all(|layer| in_use.contains(layer))
}

fn would_free(
    store: &ImageStore,
    args: &PruneArgs,
    idle: &[Reference],
) -> Result<Exit, CommandError> {
    let usage = store
        .disk_usage()
        .map_err(|e| CommandError::new("cannot add up what images take").because(e))?;
    let is_idle = |names: &[Reference]| names.iter().all(|name| idle.contains(name));
    let images = usage.images.iter().filter(|image| is_idle(&image.names));
    let bytes = usage.unneeded.bytes + images.map(|image| image.unique_bytes).sum::<u64>();
    if args.output.is_json() {
        return super::print_json(&json!({"removed": idle, "freed": bytes, "dryRun": true}));
    }
    for reference in idle {
        println!("would remove {reference}");
    }
    println!("would free at least {}", super::size(bytes));
    Ok(Exit::Done)
}
