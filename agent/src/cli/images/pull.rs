//! `podling images pull`: with a bar for each layer on a terminal, else a line for each layer.
//!
//! Several images come at once. One that fails does not stop the others; all that failed are told at the end.
//! ctrl-C and SIGTERM end the pull: no image is made, and what has come of the layers stays, so that the next pull
//! goes on from there.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use futures_util::{StreamExt, stream};
use podling_images::{
    Image, ImageStore, LayerSummary, Progress, PullError, PullOptions, Reference,
};

use super::super::{CommandError, Exit, agent};
use super::load::parse_platform;
use super::progress::{self, Shown, Step};
use super::view::ImageView;
use crate::node::{Config, registries};

/// Each fetches several layers at once; more images would only share the same line.
const PARALLEL_IMAGES: usize = 3;

/// Download images from their registries
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podling images pull nginx:1.27
  podling images pull registry.example/team/app:v3 registry.example/team/db:v3     both at once
  podling images pull --platform linux/arm64 nginx:1.27
  podling images pull --auth-file /root/auth.json registry.example/private/app
  podling images pull --json nginx:1.27 | jq -r '.[].digest'
  podling images pull --signatures registry.example/team/app:v3      to push or save it with them

How registries are spoken to is in the configuration file, for this command as for the agent:
  registries:
  - {host: 'localhost:5000', plainHttp: true}                  one without TLS
  - {host: registry.example, caFile: /etc/podling/ca.pem}      one with an authority of your own
  - {host: docker.io, mirrors: [mirror.example]}               a mirror, asked first

A name means the image for one platform, the one that was pulled last: give the first another name
with `podling images tag` before a second is pulled.

Credentials are those that `docker login` or `podman login` wrote. Layers that are here are not
fetched again, and a download that broke goes on where it stopped.

Exit status: 0 all are here, 1 some are not, 130 interrupted, 143 terminated.")]
pub struct PullArgs {
    /// Such as nginx, nginx:1.27, registry.example/app@sha256:…
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// Another platform than this machine's, such as linux/arm64 or linux/arm/v7
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// Bring all signatures that lie beside the images, whatever the signature policy asks for
    #[arg(long)]
    pub signatures: bool,
    /// A Docker configuration file with credentials [default: ~/.docker/config.json]
    #[arg(long, value_name = "FILE")]
    pub auth_file: Option<PathBuf>,
    /// Print only errors
    #[arg(short, long)]
    pub quiet: bool,
    /// Print what was pulled as a JSON array, with the keys of `podling images list -o json`
    #[arg(long)]
    pub json: bool,
}

/// Fetches images, a few at once; the layers of each come in parallel.
pub(super) fn pull(
    store: &ImageStore,
    args: &PullArgs,
    config: &Config,
) -> Result<Exit, CommandError> {
    let mut references = super::parse_all(&args.images)?;
    let mut seen = HashSet::new();
    references.retain(|reference| seen.insert(reference.clone()));
    let options = options(args, config)?;
    let shown = Shown::new(args.quiet);
    let pulled = agent::runtime()?.block_on(async {
        let pulled = pull_all(store, &references, &options, &shown, args);
        let pulled = progress::unless_interrupted("pull", pulled).await;
        pulled.map_err(|e| e.hint("what has come stays here: pulled again, it goes on from there"))
    });
    shown.end();
    let (images, errors) = progress::tell_apart(pulled?);
    if args.json {
        let views = ImageView::all(store, &images);
        super::print_json(
            &views.map_err(|e| CommandError::new("cannot look at the images").because(e))?,
        )?;
    }
    progress::last_of(errors)
}

/// In the order of the names, whichever comes first.
async fn pull_all(
    store: &ImageStore,
    references: &[Reference],
    options: &PullOptions,
    shown: &Shown,
    args: &PullArgs,
) -> Vec<Result<Image, CommandError>> {
    let pulls = references.iter().map(|reference| async move {
        let (listener, name) = (shown.listener(), reference.to_string());
        let options = PullOptions {
            progress: Some(Arc::new(move |progress| {
                listener.show(step(&name, progress))
            })),
            ..options.clone()
        };
        let pulled = pull_one(store, reference, &options, shown).await;
        if let Ok(image) = &pulled
            && !args.quiet
            && !args.json
        {
            let size = super::size(image.size_bytes);
            let signatures = match args.signatures {
                true => format!(", signatures: {}", super::trust::count(image)),
                false => String::new(),
            };
            shown.above(|| println!("pulled {reference} ({size}, {}{signatures})", image.digest));
        }
        pulled
    });
    // A plain list: the compiler cannot see that a closure's futures live long enough.
    let pulls: Vec<_> = pulls.collect();
    stream::iter(pulls)
        .buffered(PARALLEL_IMAGES)
        .collect()
        .await
}

fn options(args: &PullArgs, config: &Config) -> Result<PullOptions, CommandError> {
    let platform = args.platform.as_deref().map(parse_platform).transpose()?;
    if let Some(file) = &args.auth_file
        && let Err(error) = std::fs::metadata(file)
    {
        let text = format!("cannot read the credentials in {}", file.display());
        return Err(CommandError::new(text).because(error));
    }
    Ok(PullOptions {
        policy: super::trust::policy(config)?,
        signatures: args.signatures,
        docker_config: args.auth_file.clone(),
        registries: registries::settings(config),
        platform: platform.or(config.platform()),
        ..PullOptions::default()
    })
}

async fn pull_one(
    store: &ImageStore,
    reference: &Reference,
    options: &PullOptions,
    shown: &Shown,
) -> Result<Image, CommandError> {
    // What cannot be read is pulled again.
    let before = store.resolve(reference).ok().flatten();
    let pulled = store.pull(reference, options).await;
    if let (Some(before), Ok(pulled)) = (&before, &pulled)
        && let Some(note) = super::platform_note(reference, before, pulled)
    {
        shown.above(|| eprintln!("{note}"));
    }
    pulled.map_err(|error| {
        let remedy = match &error {
            PullError::Layer { source, .. } => super::unpack_hint(source).map(str::to_owned),
            error => registries::remedy(error),
        };
        let failed = CommandError::new(format!("cannot pull {reference}")).because(error);
        match remedy {
            Some(remedy) => failed.hint(remedy),
            None => failed,
        }
    })
}

/// The step that the progress of a pull is.
fn step(name: &str, progress: Progress) -> Step {
    match progress {
        Progress::Resolved { layers, .. } => {
            let missing: Vec<&LayerSummary> = layers.iter().filter(|l| !l.present).collect();
            let bytes = missing.iter().map(|layer| layer.size_bytes).sum();
            Step::Begins {
                line: format!(
                    "pulling {name}: {} of {} layers, {}",
                    missing.len(),
                    layers.len(),
                    super::size(bytes)
                ),
                parts: layers
                    .into_iter()
                    .map(|layer| (layer.digest, layer.size_bytes, layer.present))
                    .collect(),
            }
        }
        Progress::Downloading {
            layer,
            bytes,
            total_bytes,
        } => Step::Moves {
            part: layer,
            bytes,
            total_bytes,
        },
        Progress::Retrying(retry) => progress::waits(&format!("pulling {name}"), &retry),
        Progress::Unpacking { layer } => Step::Note {
            part: layer,
            note: "unpacking",
        },
        Progress::Done { layer } => Step::Done {
            line: format!("layer {} is here", progress::short(&layer)),
            part: layer,
            note: "done",
        },
    }
}
