//! seccomp(2).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// `struct sock_fprog`, whose pointer the kernel only reads.
#[repr(C)]
struct Program {
    length: libc::c_ushort,
    filter: *const u8,
}

/// Puts a filter of eight-byte instructions on the calling thread. Allocates nothing. Gives the listener with
/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`.
pub(super) fn set_filter(flags: u32, program: &[u8]) -> io::Result<Option<OwnedFd>> {
    let length = libc::c_ushort::try_from(program.len() / 8)
        .map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = Program {
        length,
        filter: program.as_ptr(),
    };
    // SAFETY: `program` is a `struct sock_fprog` whose pointer leads to `length` instructions of eight bytes that live
    // over this call; the kernel copies them, without any demand on alignment, and verifies them (seccomp(2)).
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            std::ptr::from_ref(&program),
        )
    };
    match result {
        _ if result < 0 => Err(io::Error::last_os_error()),
        fd if flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32 != 0 => {
            // SAFETY: the kernel has made this descriptor for us alone. seccomp(2),
            // SECCOMP_FILTER_FLAG_NEW_LISTENER.
            Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) }))
        }
        0 => Ok(None),
        // With TSYNC the id of a thread that could not follow.
        _ => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}
