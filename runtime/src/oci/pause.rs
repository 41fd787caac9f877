//! `pause` and `resume`.

use super::container_cgroup::{attempt, of};
use super::error::{Error, Result};
use super::store::{Status, Store};

/// Options of `pause` and of `resume`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The container's name
    pub id: String,
}

/// Stops all processes of a container, and waits until they stand still.
pub(super) fn pause(store: &Store, options: &Options) -> Result<()> {
    let entry = store.entry(&options.id)?;
    let record = entry.load()?;
    // Without a process there is nothing to stop.
    if entry.status(&record)?.0 == Status::Stopped {
        return Err(Error::NotRunning {
            id: record.id,
            attempt: "pause",
        });
    }
    of(&record)?.freeze().map_err(attempt("pause", &record))
}

/// Lets them go on. A container that is not paused is left as it is.
pub(super) fn resume(store: &Store, options: &Options) -> Result<()> {
    let entry = store.entry(&options.id)?;
    let record = entry.load()?;
    if entry.status(&record)?.0 == Status::Stopped {
        return Err(Error::NotRunning {
            id: record.id,
            attempt: "resume",
        });
    }
    of(&record)?.thaw().map_err(attempt("resume", &record))
}
