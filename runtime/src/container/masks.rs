//! Paths that the container may not read (`linux.maskedPaths`) or not write (`linux.readonlyPaths`). Those that are
//! not there need nothing. Paths below `/proc` and `/sys` are looked for in the file systems that were just mounted
//! there, whatever has become of the directories since.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::OFlags;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::detached::{attach, clone_of};
use super::devices::open_null;
use super::error::{At, Error, Failure, Step};
use super::inside::{Kind, kind_of};
use super::mount_label;
use super::mounts::Places;
use crate::sys::mount::{Attributes, set_attributes};

type Done = Result<(), Failure>;

/// The paths, from the spec.
#[derive(Debug, Default)]
pub(super) struct Masks {
    masked: Vec<PathBuf>,
    readonly: Vec<PathBuf>,
    /// `linux.mountLabel`.
    label: Option<String>,
}

impl Masks {
    pub(super) fn new(spec: &Spec) -> Self {
        // One that is named twice is covered once.
        let paths = |paths: &Option<Vec<String>>| {
            let mut all: Vec<PathBuf> = Vec::new();
            for path in paths.iter().flatten().map(PathBuf::from) {
                if !all.contains(&path) {
                    all.push(path);
                }
            }
            all
        };
        match spec.linux() {
            Some(linux) => Self {
                masked: paths(linux.masked_paths()),
                readonly: paths(linux.readonly_paths()),
                label: mount_label::asked(spec).map(str::to_owned),
            },
            None => Self::default(),
        }
    }

    /// "The values MUST be absolute paths in the container namespace" (runtime-spec config-linux.md#masked-paths).
    pub(super) fn validate(&self) -> Result<(), Error> {
        for (list, paths) in [
            ("maskedPaths", &self.masked),
            ("readonlyPaths", &self.readonly),
        ] {
            for (index, path) in paths.iter().enumerate() {
                let reason = match path {
                    _ if !path.is_absolute() => "must be absolute",
                    _ if path.as_os_str().as_bytes().contains(&0) => {
                        "a NUL character is not allowed"
                    }
                    _ => continue,
                };
                return Err(Error::Invalid {
                    field: format!("linux.{list}[{index}]"),
                    reason: reason.to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Covers the masked paths, then those to be read-only.
    pub(super) fn apply(&self, places: &Places) -> Done {
        let mut covers = Covers {
            label: self.label.as_deref(),
            ..Covers::default()
        };
        for path in &self.masked {
            mask(places, path, &mut covers).at(Step::MaskPath, path.to_string_lossy())?;
        }
        for path in &self.readonly {
            make_readonly(places, path).at(Step::MakeReadonly, path.to_string_lossy())?;
        }
        Ok(())
    }
}

/// Opens what is there, if anything is.
fn open(places: &Places, path: &Path) -> io::Result<Option<OwnedFd>> {
    let (place, path) = places.of(path);
    match place.open(&path, OFlags::PATH) {
        Ok(fd) => Ok(Some(fd)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// What masked paths are covered with: each kind is made once, attached, and cloned from then on.
#[derive(Debug, Default)]
struct Covers<'a> {
    label: Option<&'a str>,
    file: Option<OwnedFd>,
    directory: Option<OwnedFd>,
}

/// Covers a file with `/dev/null`, and a directory with an empty one.
fn mask(places: &Places, path: &Path, covers: &mut Covers<'_>) -> io::Result<()> {
    let Some(target) = open(places, path)? else {
        return Ok(());
    };
    let kind = kind_of(target.as_fd())?;
    let cover = match kind {
        Kind::File => &mut covers.file,
        Kind::Directory => &mut covers.directory,
    };
    match cover {
        Some(cover) => {
            let cover = clone_of(cover.as_fd(), false)?;
            attach(cover.as_fd(), target.as_fd())?;
            places.inside.set_aside(cover);
        }
        None => {
            let first = cover.insert(match kind {
                Kind::File => null()?,
                Kind::Directory => empty_directory(covers.label)?,
            });
            attach(first.as_fd(), target.as_fd())?;
        }
    }
    places.inside.set_aside(target);
    Ok(())
}

/// The host's `/dev/null`, never the container's (CVE-2025-31133). The mount is read-only, which takes nothing from the
/// device but keeps a container's root from changing the mode, owner or attributes of the host's node through it.
fn null() -> io::Result<OwnedFd> {
    let mount = clone_of(open_null()?.as_fd(), false)?;
    let read_only = Attributes {
        set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC,
        ..Default::default()
    };
    set_attributes(mount.as_fd(), false, read_only)?;
    Ok(mount)
}

fn empty_directory(label: Option<&str>) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    if let Some(label) = label {
        rustix::mount::fsconfig_set_string(&context, "context", label)?;
    }
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
fn make_readonly(places: &Places, path: &Path) -> io::Result<()> {
    let Some(target) = open(places, path)? else {
        return Ok(());
    };
    let mount = clone_of(target.as_fd(), true)?;
    let read_only = Attributes {
        set: libc::MOUNT_ATTR_RDONLY,
        ..Default::default()
    };
    set_attributes(mount.as_fd(), true, read_only)?;
    attach(mount.as_fd(), target.as_fd())?;
    places.inside.set_aside(mount);
    places.inside.set_aside(target);
    Ok(())
}
