//! `podling images push`.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use podling_images::{
    Arrival, FetchedBlobs, ImageStore, PullOptions, PushError, PushOptions, PushProgress, Pushed,
    Reference,
};
use serde_json::json;

use super::super::{CommandError, Exit, agent};
use super::progress::{self, Shown, Step};
use crate::node::{Config, registries};

/// Send images to their registries
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podling images push registry.example/team/app:v3
  podling images push nginx:1.27 --to registry.example/mirror/nginx:1.27      under another name
  podling images push --json registry.example/team/app:v3 | jq -r '.[].reference'
  podling images push --all-platforms nginx:1.27 --to mirror.example/nginx:1.27

Of an image for several platforms the one that is here is sent; with --all-platforms all are, with
the index itself: what is not here is fetched from the image's registry.

Signatures that are here with the image go along: those that the signature policy asked for, or all
after `podling images pull --signatures`. Other signatures of the image stay where it goes.

All is sent as it came, so the digests stay the same. What the registry has is not sent again, and
a push that broke goes on where it stopped. How registries are spoken to, and credentials, are as
with `podling images pull`.

Exit status: 0 all are there, 1 some are not, 130 interrupted.")]
pub struct PushArgs {
    /// Their names, which say where they go
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// Send the image under this name instead of its own
    #[arg(long, value_name = "NAME")]
    pub to: Option<String>,
    /// Send the images of all platforms that the index names
    #[arg(long)]
    pub all_platforms: bool,
    /// A Docker configuration file with credentials [default: ~/.docker/config.json]
    #[arg(long, value_name = "FILE")]
    pub auth_file: Option<PathBuf>,
    /// Do not send the signatures of the images
    #[arg(long)]
    pub remove_signatures: bool,
    /// Print only errors
    #[arg(short, long)]
    pub quiet: bool,
    /// Print what was pushed as a JSON array of reference, with the digest, platforms and signatures
    #[arg(long)]
    pub json: bool,
}

/// Sends images, one after the other; the layers of each go in parallel.
pub(super) fn push(
    store: &ImageStore,
    args: &PushArgs,
    config: &Config,
) -> Result<Exit, CommandError> {
    let sources = super::parse_all(&args.images)?;
    let target = args.to.as_deref().map(super::parse).transpose()?;
    if target.is_some() && sources.len() > 1 {
        return Err(
            CommandError::usage("--to names one image, and several were given")
                .hint("push them one by one"),
        );
    }
    let options = options(args, config)?;
    let shown = Shown::new(args.quiet);
    let pushed = agent::runtime()?.block_on(async {
        let push = PushAll {
            store,
            options: &options,
            shown: &shown,
            all_platforms: args.all_platforms,
        };
        let pushed = push.run(&sources, target.as_ref());
        let pushed = progress::unless_interrupted("push", pushed).await;
        pushed.map_err(|e| {
            e.hint("what has arrived stays there: pushed again, it goes on from there")
        })
    });
    shown.end();
    let (pushed, errors) = progress::tell_apart(pushed?);
    if args.json {
        let views = pushed.iter().map(|pushed| {
            json!({
                "reference": pushed.reference,
                "platforms": pushed.platforms,
                "signatures": pushed.signatures,
            })
        });
        super::print_json(&views.collect::<Vec<_>>())?;
    } else if !args.quiet {
        pushed.iter().for_each(tell);
    }
    progress::last_of(errors)
}

fn tell(pushed: &Pushed) {
    match pushed.signatures {
        0 => println!("pushed {}", pushed.reference),
        n => println!("pushed {}, signatures: {n}", pushed.reference),
    }
    if pushed.left_out > 0 {
        eprintln!(
            "its images for {} other platforms are not here, and were left out: --all-platforms fetches them",
            pushed.left_out
        );
    }
    if pushed.signatures_left_out > 0 {
        eprintln!(
            "signatures that are of something else, such as the whole index (--all-platforms), were left out: {}",
            pushed.signatures_left_out
        );
    }
}

fn options(args: &PushArgs, config: &Config) -> Result<PushOptions, CommandError> {
    if let Some(file) = &args.auth_file
        && let Err(error) = std::fs::metadata(file)
    {
        let text = format!("cannot read the credentials in {}", file.display());
        return Err(CommandError::new(text).because(error));
    }
    Ok(PushOptions {
        docker_config: args.auth_file.clone(),
        registries: registries::settings(config),
        remove_signatures: args.remove_signatures,
        ..PushOptions::default()
    })
}

/// How images are pushed.
struct PushAll<'a> {
    store: &'a ImageStore,
    options: &'a PushOptions,
    shown: &'a Shown,
    all_platforms: bool,
}

impl PushAll<'_> {
    async fn run(
        &self,
        sources: &[Reference],
        target: Option<&Reference>,
    ) -> Vec<Result<Pushed, CommandError>> {
        let mut results = Vec::new();
        for source in sources {
            results.push(self.push(source, target.unwrap_or(source)).await);
        }
        results
    }

    async fn push(&self, source: &Reference, target: &Reference) -> Result<Pushed, CommandError> {
        let (listener, name) = (self.shown.listener(), target.to_string());
        let options = PushOptions {
            progress: Some(Arc::new(move |progress| {
                listener.show(step(&name, progress))
            })),
            ..self.options.clone()
        };
        // Held until all is sent.
        let _others = match self.all_platforms {
            true => Some(self.fetch_others(source).await?),
            false => None,
        };
        let pushed = self.store.push(source, target, &options).await;
        pushed.map_err(|error| explain(source, target, error))
    }

    async fn fetch_others(&self, source: &Reference) -> Result<FetchedBlobs, CommandError> {
        let options = PullOptions {
            docker_config: self.options.docker_config.clone(),
            registries: self.options.registries.clone(),
            ..PullOptions::default()
        };
        let names = std::slice::from_ref(source);
        let fetched = self.store.fetch_all_platforms(names, &options).await;
        fetched.map_err(|error| {
            let remedy = registries::remedy(&error);
            let what = format!("cannot fetch the images of {source} for other platforms");
            let failed = CommandError::new(what).because(error);
            match remedy {
                Some(remedy) => failed.hint(remedy),
                None => failed,
            }
        })
    }
}

fn explain(source: &Reference, target: &Reference, error: PushError) -> CommandError {
    let remedy = match &error {
        PushError::NotHere(_) => return super::missing(source),
        PushError::Registry(error) => registries::remedy_of(error),
        PushError::Signatures { .. } => {
            Some("push again, or with --remove-signatures if they are not needed there".to_owned())
        }
        _ => None,
    };
    let failed = CommandError::new(format!("cannot push {target}")).because(error);
    match remedy {
        Some(remedy) => failed.hint(remedy),
        None => failed,
    }
}

/// The step that the progress of a push is.
fn step(name: &str, progress: PushProgress) -> Step {
    match progress {
        PushProgress::Planned { blobs, .. } => {
            let bytes = blobs.iter().map(|(_, bytes)| bytes).sum();
            Step::Begins {
                line: format!(
                    "pushing {name}: {} blobs, {}",
                    blobs.len(),
                    super::size(bytes)
                ),
                parts: blobs
                    .into_iter()
                    .map(|(digest, bytes)| (digest, bytes, false))
                    .collect(),
            }
        }
        PushProgress::Uploading {
            blob,
            bytes,
            total_bytes,
        } => Step::Moves {
            part: blob,
            bytes,
            total_bytes,
        },
        PushProgress::Retrying(retry) => progress::waits(&format!("pushing {name}"), &retry),
        PushProgress::Done { blob, how } => {
            let note = match how {
                Arrival::Present => "already there",
                Arrival::Mounted => "there in another repository",
                Arrival::Uploaded => "sent",
            };
            Step::Done {
                line: format!("blob {}: {note}", progress::short(&blob)),
                part: blob,
                note,
            }
        }
    }
}
