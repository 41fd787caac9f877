//! Kills a process with SIGKILL while it pulls images, again and again: the store stays whole, and the next process goes
//! on with what has come.
//!
//! The process is this test program, started again with a variable that tells it what to do.
#![cfg(feature = "privileged-tests")]
#![allow(clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use podling_images::{ImageStore, PullOptions, Reference, RegistriesConfig};
use support::Registry;
use support::test_archive::{Tar, TestImage};

const CHILD: &str = "PODLING_TEST_PULL_INTO";
const REGISTRY: &str = "PODLING_TEST_PULL_FROM";
const IMAGES: u64 = 3;
const ROUNDS: u64 = 100;

/// A layer that all have, and one of its own that takes some time to come.
fn image(n: u64) -> TestImage {
    // Xorshift: does not compress.
    let mut state = 88_172_645_463_325_252_u64 + n;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(2 << 20)
    .collect();
    let mut common = Tar::new();
    for i in 0..40 {
        common = common.file(&format!("file{i}"), &vec![i; 20_000]);
    }
    let own = Tar::new()
        .file("noise", &noise)
        .dir("some")
        .file("some/file", b"x");
    TestImage::new(vec![common.finish(), own.finish()])
}

fn name(registry: &str, n: u64) -> Reference {
    format!("{registry}/team/app:{n}").parse().unwrap()
}

fn options(registry: &str) -> PullOptions {
    PullOptions {
        docker_config: Some("/nonexistent".into()),
        registries: RegistriesConfig {
            plain_http: [registry.to_owned()].into(),
            ..RegistriesConfig::default()
        },
        ..PullOptions::default()
    }
}

#[test]
fn a_killed_pull_leaves_a_whole_store() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Some(dir) = std::env::var_os(CHILD) {
        let registry = std::env::var(REGISTRY).unwrap();
        return runtime.block_on(pull_for_ever(Path::new(&dir), &registry));
    }
    let registry = Registry::start(false);
    for n in 0..IMAGES {
        runtime.block_on(registry.push(&image(n), "team/app", &n.to_string()));
    }
    let dir = tempfile::tempdir().unwrap();
    let (mut partial, mut whole) = (0, 0);
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_killed_pull_leaves_a_whole_store"])
            .env(CHILD, dir.path())
            .env(REGISTRY, &registry.address)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(instant(round));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        assert_eq!(store.verify().unwrap(), [], "round {round}");
        assert_eq!(count(dir.path(), "tmp"), 0, "round {round}");
        partial += count(dir.path(), "ingest");
        for image in store.list().unwrap() {
            assert_eq!(image.layers.len(), 2);
            assert_eq!(image.size_bytes, 40 * 20_000 + (2 << 20) + 1);
            whole += 1;
        }
    }
    assert!(whole > 0, "no round came to the end of a pull");
    assert!(partial > 0, "no round was killed in the middle of a pull");

    let store = ImageStore::open(dir.path()).unwrap();
    for n in 0..IMAGES {
        let name = name(&registry.address, n);
        runtime
            .block_on(store.pull(&name, &options(&registry.address)))
            .unwrap();
    }
    assert_eq!(store.verify().unwrap(), []);
    assert_eq!(count(dir.path(), "ingest"), 0);
    for n in 0..IMAGES {
        store.remove(&name(&registry.address, n)).unwrap();
    }
    store.gc(&std::collections::HashSet::new()).unwrap();
    for kind in [
        "layers/sha256",
        "blobs/sha256",
        "references",
        "tmp",
        "locks",
    ] {
        assert_eq!(count(dir.path(), kind), 0, "{kind}");
    }
}

fn count(dir: &Path, kind: &str) -> usize {
    std::fs::read_dir(dir.join(kind)).unwrap().count()
}

/// Of a hundred, many hit the first pull and the rest what comes after; spread by a golden ratio.
fn instant(round: u64) -> Duration {
    let spread = (round * 0x9e37_79b9) % 1000;
    Duration::from_micros(spread * spread * 3 / 10 + 5000)
}

/// Pulls and removes until it is killed. The parent is watched so that it does not outlive it.
async fn pull_for_ever(dir: &Path, registry: &str) {
    let parent = std::os::unix::process::parent_id();
    let options = options(registry);
    while std::os::unix::process::parent_id() == parent {
        let store = ImageStore::open(dir).unwrap();
        for n in 0..IMAGES {
            store.pull(&name(registry, n), &options).await.unwrap();
        }
        for n in 1..IMAGES {
            store.remove(&name(registry, n)).unwrap();
        }
        store.gc(&std::collections::HashSet::new()).unwrap();
    }
}
