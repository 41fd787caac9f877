//! Owners, modes, times and extended attributes.
//!
//! The order matters: changing the owner clears set-user-ID and capabilities, so it comes first; the mode comes after
//! the attributes because it may take away the right to set them.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};

use super::tree::failed;
use super::{UnpackError, refused, shown};
use crate::tar_stream::{Entry, Kind};

/// What is set on a directory when all else is done.
pub(super) struct DirectoryMetadata {
    mode: Mode,
    times: Timestamps,
}

impl DirectoryMetadata {
    pub(super) fn of(entry: &Entry) -> Self {
        Self {
            mode: mode(entry),
            times: times(entry),
        }
    }

    pub(super) fn apply(&self, directory: BorrowedFd<'_>, path: &[u8]) -> Result<(), UnpackError> {
        rustix::fs::fchmod(directory, self.mode)
            .and_then(|()| rustix::fs::futimens(directory, &self.times))
            .map_err(|e| UnpackError::Entry {
                path: shown(path),
                action: "set the mode and time of the directory",
                source: e.into(),
            })
    }
}

/// For files and directories that are open.
pub(super) fn set_owner_and_xattrs(fd: BorrowedFd<'_>, entry: &Entry) -> Result<(), UnpackError> {
    let (uid, gid) = owner(entry)?;
    rustix::fs::fchown(fd, Some(uid), Some(gid))
        .map_err(failed(entry, "set the owner (this needs root)"))?;
    for (name, value) in kept_xattrs(entry) {
        rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())
            .map_err(failed(entry, "set an extended attribute"))?;
    }
    Ok(())
}

/// For files that are open.
pub(super) fn set_mode_and_time(fd: BorrowedFd<'_>, entry: &Entry) -> Result<(), UnpackError> {
    rustix::fs::fchmod(fd, mode(entry)).map_err(failed(entry, "set the mode"))?;
    rustix::fs::futimens(fd, &times(entry)).map_err(failed(entry, "set the time"))
}

/// For links, devices and pipes, which are not opened.
pub(super) fn set_all_by_name(
    parent: BorrowedFd<'_>,
    name: &[u8],
    entry: &Entry,
) -> Result<(), UnpackError> {
    let (uid, gid) = owner(entry)?;
    let no_follow = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), no_follow)
        .map_err(failed(entry, "set the owner (this needs root)"))?;
    for (attribute, value) in kept_xattrs(entry) {
        // There is no call by descriptor and name; lsetxattr(2) does not follow the last component.
        let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
        path.extend(name);
        rustix::fs::lsetxattr(path.as_slice(), attribute, value, XattrFlags::empty())
            .map_err(failed(entry, "set an extended attribute"))?;
    }
    if entry.kind != Kind::Symlink {
        rustix::fs::chmodat(parent, name, mode(entry), AtFlags::empty())
            .map_err(failed(entry, "set the mode"))?;
    }
    rustix::fs::utimensat(parent, name, &times(entry), no_follow)
        .map_err(failed(entry, "set the time"))
}

fn owner(entry: &Entry) -> Result<(Uid, Gid), UnpackError> {
    // The largest number means "leave as it is" to chown(2).
    let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
    match (id(entry.uid), id(entry.gid)) {
        (Some(uid), Some(gid)) => Ok((Uid::from_raw(uid), Gid::from_raw(gid))),
        _ => Err(refused(&entry.path, "its owner is not a 32-bit number")),
    }
}

/// All but those of overlayfs, which would change how the layer is stacked, and labels, which have no meaning here.
fn kept_xattrs(entry: &Entry) -> impl Iterator<Item = (&std::ffi::OsStr, &[u8])> {
    const LEFT_OUT: [&[u8]; 8] = [
        b"trusted.overlay.",
        b"user.overlay.",
        b"trusted.SGI_",
        b"security.selinux",
        b"security.SMACK64",
        b"security.apparmor",
        b"security.evm",
        b"security.ima",
    ];
    entry
        .xattrs
        .iter()
        .filter(|(name, _)| !LEFT_OUT.iter().any(|prefix| name.starts_with(prefix)))
        .map(|(name, value)| (std::ffi::OsStr::from_bytes(name), value.as_slice()))
}

fn mode(entry: &Entry) -> Mode {
    Mode::from_raw_mode(entry.mode & 0o7777)
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec {
        tv_sec: entry.mtime.0,
        tv_nsec: entry.mtime.1.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
