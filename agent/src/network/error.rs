//! What can go wrong with the network.

use std::path::PathBuf;

/// What can go wrong with the network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not ready.
    #[error("the network in {0} is not ready")]
    NotReady(PathBuf),
}
