//! What holds for any pod, whatever happens to it.

use proptest::prelude::*;

use super::*;

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
