//! Pods without the agent: from the plans in the run directory and what their supervisors say. Less is known this
//! way (no manifest, no conditions), but it is the truth about what runs.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, Pod, PodCondition, PodIP, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use podling_images::Reference;
use podling_runtime::pod::client::Client;
use podling_runtime::pod::plan::{
    ContainerKind, ContainerPlan, ContainerSource, NetworkPlan, Plan, RestartPolicy,
};
use podling_runtime::pod::protocol::{PLAN_FILE, Reply, Request};
use podling_runtime::pod::snapshot::{
    ContainerSnapshot, ContainerState as State, Snapshot, Stage, Termination,
};

use super::{CommandError, Directories};
use crate::pod::final_status;
use crate::pod::image_facts::ImageFacts;
use crate::pod::layers::{self, read_plan, true_path};

/// All pods that have a directory in the run directory, by namespace and name.
pub(super) fn pods(directories: &Directories) -> Result<Vec<Pod>, CommandError> {
    let mut pods: Vec<Pod> = plans(directories)?
        .iter()
        .map(|(dir, plan)| {
            let mut pod = to_pod(plan, snapshot(dir).as_ref());
            if let Some(status) = end_of(directories, plan) {
                pod.status = Some(status);
            }
            pod
        })
        .collect();
    pods.sort_by(|a, b| {
        let key = |p: &Pod| (p.metadata.namespace.clone(), p.metadata.name.clone());
        key(a).cmp(&key(b))
    });
    Ok(pods)
}

/// The plan of one pod, and its directory. Of several with that name, the one that is not being ended counts:
/// the newest.
pub(super) fn find(
    directories: &Directories,
    namespace: &str,
    name: &str,
) -> Result<(PathBuf, Plan), CommandError> {
    let mut found: Vec<_> = plans(directories)?
        .into_iter()
        .filter(|(_, plan)| plan.pod.namespace == namespace && plan.pod.name == name)
        .collect();
    found.sort_by_key(|(dir, _)| {
        fs::metadata(dir.join(PLAN_FILE))
            .and_then(|m| m.modified())
            .ok()
    });
    found.pop().ok_or_else(|| {
        CommandError::new(format!(
            "pod {name} of namespace {namespace} does not run here"
        ))
        .hint(format!(
            "`podling get pods -A{}` lists what does",
            directories.flags()
        ))
    })
}

/// How a pod has ended for good, if it has: it has no supervisor any more then.
pub(super) fn end_of(directories: &Directories, plan: &Plan) -> Option<PodStatus> {
    final_status::read(&directories.data.join("pods").join(&plan.pod.uid))
}

/// The layers that pods of any node on this machine use, by their true paths.
pub(super) fn layers_in_use(directories: &Directories) -> HashSet<PathBuf> {
    let stacks = layers::stacks_in_use(&directories.pods());
    stacks.into_iter().flatten().collect()
}

/// An image that a container of a pod runs.
pub(super) struct ImageInUse {
    /// `namespace/name`.
    pub(super) pod: String,
    /// What the pod calls the image.
    pub(super) name: Option<Reference>,
    /// The digest of its manifest.
    pub(super) digest: String,
}

/// Which images of this store the pods of the node run, from their plans. Whoever may not read these may not write to
/// the node's store either: it is another one.
pub(super) fn images_in_use(directories: &Directories, store: &Path) -> Vec<ImageInUse> {
    let mut images = Vec::new();
    for (_, plan) in plans(directories).unwrap_or_default() {
        for container in &plan.containers {
            let ContainerSource::Ready { spec, rootfs, .. } = &container.source else {
                continue;
            };
            let is_of_store = |layer: &PathBuf| true_path(layer.clone()).starts_with(store);
            if !rootfs.layers.iter().all(is_of_store) {
                continue;
            }
            let annotations = spec.annotations().iter().flatten();
            let annotations = annotations.map(|(key, value)| (key.clone(), value.clone()));
            let Some(facts) = ImageFacts::from_annotations(&annotations.collect()) else {
                continue;
            };
            images.push(ImageInUse {
                pod: format!("{}/{}", plan.pod.namespace, plan.pod.name),
                name: Reference::parse(&facts.image).ok(),
                digest: match facts.image_id.split_once('@') {
                    Some((_, digest)) => digest.to_owned(),
                    None => facts.image_id,
                },
            });
        }
    }
    images
}

/// The plans in the run directory, each with its pod's directory.
pub(super) fn plans(directories: &Directories) -> Result<Vec<(PathBuf, Plan)>, CommandError> {
    let dir = directories.pods();
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => {
            let denied = e.kind() == std::io::ErrorKind::PermissionDenied;
            let error = CommandError::new(format!("cannot read {}", dir.display())).because(e);
            return Err(if denied { error.hint("be root") } else { error });
        }
    };
    let mut plans = Vec::new();
    for entry in entries {
        let path = entry
            .map_err(|e| CommandError::new(format!("cannot read {}", dir.display())).because(e))?
            .path();
        // A pod that is just being made has no plan yet, one that is being removed has none any more.
        if let Some(plan) = read_plan(&path) {
            plans.push((path, plan));
        }
    }
    Ok(plans)
}

/// What the supervisor says; None if none answers.
fn snapshot(dir: &Path) -> Option<Snapshot> {
    let client = Client::connect(dir).ok()?;
    match client.request(&Request::Subscribe).ok()? {
        (Reply::Snapshot(snapshot), _) => Some(*snapshot),
        (Reply::Ok, _) => match client.recv().ok()? {
            (Reply::Snapshot(snapshot), _) => Some(*snapshot),
            _ => None,
        },
        _ => None,
    }
}

fn to_pod(plan: &Plan, snapshot: Option<&Snapshot>) -> Pod {
    let is_init =
        |c: &&ContainerPlan| matches!(c.kind, ContainerKind::Init | ContainerKind::Sidecar);
    let container = |c: &ContainerPlan| Container {
        name: c.name.clone(),
        restart_policy: (c.kind == ContainerKind::Sidecar).then(|| "Always".to_owned()),
        ..Container::default()
    };
    let inits: Vec<Container> = plan
        .containers
        .iter()
        .filter(is_init)
        .map(container)
        .collect();
    let mains = plan
        .containers
        .iter()
        .filter(|c| c.kind == ContainerKind::Main)
        .map(container);
    Pod {
        metadata: ObjectMeta {
            name: Some(plan.pod.name.clone()),
            namespace: Some(plan.pod.namespace.clone()),
            uid: Some(plan.pod.uid.clone()),
            creation_timestamp: snapshot.map(|s| Time(s.started_at)),
            deletion_timestamp: snapshot.and_then(|s| match &s.stage {
                Stage::Terminating { deadline } => Some(Time(*deadline)),
                Stage::Initializing | Stage::Active | Stage::Ended { .. } => None,
            }),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            containers: mains.collect(),
            init_containers: (!inits.is_empty()).then_some(inits),
            restart_policy: Some(
                match plan.restart_policy {
                    RestartPolicy::Always => "Always",
                    RestartPolicy::OnFailure => "OnFailure",
                    RestartPolicy::Never => "Never",
                }
                .to_owned(),
            ),
            ..PodSpec::default()
        }),
        status: Some(status(plan, snapshot)),
    }
}

fn status(plan: &Plan, snapshot: Option<&Snapshot>) -> PodStatus {
    let Some(snapshot) = snapshot else {
        return PodStatus {
            phase: Some("Unknown".to_owned()),
            message: Some(
                "its supervisor does not answer; the agent will start it again".to_owned(),
            ),
            ..PodStatus::default()
        };
    };
    let of = |wanted: &[ContainerKind]| -> Vec<ContainerStatus> {
        let chosen = plan.containers.iter().filter(|c| wanted.contains(&c.kind));
        chosen
            .filter_map(|c| snapshot.containers.iter().find(|s| s.name == c.name))
            .map(container_status)
            .collect()
    };
    let mains = of(&[ContainerKind::Main]);
    let ready = !mains.is_empty() && mains.iter().all(|c| c.ready);
    let addresses = match &plan.network {
        NetworkPlan::Namespace { addresses, .. } => addresses.as_slice(),
        NetworkPlan::Host { .. } | NetworkPlan::Isolated => &[],
    };
    let ips: Vec<PodIP> = addresses
        .iter()
        .map(|ip| PodIP { ip: ip.to_string() })
        .collect();
    let inits = of(&[ContainerKind::Init, ContainerKind::Sidecar]);
    PodStatus {
        phase: Some(phase(snapshot, &mains).to_owned()),
        conditions: Some(vec![PodCondition {
            type_: "Ready".to_owned(),
            status: if ready { "True" } else { "False" }.to_owned(),
            ..PodCondition::default()
        }]),
        pod_ip: ips.first().map(|ip| ip.ip.clone()),
        pod_ips: (!ips.is_empty()).then_some(ips),
        start_time: Some(Time(snapshot.started_at)),
        init_container_statuses: (!inits.is_empty()).then_some(inits),
        container_statuses: Some(mains),
        ..PodStatus::default()
    }
}

fn phase(snapshot: &Snapshot, mains: &[ContainerStatus]) -> &'static str {
    match &snapshot.stage {
        Stage::Initializing => "Pending",
        Stage::Active | Stage::Terminating { .. } => "Running",
        Stage::Ended { reason, .. } => {
            let failed = mains.iter().any(|c| {
                let end = c.state.as_ref().and_then(|s| s.terminated.as_ref());
                end.is_none_or(|t| t.exit_code != 0)
            });
            if failed || reason.is_some() {
                "Failed"
            } else {
                "Succeeded"
            }
        }
    }
}

fn container_status(snapshot: &ContainerSnapshot) -> ContainerStatus {
    let mut state = ContainerState::default();
    let mut id = None;
    match &snapshot.state {
        State::Waiting {
            reason, message, ..
        } => {
            state.waiting = Some(ContainerStateWaiting {
                reason: Some(reason.clone()),
                message: Some(message.clone()).filter(|m| !m.is_empty()),
            });
        }
        State::Running {
            id: running,
            started_at,
            ..
        } => {
            id = Some(running.clone());
            state.running = Some(ContainerStateRunning {
                started_at: Some(Time(*started_at)),
            });
        }
        State::Terminated(end) => {
            id = Some(end.id.clone());
            state.terminated = Some(termination(end));
        }
    }
    ContainerStatus {
        name: snapshot.name.clone(),
        container_id: id.map(|id| format!("podling://{id}")),
        ready: snapshot.ready,
        started: Some(snapshot.started),
        restart_count: i32::try_from(snapshot.restart_count).unwrap_or(i32::MAX),
        last_state: snapshot
            .last_termination
            .as_ref()
            .map(|end| ContainerState {
                terminated: Some(termination(end)),
                ..ContainerState::default()
            }),
        state: Some(state),
        ..ContainerStatus::default()
    }
}

fn termination(end: &Termination) -> ContainerStateTerminated {
    let time = |at: Timestamp| Some(Time(at));
    ContainerStateTerminated {
        container_id: Some(format!("podling://{}", end.id)),
        exit_code: end.exit_code,
        signal: end.signal,
        reason: Some(end.reason.clone()),
        message: end.message.clone(),
        started_at: time(end.started_at),
        finished_at: time(end.finished_at),
    }
}
