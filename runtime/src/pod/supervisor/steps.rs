//! Carries out what the lifecycle decides.

use std::os::fd::AsFd;

use super::Supervisor;
use super::attempt::{Attempt, Place, Purpose};
use super::journal::say;
use super::start::Start;
use crate::chain;
use crate::pod::clock::Now;
use crate::pod::lifecycle::{Action, HookKind, Step};
use crate::pod::plan::Handler;
use crate::sys::pidfd;

impl Supervisor {
    /// Carries out what belongs together. Containers that start at once are made side by side.
    pub(super) fn carry_out_all(&mut self, steps: Vec<Step>, now: Now) {
        let mut starts = Vec::new();
        for step in steps {
            starts.extend(self.carry_out(step, now));
        }
        self.finish_starts(starts);
    }

    fn carry_out(&mut self, step: Step, now: Now) -> Option<Start> {
        let name = step.container;
        match step.action {
            Action::Start { id, restart_count } => {
                say(format_args!("{name}: starts: {}", step.reason));
                return self.begin_start(name, id, restart_count);
            }
            Action::Probe {
                id,
                kind,
                handler,
                timeout_ms,
            } => {
                let purpose = Purpose::Probe(kind);
                self.begin_attempt(&name, id, purpose, &handler, Some(timeout_ms), now);
            }
            Action::RunHook {
                id,
                hook,
                handler,
                timeout_ms,
            } => {
                say(format_args!(
                    "{name}: runs its {hook:?} hook: {}",
                    step.reason
                ));
                let purpose = Purpose::Hook(hook);
                self.begin_attempt(&name, id, purpose, &handler, timeout_ms, now);
            }
            Action::CancelHook { id, hook } => self.cancel_hook(&name, &id, hook),
            Action::Signal { signal } => {
                say(format_args!("{name}: signal {signal}: {}", step.reason));
                self.signal(&name, signal);
            }
            Action::Kill => {
                say(format_args!("{name}: kill: {}", step.reason));
                self.kill(&name);
            }
        }
        None
    }

    fn begin_attempt(
        &mut self,
        name: &str,
        id: String,
        purpose: Purpose,
        handler: &Handler,
        timeout_ms: Option<u64>,
        now: Now,
    ) {
        let number = self.reactor.fresh();
        let Some(run) = self.runs.get(name) else {
            let outcome = Err("the container is gone".to_owned());
            self.finish_attempt(name.to_owned(), id, purpose, outcome);
            return;
        };
        let place = Place {
            dir: &self.dir,
            container: name,
            run,
            sandbox: &self.sandbox,
        };
        let reactor = &mut self.reactor;
        match Attempt::begin(
            number, purpose, handler, timeout_ms, now.ms, &place, reactor,
        ) {
            Ok(attempt) => {
                self.attempts.insert(number, attempt);
            }
            Err(message) => self.finish_attempt(name.to_owned(), id, purpose, Err(message)),
        }
    }

    pub(super) fn advance_attempt(&mut self, number: u64) {
        let now = Now::read();
        let Some(attempt) = self.attempts.get_mut(&number) else {
            return;
        };
        let reactor = &mut self.reactor;
        let Some(outcome) = attempt.advance(number, now.ms, &self.sandbox, reactor) else {
            return;
        };
        if let Some(mut attempt) = self.attempts.remove(&number) {
            let (name, id) = (attempt.container.clone(), attempt.id.clone());
            let purpose = attempt.purpose;
            if let Some(warning) = attempt.warning.take() {
                self.warn_once(&name, purpose, &warning);
            }
            attempt.end(&mut self.reactor);
            self.finish_attempt(name, id, purpose, outcome);
        }
    }

    /// A word about a probe or hook that succeeded; said once in a run of the container.
    fn warn_once(&mut self, name: &str, purpose: Purpose, warning: &str) {
        if let Some(run) = self.runs.get_mut(name)
            && !run.warned.contains(&purpose)
        {
            run.warned.push(purpose);
            say(format_args!("{name}: {purpose:?}: {warning}"));
        }
    }

    fn finish_attempt(
        &mut self,
        name: String,
        id: String,
        purpose: Purpose,
        outcome: Result<(), String>,
    ) {
        if let (Purpose::Hook(hook), Err(message)) = (purpose, &outcome) {
            say(format_args!("{name}: its {hook:?} hook failed: {message}"));
        }
        self.inputs.push(Attempt::input(name, id, purpose, outcome));
    }

    /// Looks at those whose time has come.
    pub(super) fn end_late_attempts(&mut self) {
        let now = Now::read();
        let due: Vec<u64> = self
            .attempts
            .iter()
            .filter(|(_, a)| a.wake_ms().is_some_and(|at| at <= now.ms))
            .map(|(&number, _)| number)
            .collect();
        for number in due {
            self.advance_attempt(number);
        }
    }

    /// The container has ended: its attempts have no answer any more.
    pub(super) fn end_attempts_of(&mut self, name: &str) {
        self.end_attempts(|attempt| attempt.container == name);
    }

    fn cancel_hook(&mut self, name: &str, id: &str, hook: HookKind) {
        say(format_args!("{name}: its {hook:?} hook took too long"));
        self.end_attempts(|attempt| {
            attempt.container == name && attempt.id == id && attempt.purpose == Purpose::Hook(hook)
        });
    }

    fn end_attempts(&mut self, which: impl Fn(&Attempt) -> bool) {
        let numbers: Vec<u64> = self
            .attempts
            .iter()
            .filter(|(_, attempt)| which(attempt))
            .map(|(&number, _)| number)
            .collect();
        for number in numbers {
            if let Some(attempt) = self.attempts.remove(&number) {
                attempt.end(&mut self.reactor);
            }
        }
    }

    fn signal(&self, name: &str, signal: i32) {
        if let Some(run) = self.runs.get(name)
            && let Err(e) = pidfd::send_signal(run.handle.as_fd(), signal)
            && e.raw_os_error() != Some(libc::ESRCH)
        {
            say(format_args!("{name}: cannot send signal {signal}: {e}"));
        }
    }

    fn kill(&self, name: &str) {
        self.signal(name, libc::SIGKILL);
        if let Some(run) = self.runs.get(name)
            && let Err(e) = run.cgroup.kill_all()
        {
            say(format_args!("{name}: {}", chain(&e)));
        }
    }
}
