//! What a process does to itself: execve(2), close_range(2), signals, limits, keyrings.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::path::Path;

use super::check;
use crate::kernel_file;

/// Ends the process at once: no destructor, no buffer.
pub fn exit(code: i32) -> ! {
    // SAFETY: takes no memory and does not return. _exit(2).
    unsafe { libc::_exit(code) }
}

/// Becomes another program; returns only when that fails.
pub fn execve(path: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
        strings
            .iter()
            .map(|s| s.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    }
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end with a null pointer and point to C strings that outlive the call. execve(2).
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Closes all descriptors from `first` on. Owners of such descriptors must not drop them afterwards: for a process
/// that is about to execute or exit.
///
/// # Errors
/// What close_range(2) says.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: takes no memory; the caller keeps to the rule above, and a broken rule gives EBADF, not a memory
    // error, as the process opens nothing that it owns in the meantime. close_range(2).
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) })?;
    Ok(())
}

/// Closes descriptors: by one system call where their numbers follow each other.
pub fn close_all(fds: Vec<OwnedFd>) {
    let mut numbers: Vec<RawFd> = fds.into_iter().map(OwnedFd::into_raw_fd).collect();
    numbers.sort_unstable();
    for run in numbers.chunk_by(|a, b| a + 1 == *b) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else {
            continue;
        };
        // SAFETY: takes no memory; each number from `first` to `last` was owned here, and is by nobody now. It fails only
        // where the kernel has no such call, and has closed nothing then. close_range(2).
        let closed = unsafe { libc::syscall(libc::SYS_close_range, *first, *last, 0) };
        if closed != 0 {
            run.iter().copied().for_each(close_number);
        }
    }
}

/// Marks all descriptors from `first` on close-on-exec.
///
/// # Errors
/// What close_range(2) says.
pub fn cloexec_from(first: u32) -> io::Result<()> {
    // SAFETY: takes no memory and closes nothing. close_range(2).
    check(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    })?;
    Ok(())
}

/// Makes `number` a close-on-exec copy of `fd`, replacing what it was. For a process that is about to execute: the
/// number's former owner, if any, must not be dropped afterwards.
///
/// # Errors
/// What dup3(2) says.
pub fn duplicate_to(fd: RawFd, number: RawFd) -> io::Result<OwnedFd> {
    if fd != number {
        // SAFETY: takes no memory. dup(2).
        check(unsafe { libc::dup3(fd, number, libc::O_CLOEXEC) }.into())?;
    }
    // SAFETY: the descriptor is open; that a former owner is never dropped is the caller's promise above.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Gives all signals their default action and unblocks them, as a new program expects. For a child of
/// [`super::clone::clone_child`], which has no handlers: only what its parent ignored is ignored still.
///
/// # Errors
/// What sigprocmask(2) says.
pub fn reset_signals() -> io::Result<()> {
    // Unreadable: all of them.
    let ignored = ignored_signals().unwrap_or(u64::MAX);
    // SAFETY: an all-zero sigaction is SIG_DFL with no flags and an empty mask; no handler is installed, so that no
    // code can run in a signal's context. Refusals (SIGKILL, SIGSTOP, glibc's own) leave the default anyway.
    // sigaction(2).
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        for signal in (1..=libc::SIGRTMAX()).filter(|signal| ignored & 1 << (signal - 1) != 0) {
            libc::sigaction(signal, &raw const default, std::ptr::null_mut());
        }
    }
    // SAFETY: the set is initialised by sigemptyset before it is read. sigprocmask(2).
    let result = unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut())
    };
    check(result.into())?;
    Ok(())
}

/// The signals that this process ignores, signal 1 in bit 0: `SigIgn` of proc_pid_status(5).
fn ignored_signals() -> Option<u64> {
    let status = kernel_file::read_one(Path::new("/proc/self/status")).ok()?;
    let status = String::from_utf8_lossy(&status);
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))?;
    u64::from_str_radix(ignored.trim(), 16).ok()
}

/// Sets a resource limit, by its `RLIMIT_*` number.
///
/// # Errors
/// `EPERM` when a hard limit is raised without CAP_SYS_RESOURCE.
pub fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: `limit` outlives the call, which only reads it. prlimit(2).
    let result =
        unsafe { libc::prlimit64(0, resource as _, &raw const limit, std::ptr::null_mut()) };
    check(result.into())?;
    Ok(())
}

/// Joins a new session keyring, so that keys of the caller's are out of reach. A kernel without keys is fine.
///
/// # Errors
/// What keyctl(2) says.
pub fn new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;
    // SAFETY: a null name asks for an anonymous keyring; no memory is passed. keyctl(2).
    match check(unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        )
    }) {
        Err(error) if error.raw_os_error() != Some(libc::ENOSYS) => Err(error),
        _ => Ok(()),
    }
}

/// Sets the execution domain (`PER_LINUX`, `PER_LINUX32`).
///
/// # Errors
/// What personality(2) says.
pub fn set_personality(domain: u64) -> io::Result<()> {
    // SAFETY: takes no memory. personality(2).
    check(unsafe { libc::personality(domain) }.into())?;
    Ok(())
}

/// Closes a descriptor in a child that has inherited it. Its owner must not be dropped in the child afterwards.
pub fn close_number(number: RawFd) {
    // SAFETY: takes no memory; the child runs no destructor of the owner, which lives on in the parent. close(2).
    unsafe { libc::close(number) };
}

/// Leaves a descriptor open for ever if it has the number of a standard stream; closes it otherwise.
pub fn keep_standard(fd: OwnedFd) -> bool {
    use std::os::fd::AsRawFd;
    let is_standard = fd.as_raw_fd() <= libc::STDERR_FILENO;
    if is_standard {
        std::mem::forget(fd);
    }
    is_standard
}

/// Keeps children that have ended until they are waited for: ignored, SIGCHLD has the kernel throw their exit codes away
/// (wait(2), notes), and a caller may have left it ignored.
pub fn keep_ended_children() {
    // SAFETY: no handler is installed, so that no code can run in a signal's context. signal(2).
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Makes writing to a pipe or socket whose other end is gone an error, and no signal.
pub fn ignore_broken_pipes() {
    // SAFETY: no handler is installed, so that no code can run in a signal's context. signal(2).
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
}
