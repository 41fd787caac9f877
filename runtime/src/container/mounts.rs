//! The spec's mounts, made in its order, below the container's root.
//!
//! A mount is complete, attributes and all, before it is moved onto its target: no moment shows it writable that is
//! to be read-only. Sources of bind mounts are host paths and are opened before anything else changes; targets are
//! the image's and are opened by [`Inside`].

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::MountAttrFlags;

use super::cgroup_mounts;
use super::copy_up::copy_up;
use super::detached::{attach, clone_at, clone_from, new_filesystem};
use super::error::{At, Failure, Result, Step};
use super::id_mapped::{IdNamespaces, MountIds};
use super::inside::{Inside, Kind, kind_of};
use super::mount_label;
use super::mount_plan::{MountPlan, Source, is_root, lexical};
use super::process::shown;
use super::user_namespace::UserNamespace;
use crate::sys::mount::{Attributes, set_attributes, set_id_map};

type Done = std::result::Result<(), Failure>;

/// Opens the host's side of all mounts where that was not done yet, before mounts become private: a shared one stays
/// shared with the host.
pub(super) fn open_sources(plans: &mut [MountPlan]) -> Done {
    for plan in plans.iter_mut().filter(|plan| plan.opened.is_empty()) {
        match &plan.source {
            Source::Bind { path, .. }
                if plan.options.copy_symlink
                    && let Some(target) = read_link(path) =>
            {
                plan.source = Source::Link(target);
            }
            Source::Bind { path, recursive } => {
                let follow = !plan.options.source_nofollow;
                plan.opened = vec![open_bind_source(path, *recursive, follow)?];
            }
            Source::CgroupV1(directories) => {
                let open = |path: &CStr| clone_at(path, false).at(Step::OpenSource, shown(path));
                plan.opened = directories
                    .iter()
                    .map(|d| open(&d.path))
                    .collect::<std::result::Result<_, _>>()?;
            }
            Source::New { .. } | Source::Link(_) | Source::Remount => {}
        }
    }
    Ok(())
}

fn open_bind_source(
    path: &CStr,
    recursive: bool,
    follow: bool,
) -> std::result::Result<OwnedFd, Failure> {
    clone_from(path, recursive, follow).map_err(|error| {
        // What is mounted below may hide something from the namespace (mount_namespaces(7)).
        let hint = match error.raw_os_error() {
            Some(libc::EINVAL) if !recursive => {
                " (without the mounts below it, which an ordinary user must take along: rbind)"
            }
            _ => "",
        };
        Failure::new(Step::OpenSource, format!("{}{hint}", shown(path)), &error)
    })
}

/// The target of a symbolic link; none of anything else.
fn read_link(path: &CStr) -> Option<CString> {
    rustix::fs::readlinkat(CWD, path, Vec::new()).ok()
}

/// True when there is a mount whose ids are to be mapped.
pub(super) fn any_id_mapped(plans: &[MountPlan]) -> bool {
    plans.iter().any(|plan| plan.ids.is_some())
}

/// In the parent, with its rights: opens the mounts whose ids are to be mapped, and maps them.
pub(super) fn open_id_mapped(plans: &mut [MountPlan], container: &UserNamespace) -> Result<()> {
    let mut namespaces = IdNamespaces::new(container);
    let all_ids: Vec<Option<MountIds>> = plans.iter().map(|plan| plan.ids.clone()).collect();
    for (plan, ids) in plans.iter_mut().zip(&all_ids) {
        let Some(ids) = ids else { continue };
        let name = plan.destination.to_string_lossy().into_owned();
        open_sources(std::slice::from_mut(plan)).map_err(Failure::into_error)?;
        let namespace = namespaces.get(ids)?;
        for mount in &plan.opened {
            set_id_map(mount.as_fd(), ids.recursive, namespace.as_fd())
                .at(Step::MapMountIds, &name)
                .map_err(Failure::into_error)?;
        }
    }
    Ok(())
}

/// The container's root directory, and the file systems mounted in it that are looked into again.
#[derive(Debug)]
pub(super) struct Places {
    /// The root directory.
    pub(super) inside: Inside,
    /// The container's own devpts, if one was mounted.
    pub(super) devpts: Option<OwnedFd>,
    /// The procfs and sysfs mounted here, by destination, a deeper one later; those that a later mount covers are left
    /// out.
    kernel: Vec<(PathBuf, Inside)>,
    /// Those that become read-only at the end, with their destinations.
    late_readonly: Vec<(PathBuf, OwnedFd)>,
}

impl Places {
    /// Where nothing was mounted.
    pub(super) fn bare(inside: Inside) -> Self {
        Self {
            inside,
            devpts: None,
            kernel: Vec::new(),
            late_readonly: Vec::new(),
        }
    }

    /// Once nothing is made in them any more.
    pub(super) fn make_late_readonly(&self) -> Done {
        let read_only = Attributes {
            set: libc::MOUNT_ATTR_RDONLY,
            ..Default::default()
        };
        for (destination, mount) in &self.late_readonly {
            set_attributes(mount.as_fd(), false, read_only)
                .at(Step::MakeReadonly, destination.to_string_lossy())?;
        }
        Ok(())
    }

    /// Where to look for `path`, and under which name.
    pub(super) fn of(&self, path: &Path) -> (&Inside, PathBuf) {
        let path = lexical(path);
        for (destination, mount) in self.kernel.iter().rev() {
            if let Ok(below) = path.strip_prefix(destination) {
                return (mount, Path::new("/").join(below));
            }
        }
        (&self.inside, path)
    }

    /// Takes note of a mount in its place. Its descriptor is not needed where nothing looks into it again.
    fn add(&mut self, plan: &MountPlan, mount: Option<OwnedFd>) {
        let destination = lexical(&plan.destination);
        self.kernel
            .retain(|(covered, _)| !covered.starts_with(&destination));
        let Some(mount) = mount else { return };
        if is_root(&destination) {
            // What was mounted before is covered, and all that follows is in the new root.
            *self = Self::bare(Inside::new(mount));
        } else if plan.kernel.is_some() {
            self.kernel.push((destination, Inside::new(mount)));
        } else if matches!(&plan.source, Source::New { filesystem, .. } if filesystem == "devpts") {
            self.devpts = Some(mount);
        } else if plan.late_readonly {
            self.late_readonly.push((destination, mount));
        } else {
            self.inside.set_aside(mount);
        }
    }
}

/// Mounts all, in order.
pub(super) fn mount_all(
    inside: Inside,
    plans: &[MountPlan],
) -> std::result::Result<Places, Failure> {
    let mut places = Places::bare(inside);
    for plan in plans {
        let inside = &places.inside;
        match &plan.source {
            Source::Bind { .. } => {
                for mount in &plan.opened {
                    let kept = bind(&places.inside, plan, mount)?;
                    places.add(plan, kept);
                }
            }
            Source::New { filesystem, source } => {
                let mount = mount_new(inside, plan, filesystem, source.as_deref())?;
                places.add(plan, Some(mount));
            }
            Source::CgroupV1(directories) => {
                cgroup_mounts::mount(inside, plan, directories, &plan.opened)?;
                places.add(plan, None);
            }
            Source::Link(target) => inside
                .ensure_link(&plan.destination, target)
                .at(Step::MakeLink, plan.destination.to_string_lossy())?,
            Source::Remount => remount(inside, plan)?,
        }
    }
    Ok(places)
}

/// Moves a part of the host's tree onto its target. Gives a descriptor of it where [`Places::add`] wants one.
fn bind(
    inside: &Inside,
    plan: &MountPlan,
    mount: &OwnedFd,
) -> std::result::Result<Option<OwnedFd>, Failure> {
    set_all_attributes(plan, mount.as_fd())?;
    place(inside, plan, mount.as_fd())?;
    let is_looked_into = is_root(&plan.destination) || plan.kernel.is_some();
    is_looked_into
        .then(|| mount.try_clone())
        .transpose()
        .at(Step::AttachMount, plan.destination.to_string_lossy())
}

/// Makes a new file system with all that its root directory is to have, and moves it onto its target.
fn mount_new(
    inside: &Inside,
    plan: &MountPlan,
    filesystem: &str,
    source: Option<&str>,
) -> std::result::Result<OwnedFd, Failure> {
    let destination = &plan.destination;
    let name = destination.to_string_lossy();
    let has_own_mode = plan.options.data.iter().any(|(name, _)| name == "mode");
    let takes_mode = filesystem == "tmpfs" && !plan.options.copy_up && !has_own_mode;
    // What is written to first may not be read-only from its birth.
    let is_written = takes_mode || plan.options.copy_up || plan.root_label.is_some();
    let birth = match is_written {
        true => None,
        false => birth_attributes(plan),
    };
    let mount = make_filesystem(plan, filesystem, source, birth)?;
    if let Some(label) = &plan.root_label {
        mount_label::set_on_root(mount.as_fd(), label).at(Step::SetLabel, &name)?;
    }
    if takes_mode {
        take_mode(inside, destination, mount.as_fd()).at(Step::OpenTarget, &name)?;
    }
    if plan.options.copy_up {
        copy_up(inside, destination, mount.as_fd(), has_own_mode).at(Step::CopyUp, &name)?;
    }
    if birth.is_none() {
        set_all_attributes(plan, mount.as_fd())?;
    }
    place(inside, plan, mount.as_fd())?;
    Ok(mount)
}

/// Changes the attributes of what is mounted there already.
fn remount(inside: &Inside, plan: &MountPlan) -> Done {
    let mount = inside
        .open(&plan.destination, OFlags::PATH)
        .at(Step::OpenTarget, plan.destination.to_string_lossy())?;
    set_all_attributes(plan, mount.as_fd())
}

/// Moves a mount onto its target.
fn place(inside: &Inside, plan: &MountPlan, mount: BorrowedFd<'_>) -> Done {
    let target = target(inside, plan, mount)?;
    let attached = attach(mount, target.as_fd()).map_err(|error| {
        let subject = format!("{}{}", plan.destination.display(), mismatch(mount, &target));
        Failure::new(Step::AttachMount, subject, &error)
    });
    inside.set_aside(target);
    attached
}

/// Why a mount may not fit its target, where that is so.
fn mismatch(mount: BorrowedFd<'_>, target: &OwnedFd) -> &'static str {
    match (kind_of(mount), kind_of(target.as_fd())) {
        (Ok(Kind::File), Ok(Kind::Directory)) => " (a file does not go onto a directory)",
        (Ok(Kind::Directory), Ok(Kind::File)) => " (a directory does not go onto a file)",
        _ => "",
    }
}

/// The attributes with which fsmount(2) makes a file system's mount. None where they are more than it can give.
fn birth_attributes(plan: &MountPlan) -> Option<MountAttrFlags> {
    let top = plan.options.top;
    let flags = u32::try_from(top.set)
        .ok()
        .and_then(MountAttrFlags::from_bits)?;
    let is_plain = plan.options.recursive.is_empty() && top.propagation == 0;
    (is_plain && BIRTH_ATTRIBUTES.contains(flags)).then_some(flags)
}

/// What fsmount(2) takes since Linux 5.2.
const BIRTH_ATTRIBUTES: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY
    .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC)
    .union(MountAttrFlags::MOUNT_ATTR__ATIME)
    .union(MountAttrFlags::MOUNT_ATTR_NODIRATIME);

fn set_all_attributes(plan: &MountPlan, mount: BorrowedFd<'_>) -> Done {
    let name = plan.destination.to_string_lossy();
    let recursive = plan.options.recursive;
    if !recursive.is_empty() {
        set_attributes(mount, true, recursive).at(Step::SetMountAttributes, &name)?;
    }
    let top = plan.options.top;
    if !top.is_empty() {
        set_attributes(mount, false, top).at(Step::SetMountAttributes, &name)?;
    }
    Ok(())
}

/// The place of a mount. Those of procfs and sysfs are reached through no symbolic link: the image, or whoever shares
/// a volume that it leads into, could move them from under the paths to be masked (CVE-2019-19921, CVE-2023-28642).
fn target(
    inside: &Inside,
    plan: &MountPlan,
    mount: BorrowedFd<'_>,
) -> std::result::Result<OwnedFd, Failure> {
    let name = plan.destination.to_string_lossy();
    if let Some(filesystem) = plan.kernel {
        return inside.ensure_real(&plan.destination).at(
            Step::OpenTarget,
            format!(
                "{name} ({filesystem} must be mounted on ordinary directory, reached by no symbolic link)"
            ),
        );
    }
    if is_root(&plan.destination) {
        let root = inside.root().try_clone_to_owned();
        return root.at(Step::OpenTarget, &name);
    }
    let kind = match &plan.source {
        Source::Bind { .. } => kind_of(mount).at(Step::OpenTarget, &name)?,
        _ => Kind::Directory,
    };
    if !plan.options.target_nofollow {
        return inside
            .ensure(&plan.destination, kind)
            .at(Step::OpenTarget, &name);
    }
    let target = inside
        .ensure_itself(&plan.destination, kind)
        .at(Step::OpenTarget, &name)?;
    if is_link_of_procfs(target.as_fd()).at(Step::OpenTarget, &name)? {
        let error = std::io::Error::from_raw_os_error(libc::EPERM);
        let subject = format!("{name} (a link of procfs is not covered: others trust it)");
        return Err(Failure::new(Step::OpenTarget, subject, &error));
    }
    Ok(target)
}

/// `/proc/self` and its like.
fn is_link_of_procfs(target: BorrowedFd<'_>) -> std::io::Result<bool> {
    Ok(
        rustix::fs::fstatfs(target)?.f_type == rustix::fs::PROC_SUPER_MAGIC
            && FileType::from_raw_mode(super::inside::stat(target)?.st_mode) == FileType::Symlink,
    )
}

/// A tmpfs without a mode of its own gets that of the directory that it covers, as with runc and crun.
fn take_mode(inside: &Inside, destination: &Path, tmpfs: BorrowedFd<'_>) -> std::io::Result<()> {
    let covered = match inside.open(destination, OFlags::PATH | OFlags::DIRECTORY) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
        result => result?,
    };
    let mode = Mode::from_raw_mode(super::inside::stat(covered.as_fd())?.st_mode);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(tmpfs, c".", flags, Mode::empty())?;
    Ok(rustix::fs::fchmod(root, mode)?)
}

fn make_filesystem(
    plan: &MountPlan,
    filesystem: &str,
    source: Option<&str>,
    attributes: Option<MountAttrFlags>,
) -> std::result::Result<OwnedFd, Failure> {
    let attributes = attributes.unwrap_or(MountAttrFlags::empty());
    new_filesystem(filesystem, source, &plan.options.data, attributes).map_err(|(option, error)| {
        let subject = match option {
            Some(option) => format!("{} ({filesystem}: {option})", plan.destination.display()),
            None => format!("{} ({filesystem})", plan.destination.display()),
        };
        Failure::new(Step::MakeFilesystem, subject, &error)
    })
}
