//! Container statuses: what the supervisor reports, in Kubernetes' words.

use k8s_openapi::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, PodSpec, PodStatus, VolumeMount, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use podling_runtime::pod::snapshot::{ContainerSnapshot, ContainerState, Termination};

use super::{Facts, ImageFacts};

/// The scheme of container ids, as in `containerd://…`.
const ID_SCHEME: &str = "podling://";

/// Statuses of init containers and of the others, in the spec's order.
pub(super) fn statuses(
    spec: &PodSpec,
    facts: &Facts<'_>,
    before: Option<&PodStatus>,
) -> (Vec<ContainerStatus>, Vec<ContainerStatus>) {
    let init = spec.init_containers.iter().flatten();
    let has_init = spec.init_containers.as_ref().is_some_and(|c| !c.is_empty());
    let before_init = before
        .and_then(|s| s.init_container_statuses.as_deref())
        .unwrap_or_default();
    let before_main = before
        .and_then(|s| s.container_statuses.as_deref())
        .unwrap_or_default();
    (
        init.map(|c| status(c, facts, before_init, "PodInitializing"))
            .collect(),
        spec.containers
            .iter()
            .map(|c| {
                status(
                    c,
                    facts,
                    before_main,
                    if has_init {
                        "PodInitializing"
                    } else {
                        "ContainerCreating"
                    },
                )
            })
            .collect(),
    )
}

fn status(
    container: &Container,
    facts: &Facts<'_>,
    before: &[ContainerStatus],
    default_reason: &str,
) -> ContainerStatus {
    let snapshot = facts
        .snapshot
        .and_then(|s| s.containers.iter().find(|c| c.name == container.name));
    // A supervisor that is gone takes nothing back: its last words stand.
    if snapshot.is_none()
        && facts.snapshot.is_none()
        && let Some(last) = before
            .iter()
            .find(|s| s.name == container.name && s.container_id.is_some())
    {
        return last.clone();
    }
    let runs = snapshot.and_then(|s| ImageFacts::from_annotations(&s.annotations));
    let image = runs.as_ref().or_else(|| facts.images.get(&container.name));
    let id = snapshot.and_then(current_id);
    ContainerStatus {
        name: container.name.clone(),
        image: image
            .map(|i| i.image.clone())
            .or_else(|| container.image.clone())
            .unwrap_or_default(),
        image_id: image.map(|i| i.image_id.clone()).unwrap_or_default(),
        container_id: id.map(|id| format!("{ID_SCHEME}{id}")),
        ready: snapshot.is_some_and(|s| s.ready),
        started: Some(snapshot.is_some_and(|s| s.started)),
        restart_count: snapshot.map_or(0, |s| i32::try_from(s.restart_count).unwrap_or(i32::MAX)),
        state: Some(match snapshot {
            Some(snapshot) => state(&snapshot.state),
            None => {
                let (reason, message) = facts.waiting.get(&container.name).map_or_else(
                    || (default_reason.to_owned(), None),
                    |w| {
                        (
                            w.reason.clone(),
                            Some(w.message.clone()).filter(|m| !m.is_empty()),
                        )
                    },
                );
                waiting(reason, message)
            }
        }),
        volume_mounts: container
            .volume_mounts
            .as_ref()
            .map(|mounts| mounts.iter().map(volume_mount).collect()),
        last_state: snapshot
            .and_then(|s| s.last_termination.as_ref())
            .map(|end| ApiState {
                terminated: Some(terminated(end)),
                ..ApiState::default()
            }),
        ..ContainerStatus::default()
    }
}

/// A mount as it is; whether a read-only one is so below too is decided by its manifest alone here, since every kernel
/// that this runs on can do it.
fn volume_mount(mount: &VolumeMount) -> VolumeMountStatus {
    let read_only = mount.read_only == Some(true);
    let recursive = matches!(
        mount.recursive_read_only.as_deref(),
        Some("Enabled" | "IfPossible")
    );
    VolumeMountStatus {
        name: mount.name.clone(),
        mount_path: mount.mount_path.clone(),
        read_only: read_only.then_some(true),
        recursive_read_only: read_only
            .then(|| if recursive { "Enabled" } else { "Disabled" }.to_owned()),
    }
}

fn current_id(snapshot: &ContainerSnapshot) -> Option<&str> {
    match &snapshot.state {
        ContainerState::Running { id, .. } => Some(id.as_str()),
        ContainerState::Terminated(end) => Some(end.id.as_str()),
        ContainerState::Waiting { .. } => snapshot
            .last_termination
            .as_ref()
            .map(|end| end.id.as_str()),
    }
    .filter(|id| !id.is_empty())
}

fn state(state: &ContainerState) -> ApiState {
    match state {
        ContainerState::Waiting {
            reason, message, ..
        } => waiting(
            reason.clone(),
            Some(message.clone()).filter(|m| !m.is_empty()),
        ),
        ContainerState::Running { started_at, .. } => ApiState {
            running: Some(ContainerStateRunning {
                started_at: Some(Time(*started_at)),
            }),
            ..ApiState::default()
        },
        ContainerState::Terminated(end) => ApiState {
            terminated: Some(terminated(end)),
            ..ApiState::default()
        },
    }
}

fn waiting(reason: String, message: Option<String>) -> ApiState {
    ApiState {
        waiting: Some(ContainerStateWaiting {
            reason: Some(reason),
            message,
        }),
        ..ApiState::default()
    }
}

fn terminated(end: &Termination) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id: Some(end.id.as_str())
            .filter(|id| !id.is_empty())
            .map(|id| format!("{ID_SCHEME}{id}")),
        exit_code: end.exit_code,
        signal: end.signal,
        reason: Some(end.reason.clone()),
        message: end.message.clone(),
        started_at: Some(Time(end.started_at)),
        finished_at: Some(Time(end.finished_at)),
    }
}
