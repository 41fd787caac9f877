//! The node's sources of manifests.

use super::handle::Options;
use super::{Config, NodeError};
use crate::source::{Following, directory, etcd};
use crate::store::{Store, Writer};

/// The running sources; dropping them stops them.
#[derive(Debug, Default)]
pub(super) struct Sources {
    following: Vec<Following>,
}

impl Sources {
    /// Stops following the sources. What they said stays wanted.
    pub(super) fn stop(&mut self) {
        self.following.clear();
    }
}

/// Takes in what the files say, and follows all sources. What sources said that are no longer configured goes.
pub(super) fn start(
    config: &Config,
    options: &Options,
    store: &Store,
) -> Result<Sources, NodeError> {
    let directories = config.manifests.iter().map(|path| Writer::directory(path));
    let etcds = config.etcd.iter().map(etcd::writer);
    let writers: Vec<Writer> = directories.chain(etcds).collect();
    // On a full disk the node goes on with what it remembers.
    if let Err(error) = store.retain_writers(&writers) {
        let error = podling_runtime::chain(&error);
        tracing::error!(
            error,
            "cannot forget the sources that are no longer configured"
        );
    }

    let mut sources = Sources::default();
    for path in &config.manifests {
        let error = |source: directory::DirectoryError| NodeError::Source {
            origin: path.display().to_string(),
            source: source.into(),
        };
        if options.watch {
            let following = directory::follow(store, path).map_err(error)?;
            sources.following.push(following);
        } else {
            directory::read_once(store, path).map_err(error)?;
        }
    }
    if let Some(config) = &config.etcd {
        let following = etcd::follow(store, config).map_err(|source| NodeError::Source {
            origin: config.prefix.clone(),
            source: source.into(),
        })?;
        sources.following.push(following);
    }
    Ok(sources)
}
