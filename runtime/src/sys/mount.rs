//! mount_setattr(2).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// What mount_setattr(2) changes: `MOUNT_ATTR_*` bits to set and to clear, and an `MS_*` propagation or 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Bits to set.
    pub set: u64,
    /// Bits to clear.
    pub clear: u64,
    /// `MS_PRIVATE`, `MS_SLAVE`, `MS_SHARED`, `MS_UNBINDABLE`, or 0 to leave it.
    pub propagation: u64,
}

impl Attributes {
    /// These, and `others` over them.
    #[must_use]
    pub fn and(self, others: Self) -> Self {
        Self {
            set: self.set & !others.clear | others.set,
            clear: self.clear & !others.set | others.clear,
            propagation: match others.propagation {
                0 => self.propagation,
                propagation => propagation,
            },
        }
    }

    /// True when nothing would change.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Changes the mount that `fd` refers to, and with `recursive` all below it.
///
/// # Errors
/// What mount_setattr(2) says.
pub fn set_attributes(
    fd: BorrowedFd<'_>,
    recursive: bool,
    attributes: Attributes,
) -> io::Result<()> {
    call(fd.as_raw_fd(), c"", recursive, attributes, 0)
}

/// Shows the owners of files on the detached mount that `fd` refers to, and with `recursive` on all below it, as the
/// user namespace maps them.
///
/// # Errors
/// What mount_setattr(2) says: `EINVAL` for a file system that cannot.
pub fn set_id_map(
    fd: BorrowedFd<'_>,
    recursive: bool,
    user_namespace: BorrowedFd<'_>,
) -> io::Result<()> {
    let attributes = Attributes {
        set: libc::MOUNT_ATTR_IDMAP,
        ..Default::default()
    };
    let namespace = user_namespace.as_raw_fd();
    call(fd.as_raw_fd(), c"", recursive, attributes, namespace)
}

/// Changes the mount at `path`, and with `recursive` all below it.
///
/// # Errors
/// What mount_setattr(2) says.
pub fn set_attributes_at(path: &CStr, recursive: bool, attributes: Attributes) -> io::Result<()> {
    call(libc::AT_FDCWD, path, recursive, attributes, 0)
}

fn call(
    fd: i32,
    path: &CStr,
    recursive: bool,
    attributes: Attributes,
    user_namespace: i32,
) -> io::Result<()> {
    let attr = libc::mount_attr {
        attr_set: attributes.set,
        attr_clr: attributes.clear,
        propagation: attributes.propagation,
        userns_fd: u64::from(user_namespace.cast_unsigned()),
    };
    let mut flags = 0;
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH;
    }
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: `path` is a C string and `attr` has the size given; both outlive the call, which only reads them.
    // mount_setattr(2).
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            path.as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}
