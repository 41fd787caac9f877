//! What a pod supervisor reports: facts about containers. Kubernetes' phase and conditions are derived from them
//! by the agent, not stored.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// All that is known of a pod at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Grows with each change, over restarts of the supervisor too.
    pub sequence: u64,
    /// The generation of the plan that this reflects.
    pub plan_generation: u64,
    /// When the supervisor first started this pod.
    pub started_at: Timestamp,
    /// The pod's life.
    pub stage: Stage,
    /// One for each container of the plan, in its order.
    pub containers: Vec<ContainerSnapshot>,
}

/// Where in its life a pod is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Stage {
    /// Init containers are not all done.
    Initializing,
    /// All init containers are done; the others run, wait or have ended.
    Active,
    /// Asked to end.
    Terminating {
        /// When what is left is killed.
        deadline: Timestamp,
    },
    /// Nothing runs and nothing will: a completed pod, a failed one, or the end of a termination.
    Ended {
        /// `DeadlineExceeded` or the like, when the pod itself failed.
        reason: Option<String>,
        /// For people.
        message: Option<String>,
        /// True when it ended because termination was asked for.
        terminated: bool,
    },
}

/// One container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerSnapshot {
    /// As in the plan.
    pub name: String,
    /// What it does now.
    pub state: ContainerState,
    /// How it ended before the current state.
    pub last_termination: Option<Termination>,
    /// Starts beyond the first.
    pub restart_count: u32,
    /// Its startup probe has succeeded, or it has none and runs.
    pub started: bool,
    /// Its readiness probe succeeds, or it has none and is started. An init container that exited with 0 is ready.
    pub ready: bool,
    /// The probes that fail now, by name: each one's last try, gone once it succeeds.
    // Supervisors of an earlier version do not send it, and outlive an upgrade of the agent.
    #[serde(default)]
    pub probe_failures: Vec<ProbeFailure>,
    /// The annotations of the OCI spec that its current run, or its last, was started with: what the writer of the plan
    /// wants to be told of what runs. Those of the plan may be others by now. Empty before the first run.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// The cgroup path of its current run, below the root of each hierarchy.
    pub cgroup: Option<PathBuf>,
}

/// What a container does now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ContainerState {
    /// Has not started, or will start again.
    Waiting {
        /// `PodInitializing`, `ContainerCreating`, `CrashLoopBackOff`, `ImagePullBackOff`, …
        reason: String,
        /// For people.
        message: String,
        /// When it is tried again, if that is known.
        until: Option<Timestamp>,
    },
    /// Runs.
    Running {
        /// Unique over all runs: 64 hexadecimal digits.
        id: String,
        /// In the supervisor's pid namespace.
        pid: i32,
        /// When its process was started.
        started_at: Timestamp,
    },
    /// Has ended and will not start again.
    Terminated(Termination),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Termination {
    /// As in [`ContainerState::Running`].
    pub id: String,
    /// 128 + the signal's number for a signal; 128 when it could not be started.
    pub exit_code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `StartError`, `ContainerStatusUnknown`, …
    pub reason: String,
    /// Its last words, at most 4096 bytes.
    pub message: Option<String>,
    /// When its process was started.
    pub started_at: Timestamp,
    /// When its end was seen.
    pub finished_at: Timestamp,
}

/// A probe that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeFailure {
    /// `startup`, `liveness` or `readiness`.
    pub probe: String,
    /// What went wrong.
    pub message: String,
    /// Failures in a row.
    pub failures: u32,
    /// When.
    pub at: Timestamp,
}
