//! `start`: lets a container through its gate.

use std::fs;

use oci_spec::runtime::{ContainerState, Spec};

use super::error::{Error, Result, chain, file};
use super::gate::connect;
use super::log::Log;
use super::store::{Record, Status, Store};
use crate::container::{self, hooks};

/// Options of `start`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The container's name
    pub id: String,
}

/// Starts the container, and runs its poststart hooks.
pub(super) fn start(store: &Store, options: &Options, log: &Log) -> Result<()> {
    let entry = store.entry(&options.id)?;
    let record = entry.load()?;
    let (status, _) = entry.status(&record)?;
    if status != Status::Created {
        return Err(Error::Status {
            id: options.id.clone(),
            status: status.name(),
            command: "start",
            wanted: "created",
        });
    }
    let connection = connect(&entry)?;
    // From here on it counts as started, whatever comes of it.
    fs::remove_file(entry.gate()).map_err(file("remove", entry.gate()))?;
    let spec = entry.spec()?;
    container::start_at_gate(connection, &record.container(&spec))?;
    run_poststart(&spec, &record, log);
    Ok(())
}

/// Runs the poststart hooks; those that fail are warnings.
pub(super) fn run_poststart(spec: &Spec, record: &Record, log: &Log) {
    let Some(list) = spec.hooks().as_ref().and_then(|h| h.poststart().as_ref()) else {
        return;
    };
    let state = hooks::state_json(
        &record.id,
        spec,
        Some(&record.bundle),
        ContainerState::Running,
        Some(record.pid),
    );
    // runtime-spec runtime.md#lifecycle: log a warning and go on with the remaining hooks.
    for hook in list {
        if let Err(error) = hooks::run_all("poststart", Some(&vec![hook.clone()]), &state) {
            log.warning(&chain(&error));
        }
    }
}
