//! Keeps a container's terminal while no supervisor does. The kernel hangs a terminal up when its controlling side is
//! closed for the last time: without this a container with one would get SIGHUP whenever its supervisor is killed.
//!
//! ```text
//! supervisor ── controlling side ──┐
//! keeper ────── controlling side ──┴── terminal ── container
//! ```
//!
//! The keeper is a fork of the supervisor that does nothing but hold that one descriptor, as its number 0. A
//! supervisor that is started again finds it in the run's record and takes a copy back (pidfd_getfd(2)). It lives in
//! the container's cgroup and no namespace of the container's, and ends with the run: killed by the supervisor, or
//! with the cgroup. Containers without a terminal have none: their output goes through FIFOs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sys::signal::SigSet;
use rustix::process::{PidfdGetfdFlags, pidfd_getfd};

use super::process;
use crate::cgroup::{self, Cgroup};
use crate::pod::lifecycle::Process;
use crate::sys;

/// The number of the one descriptor that a keeper has.
const KEPT: i32 = 0;

/// A process that holds a terminal.
#[derive(Debug)]
pub(super) struct Keeper {
    handle: OwnedFd,
    /// For the run's record.
    pub(super) process: Process,
}

impl Keeper {
    /// Starts one for a terminal, in the container's cgroup.
    pub(super) fn start(control: BorrowedFd<'_>, cgroup: &Cgroup) -> io::Result<Self> {
        let in_cgroup = |error: cgroup::Error| io::Error::other(error);
        let directory = cgroup.clone_target().map_err(in_cgroup)?;
        let joiner = match &directory {
            Some(_) => None,
            None => Some(cgroup.joiner().map_err(in_cgroup)?),
        };
        let child = sys::clone::clone_child(0, directory.as_ref().map(AsFd::as_fd), || {
            if joiner.as_ref().is_some_and(|j| j.join().is_err()) {
                return 1;
            }
            hold_for_ever(control)
        })?;
        Ok(Self {
            process: process::look(child.pid)?,
            handle: child.pidfd,
        })
    }

    /// The one that an earlier supervisor started, and the terminal that it holds.
    pub(super) fn find(process: Process) -> io::Result<(Self, OwnedFd)> {
        let handle = process::find(process).ok_or(io::ErrorKind::NotFound)?;
        let control = pidfd_getfd(&handle, KEPT, PidfdGetfdFlags::empty())?;
        Ok((Self { handle, process }, control))
    }

    /// The run is over. A keeper that has ended already is fine; it is reaped with the orphans.
    pub(super) fn end(self) {
        sys::pidfd::send_signal(self.handle.as_fd(), libc::SIGKILL).unwrap_or_default();
    }
}

/// Ends by SIGKILL only.
fn hold_for_ever(control: BorrowedFd<'_>) -> i32 {
    if rustix::stdio::dup2_stdin(control).is_err()
        || sys::process::close_from(1).is_err()
        || rustix::thread::set_name(c"podling-tty").is_err()
        || SigSet::all().thread_block().is_err()
    {
        return 1;
    }
    loop {
        nix::unistd::pause();
    }
}
