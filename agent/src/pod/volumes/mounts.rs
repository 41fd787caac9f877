//! Mounts that volumes need in the node's mount namespace: tmpfs, pinned binds, and their end.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, move_mount, open_tree, unmount,
};

use super::VolumeError;

/// Mounts a tmpfs; set-user-id programs and devices in it have no effect.
pub(super) fn mount_tmpfs(dir: &Path, options: &str) -> Result<(), VolumeError> {
    let data =
        CString::new(options).map_err(|e| VolumeError::io("mount a tmpfs on", dir)(e.into()))?;
    mount(
        "tmpfs",
        dir,
        "tmpfs",
        MountFlags::NOSUID | MountFlags::NODEV,
        Some(data.as_c_str()),
    )
    .map_err(|e| VolumeError::io("mount a tmpfs on", dir)(e.into()))
}

/// True when something is mounted right on this path.
pub(super) fn is_mount_point(path: &Path) -> Result<bool, VolumeError> {
    match statx(
        CWD,
        path,
        AtFlags::SYMLINK_NOFOLLOW,
        StatxFlags::BASIC_STATS,
    ) {
        Ok(stat) => Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(VolumeError::io("look at", path)(error.into())),
    }
}

/// Binds what a descriptor stands for onto `target`, with the mounts below it.
pub(super) fn bind(source: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    let tree = open_tree(
        source,
        "",
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH
            | OpenTreeFlags::AT_RECURSIVE,
    )?;
    move_mount(
        &tree,
        "",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?;
    Ok(())
}

/// Unmounts everything below a directory, the innermost first.
pub(super) fn unmount_below(dir: &Path) -> Result<(), VolumeError> {
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read(table).map_err(VolumeError::io("read", table))?;
    // The table shows real paths.
    let dir = match dir.canonicalize() {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(VolumeError::io("look at", dir)(error)),
    };
    for point in mount_points_below(&text, &dir).into_iter().rev() {
        match unmount(&point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // INVAL: it went with the mount it was on.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(VolumeError::io("unmount", &point)(error.into())),
        }
    }
    Ok(())
}

/// The mount points below `dir` in the order of `/proc/self/mountinfo` (`man 5 proc_pid_mountinfo`).
fn mount_points_below(table: &[u8], dir: &Path) -> Vec<PathBuf> {
    table
        .split(|b| *b == b'\n')
        .filter_map(|line| line.split(|b| *b == b' ').nth(4))
        .map(unescape)
        .filter(|point| point.starts_with(dir))
        .collect()
}

/// `\040` and its like are octal escapes for space, tab, newline and backslash.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|_| first == b'\\');
        match octal.and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_below_are_found_and_escapes_are_undone() {
        let table = b"1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / /pods/a/volumes/with\\040space rw - tmpfs t rw\n3 1 0:3 / /pods/ab rw - tmpfs t rw\n4 2 0:4 / /pods/a/x rw - tmpfs t rw\n";
        assert_eq!(
            mount_points_below(table, Path::new("/pods/a")),
            [
                PathBuf::from("/pods/a/volumes/with space"),
                PathBuf::from("/pods/a/x")
            ]
        );
    }
}
