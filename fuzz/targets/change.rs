//! A manifest that changes: two texts with a line `=====` between them. A pod that stays has its UID; one that is
//! replaced ends first.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podling_agent::manifest;
use podling_agent::store::{Kind, Origin, Store, Writer};

fuzz_target!(|text: &str| {
    let Some((first, second)) = text.split_once("\n=====\n") else {
        return;
    };
    let origin = Origin::file("/m/a.yaml");
    let parse = |text| manifest::parse(text, &origin, "node");
    let (Ok(first), Ok(second)) = (parse(first), parse(second)) else {
        return;
    };
    let store = Store::in_memory("node");
    let writer = Writer::etcd("/m/");
    store.replace_writer(&writer, first).expect("there is no disk");
    let before = store.list(Kind::Pod);
    store.replace_writer(&writer, second.clone()).expect("there is no disk");
    for pod in before {
        let now = store.get(&pod.key).expect("a pod goes when it has ended");
        assert_eq!(now.uid, pod.uid);
        if now.deletion.is_some() {
            assert!(store.finalize(&pod.key, &pod.uid).expect("there is no disk"));
        }
    }
    // All that is wanted is there in the end, and nothing else.
    let mut wanted: Vec<_> = second.into_iter().map(|desired| desired.key).collect();
    let mut there: Vec<_> = Kind::ALL.into_iter().flat_map(|kind| store.list(kind)).map(|o| o.key.clone()).collect();
    wanted.sort();
    there.sort();
    assert_eq!(there, wanted);
});
