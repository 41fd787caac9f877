//! Facts become the snapshot that others see.

use super::container::{Container, Life};
use super::{Lifecycle, ShutdownCause};
use crate::pod::clock::Now;
use crate::pod::plan::ContainerKind;
use crate::pod::snapshot::{ContainerSnapshot, ContainerState, Snapshot, Stage};

impl Lifecycle {
    /// The pod as it is now; `sequence` is the caller's.
    pub fn snapshot(&self, sequence: u64, now: Now) -> Snapshot {
        Snapshot {
            sequence,
            plan_generation: self.generation,
            started_at: self.started_at,
            stage: self.stage(),
            containers: self
                .containers
                .iter()
                .filter(|c| !c.removed)
                .map(|c| self.container_snapshot(c, now))
                .collect(),
        }
    }

    fn stage(&self) -> Stage {
        match &self.shutdown {
            Some(shutdown) if self.ended => Stage::Ended {
                reason: (shutdown.cause == ShutdownCause::Deadline)
                    .then(|| "DeadlineExceeded".to_owned()),
                message: Some(shutdown.message.clone()),
                terminated: shutdown.cause == ShutdownCause::Asked,
            },
            Some(shutdown)
                if matches!(
                    shutdown.cause,
                    ShutdownCause::Asked | ShutdownCause::Deadline
                ) =>
            {
                Stage::Terminating {
                    deadline: shutdown.deadline,
                }
            }
            _ if self.initialized => Stage::Active,
            _ => Stage::Initializing,
        }
    }

    fn container_snapshot(&self, container: &Container, now: Now) -> ContainerSnapshot {
        let running = container.life.running();
        ContainerSnapshot {
            name: container.name.clone(),
            state: match &container.life {
                Life::Waiting { .. } => self.waiting(container, now),
                Life::Starting { .. } => self.waiting_for_start(),
                Life::Running { run } => ContainerState::Running {
                    id: run.id.clone(),
                    pid: run.process.map_or(0, |process| process.pid),
                    started_at: run.started_at,
                },
                Life::Ended { termination } => ContainerState::Terminated(termination.clone()),
            },
            last_termination: container.last_termination.clone(),
            restart_count: container.starts.saturating_sub(1),
            started: running.is_some_and(|run| run.started),
            ready: match container.rules.kind {
                ContainerKind::Init => container.ended().is_some_and(|t| t.exit_code == 0),
                ContainerKind::Sidecar | ContainerKind::Main | ContainerKind::Ephemeral => {
                    running.is_some_and(|run| run.ready(&container.rules))
                }
            },
            probe_failures: container.probe_failures.clone(),
            annotations: container.last_annotations.clone(),
            cgroup: container
                .is_live()
                .then(|| self.rules.cgroup.join(&container.name)),
        }
    }

    fn waiting(&self, container: &Container, now: Now) -> ContainerState {
        let Life::Waiting { back_off } = container.life else {
            return self.waiting_for_start();
        };
        if let Some((reason, message)) = &container.rules.waits {
            return ContainerState::Waiting {
                reason: reason.clone(),
                message: message.clone(),
                until: None,
            };
        }
        match back_off {
            Some(delay) if delay.until_ms > now.ms => ContainerState::Waiting {
                reason: "CrashLoopBackOff".to_owned(),
                message: format!(
                    "back-off {} restarting failed container={} pod={}",
                    go_duration(delay.delay_ms),
                    container.name,
                    self.rules.label
                ),
                until: Some(delay.until),
            },
            _ => self.waiting_for_start(),
        }
    }

    /// The kubelet's words for a container that is next, or not yet its turn.
    fn waiting_for_start(&self) -> ContainerState {
        let has_init = self
            .containers
            .iter()
            .any(|c| matches!(c.rules.kind, ContainerKind::Init | ContainerKind::Sidecar));
        let reason = if has_init && !self.initialized {
            "PodInitializing"
        } else {
            "ContainerCreating"
        };
        ContainerState::Waiting {
            reason: reason.to_owned(),
            message: String::new(),
            until: None,
        }
    }
}

/// As Go writes a duration, and so the kubelet: `10s`, `1m20s`, `5m0s`.
fn go_duration(ms: u64) -> String {
    match (ms / 60_000, ms % 60_000) {
        (0, rest) if rest % 1_000 == 0 => format!("{}s", rest / 1_000),
        (0, rest) => format!("{rest}ms"),
        (minutes, rest) => format!("{minutes}m{}s", rest / 1_000),
    }
}

#[cfg(test)]
mod tests {
    use super::go_duration;

    #[test]
    fn durations_read_as_the_kubelet_writes_them() {
        assert_eq!(go_duration(10_000), "10s");
        assert_eq!(go_duration(80_000), "1m20s");
        assert_eq!(go_duration(300_000), "5m0s");
        assert_eq!(go_duration(150), "150ms");
    }
}
