//! Probes, and hooks after a start.

use super::*;

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
