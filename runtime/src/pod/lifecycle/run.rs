//! One run of a container, and its way to the end.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::probe::{ProbeKind, Tries};
use super::rules::Rules;

/// After a preStop hook, and after waiting for other containers, a container has at least this long between the stop
/// signal and SIGKILL: `minimumGracePeriodInSeconds` of the kubelet.
pub(super) const FLOOR_MS: u64 = 2_000;

/// One run: from the decision to start until its end is seen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) id: String,
    pub(super) restart_count: u32,
    pub(super) spec_hash: String,
    /// The container's first process; none until it was made.
    pub(super) process: Option<Process>,
    pub(super) started_at: Timestamp,
    pub(super) started_ms: u64,
    pub(super) post_start: Hook,
    tries: [Tries; 3],
    /// Startup is over: once started, always started.
    pub(super) started: bool,
    pub(super) stop: Option<Stop>,
}

/// A process, told from later ones with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// In the supervisor's pid namespace.
    pub pid: i32,
    /// When it was made, in clock ticks since boot: field 22 of `/proc/<pid>/stat`.
    pub start_ticks: u64,
}

/// Where a lifecycle hook is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Hook {
    Due,
    Running,
    Over,
}

impl Hook {
    pub(super) fn due_if(has_one: bool) -> Self {
        if has_one { Self::Due } else { Self::Over }
    }
}

/// Why a container is being stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum StopCause {
    /// A probe said so.
    Probe(ProbeKind),
    /// Its postStart hook failed.
    PostStart,
    /// What it should run has changed.
    Changed,
    /// It is no longer in the plan.
    Removed,
    /// All of the pod ends.
    Pod,
}

/// A container's way to its end: preStop hook, stop signal, SIGKILL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stop {
    pub(super) cause: StopCause,
    pub(super) message: String,
    pub(super) deadline_ms: u64,
    /// Kill at once.
    pub(super) immediate: bool,
    pub(super) pre_stop: Hook,
    pub(super) signalled_ms: Option<u64>,
    /// [`FLOOR_MS`] counts from the signal.
    floor: bool,
    pub(super) killed: bool,
}

/// What a [`Stop`] needs done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StopStep {
    RunHook { timeout_ms: u64 },
    CancelHook,
    Signal,
    Kill,
}

impl Stop {
    pub(super) fn new(
        cause: StopCause,
        message: String,
        rules: &Rules,
        now_ms: u64,
        deadline_ms: u64,
    ) -> Self {
        Self {
            cause,
            message,
            deadline_ms,
            immediate: deadline_ms <= now_ms,
            pre_stop: Hook::due_if(rules.pre_stop.is_some()),
            signalled_ms: None,
            floor: false,
            killed: false,
        }
    }

    /// A shorter grace period counts, a longer one does not.
    pub(super) fn shorten(&mut self, now_ms: u64, deadline_ms: u64) {
        self.deadline_ms = self.deadline_ms.min(deadline_ms);
        self.immediate |= deadline_ms <= now_ms;
    }

    pub(super) fn hook_over(&mut self) {
        self.pre_stop = Hook::Over;
        self.floor = true;
    }

    /// What is due now. `turn` is false while other containers have to end first.
    pub(super) fn advance(&mut self, now_ms: u64, turn: bool) -> Vec<StopStep> {
        let mut steps = Vec::new();
        if self.immediate {
            if self.pre_stop == Hook::Running {
                steps.push(StopStep::CancelHook);
            }
            self.pre_stop = Hook::Over;
            if !self.killed {
                self.killed = true;
                steps.push(StopStep::Kill);
            }
            return steps;
        }
        match self.pre_stop {
            Hook::Due => {
                self.pre_stop = Hook::Running;
                steps.push(StopStep::RunHook {
                    timeout_ms: self.deadline_ms.saturating_sub(now_ms),
                });
            }
            Hook::Running if now_ms >= self.deadline_ms => {
                self.hook_over();
                steps.push(StopStep::CancelHook);
            }
            Hook::Running | Hook::Over => {}
        }
        if self.pre_stop == Hook::Over && self.signalled_ms.is_none() {
            if turn {
                self.signalled_ms = Some(now_ms);
            } else if now_ms >= self.deadline_ms {
                self.floor = true;
                self.signalled_ms = Some(now_ms);
            }
            if self.signalled_ms.is_some() {
                steps.push(StopStep::Signal);
            }
        }
        if !self.killed && self.kill_ms().is_some_and(|at| now_ms >= at) {
            self.killed = true;
            steps.push(StopStep::Kill);
        }
        steps
    }

    /// When SIGKILL is due; none before the stop signal was sent.
    fn kill_ms(&self) -> Option<u64> {
        let signalled_ms = self.signalled_ms?;
        Some(if self.floor {
            self.deadline_ms.max(signalled_ms.saturating_add(FLOOR_MS))
        } else {
            self.deadline_ms
        })
    }

    /// When [`Stop::advance`] has something to do although nothing happens.
    pub(super) fn wake_ms(&self) -> Option<u64> {
        if self.killed {
            return None;
        }
        Some(self.kill_ms().unwrap_or(self.deadline_ms))
    }
}

impl Run {
    pub(super) fn new(
        id: String,
        restart_count: u32,
        rules: &Rules,
        started_at: Timestamp,
        started_ms: u64,
    ) -> Self {
        Self {
            id,
            restart_count,
            spec_hash: rules.spec_hash.clone(),
            process: None,
            started_at,
            started_ms,
            post_start: Hook::due_if(rules.post_start.is_some()),
            tries: [Tries::default(); 3],
            started: false,
            stop: None,
        }
    }

    pub(super) fn tries(&self, kind: ProbeKind) -> &Tries {
        &self.tries[kind as usize]
    }

    pub(super) fn tries_mut(&mut self, kind: ProbeKind) -> &mut Tries {
        &mut self.tries[kind as usize]
    }

    /// Its readiness probe succeeds, or it has none and is started.
    pub(super) fn ready(&self, rules: &Rules) -> bool {
        self.started
            && (rules.probe(ProbeKind::Readiness).is_none()
                || self.tries(ProbeKind::Readiness).verdict() == Some(true))
    }

    /// Whether this probe is tried now.
    pub(super) fn probes(&self, kind: ProbeKind) -> bool {
        let stopping = self.stop.is_some();
        match kind {
            _ if self.post_start != Hook::Over => false,
            ProbeKind::Startup => !self.started && !stopping,
            ProbeKind::Liveness => self.started && !stopping,
            // The kubelet goes on until the end, so that a container that drains can say so.
            ProbeKind::Readiness => self.started && self.stop.as_ref().is_none_or(|s| !s.killed),
        }
    }
}
