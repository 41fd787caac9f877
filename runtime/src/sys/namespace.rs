//! Namespaces: unshare(2), ioctl_nsfs(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// `_IO(0xb7, 3)` of linux/nsfs.h.
const NS_GET_NSTYPE: libc::Ioctl = 0xb703;

/// `CLONE_NEWNET`
pub const NEW_NETWORK: u64 = libc::CLONE_NEWNET as u64;
/// `CLONE_NEWUSER`
pub const NEW_USER: u64 = libc::CLONE_NEWUSER as u64;
/// `CLONE_NEWTIME` of linux/sched.h.
pub const NEW_TIME: u64 = 0x80;

/// The `CLONE_NEW*` bit of an opened namespace.
///
/// # Errors
/// `ENOTTY` when the descriptor is something else.
pub fn type_of(fd: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: takes no memory. ioctl_nsfs(2), NS_GET_NSTYPE.
    let bit = check(unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) }.into())?;
    Ok(bit.cast_unsigned())
}

/// Makes namespaces, of those in which the caller is at once (`CLONE_NEWUSER`, `CLONE_NEWNET`, `CLONE_NEWCGROUP`) or
/// its next children are (`CLONE_NEWTIME`).
///
/// # Errors
/// What unshare(2) says.
pub fn unshare(flags: u64) -> io::Result<()> {
    let flags = libc::c_int::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: of all that unshare(2) can give up, namespaces are no memory and no descriptor table; the bits that
    // would be (CLONE_FILES, CLONE_FS, CLONE_VM and their like) are not below.
    check(unsafe { libc::unshare(flags & NAMESPACES) }.into())?;
    Ok(())
}

const NAMESPACES: libc::c_int = libc::CLONE_NEWUSER
    | libc::CLONE_NEWCGROUP
    | NEW_TIME as libc::c_int
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | NEW_NETWORK as libc::c_int;
