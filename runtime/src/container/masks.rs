//! Paths that the container may not read (`linux.maskedPaths`) or not write (`linux.readonlyPaths`). Those that are
//! not there need nothing.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::OFlags;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::devices::open_null;
use super::error::{At, Failure, Step};
use super::inside::{Inside, Kind, kind_of};
use super::mounts::{attach, clone_of};
use crate::sys::mount::{Attributes, set_attributes};

type Done = Result<(), Failure>;

/// The paths, from the spec.
#[derive(Debug, Default)]
pub(super) struct Masks {
    masked: Vec<PathBuf>,
    readonly: Vec<PathBuf>,
}

impl Masks {
    pub(super) fn new(spec: &Spec) -> Self {
        let paths = |paths: &Option<Vec<String>>| {
            paths
                .iter()
                .flatten()
                .map(PathBuf::from)
                .collect::<Vec<_>>()
        };
        match spec.linux() {
            Some(linux) => Self {
                masked: paths(linux.masked_paths()),
                readonly: paths(linux.readonly_paths()),
            },
            None => Self::default(),
        }
    }

    /// Covers the masked paths, then those to be read-only.
    pub(super) fn apply(&self, inside: &Inside) -> Done {
        let mut null = None;
        let mut empty = None;
        for path in &self.masked {
            mask(inside, path, &mut null, &mut empty).at(Step::MaskPath, path.to_string_lossy())?;
        }
        for path in &self.readonly {
            make_readonly(inside, path).at(Step::MakeReadonly, path.to_string_lossy())?;
        }
        Ok(())
    }
}

/// Opens what is there, if anything is.
fn open(inside: &Inside, path: &Path) -> io::Result<Option<OwnedFd>> {
    match inside.open(path, OFlags::PATH) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Covers a file with the host's `/dev/null`, and a directory with an empty one that cannot be written.
fn mask(
    inside: &Inside,
    path: &Path,
    null: &mut Option<OwnedFd>,
    empty: &mut Option<OwnedFd>,
) -> io::Result<()> {
    let Some(target) = open(inside, path)? else {
        return Ok(());
    };
    let cover = match (kind_of(target.as_fd())?, &*empty) {
        (Kind::File, _) => {
            let null = match null {
                Some(null) => null,
                None => null.insert(open_null()?),
            };
            clone_of(null.as_fd(), false)?
        }
        // One file system serves all; it can be cloned once it is attached.
        (Kind::Directory, Some(empty)) => clone_of(empty.as_fd(), false)?,
        (Kind::Directory, None) => {
            let first = empty_directory()?;
            attach(first.as_fd(), target.as_fd())?;
            *empty = Some(first);
            return Ok(());
        }
    };
    attach(cover.as_fd(), target.as_fd())
}

fn empty_directory() -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "source", "tmpfs")?;
    rustix::mount::fsconfig_set_string(&context, "mode", "755")?;
    rustix::mount::fsconfig_set_flag(&context, "ro")?;
    rustix::mount::fsconfig_create(&context)?;
    Ok(rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )?)
}

/// Binds what is there onto itself, read-only with all below it.
fn make_readonly(inside: &Inside, path: &Path) -> io::Result<()> {
    let Some(target) = open(inside, path)? else {
        return Ok(());
    };
    let mount = clone_of(target.as_fd(), true)?;
    let read_only = Attributes {
        set: libc::MOUNT_ATTR_RDONLY,
        ..Default::default()
    };
    set_attributes(mount.as_fd(), true, read_only)?;
    attach(mount.as_fd(), target.as_fd())
}
