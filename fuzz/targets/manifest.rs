//! Manifests, as they come from files and from etcd's values: any text is refused with a place in it and a reason, or
//! becomes the same objects every time.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podling_agent::manifest;
use podling_agent::store::{Origin, Store, Writer};

fuzz_target!(|text: &str| {
    let origin = Origin::etcd("/podling/manifests/fuzz");
    match manifest::parse(text, &origin, "node") {
        Ok(objects) => {
            let again = manifest::parse(text, &origin, "node").expect("it was read before");
            assert_eq!(objects, again, "a pod that is read again is not another one");
            for object in &objects {
                assert!(!object.key.name.is_empty());
                assert_eq!(object.body.metadata().name.as_deref(), Some(&*object.key.name));
            }
            // The store takes all of them, and nothing changes when they come again.
            let store = Store::in_memory("node");
            let writer = Writer::etcd("/podling/");
            store.replace_writer(&writer, objects).expect("there is no disk");
            let version = store.version();
            store.replace_writer(&writer, again).expect("there is no disk");
            assert_eq!(store.version(), version);
        }
        Err(problems) => {
            assert!(!problems.is_empty());
            for problem in problems {
                assert!(!problem.message.is_empty());
                // What people read of it.
                assert!(problem.to_string().starts_with("etcd:/podling/manifests/fuzz"));
            }
        }
    }
});
