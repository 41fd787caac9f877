//! The container's root file system: made, attached where only the container sees it, and made the root.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, UnmountFlags};

use super::detached::{attach_to, clone_at};
use super::error::{At, Failure, Result, Step};
use super::inside::Inside;
use super::mount_plan::RootPropagation;
use super::process::{path_c_string, shown};
use super::{Error, Rootfs};
use crate::sys::mount::{Attributes, set_attributes, set_attributes_at};

type Done = std::result::Result<(), Failure>;

/// The root file system, with all parsing done.
#[derive(Debug)]
pub(super) enum RootfsPlan {
    Directory(CString),
    /// Made by the caller of the child, detached, with the place where it is to be attached.
    Made {
        mount: OwnedFd,
        place: CString,
    },
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

/// No mount event goes in or out.
const PRIVATE: Attributes = Attributes {
    set: 0,
    clear: 0,
    propagation: libc::MS_PRIVATE,
};

impl RootfsPlan {
    /// Makes it now, detached, as whoever calls this.
    pub(super) fn open(&mut self) -> Done {
        let (mount, place) = match self {
            Self::Directory(path) => {
                let mount = clone_at(path, true).at(Step::MakeRootfs, shown(path))?;
                // A copy of a shared mount is shared, and pivot_root(2) refuses such a root.
                set_attributes(mount.as_fd(), true, PRIVATE).at(Step::MakePrivate, shown(path))?;
                (mount, path.clone())
            }
            Self::Overlay {
                layers,
                upper,
                work,
            } => {
                let mount = detached_overlay(layers, upper, work)
                    .map_err(|(subject, e)| Failure::new(Step::MakeRootfs, subject, &e.into()))?;
                (mount, upper.clone())
            }
            Self::Made { .. } => return Ok(()),
        };
        *self = Self::Made { mount, place };
        Ok(())
    }
}

/// The root file system of a container that mounts nothing: a directory of the mount namespace it is in.
pub(super) fn open_as_guest(plan: &RootfsPlan) -> std::result::Result<Inside, Failure> {
    match plan {
        RootfsPlan::Directory(path) => open_directory(path)
            .at(Step::MakeRootfs, shown(path))
            .map(Inside::new),
        RootfsPlan::Made { place, .. } | RootfsPlan::Overlay { upper: place, .. } => {
            let error = io::Error::from_raw_os_error(libc::EINVAL);
            Err(Failure::new(Step::MakeRootfs, shown(place), &error))
        }
    }
}

/// Cuts this mount namespace off from all others: no mount made here is seen elsewhere.
pub(super) fn make_private() -> Done {
    set_attributes_at(c"/", true, PRIVATE).at(Step::MakePrivate, "")
}

/// Makes the root file system and attaches it, in this mount namespace only: over its own directory, or over the
/// overlay's upper one.
pub(super) fn make(plan: &RootfsPlan) -> std::result::Result<Inside, Failure> {
    match plan {
        RootfsPlan::Directory(path) => {
            let mount = clone_at(path, true).at(Step::MakeRootfs, shown(path))?;
            attach_at(mount, path)
        }
        RootfsPlan::Made { mount, place } => {
            let mount = mount.try_clone().at(Step::AttachRootfs, shown(place))?;
            match open_directory(place) {
                // A directory that only the host's users may enter: any place serves.
                Err(Errno::ACCESS) => attach_at(mount, c"/"),
                _ => attach_at(mount, place),
            }
        }
        RootfsPlan::Overlay {
            layers,
            upper,
            work,
        } if !takes_layers_one_by_one(&rustix::system::uname().release().to_string_lossy()) => {
            mount_overlay(layers, upper, work).map(Inside::new)
        }
        RootfsPlan::Overlay {
            layers,
            upper,
            work,
        } => match detached_overlay(layers, upper, work) {
            Ok(mount) => attach_at(mount, upper),
            // Whatever the cause, mount(2) will refuse too, and tell.
            Err((_, Errno::INVAL)) => mount_overlay(layers, upper, work).map(Inside::new),
            Err((subject, error)) => Err(Failure::new(Step::MakeRootfs, subject, &error.into())),
        },
    }
}

fn attach_at(mount: OwnedFd, place: &CStr) -> std::result::Result<Inside, Failure> {
    attach_to(mount.as_fd(), place).at(Step::AttachRootfs, shown(place))?;
    Ok(Inside::new(mount))
}

/// Overlayfs takes layers one by one (`lowerdir+`) since Linux 6.8. Before, trying it costs a line in the kernel's log.
fn takes_layers_one_by_one(release: &str) -> bool {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|number| number.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) => (major, minor) >= (6, 8),
        _ => false,
    }
}

fn open_directory(path: &CStr) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// The longest string that fsconfig(2) takes, in bytes.
const FSCONFIG_MAX_BYTES: usize = 255;

/// A detached overlay; else what failed, and why.
fn detached_overlay(
    layers: &[CString],
    upper: &CStr,
    work: &CStr,
) -> std::result::Result<OwnedFd, (String, Errno)> {
    let failed = |subject: String| move |error: Errno| (subject, error);
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(failed("overlay".to_owned()))?;
    rustix::mount::fsconfig_set_string(&context, "source", "overlay")
        .map_err(failed("overlay".to_owned()))?;
    let set = |key: &str, path: &CStr| {
        if path.count_bytes() <= FSCONFIG_MAX_BYTES {
            return rustix::mount::fsconfig_set_string(&context, key, path);
        }
        let fd = open_directory(path)?;
        rustix::mount::fsconfig_set_string(&context, key, descriptor_path(&fd))
    };
    for layer in layers {
        set("lowerdir+", layer).map_err(failed(shown(layer)))?;
    }
    set("upperdir", upper).map_err(failed(shown(upper)))?;
    set("workdir", work).map_err(failed(shown(work)))?;
    // Nothing in `upper` outlives the container: no sync when it ends.
    rustix::mount::fsconfig_set_flag(&context, "volatile")
        .map_err(failed("overlay (volatile)".to_owned()))?;
    rustix::mount::fsconfig_create(&context).map_err(failed(shown(upper)))?;
    rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .map_err(failed(shown(upper)))
}

/// An overlay for older kernels, by mount(2), at its place at once. The layers are named by descriptors, which need no
/// escapes and of which some 200 fit into the one page that mount(2) takes.
fn mount_overlay(
    layers: &[CString],
    upper: &CStr,
    work: &CStr,
) -> std::result::Result<OwnedFd, Failure> {
    let mut held = Vec::new();
    let mut named = |path: &CStr| -> std::result::Result<String, Failure> {
        let fd = open_directory(path).at(Step::MakeRootfs, shown(path))?;
        let name = descriptor_path(&fd);
        held.push(fd);
        Ok(name)
    };
    let layers: Vec<String> = layers
        .iter()
        .map(|layer| named(layer))
        .collect::<std::result::Result<_, _>>()?;
    let options = format!(
        "lowerdir={},upperdir={},workdir={},volatile",
        layers.join(":"),
        named(upper)?,
        named(work)?
    );
    nix::mount::mount(
        Some("overlay"),
        upper,
        Some("overlay"),
        nix::mount::MsFlags::empty(),
        Some(options.as_str()),
    )
    .at(Step::MakeRootfs, shown(upper))?;
    open_directory(upper).at(Step::AttachRootfs, shown(upper))
}

fn descriptor_path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Makes the mount of the root directory read-only; those below it stay as they are.
pub(super) fn make_readonly(inside: &Inside) -> Done {
    let read_only = Attributes {
        set: libc::MOUNT_ATTR_RDONLY,
        ..Default::default()
    };
    set_attributes(inside.root(), false, read_only).at(Step::MakeReadonly, "/")
}

/// Sets what is left of `linux.rootfsPropagation`, once the root is the root: pivot_root(2) takes no shared one.
pub(super) fn set_propagation(root: RootPropagation) -> Done {
    let attributes = Attributes {
        propagation: root.propagation,
        ..Default::default()
    };
    set_attributes_at(c"/", root.recursive, attributes).at(Step::SetMountAttributes, "/")
}

/// Makes the root file system `/` and lets go of the host's.
pub(super) fn pivot(inside: &Inside) -> Done {
    rustix::process::fchdir(inside.root()).at(Step::PivotRoot, "")?;
    // The old root ends up over the new one, at the same place; unmounting it uncovers the new one. pivot_root(2).
    let pivoted = rustix::process::pivot_root(c".", c".");
    let subject = match pivoted {
        Err(Errno::INVAL) => "(if the host's is the initial RAM disk: --no-pivot)",
        _ => "",
    };
    pivoted.at(Step::PivotRoot, subject)?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH).at(Step::DetachHost, "")?;
    rustix::process::chdir(c"/").at(Step::PivotRoot, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_before_6_8_get_all_layers_at_once() {
        for old in [
            "5.15.0-91-generic",
            "6.1.0-56-cloud-amd64",
            "6.7.12",
            "strange",
        ] {
            assert!(!takes_layers_one_by_one(old), "{old}");
        }
        for new in ["6.8.0", "6.18.44-fc", "7.0-rc1"] {
            assert!(takes_layers_one_by_one(new), "{new}");
        }
    }
}
