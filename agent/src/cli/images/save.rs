//! `podling images save`: a file is whole under its name, or not there.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use podling_images::{
    ArchiveFormat, FetchedBlobs, ImageStore, Platforms, PullError, PullOptions, Reference,
    SaveError, SavedImage,
};

use super::super::{CommandError, Exit, agent};
use super::progress;
use crate::node::{Config, registries};

/// Write images to a file, for other machines and tools
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podling images save nginx:1.27 -o nginx.tar
  podling images save app:v3 db:v3 | zstd > release.tar.zst         all in one, compressed
  podling images save app:v3 --format docker -o app.tar && docker load -i app.tar
  podling images save app:v3 db:v3 --format oci-dir -o /media/stick/images
                                             an OCI layout; what is there is not written again
  podling images save app:v3 --all-platforms -o app.tar      for nodes of every architecture

An OCI archive or layout has the same manifests, configurations and layers, byte for byte, so the
same digests: `podling images load`, skopeo, podman, containerd and Docker read it. A
docker-archive has uncompressed layers and no manifest: only the image ID stays the same. The same
images give the same archive.

Of an image for several platforms the one that is here is saved. With --all-platforms all are, with
the index itself, as `skopeo copy --all` does: what is not here is fetched from the image's
registry, and `podling images prune` frees it again. Loaded elsewhere, each node takes its own.

Compressed layers that are not here (because of `images.keepBlobs: false`, or because the same
files had come in another compression) are fetched from the image's registry.")]
pub struct SaveArgs {
    /// Their names
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// Write to this file, or directory for oci-dir [default: standard output]
    #[arg(short = 'o', long = "output", value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// What to write
    #[arg(long, value_enum, default_value_t = SaveFormat::Oci)]
    pub format: SaveFormat,
    /// Save the images of all platforms that the index names
    #[arg(long)]
    pub all_platforms: bool,
    /// Fetch nothing: save only what is here
    #[arg(long)]
    pub offline: bool,
    /// Print only errors
    #[arg(short, long)]
    pub quiet: bool,
}

/// What `save` can write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SaveFormat {
    /// An OCI archive: an OCI image layout in a tar
    #[value(alias = "oci-archive")]
    Oci,
    /// A docker-archive, as `docker save` of before version 25 makes it
    #[value(alias = "docker-archive")]
    Docker,
    /// An OCI image layout in a directory
    OciDir,
}

pub(super) fn save(
    store: &ImageStore,
    args: &SaveArgs,
    config: &Config,
) -> Result<Exit, CommandError> {
    let references = super::parse_all(&args.images)?;
    let output = args
        .output
        .as_deref()
        .filter(|path| *path != Path::new("-"));
    let format = match args.format {
        SaveFormat::Oci => Some(ArchiveFormat::Oci),
        SaveFormat::Docker => Some(ArchiveFormat::Docker),
        SaveFormat::OciDir => None,
    };
    let platforms = match args.all_platforms {
        true => Platforms::All,
        false => Platforms::One,
    };
    if (platforms, format) == (Platforms::All, Some(ArchiveFormat::Docker)) {
        return Err(
            CommandError::usage("a docker-archive cannot hold several platforms")
                .hint("leave out --format docker: Docker since version 25 loads OCI archives"),
        );
    }
    // Held until the archive is written.
    let _fetched = match args.offline {
        true => Vec::new(),
        false => complete(store, &references, args, config)?,
    };
    let chosen = Chosen {
        store,
        references: &references,
        platforms,
    };
    let saved = match (format, output) {
        (None, Some(dir)) => store
            .save_layout(&references, platforms, dir)
            .map_err(|e| explain(&references, e))?,
        (None, None) => {
            return Err(CommandError::usage("a layout is a directory")
                .hint("name it with -o, or write an archive with --format oci"));
        }
        (Some(format), Some(path)) => chosen.to_file(format, path)?,
        (Some(format), None) => chosen.to_stdout(format)?,
    };
    if !args.quiet {
        tell(&saved);
    }
    Ok(Exit::Done)
}

/// What is saved.
struct Chosen<'a> {
    store: &'a ImageStore,
    references: &'a [Reference],
    platforms: Platforms,
}

/// Fetches what is to be saved and not here.
fn complete(
    store: &ImageStore,
    references: &[Reference],
    args: &SaveArgs,
    config: &Config,
) -> Result<Vec<FetchedBlobs>, CommandError> {
    let missing = store
        .missing_blobs(references)
        .map_err(|e| CommandError::new("cannot look at the images").because(e))?;
    if missing.is_empty() && !args.all_platforms {
        return Ok(Vec::new());
    }
    let options = PullOptions {
        registries: registries::settings(config),
        ..PullOptions::default()
    };
    let tell = |text: &str| {
        if !args.quiet {
            eprintln!("{text}");
        }
    };
    let mut all = Vec::new();
    if !missing.is_empty() {
        let bytes = missing.iter().map(|blob| blob.size_bytes).sum();
        let (count, size) = (missing.len(), super::size(bytes));
        tell(&format!(
            "fetching {count} compressed layers that are not here, {size}"
        ));
        let what = "the compressed layers that are not here (see images.keepBlobs)";
        all.push(fetched(
            what,
            store.fetch_missing_blobs(references, &options),
        )?);
    }
    if args.all_platforms {
        tell("fetching the images for other platforms that are not here");
        let what = "the images for other platforms";
        let others = fetched(what, store.fetch_all_platforms(references, &options))?;
        let bytes = others.blobs.iter().map(|blob| blob.size_bytes).sum();
        let (count, size) = (others.blobs.len(), super::size(bytes));
        tell(&format!("fetched {count} blobs of them, {size}"));
        all.push(others);
    }
    Ok(all)
}

/// Waits for what is fetched, unless ctrl-C comes first.
fn fetched(
    what: &str,
    fetching: impl Future<Output = Result<FetchedBlobs, PullError>>,
) -> Result<FetchedBlobs, CommandError> {
    let fetched = agent::runtime()?.block_on(progress::unless_interrupted("save", fetching))?;
    fetched.map_err(|error| {
        let remedy = registries::remedy(&error);
        let failed = CommandError::new(format!("cannot fetch {what}")).because(error);
        match remedy {
            Some(remedy) => failed.hint(remedy),
            None => failed,
        }
    })
}

/// On standard error: standard output may be the archive.
fn tell(saved: &[SavedImage]) {
    for image in saved {
        for name in &image.names {
            eprintln!("saved {name} ({})", image.digest);
        }
    }
}

impl Chosen<'_> {
    fn write(
        &self,
        format: ArchiveFormat,
        output: impl Write,
    ) -> Result<Vec<SavedImage>, CommandError> {
        self.store
            .save(self.references, self.platforms, format, output)
            .map_err(|e| explain(self.references, e))
    }

    fn to_stdout(&self, format: ArchiveFormat) -> Result<Vec<SavedImage>, CommandError> {
        let stdout = std::io::stdout();
        if stdout.is_terminal() {
            return Err(CommandError::usage("an archive is nothing for a terminal")
                .hint("name a file with -o, or send it to another program: podling images save … | zstd > FILE"));
        }
        self.write(format, BufWriter::new(stdout.lock()))
    }

    /// Under another name beside it until it is whole and on disk. What is no file, such as a pipe, is written to.
    fn to_file(&self, format: ArchiveFormat, path: &Path) -> Result<Vec<SavedImage>, CommandError> {
        let failed = |e: std::io::Error| {
            CommandError::new(format!("cannot write {}", path.display())).because(e)
        };
        match path.metadata() {
            Ok(metadata) if metadata.is_dir() => {
                return Err(
                    CommandError::usage(format!("{} is a directory", path.display()))
                        .hint("name a file in it, or write a layout with --format oci-dir"),
                );
            }
            Ok(metadata) if !metadata.is_file() => {
                let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
                return self.write(format, BufWriter::new(file));
            }
            _ => {}
        }
        let mut partial = path.as_os_str().to_owned();
        partial.push(format!(".{}.partial", std::process::id()));
        let partial = PathBuf::from(partial);
        let file = File::create_new(&partial).map_err(failed)?;
        let saved = self
            .write(format, BufWriter::with_capacity(128 * 1024, &file))
            .and_then(|saved| {
                file.sync_all().map_err(failed)?;
                std::fs::rename(&partial, path).map_err(failed)?;
                Ok(saved)
            });
        if saved.is_err() {
            // It is of no use to anybody; the error that led here is the one to tell.
            drop(std::fs::remove_file(&partial));
        }
        saved
    }
}

fn explain(references: &[Reference], error: SaveError) -> CommandError {
    match error {
        SaveError::NotFound(reference) => super::missing(&reference),
        // The reader has gone, as with `| head`.
        SaveError::Archive(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {
            CommandError::new("the reader of the archive went away").because(e)
        }
        error @ SaveError::PlatformNotHere { .. } => CommandError::new("cannot save all platforms")
            .because(error)
            .hint("leave out --offline, or --all-platforms"),
        error => {
            let names: Vec<_> = references.iter().map(ToString::to_string).collect();
            CommandError::new(format!("cannot save {}", names.join(", "))).because(error)
        }
    }
}
