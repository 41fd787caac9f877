//! The container's root file system: made, attached where only the container sees it, and made the root.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, UnmountFlags};

use super::error::{At, Failure, Result, Step};
use super::inside::Inside;
use super::mounts::{attach, clone_at};
use super::process::{path_c_string, shown};
use super::{Error, Rootfs};
use crate::sys::mount::{Attributes, set_attributes, set_attributes_at};

type Done = std::result::Result<(), Failure>;

/// The root file system, with all parsing done.
#[derive(Debug)]
pub(super) enum RootfsPlan {
    Directory(CString),
    Overlay {
        /// The highest first, as overlayfs wants them.
        layers: Vec<CString>,
        upper: CString,
        work: CString,
    },
}

impl RootfsPlan {
    pub(super) fn new(rootfs: Rootfs<'_>) -> Result<Self> {
        Ok(match rootfs {
            Rootfs::Directory(path) => Self::Directory(path_c_string("root.path", path)?),
            Rootfs::Overlay {
                layers,
                upper,
                work,
            } => {
                if layers.is_empty() {
                    return Err(Error::Invalid {
                        field: "rootfs".to_owned(),
                        reason: "an overlay needs a layer".to_owned(),
                    });
                }
                let path = |path: &Path| path_c_string("rootfs", path);
                Self::Overlay {
                    layers: layers
                        .iter()
                        .rev()
                        .map(|l| path(l))
                        .collect::<Result<_>>()?,
                    upper: path(upper)?,
                    work: path(work)?,
                }
            }
        })
    }
}

/// Cuts this mount namespace off from all others: no mount made here is seen elsewhere.
pub(super) fn make_private() -> Done {
    let private = Attributes {
        propagation: libc::MS_PRIVATE,
        ..Default::default()
    };
    set_attributes_at(c"/", true, private).at(Step::MakePrivate, "")
}

/// Makes the root file system and attaches it, in this mount namespace only: over its own directory, or over the
/// overlay's upper one.
pub(super) fn make(plan: &RootfsPlan) -> std::result::Result<Inside, Failure> {
    let (mount, place) = match plan {
        RootfsPlan::Directory(path) => {
            let mount = clone_at(path, true).at(Step::MakeRootfs, shown(path))?;
            (mount, path)
        }
        RootfsPlan::Overlay {
            layers,
            upper,
            work,
        } => {
            let mount = overlay(layers, upper, work)
                .map_err(|(subject, error)| Failure::new(Step::MakeRootfs, subject, &error))?;
            (mount, upper)
        }
    };
    let target = rustix::fs::open(
        place,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .at(Step::AttachRootfs, shown(place))?;
    attach(mount.as_fd(), target.as_fd()).at(Step::AttachRootfs, shown(place))?;
    Ok(Inside::new(mount))
}

/// A detached overlay.
fn overlay(
    layers: &[CString],
    upper: &CString,
    work: &CString,
) -> std::result::Result<OwnedFd, (String, io::Error)> {
    let named = |name: &str| {
        let name = name.to_owned();
        move |error: Errno| (name, io::Error::from(error))
    };
    let context =
        rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(named("overlay"))?;
    let set = |key: &str, value: &CString| {
        rustix::mount::fsconfig_set_string(&context, key, value.as_c_str())
    };
    set("source", &c"overlay".into()).map_err(named("overlay"))?;
    // Layers one by one are known since Linux 6.8; before that all are one string, in which they must be short.
    let mut held = Vec::new();
    match set("lowerdir+", &layers[0]) {
        Ok(()) => {
            for layer in &layers[1..] {
                set("lowerdir+", layer).map_err(named(&shown(layer)))?;
            }
        }
        Err(_) => {
            let joined = joined_layers(layers, &mut held)?;
            set("lowerdir", &joined).map_err(named(&shown(&joined)))?;
        }
    }
    set("upperdir", upper).map_err(named(&shown(upper)))?;
    set("workdir", work).map_err(named(&shown(work)))?;
    // Nothing in `upper` outlives the container: no sync when it ends.
    rustix::mount::fsconfig_set_flag(&context, "volatile").map_err(named("overlay (volatile)"))?;
    rustix::mount::fsconfig_create(&context).map_err(named(&shown(upper)))?;
    rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .map_err(named(&shown(upper)))
}

/// `lowerdir` for old kernels: descriptors' paths, which need no escapes and fit many layers into one page.
fn joined_layers(
    layers: &[CString],
    held: &mut Vec<OwnedFd>,
) -> std::result::Result<CString, (String, io::Error)> {
    let mut joined = Vec::new();
    for layer in layers {
        let fd = rustix::fs::openat(
            CWD,
            layer,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| (shown(layer), e.into()))?;
        if !joined.is_empty() {
            joined.push(b':');
        }
        joined.extend_from_slice(format!("/proc/self/fd/{}", fd.as_raw_fd()).as_bytes());
        held.push(fd);
    }
    CString::new(joined).map_err(|e| (String::new(), e.into()))
}

/// Makes the mount of the root directory read-only; those below it stay as they are.
pub(super) fn make_readonly(inside: &Inside) -> Done {
    let read_only = Attributes {
        set: libc::MOUNT_ATTR_RDONLY,
        ..Default::default()
    };
    set_attributes(inside.root(), false, read_only).at(Step::MakeReadonly, "/")
}

/// Sets `linux.rootfsPropagation`, once the root is the root.
pub(super) fn set_propagation((propagation, recursive): (u64, bool)) -> Done {
    let attributes = Attributes {
        propagation,
        ..Default::default()
    };
    set_attributes_at(c"/", recursive, attributes).at(Step::SetMountAttributes, "/")
}

/// Makes the root file system `/` and lets go of the host's.
pub(super) fn pivot(inside: &Inside) -> Done {
    rustix::process::fchdir(inside.root()).at(Step::PivotRoot, "")?;
    // The old root ends up over the new one, at the same place; unmounting it uncovers the new one. pivot_root(2).
    rustix::process::pivot_root(c".", c".").at(Step::PivotRoot, "")?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH).at(Step::DetachHost, "")?;
    rustix::process::chdir(c"/").at(Step::PivotRoot, "")
}
