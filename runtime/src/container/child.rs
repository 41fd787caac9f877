//! A child that does not outlive its owner by accident.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::Running;
use crate::sys;

/// A child that is killed and reaped when this is dropped, unless it is released before.
#[derive(Debug)]
pub(super) struct Child {
    pid: i32,
    pidfd: OwnedFd,
    guarded: bool,
}

impl Child {
    pub(super) fn new(child: sys::clone::Child) -> Self {
        Self {
            pid: child.pid,
            pidfd: child.pidfd,
            guarded: true,
        }
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// From now on the process is the caller's to wait for.
    pub(super) fn release(mut self, terminal: Option<OwnedFd>) -> std::io::Result<Running> {
        let running = Running {
            pid: self.pid,
            pidfd: self.pidfd.try_clone()?,
            terminal,
        };
        self.guarded = false;
        Ok(running)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.guarded {
            return;
        }
        // It may have ended by itself. Killed, it ends; with it all processes of its pid namespace.
        if let Err(error) = sys::pidfd::send_signal(self.pidfd(), libc::SIGKILL)
            && error.raw_os_error() != Some(libc::ESRCH)
        {
            tracing::warn!(pid = self.pid, %error, "cannot kill an unfinished container");
            return;
        }
        if let Err(error) = sys::pidfd::wait(self.pidfd()) {
            tracing::warn!(pid = self.pid, %error, "cannot reap an unfinished container");
        }
    }
}
