//! The lifecycle against a fake pod: processes and a clock that obey.

mod changes;
mod ending;
mod health;
mod promises;
mod restarts;

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use oci_spec::runtime::{Process as OciProcess, Spec};

use super::*;
use crate::pod::plan::*;
use crate::pod::snapshot::{ContainerState, Stage};

fn container(name: &str, kind: ContainerKind) -> ContainerPlan {
    let mut spec = Spec::default();
    spec.set_process(Some(OciProcess::default()));
    ContainerPlan {
        name: name.to_owned(),
        kind,
        spec_hash: "1".to_owned(),
        source: ContainerSource::Ready {
            rootfs: RootfsPlan {
                layers: Vec::new(),
                scratch: PathBuf::from("/scratch"),
            },
            spec: Box::new(spec),
            seccomp: SeccompPlan::Unconfined,
        },
        restart_policy: None,
        startup_probe: None,
        liveness_probe: None,
        readiness_probe: None,
        post_start: None,
        pre_stop: None,
        stop_signal: 15,
        log: LogPlan {
            dir: PathBuf::from("/logs"),
            max_bytes: 1,
            max_files: 1,
        },
        termination_message: None,
        stdin: false,
        stdin_once: false,
        tty: false,
        host_devices: false,
    }
}

fn plan(restart_policy: RestartPolicy, containers: Vec<ContainerPlan>) -> Plan {
    Plan {
        version: PLAN_VERSION,
        generation: 1,
        pod: PodIdentity {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            uid: "u".to_owned(),
        },
        hostname: "web".to_owned(),
        cgroup: CgroupPlan {
            path: PathBuf::from("/podling/podu"),
            scope: false,
            resources: oci_spec::runtime::LinuxResources::default(),
        },
        network: NetworkPlan::Isolated,
        share_pid: false,
        host_pid: false,
        host_ipc: false,
        sysctls: BTreeMap::new(),
        restart_policy,
        termination_grace_secs: 30,
        back_off: BackOff::default(),
        active_deadline_secs: None,
        containers,
    }
}

fn probe(success_threshold: u32, failure_threshold: u32) -> Probe {
    Probe {
        handler: Handler::Tcp {
            host: None,
            port: 80,
        },
        initial_delay_ms: 0,
        period_ms: 1_000,
        timeout_ms: 1_000,
        success_threshold,
        failure_threshold,
        termination_grace_secs: None,
    }
}

fn sleep_hook() -> Option<Handler> {
    Some(Handler::Sleep { seconds: 1 })
}

/// A pod whose processes start at once and end only when told.
struct World {
    life: Lifecycle,
    now: Now,
    /// The running containers, with the run's id.
    live: BTreeMap<String, String>,
    /// What was asked for, in order, as `start a`, `signal a 15`, `kill a`, `probe a liveness`, `hook a PreStop`.
    done: Vec<String>,
    next_pid: i32,
}

impl World {
    fn new(plan: &Plan) -> Self {
        check(plan).expect("a good plan");
        let now = Now {
            ms: 1_000_000,
            wall: Timestamp::UNIX_EPOCH,
        };
        let mut world = Self {
            life: Lifecycle::new(plan, now),
            now,
            live: BTreeMap::new(),
            done: Vec::new(),
            next_pid: 100,
        };
        world.settle();
        world
    }

    fn settle(&mut self) {
        for _ in 0..1_000 {
            let steps = self.life.advance(self.now);
            if steps.is_empty() {
                return;
            }
            for step in steps {
                self.carry_out(step);
            }
        }
        panic!("the lifecycle does not come to rest: {:?}", self.done);
    }

    fn carry_out(&mut self, step: Step) {
        assert!(!step.reason.is_empty());
        let name = step.container;
        let line = match &step.action {
            Action::Start { .. } => format!("start {name}"),
            Action::Probe { kind, .. } => format!("probe {name} {}", kind.name()),
            Action::RunHook { hook, .. } => format!("hook {name} {hook:?}"),
            Action::CancelHook { hook, .. } => format!("cancel {name} {hook:?}"),
            Action::Signal { signal } => format!("signal {name} {signal}"),
            Action::Kill => format!("kill {name}"),
        };
        self.done.push(line);
        match step.action {
            Action::Start { id, .. } => {
                assert!(
                    self.live.insert(name.clone(), id).is_none(),
                    "{name} runs twice"
                );
                self.next_pid += 1;
                let process = Process {
                    pid: self.next_pid,
                    start_ticks: 1,
                };
                let container = name.clone();
                self.life
                    .handle(Input::Created { container, process }, self.now);
                self.life
                    .handle(Input::Started { container: name }, self.now);
            }
            Action::Kill => {
                assert!(self.live.contains_key(&name), "{name} is dead already");
                self.exit(&name, ExitStatus::Signal(9));
            }
            Action::Signal { .. } | Action::RunHook { .. } | Action::Probe { .. } => {
                assert!(self.live.contains_key(&name), "{name} is dead already");
            }
            Action::CancelHook { .. } => {}
        }
    }

    fn exit(&mut self, name: &str, status: ExitStatus) {
        self.live.remove(name).expect("a live container");
        let exit = Exit {
            status,
            oom_killed: false,
            message: None,
        };
        let container = name.to_owned();
        self.life
            .handle(Input::Exited { container, exit }, self.now);
    }

    fn ends(&mut self, name: &str, code: i32) {
        self.exit(name, ExitStatus::Code(code));
        self.settle();
    }

    fn probed(&mut self, name: &str, kind: ProbeKind, good: bool) {
        let id = self.live[name].clone();
        let outcome = if good { Ok(()) } else { Err("bad".to_owned()) };
        let container = name.to_owned();
        let input = Input::Probed {
            container,
            id,
            kind,
            outcome,
        };
        self.life.handle(input, self.now);
        self.settle();
    }

    fn hook_over(&mut self, name: &str, hook: HookKind, good: bool) {
        let id = self.live[name].clone();
        let outcome = if good { Ok(()) } else { Err("bad".to_owned()) };
        let container = name.to_owned();
        let input = Input::HookOver {
            container,
            id,
            hook,
            outcome,
        };
        self.life.handle(input, self.now);
        self.settle();
    }

    fn terminate(&mut self, grace_ms: u64) {
        let reason = "a test".to_owned();
        self.life
            .handle(Input::Terminate { grace_ms, reason }, self.now);
        self.settle();
    }

    fn replan(&mut self, plan: &Plan) {
        self.life
            .replace_plan(plan, self.now)
            .expect("a possible change");
        self.settle();
    }

    fn pass(&mut self, ms: u64) {
        let end_ms = self.now.ms + ms;
        while let Some(wake_ms) = self.life.wake_ms().filter(|&at| at <= end_ms) {
            let before = (self.now, self.done.len(), self.life.clone());
            self.set_clock(wake_ms.max(self.now.ms));
            self.settle();
            assert!(
                before != (self.now, self.done.len(), self.life.clone()),
                "woken for nothing"
            );
        }
        self.set_clock(end_ms);
        self.settle();
    }

    fn set_clock(&mut self, ms: u64) {
        let ahead = SignedDuration::from_millis(i64::try_from(ms - self.now.ms).expect("small"));
        self.now = Now {
            ms,
            wall: self.now.wall + ahead,
        };
    }

    fn take_done(&mut self) -> Vec<String> {
        std::mem::take(&mut self.done)
    }

    fn snapshot(&self) -> crate::pod::snapshot::Snapshot {
        self.life.snapshot(0, self.now)
    }

    fn state(&self, name: &str) -> ContainerState {
        self.of(name).state
    }

    fn of(&self, name: &str) -> crate::pod::snapshot::ContainerSnapshot {
        let snapshot = self.snapshot();
        let found = snapshot.containers.into_iter().find(|c| c.name == name);
        found.expect("in the snapshot")
    }

    fn waiting_reason(&self, name: &str) -> String {
        match self.state(name) {
            ContainerState::Waiting { reason, .. } => reason,
            other => panic!("{name} does not wait: {other:?}"),
        }
    }
}

use ContainerKind::{Ephemeral, Init, Main, Sidecar};
use RestartPolicy::{Always, Never, OnFailure};
