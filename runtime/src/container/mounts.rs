//! The spec's mounts, in its order, below the container's root.
//!
//! A mount is complete, attributes and all, before it is moved onto its target: no moment shows it writable that is
//! to be read-only. Sources of bind mounts are host paths and are opened before anything else changes; targets are
//! the image's and are opened by [`Inside`].

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use rustix::fs::{CWD, FileType, Mode, OFlags};

use super::cgroup_mounts::{self, Shown};
use super::copy_up::copy_up;
use super::detached::{attach, clone_at, clone_from, new_filesystem};
use super::error::{At, Error, Failure, Result, Step};
use super::id_mapped::{self, IdNamespaces, MountIds};
use super::inside::{Inside, Kind, kind_of};
use super::mount_label;
use super::mount_options::{MountOptions, parse_options, propagation};
use super::namespaces::{Had, how};
use super::process::{path_c_string, shown};
use super::user_namespace::UserNamespace;
use crate::cgroup::Cgroup;
use crate::sys::mount::{set_attributes, set_id_map};

type Done = std::result::Result<(), Failure>;

/// One mount, with all parsing done.
#[derive(Debug)]
pub(super) struct MountPlan {
    /// Absolute; what the image makes of it is up to [`Inside`].
    destination: PathBuf,
    source: Source,
    /// `proc` or `sysfs` for these, be it a new one or the host's.
    kernel: Option<&'static str>,
    options: MountOptions,
    ids: Option<MountIds>,
    /// The host's side: a detached mount for each that the source needs. Empty until [`open_sources`].
    opened: Vec<OwnedFd>,
}

#[derive(Debug)]
enum Source {
    /// What is at a host path.
    Bind { path: CString, recursive: bool },
    /// A new file system of this type, with its `source`.
    New {
        filesystem: String,
        source: Option<String>,
    },
    /// A symbolic link like the one at the host path that was to be bound.
    Link(CString),
    /// What is mounted there already.
    Remount,
    /// The container's own part of the v1 hierarchies.
    CgroupV1(Vec<cgroup_mounts::Directory>),
}

/// True for a bind mount.
pub(super) fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || mount
            .options()
            .iter()
            .flatten()
            .any(|o| o == "bind" || o == "rbind")
}

/// A path from the root without `.` and `..`, by its letters alone.
pub(super) fn lexical(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

/// Parses the spec's mounts.
pub(super) fn plan(
    spec: &Spec,
    bundle: Option<&Path>,
    cgroup: Option<&Cgroup>,
) -> Result<Vec<MountPlan>> {
    let default = default_propagation(spec)?;
    let mut plans = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        let mut plan = plan_one(spec, mount, bundle, cgroup)?;
        if matches!(plan.source, Source::Bind { .. })
            && plan.options.top.propagation == 0
            && plan.options.recursive.propagation == 0
        {
            plan.options.recursive.propagation = default;
        }
        if let Source::New { filesystem, .. } = &plan.source {
            mount_label::add(spec, filesystem, &mut plan.options.data);
        }
        plans.push(plan);
    }
    Ok(plans)
}

/// Refuses what is not supported.
pub(super) fn validate(spec: &Spec) -> Result<()> {
    for mount in spec.mounts().iter().flatten() {
        let field = field_of(mount);
        if lexical(mount.destination()) == Path::new("/") {
            return Err(Error::Invalid {
                field,
                reason: "nothing can be mounted over the root directory".to_owned(),
            });
        }
        let options = options_of(mount)?;
        if id_mapped::plan(spec, mount, options.id_map.as_ref())?.is_some() && !is_bind(mount) {
            return Err(Error::Invalid {
                field,
                reason: "only bind mounts have mapped ids".to_owned(),
            });
        }
    }
    default_propagation(spec).map(drop)
}

fn field_of(mount: &Mount) -> String {
    format!("mounts ({})", mount.destination().display())
}

fn options_of(mount: &Mount) -> Result<MountOptions> {
    let options = mount.options().as_deref().unwrap_or_default();
    let mut parsed = parse_options(options);
    let invalid = |reason: String| {
        Err(Error::Invalid {
            field: field_of(mount),
            reason,
        })
    };
    let bind = is_bind(mount);
    if bind || parsed.remount {
        // They ask for what is so without them.
        parsed
            .data
            .retain(|(name, _)| !BIND_DEFAULTS.contains(&name.as_str()));
        if let Some((option, _)) = parsed.data.first() {
            let kind = if parsed.remount {
                "remount"
            } else {
                "bind mount"
            };
            return invalid(format!("a {kind} has no option {option}"));
        }
    }
    let only_binds = [
        ("idmap", parsed.id_map.is_some()),
        ("copy-symlink", parsed.copy_symlink),
        ("src-nofollow", parsed.source_nofollow),
    ];
    if let Some((option, _)) = only_binds.iter().find(|(_, given)| *given && !bind) {
        return invalid(format!("{option} is for bind mounts"));
    }
    if parsed.copy_up && mount.typ().as_deref() != Some("tmpfs") {
        return invalid("tmpcopyup is for tmpfs".to_owned());
    }
    Ok(parsed)
}

/// Options of a file system that a bind mount and a remount have anyway.
const BIND_DEFAULTS: [&str; 3] = ["async", "nomand", "nolazytime"];

/// Bind mounts without a propagation of their own are private, unless the whole root is to be a slave of the host's.
fn default_propagation(spec: &Spec) -> Result<u64> {
    match root_propagation(spec)? {
        Some((libc::MS_SLAVE, _)) => Ok(libc::MS_SLAVE),
        _ => Ok(libc::MS_PRIVATE),
    }
}

/// `linux.rootfsPropagation`
pub(super) fn root_propagation(spec: &Spec) -> Result<Option<(u64, bool)>> {
    let text = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.rootfs_propagation().as_deref())
        .filter(|text| !text.is_empty());
    text.map(|text| {
        propagation(text).ok_or_else(|| Error::Invalid {
            field: "linux.rootfsPropagation".to_owned(),
            reason: format!("{text} is not a propagation"),
        })
    })
    .transpose()
}

fn plan_one(
    spec: &Spec,
    mount: &Mount,
    bundle: Option<&Path>,
    cgroup: Option<&Cgroup>,
) -> Result<MountPlan> {
    let mut options = options_of(mount)?;
    let filesystem = mount.typ().as_deref().unwrap_or("none");
    let source = if options.remount {
        Source::Remount
    } else if is_bind(mount) {
        let recursive = options.bind.unwrap_or(false);
        bind_source(mount, bundle, recursive)?
    } else if filesystem == "cgroup" || filesystem == "cgroup2" {
        let field = field_of(mount);
        if cgroup.is_none() {
            // It is the caller's.
            options.top.set |= libc::MOUNT_ATTR_RDONLY;
            options.top.clear &= !libc::MOUNT_ATTR_RDONLY;
        }
        match cgroup_mounts::shown(&field, spec, cgroup)? {
            Shown::Own => Source::New {
                filesystem: "cgroup2".to_owned(),
                source: None,
            },
            Shown::V2(path) => Source::Bind {
                path,
                recursive: false,
            },
            Shown::V1(directories) => Source::CgroupV1(directories),
        }
    } else if let Some(path) = of_the_host(spec, filesystem) {
        // All of it, so what is asked for must hold for all of it.
        options.recursive = options.recursive.and(options.top);
        options.data.clear();
        Source::Bind {
            path: path.to_owned(),
            recursive: true,
        }
    } else {
        Source::New {
            filesystem: filesystem.to_owned(),
            source: mount
                .source()
                .as_ref()
                .map(|s| s.to_string_lossy().into_owned()),
        }
    };
    Ok(MountPlan {
        destination: Path::new("/").join(mount.destination()),
        source,
        ids: id_mapped::plan(spec, mount, options.id_map.as_ref())?,
        kernel: match filesystem {
            _ if is_bind(mount) => None,
            "proc" => Some("proc"),
            "sysfs" => Some("sysfs"),
            _ => None,
        },
        options,
        opened: Vec::new(),
    })
}

/// The host's place for a file system that shows a namespace which the container shares with the host: a user
/// namespace may not mount those that it does not own, but has what the host shows.
fn of_the_host(spec: &Spec, filesystem: &str) -> Option<&'static CStr> {
    let (namespace, path) = match filesystem {
        "proc" => (LinuxNamespaceType::Pid, c"/proc"),
        "sysfs" => (LinuxNamespaceType::Network, c"/sys"),
        "mqueue" => (LinuxNamespaceType::Ipc, c"/dev/mqueue"),
        _ => return None,
    };
    let owned = |typ| how(spec, typ) == Had::Own;
    (owned(LinuxNamespaceType::User) && !owned(namespace)).then_some(path)
}

fn bind_source(mount: &Mount, bundle: Option<&Path>, recursive: bool) -> Result<Source> {
    let invalid = |reason: &str| Error::Invalid {
        field: field_of(mount),
        reason: reason.to_owned(),
    };
    let path = mount
        .source()
        .as_ref()
        .filter(|s| !s.as_os_str().is_empty())
        .ok_or_else(|| invalid("a bind mount needs a source"))?;
    let path = match bundle {
        _ if path.is_absolute() => path.clone(),
        Some(bundle) => bundle.join(path),
        None => return Err(invalid("a relative source needs a bundle")),
    };
    Ok(Source::Bind {
        path: path_c_string(&field_of(mount), &path)?,
        recursive,
    })
}

/// Opens the host's side of all mounts where that was not done yet, before mounts become private: a shared one stays
/// shared with the host.
pub(super) fn open_sources(plans: &mut [MountPlan]) -> Done {
    for plan in plans.iter_mut().filter(|plan| plan.opened.is_empty()) {
        match &plan.source {
            Source::Bind { path, recursive } => {
                if plan.options.copy_symlink
                    && let Some(target) = read_link(path)
                {
                    plan.source = Source::Link(target);
                    continue;
                }
                let follow = !plan.options.source_nofollow;
                let mount = clone_from(path, *recursive, follow).map_err(|error| {
                    // What is mounted below may hide something from the namespace (mount_namespaces(7)).
                    let hint = match error.raw_os_error() {
                        Some(libc::EINVAL) if !recursive => {
                            " (without the mounts below it, which an ordinary user must take along: rbind)"
                        }
                        _ => "",
                    };
                    Failure::new(Step::OpenSource, format!("{}{hint}", shown(path)), &error)
                });
                plan.opened = vec![mount?];
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

/// None: it is something else.
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
}

impl Places {
    /// Where nothing was mounted.
    pub(super) fn bare(inside: Inside) -> Self {
        Self {
            inside,
            devpts: None,
            kernel: Vec::new(),
        }
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
}

/// Mounts all, in order.
pub(super) fn mount_all(
    inside: Inside,
    plans: &[MountPlan],
) -> std::result::Result<Places, Failure> {
    let mut places = Places::bare(inside);
    for plan in plans {
        let inside = &places.inside;
        let destination = lexical(&plan.destination);
        let mut kernel = None;
        match &plan.source {
            Source::Bind { .. } => {
                for mount in &plan.opened {
                    finish(inside, plan, mount.as_fd())?;
                    if plan.kernel.is_some() {
                        let again = mount.try_clone().at(Step::AttachMount, "")?;
                        kernel = Some(again);
                    }
                }
            }
            Source::Link(target) => inside
                .ensure_link(&plan.destination, target)
                .at(Step::MakeLink, plan.destination.to_string_lossy())?,
            Source::Remount => {
                let name = plan.destination.to_string_lossy();
                let mount = inside
                    .open(&plan.destination, OFlags::PATH)
                    .at(Step::OpenTarget, &name)?;
                set_all_attributes(plan, mount.as_fd())?;
            }
            Source::New { filesystem, source } => {
                let mount = make_filesystem(plan, filesystem, source.as_deref())?;
                let has_own_mode = plan.options.data.iter().any(|(name, _)| name == "mode");
                if filesystem == "tmpfs" && !plan.options.copy_up && !has_own_mode {
                    take_mode(inside, &plan.destination, mount.as_fd())
                        .at(Step::SetMountAttributes, plan.destination.to_string_lossy())?;
                }
                if plan.options.copy_up {
                    copy_up(inside, &plan.destination, mount.as_fd(), has_own_mode)
                        .at(Step::CopyUp, plan.destination.to_string_lossy())?;
                }
                finish(inside, plan, mount.as_fd())?;
                if plan.kernel.is_some() {
                    kernel = Some(mount);
                } else if filesystem == "devpts" {
                    places.devpts = Some(mount);
                }
            }
            Source::CgroupV1(directories) => cgroup_mounts::mount(
                inside,
                &plan.destination,
                plan.options.top,
                directories,
                &plan.opened,
            )?,
        }
        if !matches!(plan.source, Source::Link(_) | Source::Remount) {
            places
                .kernel
                .retain(|(covered, _)| !covered.starts_with(&destination));
        }
        if let Some(mount) = kernel {
            places.kernel.push((destination, Inside::new(mount)));
        }
    }
    Ok(places)
}

/// Sets a mount's attributes and moves it onto its target.
fn finish(inside: &Inside, plan: &MountPlan, mount: BorrowedFd<'_>) -> Done {
    set_all_attributes(plan, mount)?;
    let target = target(inside, plan, mount)?;
    attach(mount, target.as_fd()).at(Step::AttachMount, plan.destination.to_string_lossy())
}

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
) -> std::result::Result<OwnedFd, Failure> {
    new_filesystem(filesystem, source, &plan.options.data).map_err(|(option, error)| {
        let subject = match option {
            Some(option) => format!("{} ({filesystem}: {option})", plan.destination.display()),
            None => format!("{} ({filesystem})", plan.destination.display()),
        };
        Failure::new(Step::MakeFilesystem, subject, &error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::MountBuilder;

    fn spec_with(mount: MountBuilder) -> Spec {
        let mut spec = Spec::default();
        spec.set_mounts(Some(vec![mount.build().expect("builds")]));
        spec
    }

    #[test]
    fn dots_are_cut_at_the_root() {
        assert_eq!(lexical(Path::new("/a/../../b/./c")), Path::new("/b/c"));
        assert_eq!(lexical(Path::new("dev/")), Path::new("/dev"));
    }

    #[test]
    fn the_root_is_no_target() {
        let spec = spec_with(MountBuilder::default().destination("/a/..").typ("tmpfs"));
        assert!(matches!(validate(&spec), Err(Error::Invalid { .. })));
    }

    #[test]
    fn a_bind_mount_is_private_unless_the_spec_says_else() {
        let bind = || {
            MountBuilder::default()
                .destination("/data")
                .typ("bind")
                .source("/srv")
        };
        let plans = plan(&spec_with(bind()), None, None).expect("plans");
        assert_eq!(plans[0].options.recursive.propagation, libc::MS_PRIVATE);
        let shared = spec_with(bind().options(["rbind".to_owned(), "rshared".to_owned()]));
        let plans = plan(&shared, None, None).expect("plans");
        assert_eq!(plans[0].options.recursive.propagation, libc::MS_SHARED);
    }

    #[test]
    fn a_bind_mount_with_data_is_refused() {
        let spec = spec_with(
            MountBuilder::default()
                .destination("/data")
                .typ("bind")
                .source("/srv")
                .options(["size=1g".to_owned()]),
        );
        let error = validate(&spec).expect_err("refused");
        assert_eq!(
            error.to_string(),
            "mounts (/data): a bind mount has no option size"
        );
    }

    #[test]
    fn a_relative_source_starts_from_the_bundle() {
        let spec = spec_with(
            MountBuilder::default()
                .destination("/data")
                .typ("bind")
                .source("data"),
        );
        assert!(plan(&spec, None, None).is_err());
        let plans = plan(&spec, Some(Path::new("/bundle")), None).expect("plans");
        assert!(
            matches!(&plans[0].source, Source::Bind { path, .. } if path.as_c_str() == c"/bundle/data")
        );
    }
}
