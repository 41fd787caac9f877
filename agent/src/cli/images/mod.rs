//! `podling images`: works on the image store itself, with or without a running agent.

mod pull;
mod trust;

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use jiff::Timestamp;
use podling_images::{Image, ImageStore, LoadOptions, Reference};
use serde_json::{Value, json};

use super::error::written;
use super::table::Table;
use super::{CommandError, Directories, Exit, age, get, offline};

/// Work with the node's images
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  podling images pull docker.io/library/nginx:1.27
  podling images load app.tar               an OCI archive, a docker-archive or an OCI layout directory
  podling images list
  podling images verify                     check that all images are whole

The store belongs to --data-dir; these commands work with and without a running agent."
)]
pub struct ImagesArgs {
    /// What to do with them.
    #[command(subcommand)]
    pub command: ImagesCommand,
}

/// What `podling images` can do.
#[derive(Debug, Subcommand)]
pub enum ImagesCommand {
    /// List the images that the node has
    #[command(
        visible_alias = "ls",
        after_help = "\
Examples:
  podling images list
  podling images list --json | jq -r '.[] | .digest + \" \" + .references[0]'"
    )]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    Pull(pull::PullArgs),
    /// Add images from files: OCI layouts, OCI archives, docker-archives
    #[command(after_help = "\
Examples:
  docker save app:v3 | gzip > app.tar.gz && podling images load app.tar.gz
  skopeo copy docker://registry.example/app:v3 oci-archive:app.tar:app:v3 && podling images load app.tar
  podling images load --name localhost/app:dev ./layout      an OCI layout directory, named here
  podling images load --require-signature --key cosign.pub /media/usb/app.tar      only if its signature is right

Each layer is compared with its digest before it is used. Signatures are looked for in the layout (`cosign save`, or the
tag sha256-….sig) and beside PATH (PATH.sig and PATH.payload); an image without the one that is asked for is not unpacked.")]
    Load {
        /// A directory or a tar file, perhaps compressed
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<PathBuf>,
        /// Name the image this, instead of as the file says
        #[arg(long, value_name = "IMAGE")]
        name: Option<String>,
        #[command(flatten)]
        signatures: trust::SignatureArgs,
    },
    /// Print what is known of an image, as JSON
    #[command(after_help = "\
Examples:
  podling images inspect nginx:1.27
  podling images inspect nginx:1.27 | jq -r .config.config.Cmd")]
    Inspect {
        /// Its name
        #[arg(value_name = "IMAGE")]
        image: String,
    },
    /// Remove images; what no other image and no pod uses is freed
    #[command(
        visible_alias = "remove",
        after_help = "\
Examples:
  podling images rm nginx:1.27
  podling images list --json | jq -r '.[].references[]' | xargs podling images rm      all of them

Running pods keep the layers that they use; a pod whose container is made anew pulls its image again."
    )]
    Rm {
        /// Their names
        #[arg(value_name = "IMAGE", required = true)]
        images: Vec<String>,
    },
    /// Check that all images are whole: blobs against their digests, layers against their sizes
    #[command(after_help = "\
Example, after a power cut:
  podling images verify || echo 'pull or load what it names again'

Exit status: 0 all are whole, 1 some are not.")]
    Verify,
}

pub(super) fn run(args: ImagesArgs, directories: &Directories) -> Result<Exit, CommandError> {
    let dir = directories.data.join("images");
    // The true path: layers are compared with those that pods use.
    let dir = dir.canonicalize().unwrap_or(dir);
    let store = ImageStore::open(&dir).map_err(|e| {
        let denied = rustix::process::geteuid().as_raw() != 0;
        let error = CommandError::new(format!("cannot open the image store {}", dir.display()));
        let error = error.because(e);
        if denied {
            error.hint("be root, or choose a --data-dir of your own")
        } else {
            error
        }
    })?;
    match args.command {
        ImagesCommand::List { json } => list(&store, json),
        ImagesCommand::Pull(args) => pull::pull(&store, &args),
        ImagesCommand::Load {
            paths,
            name,
            signatures,
        } => load(&store, &paths, name.as_deref(), &signatures),
        ImagesCommand::Inspect { image } => inspect(&store, &image),
        ImagesCommand::Rm { images } => remove(&store, &images, directories),
        ImagesCommand::Verify => verify(&store),
    }
}

fn list(store: &ImageStore, as_json: bool) -> Result<Exit, CommandError> {
    let images = store
        .list()
        .map_err(|e| CommandError::new("cannot list images").because(e))?;
    let text = if as_json {
        get::json(&images.iter().map(view).collect::<Vec<_>>())?
    } else if images.is_empty() {
        eprintln!("No images; `podling images pull` and `podling images load` bring some.");
        return Ok(Exit::Done);
    } else {
        table(&images, Timestamp::now())
    };
    written(std::io::stdout().lock().write_all(text.as_bytes()))
}

fn table(images: &[Image], now: Timestamp) -> String {
    let mut table = Table::with_head(["IMAGE", "DIGEST", "CREATED", "SIZE"]);
    for image in images {
        let digest: String = image.digest.hex().chars().take(12).collect();
        let created = match image.created {
            // Reproducible builds say 1970, which tells nothing.
            Some(t) if t.as_second() > 0 => format!("{} ago", age::since(Some(t), now)),
            _ => "-".to_owned(),
        };
        for reference in &image.references {
            table.row([
                reference.to_string(),
                digest.clone(),
                created.clone(),
                size(image.size_bytes),
            ]);
        }
    }
    table.render()
}

/// As people write it: `12.3 MiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = u128::from(bytes) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// An image as JSON.
fn view(image: &Image) -> Value {
    json!({
        "references": image.references.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "digest": image.digest.to_string(),
        "configDigest": image.config_digest.to_string(),
        "sizeBytes": image.size_bytes,
        "created": image.created.map(|t| t.to_string()),
        "layers": image.layers,
        "trust": trust::view(image.trust.as_ref()),
        "config": image.config,
    })
}

pub(super) fn parse(name: &str) -> Result<Reference, CommandError> {
    Reference::parse(name)
        .map_err(|e| CommandError::usage(format!("`{name}` does not name an image")).because(e))
}

fn load(
    store: &ImageStore,
    paths: &[PathBuf],
    name: Option<&str>,
    signatures: &trust::SignatureArgs,
) -> Result<Exit, CommandError> {
    let options = LoadOptions {
        reference: name.map(parse).transpose()?,
        ..signatures.options()?
    };
    for path in paths {
        let images = store.load(path, &options).map_err(|e| {
            let remedy = trust::remedy(&e);
            let failed = CommandError::new(format!("cannot load {}", path.display())).because(e);
            match remedy {
                Some(remedy) => failed.hint(remedy),
                None => failed,
            }
        })?;
        for image in images {
            for reference in &image.references {
                println!("loaded {reference} ({})", size(image.size_bytes));
            }
        }
    }
    Ok(Exit::Done)
}

fn inspect(store: &ImageStore, name: &str) -> Result<Exit, CommandError> {
    let reference = parse(name)?;
    let image = store
        .resolve(&reference)
        .map_err(|e| CommandError::new(format!("cannot inspect {reference}")).because(e))?
        .ok_or_else(|| missing(&reference))?;
    let text = get::json(&view(&image))?;
    written(std::io::stdout().lock().write_all(text.as_bytes()))
}

fn missing(reference: &Reference) -> CommandError {
    CommandError::new(format!("there is no image {reference} here")).hint(format!(
        "`podling images list` shows what is; `podling images pull {}` fetches it",
        reference.familiar()
    ))
}

fn remove(
    store: &ImageStore,
    names: &[String],
    directories: &Directories,
) -> Result<Exit, CommandError> {
    let references = names.iter().map(|name| parse(name));
    let references = references.collect::<Result<Vec<_>, _>>()?;
    let mut exit = Exit::Done;
    for reference in &references {
        let removed = store
            .remove(reference)
            .map_err(|e| CommandError::new(format!("cannot remove {reference}")).because(e))?;
        if removed.references.is_empty() {
            // The others are removed all the same.
            missing(reference).report();
            exit = Exit::Negative;
        }
        for reference in removed.references {
            println!("removed {reference}");
        }
    }
    let freed = store
        .gc(&offline::layers_in_use(directories))
        .map_err(|e| CommandError::new("cannot free the space of removed images").because(e))?;
    println!(
        "freed {} in {} layers",
        size(freed.freed_bytes),
        freed.layers
    );
    Ok(exit)
}

fn verify(store: &ImageStore) -> Result<Exit, CommandError> {
    let problems = store
        .verify()
        .map_err(|e| CommandError::new("cannot verify images").because(e))?;
    if problems.is_empty() {
        println!("all images are whole");
        return Ok(Exit::Done);
    }
    for problem in &problems {
        println!("{}: {}", problem.path.display(), problem.what);
        for reference in &problem.images {
            println!("    needed by {reference}: load or pull it again");
        }
    }
    Ok(Exit::Negative)
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1536, "1.5 KiB"),
            (10 << 20, "10.0 MiB"),
            (u64::MAX, "16777215.9 TiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text);
        }
    }
}
