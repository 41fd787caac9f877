//! Where a new container's processes live: a cgroup made here or by systemd, or none.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{LinuxResources, Spec};

use super::Globals;
use super::cli::CgroupManager;
use super::container_cgroup;
use super::error::{Error, Result};
use super::rootless::in_user_namespace;
use super::scope::Scope;
use super::store::Unit;
use crate::cgroup::{Cgroup, Layout};
use crate::container::{self, Home};

/// Where containers without `linux.cgroupsPath` live, their names added.
const DEFAULT_CGROUP: &str = "/podling-runtime-";

/// A place for a container. Until the container is recorded it is the caller's to [`Placement::undo`].
#[derive(Debug)]
pub(super) enum Placement {
    /// In its creator's cgroup.
    None,
    /// In a v1 cgroup that is not there yet.
    Planned(Box<Planned>),
    /// In a cgroup made here.
    Cgroup(Cgroup),
    /// In a scope that systemd made.
    Scope(Box<Scope>),
}

/// What is needed to make a cgroup.
#[derive(Debug)]
pub(super) struct Planned {
    layout: &'static Layout,
    cgroup: Cgroup,
    resources: LinuxResources,
}

impl Placement {
    /// Makes the cgroup with its limits; one of v1 is only planned, for the caller to [`Self::complete`]: it takes a
    /// directory in each hierarchy, which the container's process need not wait for.
    ///
    /// # Errors
    /// When it cannot be made, is in use, or a limit cannot be given. Nothing is left then.
    pub(super) fn begin(id: &str, spec: &Spec, globals: &Globals) -> Result<Self> {
        let is_rootless = globals.rootless.is_so();
        let resources = resources(spec, is_rootless);
        // An ordinary user may have to do without, which is to be known before.
        if globals.cgroup_manager == CgroupManager::Cgroupfs
            && !is_rootless
            && !container::has_user_namespace(spec)
            && let Ok(layout) = container_cgroup::layout()
            && !layout.is_v2()
        {
            return Ok(Self::Planned(Box::new(Planned {
                layout,
                cgroup: free_cgroup(id, spec, layout)?,
                resources,
            })));
        }
        let made = match globals.cgroup_manager {
            CgroupManager::Disabled => Ok(Self::None),
            CgroupManager::Cgroupfs => make_cgroup(id, spec).map(Self::Cgroup),
            CgroupManager::Systemd => {
                let user = in_user_namespace() || !rustix::process::geteuid().is_root();
                Scope::start(id, spec, &resources, user).map(|it| Self::Scope(Box::new(it)))
            }
        };
        let mut place = match made {
            // An ordinary user does without where nothing depends on it.
            Err(error) if is_denied(&error) && is_rootless => {
                tracing::debug!(
                    error = &error as &dyn std::error::Error,
                    "the container has no cgroup of its own"
                );
                Self::None
            }
            made => made?,
        };
        if let Err(error) = place.limit(id, &resources) {
            place.undo();
            return Err(error);
        }
        Ok(place)
    }

    /// Makes what is only planned: true if it was. After a failure the caller undoes it.
    ///
    /// # Errors
    /// As [`Self::begin`].
    pub(super) fn complete(&mut self, id: &str) -> Result<bool> {
        let Self::Planned(planned) = self else {
            return Ok(false);
        };
        let path = planned.cgroup.path();
        let cgroup = Cgroup::create(planned.layout, path).map_err(failed("make", id))?;
        limit(&cgroup, id, &planned.resources)?;
        *self = Self::Cgroup(cgroup);
        Ok(true)
    }

    fn limit(&self, id: &str, resources: &LinuxResources) -> Result<()> {
        match self.cgroup() {
            Some(cgroup) => limit(cgroup, id, resources),
            None if has_limits(resources) => Err(Error::Argument {
                argument: "linux.resources",
                reason: "the container has no cgroup of its own that could be limited".to_owned(),
            }),
            None => Ok(()),
        }
    }

    /// The cgroup, if there is one.
    pub(super) fn cgroup(&self) -> Option<&Cgroup> {
        match self {
            Self::None => None,
            Self::Planned(planned) => Some(&planned.cgroup),
            Self::Cgroup(cgroup) => Some(cgroup),
            Self::Scope(scope) => Some(&scope.cgroup),
        }
    }

    /// Where the container's process is to live.
    pub(super) fn home(&self) -> Home<'_> {
        match self {
            Self::Planned(planned) => Home::InPlanned(&planned.cgroup),
            made => made.cgroup().map_or(Home::Callers, Home::In),
        }
    }

    /// systemd's unit, if there is one.
    pub(super) fn unit(&self) -> Option<&Unit> {
        match self {
            Self::None | Self::Planned(_) | Self::Cgroup(_) => None,
            Self::Scope(scope) => Some(&scope.unit),
        }
    }

    /// The container lives in it now.
    pub(super) fn settle(&mut self) {
        if let Self::Scope(scope) = self {
            scope.release();
        }
    }

    /// Removes what was made.
    pub(super) fn undo(&mut self) {
        if let Self::Scope(scope) = self {
            scope.undo();
        }
        if let Some(cgroup) = self.cgroup()
            && let Err(error) = cgroup.delete()
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "a cgroup stays");
        }
    }
}

/// The limits to set. In a user namespace no device can be opened that the host did not bind into the container, and
/// the kernel takes no device program from there: rules are left out then, as in runc and crun.
fn resources(spec: &Spec, is_rootless: bool) -> LinuxResources {
    let mut resources = container::with_device_rules(spec);
    if is_rootless && (in_user_namespace() || !rustix::process::geteuid().is_root()) {
        resources.set_devices(None);
    }
    resources
}

/// True when there is anything that needs a cgroup.
fn has_limits(resources: &LinuxResources) -> bool {
    let mut others = resources.clone();
    others.set_devices(None);
    others != LinuxResources::default()
}

fn is_denied(error: &Error) -> bool {
    let Error::Cgroup { source, .. } = error else {
        return false;
    };
    source.is_denied()
}

fn failed<'a>(
    attempt: &'static str,
    id: &'a str,
) -> impl Fn(crate::cgroup::Error) -> Error + use<'a> {
    move |source| Error::Cgroup {
        attempt,
        id: id.to_owned(),
        source,
    }
}

fn limit(cgroup: &Cgroup, id: &str, resources: &LinuxResources) -> Result<()> {
    tracing::debug!(path = %cgroup.path().display(), "made the cgroup");
    cgroup.apply(resources).map_err(failed("limit", id))
}

fn make_cgroup(id: &str, spec: &Spec) -> Result<Cgroup> {
    let layout = container_cgroup::layout().map_err(failed("find a place for", id))?;
    let cgroup = free_cgroup(id, spec, layout)?;
    Cgroup::create(layout, cgroup.path()).map_err(failed("make", id))
}

/// The container's cgroup, in which nobody else is.
fn free_cgroup(id: &str, spec: &Spec, layout: &Layout) -> Result<Cgroup> {
    let path = cgroup_path(id, spec)?;
    let cgroup = Cgroup::open(layout, &path);
    let left = cgroup.processes().map_err(failed("look at", id))?;
    if !left.is_empty() {
        return Err(Error::CgroupInUse { path });
    }
    if cgroup.is_frozen().map_err(failed("look at", id))? {
        return Err(Error::CgroupFrozen { path });
    }
    Ok(cgroup)
}

/// `linux.cgroupsPath`, from the root of each hierarchy, a relative one too.
pub(super) fn cgroup_path(id: &str, spec: &Spec) -> Result<PathBuf> {
    let invalid = |reason: &str| Error::Argument {
        argument: "linux.cgroupsPath",
        reason: reason.to_owned(),
    };
    let Some(asked) = asked_path(spec) else {
        return Ok(PathBuf::from(format!("{DEFAULT_CGROUP}{id}")));
    };
    if asked.to_string_lossy().contains(':') {
        return Err(invalid(
            "slice:prefix:name is for --systemd-cgroup; give a path",
        ));
    }
    let mut depth = 0;
    for component in asked.components() {
        match component {
            Component::Normal(_) => depth += 1,
            Component::ParentDir => return Err(invalid("must not hold ..")),
            _ => {}
        }
    }
    if depth == 0 {
        return Err(invalid("the root cgroup is not the container's own"));
    }
    Ok(Path::new("/").join(asked))
}

/// `linux.cgroupsPath` unless it is empty.
fn asked_path(spec: &Spec) -> Option<&Path> {
    spec.linux()
        .as_ref()
        .and_then(|linux| linux.cgroups_path().as_deref())
        .filter(|path| !path.as_os_str().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::Linux;

    fn path_for(asked: &str) -> Result<PathBuf> {
        let mut linux = Linux::default();
        linux.set_cgroups_path(Some(asked.into()));
        let mut spec = Spec::default();
        spec.set_linux(Some(linux));
        cgroup_path("id", &spec)
    }

    #[test]
    fn the_cgroup_is_the_containers_own() {
        assert_eq!(path_for("/a/b").expect("fine"), Path::new("/a/b"));
        assert_eq!(path_for("a/b").expect("fine"), Path::new("/a/b"));
        assert_eq!(
            path_for("").expect("fine"),
            Path::new("/podling-runtime-id")
        );
        for refused in ["/", ".", "/..", "/a/../..", "system.slice:x:y"] {
            assert!(path_for(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn device_rules_alone_need_no_cgroup() {
        let resources = |json| serde_json::from_str::<LinuxResources>(json).expect("resources");
        assert!(!has_limits(&resources(r#"{"devices":[{"allow":false}]}"#)));
        assert!(has_limits(&resources(r#"{"pids":{"limit":7}}"#)));
    }
}
