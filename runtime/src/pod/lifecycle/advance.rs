//! Facts and the time become steps.

use std::cmp::Ordering;

use sha2::{Digest, Sha256};

use super::container::{Container, Life};
use super::run::{Hook, Run, Stop, StopCause, StopStep};
use super::{Action, HookKind, Lifecycle, ProbeKind, ShutdownCause, Step};
use crate::pod::clock::Now;
use crate::pod::plan::ContainerKind;

impl Lifecycle {
    /// Decides what is to be done now. A step is given once.
    pub fn advance(&mut self, now: Now) -> Vec<Step> {
        if self.ended {
            return Vec::new();
        }
        let mut steps = Vec::new();
        self.note_progress(now);
        self.stop_all_if_ending(now);
        self.advance_stops(now, &mut steps);
        self.advance_runs(now, &mut steps);
        self.start_what_may(now, &mut steps);
        if self.shutdown.is_some() && !self.containers.iter().any(Container::is_live) {
            self.settle();
        }
        steps
    }

    /// When [`Lifecycle::advance`] will have something to do although nothing happens, in milliseconds of the
    /// monotonic clock.
    pub fn wake_ms(&self) -> Option<u64> {
        if self.ended {
            return None;
        }
        let deadline = match (&self.shutdown, self.rules.active_deadline_ms) {
            (None, Some(active_ms)) => Some(self.started_ms.saturating_add(active_ms)),
            _ => None,
        };
        (0..self.containers.len())
            .filter_map(|i| self.container_wake_ms(i))
            .chain(deadline)
            .min()
    }

    fn container_wake_ms(&self, index: usize) -> Option<u64> {
        let container = &self.containers[index];
        match &container.life {
            Life::Waiting {
                back_off: Some(delay),
            } if self.may_start(index) => Some(delay.until_ms),
            Life::Running { run } => {
                let stop = run.stop.as_ref().and_then(Stop::wake_ms);
                let probes = ProbeKind::ALL
                    .into_iter()
                    .filter(|&kind| run.probes(kind))
                    .filter_map(|kind| {
                        run.tries(kind)
                            .due_ms(container.rules.probe(kind)?, run.started_ms)
                    });
                probes.chain(stop).min()
            }
            Life::Waiting { .. } | Life::Starting { .. } | Life::Ended { .. } => None,
        }
    }

    /// Startup without a probe, initialisation, completion, failure and the pod's deadline.
    fn note_progress(&mut self, now: Now) {
        for container in &mut self.containers {
            if let Life::Running { run } = &mut container.life
                && run.post_start == Hook::Over
                && run.stop.is_none()
                && container.rules.probe(ProbeKind::Startup).is_none()
            {
                run.started = true;
            }
        }
        if self.containers.iter().all(Container::lets_the_next_start) {
            self.initialized = true;
        }
        if self.shutdown.is_some() {
            return;
        }
        let grace_ms = self.rules.grace_ms;
        if let Some(active_ms) = self.rules.active_deadline_ms
            && now.ms >= self.started_ms.saturating_add(active_ms)
        {
            let message = "Pod was active on the node longer than the specified deadline";
            self.shut_down(ShutdownCause::Deadline, grace_ms, message.to_owned(), now);
        } else if let Some(failed) = self.containers.iter().find(|c| {
            c.rules.kind == ContainerKind::Init && c.ended().is_some_and(|t| t.exit_code != 0)
        }) {
            let message = format!("init container {} failed", failed.name);
            self.shut_down(ShutdownCause::InitFailed, grace_ms, message, now);
        } else if self.initialized
            && self
                .containers
                .iter()
                .filter(|c| c.rules.kind == ContainerKind::Main)
                .all(|c| c.ended().is_some())
        {
            let message = "all its containers have ended".to_owned();
            self.shut_down(ShutdownCause::Completed, grace_ms, message, now);
        }
    }

    fn stop_all_if_ending(&mut self, now: Now) {
        let Some(shutdown) = &self.shutdown else {
            return;
        };
        for container in &mut self.containers {
            let Some(run) = container.life.running_mut() else {
                continue;
            };
            match &mut run.stop {
                Some(stop) => {
                    if shutdown.deadline_ms < stop.deadline_ms {
                        stop.shorten(now.ms, shutdown.deadline_ms);
                    }
                }
                None => {
                    run.stop = Some(Stop::new(
                        StopCause::Pod,
                        format!("the pod ends: {}", shutdown.message),
                        &container.rules,
                        now.ms,
                        shutdown.deadline_ms,
                    ));
                }
            }
        }
    }

    fn advance_stops(&mut self, now: Now, steps: &mut Vec<Step>) {
        for index in 0..self.containers.len() {
            let turn = self.is_its_turn_to_stop(index);
            let container = &mut self.containers[index];
            let Some(run) = container.life.running_mut() else {
                continue;
            };
            let id = run.id.clone();
            let Some(stop) = &mut run.stop else { continue };
            for due in stop.advance(now.ms, turn) {
                let hook = HookKind::PreStop;
                let action = match due {
                    StopStep::RunHook { timeout_ms } => match container.rules.pre_stop.clone() {
                        Some(handler) => Action::RunHook {
                            id: id.clone(),
                            hook,
                            handler,
                            timeout_ms: Some(timeout_ms),
                        },
                        // A new plan took the hook away.
                        None => {
                            stop.pre_stop = Hook::Over;
                            continue;
                        }
                    },
                    StopStep::CancelHook => Action::CancelHook {
                        id: id.clone(),
                        hook,
                    },
                    StopStep::Signal => Action::Signal {
                        signal: container.rules.stop_signal,
                    },
                    StopStep::Kill => Action::Kill,
                };
                steps.push(Step {
                    container: container.name.clone(),
                    action,
                    reason: stop.message.clone(),
                });
            }
        }
    }

    /// When the pod ends, sidecars get their stop signal after all others have ended, the last one first.
    fn is_its_turn_to_stop(&self, index: usize) -> bool {
        if self.shutdown.is_none() || self.containers[index].rules.kind != ContainerKind::Sidecar {
            return true;
        }
        !self.containers.iter().enumerate().any(|(other, c)| {
            c.is_live()
                && match other.cmp(&index) {
                    Ordering::Greater => true,
                    Ordering::Less => c.rules.kind != ContainerKind::Sidecar,
                    Ordering::Equal => false,
                }
        })
    }

    fn advance_runs(&mut self, now: Now, steps: &mut Vec<Step>) {
        for container in &mut self.containers {
            let Life::Running { run } = &mut container.life else {
                continue;
            };
            if run.post_start == Hook::Due && run.stop.is_none() {
                match container.rules.post_start.clone() {
                    Some(handler) => {
                        run.post_start = Hook::Running;
                        steps.push(Step {
                            container: container.name.clone(),
                            action: Action::RunHook {
                                id: run.id.clone(),
                                hook: HookKind::PostStart,
                                handler,
                                timeout_ms: None,
                            },
                            reason: "it has started".to_owned(),
                        });
                    }
                    None => run.post_start = Hook::Over,
                }
            }
            for kind in ProbeKind::ALL {
                let Some(probe) = container.rules.probe(kind) else {
                    continue;
                };
                let due = run.tries(kind).due_ms(probe, run.started_ms);
                if !run.probes(kind) || due.is_none_or(|at| at > now.ms) {
                    continue;
                }
                run.tries_mut(kind).begin(probe, now.ms);
                steps.push(Step {
                    container: container.name.clone(),
                    action: Action::Probe {
                        id: run.id.clone(),
                        kind,
                        handler: probe.handler.clone(),
                        timeout_ms: probe.timeout_ms.max(1),
                    },
                    reason: "its period has passed".to_owned(),
                });
            }
        }
    }

    fn start_what_may(&mut self, now: Now, steps: &mut Vec<Step>) {
        for index in 0..self.containers.len() {
            if !self.may_start(index) {
                continue;
            }
            let uid = self.rules.uid.clone();
            let container = &mut self.containers[index];
            let Life::Waiting { back_off } = &container.life else {
                continue;
            };
            if back_off.is_some_and(|delay| delay.until_ms > now.ms) {
                continue;
            }
            let reason = match (back_off, container.starts) {
                (Some(_), _) => "its back-off has passed",
                (None, 0) => "it is its turn",
                (None, _) => "what it runs has changed",
            };
            let restart_count = container.starts;
            container.starts = container.starts.saturating_add(1);
            container.last_spec_hash = Some(container.rules.spec_hash.clone());
            container.last_annotations = container.rules.annotations.clone();
            let id = run_id(&uid, &container.name, restart_count, now);
            let run = Run::new(
                id.clone(),
                restart_count,
                &container.rules,
                now.wall,
                now.ms,
            );
            container.life = Life::Starting { run: Box::new(run) };
            steps.push(Step {
                container: container.name.clone(),
                action: Action::Start { id, restart_count },
                reason: reason.to_owned(),
            });
        }
    }

    /// Nothing but the container's own back-off keeps it from starting.
    fn may_start(&self, index: usize) -> bool {
        let container = &self.containers[index];
        if self.shutdown.is_some()
            || self.ended
            || container.removed
            || container.rules.waits.is_some()
            || !matches!(container.life, Life::Waiting { .. })
        {
            return false;
        }
        match container.rules.kind {
            ContainerKind::Ephemeral => true,
            ContainerKind::Main => self.initialized,
            ContainerKind::Init | ContainerKind::Sidecar => {
                self.initialized
                    || self.containers[..index]
                        .iter()
                        .all(Container::lets_the_next_start)
            }
        }
    }

    /// Nothing runs any more: a container that waited for a restart has ended as it last did.
    fn settle(&mut self) {
        self.ended = true;
        for container in &mut self.containers {
            if let Life::Waiting { .. } = container.life
                && let Some(termination) = container.last_termination.take()
            {
                container.life = Life::Ended { termination };
            }
        }
    }
}

/// Unique over all runs of all pods of this machine.
fn run_id(uid: &str, name: &str, restart_count: u32, now: Now) -> String {
    let mut hash = Sha256::new();
    for part in [
        uid.as_bytes(),
        name.as_bytes(),
        &restart_count.to_le_bytes(),
        &now.ms.to_le_bytes(),
        &now.wall.as_nanosecond().to_le_bytes(),
    ] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex::encode(hash.finalize())
}
