//! Why a pod is as it is: what it waits for, what failed, what happens next and what to do. A pure function of the
//! pod, so that it gives the same answer in the agent, in `podling run` and with the agent dead.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition};
use serde::{Deserialize, Serialize};

use crate::node::Wait;
use crate::pod::images;

/// Why a pod is as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// One sentence.
    pub verdict: String,
    /// True when nothing keeps the pod from doing what it should.
    pub fine: bool,
    /// What stands in the way, the most telling first.
    pub reasons: Vec<Reason>,
}

/// One thing that stands in the way of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// `pod`, `container web`, `manifest`, …
    pub about: String,
    /// What is.
    pub what: String,
    /// What happens next by itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next: Option<String>,
    /// What the user can do.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub remedy: Option<String>,
}

impl Reason {
    /// Something about the manifest that the pod comes from.
    #[must_use]
    pub fn manifest(what: String, remedy: Option<String>) -> Self {
        Self {
            about: "manifest".to_owned(),
            what,
            next: None,
            remedy,
        }
    }
}

impl Explanation {
    /// Of a pod that is not there because its manifest cannot be used; the reasons are added by the caller.
    #[must_use]
    pub fn refused(name: &str) -> Self {
        Self {
            verdict: format!("{name} does not run: its manifest is refused"),
            fine: false,
            reasons: Vec::new(),
        }
    }

    /// Adds what the pod's worker waits for, where the status does not say it.
    pub fn add_waits(&mut self, waits: Vec<Wait>) {
        for wait in waits {
            let next = wait.until.map(|at| format!("it is tried again at {at}"));
            let known = self
                .reasons
                .iter_mut()
                .find(|r| r.what.contains(wait.message.as_str()));
            if let Some(known) = known {
                known.next = next.or(known.next.take());
                continue;
            }
            self.reasons.push(Reason {
                about: match &wait.container {
                    Some(name) => format!("container {name}"),
                    None => "pod".to_owned(),
                },
                what: join(Some(&wait.reason), Some(&wait.message)),
                next,
                remedy: None,
            });
        }
    }
}

/// Explains a pod by its spec and status.
#[must_use]
pub fn explain(pod: &Pod) -> Explanation {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let Some(status) = &pod.status else {
        return Explanation {
            verdict: format!("{name} has been accepted; the node has not reported on it yet"),
            fine: false,
            reasons: Vec::new(),
        };
    };
    let phase = status.phase.as_deref().unwrap_or("Pending");
    let mut reasons = Vec::new();
    if let Some(end) = &pod.metadata.deletion_timestamp {
        reasons.push(Reason {
            about: "pod".to_owned(),
            what: "its end was asked for".to_owned(),
            next: Some(format!("what still runs at {} is killed", end.0)),
            remedy: None,
        });
    }
    if status.reason.is_some() || status.message.is_some() {
        reasons.push(Reason {
            about: "pod".to_owned(),
            what: join(status.reason.as_deref(), status.message.as_deref()),
            next: None,
            remedy: None,
        });
    }
    let inits = status.init_container_statuses.iter().flatten();
    let mains = status.container_statuses.iter().flatten();
    let ended = matches!(phase, "Succeeded" | "Failed");
    for container in inits.clone() {
        reasons.extend(init_reason(pod, container));
    }
    for container in mains.clone() {
        reasons.extend(container_reason(pod, container, ended));
    }
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let told: Vec<Reason> = conditions
        .iter()
        .filter_map(|c| condition_reason(c, phase, &reasons))
        .collect();
    reasons.extend(told);
    let ready = conditions
        .iter()
        .any(|c| c.type_ == "Ready" && c.status == "True");
    let (verdict, fine) = match phase {
        _ if pod.metadata.deletion_timestamp.is_some() => (format!("{name} is being ended"), false),
        "Succeeded" => (
            format!("{name} has completed: every container exited with 0"),
            true,
        ),
        "Failed" => (
            format!("{name} has failed and will not be started again"),
            false,
        ),
        "Running" if ready && reasons.is_empty() => (format!("{name} is running and ready"), true),
        "Running" if ready => (format!("{name} is running and ready, but:"), true),
        "Running" => (format!("{name} is running, but not ready"), false),
        _ => (format!("{name} is waiting to start"), false),
    };
    Explanation {
        verdict,
        fine,
        reasons,
    }
}

fn init_reason(pod: &Pod, container: &ContainerStatus) -> Option<Reason> {
    let state = container.state.as_ref()?;
    let spec = pod
        .spec
        .as_ref()
        .and_then(|s| s.init_containers.as_deref())
        .unwrap_or_default();
    let sidecar = spec
        .iter()
        .any(|c| c.name == container.name && c.restart_policy.as_deref() == Some("Always"));
    if sidecar {
        return container_reason(pod, container, false).map(|reason| Reason {
            about: format!("sidecar {}", container.name),
            ..reason
        });
    }
    if state.terminated.as_ref().is_some_and(|t| t.exit_code == 0) {
        return None;
    }
    let mut reason = container_reason(pod, container, false).or_else(|| {
        state.running.as_ref().map(|running| Reason {
            about: String::new(),
            what: match &running.started_at {
                Some(at) => format!(
                    "runs since {}; the containers after it wait for its end",
                    at.0
                ),
                None => "runs; the containers after it wait for its end".to_owned(),
            },
            next: None,
            remedy: None,
        })
    })?;
    reason.about = format!("init container {}", container.name);
    Some(reason)
}

fn container_reason(pod: &Pod, container: &ContainerStatus, pod_ended: bool) -> Option<Reason> {
    let state = container.state.as_ref()?;
    let about = format!("container {}", container.name);
    if let Some(waiting) = &state.waiting {
        let word = waiting.reason.as_deref().unwrap_or("Waiting");
        if word == "PodInitializing" && waiting.message.is_none() {
            // The init container that it waits for is named by itself.
            return None;
        }
        let mut what = join(Some(word), waiting.message.as_deref());
        if let Some(last) = last_end(container) {
            what.push_str("\nlast run: ");
            what.push_str(&last);
        }
        return Some(Reason {
            about,
            what,
            next: next_of(word),
            remedy: remedy_of(pod, container, word),
        });
    }
    if let Some(end) = &state.terminated {
        if end.exit_code == 0 && (pod_ended || end.reason.as_deref() == Some("Completed")) {
            return None;
        }
        return Some(Reason {
            about,
            what: end_text(end),
            next: None,
            remedy: remedy_of(pod, container, end.reason.as_deref().unwrap_or_default()),
        });
    }
    if container.ready {
        return None;
    }
    let what = if container.started == Some(false) {
        "runs; its startup probe has not succeeded yet"
    } else {
        "runs; its readiness probe does not succeed"
    };
    Some(Reason {
        about,
        what: match last_end(container) {
            Some(last) => format!("{what}\nlast run: {last}"),
            None => what.to_owned(),
        },
        next: None,
        remedy: None,
    })
}

fn next_of(word: &str) -> Option<String> {
    let text = match word {
        "CrashLoopBackOff" => {
            "it is started again after a back-off: at once, then 10 s, doubling to 5 minutes"
        }
        "ImagePullBackOff" | "ErrImagePull" | images::NO_SPACE => {
            "the pull is tried again after a back-off of up to 5 minutes"
        }
        "SignatureValidationFailed" => {
            "it is judged again after a back-off of up to 5 minutes: another policy or a new signature counts then"
        }
        "CreateContainerConfigError" => "it starts as soon as what is missing is there",
        _ => return None,
    };
    Some(text.to_owned())
}

fn remedy_of(pod: &Pod, container: &ContainerStatus, word: &str) -> Option<String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let namespace = match pod.metadata.namespace.as_deref() {
        None | Some("default") => String::new(),
        Some(namespace) => format!(" -n {namespace}"),
    };
    let text = match word {
        // The message says what may be done.
        images::NO_SPACE => return None,
        "CrashLoopBackOff" | "Error" => {
            format!(
                "podling logs{namespace} {name} -c {} shows what it said",
                container.name
            )
        }
        "OOMKilled" => "raise its memory limit, or make it need less".to_owned(),
        "ErrImagePull" | "ImagePullBackOff" => {
            "check the image's name; `podling images load FILE` adds an image without a registry".to_owned()
        }
        "ErrImageNeverPull" => {
            "imagePullPolicy is Never: add the image with `podling images load` or `podling images pull`".to_owned()
        }
        "SignatureValidationFailed" => {
            "have the image signed with a key of the node's signature policy, or change the policy (`images.signaturePolicy`)"
                .to_owned()
        }
        "InvalidImageName" => "correct `image:` in the manifest".to_owned(),
        "StartError" | "RunContainerError" => "check `command:` in the manifest against what the image has".to_owned(),
        _ => return None,
    };
    Some(text)
}

fn last_end(container: &ContainerStatus) -> Option<String> {
    let end = container.last_state.as_ref()?.terminated.as_ref()?;
    Some(end_text(end))
}

fn end_text(end: &k8s_openapi::api::core::v1::ContainerStateTerminated) -> String {
    let mut text = match (end.reason.as_deref(), end.signal) {
        (Some("OOMKilled"), _) => "killed by the kernel at its memory limit (OOMKilled)".to_owned(),
        (_, Some(signal)) if signal != 0 => format!("ended by signal {signal}"),
        (Some(reason), _) if !matches!(reason, "Error" | "Completed") => {
            format!("{reason}, exit code {}", end.exit_code)
        }
        _ => format!("exited with code {}", end.exit_code),
    };
    if let Some(at) = &end.finished_at {
        text.push_str(&format!(" at {}", at.0));
    }
    if let Some(message) = end
        .message
        .as_deref()
        .map(str::trim)
        .filter(|m| !m.is_empty())
    {
        text.push_str(&format!(": {message}"));
    }
    text
}

/// A condition that is false and says something that no container has said.
fn condition_reason(condition: &PodCondition, phase: &str, said: &[Reason]) -> Option<Reason> {
    if condition.status == "True" || matches!(phase, "Succeeded" | "Failed") {
        return None;
    }
    // Ready and ContainersReady only sum up the containers; the others are facts of their own.
    let sums_up = matches!(
        condition.type_.as_str(),
        "Ready" | "ContainersReady" | "Initialized"
    );
    let message = condition
        .message
        .as_deref()
        .map(str::trim)
        .filter(|m| !m.is_empty());
    if message.is_none() && !said.is_empty() || sums_up && !said.is_empty() {
        return None;
    }
    if said
        .iter()
        .any(|r| message.is_some_and(|m| r.what.contains(m)))
    {
        return None;
    }
    Some(Reason {
        about: format!("condition {}", condition.type_),
        what: join(condition.reason.as_deref(), message),
        next: None,
        remedy: None,
    })
}

fn join(word: Option<&str>, message: Option<&str>) -> String {
    match (
        word.filter(|w| !w.is_empty()),
        message.filter(|m| !m.is_empty()),
    ) {
        (Some(word), Some(message)) => format!("{word}: {message}"),
        (Some(one), None) | (None, Some(one)) => one.to_owned(),
        (None, None) => "no reason given".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn explained(status: Value) -> Explanation {
        let pod = json!({
            "metadata": { "name": "p", "namespace": "default" },
            "spec": { "containers": [{ "name": "a" }], "initContainers": [{ "name": "i" }] },
            "status": status,
        });
        explain(&serde_json::from_value(pod).expect("a pod"))
    }

    fn container(name: &str, state: Value) -> Value {
        json!({ "name": name, "image": "", "imageID": "", "ready": false, "restartCount": 1, "state": state })
    }

    #[test]
    fn a_full_disk_is_not_blamed_on_the_name_of_the_image() {
        let pull = |reason: &str| {
            let state = json!({ "waiting": { "reason": reason, "message": "there is none" } });
            let status =
                json!({ "phase": "Pending", "containerStatuses": [container("a", state)] });
            explained(status).reasons.remove(0).remedy
        };
        assert_eq!(pull(images::NO_SPACE), None);
        let remedy = pull("ErrImagePull").expect("a remedy");
        assert!(remedy.contains("check the image's name"), "{remedy}");
    }

    #[test]
    fn a_crash_loop_tells_the_exit_the_back_off_and_the_command_to_type() {
        let mut status = container(
            "a",
            json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off 20s" } }),
        );
        status["lastState"] =
            json!({ "terminated": { "exitCode": 3, "reason": "Error", "message": "boom" } });
        let why = explained(json!({ "phase": "Running", "containerStatuses": [status] }));
        assert!(!why.fine);
        let reason = &why.reasons[0];
        assert!(reason.what.contains("back-off 20s"), "{}", reason.what);
        assert!(
            reason.what.contains("exited with code 3: boom"),
            "{}",
            reason.what
        );
        assert_eq!(
            reason.remedy.as_deref(),
            Some("podling logs p -c a shows what it said")
        );
    }

    #[test]
    fn a_waiting_main_container_points_at_the_init_container() {
        let why = explained(json!({ "phase": "Pending",
            "initContainerStatuses": [container("i", json!({ "running": {} }))],
            "containerStatuses": [container("a", json!({ "waiting": { "reason": "PodInitializing" } }))],
            "conditions": [{ "type": "Initialized", "status": "False", "reason": "ContainersNotInitialized" }] }));
        let about: Vec<&str> = why.reasons.iter().map(|r| r.about.as_str()).collect();
        assert_eq!(about, ["init container i"]);
    }

    #[test]
    fn a_condition_that_says_more_is_not_lost() {
        let why = explained(json!({ "phase": "Pending",
            "containerStatuses": [container("a", json!({ "waiting": { "reason": "ContainerCreating" } }))],
            "conditions": [{ "type": "PodReadyToStartContainers", "status": "False",
                "message": "host port 80 is taken by default/b" }] }));
        assert!(
            why.reasons.iter().any(|r| r.what.contains("default/b")),
            "{why:?}"
        );
    }

    #[test]
    fn a_ready_pod_needs_no_reasons() {
        let mut status = container("a", json!({ "running": {} }));
        status["ready"] = json!(true);
        let why = explained(json!({ "phase": "Running", "containerStatuses": [status],
            "conditions": [{ "type": "Ready", "status": "True" }] }));
        assert!(why.fine && why.reasons.is_empty(), "{why:?}");
    }
}
