//! Processes that may not be children of this supervisor: told apart by their start time, asked through pidfds.

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use crate::pod::lifecycle::{ExitStatus, Process};
use crate::sys::pidfd;

/// The process of this number as it is now.
pub(super) fn look(pid: i32) -> io::Result<Process> {
    let start_ticks = field(&stat(pid)?, 22)
        .and_then(|f| f.parse().ok())
        .ok_or(io::ErrorKind::InvalidData)?;
    Ok(Process { pid, start_ticks })
}

/// A handle to a process that was seen before; none if it has ended.
pub(super) fn find(process: Process) -> Option<OwnedFd> {
    let handle = pidfd::open(process.pid).ok()?;
    // The number could have been given to another process before the handle was opened, but not after.
    (look(process.pid).ok()? == process).then_some(handle)
}

/// How a process that has ended did so, reaping it if it is a child; none if it runs.
pub(super) fn exit_status(handle: BorrowedFd<'_>, process: Process) -> Option<ExitStatus> {
    match pidfd::try_wait(handle) {
        Ok(exit) => exit.map(from_exit),
        Err(_) => pidfd::exit_of_non_child(handle).map(from_exit).or_else(|| {
            // Its new parent has not reaped it yet, or the kernel is older than Linux 6.15.
            match look(process.pid) {
                Ok(found) if found == process => zombie_status(process.pid),
                _ => Some(ExitStatus::Unknown),
            }
        }),
    }
}

fn from_exit(exit: pidfd::Exit) -> ExitStatus {
    match exit {
        pidfd::Exit::Code(code) => ExitStatus::Code(code),
        pidfd::Exit::Signal(signal) => ExitStatus::Signal(signal),
    }
}

/// Sends a signal to the process group that a process leads. The process must be one that this supervisor has yet to
/// reap, so that its number is no other's. A group that has ended gets nothing.
pub(super) fn signal_group(leader: Process, signal: Signal) -> io::Result<()> {
    match killpg(Pid::from_raw(leader.pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// From `/proc/<pid>/stat`, fields 3 and 52; none while the process runs.
fn zombie_status(pid: i32) -> Option<ExitStatus> {
    let stat = stat(pid).ok()?;
    if !matches!(field(&stat, 3)?, "Z" | "X") {
        return None;
    }
    let Some(status) = field(&stat, 52).and_then(|f| f.parse::<i32>().ok()) else {
        return Some(ExitStatus::Unknown);
    };
    Some(if libc::WIFSIGNALED(status) {
        ExitStatus::Signal(libc::WTERMSIG(status))
    } else {
        ExitStatus::Code(libc::WEXITSTATUS(status))
    })
}

fn stat(pid: i32) -> io::Result<String> {
    fs::read_to_string(format!("/proc/{pid}/stat"))
}

/// A field by its number in proc_pid_stat(5), from 3 on: the name before it can hold anything.
fn field(stat: &str, number: usize) -> Option<&str> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(number - 3)
}

/// Reaps children that nobody waits for, until none is left (true), or one that `known` waits for is in the way.
pub(super) fn reap_orphans(known: impl Fn(i32) -> bool) -> bool {
    let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    loop {
        let pid = match waitid(Id::All, peek) {
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) => pid,
            _ => return true,
        };
        if known(pid.as_raw()) {
            return false;
        }
        if waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG).is_err() {
            return true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_behind_a_hostile_name() {
        let stat = "7 (a) R (b) S 1 2 3";
        assert_eq!(field(stat, 3), Some("S"));
        assert_eq!(field(stat, 4), Some("1"));
        assert_eq!(field(stat, 30), None);
    }

    #[test]
    fn this_process_is_found_by_its_start_time_and_not_by_another() {
        let pid = i32::try_from(std::process::id()).expect("a pid");
        let this = look(pid).expect("this process");
        assert!(find(this).is_some());
        let other = Process {
            start_ticks: this.start_ticks + 1,
            ..this
        };
        assert!(find(other).is_none());
    }
}
