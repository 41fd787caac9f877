//! Writes to the host's `/proc`, which is believed only when it is one.
//!
//! A write that meant `/proc/self/oom_score_adj`, a sysctl or a security label, and that lands in another file, is a
//! protection that was never applied, or a write to a file of somebody else's choice (CVE-2019-16884,
//! CVE-2025-52881). So nothing is written through the container's `/proc`: the child does it while the host's is
//! in reach, and then only below the root of a real procfs, through no other mount and no magic link.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags};
use rustix::io::Errno;

use super::inside::stat;
use crate::confined;

/// The inode of a procfs' root directory (`PROC_ROOT_INO` of linux/proc_ns.h): part of a procfs bound onto `/proc`
/// has another.
const ROOT_INODE: u64 = 1;

/// Writes to a file below `/proc`, in one call, as the kernel's files want it.
///
/// # Errors
/// `EXDEV` when the file is on another mount than `/proc` itself, `ELOOP` behind a magic link, `ENOTTY` when `/proc`
/// is no procfs.
pub(super) fn write(path: &str, value: &str) -> io::Result<()> {
    let file = open(path)?;
    match rustix::io::write(&file, value.as_bytes())? {
        written if written == value.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Opens a file below `/proc` for writing.
///
/// # Errors
/// As [`write`].
pub(super) fn open(path: &str) -> io::Result<OwnedFd> {
    open_in(&root()?, path)
}

/// As [`open`], with the descriptor of [`root`]. `self` is the process that calls, wherever it is by now.
pub(super) fn open_in(root: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
    let bounds = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
    Ok(confined::open(root, path, OFlags::WRONLY, bounds)?)
}

/// `/proc` itself.
///
/// # Errors
/// `ENOTTY` when it is no procfs.
pub(super) fn root() -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, c"/proc", flags, Mode::empty())?;
    if rustix::fs::fstatfs(&root)?.f_type == PROC_SUPER_MAGIC
        && stat(root.as_fd())?.st_ino == ROOT_INODE
    {
        Ok(root)
    } else {
        Err(Errno::NOTTY.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_file_is_written() {
        // The name of this thread; writing it back changes nothing.
        let name = std::fs::read_to_string("/proc/thread-self/comm").expect("reads");
        write("thread-self/comm", name.trim_end()).expect("writes");
    }

    #[test]
    fn magic_links_and_dots_lead_nowhere() {
        for path in [
            "self/root/proc/self/comm",
            "self/cwd/x",
            "../etc/hostname",
            "/etc/hostname",
        ] {
            assert!(write(path, "x").is_err(), "{path}");
        }
    }
}
