//! Processes by descriptor: pidfd_open(2), pidfd_send_signal(2), waitid(2) with `P_PIDFD`, `PIDFD_GET_INFO`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};

use super::check;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It ended itself with this code.
    Code(i32),
    /// A signal of this number ended it.
    Signal(i32),
}

impl Exit {
    /// The code, or 128 + the signal's number.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }

    fn from_wait_status(status: i32) -> Self {
        if libc::WIFSIGNALED(status) {
            Self::Signal(libc::WTERMSIG(status))
        } else {
            Self::Code(libc::WEXITSTATUS(status))
        }
    }
}

/// Opens a process. Check its start time afterwards if `pid` came from a file.
///
/// # Errors
/// `ESRCH` when there is none.
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid)
        .filter(|pid| pid.as_raw_nonzero().get() > 0)
        .ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

/// Sends a signal; 0 only looks.
///
/// # Errors
/// `ESRCH` when the process has ended.
pub fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is passed: a null siginfo makes the kernel fill it in. pidfd_send_signal(2).
    check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    })?;
    Ok(())
}

/// Waits for the end of a child and reaps it.
///
/// # Errors
/// `ECHILD` when it is not a child of this process.
pub fn wait(pidfd: BorrowedFd<'_>) -> io::Result<Exit> {
    loop {
        if let Some(exit) = wait_with(pidfd, WaitIdOptions::EXITED)? {
            return Ok(exit);
        }
    }
}

/// Reaps a child if it has ended.
///
/// # Errors
/// `ECHILD` when it is not a child of this process.
pub fn try_wait(pidfd: BorrowedFd<'_>) -> io::Result<Option<Exit>> {
    wait_with(pidfd, WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
}

fn wait_with(pidfd: BorrowedFd<'_>, options: WaitIdOptions) -> io::Result<Option<Exit>> {
    let status = rustix::io::retry_on_intr(|| {
        rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options)
    })?;
    Ok(status.map(
        |status| match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Exit::Code(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => Exit::Code(255),
        },
    ))
}

/// The exit of a process that somebody else has reaped, when the kernel keeps it (Linux 6.15) and the pidfd was
/// opened before. `None` when it is not to be had.
pub fn exit_of_non_child(pidfd: BorrowedFd<'_>) -> Option<Exit> {
    /// `struct pidfd_info` of `linux/pidfd.h`, its first version.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup_id: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    const INFO_EXIT: u64 = 1 << 3;
    /// `_IOWR(0xff, 11, struct pidfd_info)`
    const GET_INFO: libc::Ioctl = 0xC040_FF0B_u32 as libc::Ioctl;

    let mut info = Info {
        mask: INFO_EXIT,
        ..Info::default()
    };
    // SAFETY: `info` has the 64 bytes that the request's number tells, and outlives the call. linux/pidfd.h.
    check(unsafe { libc::ioctl(pidfd.as_raw_fd(), GET_INFO, &raw mut info) }.into()).ok()?;
    (info.mask & INFO_EXIT != 0).then(|| Exit::from_wait_status(info.exit_code))
}
