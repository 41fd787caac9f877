//! seccomp(2).
#![allow(unsafe_code)]

use std::io;

/// `struct sock_fprog`, whose pointer the kernel only reads.
#[repr(C)]
struct Program {
    length: libc::c_ushort,
    filter: *const u8,
}

/// Puts a filter of eight-byte instructions on the calling thread. Allocates nothing.
pub(super) fn set_filter(flags: u32, program: &[u8]) -> io::Result<()> {
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
        0 => Ok(()),
        // With TSYNC the id of a thread that could not follow.
        1.. => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        _ => Err(io::Error::last_os_error()),
    }
}
