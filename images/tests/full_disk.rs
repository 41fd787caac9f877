//! A disk that fills in the middle of a pull or load: the store is clean afterwards, and the error says so.
//!
//! The disk is a tmpfs of 4 MiB that is mounted detached (fsmount(2)): it appears in no mount namespace, and ends with
//! its descriptor.
#![cfg(feature = "privileged-tests")]
#![allow(clippy::unwrap_used)]

mod support;

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use podling_images::{ImageStore, LoadError, LoadOptions, PullError};
use rustix::mount::{FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags};
use support::test_archive::{Tar, TestImage, noise};
use support::{Registry, pull_options, reference};

struct SmallDisk(OwnedFd);

impl SmallDisk {
    fn new() -> Self {
        let fs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
        rustix::mount::fsconfig_set_string(&fs, "size", "4m").unwrap();
        rustix::mount::fsconfig_create(&fs).unwrap();
        let flags = FsMountFlags::FSMOUNT_CLOEXEC;
        let mount = rustix::mount::fsmount(&fs, flags, MountAttrFlags::empty()).unwrap();
        Self(mount)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }

    fn enlarge(&self) {
        self.resize("64m");
    }

    fn resize(&self, size: &str) {
        let flags = FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC;
        let fs = rustix::mount::fspick(&self.0, "", flags).unwrap();
        rustix::mount::fsconfig_set_string(&fs, "size", size).unwrap();
        rustix::mount::fsconfig_reconfigure(&fs).unwrap();
    }

    fn used_bytes(&self) -> u64 {
        let stat = rustix::fs::fstatvfs(&self.0).unwrap();
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    }
}

/// A small layer, and two that do not fit together; neither compresses.
fn image() -> TestImage {
    TestImage::new(vec![
        Tar::new().file("small", b"small").finish(),
        Tar::new().file("large", &noise(3 << 20, 0)).finish(),
        Tar::new().file("larger", &noise(4 << 20, 1)).finish(),
    ])
}

fn assert_clean(store: &ImageStore, disk: &SmallDisk) {
    let names = |kind: &str| names(&store.dir().join(kind));
    assert_eq!(names("tmp"), Vec::<String>::new());
    assert_eq!(names("ingest"), Vec::<String>::new());
    assert!(store.list().unwrap().is_empty());
    assert_eq!(store.verify().unwrap(), []);
    store.gc(&Default::default()).unwrap();
    assert!(disk.used_bytes() < 256 << 10, "{}", disk.used_bytes());
}

fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn a_disk_that_fills_during_a_load_leaves_a_clean_store() {
    let disk = SmallDisk::new();
    let elsewhere = tempfile::tempdir().unwrap();
    image().write_layout(elsewhere.path(), "host.example/app:1");
    let store = ImageStore::open(&disk.path().join("images")).unwrap();
    let options = LoadOptions::default();
    let error = store.load(elsewhere.path(), &options).unwrap_err();
    assert!(matches!(error, LoadError::NoSpace { .. }), "{error:?}");
    assert!(error.to_string().contains("not enough space"), "{error}");
    assert_clean(&store, &disk);
    disk.enlarge();
    store.load(elsewhere.path(), &options).unwrap();
    assert_eq!(store.verify().unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_during_a_pull_leaves_a_clean_store() {
    let registry = Registry::start(false);
    registry.push(&image(), "team/app", "1").await;
    let disk = SmallDisk::new();
    let store = ImageStore::open(&disk.path().join("images")).unwrap();
    let options = pull_options(&registry.address);
    let name = reference(&registry.address, "team/app:1");
    let error = store.pull(&name, &options).await.unwrap_err();
    assert!(matches!(error, PullError::NoSpace { .. }), "{error:?}");
    assert!(error.to_string().contains("not enough space"), "{error}");
    // The other layers end on their own threads.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !names(&store.dir().join("tmp")).is_empty() {
        assert!(std::time::Instant::now() < deadline, "temporary files stay");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_clean(&store, &disk);
    disk.enlarge();
    store.pull(&name, &options).await.unwrap();
    assert_eq!(store.verify().unwrap(), []);
}

/// The compressed layers that a save needs are fetched beside an image that is whole without them.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_while_missing_blobs_are_fetched_keeps_the_image_and_no_part() {
    let registry = Registry::start(false);
    registry.push(&image(), "team/app", "1").await;
    let disk = SmallDisk::new();
    disk.enlarge();
    let store = ImageStore::open(&disk.path().join("images")).unwrap();
    let store = store.with_kept_blobs(false);
    let options = pull_options(&registry.address);
    let name = reference(&registry.address, "team/app:1");
    store.pull(&name, &options).await.unwrap();
    let names = std::slice::from_ref(&name);
    disk.resize("9m");
    let error = store.fetch_missing_blobs(names, &options).await;
    let error = error.unwrap_err();
    assert!(matches!(error, PullError::NoSpace { .. }), "{error:?}");
    for kind in ["ingest", "tmp"] {
        assert_eq!(self::names(&store.dir().join(kind)), Vec::<String>::new());
    }
    assert!(store.resolve(&name).unwrap().is_some());
    assert_eq!(store.verify().unwrap(), []);
    disk.enlarge();
    let fetched = store.fetch_missing_blobs(names, &options).await.unwrap();
    assert!(!fetched.blobs.is_empty());
    assert_eq!(store.missing_blobs(names).unwrap(), []);
}
