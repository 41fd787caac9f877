//! Kills a process with SIGKILL while it loads images, again and again: the store stays whole.
//!
//! The process is this test program, started again with a variable that tells it what to do.

#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use podling_images::{ImageStore, LoadOptions};
use support::test_archive::{Tar, TestImage, write_layout};

const CHILD: &str = "PODLING_TEST_LOAD_IN";

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
    if let Some(dir) = std::env::var_os(CHILD) {
        return load_for_ever(Path::new(&dir));
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
    for round in 0..100 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_killed_load_leaves_a_whole_store"])
            .env(CHILD, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(instant(round));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = ImageStore::open(&store_dir).unwrap();
        assert_eq!(store.verify().unwrap(), [], "round {round}");
        assert_eq!(std::fs::read_dir(store_dir.join("tmp")).unwrap().count(), 0);
        for image in store.list().unwrap() {
            assert_eq!(image.layers.len(), 3);
            assert_eq!(image.size_bytes, 3 * 40 * 20_000);
        }
    }
    let store = ImageStore::open(&store_dir).unwrap();
    let loaded = store
        .load(&dir.path().join("layout"), &LoadOptions::default())
        .unwrap();
    assert_eq!(loaded.len(), images.len());
    for name in &names {
        store.remove(&name.parse().unwrap()).unwrap();
    }
    store.gc(&std::collections::HashSet::new()).unwrap();
    for kind in [
        "layers/sha256",
        "blobs/sha256",
        "references",
        "replaced",
        "ingest",
        "tmp",
        "locks",
    ] {
        assert_eq!(
            std::fs::read_dir(store_dir.join(kind)).unwrap().count(),
            0,
            "{kind}"
        );
    }
}

/// Of a hundred, most hit the first load and the rest what comes after; spread by a golden ratio.
fn instant(round: u64) -> Duration {
    let spread = (round * 0x9e37_79b9) % 1000;
    Duration::from_micros(spread * spread / 10 + 1000)
}

/// Loads and removes until it is killed. The parent is watched so that it does not outlive it.
fn load_for_ever(dir: &Path) {
    let parent = std::os::unix::process::parent_id();
    while std::os::unix::process::parent_id() == parent {
        let store = ImageStore::open(&dir.join("images")).unwrap();
        let loaded = store
            .load(&dir.join("layout"), &LoadOptions::default())
            .unwrap();
        for image in loaded.iter().skip(1) {
            store.remove(&image.references[0]).unwrap();
        }
        store.gc(&std::collections::HashSet::new()).unwrap();
    }
}
