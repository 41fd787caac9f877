//! Init containers, restart policies, back-off, and a supervisor that was started again.

use super::*;

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
