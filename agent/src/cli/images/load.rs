//! `podling images load`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use clap::Args;
use podling_images::{BundleError, Image, ImageStore, LoadError, LoadOptions, Platform};

use super::super::{CommandError, Exit};
use super::view::ImageView;
use super::{Output, OutputArg, trust};
use crate::node::Config;

/// Add images from files: OCI layouts, OCI archives, docker-archives
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  docker save app:v3 | podling images load -
  skopeo copy docker://r.example/app:v3 oci-archive:app.tar:app:v3 && podling images load app.tar
  podling images load --name localhost/app:dev ./layout      an OCI layout directory, named here
  podling images load /media/stick/*.tar.zst                 all from a stick, compressed or not
  podling images load --require-signature --key cosign.pub /media/stick/app.tar
  podling images load --require-signature --key cosign.pub --accept-unnamed app.tar    of cosign 3

The format is told by the content. Each blob and layer is compared with its digest before it is
used, and no image of a file is there before all of them are whole. What is here already is not
unpacked again.

Signatures are looked for in the layout (`cosign save`, `podling images save`, `oras copy -r`, or
the tag sha256-….sig) and beside PATH (PATH.sigstore.json, or PATH.sig and PATH.payload). An image
without the one that is asked for is not unpacked.")]
pub struct LoadArgs {
    /// A directory or a tar file, perhaps compressed; - reads from standard input
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
    /// Name the image this, instead of as the file says
    #[arg(long, value_name = "IMAGE")]
    pub name: Option<String>,
    /// Take images of another platform than this machine's, such as linux/arm64
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Print only errors
    #[arg(short, long)]
    pub quiet: bool,
    #[command(flatten)]
    pub signatures: trust::SignatureArgs,
    #[command(flatten)]
    pub output: OutputArg,
}

pub(super) fn load(
    store: &ImageStore,
    args: &LoadArgs,
    config: &Config,
) -> Result<Exit, CommandError> {
    if args.name.is_some() && args.paths.len() > 1 {
        return Err(
            CommandError::usage("--name names one image, and several files were given")
                .hint("load them one by one"),
        );
    }
    let options = LoadOptions {
        reference: args.name.as_deref().map(super::parse).transpose()?,
        platform: args.platform.as_deref().map(parse_platform).transpose()?,
        ..args.signatures.options(config)?
    };
    let mut all = Vec::new();
    for path in &args.paths {
        // What cannot be read is told by those who need it.
        let before = store.list().unwrap_or_default();
        let images = load_one(store, path, &options).map_err(|e| explain(path, &e).because(e))?;
        if !args.quiet {
            tell_platforms(&before, &images);
        }
        if !args.quiet && args.output.output == Output::Table {
            tell(&images);
        }
        all.extend(images);
    }
    match args.output.output {
        Output::Table => Ok(Exit::Done),
        Output::Json => {
            let views = ImageView::all(store, &all);
            super::print_json(
                &views.map_err(|e| CommandError::new("cannot look at the images").because(e))?,
            )
        }
    }
}

fn load_one(
    store: &ImageStore,
    path: &Path,
    options: &LoadOptions,
) -> Result<Vec<Image>, LoadError> {
    match path == Path::new("-") {
        true => store.load_stream(std::io::stdin().lock(), options),
        false => store.load(path, options),
    }
}

fn explain(path: &Path, error: &LoadError) -> CommandError {
    let failed = match path == Path::new("-") {
        true => CommandError::new("cannot load what comes from standard input"),
        false => CommandError::new(format!("cannot load {}", path.display())),
    };
    match error {
        LoadError::Mismatch { .. } | LoadError::Size { .. } => {
            failed.hint("it was damaged on its way here, or is not from whom you think: copy it again")
        }
        LoadError::UnknownFormat { .. } => failed.hint(
            "make one with `podling images save`, `docker save`, `podman save`, or `skopeo copy … oci-archive:FILE`",
        ),
        LoadError::Bundle(BundleError::Io { source, .. }) if source.kind() == ErrorKind::Unsupported => {
            failed.hint("decompress it on the way: `xz -dc FILE | podling images load -`")
        }
        LoadError::Layer { source, .. } => match super::unpack_hint(source) {
            Some(hint) => failed.hint(hint),
            None => failed,
        },
        error => match trust::remedy(error) {
            Some(remedy) => failed.hint(remedy),
            None => failed,
        },
    }
}

fn tell_platforms(before: &[Image], loaded: &[Image]) {
    for now in loaded {
        for reference in &now.references {
            let old = before.iter().find(|old| old.references.contains(reference));
            if let Some(note) = old.and_then(|old| super::platform_note(reference, old, now)) {
                eprintln!("{note}");
            }
        }
    }
}

fn tell(images: &[Image]) {
    for image in images {
        for reference in &image.references {
            println!("loaded {reference} ({})", super::size(image.size_bytes));
        }
    }
}

pub(super) fn parse_platform(text: &str) -> Result<Platform, CommandError> {
    text.parse().map_err(|_| {
        CommandError::usage(format!(
            "`{text}` is not OS/ARCH, such as linux/arm64 or linux/arm/v7"
        ))
    })
}
