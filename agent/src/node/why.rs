//! Why a pod is not (yet) what its manifest says: the waits of its worker and its containers, for `podling why`.

use jiff::Timestamp;
use podling_runtime::pod::snapshot::{ContainerState, Snapshot, Stage};
use serde::{Deserialize, Serialize};

/// One thing that a pod waits for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// The container that waits; none: the pod as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// A CamelCase word, as in a container's state: `ImagePullBackOff`, `CrashLoopBackOff`, `Unhealthy`, …
    pub reason: String,
    /// For people.
    pub message: String,
    /// Since when, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// When it is tried again or ends, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

impl Wait {
    /// A wait of the whole pod.
    pub fn of_pod(reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            container: None,
            reason: reason.into(),
            message: message.into(),
            since: None,
            until: None,
        }
    }

    /// A wait of a container.
    pub fn of_container(name: &str, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            container: Some(name.to_owned()),
            ..Self::of_pod(reason, message)
        }
    }

    /// With the time of the next try, or of the end.
    #[must_use]
    pub fn until(mut self, until: Option<Timestamp>) -> Self {
        self.until = until;
        self
    }

    /// With the time of its begin.
    #[must_use]
    pub fn since(mut self, since: Option<Timestamp>) -> Self {
        self.since = since;
        self
    }
}

/// What the containers of a pod wait for, as its supervisor reports.
pub fn of_snapshot(snapshot: &Snapshot) -> Vec<Wait> {
    let mut waits = Vec::new();
    if let Stage::Terminating { deadline } = &snapshot.stage {
        let message = "what still runs at the deadline is killed";
        waits.push(Wait::of_pod("GracePeriod", message).until(Some(*deadline)));
    }
    for container in &snapshot.containers {
        if let ContainerState::Waiting {
            reason,
            message,
            until,
        } = &container.state
        {
            waits.push(Wait::of_container(&container.name, reason, message).until(*until));
        }
        for failure in &container.probe_failures {
            let message = format!(
                "{} probe failed {} times: {}",
                failure.probe, failure.failures, failure.message
            );
            waits.push(
                Wait::of_container(&container.name, "Unhealthy", message).since(Some(failure.at)),
            );
        }
    }
    waits
}
