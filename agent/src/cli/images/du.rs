//! `podling images du`.

use clap::Args;
use podling_images::{DiskUsage, ImageStore, Usage};
use serde_json::{Value, json};

use super::super::table::Table;
use super::super::{CommandError, Exit};
use super::OutputArg;

/// Show what the images take on disk, and what could be freed
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podling images du
  podling images du -o json | jq .unneeded.size

SHARED is of layers that other images have, too; UNIQUE is what `podling images rm` of all names
of the image frees. Both count the files and the compressed layers. JSON has images (names,
digest, shared, unique), and layers, blobs, partial, replaced, unneeded and total, each with count
and size in bytes.

A partial download stays for a week, so that a pull can go on with it; only then it is unneeded. A
damaged layer that was replaced stays as long as a container has it: whether one does is known to
`podling images prune`, so that none is counted as unneeded.")]
pub struct DuArgs {
    #[command(flatten)]
    pub output: OutputArg,
}

pub(super) fn du(store: &ImageStore, args: &DuArgs) -> Result<Exit, CommandError> {
    let usage = store
        .disk_usage()
        .map_err(|e| CommandError::new("cannot add up what images take").because(e))?;
    match args.output.is_json() {
        true => super::print_json(&view(&usage)),
        false => super::print(&text(&usage)),
    }
}

fn total(usage: &DiskUsage) -> Usage {
    let parts = [usage.layers, usage.blobs, usage.partial, usage.replaced];
    Usage {
        count: parts.iter().map(|part| part.count).sum(),
        bytes: parts.iter().map(|part| part.bytes).sum(),
    }
}

fn view(usage: &DiskUsage) -> Value {
    let part = |usage: &Usage| json!({"count": usage.count, "size": usage.bytes});
    let images = usage.images.iter().map(|image| {
        json!({
            "names": image.names,
            "digest": image.digest,
            "shared": image.shared_bytes,
            "unique": image.unique_bytes,
        })
    });
    json!({
        "images": images.collect::<Vec<_>>(),
        "layers": part(&usage.layers),
        "blobs": part(&usage.blobs),
        "partial": part(&usage.partial),
        "replaced": part(&usage.replaced),
        "unneeded": part(&usage.unneeded),
        "total": part(&total(usage)),
    })
}

fn text(usage: &DiskUsage) -> String {
    let mut images = Table::with_head(["IMAGE", "SHARED", "UNIQUE"]);
    for image in &usage.images {
        let name = match image.names.as_slice() {
            [] => image.digest.to_string(),
            [only] => only.to_string(),
            [first, rest @ ..] => format!("{first} (+{})", rest.len()),
        };
        let (shared, unique) = (image.shared_bytes, image.unique_bytes);
        images.row([name, super::size(shared), super::size(unique)]);
    }
    let mut parts = Table::with_head(["", "COUNT", "SIZE", ""]);
    for (name, part, note) in [
        ("layers", usage.layers, "unpacked files"),
        (
            "blobs",
            usage.blobs,
            "manifests, configurations, compressed layers",
        ),
        (
            "partial",
            usage.partial,
            "downloads that a pull goes on with; unneeded after a week",
        ),
        (
            "replaced",
            usage.replaced,
            "damaged layers, which go when no container has them",
        ),
        ("total", total(usage), ""),
        (
            "unneeded",
            usage.unneeded,
            "of no image: `podling images prune` frees it",
        ),
    ] {
        let size = super::size(part.bytes);
        parts.row([name, &part.count.to_string(), &size, note]);
    }
    format!("{}\n{}", images.render(), parts.render())
}
