//! clone3(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::check;

/// `CLONE_INTO_CGROUP` of `linux/sched.h`. libc's constant overflowed to 0 in 0.2.191, with which the child would
/// land in the parent's cgroup without an error.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// `CLONE_CLEAR_SIGHAND` of `linux/sched.h`: the child starts without the parent's signal handlers.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;

/// A child process.
#[derive(Debug)]
pub struct Child {
    /// In the caller's pid namespace.
    pub pid: i32,
    /// Close-on-exec.
    pub pidfd: OwnedFd,
}

/// How many threads this process has.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn thread_count() -> io::Result<u64> {
    // The directory's link count is 2 + the number of threads (proc_task_getattr in fs/proc/base.c).
    Ok(std::fs::metadata("/proc/self/task")?
        .nlink()
        .saturating_sub(2))
}

/// Runs `child` in a new process with a copy of this process's memory, in the new namespaces `flags` (`CLONE_NEW*`)
/// and, if given, in the v2 cgroup whose directory is `cgroup`. The process ends with the exit code that `child`
/// returns; it never returns into the caller's code.
///
/// # Errors
/// `WouldBlock` when this process has more than one thread: the copy could hold a lock whose owner is not there.
/// Else what clone3(2) says.
pub fn clone_child(
    flags: u64,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> i32,
) -> io::Result<Child> {
    if thread_count()? != 1 {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    let exit_signal = libc::SIGCHLD as u64;
    clone3(flags, exit_signal, cgroup, child)
}

/// As [`clone_child`], but the new process is a child of the caller's parent.
///
/// # Errors
/// `EINVAL` when this process has more than one thread. Else what clone3(2) says.
pub fn clone_sibling(flags: u64, child: impl FnOnce() -> i32) -> io::Result<Child> {
    // Changes nothing, and is refused to a process with threads. Unlike a look at /proc it works anywhere.
    // SAFETY: takes no memory, and with one thread there is nothing to give up. unshare(2).
    check(unsafe { libc::unshare(libc::CLONE_THREAD) }.into())?;
    // The exit signal is the caller's own.
    clone3(flags | libc::CLONE_PARENT as u64, 0, None, child)
}

/// The caller has made sure that this process has one thread.
fn clone3(
    flags: u64,
    exit_signal: u64,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> i32,
) -> io::Result<Child> {
    let mut pidfd: libc::c_int = -1;
    let args = libc::clone_args {
        flags: flags
            | libc::CLONE_PIDFD as u64
            | CLONE_CLEAR_SIGHAND
            | cgroup.map_or(0, |_| CLONE_INTO_CGROUP),
        pidfd: &raw mut pidfd as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    // SAFETY: without CLONE_VM the child gets its own copy of the memory, so that no state is shared; the process
    // has one thread, so that no lock is held by a thread that the copy lacks; `args` and `pidfd` outlive the call.
    // clone(2).
    let pid = check(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const args,
            size_of::<libc::clone_args>(),
        )
    })?;
    if pid == 0 {
        let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(255);
        super::process::exit(code);
    }
    Ok(Child {
        pid: pid as i32,
        // SAFETY: the kernel has stored a new descriptor that nobody else owns. clone(2), CLONE_PIDFD.
        pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
    })
}
