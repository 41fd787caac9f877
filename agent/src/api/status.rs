//! The node at a glance.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::pods::pod_of;
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

impl NodeStatus {
    /// The node as the store has it now.
    #[must_use]
    pub fn of(info: &NodeInfo, store: &Store) -> Self {
        let mut pods = PodCounts::default();
        for object in store.list(Kind::Pod) {
            let Some(pod) = pod_of(store, &object) else {
                continue;
            };
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
            problems: store.problems().iter().map(ProblemView::from).collect(),
        }
    }
}
