//! A pod in one line: how many containers are ready, one word for its state, restarts. The rules are kubectl's
//! (`printPod` in `pkg/printers/internalversion/printers.go`), so that the words are the ones people know.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};

use super::age;

/// A pod in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) ready: u32,
    pub(crate) containers: u32,
    pub(crate) state: String,
    pub(crate) restarts: String,
    pub(crate) age: String,
    pub(crate) ip: String,
    pub(crate) images: String,
}

impl Summary {
    pub(crate) fn of(pod: &Pod, now: Timestamp) -> Self {
        let status = pod.status.clone().unwrap_or_default();
        let spec = pod.spec.as_ref();
        let mains = status.container_statuses.as_deref().unwrap_or_default();
        let inits = status
            .init_container_statuses
            .as_deref()
            .unwrap_or_default();
        let sidecars: Vec<&ContainerStatus> =
            inits.iter().filter(|c| is_sidecar(pod, &c.name)).collect();
        let (main_count, sidecar_count) = spec.map_or((mains.len(), sidecars.len()), |spec| {
            let inits = spec.init_containers.as_deref().unwrap_or_default();
            let sidecars = inits
                .iter()
                .filter(|c| c.restart_policy.as_deref() == Some("Always"));
            (spec.containers.len(), sidecars.count())
        });
        let counted = || mains.iter().chain(sidecars.iter().copied());
        let images = spec.map_or_else(Vec::new, |spec| {
            spec.containers
                .iter()
                .filter_map(|c| c.image.clone())
                .collect()
        });
        let or_dash = |text: String| {
            if text.is_empty() {
                "<none>".to_owned()
            } else {
                text
            }
        };
        Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            ready: count(counted().filter(|c| c.ready).count()),
            containers: count(main_count + sidecar_count),
            state: state(pod, mains, inits),
            restarts: restarts(counted(), inits, now),
            age: age::since(pod.metadata.creation_timestamp.as_ref().map(|t| t.0), now),
            ip: or_dash(status.pod_ip.unwrap_or_default()),
            images: or_dash(images.join(",")),
        }
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// True for an init container that goes on running.
pub(crate) fn is_sidecar(pod: &Pod, name: &str) -> bool {
    let inits = pod.spec.as_ref().and_then(|s| s.init_containers.as_deref());
    inits
        .unwrap_or_default()
        .iter()
        .any(|c| c.name == name && c.restart_policy.as_deref() == Some("Always"))
}

fn state(pod: &Pod, mains: &[ContainerStatus], inits: &[ContainerStatus]) -> String {
    let status = pod.status.as_ref();
    if pod.metadata.deletion_timestamp.is_some() {
        return "Terminating".to_owned();
    }
    let phase = status
        .and_then(|s| s.phase.clone())
        .unwrap_or_else(|| "Pending".to_owned());
    if let Some(reason) = status.and_then(|s| s.reason.clone()) {
        return reason;
    }
    let mut text = phase;
    let init_count = pod
        .spec
        .as_ref()
        .and_then(|s| s.init_containers.as_ref())
        .map_or(inits.len(), Vec::len);
    for (at, init) in inits.iter().enumerate() {
        let state = init.state.clone().unwrap_or_default();
        if state.terminated.as_ref().is_some_and(|t| t.exit_code == 0) {
            continue;
        }
        if is_sidecar(pod, &init.name) && init.started == Some(true) {
            continue;
        }
        return match word(&state) {
            Some(word) if word != "PodInitializing" => format!("Init:{word}"),
            _ => format!("Init:{at}/{init_count}"),
        };
    }
    let mut running = false;
    for container in mains.iter().rev() {
        let state = container.state.clone().unwrap_or_default();
        if let Some(word) = word(&state) {
            text = word;
        } else if state.running.is_some() && container.ready {
            running = true;
        }
    }
    if text == "Completed" && running {
        let ready = status
            .and_then(|s| s.conditions.as_deref())
            .unwrap_or_default();
        let ready = ready
            .iter()
            .any(|c| c.type_ == "Ready" && c.status == "True");
        return if ready { "Running" } else { "NotReady" }.to_owned();
    }
    text
}

/// Why a container does not run; None if it does.
fn word(state: &ContainerState) -> Option<String> {
    if let Some(waiting) = &state.waiting {
        return waiting.reason.clone().filter(|r| !r.is_empty());
    }
    let ended = state.terminated.as_ref()?;
    if let Some(reason) = ended.reason.clone().filter(|r| !r.is_empty()) {
        return Some(reason);
    }
    match ended.signal {
        Some(signal) if signal != 0 => Some(format!("Signal:{signal}")),
        _ => Some(format!("ExitCode:{}", ended.exit_code)),
    }
}

/// `3 (2m ago)`: the sum, and the last time.
fn restarts<'a>(
    counted: impl Iterator<Item = &'a ContainerStatus>,
    inits: &[ContainerStatus],
    now: Timestamp,
) -> String {
    let total = |containers: &mut dyn Iterator<Item = &ContainerStatus>| {
        containers.fold((0, None), |(sum, last), c| {
            let end = c.last_state.as_ref().and_then(|s| s.terminated.as_ref());
            let end = end.and_then(|t| t.finished_at.as_ref()).map(|t| t.0);
            (sum + c.restart_count, end.max(last))
        })
    };
    let (mut sum, mut last) = total(&mut counted.into_iter());
    if sum == 0 {
        // While the pod initialises, what its init containers do is what counts.
        (sum, last) = total(&mut inits.iter());
    }
    match last {
        Some(last) if sum > 0 => format!("{sum} ({} ago)", age::since(Some(last), now)),
        _ => sum.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn now() -> Timestamp {
        "2026-01-01T01:00:00Z".parse().expect("a time")
    }

    fn summary(spec: Value, status: Value) -> Summary {
        let pod = json!({
            "metadata": { "name": "p", "namespace": "default", "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": spec, "status": status,
        });
        Summary::of(&serde_json::from_value(pod).expect("a pod"), now())
    }

    fn container(name: &str, ready: bool, restarts: u32, state: Value) -> Value {
        json!({ "name": name, "image": "i", "imageID": "", "ready": ready, "restartCount": restarts, "state": state })
    }

    fn running() -> Value {
        json!({ "running": { "startedAt": "2026-01-01T00:00:01Z" } })
    }

    #[test]
    fn a_running_pod() {
        let s = summary(
            json!({ "containers": [{ "name": "a", "image": "x" }, { "name": "b", "image": "y" }] }),
            json!({ "phase": "Running", "podIP": "10.0.0.2", "containerStatuses":
                [container("a", true, 0, running()), container("b", false, 1, running())] }),
        );
        assert_eq!((s.ready, s.containers, s.state.as_str()), (1, 2, "Running"));
        assert_eq!(
            (s.restarts.as_str(), s.age.as_str(), s.images.as_str()),
            ("1", "60m", "x,y")
        );
    }

    #[test]
    fn the_reason_of_a_waiting_container_is_shown() {
        let mut state = container(
            "a",
            false,
            3,
            json!({ "waiting": { "reason": "CrashLoopBackOff" } }),
        );
        state["lastState"] =
            json!({ "terminated": { "exitCode": 1, "finishedAt": "2026-01-01T00:58:00Z" } });
        let s = summary(
            json!({ "containers": [{ "name": "a" }] }),
            json!({ "phase": "Running", "containerStatuses": [state] }),
        );
        assert_eq!(
            (s.state.as_str(), s.restarts.as_str()),
            ("CrashLoopBackOff", "3 (2m ago)")
        );
    }

    #[test]
    fn init_containers_are_counted_off() {
        let spec = json!({ "containers": [{ "name": "m" }], "initContainers":
            [{ "name": "a" }, { "name": "s", "restartPolicy": "Always" }, { "name": "b" }] });
        let done = json!({ "terminated": { "exitCode": 0, "reason": "Completed" } });
        let mut sidecar = container("s", true, 0, running());
        sidecar["started"] = json!(true);
        let waiting = json!({ "waiting": { "reason": "PodInitializing" } });
        let s = summary(
            spec.clone(),
            json!({ "phase": "Pending", "initContainerStatuses":
                [container("a", true, 0, done.clone()), sidecar, container("b", false, 0, running())],
                "containerStatuses": [container("m", false, 0, waiting)] }),
        );
        assert_eq!(
            (s.state.as_str(), s.ready, s.containers),
            ("Init:2/3", 1, 2)
        );
        let s = summary(
            spec,
            json!({ "phase": "Pending", "initContainerStatuses":
                [container("a", false, 1, json!({ "terminated": { "exitCode": 9 } }))] }),
        );
        assert_eq!(
            (s.state.as_str(), s.restarts.as_str()),
            ("Init:ExitCode:9", "1")
        );
    }

    #[test]
    fn a_completed_pod_shows_how_it_ended() {
        let end = |code: u32, reason: &str| {
            summary(
                json!({ "containers": [{ "name": "a" }] }),
                json!({ "phase": "Succeeded", "containerStatuses":
                    [container("a", false, 0, json!({ "terminated": { "exitCode": code, "reason": reason } }))] }),
            )
        };
        assert_eq!(end(0, "Completed").state, "Completed");
        assert_eq!(end(1, "OOMKilled").state, "OOMKilled");
    }

    #[test]
    fn a_pod_without_a_status_is_pending() {
        let s = summary(json!({ "containers": [{ "name": "a" }] }), Value::Null);
        assert_eq!((s.state.as_str(), s.ready, s.containers), ("Pending", 0, 1));
    }
}
