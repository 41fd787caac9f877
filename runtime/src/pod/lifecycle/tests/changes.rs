//! Plans that replace others, and plans that are refused.

use super::*;

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
            port: 0,
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
fn a_snapshot_has_the_annotations_that_a_container_was_started_with() {
    let of_image = |id: &str| {
        let mut planned = container("a", Main);
        let ContainerSource::Ready { spec, .. } = &mut planned.source else {
            panic!("it is ready");
        };
        spec.set_annotations(Some([("image".to_owned(), id.to_owned())].into()));
        plan(Always, vec![planned])
    };
    let mut world = World::new(&of_image("old"));
    let shown = |world: &World| world.of("a").annotations["image"].clone();
    assert_eq!(shown(&world), "old");
    world.replan(&of_image("new"));
    assert_eq!(shown(&world), "old", "it runs on with what it has");
    // So does a new supervisor say, from the record.
    let record = serde_json::to_string(&world.life).expect("a record");
    world.life = serde_json::from_str(&record).expect("the same record");
    assert_eq!(shown(&world), "old");
    world.ends("a", 1);
    assert_eq!(shown(&world), "new", "its next start takes the plan's");
}

/// A supervisor was killed while a container started; its successor took the plan that had been written meanwhile.
#[test]
fn a_container_that_started_while_its_plan_changed_is_restarted() {
    let mut plan = plan(Always, vec![container("a", Main)]);
    let now = Now {
        ms: 1_000_000,
        wall: Timestamp::UNIX_EPOCH,
    };
    let mut life = Lifecycle::new(&plan, now);
    assert_eq!(life.advance(now).len(), 1, "it is to be started");
    let process = Process {
        pid: 100,
        start_ticks: 1,
    };
    let container = || "a".to_owned();
    let created = Input::Created {
        container: container(),
        process,
    };
    life.handle(created, now);
    plan.containers[0].spec_hash = "2".to_owned();
    life.replace_plan(&plan, now).expect("a possible change");
    let started = Input::Started {
        container: container(),
    };
    life.handle(started, now);
    let steps = life.advance(now);
    let signal = Action::Signal { signal: 15 };
    assert!(steps.iter().any(|step| step.action == signal), "{steps:?}");
}
