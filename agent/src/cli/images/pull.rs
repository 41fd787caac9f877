//! `podling images pull`: with a bar for each layer on a terminal, else a line for each image.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use podling_images::{Digest, ImageStore, Platform, Progress, PullOptions, RegistriesConfig};

use super::super::agent::DEFAULT_CONFIG;
use super::super::{CommandError, Exit};
use crate::node::Config;

/// Fetches images, one after the other; the layers of each come in parallel.
pub(super) fn pull(
    store: &ImageStore,
    names: &[String],
    platform: Option<&str>,
    auth_file: Option<PathBuf>,
    quiet: bool,
) -> Result<Exit, CommandError> {
    let platform: Option<Platform> = platform
        .map(|text| {
            text.parse().map_err(|_| {
                CommandError::usage(format!("`{text}` is not OS/ARCH, such as linux/arm64"))
            })
        })
        .transpose()?;
    let registries = registries()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| CommandError::new("cannot start threads").because(e))?;
    for name in names {
        let reference = super::parse(name)?;
        let bars = (!quiet && std::io::stderr().is_terminal()).then(|| Arc::new(Bars::default()));
        let shown = bars.clone();
        let options = PullOptions {
            docker_config: auth_file.clone(),
            registries: registries.clone(),
            platform: platform.clone(),
            progress: shown.map(|bars| -> Arc<dyn Fn(Progress) + Send + Sync> {
                Arc::new(move |p| bars.show(p))
            }),
            ..PullOptions::default()
        };
        let pulled = runtime.block_on(store.pull(&reference, &options));
        if let Some(bars) = bars {
            bars.clear();
        }
        let image =
            pulled.map_err(|e| CommandError::new(format!("cannot pull {reference}")).because(e))?;
        if !quiet {
            println!(
                "pulled {reference} ({}, {})",
                super::size(image.size_bytes),
                image.digest
            );
        }
    }
    Ok(Exit::Done)
}

/// As the agent speaks to registries, so does this command.
fn registries() -> Result<RegistriesConfig, CommandError> {
    let path =
        PathBuf::from(std::env::var_os("PODLING_CONFIG").unwrap_or_else(|| DEFAULT_CONFIG.into()));
    if !path.exists() {
        return Ok(RegistriesConfig::default());
    }
    let config = Config::load(&path)
        .map_err(|e| CommandError::new("cannot learn how to speak to registries").because(e))?;
    let mut registries = RegistriesConfig::default();
    for registry in config.registries {
        if registry.plain_http {
            registries.plain_http.insert(registry.host.clone());
        }
        registries.ca_files.extend(registry.ca_file);
        if !registry.mirrors.is_empty() {
            registries.mirrors.insert(registry.host, registry.mirrors);
        }
    }
    Ok(registries)
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
                    bar.set_prefix(layer.digest.hex().chars().take(12).collect::<String>());
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
