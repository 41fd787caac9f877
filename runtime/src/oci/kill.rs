//! `kill`

use std::os::fd::{AsFd, BorrowedFd};
use std::str::FromStr;

use nix::sys::signal::Signal;

use super::container_cgroup::{attempt, find, of};
use super::error::{Error, Result};
use super::log::Log;
use super::pattern;
use super::store::{Record, Store};
use crate::sys::pidfd;

/// Options of `kill`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The container's name
    pub id: String,
    /// A signal's name or number
    #[arg(default_value = "TERM")]
    pub signal: String,
    /// Signal all processes of the container, of one that has ended too
    #[arg(short, long)]
    pub all: bool,
    /// The name is a regular expression; signal all containers that match and run
    #[arg(short, long)]
    pub regex: bool,
}

/// Sends the signal to the first process, or with `--all` to all.
pub(super) fn kill(store: &Store, options: &Options, log: &Log) -> Result<()> {
    let signal = parse_signal(&options.signal)?;
    if !options.regex {
        return kill_one(store, &options.id, signal, options.all);
    }
    pattern::for_each(store, &options.id, log, |id| {
        match kill_one(store, id, signal, options.all) {
            // A pattern asks for those that run.
            Err(Error::NotRunning { .. }) => Ok(()),
            result => result,
        }
    })
}

fn kill_one(store: &Store, id: &str, signal: i32, all: bool) -> Result<()> {
    let entry = store.entry(id)?;
    let record = entry.load()?;
    if all {
        return kill_all(&record, signal);
    }
    let (_, process) = entry.status(&record)?;
    let process = process.ok_or_else(|| Error::NotRunning {
        id: id.to_owned(),
        attempt: "kill",
    })?;
    signal_process(process.as_fd(), record.pid, signal)?;
    // On cgroup version 1 a process that stands still does not even end by SIGKILL.
    if signal == libc::SIGKILL
        && let Ok(Some(cgroup)) = find(&record)
        && cgroup.is_frozen().unwrap_or_default()
    {
        return cgroup.thaw().map_err(attempt("resume", &record));
    }
    Ok(())
}

fn kill_all(record: &Record, signal: i32) -> Result<()> {
    let cgroup = of(record)?;
    if signal == libc::SIGKILL {
        return cgroup
            .kill_all()
            .map_err(attempt("kill all processes of", record));
    }
    let pids = cgroup
        .processes()
        .map_err(attempt("list the processes of", record))?;
    for pid in pids {
        // One that ended in the meantime needs no signal.
        if let Ok(process) = pidfd::open(pid) {
            signal_process(process.as_fd(), pid, signal)?;
        }
    }
    Ok(())
}

/// Signals a process; one that has ended in the meantime is fine, as that is what most signals are for.
pub(super) fn signal_process(process: BorrowedFd<'_>, pid: i32, signal: i32) -> Result<()> {
    match pidfd::send_signal(process, signal) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        result => result.map_err(|source| Error::Process {
            attempt: "signal",
            pid,
            source,
        }),
    }
}

/// `9`, `KILL`, `SIGKILL`, `RTMIN+3`
fn parse_signal(text: &str) -> Result<i32> {
    let invalid = || Error::Argument {
        argument: "signal",
        reason: format!("{text:?} is not a signal"),
    };
    let in_range = |number: i32| (0..=libc::SIGRTMAX()).contains(&number).then_some(number);
    if let Ok(number) = text.parse() {
        return in_range(number).ok_or_else(invalid);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = |offset: &str, from: i32| {
        let offset: i32 = match offset {
            "" => 0,
            offset => offset.parse().map_err(|_| invalid())?,
        };
        let number = in_range(from + offset).filter(|number| *number >= libc::SIGRTMIN());
        number.ok_or_else(invalid)
    };
    if let Some(offset) = name.strip_prefix("RTMIN") {
        return real_time(offset, libc::SIGRTMIN());
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        return real_time(offset, libc::SIGRTMAX());
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
        assert_eq!(
            parse_signal("SIGRTMAX-1").expect("a signal"),
            libc::SIGRTMAX() - 1
        );
        for wrong in [
            "", "SIG", "99", "-1", "RTMIN+x", "RTMIN+99", "RTMAX+1", "RTMAX-60",
        ] {
            assert!(parse_signal(wrong).is_err(), "{wrong}");
        }
    }
}
