//! Detached mounts: made and furnished where nobody sees them, then moved to their place (open_tree(2), fsopen(2),
//! move_mount(2)).

use std::ffi::CStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::CWD;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};

/// A detached copy of the mount that `fd` is on, with `fd` as its root.
pub(super) fn clone_of(fd: BorrowedFd<'_>, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    Ok(rustix::mount::open_tree(fd, c"", flags)?)
}

/// A detached copy of what is mounted at a host path, and below it if `recursive`.
pub(super) fn clone_at(path: &CStr, recursive: bool) -> io::Result<OwnedFd> {
    clone_from(path, recursive, true)
}

/// As [`clone_at`]; without `follow` a symbolic link at the end of the path is what is bound.
pub(super) fn clone_from(path: &CStr, recursive: bool, follow: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if !follow {
        flags |= OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    }
    Ok(rustix::mount::open_tree(CWD, path, flags)?)
}

/// Moves a detached mount onto a place.
pub(super) fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    rustix::mount::move_mount(
        mount,
        c"",
        target,
        c"",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )?;
    Ok(())
}

/// Moves a detached mount to a path of the host's, whose symbolic links are followed.
pub(super) fn attach_to(mount: BorrowedFd<'_>, path: &CStr) -> io::Result<()> {
    rustix::mount::move_mount(
        mount,
        c"",
        CWD,
        path,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS,
    )?;
    Ok(())
}

/// Makes a file system and a detached mount of it, with these attributes. The error names the option that was refused.
pub(super) fn new_filesystem(
    filesystem: &str,
    source: Option<&str>,
    data: &[(String, Option<String>)],
    attributes: MountAttrFlags,
) -> std::result::Result<OwnedFd, (Option<String>, io::Error)> {
    let failed = |error: rustix::io::Errno| (None, error.into());
    let context = rustix::mount::fsopen(filesystem, FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed)?;
    if let Some(source) = source {
        rustix::mount::fsconfig_set_string(&context, "source", source).map_err(failed)?;
    }
    for (name, value) in data {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(&context, name, value),
            None => rustix::mount::fsconfig_set_flag(&context, name),
        }
        .map_err(|error| (Some(name.clone()), error.into()))?;
    }
    rustix::mount::fsconfig_create(&context).map_err(failed)?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed)
}
