//! Kills a process with SIGKILL while it loads images, again and again: the store stays whole.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use podling_images::{ImageStore, LoadOptions};
use support::killed::{Worker, assert_empty, count, work_for_ever, work_in};
use support::test_archive::{Tar, TestImage, write_layout};

fn images() -> Vec<TestImage> {
    let image = |n: u8| {
        let layer = |m: u8| {
            let mut tar = Tar::new();
            for i in 0..40 {
                tar = tar.file(&format!("dir{m}/file{i}"), &vec![n ^ m ^ i; 20_000]);
            }
            tar.finish()
        };
        TestImage::new(vec![layer(0), layer(n + 1), layer(n + 100)])
    };
    (0..4).map(image).collect()
}

#[test]
fn a_killed_load_leaves_a_whole_store() {
    if let Some(dir) = work_in() {
        return work_for_ever(|| load_and_remove(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let images = images();
    let names: Vec<_> = (0..images.len())
        .map(|n| format!("host.example/app:{n}"))
        .collect();
    let named: Vec<_> = images
        .iter()
        .zip(names.iter().map(|n| Some(n.as_str())))
        .collect();
    write_layout(&dir.path().join("layout"), &named);
    let store_dir = dir.path().join("images");
    let worker = Worker {
        test: "a_killed_load_leaves_a_whole_store",
        dir: dir.path(),
        variable: None,
        killed_after: (Duration::from_millis(1), Duration::from_millis(100)),
    };
    worker.kill_again_and_again(|round| {
        let store = ImageStore::open(&store_dir).unwrap();
        assert_eq!(store.verify().unwrap(), [], "round {round}");
        assert_eq!(count(&store_dir, "tmp"), 0, "round {round}");
        for image in store.list().unwrap() {
            assert_eq!(image.layers.len(), 3);
            assert_eq!(image.size_bytes, 3 * 40 * 20_000);
        }
    });

    let store = ImageStore::open(&store_dir).unwrap();
    let loaded = store
        .load(&dir.path().join("layout"), &LoadOptions::default())
        .unwrap();
    assert_eq!(loaded.len(), images.len());
    for name in &names {
        store.remove(&name.parse().unwrap()).unwrap();
    }
    store.gc(&HashSet::new()).unwrap();
    assert_empty(&store_dir);
}

fn load_and_remove(dir: &Path) {
    let store = ImageStore::open(&dir.join("images")).unwrap();
    let loaded = store
        .load(&dir.join("layout"), &LoadOptions::default())
        .unwrap();
    for image in loaded.iter().skip(1) {
        store.remove(&image.references[0]).unwrap();
    }
    store.gc(&HashSet::new()).unwrap();
}
