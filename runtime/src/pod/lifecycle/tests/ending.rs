//! Hooks before the end, grace periods, the order of the end, deadlines.

use super::*;

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
