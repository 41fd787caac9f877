//! The node's sources of manifests.

use super::handle::Options;
use super::{Config, NodeError};
use crate::store::Store;

/// The running sources; dropping them stops them.
#[derive(Debug, Default)]
pub(super) struct Sources {}

impl Sources {
    /// Stops following the sources. What they said stays wanted.
    pub(super) fn stop(&mut self) {}
}

pub(super) fn start(
    _config: &Config,
    _options: &Options,
    _store: &Store,
) -> Result<Sources, NodeError> {
    Ok(Sources {})
}
