//! `podling images list`.

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use podling_images::{Image, ImageStore};

use super::super::table::Table;
use super::super::{CommandError, Exit, age};
use super::view::{self, ImageView};

/// List the images that the node has
#[derive(Debug, Args)]
#[command(
    visible_alias = "ls",
    after_help = "\
Examples:
  podling images list
  podling images list -o wide                             with whole digests and layers
  podling images list -o name | xargs podling images rm   all of them
  podling images list -o json | jq -r '.[] | .digest + \" \" + .names[0]'

JSON is an array with, for each image: names, digest, index, configDigest, platform, created,
size (of its files, in bytes), downloadSize, layers, the lowest first, with diffId, digest,
mediaType, size, downloadSize and kept, and trust: where it came from and why it was allowed under
the first of its names; `podling images inspect` tells it of each."
)]
pub struct ListArgs {
    /// How to print them
    #[arg(short, long, value_enum, default_value_t = ListOutput::Table, hide_default_value = true)]
    pub output: ListOutput,
    /// The same as -o json
    #[arg(long, conflicts_with = "output")]
    pub json: bool,
}

/// How `list` prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ListOutput {
    /// Columns
    Table,
    /// Columns, with whole digests, layers and what a pull fetches
    Wide,
    /// An array of objects
    Json,
    /// A name a line
    Name,
}

pub(super) fn list(store: &ImageStore, args: &ListArgs) -> Result<Exit, CommandError> {
    let images = super::all(store)?;
    let output = match args.json {
        true => ListOutput::Json,
        false => args.output,
    };
    match output {
        ListOutput::Json => {
            let views = ImageView::all(store, &images);
            super::print_json(
                &views.map_err(|e| CommandError::new("cannot list images").because(e))?,
            )
        }
        ListOutput::Name => {
            let names = images.iter().flat_map(|image| &image.references);
            super::print(&names.map(|name| format!("{name}\n")).collect::<String>())
        }
        ListOutput::Table | ListOutput::Wide if images.is_empty() => {
            eprintln!("No images; `podling images pull` and `podling images load` bring some.");
            Ok(Exit::Done)
        }
        ListOutput::Table => super::print(&table(&images, Timestamp::now())),
        ListOutput::Wide => super::print(&wide(&images, Timestamp::now())),
    }
}

fn table(images: &[Image], now: Timestamp) -> String {
    let mut table = Table::with_head(["IMAGE", "DIGEST", "PLATFORM", "CREATED", "SIZE"]);
    for image in images {
        let digest: String = image.digest.hex().chars().take(12).collect();
        for reference in &image.references {
            table.row([
                reference.to_string(),
                digest.clone(),
                image.platform().to_string(),
                created(image.created, now),
                super::size(image.size_bytes),
            ]);
        }
    }
    table.render()
}

fn wide(images: &[Image], now: Timestamp) -> String {
    let head = [
        "IMAGE", "DIGEST", "PLATFORM", "CREATED", "LAYERS", "DOWNLOAD", "SIZE",
    ];
    let mut table = Table::with_head(head);
    for image in images {
        for reference in &image.references {
            table.row([
                reference.to_string(),
                image.digest.to_string(),
                image.platform().to_string(),
                created(image.created, now),
                image.parts.len().to_string(),
                super::size(view::download_bytes(image)),
                super::size(image.size_bytes),
            ]);
        }
    }
    table.render()
}

/// How long ago; reproducible builds say 1970, which tells nothing.
pub(super) fn created(created: Option<Timestamp>, now: Timestamp) -> String {
    match created {
        Some(t) if t.as_second() > 0 => format!("{} ago", age::since(Some(t), now)),
        _ => "-".to_owned(),
    }
}
