//! What happened becomes facts. Deciding is [`advance`](super::advance)'s.

use super::container::{Container, Life};
use super::run::{Hook, Stop, StopCause};
use super::{
    Exit, ExitStatus, HookKind, Input, Lifecycle, PodRules, ProbeKind, Shutdown, ShutdownCause,
};
use crate::pod::clock::Now;
use crate::pod::snapshot::{ProbeFailure, Termination};

/// What the kubelet reports for a container whose end nobody saw: 128 + SIGKILL.
const UNKNOWN_EXIT_CODE: i32 = 137;

/// What Kubernetes' runtimes report for a container that never ran.
const START_ERROR_EXIT_CODE: i32 = 128;

impl Lifecycle {
    /// Takes note of something that happened. An input about a container or a run that is gone is ignored.
    pub fn handle(&mut self, input: Input, now: Now) {
        match input {
            Input::Created { container, process } => {
                if let Some(Life::Starting { run }) = self.life_mut(&container) {
                    run.process = Some(process);
                    run.started_at = now.wall;
                    run.started_ms = now.ms;
                }
            }
            Input::Started { container } => self.started(&container, now),
            Input::StartFailed { container, message } => {
                self.start_failed(&container, message, now)
            }
            Input::StartLost { container } => {
                if let Some(c) = self.container_mut(&container)
                    && matches!(c.life, Life::Starting { .. })
                {
                    c.starts = c.starts.saturating_sub(1);
                    c.life = Life::FRESH;
                }
            }
            Input::Exited { container, exit } => self.exited(&container, exit, now),
            Input::Probed {
                container,
                id,
                kind,
                outcome,
            } => self.probed(&container, &id, kind, outcome, now),
            Input::HookOver {
                container,
                id,
                hook,
                outcome,
            } => self.hook_over(&container, &id, hook, outcome, now),
            Input::Terminate { grace_ms, reason } => {
                self.shut_down(ShutdownCause::Asked, grace_ms, reason, now);
            }
        }
    }

    /// Begins the pod's end, or hastens it.
    pub(super) fn shut_down(
        &mut self,
        cause: ShutdownCause,
        grace_ms: u64,
        message: String,
        now: Now,
    ) {
        let deadline_ms = now.ms.saturating_add(grace_ms);
        let deadline = now.wall_at(deadline_ms);
        match &mut self.shutdown {
            None => {
                self.shutdown = Some(Shutdown {
                    cause,
                    message,
                    deadline_ms,
                    deadline,
                });
            }
            Some(shutdown) => {
                // Being asked does not undo a failure of the pod itself.
                if shutdown.cause == ShutdownCause::Completed {
                    shutdown.cause = cause;
                    shutdown.message = message;
                }
                if deadline_ms < shutdown.deadline_ms {
                    shutdown.deadline_ms = deadline_ms;
                    shutdown.deadline = deadline;
                }
            }
        }
    }

    fn life_mut(&mut self, name: &str) -> Option<&mut Life> {
        self.container_mut(name).map(|c| &mut c.life)
    }

    fn started(&mut self, name: &str, now: Now) {
        let Some((rules, container)) = self.with_rules(name) else {
            return;
        };
        let life = std::mem::replace(&mut container.life, Life::FRESH);
        container.life = match life {
            Life::Starting { run } => Life::Running { run },
            other => other,
        };
        // A supervisor that was started again has taken a new plan since the start began.
        container.stop_if_changed(rules.grace_ms, now);
    }

    fn start_failed(&mut self, name: &str, message: String, now: Now) {
        let ending = self.shutdown.is_some();
        let Some((rules, container)) = self.with_rules(name) else {
            return;
        };
        let Life::Starting { run } = &container.life else {
            return;
        };
        let termination = Termination {
            id: run.id.clone(),
            exit_code: START_ERROR_EXIT_CODE,
            signal: None,
            reason: "StartError".to_owned(),
            message: Some(message),
            started_at: run.started_at,
            finished_at: now.wall,
        };
        container.finish(rules, termination, 0, ending, now);
        self.forget_removed();
    }

    fn exited(&mut self, name: &str, exit: Exit, now: Now) {
        let ending = self.shutdown.is_some();
        let Some((rules, container)) = self.with_rules(name) else {
            return;
        };
        let Some(run) = container.life.run() else {
            return;
        };
        let termination = termination(run.id.clone(), run.started_at, exit, now);
        let ran_ms = now.ms.saturating_sub(run.started_ms);
        container.finish(rules, termination, ran_ms, ending, now);
        self.forget_removed();
    }

    fn with_rules(&mut self, name: &str) -> Option<(&PodRules, &mut Container)> {
        let container = self.containers.iter_mut().find(|c| c.name == name)?;
        Some((&self.rules, container))
    }

    fn forget_removed(&mut self) {
        self.containers.retain(|c| !c.removed || c.is_live());
    }

    fn probed(
        &mut self,
        name: &str,
        id: &str,
        kind: ProbeKind,
        outcome: Result<(), String>,
        now: Now,
    ) {
        let Some((pod, container)) = self.with_rules(name) else {
            return;
        };
        let (Some(run), Some(probe)) = (container.life.running_mut(), container.rules.probe(kind))
        else {
            return;
        };
        if run.id != id {
            return;
        }
        let verdict = run.tries_mut(kind).end(probe, outcome.is_ok());
        container.probe_failures.retain(|f| f.probe != kind.name());
        if let Err(message) = outcome {
            container.probe_failures.push(ProbeFailure {
                probe: kind.name().to_owned(),
                message,
                failures: run.tries(kind).failures(),
                at: now.wall,
            });
            container
                .probe_failures
                .sort_by(|a, b| a.probe.cmp(&b.probe));
        }
        match (kind, verdict) {
            (ProbeKind::Startup, Some(true)) => run.started = true,
            (ProbeKind::Startup | ProbeKind::Liveness, Some(false)) if run.stop.is_none() => {
                let grace_ms = probe
                    .termination_grace_secs
                    .map_or(pod.grace_ms, |secs| secs.saturating_mul(1_000));
                let message = format!("its {} probe failed", kind.name());
                run.stop = Some(Stop::new(
                    StopCause::Probe(kind),
                    message,
                    &container.rules,
                    now.ms,
                    now.ms.saturating_add(grace_ms),
                ));
            }
            _ => {}
        }
    }

    fn hook_over(
        &mut self,
        name: &str,
        id: &str,
        hook: HookKind,
        outcome: Result<(), String>,
        now: Now,
    ) {
        let Some((pod, container)) = self.with_rules(name) else {
            return;
        };
        let Some(run) = container.life.running_mut().filter(|run| run.id == id) else {
            return;
        };
        match hook {
            HookKind::PostStart => {
                run.post_start = Hook::Over;
                if let Err(message) = outcome
                    && run.stop.is_none()
                {
                    run.stop = Some(Stop::new(
                        StopCause::PostStart,
                        format!("its postStart hook failed: {message}"),
                        &container.rules,
                        now.ms,
                        now.ms.saturating_add(pod.grace_ms),
                    ));
                }
            }
            HookKind::PreStop => {
                if let Some(stop) = &mut run.stop {
                    stop.hook_over();
                }
            }
        }
    }
}

impl Container {
    /// Its run is over: it starts again, or has ended for good.
    fn finish(
        &mut self,
        pod: &PodRules,
        termination: Termination,
        ran_ms: u64,
        ending: bool,
        now: Now,
    ) {
        self.probe_failures = Vec::new();
        let cause = self
            .life
            .run()
            .and_then(|run| run.stop.as_ref())
            .map(|s| s.cause);
        let planned = matches!(cause, Some(StopCause::Changed | StopCause::Removed));
        if ending || !(planned || self.restarts_after(termination.exit_code)) {
            self.life = Life::Ended { termination };
        } else if planned {
            self.last_termination = Some(termination);
            self.life = Life::FRESH;
            self.forgive();
        } else {
            self.back_off(&pod.back_off, termination, ran_ms, now);
        }
    }
}

fn termination(id: String, started_at: jiff::Timestamp, exit: Exit, now: Now) -> Termination {
    let (exit_code, signal) = match exit.status {
        ExitStatus::Code(code) => (code, None),
        ExitStatus::Signal(signal) => (128 + signal, Some(signal)),
        ExitStatus::Unknown => (UNKNOWN_EXIT_CODE, None),
    };
    let reason = match exit.status {
        ExitStatus::Unknown => "ContainerStatusUnknown",
        _ if exit.oom_killed && exit_code != 0 => "OOMKilled",
        ExitStatus::Code(0) => "Completed",
        ExitStatus::Code(_) | ExitStatus::Signal(_) => "Error",
    };
    Termination {
        id,
        exit_code,
        signal,
        reason: reason.to_owned(),
        message: exit.message,
        started_at,
        finished_at: now.wall,
    }
}
