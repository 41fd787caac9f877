//! The spec's mounts, parsed: what is to be mounted where, and how. Pure; [`super::mounts`] does it.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};

use super::cgroup_mounts::{self, Shown};
use super::error::{Error, Result};
use super::id_mapped::{self, MountIds};
use super::mount_label;
use super::mount_options::{MountOptions, parse_options, propagation};
use super::namespaces::{Had, how};
use super::process::path_c_string;
use crate::cgroup::Cgroup;

/// One mount, with all parsing done.
#[derive(Debug)]
pub(super) struct MountPlan {
    /// Absolute; what the image makes of it is up to [`super::inside::Inside`].
    pub(super) destination: PathBuf,
    pub(super) source: Source,
    /// `proc` or `sysfs` for these, be it a new one or the host's.
    pub(super) kernel: Option<&'static str>,
    pub(super) options: MountOptions,
    pub(super) ids: Option<MountIds>,
    /// The SELinux label of its root alone, where the other files have labels of their own.
    pub(super) root_label: Option<String>,
    /// It is to be read-only, but only once all is made that belongs below it.
    pub(super) late_readonly: bool,
    /// The host's side: a detached mount for each that the source needs. Empty until [`super::mounts::open_sources`].
    pub(super) opened: Vec<OwnedFd>,
}

/// Where a mount comes from.
#[derive(Debug)]
pub(super) enum Source {
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
pub fn is_bind(mount: &Mount) -> bool {
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

/// True for the root directory, by the path's letters alone.
pub(super) fn is_root(path: &Path) -> bool {
    lexical(path) == Path::new("/")
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
            plan.root_label = mount_label::of_root(spec, filesystem);
        } else if matches!(plan.source, Source::CgroupV1(_)) {
            plan.root_label = mount_label::asked(spec).map(str::to_owned);
        }
        plans.push(plan);
    }
    postpone_readonly(&mut plans);
    Ok(plans)
}

/// A tmpfs that is to be read-only is empty, and nothing could be made in it: neither the devices of `/dev` nor the
/// places of later mounts. It becomes read-only when they are made. Until then only this mount namespace has it, and in
/// that nobody but us.
fn postpone_readonly(plans: &mut [MountPlan]) {
    const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY;
    let places: Vec<PathBuf> = plans.iter().map(|it| lexical(&it.destination)).collect();
    for (index, plan) in plans.iter_mut().enumerate() {
        let is_tmpfs =
            matches!(&plan.source, Source::New { filesystem, .. } if filesystem == "tmpfs");
        let options = &mut plan.options;
        let is_asked = (options.top.set | options.recursive.set) & READ_ONLY != 0;
        let place = &places[index];
        let is_filled = place == Path::new("/dev")
            || places[index + 1..]
                .iter()
                .any(|it| it.starts_with(place) && it != place);
        if is_tmpfs && is_asked && is_filled && !is_root(place) {
            options.top.set &= !READ_ONLY;
            options.recursive.set &= !READ_ONLY;
            plan.late_readonly = true;
        }
    }
}

/// Refuses what is not supported.
pub(super) fn validate(spec: &Spec) -> Result<()> {
    for mount in spec.mounts().iter().flatten() {
        let field = field_of(mount);
        check_text(mount)?;
        let options = options_of(mount)?;
        if is_root(mount.destination()) {
            check_root(mount, &options)?;
        }
        if is_bind(mount) && !options.remount {
            // Wherever the bundle is.
            bind_source(mount, Some(Path::new("/")), false)?;
        }
        if id_mapped::plan(spec, mount, options.id_map.as_ref())?.is_some() && !is_bind(mount) {
            return Err(Error::Invalid {
                field,
                reason: "only bind mounts have mapped ids".to_owned(),
            });
        }
    }
    default_propagation(spec).map(drop)
}

/// What no path, type or option can be. Without a destination a mount would go over the root directory.
fn check_text(mount: &Mount) -> Result<()> {
    let destination = mount.destination().as_os_str();
    let source = mount.source().iter().map(|path| path.as_os_str());
    let words = mount.typ().iter().chain(mount.options().iter().flatten());
    let mut texts = source
        .chain([destination])
        .chain(words.map(OsStr::new))
        .map(OsStr::as_bytes);
    let reason = if destination.is_empty() {
        "has no destination"
    } else if texts.any(|text| text.contains(&0)) {
        "a NUL character is not allowed"
    } else {
        return Ok(());
    };
    Err(Error::Invalid {
        field: field_of(mount),
        reason: reason.to_owned(),
    })
}

/// What can be the container's root directory instead of the root file system.
fn check_root(mount: &Mount, options: &MountOptions) -> Result<()> {
    let is_tmpfs = mount.typ().as_deref() == Some("tmpfs");
    let reason = if options.copy_up {
        "tmpcopyup would hold the whole root file system in memory"
    } else if options.remount || is_tmpfs || is_bind(mount) && !options.copy_symlink {
        return Ok(());
    } else {
        "only a bind mount or a tmpfs can be mounted over the root directory"
    };
    Err(Error::Invalid {
        field: field_of(mount),
        reason: reason.to_owned(),
    })
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
        Some(root) if root.propagation == libc::MS_SLAVE => Ok(libc::MS_SLAVE),
        _ => Ok(libc::MS_PRIVATE),
    }
}

/// `linux.rootfsPropagation`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RootPropagation {
    /// `MS_*`
    pub(super) propagation: u64,
    /// Of all mounts below the root too.
    pub(super) recursive: bool,
}

fn root_propagation(spec: &Spec) -> Result<Option<RootPropagation>> {
    let text = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.rootfs_propagation().as_deref())
        .filter(|text| !text.is_empty());
    text.map(|text| match propagation(text) {
        Some((propagation, recursive)) => Ok(RootPropagation {
            propagation,
            recursive,
        }),
        None => Err(Error::Invalid {
            field: "linux.rootfsPropagation".to_owned(),
            reason: format!("{text} is not a propagation"),
        }),
    })
    .transpose()
}

/// What is left of the root's propagation to set once all is mounted.
///
/// The root is private from the beginning, and so is what is mounted in it without a propagation of its own (or a slave
/// of the host's, for such a root). So a root that is to be private or a slave has nothing left: to set that again, with
/// all below, would take theirs from the mounts that ask for another. runc has it so since 1.5.
///
/// A shared or unbindable root is made so at the end, as pivot_root(2) takes no shared one: with `r`, together with all
/// mounts, also those that ask for another propagation. That is as with runc, and what containers rely on: for one shared
/// volume containerd asks for a root that is `rshared` beside volumes that are `rprivate`. None of it reaches the host,
/// as a private mount that becomes shared has no peers there.
pub(super) fn late_root_propagation(spec: &Spec) -> Result<Option<RootPropagation>> {
    let root = root_propagation(spec)?;
    Ok(root.filter(|root| !matches!(root.propagation, libc::MS_PRIVATE | libc::MS_SLAVE)))
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
        if cgroup.is_none() {
            // It is the caller's.
            options.top.set |= libc::MOUNT_ATTR_RDONLY;
            options.top.clear &= !libc::MOUNT_ATTR_RDONLY;
        }
        cgroup_source(spec, mount, cgroup)?
    } else if let Some(path) = of_the_host(spec, filesystem) {
        // All of it, so what is asked for must hold for all of it.
        options.recursive = options.recursive.and(options.top);
        options.data.clear();
        Source::Bind {
            path: path.to_owned(),
            recursive: true,
        }
    } else {
        let source = mount.source().as_ref();
        Source::New {
            filesystem: filesystem.to_owned(),
            source: source.map(|s| s.to_string_lossy().into_owned()),
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
        root_label: None,
        late_readonly: false,
        opened: Vec::new(),
    })
}

/// What a mount of type `cgroup` or `cgroup2` is made of.
fn cgroup_source(spec: &Spec, mount: &Mount, cgroup: Option<&Cgroup>) -> Result<Source> {
    Ok(
        match cgroup_mounts::shown(&field_of(mount), spec, cgroup)? {
            Shown::Own => Source::New {
                filesystem: "cgroup2".to_owned(),
                source: None,
            },
            Shown::V2(path) => Source::Bind {
                path,
                recursive: false,
            },
            Shown::V1(directories) => Source::CgroupV1(directories),
        },
    )
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
    fn only_some_can_be_the_root() {
        let at_root = |typ: &str, option: &str| {
            let mount = MountBuilder::default().destination("/a/..").typ(typ);
            validate(&spec_with(
                mount.source("/srv").options([option.to_owned()]),
            ))
        };
        for (typ, option) in [
            ("proc", "ro"),
            ("cgroup", "ro"),
            ("bind", "copy-symlink"),
            ("tmpfs", "tmpcopyup"),
        ] {
            let refused = at_root(typ, option);
            assert!(matches!(refused, Err(Error::Invalid { .. })), "{typ}");
        }
        for (typ, option) in [("tmpfs", "ro"), ("bind", "ro"), ("none", "remount")] {
            at_root(typ, option).expect(typ);
        }
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
    fn a_private_or_slave_root_takes_nothing_from_its_mounts() {
        let late = |text: &str| {
            let json =
                format!(r#"{{"ociVersion":"1.2.0","linux":{{"rootfsPropagation":"{text}"}}}}"#);
            late_root_propagation(&serde_json::from_str(&json).expect("a spec"))
        };
        for text in ["", "private", "rprivate", "slave", "rslave"] {
            assert_eq!(late(text).expect(text), None, "{text}");
        }
        let shared = RootPropagation {
            propagation: libc::MS_SHARED,
            recursive: true,
        };
        assert_eq!(late("rshared").expect("known"), Some(shared));
        assert!(late("unbindable").expect("known").is_some());
        assert!(late("odd").is_err());
    }

    #[test]
    fn a_tmpfs_that_is_filled_is_read_only_late() {
        let tmpfs = |destination: &str| {
            let mount = MountBuilder::default()
                .destination(destination)
                .typ("tmpfs");
            let mount = mount.options(["ro".to_owned(), "nosuid".to_owned()]);
            mount.build().expect("builds")
        };
        let mut spec = Spec::default();
        spec.set_mounts(Some(
            ["/dev/", "/a", "/ab", "/a/../a/b"].map(tmpfs).to_vec(),
        ));
        let plans = plan(&spec, None, None).expect("plans");
        let late: Vec<bool> = plans.iter().map(|plan| plan.late_readonly).collect();
        assert_eq!(late, [true, true, false, false]);
        for plan in &plans {
            let set = plan.options.top.set;
            assert_eq!(set & libc::MOUNT_ATTR_RDONLY == 0, plan.late_readonly);
            assert_ne!(set & libc::MOUNT_ATTR_NOSUID, 0);
        }
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
