//! Whether a changed pod keeps running: what is applied in place, what takes a successor.
//!
//! Kubernetes itself allows few changes to a pod: image, labels and annotations, `activeDeadlineSeconds`, and the
//! cpu and memory of containers (in-place resize). Podling adds probes and the grace period, which only the pod's
//! supervisor looks at, and the credentials for images, which only the next pull looks at. Any other change replaces the pod.

use std::fmt;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

/// What a change means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing that the pod would notice.
    Same,
    /// The running pod takes it on; these fields changed.
    InPlace(Vec<String>),
    /// The pod ends and a successor starts; these fields are the reason.
    Replace(Vec<String>),
}

impl Verdict {
    /// True for [`Verdict::Replace`].
    pub fn is_replacement(&self) -> bool {
        matches!(self, Verdict::Replace(_))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Same => f.write_str("nothing that it would notice"),
            Verdict::InPlace(fields) => write!(f, "applied in place: {}", fields.join(", ")),
            Verdict::Replace(fields) => {
                write!(f, "replaced because of: {}", fields.join(", "))
            }
        }
    }
}

/// What the change from `old` to `new` means. Pure; both with defaults applied.
pub fn between(old: &Pod, new: &Pod) -> Verdict {
    let mut changes = Changes::default();
    if old.metadata.labels != new.metadata.labels {
        changes.in_place("metadata.labels");
    }
    if old.metadata.annotations != new.metadata.annotations {
        changes.in_place("metadata.annotations");
    }
    let empty = PodSpec::default();
    let old = old.spec.as_ref().unwrap_or(&empty);
    let new = new.spec.as_ref().unwrap_or(&empty);
    compare_specs(old, new, &mut changes);
    changes.verdict()
}

#[derive(Debug, Default)]
struct Changes {
    in_place: Vec<String>,
    replacing: Vec<String>,
}

impl Changes {
    fn in_place(&mut self, field: impl Into<String>) {
        self.in_place.push(field.into());
    }

    fn replacing(&mut self, field: impl Into<String>) {
        self.replacing.push(field.into());
    }

    fn verdict(self) -> Verdict {
        if !self.replacing.is_empty() {
            Verdict::Replace(self.replacing)
        } else if !self.in_place.is_empty() {
            Verdict::InPlace(self.in_place)
        } else {
            Verdict::Same
        }
    }
}

fn compare_specs(old: &PodSpec, new: &PodSpec, changes: &mut Changes) {
    if old.active_deadline_seconds != new.active_deadline_seconds {
        changes.in_place("spec.activeDeadlineSeconds");
    }
    if old.termination_grace_period_seconds != new.termination_grace_period_seconds {
        changes.in_place("spec.terminationGracePeriodSeconds");
    }
    if old.image_pull_secrets != new.image_pull_secrets {
        changes.in_place("spec.imagePullSecrets");
    }
    let inits = |spec: &PodSpec| spec.init_containers.clone().unwrap_or_default();
    compare_containers("spec.initContainers", &inits(old), &inits(new), changes);
    compare_containers("spec.containers", &old.containers, &new.containers, changes);

    let rest = |spec: &PodSpec| PodSpec {
        active_deadline_seconds: None,
        termination_grace_period_seconds: None,
        image_pull_secrets: None,
        // This node's or none: another is refused.
        node_name: None,
        containers: Vec::new(),
        init_containers: None,
        ..spec.clone()
    };
    let (old_rest, new_rest) = (rest(old), rest(new));
    if old_rest != new_rest {
        changes.replacing(first_difference("spec", &old_rest, &new_rest));
    }
    // The class is the pod's place in the cgroup tree.
    let (old_class, new_class) = (qos_class(old), qos_class(new));
    if old_class != new_class {
        changes.replacing(format!("QoS class {old_class} to {new_class}"));
    }
}

fn compare_containers(path: &str, old: &[Container], new: &[Container], changes: &mut Changes) {
    let names = |all: &[Container]| all.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
    if names(old) != names(new) {
        changes.replacing(path);
        return;
    }
    for (at, (old, new)) in old.iter().zip(new).enumerate() {
        compare_container(&format!("{path}[{at}]"), old, new, changes);
    }
}

fn compare_container(path: &str, old: &Container, new: &Container, changes: &mut Changes) {
    let rest = |container: &Container| Container {
        image: None,
        image_pull_policy: None,
        resources: None,
        liveness_probe: None,
        readiness_probe: None,
        startup_probe: None,
        ..container.clone()
    };
    let (old_rest, new_rest) = (rest(old), rest(new));
    if old_rest != new_rest {
        changes.replacing(first_difference(path, &old_rest, &new_rest));
    }
    // An init container that has run has to run again for its change to mean anything.
    let runs_on = !path.starts_with("spec.initContainers") || is_sidecar(new);
    let mut note = |field: &str, differs: bool| {
        if differs && runs_on {
            changes.in_place(format!("{path}.{field}"));
        } else if differs {
            changes.replacing(format!("{path}.{field}"));
        }
    };
    note("image", old.image != new.image);
    note("resources", old.resources != new.resources);
    note("livenessProbe", old.liveness_probe != new.liveness_probe);
    note("readinessProbe", old.readiness_probe != new.readiness_probe);
    note("startupProbe", old.startup_probe != new.startup_probe);
    // The policy counts at the next pull.
    if old.image_pull_policy != new.image_pull_policy {
        changes.in_place(format!("{path}.imagePullPolicy"));
    }
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The path of the first field that differs, a few levels deep, for people.
fn first_difference<T: serde::Serialize>(path: &str, old: &T, new: &T) -> String {
    let (Ok(old), Ok(new)) = (serde_json::to_value(old), serde_json::to_value(new)) else {
        return path.to_owned();
    };
    descend(path.to_owned(), &old, &new)
}

fn descend(path: String, old: &serde_json::Value, new: &serde_json::Value) -> String {
    use serde_json::Value::{Array, Object};
    let null = serde_json::Value::Null;
    match (old, new) {
        (Object(old), Object(new)) => {
            let names = old.keys().chain(new.keys());
            let field = |map: &serde_json::Map<_, _>, name: &String| -> serde_json::Value {
                map.get(name).unwrap_or(&null).clone()
            };
            match names
                .into_iter()
                .find(|name| old.get(*name) != new.get(*name))
            {
                Some(name) => descend(
                    format!("{path}.{name}"),
                    &field(old, name),
                    &field(new, name),
                ),
                None => path,
            }
        }
        (Array(old), Array(new)) if old.len() == new.len() => {
            match old.iter().zip(new).position(|(old, new)| old != new) {
                Some(at) => descend(format!("{path}[{at}]"), &old[at], &new[at]),
                None => path,
            }
        }
        _ => path,
    }
}

/// Kubernetes' QoS class, which looks at cpu and memory of all containers and init containers.
/// See "Pod Quality of Service Classes" in the Kubernetes documentation.
pub fn qos_class(spec: &PodSpec) -> &'static str {
    let containers = spec.containers.iter();
    let all = || {
        containers
            .clone()
            .chain(spec.init_containers.iter().flatten())
    };
    let amount = |container: &Container, limit: bool, name: &str| -> Option<i128> {
        let resources = container.resources.as_ref()?;
        let list = if limit {
            &resources.limits
        } else {
            &resources.requests
        };
        let quantity = list.as_ref()?.get(name)?;
        let nanos = crate::manifest::quantity::nanos(&quantity.0).ok()?;
        (nanos != 0).then_some(nanos)
    };
    let both = ["cpu", "memory"];
    let none = all().all(|c| {
        both.iter()
            .all(|name| amount(c, true, name).is_none() && amount(c, false, name).is_none())
    });
    let guaranteed = all().all(|c| {
        both.iter().all(|name| {
            let limit = amount(c, true, name);
            limit.is_some() && amount(c, false, name).is_none_or(|request| Some(request) == limit)
        })
    });
    match (none, guaranteed) {
        (true, _) => "BestEffort",
        (_, true) => "Guaranteed",
        _ => "Burstable",
    }
}
