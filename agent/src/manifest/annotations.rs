//! Annotations of a Pod that are more than notes.
//!
//! Before there were fields for the profiles of seccomp and AppArmor, annotations said which ones containers have. They
//! are applied as the fields that took their place, which the API server does for AppArmor to this day; it did so for
//! seccomp until Kubernetes 1.27, and ignores those since. Other annotations that changed what a node does are refused, with what
//! to write in their place. All others are notes, for variables, files and other programs.

use k8s_openapi::api::core::v1::{AppArmorProfile, Container, Pod, PodSpec, SeccompProfile};

/// Before the name of the container whose AppArmor profile it says.
pub(super) const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
/// Before the name of the container whose seccomp profile it says.
pub(super) const SECCOMP: &str = "container.seccomp.security.alpha.kubernetes.io/";
/// Before `pod`, for the seccomp profile of all containers.
pub(super) const SECCOMP_OF_POD: &str = "seccomp.security.alpha.kubernetes.io/";

/// An annotation that is refused.
pub(super) struct Refused {
    pub(super) key: &'static str,
    pub(super) why: &'static str,
    pub(super) remedy: &'static str,
}

const fn refused(key: &'static str, why: &'static str, remedy: &'static str) -> Refused {
    Refused { key, why, remedy }
}

const NO_SHAPING: &str = "this node does not limit the bandwidth of pods";
const NOW_A_FIELD: &str = "Kubernetes has a field for it and no longer reads the annotation";

/// The annotations that are refused.
pub(super) const REFUSED: &[Refused] = &[
    refused(
        "kubernetes.io/ingress-bandwidth",
        NO_SHAPING,
        "remove the annotation",
    ),
    refused(
        "kubernetes.io/egress-bandwidth",
        NO_SHAPING,
        "remove the annotation",
    ),
    refused(
        "security.alpha.kubernetes.io/sysctls",
        NOW_A_FIELD,
        "use spec.securityContext.sysctls",
    ),
    refused(
        "security.alpha.kubernetes.io/unsafe-sysctls",
        NOW_A_FIELD,
        "use spec.securityContext.sysctls",
    ),
    refused(
        "pod.alpha.kubernetes.io/init-containers",
        NOW_A_FIELD,
        "use spec.initContainers",
    ),
    refused(
        "pod.beta.kubernetes.io/init-containers",
        NOW_A_FIELD,
        "use spec.initContainers",
    ),
    refused(
        "pod.beta.kubernetes.io/hostname",
        NOW_A_FIELD,
        "use spec.hostname",
    ),
    refused(
        "pod.beta.kubernetes.io/subdomain",
        NOW_A_FIELD,
        "use spec.subdomain",
    ),
];

/// A profile as an annotation says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Profile<'a> {
    /// As in the field.
    pub(super) kind: &'static str,
    /// As in the field `localhostProfile`.
    pub(super) localhost: Option<&'a str>,
}

impl<'a> Profile<'a> {
    /// None of a value that says nothing, or nothing that is known.
    pub(super) fn parse(value: &'a str) -> Option<Self> {
        let (kind, localhost) = match value {
            // What Kubernetes called it before it had other runtimes, of seccomp alone.
            "runtime/default" | "docker/default" => ("RuntimeDefault", None),
            "unconfined" => ("Unconfined", None),
            other => {
                let name = other.strip_prefix("localhost/")?;
                ("Localhost", Some(name).filter(|name| !name.is_empty()))
            }
        };
        let is_whole = kind != "Localhost" || localhost.is_some();
        is_whole.then_some(Self { kind, localhost })
    }

    pub(super) fn app_armor(self) -> AppArmorProfile {
        AppArmorProfile {
            type_: self.kind.to_owned(),
            localhost_profile: self.localhost.map(str::to_owned),
        }
    }

    pub(super) fn seccomp(self) -> SeccompProfile {
        SeccompProfile {
            type_: self.kind.to_owned(),
            localhost_profile: self.localhost.map(str::to_owned),
        }
    }
}

/// Gives the fields of a pod what its annotations say, where the fields say nothing. The pod is valid.
pub(super) fn apply(pod: &mut Pod) {
    let (Some(annotations), Some(spec)) = (&pod.metadata.annotations, &mut pod.spec) else {
        return;
    };
    for (key, value) in annotations {
        let Some(profile) = Profile::parse(value) else {
            continue;
        };
        if let Some(name) = key.strip_prefix(APP_ARMOR) {
            for container in named(spec, name) {
                let context = container.security_context.get_or_insert_default();
                let field = &mut context.app_armor_profile;
                field.get_or_insert_with(|| profile.app_armor());
            }
        } else if let Some(name) = key.strip_prefix(SECCOMP) {
            for container in named(spec, name) {
                let context = container.security_context.get_or_insert_default();
                let field = &mut context.seccomp_profile;
                field.get_or_insert_with(|| profile.seccomp());
            }
        } else if key.strip_prefix(SECCOMP_OF_POD) == Some("pod") {
            let context = spec.security_context.get_or_insert_default();
            let field = &mut context.seccomp_profile;
            field.get_or_insert_with(|| profile.seccomp());
        }
    }
}

fn named<'a>(spec: &'a mut PodSpec, name: &str) -> impl Iterator<Item = &'a mut Container> {
    let all = spec
        .init_containers
        .iter_mut()
        .flatten()
        .chain(&mut spec.containers);
    all.filter(move |container| container.name == name)
}

/// The part of the documentation about annotations, as Markdown.
pub(super) fn markdown() -> String {
    let mut out = format!(
        "\n## Annotations of a Pod\n\n\
         Annotations are notes, which variables and files may take, but for these. A profile is `runtime/default`, `unconfined` or \
         `localhost/NAME`; a field and its annotation that say different things are refused.\n\n\
         | Annotation | On this node |\n|---|---|\n\
         | `{APP_ARMOR}CONTAINER` | applied as that container's `securityContext.appArmorProfile` |\n\
         | `{SECCOMP}CONTAINER` | applied as that container's `securityContext.seccompProfile` |\n\
         | `{SECCOMP_OF_POD}pod` | applied as `spec.securityContext.seccompProfile` |\n"
    );
    for Refused { key, why, remedy } in REFUSED {
        out.push_str(&format!("| `{key}` | **refused**: {why}; {remedy} |\n"));
    }
    out.push_str(
        "\n## Other objects\n\n\
         A Namespace whose label `pod-security.kubernetes.io/enforce` is another than `privileged` is refused: pods are not checked \
         against the pod security standards. `immutable` of a ConfigMap or Secret is accepted without effect: whoever writes the \
         manifest may change it, as if it were removed and made again.\n",
    );
    out
}
