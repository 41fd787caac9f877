//! One container's facts over all its runs.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::back_off::Crashes;
use super::rules::Rules;
use super::run::{Hook, Run};
use crate::pod::clock::Now;
use crate::pod::plan::{BackOff, ContainerKind, ContainerPlan, Plan, RestartPolicy};
use crate::pod::snapshot::{ProbeFailure, Termination};

/// A container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Container {
    pub(super) name: String,
    pub(super) rules: Rules,
    pub(super) life: Life,
    /// How it ended before its current life.
    pub(super) last_termination: Option<Termination>,
    /// Starts so far.
    pub(super) starts: u32,
    /// What it ran last.
    pub(super) last_spec_hash: Option<String>,
    /// The annotations of the spec that it was started with last.
    // Records of an earlier version do not have them.
    #[serde(default)]
    pub(super) last_annotations: BTreeMap<String, String>,
    pub(super) crashes: Crashes,
    /// No longer in the plan: forgotten when it has ended.
    pub(super) removed: bool,
    /// The last try of each probe that failed, as long as none has succeeded since: one of each kind at most.
    pub(super) probe_failures: Vec<ProbeFailure>,
}

/// What a container does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(super) enum Life {
    /// For its turn, for its image, or for its back-off to pass.
    Waiting {
        back_off: Option<Delay>,
    },
    Starting {
        run: Box<Run>,
    },
    Running {
        run: Box<Run>,
    },
    /// Will not start again.
    Ended {
        termination: Termination,
    },
}

/// A back-off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Delay {
    pub(super) delay_ms: u64,
    pub(super) until_ms: u64,
    pub(super) until: Timestamp,
}

impl Life {
    pub(super) const FRESH: Self = Self::Waiting { back_off: None };

    pub(super) fn run(&self) -> Option<&Run> {
        self.run_and_starting().map(|(run, _)| run)
    }

    pub(super) fn run_and_starting(&self) -> Option<(&Run, bool)> {
        match self {
            Self::Starting { run } => Some((run, true)),
            Self::Running { run } => Some((run, false)),
            Self::Waiting { .. } | Self::Ended { .. } => None,
        }
    }

    pub(super) fn run_mut(&mut self) -> Option<&mut Run> {
        match self {
            Self::Starting { run } | Self::Running { run } => Some(run),
            Self::Waiting { .. } | Self::Ended { .. } => None,
        }
    }

    /// The run of a container whose program runs.
    pub(super) fn running(&self) -> Option<&Run> {
        match self {
            Self::Running { run } => Some(run),
            Self::Waiting { .. } | Self::Starting { .. } | Self::Ended { .. } => None,
        }
    }

    pub(super) fn running_mut(&mut self) -> Option<&mut Run> {
        match self {
            Self::Running { run } => Some(run),
            Self::Waiting { .. } | Self::Starting { .. } | Self::Ended { .. } => None,
        }
    }
}

impl Run {
    /// See [`super::Lifecycle::resume`].
    pub(super) fn repeat_hooks(&mut self) {
        if self.post_start == Hook::Running {
            self.post_start = Hook::Due;
        }
        if let Some(stop) = &mut self.stop
            && stop.pre_stop == Hook::Running
        {
            stop.pre_stop = Hook::Due;
        }
    }
}

impl Container {
    pub(super) fn new(plan: &Plan, container: &ContainerPlan) -> Self {
        Self {
            name: container.name.clone(),
            rules: Rules::of(plan, container),
            life: Life::FRESH,
            last_termination: None,
            starts: 0,
            last_spec_hash: None,
            last_annotations: BTreeMap::new(),
            crashes: Crashes::default(),
            removed: false,
            probe_failures: Vec::new(),
        }
    }

    pub(super) fn is_live(&self) -> bool {
        self.life.run().is_some()
    }

    /// How it ended for good.
    pub(super) fn ended(&self) -> Option<&Termination> {
        match &self.life {
            Life::Ended { termination } => Some(termination),
            Life::Waiting { .. } | Life::Starting { .. } | Life::Running { .. } => None,
        }
    }

    /// The next init container or sidecar may start.
    pub(super) fn lets_the_next_start(&self) -> bool {
        match self.rules.kind {
            ContainerKind::Init => self.ended().is_some_and(|t| t.exit_code == 0),
            ContainerKind::Sidecar => self.life.running().is_some_and(|run| run.started),
            ContainerKind::Main | ContainerKind::Ephemeral => true,
        }
    }

    /// Its policy starts it again after an end with this code.
    pub(super) fn restarts_after(&self, exit_code: i32) -> bool {
        match self.rules.restart_policy {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => exit_code != 0,
            RestartPolicy::Never => false,
        }
    }

    /// It has ended and will start again, after its back-off.
    pub(super) fn back_off(
        &mut self,
        rules: &BackOff,
        termination: Termination,
        ran_ms: u64,
        now: Now,
    ) {
        let delay_ms = self.crashes.count(rules, ran_ms);
        let until_ms = now.ms.saturating_add(delay_ms);
        self.last_termination = Some(termination);
        self.life = Life::Waiting {
            back_off: Some(Delay {
                delay_ms,
                until_ms,
                until: now.wall_at(until_ms),
            }),
        };
    }

    /// Its past is forgotten: what it runs has changed.
    pub(super) fn forgive(&mut self) {
        self.crashes = Crashes::default();
        if let Life::Waiting { back_off } = &mut self.life {
            *back_off = None;
        }
    }
}
