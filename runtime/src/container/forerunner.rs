//! The forerunner: a short-lived process between the caller and the container's, for namespaces that one clone cannot
//! make ([`namespaces`](super::namespaces) says which).
//!
//! ```text
//! parent ── clone3 ──► forerunner: cgroup (v1), joins, user namespace, time offsets
//!    ▲                     │ clone3(CLONE_PARENT) ──► the container's process, a child of the parent
//!    └─── P: pid, pidfd ───┤                              waits for the forerunner's end
//!         reaps it         ╧ ───────────────────────────► goes on
//! ```

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::retry_on_intr;

use super::channel::Channel;
use super::child::Child;
use super::error::{At, Error, Failure, Result, Step};
use super::init::report;
use crate::sys;

/// In the forerunner, in its namespaces: makes the container's process, which runs `child` with the channel's end,
/// and tells the parent. Returns the forerunner's exit code.
pub(super) fn hand_over(flags: u64, parent: Channel, child: impl FnOnce(Channel) -> i32) -> i32 {
    match try_hand_over(flags, &parent, child) {
        Ok(()) => 0,
        Err(failure) => report(&parent, &failure),
    }
}

fn try_hand_over(
    flags: u64,
    parent: &Channel,
    child: impl FnOnce(Channel) -> i32,
) -> std::result::Result<(), Failure> {
    let at = |e: std::io::Error| Failure::new(Step::CloneProcess, "", &e);
    let childs_end = parent.try_clone().map_err(at)?;
    let (until_end, end) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).at(Step::CloneProcess, "")?;
    let own_number = std::os::fd::AsRawFd::as_raw_fd(&parent.as_fd());
    let mut plan = Some((child, childs_end, end));
    let made = sys::clone::clone_sibling(flags, || {
        sys::process::close_number(own_number);
        let Some((child, channel, end)) = plan.take() else {
            return 1;
        };
        drop(end);
        // Nothing is ever written: this is the forerunner's end. The parent knows this process then.
        if retry_on_intr(|| rustix::io::read(&until_end, &mut [0_u8])).is_err() {
            return 1;
        }
        child(channel)
    })
    .map_err(at)?;
    let told = parent.send(&born(made.pid), Some(made.pidfd.as_fd()));
    told.map_err(at)
}

fn born(pid: i32) -> Vec<u8> {
    let mut packet = vec![b'P'];
    packet.extend_from_slice(&pid.to_le_bytes());
    packet
}

/// In the parent: the process that was born takes the place of its forerunner, which is reaped.
pub(super) fn succeed(child: &mut Child, pid: i32, pidfd: OwnedFd) -> Result<()> {
    let forerunner = std::mem::replace(child, Child::new(sys::clone::Child { pid, pidfd }));
    let gone = forerunner.release(None).map_err(Error::Channel)?;
    sys::pidfd::wait(gone.pidfd.as_fd())
        .map_err(|source| Error::Process {
            pid: gone.pid,
            source,
        })
        .map(drop)
}
