//! The lifecycle against a fake pod: processes and a clock that obey.

use std::collections::BTreeMap;
use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use oci_spec::runtime::{Process as OciProcess, Spec};
use proptest::prelude::*;

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

#[test]
fn init_containers_run_one_after_another_and_sidecars_hold_the_next_until_started() {
    let mut sidecar = container("proxy", Sidecar);
    sidecar.startup_probe = Some(probe(1, 3));
    let mut world = World::new(&plan(
        Always,
        vec![
            container("first", Init),
            sidecar,
            container("second", Init),
            container("a", Main),
            container("b", Main),
        ],
    ));
    assert_eq!(world.take_done(), ["start first"]);
    assert_eq!(world.waiting_reason("a"), "PodInitializing");
    world.ends("first", 0);
    assert_eq!(world.take_done(), ["start proxy", "probe proxy startup"]);
    world.probed("proxy", ProbeKind::Startup, true);
    assert_eq!(world.take_done(), ["start second"]);
    assert_eq!(world.snapshot().stage, Stage::Initializing);
    world.ends("second", 0);
    assert_eq!(world.take_done(), ["start a", "start b"]);
    assert_eq!(world.snapshot().stage, Stage::Active);
    assert!(world.of("first").ready && world.of("proxy").ready);
}

#[test]
fn an_init_container_that_fails_is_tried_again_after_its_back_off() {
    let mut world = World::new(&plan(
        Always,
        vec![container("init", Init), container("a", Main)],
    ));
    world.ends("init", 1);
    world.ends("init", 1);
    assert_eq!(world.take_done(), ["start init", "start init"]);
    assert_eq!(world.waiting_reason("init"), "CrashLoopBackOff");
    world.pass(9_999);
    assert_eq!(world.take_done(), [""; 0]);
    world.pass(1);
    assert_eq!(world.take_done(), ["start init"]);
    world.ends("init", 0);
    assert_eq!(world.take_done(), ["start a"]);
}

#[test]
fn an_init_container_that_fails_for_good_ends_the_pod() {
    let mut world = World::new(&plan(
        Never,
        vec![
            container("proxy", Sidecar),
            container("init", Init),
            container("a", Main),
        ],
    ));
    world.ends("init", 3);
    assert_eq!(
        world.take_done(),
        ["start proxy", "start init", "signal proxy 15"]
    );
    world.ends("proxy", 0);
    assert!(matches!(
        world.snapshot().stage,
        Stage::Ended {
            terminated: false,
            ..
        }
    ));
    assert_eq!(world.waiting_reason("a"), "PodInitializing");
}

#[test]
fn policies_decide_what_restarts() {
    for (policy, code, restarts) in [
        (Always, 0, true),
        (Always, 1, true),
        (OnFailure, 0, false),
        (OnFailure, 1, true),
        (Never, 0, false),
        (Never, 1, false),
    ] {
        let mut world = World::new(&plan(policy, vec![container("a", Main)]));
        world.ends("a", code);
        assert_eq!(world.live.contains_key("a"), restarts, "{policy:?} {code}");
        assert_eq!(world.life.has_ended(), !restarts);
        assert_eq!(world.of("a").restart_count, u32::from(restarts));
    }
}

#[test]
fn a_container_can_have_a_policy_of_its_own() {
    let mut own = container("own", Main);
    own.restart_policy = Some(Never);
    let mut world = World::new(&plan(Always, vec![own, container("a", Main)]));
    world.ends("own", 1);
    world.ends("a", 0);
    assert_eq!(world.take_done(), ["start own", "start a", "start a"]);
}

#[test]
fn the_first_restart_is_immediate_the_second_waits_and_a_long_run_forgives() {
    let mut world = World::new(&plan(Always, vec![container("a", Main)]));
    world.ends("a", 1);
    world.ends("a", 1);
    assert_eq!(world.take_done(), ["start a", "start a"]);
    let ContainerState::Waiting {
        reason,
        message,
        until,
    } = world.state("a")
    else {
        panic!("it should wait")
    };
    assert_eq!(reason, "CrashLoopBackOff");
    assert_eq!(
        message,
        "back-off 10s restarting failed container=a pod=web_default(u)"
    );
    assert_eq!(until, Some(world.now.wall + SignedDuration::from_secs(10)));
    world.pass(10_000);
    world.pass(600_000);
    world.ends("a", 1);
    assert_eq!(world.take_done(), ["start a", "start a"]);
    assert_eq!(world.of("a").restart_count, 3);
}

#[test]
fn a_failed_start_is_a_termination_with_code_128_and_backs_off() {
    let mut world = World::new(&plan(Always, vec![container("a", Main)]));
    world.exit("a", ExitStatus::Code(1));
    let steps = world.life.advance(world.now);
    assert!(matches!(steps[0].action, Action::Start { .. }));
    let input = Input::StartFailed {
        container: "a".to_owned(),
        message: "no".to_owned(),
    };
    world.life.handle(input, world.now);
    world.settle();
    let last = world.of("a").last_termination.expect("it ended");
    assert_eq!((last.exit_code, last.reason.as_str()), (128, "StartError"));
    assert_eq!(world.waiting_reason("a"), "CrashLoopBackOff");
}

#[test]
fn a_failed_liveness_probe_stops_and_restarts_with_the_probes_own_grace() {
    let mut a = container("a", Main);
    let mut liveness = probe(1, 2);
    liveness.termination_grace_secs = Some(5);
    a.liveness_probe = Some(liveness);
    let mut world = World::new(&plan(Always, vec![a]));
    world.probed("a", ProbeKind::Liveness, false);
    world.pass(1_000);
    world.probed("a", ProbeKind::Liveness, false);
    assert_eq!(
        world.take_done(),
        [
            "start a",
            "probe a liveness",
            "probe a liveness",
            "signal a 15"
        ]
    );
    world.pass(4_999);
    assert_eq!(world.take_done(), [""; 0]);
    world.pass(1);
    assert_eq!(world.take_done()[..2], ["kill a", "start a"]);
    let last = world.of("a").last_termination.expect("it ended");
    assert_eq!((last.exit_code, last.signal), (137, Some(9)));
}

#[test]
fn the_startup_probe_holds_the_others_back() {
    let mut a = container("a", Main);
    a.startup_probe = Some(probe(1, 3));
    a.liveness_probe = Some(probe(1, 3));
    a.readiness_probe = Some(probe(1, 1));
    let mut world = World::new(&plan(Always, vec![a]));
    world.pass(2_500);
    assert_eq!(world.take_done(), ["start a", "probe a startup"]);
    world.probed("a", ProbeKind::Startup, true);
    assert_eq!(world.take_done(), ["probe a liveness", "probe a readiness"]);
    assert!(world.of("a").started && !world.of("a").ready);
    world.probed("a", ProbeKind::Readiness, true);
    assert!(world.of("a").ready);
    world.pass(1_000);
    world.probed("a", ProbeKind::Readiness, false);
    assert!(!world.of("a").ready);
    let failures = world.of("a").probe_failures;
    assert_eq!(failures.len(), 1);
    assert_eq!(
        (failures[0].probe.as_str(), failures[0].failures),
        ("readiness", 1)
    );
}

#[test]
fn a_probe_s_failure_is_shown_until_that_probe_succeeds_or_is_taken_away() {
    let mut a = container("a", Main);
    a.liveness_probe = Some(probe(1, 9));
    a.readiness_probe = Some(probe(1, 1));
    let mut plan = plan(Always, vec![a]);
    let mut world = World::new(&plan);
    let failing = |world: &World| -> Vec<String> {
        let failures = world.of("a").probe_failures;
        failures.into_iter().map(|f| f.probe).collect()
    };
    world.probed("a", ProbeKind::Readiness, false);
    world.probed("a", ProbeKind::Liveness, false);
    assert_eq!(failing(&world), ["liveness", "readiness"]);
    world.pass(1_000);
    world.probed("a", ProbeKind::Readiness, true);
    assert_eq!(failing(&world), ["liveness"]);
    plan.generation += 1;
    plan.containers[0].liveness_probe = None;
    world
        .life
        .replace_plan(&plan, world.now)
        .expect("a good plan");
    assert_eq!(failing(&world), [""; 0]);
}

#[test]
fn a_pod_that_ends_does_not_wait_for_a_post_start_hook() {
    let mut a = container("a", Main);
    a.post_start = sleep_hook();
    a.pre_stop = sleep_hook();
    let mut world = World::new(&plan(Always, vec![a]));
    assert_eq!(world.take_done(), ["start a", "hook a PostStart"]);
    world.terminate(30_000);
    assert_eq!(world.take_done(), ["hook a PreStop"]);
    world.hook_over("a", HookKind::PreStop, true);
    assert_eq!(world.take_done(), ["signal a 15"]);
    world.hook_over("a", HookKind::PostStart, false);
    assert_eq!(world.take_done(), [""; 0]);
    world.ends("a", 0);
    assert!(world.life.has_ended());
}

#[test]
fn post_start_holds_readiness_back_and_its_failure_kills() {
    let mut a = container("a", Main);
    a.post_start = sleep_hook();
    a.readiness_probe = Some(probe(1, 1));
    let mut world = World::new(&plan(Always, vec![a]));
    assert_eq!(world.take_done(), ["start a", "hook a PostStart"]);
    assert!(!world.of("a").ready && !world.of("a").started);
    world.hook_over("a", HookKind::PostStart, true);
    assert_eq!(world.take_done(), ["probe a readiness"]);
    world.ends("a", 1);
    world.take_done();
    world.hook_over("a", HookKind::PostStart, false);
    assert_eq!(world.take_done(), ["signal a 15"]);
}

#[test]
fn pre_stop_runs_within_the_grace_period() {
    let mut a = container("a", Main);
    a.pre_stop = sleep_hook();
    let mut world = World::new(&plan(Always, vec![a]));
    world.terminate(30_000);
    world.pass(12_000);
    world.hook_over("a", HookKind::PreStop, true);
    world.pass(17_999);
    assert_eq!(
        world.take_done(),
        ["start a", "hook a PreStop", "signal a 15"]
    );
    world.pass(1);
    assert_eq!(world.take_done(), ["kill a"]);
    assert!(world.life.has_ended());
}

#[test]
fn after_a_pre_stop_hook_that_took_all_the_grace_two_seconds_are_left() {
    let mut a = container("a", Main);
    a.pre_stop = sleep_hook();
    let mut world = World::new(&plan(Always, vec![a]));
    world.terminate(5_000);
    world.pass(5_000);
    assert_eq!(world.take_done()[2..], ["cancel a PreStop", "signal a 15"]);
    world.pass(1_999);
    assert_eq!(world.take_done(), [""; 0]);
    world.pass(1);
    assert_eq!(world.take_done(), ["kill a"]);
}

#[test]
fn no_grace_kills_at_once_without_a_hook() {
    let mut a = container("a", Main);
    a.pre_stop = sleep_hook();
    let mut world = World::new(&plan(Always, vec![container("s", Sidecar), a]));
    world.take_done();
    world.terminate(0);
    assert_eq!(world.take_done(), ["kill s", "kill a"]);
    assert!(matches!(
        world.snapshot().stage,
        Stage::Ended {
            terminated: true,
            ..
        }
    ));
}

#[test]
fn a_second_request_can_only_shorten_the_grace() {
    let mut world = World::new(&plan(Always, vec![container("a", Main)]));
    world.terminate(30_000);
    world.terminate(60_000);
    world.terminate(3_000);
    world.pass(2_999);
    assert!(world.live.contains_key("a"));
    world.pass(1);
    assert!(!world.live.contains_key("a"));
}

#[test]
fn sidecars_end_last_and_in_reverse_order() {
    let mut first = container("first", Sidecar);
    first.pre_stop = sleep_hook();
    let mut world = World::new(&plan(
        Always,
        vec![first, container("second", Sidecar), container("a", Main)],
    ));
    world.take_done();
    world.terminate(30_000);
    assert_eq!(world.take_done(), ["hook first PreStop", "signal a 15"]);
    world.hook_over("first", HookKind::PreStop, true);
    assert_eq!(world.take_done(), [""; 0]);
    world.ends("a", 0);
    assert_eq!(world.take_done(), ["signal second 15"]);
    world.ends("second", 0);
    assert_eq!(world.take_done(), ["signal first 15"]);
    world.ends("first", 0);
    assert!(world.life.has_ended());
}

#[test]
fn sidecars_end_when_all_main_containers_have() {
    let mut world = World::new(&plan(
        Never,
        vec![container("s", Sidecar), container("a", Main)],
    ));
    world.ends("a", 0);
    assert_eq!(world.take_done(), ["start s", "start a", "signal s 15"]);
    assert_eq!(world.snapshot().stage, Stage::Active);
    world.ends("s", 1);
    assert!(matches!(
        world.snapshot().stage,
        Stage::Ended {
            terminated: false,
            reason: None,
            ..
        }
    ));
}

#[test]
fn the_pods_deadline_ends_it() {
    let mut plan = plan(Always, vec![container("a", Main)]);
    plan.active_deadline_secs = Some(60);
    let mut world = World::new(&plan);
    world.pass(59_999);
    assert_eq!(world.take_done(), ["start a"]);
    world.pass(1);
    assert_eq!(world.take_done(), ["signal a 15"]);
    world.ends("a", 0);
    let Stage::Ended {
        reason, terminated, ..
    } = world.snapshot().stage
    else {
        panic!("it should have ended")
    };
    assert_eq!(reason.as_deref(), Some("DeadlineExceeded"));
    assert!(!terminated);
}

#[test]
fn a_container_without_its_image_waits_until_a_new_plan_brings_it() {
    let ready = plan(Always, vec![container("a", Main), container("b", Main)]);
    let mut waiting = ready.clone();
    waiting.containers[0].source = ContainerSource::Waiting {
        reason: "ImagePullBackOff".to_owned(),
        message: "no registry".to_owned(),
    };
    let mut world = World::new(&waiting);
    assert_eq!(world.take_done(), ["start b"]);
    assert_eq!(world.waiting_reason("a"), "ImagePullBackOff");
    world.replan(&ready);
    assert_eq!(world.take_done(), ["start a"]);
}

#[test]
fn a_changed_container_restarts_gracefully_and_not_as_a_crash() {
    let mut plan = plan(Never, vec![container("a", Main), container("b", Main)]);
    let mut world = World::new(&plan);
    world.take_done();
    plan.containers[0].spec_hash = "2".to_owned();
    plan.generation = 2;
    world.replan(&plan);
    assert_eq!(world.take_done(), ["signal a 15"]);
    assert_eq!(world.snapshot().plan_generation, 2);
    world.ends("a", 143);
    assert_eq!(world.take_done(), ["start a"]);
    assert_eq!(world.of("a").restart_count, 1);
    world.replan(&plan);
    assert_eq!(world.take_done(), [""; 0]);
}

#[test]
fn a_change_of_what_a_crashing_container_runs_starts_it_at_once() {
    let mut plan = plan(Always, vec![container("a", Main)]);
    let mut world = World::new(&plan);
    world.ends("a", 1);
    world.ends("a", 1);
    world.take_done();
    plan.containers[0].spec_hash = "2".to_owned();
    world.replan(&plan);
    assert_eq!(world.take_done(), ["start a"]);
}

#[test]
fn removed_containers_stop_and_added_ones_start() {
    let mut plan = plan(Always, vec![container("a", Main), container("b", Main)]);
    let mut world = World::new(&plan);
    world.take_done();
    plan.containers[0] = container("c", Main);
    plan.containers.push(container("debug", Ephemeral));
    world.replan(&plan);
    assert_eq!(world.take_done(), ["signal a 15", "start c", "start debug"]);
    world.ends("a", 0);
    world.ends("debug", 1);
    assert_eq!(world.take_done(), [""; 0]);
    let names: Vec<_> = world
        .snapshot()
        .containers
        .into_iter()
        .map(|c| c.name)
        .collect();
    assert_eq!(names, ["c", "b", "debug"]);
}

#[test]
fn a_container_removed_and_added_again_starts_once_more() {
    let both = plan(Always, vec![container("a", Main), container("b", Main)]);
    let mut one = both.clone();
    one.containers.remove(0);
    let mut world = World::new(&both);
    world.replan(&one);
    world.replan(&both);
    world.take_done();
    world.ends("a", 0);
    assert_eq!(world.take_done(), ["start a"]);
}

#[test]
fn impossible_changes_are_refused_and_change_nothing() {
    let good = plan(Always, vec![container("a", Main)]);
    let mut world = World::new(&good);
    let before = world.life.clone();
    let mut other = good.clone();
    other.pod.uid = "v".to_owned();
    let mut kind = good.clone();
    kind.containers[0].kind = Sidecar;
    kind.containers.push(container("b", Main));
    let mut init = good.clone();
    init.containers.push(container("i", Init));
    for bad in [other, kind, init] {
        assert!(world.life.replace_plan(&bad, world.now).is_err());
        assert_eq!(world.life, before);
    }
}

#[test]
fn plans_that_cannot_be_carried_out_are_refused() {
    let good = plan(Always, vec![container("a", Main)]);
    let with = |change: fn(&mut Plan)| {
        let mut plan = good.clone();
        change(&mut plan);
        check(&plan).expect_err("a bad plan").to_string()
    };
    assert!(with(|p| p.version = 99).contains("99"));
    assert!(with(|p| p.containers.clear()).contains("no main container"));
    assert!(with(|p| p.containers[0].name = "../x".to_owned()).contains("../x"));
    assert!(with(|p| p.containers.push(container("a", Main))).contains("two containers"));
    let grpc = with(|p| {
        let mut grpc = probe(1, 1);
        grpc.handler = Handler::Grpc {
            port: 1,
            service: String::new(),
        };
        p.containers[0].liveness_probe = Some(grpc);
    });
    assert!(grpc.contains("gRPC"), "{grpc}");
    let name = with(|p| {
        p.containers[0].pre_stop = Some(Handler::Tcp {
            host: Some("no.such.name.invalid".to_owned()),
            port: 1,
        });
    });
    assert!(name.contains("no.such.name.invalid"), "{name}");
    let header = with(|p| {
        p.containers[0].post_start = Some(Handler::Http {
            tls: false,
            host: None,
            port: 1,
            path: "/".to_owned(),
            headers: vec![("X".to_owned(), "a\r\nB: c".to_owned())],
        });
    });
    assert!(header.contains("header"), "{header}");
}

#[test]
fn an_oom_kill_is_named() {
    let mut world = World::new(&plan(Never, vec![container("a", Main)]));
    world.live.clear();
    let exit = Exit {
        status: ExitStatus::Signal(9),
        oom_killed: true,
        message: None,
    };
    let container = "a".to_owned();
    world
        .life
        .handle(Input::Exited { container, exit }, world.now);
    world.settle();
    let ContainerState::Terminated(t) = world.state("a") else {
        panic!("it should have ended")
    };
    assert_eq!((t.reason.as_str(), t.exit_code), ("OOMKilled", 137));
}

#[test]
fn the_record_survives_a_new_supervisor() {
    let mut a = container("a", Main);
    a.pre_stop = sleep_hook();
    a.readiness_probe = Some(probe(1, 1));
    let mut world = World::new(&plan(Always, vec![a]));
    world.probed("a", ProbeKind::Readiness, true);
    world.terminate(30_000);
    world.take_done();
    let record = serde_json::to_vec(&world.life).expect("a record");
    world.life = serde_json::from_slice(&record).expect("the same record");
    world.life.resume();
    assert!(world.of("a").ready);
    world.pass(5_000);
    assert!(world.done.contains(&"hook a PreStop".to_owned()));
    assert!(world.done.contains(&"probe a readiness".to_owned()));
    world.hook_over("a", HookKind::PreStop, true);
    world.pass(25_000);
    assert!(world.life.has_ended());
}

/// Something that may happen to any pod at any time.
#[derive(Debug, Clone)]
enum Event {
    Exit(usize, i32),
    Probe(usize, usize, bool),
    HookOver(usize, bool, bool),
    Pass(u64),
    Replan(Vec<bool>, u8),
    Terminate(u64),
    Restart,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        4 => (0_usize..6, 0..3).prop_map(|(i, code)| Event::Exit(i, code)),
        4 => (0_usize..6, 0_usize..3, any::<bool>()).prop_map(|(i, k, g)| Event::Probe(i, k, g)),
        2 => (0_usize..6, any::<bool>(), any::<bool>()).prop_map(|(i, h, g)| Event::HookOver(i, h, g)),
        4 => (0_u64..40_000).prop_map(Event::Pass),
        1 => (proptest::collection::vec(any::<bool>(), 6), 0_u8..3).prop_map(|(k, h)| Event::Replan(k, h)),
        1 => (0_u64..40_000).prop_map(Event::Terminate),
        1 => Just(Event::Restart),
    ];
    proptest::collection::vec(event, 0..60)
}

fn busy_plan(policy: RestartPolicy, kept: &[bool], hash: u8) -> Plan {
    let kinds = [Init, Sidecar, Init, Sidecar, Main, Main];
    let mut containers: Vec<_> = kinds
        .iter()
        .enumerate()
        .map(|(i, &kind)| {
            let mut c = container(&format!("c{i}"), kind);
            c.spec_hash = hash.to_string();
            c.liveness_probe = (i % 2 == 1).then(|| probe(1, 2));
            c.readiness_probe = (i > 3).then(|| probe(1, 1));
            c.startup_probe = (i == 3).then(|| probe(1, 5));
            c.post_start = if i == 4 { sleep_hook() } else { None };
            c.pre_stop = if i == 1 || i == 5 { sleep_hook() } else { None };
            c
        })
        .collect();
    // Init containers stay: they cannot be added again. One main container has to be there.
    let mut i = 0;
    containers.retain(|c| {
        i += 1;
        c.kind == Init || i == 6 || kept.get(i - 1).copied().unwrap_or(true)
    });
    plan(policy, containers)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever happens: no container runs twice, nothing is done to a dead one, the lifecycle comes to rest, never
    /// asks to be woken for nothing, and a termination ends within its grace and the floors of its sidecars.
    #[test]
    fn any_pod_keeps_its_promises(
        policy in prop_oneof![Just(Always), Just(OnFailure), Just(Never)],
        events in events(),
    ) {
        let mut world = World::new(&busy_plan(policy, &[], 0));
        for event in events {
            let name = |i: usize| format!("c{i}");
            match event {
                Event::Exit(i, code) if world.live.contains_key(&name(i)) => world.ends(&name(i), code),
                Event::Probe(i, kind, good) if world.live.contains_key(&name(i)) => {
                    world.probed(&name(i), ProbeKind::ALL[kind], good);
                }
                Event::HookOver(i, pre_stop, good) if world.live.contains_key(&name(i)) => {
                    let hook = if pre_stop { HookKind::PreStop } else { HookKind::PostStart };
                    world.hook_over(&name(i), hook, good);
                }
                Event::Pass(ms) => world.pass(ms),
                Event::Replan(kept, hash) if !world.life.has_ended() => {
                    world.replan(&busy_plan(policy, &kept, hash));
                }
                Event::Terminate(grace_ms) => world.terminate(grace_ms),
                Event::Restart => {
                    let record = serde_json::to_vec(&world.life).expect("a record");
                    world.life = serde_json::from_slice(&record).expect("the same record");
                    world.life.resume();
                    world.settle();
                }
                _ => {}
            }
            prop_assert_eq!(world.life.remembered().len(), world.live.len());
        }
        world.terminate(10_000);
        world.pass(10_000 + 3 * run::FLOOR_MS);
        prop_assert!(world.life.has_ended(), "{:?} {:?}", world.live, world.snapshot());
        prop_assert!(world.live.is_empty());
        prop_assert_eq!(world.life.wake_ms(), None);
    }
}
