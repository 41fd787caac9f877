//! `podling images save`: a file is whole under its name, or not there.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, IsTerminal};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use podling_images::{
    ArchiveFormat, FetchedBlobs, ImageStore, PullOptions, Reference, SaveError, SavedImage,
};

use super::super::{CommandError, Exit, agent};
use super::progress;
use crate::node::registries;

/// Write images to a file, for other machines and tools
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podling images save nginx:1.27 -o nginx.tar
  podling images save app:v3 db:v3 | zstd > release.tar.zst         all in one, compressed
  podling images save app:v3 --format docker -o app.tar && docker load -i app.tar
  podling images save app:v3 db:v3 --format oci-dir -o /media/stick/images
                                             an OCI layout; what is there is not written again

An OCI archive or layout has the same manifests, configurations and layers, byte for byte, so the
same digests: `podling images load`, skopeo, podman, containerd and Docker read it. A
docker-archive has uncompressed layers and no manifest: only the image ID stays the same. The same
images give the same archive. Of an image for several platforms the one that is here is saved.

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
    config: Option<&Path>,
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
    // Held until the archive is written.
    let _fetched = match args.offline {
        true => None,
        false => complete(store, &references, args, config)?,
    };
    let saved = match (format, output) {
        (None, Some(dir)) => store
            .save_layout(&references, dir)
            .map_err(|e| explain(&references, e))?,
        (None, None) => {
            return Err(CommandError::usage("a layout is a directory")
                .hint("name it with -o, or write an archive with --format oci"));
        }
        (Some(format), Some(path)) => to_file(store, &references, format, path)?,
        (Some(format), None) => to_stdout(store, &references, format)?,
    };
    if !args.quiet {
        tell(&saved);
    }
    Ok(Exit::Done)
}

/// Fetches the compressed layers that are not here.
fn complete(
    store: &ImageStore,
    references: &[Reference],
    args: &SaveArgs,
    config: Option<&Path>,
) -> Result<Option<FetchedBlobs>, CommandError> {
    let missing = store
        .missing_blobs(references)
        .map_err(|e| CommandError::new("cannot look at the images").because(e))?;
    if missing.is_empty() {
        return Ok(None);
    }
    if !args.quiet {
        let bytes = missing.iter().map(|blob| blob.size_bytes).sum();
        eprintln!(
            "fetching {} compressed layers that are not here, {}",
            missing.len(),
            super::size(bytes)
        );
    }
    let config = agent::load(config)?;
    let options = PullOptions {
        registries: registries::settings(&config),
        ..PullOptions::default()
    };
    let fetched = agent::runtime()?.block_on(progress::unless_interrupted(
        store.fetch_missing_blobs(references, &options),
    ))?;
    let Some(fetched) = fetched else {
        return Err(CommandError::new("the save was interrupted").code(progress::INTERRUPTED));
    };
    fetched.map(Some).map_err(|error| {
        let remedy = registries::remedy(&error);
        let failed = "cannot fetch the compressed layers that are not here (see images.keepBlobs)";
        let failed = CommandError::new(failed).because(error);
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

fn to_stdout(
    store: &ImageStore,
    references: &[Reference],
    format: ArchiveFormat,
) -> Result<Vec<SavedImage>, CommandError> {
    let stdout = std::io::stdout();
    if stdout.is_terminal() {
        return Err(CommandError::usage("an archive is nothing for a terminal")
            .hint("name a file with -o, or send it to another program: podling images save … | zstd > FILE"));
    }
    store
        .save(references, format, BufWriter::new(stdout.lock()))
        .map_err(|e| explain(references, e))
}

/// Under another name beside it until it is whole and on disk. What is no file, such as a pipe, is written to.
fn to_file(
    store: &ImageStore,
    references: &[Reference],
    format: ArchiveFormat,
    path: &Path,
) -> Result<Vec<SavedImage>, CommandError> {
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
            return store
                .save(references, format, BufWriter::new(file))
                .map_err(|e| explain(references, e));
        }
        _ => {}
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    let partial = PathBuf::from(partial);
    let file = File::create_new(&partial).map_err(failed)?;
    let saved = store
        .save(
            references,
            format,
            BufWriter::with_capacity(128 * 1024, &file),
        )
        .map_err(|e| explain(references, e))
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

fn explain(references: &[Reference], error: SaveError) -> CommandError {
    match error {
        SaveError::NotFound(reference) => super::missing(&reference),
        // The reader has gone, as with `| head`.
        SaveError::Archive(e) if e.kind() == std::io::ErrorKind::BrokenPipe => {
            CommandError::new("the reader of the archive went away").because(e)
        }
        error => {
            let names: Vec<_> = references.iter().map(ToString::to_string).collect();
            CommandError::new(format!("cannot save {}", names.join(", "))).because(error)
        }
    }
}
