//! What happens to a pod and when: all policy, no I/O.
//!
//! ```text
//! Input (a process ended, a probe answered, a new plan, Terminate) ─► facts
//! facts + now ── advance ─► Steps (start, signal, kill, probe, hook), each with its reason
//!
//! container:  Waiting ─► Starting ─► Running ─► Waiting (back-off) or Ended
//!                 ▲         │ failed    │ Stop: preStop ─► signal ─► kill
//!                 └─────────┴───────────┘
//! pod:        Initializing ─► Active ─► Terminating ─► Ended
//! ```
//!
//! The supervisor owns the one [`Lifecycle`], feeds it, saves it, and then carries the steps out; after a crash it
//! loads it again and reports what it finds as inputs. Deliberately absent: clocks (each call brings [`Now`]),
//! processes, files.

use std::collections::HashMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

mod advance;
mod back_off;
mod container;
mod inputs;
mod probe;
mod replan;
mod report;
mod rules;
mod run;
#[cfg(test)]
mod tests;

pub use probe::ProbeKind;
pub use rules::{PlanError, check};
pub use run::Process;

use super::clock::Now;
use super::plan::{Handler, Plan};
use container::Container;
use rules::PodRules;

/// A pod's facts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lifecycle {
    generation: u64,
    started_at: Timestamp,
    started_ms: u64,
    rules: PodRules,
    /// All init containers have succeeded and all sidecars have started; never undone.
    initialized: bool,
    shutdown: Option<Shutdown>,
    ended: bool,
    /// In the plan's order; then those that were removed and have not ended yet.
    containers: Vec<Container>,
}

/// The pod's way to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Shutdown {
    cause: ShutdownCause,
    message: String,
    deadline_ms: u64,
    deadline: Timestamp,
}

/// Why a pod ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ShutdownCause {
    /// Someone asked for it.
    Asked,
    /// All main containers have ended for good.
    Completed,
    /// An init container has failed for good.
    InitFailed,
    /// It was active for too long.
    Deadline,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A container's process was made, and is about to execute its program.
    Created {
        /// Which container.
        container: String,
        /// The process.
        process: Process,
    },
    /// The program runs.
    Started {
        /// Which container.
        container: String,
    },
    /// The container could not be started.
    StartFailed {
        /// Which container.
        container: String,
        /// The error with its causes.
        message: String,
    },
    /// A start was under way when the supervisor ended, and came to nothing.
    StartLost {
        /// Which container.
        container: String,
    },
    /// A container's process has ended.
    Exited {
        /// Which container.
        container: String,
        /// How.
        exit: Exit,
    },
    /// A probe has an answer.
    Probed {
        /// Which container.
        container: String,
        /// The run that was probed.
        id: String,
        /// Which probe.
        kind: ProbeKind,
        /// What was wrong, if anything was.
        outcome: Result<(), String>,
    },
    /// A lifecycle hook is over.
    HookOver {
        /// Which container.
        container: String,
        /// The run it belongs to.
        id: String,
        /// Which hook.
        hook: HookKind,
        /// What was wrong, if anything was.
        outcome: Result<(), String>,
    },
    /// Someone asks for the pod's end.
    Terminate {
        /// From now, in milliseconds; 0 kills at once.
        grace_ms: u64,
        /// For the log.
        reason: String,
    },
}

/// How a container's process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// What is known of it.
    pub status: ExitStatus,
    /// The OOM killer was at work in the container.
    pub oom_killed: bool,
    /// Its last words.
    pub message: Option<String>,
}

/// What is known of a process's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It exited by itself.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
    /// It ended while no supervisor looked, and the kernel could not tell.
    Unknown,
}

/// A lifecycle hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum HookKind {
    /// After the start.
    PostStart,
    /// Before the stop signal.
    PreStop,
}

/// Something to do, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Which container.
    pub container: String,
    /// What to do.
    pub action: Action,
    /// For the log.
    pub reason: String,
}

/// Something to do with a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start it; answered with [`Input::Created`] and [`Input::Started`], or [`Input::StartFailed`].
    Start {
        /// Unique over all runs: 64 hexadecimal digits.
        id: String,
        /// Starts beyond the first.
        restart_count: u32,
    },
    /// Try a probe; answered with [`Input::Probed`].
    Probe {
        /// The run.
        id: String,
        /// Which.
        kind: ProbeKind,
        /// What to try.
        handler: Handler,
        /// Give it up after this long.
        timeout_ms: u64,
    },
    /// Run a hook; answered with [`Input::HookOver`].
    RunHook {
        /// The run.
        id: String,
        /// Which.
        hook: HookKind,
        /// What to do.
        handler: Handler,
        /// Give it up after this long.
        timeout_ms: Option<u64>,
    },
    /// Give up a hook, without an answer.
    CancelHook {
        /// The run.
        id: String,
        /// Which.
        hook: HookKind,
    },
    /// Send its first process a signal.
    Signal {
        /// By number.
        signal: i32,
    },
    /// Send all its processes SIGKILL.
    Kill,
}

impl Action {
    /// True for actions that must be on record before they are done.
    pub fn changes_containers(&self) -> bool {
        match self {
            Self::Start { .. } | Self::RunHook { .. } | Self::Signal { .. } | Self::Kill => true,
            Self::Probe { .. } | Self::CancelHook { .. } => false,
        }
    }
}

/// What a supervisor that was started again needs to know of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// Its name.
    pub name: String,
    /// The run's id.
    pub id: String,
    /// The run's number.
    pub restart_count: u32,
    /// Its process; none when the start was lost before there was one.
    pub process: Option<Process>,
    /// The start was not confirmed.
    pub starting: bool,
}

impl Lifecycle {
    /// A new pod of a checked plan: nothing is started.
    pub fn new(plan: &Plan, now: Now) -> Self {
        Self {
            generation: plan.generation,
            started_at: now.wall,
            started_ms: now.ms,
            rules: PodRules::of(plan),
            initialized: false,
            shutdown: None,
            ended: false,
            containers: plan
                .containers
                .iter()
                .map(|c| Container::new(plan, c))
                .collect(),
        }
    }

    /// Nothing runs and nothing will.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The grace period of the plan, in milliseconds.
    pub fn grace_ms(&self) -> u64 {
        self.rules.grace_ms
    }

    /// The containers that run or are being started.
    pub fn remembered(&self) -> Vec<Remembered> {
        self.containers
            .iter()
            .filter_map(|c| {
                let (run, starting) = c.life.run_and_starting()?;
                Some(Remembered {
                    name: c.name.clone(),
                    id: run.id.clone(),
                    restart_count: run.restart_count,
                    process: run.process,
                    starting,
                })
            })
            .collect()
    }

    /// Hooks that were under way are due again: their processes are not known to a supervisor that was started
    /// anew, and hooks are promised to run at least once.
    pub fn resume(&mut self) {
        for container in &mut self.containers {
            if let Some(run) = container.life.run_mut() {
                run.repeat_hooks();
            }
        }
    }

    fn container_mut(&mut self, name: &str) -> Option<&mut Container> {
        self.containers.iter_mut().find(|c| c.name == name)
    }

    fn index(&self) -> HashMap<&str, usize> {
        self.containers
            .iter()
            .enumerate()
            .map(|(i, c)| (c.name.as_str(), i))
            .collect()
    }
}
