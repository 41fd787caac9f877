//! What a container may do: the pod's and the container's `securityContext`, merged, on top of the defaults that
//! Kubernetes' runtimes share.

use std::collections::{BTreeSet, HashSet};
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Capabilities as Wanted, Container, PodSpec, SeccompProfile,
};
use oci_spec::runtime::Capability;
use podling_runtime::pod::plan::SeccompPlan;

/// What containers may do without asking: the set that containerd, CRI-O and Docker give.
const DEFAULT_CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Every capability there is.
const ALL_CAPABILITIES: [Capability; 41] = [
    Capability::AuditControl,
    Capability::AuditRead,
    Capability::AuditWrite,
    Capability::BlockSuspend,
    Capability::Bpf,
    Capability::CheckpointRestore,
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::Kill,
    Capability::Lease,
    Capability::LinuxImmutable,
    Capability::MacAdmin,
    Capability::MacOverride,
    Capability::Mknod,
    Capability::NetAdmin,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetRaw,
    Capability::Perfmon,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysChroot,
    Capability::SysModule,
    Capability::SysNice,
    Capability::SysPacct,
    Capability::SysPtrace,
    Capability::SysRawio,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Syslog,
    Capability::WakeAlarm,
];

/// Where `localhostProfile` names are looked up; the kubelet's own directory, so that profiles are shared with it.
const SECCOMP_DIR: &str = "/var/lib/kubelet/seccomp";

/// The profile of AppArmor that `RuntimeDefault` means: the one that is installed with Podling, and loaded by the machine
/// as it loads others (`systemd/units/podling-default.apparmor`).
const APPARMOR_DEFAULT: &str = "podling-default";

/// A security context that cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecurityError {
    /// No such capability.
    #[error("unknown capability `{0}`")]
    Capability(String),
    /// No such profile type.
    #[error("unknown seccompProfile type `{0}`: use RuntimeDefault, Unconfined or Localhost")]
    Seccomp(String),
    /// No such profile type.
    #[error("unknown appArmorProfile type `{0}`: use RuntimeDefault, Unconfined or Localhost")]
    AppArmor(String),
    /// No name, where there must be one.
    #[error("appArmorProfile of type Localhost needs a localhostProfile")]
    AppArmorName,
    /// A profile outside the profile directory.
    #[error("localhostProfile `{0}` must be a path below {SECCOMP_DIR}, without `..`")]
    Localhost(String),
    /// A numeric identity that the kernel does not have.
    #[error("{field}: {value} is not a user or group number")]
    Id {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: i64,
    },
}

/// What a container may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Security {
    /// `runAsUser`.
    pub user: Option<u32>,
    /// `runAsGroup`.
    pub group: Option<u32>,
    /// `runAsNonRoot`.
    pub non_root: bool,
    /// `supplementalGroups` and `fsGroup`.
    pub groups: BTreeSet<u32>,
    /// The image's groups of the user do not count (`supplementalGroupsPolicy: Strict`).
    pub strict_groups: bool,
    /// All of the host.
    pub privileged: bool,
    /// The root file system cannot be written to.
    pub read_only_rootfs: bool,
    /// Programs with set-user-ID bits gain nothing. As in Kubernetes only when `allowPrivilegeEscalation` is false:
    /// images whose `sudo` or `ping` needs more would break otherwise.
    pub no_new_privileges: bool,
    /// `/proc` is whole (`procMount: Unmasked`).
    pub unmasked_proc: bool,
    /// Capabilities, before dropping those that a user other than root loses by itself.
    pub capabilities: HashSet<Capability>,
    /// The AppArmor profile by name. A container that cannot have it does not start; none is asked for by default.
    pub app_armor: Option<String>,
    /// System calls. Unlike the kubelet's default, a pod that says nothing gets `RuntimeDefault`.
    pub seccomp: SeccompPlan,
}

/// Merges the pod's and the container's security contexts; the container's fields win.
///
/// # Errors
/// When a value means nothing to the kernel.
pub fn effective(spec: &PodSpec, container: &Container) -> Result<Security, SecurityError> {
    let pod = spec.security_context.clone().unwrap_or_default();
    let own = container.security_context.clone().unwrap_or_default();
    let privileged = own.privileged == Some(true);
    let mut groups = BTreeSet::new();
    for group in pod.supplemental_groups.iter().flatten() {
        groups.insert(id("supplementalGroups", *group)?);
    }
    if let Some(group) = pod.fs_group {
        groups.insert(id("fsGroup", group)?);
    }
    let profile = own
        .seccomp_profile
        .as_ref()
        .or(pod.seccomp_profile.as_ref());
    let app_armor_profile = own
        .app_armor_profile
        .as_ref()
        .or(pod.app_armor_profile.as_ref());
    Ok(Security {
        user: own
            .run_as_user
            .or(pod.run_as_user)
            .map(|v| id("runAsUser", v))
            .transpose()?,
        group: own
            .run_as_group
            .or(pod.run_as_group)
            .map(|v| id("runAsGroup", v))
            .transpose()?,
        non_root: own.run_as_non_root.or(pod.run_as_non_root) == Some(true),
        groups,
        strict_groups: pod.supplemental_groups_policy.as_deref() == Some("Strict"),
        privileged,
        read_only_rootfs: own.read_only_root_filesystem == Some(true),
        no_new_privileges: own.allow_privilege_escalation == Some(false),
        unmasked_proc: own.proc_mount.as_deref() == Some("Unmasked"),
        capabilities: capabilities(own.capabilities.as_ref(), privileged)?,
        app_armor: app_armor(app_armor_profile, privileged)?,
        seccomp: if privileged {
            SeccompPlan::Unconfined
        } else {
            seccomp(profile)?
        },
    })
}

/// A user or group number.
///
/// # Errors
/// When it is negative or too large.
pub fn id(field: &'static str, value: i64) -> Result<u32, SecurityError> {
    // The highest number means "unchanged" to the kernel.
    u32::try_from(value)
        .ok()
        .filter(|id| *id != u32::MAX)
        .ok_or(SecurityError::Id { field, value })
}

fn capabilities(
    wanted: Option<&Wanted>,
    privileged: bool,
) -> Result<HashSet<Capability>, SecurityError> {
    let is_all = |names: Option<&Vec<String>>| {
        names.is_some_and(|names| names.iter().any(|name| name.eq_ignore_ascii_case("ALL")))
    };
    let add = wanted.and_then(|wanted| wanted.add.as_ref());
    let drop = wanted.and_then(|wanted| wanted.drop.as_ref());
    let mut set: HashSet<Capability> = if privileged || is_all(add) {
        ALL_CAPABILITIES.into()
    } else if is_all(drop) {
        HashSet::new()
    } else {
        DEFAULT_CAPABILITIES.into()
    };
    let named = |names: Option<&Vec<String>>| -> Result<Vec<Capability>, SecurityError> {
        names
            .into_iter()
            .flatten()
            .filter(|name| !name.eq_ignore_ascii_case("ALL"))
            .map(|name| capability(name))
            .collect()
    };
    set.extend(named(add)?);
    for capability in named(drop)? {
        set.remove(&capability);
    }
    Ok(set)
}

fn capability(name: &str) -> Result<Capability, SecurityError> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    ALL_CAPABILITIES
        .into_iter()
        .find(|capability| capability.to_string().trim_start_matches("CAP_") == short)
        .ok_or_else(|| SecurityError::Capability(name.to_owned()))
}

fn seccomp(profile: Option<&SeccompProfile>) -> Result<SeccompPlan, SecurityError> {
    let Some(profile) = profile else {
        return Ok(SeccompPlan::RuntimeDefault);
    };
    match profile.type_.as_str() {
        "RuntimeDefault" => Ok(SeccompPlan::RuntimeDefault),
        "Unconfined" => Ok(SeccompPlan::Unconfined),
        "Localhost" => {
            let name = profile.localhost_profile.as_deref().unwrap_or_default();
            let path = PathBuf::from(name);
            let is_plain = path
                .components()
                .all(|part| matches!(part, std::path::Component::Normal(_)));
            if name.is_empty() || !is_plain {
                return Err(SecurityError::Localhost(name.to_owned()));
            }
            Ok(SeccompPlan::Localhost {
                path: PathBuf::from(SECCOMP_DIR).join(path),
            })
        }
        other => Err(SecurityError::Seccomp(other.to_owned())),
    }
}

/// As in Kubernetes, the default is not for privileged containers, and a profile by name is.
fn app_armor(
    profile: Option<&AppArmorProfile>,
    privileged: bool,
) -> Result<Option<String>, SecurityError> {
    let Some(profile) = profile else {
        return Ok(None);
    };
    let name = match profile.type_.as_str() {
        "RuntimeDefault" if privileged => return Ok(None),
        "RuntimeDefault" => APPARMOR_DEFAULT,
        "Unconfined" => "unconfined",
        "Localhost" => profile
            .localhost_profile
            .as_deref()
            .filter(|name| !name.is_empty())
            .ok_or(SecurityError::AppArmorName)?,
        other => return Err(SecurityError::AppArmor(other.to_owned())),
    };
    Ok(Some(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pod: &str, container: &str) -> Result<Security, SecurityError> {
        let spec: PodSpec = serde_saphyr::from_str(&format!(
            "securityContext: {pod}\ncontainers: [{{ name: a, securityContext: {container} }}]"
        ))
        .expect("a pod spec");
        effective(&spec, &spec.containers[0])
    }

    #[test]
    fn defaults() {
        let security = of("{}", "{}").expect("security");
        assert_eq!(security.capabilities, DEFAULT_CAPABILITIES.into());
        assert_eq!(security.seccomp, SeccompPlan::RuntimeDefault);
        assert!(!security.no_new_privileges && !security.privileged && !security.read_only_rootfs);
        assert_eq!(security.user, None);
    }

    #[test]
    fn the_container_wins() {
        let security = of(
            "{ runAsUser: 1, runAsGroup: 2, runAsNonRoot: true, fsGroup: 5, supplementalGroups: [6] }",
            "{ runAsUser: 10, allowPrivilegeEscalation: false }",
        )
        .expect("security");
        assert_eq!((security.user, security.group), (Some(10), Some(2)));
        assert!(security.non_root && security.no_new_privileges);
        assert_eq!(security.groups, BTreeSet::from([5, 6]));
    }

    #[test]
    fn capability_lists() {
        let caps =
            |text: &str| of("{}", &format!("{{ capabilities: {text} }}")).map(|s| s.capabilities);
        assert_eq!(caps("{ drop: [ALL] }"), Ok(HashSet::new()));
        assert_eq!(
            caps("{ drop: [all], add: [NET_ADMIN, cap_kill] }"),
            Ok(HashSet::from([Capability::NetAdmin, Capability::Kill]))
        );
        let all_but = caps("{ add: [ALL], drop: [SYS_ADMIN] }").expect("caps");
        assert_eq!(all_but.len(), ALL_CAPABILITIES.len() - 1);
        assert!(!all_but.contains(&Capability::SysAdmin));
        assert_eq!(
            caps("{ add: [FLY] }"),
            Err(SecurityError::Capability("FLY".to_owned()))
        );
    }

    #[test]
    fn privileged_has_everything() {
        let security = of(
            "{ seccompProfile: { type: RuntimeDefault } }",
            "{ privileged: true }",
        )
        .expect("security");
        assert_eq!(security.capabilities.len(), ALL_CAPABILITIES.len());
        assert_eq!(security.seccomp, SeccompPlan::Unconfined);
    }

    #[test]
    fn seccomp_profiles() {
        let profile =
            |text: &str| of("{}", &format!("{{ seccompProfile: {text} }}")).map(|s| s.seccomp);
        assert_eq!(profile("{ type: Unconfined }"), Ok(SeccompPlan::Unconfined));
        assert!(matches!(
            profile("{ type: Localhost, localhostProfile: a/b.json }"),
            Ok(SeccompPlan::Localhost { path }) if path.ends_with("a/b.json")
        ));
        assert!(profile("{ type: Localhost, localhostProfile: ../x }").is_err());
        assert!(profile("{ type: Localhost, localhostProfile: /x }").is_err());
        assert!(profile("{ type: Localhost }").is_err());
    }

    #[test]
    fn app_armor_profiles() {
        let profile = |pod: &str, own: &str| of(pod, own).map(|s| s.app_armor);
        let name = |name: &str| Ok(Some(name.to_owned()));
        let default = "{ appArmorProfile: { type: RuntimeDefault } }";
        let named = "{ appArmorProfile: { type: Localhost, localhostProfile: web } }";
        assert_eq!(profile("{}", "{}"), Ok(None));
        assert_eq!(profile(default, "{}"), name("podling-default"));
        assert_eq!(profile(default, "{ privileged: true }"), Ok(None));
        assert_eq!(profile(default, named), name("web"));
        assert_eq!(profile(named, "{ privileged: true }"), name("web"));
        let unconfined = "{ appArmorProfile: { type: Unconfined } }";
        assert_eq!(profile(named, unconfined), name("unconfined"));
        for wrong in ["Default", "Localhost", "Localhost, localhostProfile: ''"] {
            let wrong = format!("{{ appArmorProfile: {{ type: {wrong} }} }}");
            assert!(profile(&wrong, "{}").is_err(), "{wrong}");
        }
    }

    #[test]
    fn ids_out_of_range() {
        assert!(of("{ runAsUser: -1 }", "{}").is_err());
        assert!(of("{ fsGroup: 4294967295 }", "{}").is_err());
    }
}
