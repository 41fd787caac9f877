//! `podling images`: works on the image store itself, with or without a running agent.
//!
//! ```text
//! ImagesArgs ─► ImageStore (its own locks: a running agent is no hindrance) ─► one module per command
//!                                                             view.rs: an image as JSON, one schema for all
//! ```
//! Answers go to standard output, progress and what went wrong to standard error, so that `-o json` is always
//! JSON alone.

mod diff;
mod du;
mod history;
mod inspect;
mod list;
mod load;
mod progress;
mod pull;
mod push;
mod remove;
mod save;
mod tag;
mod trust;
mod verify;
mod view;

use std::error::Error;
use std::io::Write;

use clap::{Args, Subcommand, ValueEnum};
use podling_images::{Image, ImageStore, Reference, UnpackError};
use serde::Serialize;

use super::dirs::DirectoryArgs;
use super::error::written;
use super::{CommandError, Directories, Exit, get};

/// Work with the node's images
#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "\
Examples:
  podling images pull docker.io/library/nginx:1.27
  podling images load app.tar               an OCI archive or layout, or a docker-archive
  podling images save nginx:1.27 -o nginx.tar      for another machine, with the same digests
  podling images list
  podling images verify                     check that all images are whole
  podling images du                         what takes the space, and what prune would free

The store belongs to --data-dir; these commands work with and without a running agent. It is an
OCI image layout that other tools read in place: skopeo inspect
oci:/var/lib/podling/images:docker.io/library/nginx:1.27

Exit status: 0 done, 1 failed or the answer is no, 2 the command line was wrong, 130 interrupted, 143
terminated."
)]
pub struct ImagesArgs {
    /// What to do with them.
    #[command(subcommand)]
    pub command: ImagesCommand,
}

/// What `podling images` can do.
#[derive(Debug, Subcommand)]
pub enum ImagesCommand {
    List(list::ListArgs),
    Pull(pull::PullArgs),
    Push(push::PushArgs),
    Load(load::LoadArgs),
    Save(save::SaveArgs),
    Tag(tag::TagArgs),
    Inspect(inspect::InspectArgs),
    History(history::HistoryArgs),
    Diff(diff::DiffArgs),
    Du(du::DuArgs),
    Verify(verify::VerifyArgs),
    Rm(remove::RmArgs),
    Prune(remove::PruneArgs),
}

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    #[value(alias = "text")]
    Table,
    /// For scripts
    Json,
}

/// The option of commands that answer in text or JSON.
#[derive(Debug, Args)]
pub struct OutputArg {
    /// How to print the answer
    #[arg(short, long, value_enum, default_value_t = Output::Table, hide_default_value = true)]
    pub output: Output,
}

impl OutputArg {
    fn is_json(&self) -> bool {
        self.output == Output::Json
    }
}

pub(super) fn run(args: ImagesArgs, options: &DirectoryArgs) -> Result<Exit, CommandError> {
    let config = &options.configuration()?;
    let directories = &options.locate(config);
    let store = open(directories, &args.command)?;
    let keeping = |store: ImageStore| store.with_kept_blobs(config.images.keep_blobs);
    match args.command {
        ImagesCommand::List(args) => list::list(&store, &args),
        ImagesCommand::Pull(args) => pull::pull(&keeping(store), &args, config),
        ImagesCommand::Push(args) => push::push(&store, &args, config),
        ImagesCommand::Load(args) => load::load(&keeping(store), &args, config),
        ImagesCommand::Save(args) => save::save(&store, &args, config),
        ImagesCommand::Tag(args) => tag::tag(&store, &args),
        ImagesCommand::Inspect(args) => inspect::inspect(&store, &args),
        ImagesCommand::History(args) => history::history(&store, &args),
        ImagesCommand::Diff(args) => diff::diff(&store, &args),
        ImagesCommand::Du(args) => du::du(&keeping(store), &args),
        ImagesCommand::Verify(args) => verify::verify(&store, &args, config),
        ImagesCommand::Rm(args) => remove::remove(&keeping(store), &args, directories),
        ImagesCommand::Prune(args) => remove::prune(&keeping(store), &args, directories, config),
    }
}

impl ImagesCommand {
    /// True for a command that leaves the store as it is.
    fn only_looks(&self) -> bool {
        match self {
            Self::List(_) | Self::Inspect(_) | Self::History(_) | Self::Diff(_) | Self::Du(_) => {
                true
            }
            Self::Verify(args) => args.check,
            Self::Pull(_)
            | Self::Save(_)
            | Self::Push(_)
            | Self::Load(_)
            | Self::Tag(_)
            | Self::Rm(_)
            | Self::Prune(_) => false,
        }
    }
}

/// On a disk that cannot be written to, a command gets as far as it does not write.
fn open(directories: &Directories, command: &ImagesCommand) -> Result<ImageStore, CommandError> {
    let dir = directories.data.join("images");
    // The true path: layers are compared with those that pods use.
    let dir = dir.canonicalize().unwrap_or(dir);
    if matches!(command, ImagesCommand::Verify(_)) && !dir.exists() {
        let text = format!("there is no image store in {}", dir.display());
        return Err(CommandError::new(text).hint("say where it is: --data-dir, or --config"));
    }
    let opened = match command.only_looks() {
        true => ImageStore::open_to_read(&dir),
        false => match ImageStore::open(&dir) {
            Err(e) if e.is_read_only() => ImageStore::open_to_read(&dir),
            opened => opened,
        },
    };
    opened.map_err(|e| {
        let error = CommandError::new(format!("cannot open the image store {}", dir.display()));
        let error = error.because(e);
        match rustix::process::geteuid().as_raw() {
            0 => error,
            _ => error.hint("be root, or choose a --data-dir of your own"),
        }
    })
}

/// What helps an ordinary user who may not unpack layers: their files belong to many users.
fn unpack_hint(error: &UnpackError) -> Option<&'static str> {
    if rustix::process::geteuid().is_root() {
        return None;
    }
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied) {
            return Some(
                "be root, or take a user namespace with the ids that subuid(5) gives you, as `podman unshare` does: \
                 unshare --map-root-user --map-auto podling images …",
            );
        }
        cause = error.source();
    }
    None
}

fn parse(name: &str) -> Result<Reference, CommandError> {
    Reference::parse(name)
        .map_err(|e| CommandError::usage(format!("`{name}` does not name an image")).because(e))
}

fn parse_all(names: &[String]) -> Result<Vec<Reference>, CommandError> {
    names.iter().map(|name| parse(name)).collect()
}

/// A name means one platform. Says so when it was another one until now, and nothing else names that image.
fn platform_note(reference: &Reference, before: &Image, now: &Image) -> Option<String> {
    let (old, new) = (before.platform(), now.platform());
    (old != new && before.references.len() == 1).then(|| {
        format!(
            "{reference} was the image for {old} and is now that for {new}; to keep both, give each a name with \
             `podling images tag`"
        )
    })
}

/// The image of this name, or what to do when there is none.
fn find(store: &ImageStore, reference: &Reference) -> Result<Image, CommandError> {
    store
        .resolve(reference)
        .map_err(|e| CommandError::new(format!("cannot look up {reference}")).because(e))?
        .ok_or_else(|| missing(reference))
}

fn missing(reference: &Reference) -> CommandError {
    CommandError::new(format!("there is no image {reference} here")).hint(format!(
        "`podling images list` shows what is; `podling images pull {}` fetches it",
        reference.familiar()
    ))
}

/// All images.
fn all(store: &ImageStore) -> Result<Vec<Image>, CommandError> {
    store
        .list()
        .map_err(|e| CommandError::new("cannot list images").because(e))
}

fn print(text: &str) -> Result<Exit, CommandError> {
    written(std::io::stdout().lock().write_all(text.as_bytes()))
}

fn print_json(value: &impl Serialize) -> Result<Exit, CommandError> {
    print(&get::json(value)?)
}

/// As people write it: `12.3 MiB`.
fn size(bytes: u64) -> String {
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
