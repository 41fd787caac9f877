//! `podling images pull`: with a bar for each layer on a terminal, else a line for each layer.
//!
//! ctrl-C ends the pull: no image is made, and layers that are whole stay, so that the next pull goes on from there.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use clap::Args;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use podling_images::{
    Digest, Image, ImageStore, LayerSummary, Platform, Progress, PullOptions, Reference,
};
use tokio::signal::unix::{SignalKind, signal};

use super::super::{CommandError, Exit, agent};
use crate::node::registries;

/// As shells report a program that ctrl-C ended: 128 and the number of SIGINT.
const INTERRUPTED: u8 = 130;

/// Download images from their registries
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podling images pull nginx:1.27
  podling images pull registry.example/team/app:v3 registry.example/team/db:v3
  podling images pull --platform linux/arm64 nginx:1.27
  podling images pull --auth-file /root/auth.json registry.example/private/app

How registries are spoken to is in the configuration file, for this command as for the agent:
  registries:
  - {host: 'localhost:5000', plainHttp: true}                  one without TLS
  - {host: registry.example, caFile: /etc/podling/ca.pem}      one with an authority of your own
  - {host: docker.io, mirrors: [mirror.example]}               a mirror, asked first

Credentials are those that `docker login` or `podman login` wrote. Layers that are here are not fetched again.")]
pub struct PullArgs {
    /// Such as nginx, nginx:1.27, registry.example/app@sha256:…
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// Another platform than this machine's, such as linux/arm64
    #[arg(long, value_name = "OS/ARCH")]
    pub platform: Option<String>,
    /// A Docker configuration file with credentials [default: ~/.docker/config.json]
    #[arg(long, value_name = "FILE")]
    pub auth_file: Option<PathBuf>,
    /// The configuration file [default: /etc/podling/config.yaml, if there is one]
    #[arg(
        long,
        value_name = "FILE",
        env = "PODLING_CONFIG",
        hide_env_values = true
    )]
    pub config: Option<PathBuf>,
    /// Print only errors
    #[arg(short, long)]
    pub quiet: bool,
}

/// Fetches images, one after the other; the layers of each come in parallel.
pub(super) fn pull(store: &ImageStore, args: &PullArgs) -> Result<Exit, CommandError> {
    let references = args.images.iter().map(|name| super::parse(name));
    let references = references.collect::<Result<Vec<_>, _>>()?;
    let options = options(args)?;
    let runtime = agent::runtime()?;
    for reference in &references {
        let shown = Shown::new(args.quiet, reference);
        let listener = shown.clone();
        let options = PullOptions {
            progress: Some(Arc::new(move |progress| listener.show(progress))),
            ..options.clone()
        };
        let pulled = runtime.block_on(pull_one(store, reference, &options));
        shown.end();
        let image = pulled?;
        if !args.quiet {
            println!(
                "pulled {reference} ({}, {})",
                super::size(image.size_bytes),
                image.digest
            );
        }
    }
    Ok(Exit::Done)
}

fn options(args: &PullArgs) -> Result<PullOptions, CommandError> {
    let platform = args.platform.as_ref().map(|text| {
        text.parse::<Platform>().map_err(|_| {
            CommandError::usage(format!("`{text}` is not OS/ARCH, such as linux/arm64"))
        })
    });
    if let Some(file) = &args.auth_file
        && let Err(error) = std::fs::metadata(file)
    {
        let text = format!("cannot read the credentials in {}", file.display());
        return Err(CommandError::new(text).because(error));
    }
    let config = agent::load(args.config.as_deref())?;
    Ok(PullOptions {
        policy: super::trust::policy(&config)?,
        docker_config: args.auth_file.clone(),
        registries: registries::settings(&config),
        platform: platform.transpose()?.or(config.platform()),
        ..PullOptions::default()
    })
}

async fn pull_one(
    store: &ImageStore,
    reference: &Reference,
    options: &PullOptions,
) -> Result<Image, CommandError> {
    let mut interrupt = signal(SignalKind::interrupt())
        .map_err(|e| CommandError::new("cannot listen to signals").because(e))?;
    let pulled = tokio::select! {
        pulled = store.pull(reference, options) => pulled,
        _ = interrupt.recv() => {
            return Err(CommandError::new(format!("the pull of {reference} was interrupted"))
                .code(INTERRUPTED)
                .hint("layers that are whole stay here: pulled again, it goes on from there"));
        }
    };
    pulled.map_err(|error| {
        let remedy = registries::remedy(&error);
        let failed = CommandError::new(format!("cannot pull {reference}")).because(error);
        match remedy {
            Some(remedy) => failed.hint(remedy),
            None => failed,
        }
    })
}

/// How a pull is shown.
#[derive(Clone)]
enum Shown {
    Not,
    /// A line for each layer, on standard error.
    Lines(String),
    Bars(Arc<Bars>),
}

impl Shown {
    fn new(quiet: bool, reference: &Reference) -> Self {
        match quiet {
            true => Self::Not,
            false if std::io::stderr().is_terminal() => Self::Bars(Arc::default()),
            false => Self::Lines(reference.to_string()),
        }
    }

    fn show(&self, progress: Progress) {
        match self {
            Self::Not => {}
            Self::Lines(name) => {
                if let Some(line) = line(name, &progress) {
                    eprintln!("{line}");
                }
            }
            Self::Bars(bars) => bars.show(progress),
        }
    }

    fn end(&self) {
        if let Self::Bars(bars) = self {
            bars.clear();
        }
    }
}

/// What a log should have of a pull.
fn line(name: &str, progress: &Progress) -> Option<String> {
    match progress {
        Progress::Resolved { layers, .. } => {
            let missing: Vec<&LayerSummary> = layers.iter().filter(|l| !l.present).collect();
            let bytes = missing.iter().map(|layer| layer.size_bytes).sum();
            Some(format!(
                "pulling {name}: {} of {} layers, {}",
                missing.len(),
                layers.len(),
                super::size(bytes)
            ))
        }
        Progress::Downloading { .. } | Progress::Unpacking { .. } => None,
        Progress::Done { layer } => Some(format!("layer {} is here", short(layer))),
    }
}

fn short(digest: &Digest) -> String {
    digest.hex().chars().take(12).collect()
}

/// One bar for each layer.
#[derive(Default)]
struct Bars {
    all: MultiProgress,
    layers: Mutex<HashMap<Digest, ProgressBar>>,
}

impl Bars {
    fn show(&self, progress: Progress) {
        // A thread that panicked while it held the lock leaves bars that are right enough.
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        match progress {
            Progress::Resolved { layers: new, .. } => {
                for layer in new {
                    let bar = self.all.add(ProgressBar::new(layer.size_bytes));
                    bar.set_style(style());
                    bar.set_prefix(short(&layer.digest));
                    if layer.present {
                        bar.set_position(layer.size_bytes);
                        bar.finish_with_message("already here");
                    }
                    layers.insert(layer.digest, bar);
                }
            }
            Progress::Downloading {
                layer,
                bytes,
                total_bytes,
            } => {
                if let Some(bar) = layers.get(&layer) {
                    bar.set_length(total_bytes);
                    bar.set_position(bytes);
                }
            }
            Progress::Unpacking { layer } => {
                if let Some(bar) = layers.get(&layer) {
                    bar.set_message("unpacking");
                }
            }
            Progress::Done { layer } => {
                if let Some(bar) = layers.get(&layer) {
                    bar.finish_with_message("done");
                }
            }
        }
    }

    fn clear(&self) {
        // A terminal that cannot be cleared keeps the bars: no harm.
        drop(self.all.clear());
    }
}

fn style() -> ProgressStyle {
    let template = "{prefix} [{bar:30}] {bytes:>10}/{total_bytes:<10} {msg}";
    ProgressStyle::with_template(template)
        .map(|style| style.progress_chars("=> "))
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}
