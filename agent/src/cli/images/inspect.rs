//! `podling images inspect`.

use std::io::Write;

use clap::Args;
use podling_images::{Image, ImageStore, StoreError};
use serde::Serialize;

use super::super::error::written;
use super::super::{CommandError, Exit};
use super::view::ImageView;

/// Print what is known of an image, as JSON
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podling images inspect nginx:1.27
  podling images inspect nginx:1.27 | jq -r .config.config.Cmd
  podling images inspect nginx:1.27 | jq -r '.directories[]'      where its layers are
  podling images inspect nginx:1.27 --manifest | sha256sum             the digest of the image

The keys are those of `podling images list -o json`, and: config, the image's configuration;
directories, its unpacked layers, the lowest first, as overlayfs stacks them.")]
pub struct InspectArgs {
    /// Its name
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Print the manifest instead, byte for byte as it came
    #[arg(long, group = "raw")]
    pub manifest: bool,
    /// Print the configuration instead, byte for byte as it came
    #[arg(long, group = "raw")]
    pub image_config: bool,
}

/// All that is known.
#[derive(Debug, Serialize)]
struct InspectView<'a> {
    #[serde(flatten)]
    image: ImageView,
    directories: Vec<String>,
    config: &'a podling_images::ImageConfiguration,
}

pub(super) fn inspect(store: &ImageStore, args: &InspectArgs) -> Result<Exit, CommandError> {
    let reference = super::parse(&args.image)?;
    let image = super::find(store, &reference)?;
    let failed =
        |e: StoreError| CommandError::new(format!("cannot inspect {reference}")).because(e);
    if args.manifest || args.image_config {
        let digest = match args.manifest {
            true => &image.digest,
            false => &image.config_digest,
        };
        let content = store.read_blob(digest).map_err(failed)?;
        return written(std::io::stdout().lock().write_all(&content));
    }
    super::print_json(&view(store, &image).map_err(failed)?)
}

fn view<'a>(store: &ImageStore, image: &'a Image) -> Result<InspectView<'a>, StoreError> {
    let directories = image.layers.iter().map(|dir| dir.display().to_string());
    Ok(InspectView {
        directories: directories.collect(),
        config: &image.config,
        image: ImageView::new(store, image)?,
    })
}
