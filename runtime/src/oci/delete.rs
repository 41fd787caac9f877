//! `delete`, and what undoes a container.

use std::os::fd::{AsFd, BorrowedFd};

use oci_spec::runtime::{ContainerState, Spec};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::container_cgroup::{attempt, find};
use super::error::{Error, Result};
use super::kill::signal_process;
use super::log::Log;
use super::store::{Entry, Record, Status, Store};
use super::{pattern, scope, unfinished};
use crate::chain;
use crate::container::{hooks, resctrl};

/// The longest wait for a process after SIGKILL, in seconds: it may have to leave the kernel first.
const KILLED_ENDS_SECS: u64 = 10;

/// Options of `delete`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The container's name
    pub id: String,
    /// Kill it if it runs; one that does not exist is fine
    #[arg(short, long)]
    pub force: bool,
    /// The name is a regular expression; delete all containers that match
    #[arg(short, long)]
    pub regex: bool,
}

/// Removes a container that has ended, or was never started, or with `--force` any.
pub(super) fn delete(store: &Store, options: &Options, log: &Log) -> Result<()> {
    if options.regex {
        return pattern::for_each(store, &options.id, log, |id| {
            delete_one(store, id, options.force, log)
        });
    }
    delete_one(store, &options.id, options.force, log)
}

fn delete_one(store: &Store, id: &str, force: bool, log: &Log) -> Result<()> {
    let entry = store.entry(id)?;
    let record = match entry.load() {
        Err(Error::Missing { .. }) if force => {
            // Nothing, or what a killed create left.
            return unfinished::remove(&entry, id, log);
        }
        result => result?,
    };
    let (status, _) = entry.status(&record)?;
    if status == Status::Running && !force {
        return Err(Error::Status {
            id: id.to_owned(),
            status: status.name(),
            command: "delete",
            wanted: "stopped (or use --force)",
        });
    }
    destroy(&entry, &record, log)
}

/// Kills a container that runs, and removes it. Fine when somebody else did so first.
pub(super) fn destroy(entry: &Entry, record: &Record, log: &Log) -> Result<()> {
    // From before its end on: a `run` that waits for that would remove it too.
    let Some(_removal) = entry.lock_removal(record)? else {
        return Ok(());
    };
    if let (_, Some(process)) = entry.status(record)? {
        signal_process(process.as_fd(), record.pid, libc::SIGKILL)?;
        thaw(record)?;
        await_end(process.as_fd(), record)?;
    }
    let spec = entry.spec()?;
    remove_locked(entry, record, &spec, log)
}

/// Lets a paused container take its signal: a process frozen by v1's freezer does not end.
fn thaw(record: &Record) -> Result<()> {
    let Some(cgroup) = find(record)? else {
        return Ok(());
    };
    if cgroup.is_frozen().map_err(attempt("look at", record))? {
        cgroup.thaw().map_err(attempt("thaw", record))?;
    }
    Ok(())
}

/// Removes a container whose first process has ended, and runs its poststop hooks, unless somebody else did so first.
pub(super) fn remove(entry: &Entry, record: &Record, spec: &Spec, log: &Log) -> Result<()> {
    match entry.lock_removal(record)? {
        Some(_removal) => remove_locked(entry, record, spec, log),
        None => Ok(()),
    }
}

fn remove_locked(entry: &Entry, record: &Record, spec: &Spec, log: &Log) -> Result<()> {
    forget_locked(entry, record)?;
    resctrl::release(spec, &record.id)?;
    let hooks = spec.hooks().as_ref().and_then(|h| h.poststop().as_ref());
    let Some(hooks) = hooks else { return Ok(()) };
    let state = hooks::state_json(
        &record.id,
        spec,
        Some(&record.bundle),
        ContainerState::Stopped,
        None,
    );
    // runtime-spec runtime.md#lifecycle: log a warning and go on with the remaining hooks.
    for hook in hooks {
        let hook = vec![hook.clone()];
        if let Err(error) = hooks::run_all("poststop", Some(&hook), &state, Some(&record.bundle)) {
            log.warning(&chain(&error));
        }
    }
    Ok(())
}

/// Removes the cgroup with all processes in it, and the record, unless somebody else did so first.
pub(super) fn forget(entry: &Entry, record: &Record) -> Result<()> {
    match entry.lock_removal(record)? {
        Some(_removal) => forget_locked(entry, record),
        None => Ok(()),
    }
}

fn forget_locked(entry: &Entry, record: &Record) -> Result<()> {
    if let Some(cgroup) = find(record)? {
        // Empty as a rule: a container's first process takes its pid namespace along.
        let gone = cgroup
            .delete_if_empty()
            .map_err(attempt("remove", record))?;
        if !gone {
            cgroup.kill_all().map_err(attempt("empty", record))?;
            cgroup.delete().map_err(attempt("remove", record))?;
        }
        if let Some(unit) = &record.systemd {
            scope::stop(unit)?;
        }
    }
    entry.remove()
}

pub(super) fn await_end(process: BorrowedFd<'_>, record: &Record) -> Result<()> {
    let limit = Timespec {
        tv_sec: KILLED_ENDS_SECS.cast_signed(),
        tv_nsec: 0,
    };
    let mut ended = [PollFd::from_borrowed_fd(process, PollFlags::IN)];
    match rustix::io::retry_on_intr(|| rustix::event::poll(&mut ended, Some(&limit))) {
        Ok(0) => Err(Error::DoesNotEnd {
            id: record.id.clone(),
            secs: KILLED_ENDS_SECS,
        }),
        Ok(_) => Ok(()),
        Err(error) => Err(Error::Process {
            attempt: "wait for",
            pid: record.pid,
            source: error.into(),
        }),
    }
}
