//! A pod's status as Kubernetes shows it, from facts: its spec, what its supervisor reports, and what the worker knows.
//! Pure: the same facts give the same status.
//!
//! The rules are the kubelet's (`getPhase` and `generateAPIPodStatus` in `pkg/kubelet/kubelet_pods.go`,
//! `pkg/kubelet/status/generate.go`). Transition times are carried over from the status before.

mod conditions;
mod containers;

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{HostIP, Pod, PodIP, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use podling_runtime::pod::snapshot::{ContainerState, Snapshot, Stage};

pub use super::image_facts::ImageFacts;
use super::resources;

/// What is known of a pod beside its spec.
#[derive(Debug, Clone, Default)]
pub struct Facts<'a> {
    /// The supervisor's last report; None before there was one.
    pub snapshot: Option<&'a Snapshot>,
    /// Why containers that the supervisor does not know yet wait, by name: reason and message.
    pub waiting: BTreeMap<String, Waiting>,
    /// What the names of their images mean now, by container name; shown of a container until it has run.
    pub images: BTreeMap<String, ImageFacts>,
    /// The node's address.
    pub host_ip: Option<IpAddr>,
    /// The pod's addresses, the first of each family first.
    pub pod_ips: Vec<IpAddr>,
    /// Network, volumes and supervisor are there.
    pub sandbox_ready: bool,
    /// The pod itself was given up: reason and message (`Evicted`, `DeadlineExceeded`, …).
    pub failure: Option<Waiting>,
    /// When the node first saw the pod.
    pub start_time: Option<Timestamp>,
    /// `metadata.generation` that this reflects.
    pub generation: Option<i64>,
}

/// A reason and a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// A CamelCase word.
    pub reason: String,
    /// For people.
    pub message: String,
}

/// Whether a status is final: it never changes again.
pub fn is_terminal(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// The status of a pod. `before` is the last one, for transition times; a terminal phase stays.
pub fn status(
    pod: &Pod,
    facts: &Facts<'_>,
    before: Option<&PodStatus>,
    now: Timestamp,
) -> PodStatus {
    let default_spec = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&default_spec);
    let phase = match before
        .filter(|status| is_terminal(status))
        .and_then(|status| status.phase.as_deref())
    {
        Some("Succeeded") => Phase::Succeeded,
        Some("Failed") => Phase::Failed,
        _ => phase(spec, facts),
    };
    let (init, main) = containers::statuses(spec, facts, before);
    let conditions = conditions::conditions(spec, phase, facts, &init, &main, before, now);
    let failure = facts
        .failure
        .clone()
        .or_else(|| stage_failure(facts.snapshot));
    PodStatus {
        phase: Some(phase.name().to_owned()),
        conditions: Some(conditions),
        reason: failure.as_ref().map(|f| f.reason.clone()),
        message: failure.map(|f| f.message),
        host_ip: facts.host_ip.map(|ip| ip.to_string()),
        host_ips: facts.host_ip.map(|ip| vec![HostIP { ip: ip.to_string() }]),
        pod_ip: facts.pod_ips.first().map(|ip| ip.to_string()),
        pod_ips: (!facts.pod_ips.is_empty()).then(|| {
            facts
                .pod_ips
                .iter()
                .map(|ip| PodIP { ip: ip.to_string() })
                .collect()
        }),
        start_time: facts.start_time.map(Time),
        init_container_statuses: (!init.is_empty()).then_some(init),
        container_statuses: (!main.is_empty()).then_some(main),
        qos_class: resources::qos(spec).ok().map(|qos| qos.name().to_owned()),
        observed_generation: facts.generation,
        ..PodStatus::default()
    }
}

/// Where in its life a pod is, in Kubernetes' five words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

/// What a container has come to, as far as the phase cares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// Has not run yet.
    Waiting,
    /// Ran, ended, and will run again.
    Between,
    Running,
    Ended {
        success: bool,
    },
}

fn progress(facts: &Facts<'_>, name: &str) -> Progress {
    let container = facts
        .snapshot
        .and_then(|s| s.containers.iter().find(|c| c.name == name));
    match container {
        None => Progress::Waiting,
        Some(container) => match &container.state {
            ContainerState::Waiting { .. } if container.last_termination.is_some() => {
                Progress::Between
            }
            ContainerState::Waiting { .. } => Progress::Waiting,
            ContainerState::Running { .. } => Progress::Running,
            ContainerState::Terminated(end) => Progress::Ended {
                success: end.exit_code == 0,
            },
        },
    }
}

fn phase(spec: &PodSpec, facts: &Facts<'_>) -> Phase {
    if facts.failure.is_some() || stage_failure(facts.snapshot).is_some() {
        return Phase::Failed;
    }
    let never = spec.restart_policy.as_deref() == Some("Never");
    let main: Vec<Progress> = spec
        .containers
        .iter()
        .map(|c| progress(facts, &c.name))
        .collect();
    let begun = main.iter().any(|p| *p != Progress::Waiting);
    // Once a container has run, initialisation is over, and a sidecar that restarts does not undo it.
    if !begun {
        for container in spec.init_containers.iter().flatten() {
            let sidecar = resources::is_sidecar(container);
            match progress(facts, &container.name) {
                Progress::Ended { success: false } if never && !sidecar => return Phase::Failed,
                Progress::Ended { success: true } => {}
                Progress::Running if sidecar => {}
                Progress::Waiting
                | Progress::Between
                | Progress::Running
                | Progress::Ended { .. } => {
                    return Phase::Pending;
                }
            }
        }
    }
    if main.contains(&Progress::Waiting) {
        return Phase::Pending;
    }
    if main
        .iter()
        .any(|p| matches!(p, Progress::Running | Progress::Between))
    {
        return Phase::Running;
    }
    let all_succeeded = main.iter().all(|p| *p == Progress::Ended { success: true });
    let over = matches!(facts.snapshot.map(|s| &s.stage), Some(Stage::Ended { .. }));
    match spec.restart_policy.as_deref() {
        // A supervisor that was told to end the pod will not start it again, whatever the policy.
        None | Some("Always") if !over => Phase::Running,
        _ if all_succeeded => Phase::Succeeded,
        Some("OnFailure") if !over => Phase::Running,
        _ => Phase::Failed,
    }
}

fn stage_failure(snapshot: Option<&Snapshot>) -> Option<Waiting> {
    match &snapshot?.stage {
        Stage::Ended {
            reason: Some(reason),
            message,
            ..
        } => Some(Waiting {
            reason: reason.clone(),
            message: message.clone().unwrap_or_default(),
        }),
        Stage::Ended { reason: None, .. }
        | Stage::Initializing
        | Stage::Active
        | Stage::Terminating { .. } => None,
    }
}

#[cfg(test)]
mod tests;
