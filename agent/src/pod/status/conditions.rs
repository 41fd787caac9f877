//! Pod conditions, with the reasons and messages of the kubelet.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{Facts, Phase};
use crate::pod::resources;

/// A condition before it has times.
struct Verdict {
    kind: &'static str,
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    fn yes(kind: &'static str) -> Self {
        Self {
            kind,
            holds: true,
            reason: None,
            message: None,
        }
    }

    fn no(kind: &'static str, reason: &'static str, message: Option<String>) -> Self {
        Self {
            kind,
            holds: false,
            reason: Some(reason),
            message,
        }
    }
}

pub(super) fn conditions(
    spec: &PodSpec,
    phase: Phase,
    facts: &Facts<'_>,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
    before: Option<&PodStatus>,
    now: Timestamp,
) -> Vec<PodCondition> {
    let containers_ready = containers_ready(spec, phase, init, main);
    let ready = ready(spec, phase, &containers_ready, before);
    let sandbox = Verdict {
        kind: "PodReadyToStartContainers",
        holds: facts.sandbox_ready,
        reason: None,
        message: None,
    };
    [
        sandbox,
        initialized(spec, phase, init, main),
        ready,
        containers_ready,
        Verdict::yes("PodScheduled"),
    ]
    .into_iter()
    .map(|verdict| condition(verdict, facts.generation, before, now))
    .chain(others(spec, before))
    .collect()
}

fn initialized(
    spec: &PodSpec,
    phase: Phase,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Verdict {
    const KIND: &str = "Initialized";
    if phase == Phase::Succeeded {
        return Verdict {
            reason: Some("PodCompleted"),
            ..Verdict::yes(KIND)
        };
    }
    let has_run = |status: &ContainerStatus| status.container_id.is_some();
    if main.iter().any(has_run) {
        return Verdict::yes(KIND);
    }
    let incomplete: Vec<&str> = spec
        .init_containers
        .iter()
        .flatten()
        .zip(init)
        .filter(|(container, status)| {
            let done = if resources::is_sidecar(container) {
                status.started == Some(true)
            } else {
                ended_well(status)
            };
            !done
        })
        .map(|(container, _)| container.name.as_str())
        .collect();
    if incomplete.is_empty() {
        return Verdict::yes(KIND);
    }
    let message = format!("containers with incomplete status: {}", list(&incomplete));
    Verdict::no(KIND, "ContainersNotInitialized", Some(message))
}

fn containers_ready(
    spec: &PodSpec,
    phase: Phase,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Verdict {
    const KIND: &str = "ContainersReady";
    match phase {
        Phase::Succeeded => return Verdict::no(KIND, "PodCompleted", None),
        Phase::Failed => return Verdict::no(KIND, "PodFailed", None),
        Phase::Pending | Phase::Running => {}
    }
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .zip(init)
        .filter(|(container, _)| resources::is_sidecar(container))
        .map(|(_, status)| status);
    let unready: Vec<&str> = sidecars
        .chain(main)
        .filter(|status| !status.ready)
        .map(|status| status.name.as_str())
        .collect();
    if unready.is_empty() && !main.is_empty() {
        return Verdict::yes(KIND);
    }
    Verdict::no(
        KIND,
        "ContainersNotReady",
        Some(format!(
            "containers with unready status: {}",
            list(&unready)
        )),
    )
}

/// Ready is ContainersReady and every readiness gate.
fn ready(
    spec: &PodSpec,
    phase: Phase,
    containers: &Verdict,
    before: Option<&PodStatus>,
) -> Verdict {
    const KIND: &str = "Ready";
    if !containers.holds || phase == Phase::Pending {
        return Verdict {
            kind: KIND,
            holds: false,
            reason: containers.reason,
            message: containers.message.clone(),
        };
    }
    let holds = |gate: &str| {
        before
            .and_then(|s| s.conditions.as_ref())
            .is_some_and(|all| all.iter().any(|c| c.type_ == gate && c.status == "True"))
    };
    let missing: Vec<String> = spec
        .readiness_gates
        .iter()
        .flatten()
        .filter(|gate| !holds(&gate.condition_type))
        .map(|gate| {
            format!(
                "corresponding condition of pod readiness gate \"{}\" does not exist.",
                gate.condition_type
            )
        })
        .collect();
    if missing.is_empty() {
        return Verdict::yes(KIND);
    }
    Verdict::no(KIND, "ReadinessGatesNotReady", Some(missing.join(", ")))
}

/// Conditions that others set, for readiness gates, stay as they are.
fn others(spec: &PodSpec, before: Option<&PodStatus>) -> Vec<PodCondition> {
    let gates: Vec<&str> = spec
        .readiness_gates
        .iter()
        .flatten()
        .map(|gate| gate.condition_type.as_str())
        .collect();
    before
        .and_then(|s| s.conditions.as_ref())
        .into_iter()
        .flatten()
        .filter(|c| gates.contains(&c.type_.as_str()))
        .cloned()
        .collect()
}

fn condition(
    verdict: Verdict,
    generation: Option<i64>,
    before: Option<&PodStatus>,
    now: Timestamp,
) -> PodCondition {
    let status = if verdict.holds { "True" } else { "False" };
    let since = before
        .and_then(|s| s.conditions.as_ref())
        .and_then(|all| {
            all.iter()
                .find(|c| c.type_ == verdict.kind && c.status == status)
        })
        .and_then(|c| c.last_transition_time.clone());
    PodCondition {
        type_: verdict.kind.to_owned(),
        status: status.to_owned(),
        reason: verdict.reason.map(str::to_owned),
        message: verdict.message,
        last_transition_time: Some(since.unwrap_or(Time(now))),
        observed_generation: generation,
        ..PodCondition::default()
    }
}

fn ended_well(status: &ContainerStatus) -> bool {
    let terminated = status.state.as_ref().and_then(|s| s.terminated.as_ref());
    terminated.is_some_and(|end| end.exit_code == 0)
}

/// `[a b]`, as Go prints a slice.
fn list(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}
