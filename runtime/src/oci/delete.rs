//! `kill` and `delete`, and what undoes a container.

use std::os::fd::{AsFd, BorrowedFd};
use std::str::FromStr;

use nix::sys::signal::Signal;
use oci_spec::runtime::{ContainerState, Spec};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::cli;
use super::error::{Error, Result};
use super::log::Log;
use super::store::{Entry, Record, Store};
use crate::cgroup::{Cgroup, Layout};
use crate::container::hooks;
use crate::sys::pidfd;

/// The longest wait for a process after SIGKILL, in seconds: it may have to leave the kernel first.
const KILLED_ENDS_SECS: u64 = 10;

/// `kill`: the signal goes to the first process, or with `--all` to all.
pub(super) fn kill(store: &Store, options: &cli::Kill) -> Result<()> {
    let signal = parse_signal(&options.signal)?;
    let entry = store.entry(&options.id)?;
    let record = entry.load()?;
    let (status, process) = entry.status(&record)?;
    if options.all && signal == libc::SIGKILL {
        return cgroup_of(&record)?
            .kill_all()
            .map_err(cgroup_error("kill all processes of", &record));
    }
    let Some(process) = process else {
        return Err(Error::Status {
            id: options.id.clone(),
            status: super::status_name(status),
            command: "kill",
            wanted: "created or running",
        });
    };
    if !options.all {
        return signal_process(process.as_fd(), record.pid, signal);
    }
    let pids = cgroup_of(&record)?
        .processes()
        .map_err(cgroup_error("list the processes of", &record))?;
    for pid in pids {
        // One that ended in the meantime needs no signal.
        if let Ok(process) = pidfd::open(pid) {
            signal_process(process.as_fd(), pid, signal)?;
        }
    }
    Ok(())
}

/// `delete`: removes a container that has ended, or was never started, or with `--force` any.
pub(super) fn delete(store: &Store, options: &cli::Delete, log: &Log) -> Result<()> {
    let entry = store.entry(&options.id)?;
    let record = match entry.load() {
        Err(Error::Missing { .. }) if options.force => {
            // Nothing, or what a killed create left.
            return entry.remove();
        }
        result => result?,
    };
    let (status, process) = entry.status(&record)?;
    if status == ContainerState::Running && !options.force {
        return Err(Error::Status {
            id: options.id.clone(),
            status: super::status_name(status),
            command: "delete",
            wanted: "stopped (or use --force)",
        });
    }
    if let Some(process) = process {
        signal_process(process.as_fd(), record.pid, libc::SIGKILL)?;
        await_end(process.as_fd(), &record)?;
    }
    let spec = entry.spec()?;
    remove(&entry, &record, &spec, log)
}

/// Removes a container whose first process has ended, and runs its poststop hooks.
pub(super) fn remove(entry: &Entry, record: &Record, spec: &Spec, log: &Log) -> Result<()> {
    forget(entry, record)?;
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
        if let Err(error) = hooks::run_all("poststop", Some(&vec![hook.clone()]), &state) {
            log.warning(&super::error::chain(&error));
        }
    }
    Ok(())
}

/// Removes the cgroup with all processes in it, and the record.
pub(super) fn forget(entry: &Entry, record: &Record) -> Result<()> {
    let cgroup = cgroup_of(record)?;
    // Empty as a rule: a container's first process takes its pid namespace along.
    let left = cgroup
        .processes()
        .map_err(cgroup_error("look at", record))?;
    if !left.is_empty() {
        cgroup.kill_all().map_err(cgroup_error("empty", record))?;
    }
    cgroup.delete().map_err(cgroup_error("remove", record))?;
    entry.remove()
}

/// The cgroup of a container.
pub(super) fn cgroup_of(record: &Record) -> Result<Cgroup> {
    let layout = Layout::detect().map_err(cgroup_error("find", record))?;
    Ok(Cgroup::open(&layout, &record.cgroup))
}

/// Names the attempt and the container.
pub(super) fn cgroup_error(
    attempt: &'static str,
    record: &Record,
) -> impl FnOnce(crate::cgroup::Error) -> Error {
    let id = record.id.clone();
    move |source| Error::Cgroup {
        attempt,
        id,
        source,
    }
}

fn signal_process(process: BorrowedFd<'_>, pid: i32, signal: i32) -> Result<()> {
    match pidfd::send_signal(process, signal) {
        // It ended in the meantime, which is what most signals are for.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        result => result.map_err(|source| Error::Process {
            attempt: "signal",
            pid,
            source,
        }),
    }
}

fn await_end(process: BorrowedFd<'_>, record: &Record) -> Result<()> {
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

/// `9`, `KILL`, `SIGKILL`, `RTMIN+3`
fn parse_signal(text: &str) -> Result<i32> {
    let invalid = || Error::Argument {
        argument: "signal",
        reason: format!("{text} is not a signal"),
    };
    let in_range = |number: i32| (0..=libc::SIGRTMAX()).contains(&number).then_some(number);
    if let Ok(number) = text.parse() {
        return in_range(number).ok_or_else(invalid);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset: i32 = match offset {
            "" => 0,
            offset => offset.parse().map_err(|_| invalid())?,
        };
        return in_range(libc::SIGRTMIN() + offset).ok_or_else(invalid);
    }
    Signal::from_str(&format!("SIG{name}"))
        .map(|signal| signal as i32)
        .map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        assert_eq!(parse_signal("9").expect("a signal"), 9);
        assert_eq!(parse_signal("kill").expect("a signal"), 9);
        assert_eq!(parse_signal("SIGTERM").expect("a signal"), 15);
        assert_eq!(
            parse_signal("RTMIN+3").expect("a signal"),
            libc::SIGRTMIN() + 3
        );
        for wrong in ["", "SIG", "99", "-1", "RTMIN+x", "RTMIN+99"] {
            assert!(parse_signal(wrong).is_err(), "{wrong}");
        }
    }
}
