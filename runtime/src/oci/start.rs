//! `start`: lets a container through its gate.

use std::fs;
use std::os::fd::AsFd;

use oci_spec::runtime::{ContainerState, Spec};

use super::container_cgroup::is_frozen;
use super::delete;
use super::error::{Error, Result, file};
use super::gate::connect;
use super::log::Log;
use super::notify;
use super::store::{Entry, Record, Status, Store};
use crate::chain;
use crate::container::{self, hooks};
use crate::seccomp;

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
    let (status, process) = entry.status(&record)?;
    if status != Status::Created {
        return Err(Error::Status {
            id: options.id.clone(),
            status: status.name(),
            command: "start",
            wanted: "created",
        });
    }
    // It would not hear that it may start, and this command would wait for it.
    if is_frozen(&record)? {
        return Err(Error::Status {
            id: options.id.clone(),
            status: Status::Paused.name(),
            command: "start",
            wanted: "resumed",
        });
    }
    let notify = notify::listen(&entry)?;
    let connection = connect(&entry)?;
    // From here on it counts as started, whatever comes of it.
    fs::remove_file(entry.gate()).map_err(file("remove", entry.gate()))?;
    let spec = entry.spec()?;
    let profile = spec.linux().as_ref().and_then(|l| l.seccomp().as_ref());
    let agent = profile
        .filter(|_| !record.agent_is_told)
        .and_then(seccomp::Agent::of);
    container::start_at_gate(connection, &record.container(&spec), agent.as_ref())?;
    run_poststart(&entry, &spec, &record, log)?;
    if let (Some(notify), Some(process)) = (notify, process) {
        notify.await_ready(process.as_fd(), record.pid);
    }
    Ok(())
}

/// Runs the poststart hooks. One that fails ends and removes the container (runtime-spec runtime.md#lifecycle, 9).
///
/// # Errors
/// The hook's.
pub(super) fn run_poststart(entry: &Entry, spec: &Spec, record: &Record, log: &Log) -> Result<()> {
    let Some(list) = spec.hooks().as_ref().and_then(|h| h.poststart().as_ref()) else {
        return Ok(());
    };
    let state = hooks::state_json(
        &record.id,
        spec,
        Some(&record.bundle),
        ContainerState::Running,
        Some(record.pid),
    );
    hooks::run_all("poststart", Some(list), &state, Some(&record.bundle)).inspect_err(|_| {
        if let Err(error) = delete::destroy(entry, record, log) {
            log.warning(&chain(&error));
        }
    })?;
    Ok(())
}
