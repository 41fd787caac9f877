//! Kills a process with SIGKILL while it pulls images, again and again: the store stays whole, and the next process goes
//! on with what has come.
#![cfg(feature = "privileged-tests")]
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use podling_images::{ImageStore, Reference};
use support::killed::{Worker, assert_empty, count, work_for_ever, work_in};
use support::test_archive::{Tar, TestImage, noise};
use support::{Registry, pull_options};
use tokio::runtime::Runtime;

const REGISTRY: &str = "PODLING_TEST_PULL_FROM";
const IMAGES: u64 = 3;

/// A layer that all have, and one of its own that takes some time to come.
fn image(n: u64) -> TestImage {
    let mut common = Tar::new();
    for i in 0..40 {
        common = common.file(&format!("file{i}"), &vec![i; 20_000]);
    }
    let own = Tar::new()
        .file("noise", &noise(2 << 20, n))
        .dir("some")
        .file("some/file", b"x");
    TestImage::new(vec![common.finish(), own.finish()])
}

fn name(registry: &str, n: u64) -> Reference {
    support::reference(registry, &format!("team/app:{n}"))
}

#[test]
fn a_killed_pull_leaves_a_whole_store() {
    let runtime = Runtime::new().unwrap();
    if let Some(dir) = work_in() {
        let registry = std::env::var(REGISTRY).unwrap();
        return work_for_ever(|| pull_and_remove(&runtime, &dir, &registry));
    }
    let registry = Registry::start(false);
    for n in 0..IMAGES {
        runtime.block_on(registry.push(&image(n), "team/app", &n.to_string()));
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut partial, mut whole) = (0, 0);
    let worker = Worker {
        test: "a_killed_pull_leaves_a_whole_store",
        dir: dir.path(),
        variable: Some((REGISTRY, &registry.address)),
        killed_after: (Duration::from_millis(5), Duration::from_millis(300)),
    };
    worker.kill_again_and_again(|round| {
        let store = ImageStore::open(dir.path()).unwrap();
        assert_eq!(store.verify().unwrap(), [], "round {round}");
        assert_eq!(count(dir.path(), "tmp"), 0, "round {round}");
        partial += count(dir.path(), "ingest");
        for image in store.list().unwrap() {
            assert_eq!(image.layers.len(), 2);
            assert_eq!(image.size_bytes, 40 * 20_000 + (2 << 20) + 1);
            whole += 1;
        }
    });
    assert!(whole > 0, "no round came to the end of a pull");
    assert!(partial > 0, "no round was killed in the middle of a pull");

    let store = ImageStore::open(dir.path()).unwrap();
    let options = pull_options(&registry.address);
    for n in 0..IMAGES {
        let name = name(&registry.address, n);
        runtime.block_on(store.pull(&name, &options)).unwrap();
    }
    assert_eq!(store.verify().unwrap(), []);
    assert_eq!(count(dir.path(), "ingest"), 0);
    for n in 0..IMAGES {
        store.remove(&name(&registry.address, n)).unwrap();
    }
    store.gc(&HashSet::new()).unwrap();
    assert_empty(dir.path());
}

fn pull_and_remove(runtime: &Runtime, dir: &Path, registry: &str) {
    let options = pull_options(registry);
    let store = ImageStore::open(dir).unwrap();
    for n in 0..IMAGES {
        let name = name(registry, n);
        runtime.block_on(store.pull(&name, &options)).unwrap();
    }
    for n in 1..IMAGES {
        store.remove(&name(registry, n)).unwrap();
    }
    store.gc(&HashSet::new()).unwrap();
}
