//! Owners, modes, times and extended attributes.
//!
//! The order matters: changing the owner clears set-user-ID and capabilities, so it comes first; the mode comes after
//! the attributes because it may take away the right to set them; the time comes last.

use std::ffi::OsStr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::caller::Caller;
use super::tree::failed;
use super::{UnpackError, refused};
use crate::tar_stream::{Entry, Kind};

/// What new files in a directory inherit (acl(5)).
pub(super) const DEFAULT_ACL: &str = "system.posix_acl_default";

/// Attributes that say how this file system, or the machine that built the image, sees the file: those of overlayfs
/// would change how layers are stacked, labels and measurements have no meaning here.
const LEFT_OUT: [&[u8]; 10] = [
    b"trusted.overlay.",
    b"user.overlay.",
    b"trusted.SGI_",
    b"security.selinux",
    b"security.SMACK64",
    b"security.apparmor",
    b"security.evm",
    b"security.ima",
    b"system.nfs4_acl",
    b"system.richacl",
];

/// True for an attribute that is not taken from an archive, nor from another directory.
pub(crate) fn is_left_out(name: &[u8]) -> bool {
    LEFT_OUT.iter().any(|prefix| name.starts_with(prefix))
}

/// Sets what an entry says of a file that is open. `created_mode` is the mode it was created with, `foreign_group` is
/// true when its directory may have passed on a group.
pub(super) fn set_all(
    fd: BorrowedFd<'_>,
    entry: &Entry,
    caller: &Caller,
    created_mode: Option<Mode>,
    foreign_group: bool,
) -> Result<(), UnpackError> {
    let (uid, gid) = owner(entry)?;
    if foreign_group || !belongs_to(caller, uid, gid) {
        rustix::fs::fchown(fd, Some(uid), Some(gid)).map_err(owner_failed(entry, caller))?;
    }
    set_xattrs(fd, entry, caller)?;
    if created_mode != Some(mode(entry)) {
        rustix::fs::fchmod(fd, mode(entry)).map_err(failed(entry, "set the mode"))?;
    }
    rustix::fs::futimens(fd, &times(entry)).map_err(failed(entry, "set the time"))
}

/// For links, devices and pipes, which are not opened.
pub(super) fn set_all_by_name(
    parent: BorrowedFd<'_>,
    name: &[u8],
    entry: &Entry,
    caller: &Caller,
    foreign_group: bool,
) -> Result<(), UnpackError> {
    let (uid, gid) = owner(entry)?;
    let no_follow = AtFlags::SYMLINK_NOFOLLOW;
    if foreign_group || !belongs_to(caller, uid, gid) {
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), no_follow)
            .map_err(owner_failed(entry, caller))?;
    }
    for (attribute, value) in kept_xattrs(entry, caller) {
        // There is no call by descriptor and name; lsetxattr(2) does not follow the last component.
        let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
        path.extend(name);
        rustix::fs::lsetxattr(path.as_slice(), attribute, value, XattrFlags::empty())
            .map_err(xattr_failed(entry))?;
    }
    if entry.kind != Kind::Symlink {
        rustix::fs::chmodat(parent, name, mode(entry), AtFlags::empty())
            .map_err(failed(entry, "set the mode"))?;
    }
    rustix::fs::utimensat(parent, name, &times(entry), no_follow)
        .map_err(failed(entry, "set the time"))
}

/// Sets the attributes that are kept, but for what new files would inherit.
pub(super) fn set_xattrs(
    fd: BorrowedFd<'_>,
    entry: &Entry,
    caller: &Caller,
) -> Result<(), UnpackError> {
    for (name, value) in kept_xattrs(entry, caller).filter(|(name, _)| *name != DEFAULT_ACL) {
        rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()).map_err(xattr_failed(entry))?;
    }
    Ok(())
}

/// Removes all attributes but those of overlayfs: an entry says all that its file shall have.
pub(super) fn clear_xattrs(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut names = vec![0_u8; 64 * 1024];
    let len = match rustix::fs::flistxattr(fd, &mut names) {
        Ok(len) => len,
        Err(Errno::NOTSUP) => return Ok(()),
        Err(e) => return Err(e),
    };
    for name in names[..len].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        if is_left_out(name) {
            continue;
        }
        rustix::fs::fremovexattr(fd, OsStr::from_bytes(name))?;
    }
    Ok(())
}

/// The attribute with what new files in the directory inherit, if the entry has one.
pub(super) fn default_acl(entry: &Entry) -> Option<&Vec<u8>> {
    entry.xattrs.get(DEFAULT_ACL.as_bytes())
}

/// The owner and group; an id that no process can have is refused.
pub(super) fn owner(entry: &Entry) -> Result<(Uid, Gid), UnpackError> {
    // The largest number means "leave as it is" to chown(2).
    let id = |id: u64| u32::try_from(id).ok().filter(|id| *id != u32::MAX);
    match (id(entry.uid), id(entry.gid)) {
        (Some(uid), Some(gid)) => Ok((Uid::from_raw(uid), Gid::from_raw(gid))),
        _ => Err(refused(&entry.path, "its owner is not a 32-bit number")),
    }
}

/// True when new files have this owner already.
pub(super) fn belongs_to(caller: &Caller, uid: Uid, gid: Gid) -> bool {
    (uid.as_raw(), gid.as_raw()) == (caller.uid, caller.gid)
}

fn kept_xattrs<'a>(
    entry: &'a Entry,
    caller: &Caller,
) -> impl Iterator<Item = (&'a OsStr, &'a [u8])> + use<'a> {
    let in_user_namespace = caller.in_user_namespace;
    entry
        .xattrs
        .iter()
        .filter(|(name, _)| !is_left_out(name))
        // Nobody in a user namespace can set or see these (xattr(7)).
        .filter(move |(name, _)| !(in_user_namespace && name.starts_with(b"trusted.")))
        .map(|(name, value)| (OsStr::from_bytes(name), value.as_slice()))
}

pub(super) fn mode(entry: &Entry) -> Mode {
    Mode::from_raw_mode(entry.mode & 0o7777)
}

pub(super) fn times(entry: &Entry) -> Timestamps {
    let time = Timespec {
        tv_sec: entry.mtime.0,
        tv_nsec: entry.mtime.1.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

pub(super) fn owner_failed(entry: &Entry, caller: &Caller) -> impl FnOnce(Errno) -> UnpackError {
    let action = if caller.in_user_namespace {
        "set the owner (this user namespace must map it: see subuid(5))"
    } else {
        "set the owner (this needs root)"
    };
    failed(entry, action)
}

fn xattr_failed(entry: &Entry) -> impl FnOnce(Errno) -> UnpackError {
    let fail = |action| failed(entry, action);
    let (full, other) = (
        fail("set an extended attribute (the file system has no room for so many on one file)"),
        fail("set an extended attribute"),
    );
    move |errno| match errno {
        Errno::NOSPC | Errno::TOOBIG => full(errno),
        _ => other(errno),
    }
}
