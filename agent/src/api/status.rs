//! The node at a glance.

use std::path::PathBuf;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

use super::pods::pod_of;
use crate::pod::images;
use crate::store::{Kind, Problem, Store};

/// What does not change while a node runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInfo {
    /// The node's name.
    pub node: String,
    /// Podling's version.
    pub version: String,
    /// When the agent started.
    pub started_at: Timestamp,
    /// Its process.
    pub pid: u32,
    /// Where manifests come from.
    pub sources: Vec<String>,
    /// Sockets and state.
    pub run_dir: PathBuf,
    /// Images, volumes and the object store.
    pub data_dir: PathBuf,
    /// Container logs.
    pub log_dir: PathBuf,
    /// Images that nobody is to remove unasked.
    #[serde(default)]
    pub pinned_images: Vec<String>,
}

/// The node at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// What does not change.
    #[serde(flatten)]
    pub info: NodeInfo,
    /// Pods by how they are.
    pub pods: PodCounts,
    /// What writers want and do not get.
    pub problems: Vec<ProblemView>,
}

/// Pods by how they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodCounts {
    /// All.
    pub total: usize,
    /// Running and ready.
    pub ready: usize,
    /// Succeeded.
    pub completed: usize,
    /// Failed.
    pub failed: usize,
    /// All others: starting, waiting, not ready, ending.
    pub unready: usize,
}

/// A problem, for people and scripts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProblemView {
    /// `path:line`, or the key in etcd.
    pub at: String,
    /// `Pod default/web`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub object: Option<String>,
    /// `spec.containers[0].image`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub field: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub remedy: Option<String>,
    /// When it was first seen.
    pub since: Timestamp,
}

impl From<&Problem> for ProblemView {
    fn from(problem: &Problem) -> Self {
        Self {
            at: problem.origin.to_string(),
            object: problem.object.as_ref().map(ToString::to_string),
            field: problem.field.clone(),
            message: problem.message.clone(),
            remedy: problem.remedy.clone(),
            since: problem.since,
        }
    }
}

/// A pull that finds no space is the node's trouble and not only the pod's, however full its disk may look: the image is
/// larger than what is left.
fn no_space(pod: &Pod, at: String) -> Option<ProblemView> {
    let status = pod.status.as_ref()?;
    let inits = status.init_container_statuses.iter().flatten();
    let mut waits = inits
        .chain(status.container_statuses.iter().flatten())
        .filter_map(|container| container.state.as_ref()?.waiting.as_ref());
    let found = waits.find(|waiting| waiting.reason.as_deref() == Some(images::NO_SPACE))?;
    let ready = status.conditions.iter().flatten();
    let since = ready
        .filter(|condition| condition.type_ == "Ready")
        .find_map(|condition| Some(condition.last_transition_time.as_ref()?.0));
    let (namespace, name) = (&pod.metadata.namespace, &pod.metadata.name);
    Some(ProblemView {
        at,
        object: Some(format!(
            "Pod {}/{}",
            namespace.as_deref().unwrap_or("default"),
            name.as_deref().unwrap_or_default()
        )),
        field: None,
        message: found.message.clone().unwrap_or_default(),
        remedy: None,
        since: since.unwrap_or_else(Timestamp::now),
    })
}

impl NodeStatus {
    /// The node as the store has it now.
    #[must_use]
    pub fn of(info: &NodeInfo, store: &Store) -> Self {
        let mut pods = PodCounts::default();
        let mut problems: Vec<_> = store.problems().iter().map(ProblemView::from).collect();
        for object in store.list(Kind::Pod) {
            let Some(pod) = pod_of(store, &object) else {
                continue;
            };
            problems.extend(no_space(&pod, object.origin.to_string()));
            let status = pod.status.unwrap_or_default();
            let ready = || {
                let conditions = status.conditions.as_deref().unwrap_or_default();
                conditions
                    .iter()
                    .any(|c| c.type_ == "Ready" && c.status == "True")
            };
            pods.total += 1;
            let counted = match status.phase.as_deref() {
                Some("Succeeded") => &mut pods.completed,
                Some("Failed") => &mut pods.failed,
                Some("Running") if ready() => &mut pods.ready,
                _ => &mut pods.unready,
            };
            *counted += 1;
        }
        Self {
            info: info.clone(),
            pods,
            problems,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_image_that_finds_no_space_is_a_problem_of_the_node() {
        let pod = |reason: &str| -> Pod {
            let waiting = json!({ "reason": reason, "message": "there is not enough space" });
            let pod = json!({
                "metadata": { "namespace": "default", "name": "web" },
                "status": {
                    "conditions": [{
                        "type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:00Z",
                    }],
                    "containerStatuses": [{
                        "name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                        "state": { "waiting": waiting },
                    }],
                },
            });
            serde_json::from_value(pod).expect("a pod")
        };
        assert_eq!(no_space(&pod("ErrImagePull"), String::new()), None);
        let problem = no_space(&pod(images::NO_SPACE), "/m/web.yaml:1".to_owned());
        let problem = problem.expect("a problem");
        assert_eq!(problem.object.as_deref(), Some("Pod default/web"));
        assert_eq!(problem.since.to_string(), "2026-01-01T00:00:00Z");
        assert!(problem.message.contains("not enough space"), "{problem:?}");
    }
}
