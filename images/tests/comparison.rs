//! Unpacks images, and compares every entry with what umoci and podman make of them.
//!
//! An ordinary run compares a generated image and Debian's base with some changes; the latter is made once by
//! `real-image.sh` and kept in `target/images`. More by hand, with names of Debian packages, and with many files:
//!
//! ```text
//! PODLING_COMPARE_PACKAGES="nginx-light redis-server postgresql python3" PODLING_COMPARE_FILES=50000 \
//!   cargo test -p podling-images --features privileged-tests --test comparison
//! ```
#![cfg(feature = "privileged-tests")]
#![allow(clippy::unwrap_used)]

mod support;

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;

use podling_images::{Image, ImageStore, LoadOptions};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use support::facts::{self, Tree};
use support::test_archive::{Tar, TestImage};
use tar::EntryType;

const SUITE: &str = "bookworm";

#[test]
fn a_generated_image_is_as_others_unpack_it() {
    let files = std::env::var("PODLING_COMPARE_FILES").map_or(2000, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    generated(files).write_layout(&layout, "latest");
    compare(&layout, dir.path());
}

#[test]
fn real_images_are_as_others_unpack_them() {
    let packages = std::env::var("PODLING_COMPARE_PACKAGES").unwrap_or_default();
    let mut names = vec![None];
    if !packages.is_empty() {
        names = packages.split_whitespace().map(Some).collect();
    }
    for package in names {
        let dir = tempfile::tempdir().unwrap();
        compare(&real_image(package), dir.path());
    }
}

/// Where a lower layer has a link and a higher one writes below it without an entry for a directory there, tools differ.
/// Podling and podman's overlay storage (its default) unpack each layer by itself: the directory hides the link. umoci
/// and podman's vfs storage unpack one layer over the other, through the link.
#[test]
fn a_directory_without_an_entry_hides_a_lower_link_as_in_podmans_overlay_storage() {
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    let low = Tar::new()
        .owned_by(0, 0)
        .dir("etc")
        .symlink("link", "etc")
        .finish();
    let high = Tar::new().owned_by(0, 0).file("link/file", b"x").finish();
    TestImage::new(vec![low, high]).write_layout(&layout, "latest");

    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    let options = LoadOptions {
        reference: Some("host.example/compared:1".parse().unwrap()),
        ..LoadOptions::default()
    };
    let images = store.load(&layout, &options).unwrap();
    let mounted = mount(&images[0]);
    let root = PathBuf::from(format!("/proc/self/fd/{}", mounted.as_raw_fd()));
    let (storage, _) = containers_storage(&layout, dir.path(), "overlay");
    let layers = std::fs::read_dir(storage.join("overlay")).unwrap();
    let tops = layers.map(|layer| layer.unwrap().path().join("diff"));
    let tops: Vec<_> = tops
        .filter(|diff| diff.join("link/file").exists())
        .collect();
    assert_eq!(tops.len(), 1, "{tops:?}");
    for directory in [root.join("link"), tops[0].join("link")] {
        assert!(std::fs::symlink_metadata(&directory).unwrap().is_dir());
        assert!(directory.join("file").exists());
    }
    assert!(!root.join("etc/file").exists());

    let theirs = umoci(&layout, dir.path());
    assert!(theirs.contains_key(Path::new("etc/file")));
    assert!(!theirs.contains_key(Path::new("link/file")));
}

/// The layout of a real image, made if it is not there yet.
fn real_image(package: Option<&str>) -> PathBuf {
    let manifest_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let images = manifest_dir.parent().unwrap().join("target/images");
    let layout = images.join(package.unwrap_or("debian"));
    if !layout.exists() {
        let mut command = Command::new(manifest_dir.join("tests/real-image.sh"));
        command.arg(&layout).arg(SUITE).args(package);
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "real-image.sh: {errors}");
    }
    layout
}

/// Each kind of entry, also over each other and in two layers; and many files.
fn generated(files: usize) -> TestImage {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let precise = [("mtime", &b"1500000000.123456789"[..])];
    let mut low = Tar::new()
        .owned_by(0, 0)
        .entry("./", EntryType::Directory, 0o751, "", b"")
        .dir("etc")
        .file("etc/removed", b"x")
        .file("etc/replaced", b"old")
        .dir("opaque")
        .file("opaque/low", b"x")
        .dir("becomes-file")
        .file("becomes-file/x", b"x")
        .file("becomes-directory", b"x")
        .owned_by(33, 44)
        .entry("sticky", EntryType::Directory, 0o1777, "", b"")
        .entry("group", EntryType::Directory, 0o2770, "", b"")
        .entry("sticky/su", EntryType::Regular, 0o6755, "", b"program")
        .pax(&[("SCHILY.xattr.security.capability", &capability)])
        .file("sticky/capable", b"program")
        .pax(&[("SCHILY.xattr.user.note", b"a\nb")])
        .file("sticky/noted", b"")
        .owned_by(4_000_000_000, 3_999_999_999)
        .pax(&precise)
        .dir("precise")
        .pax(&precise)
        .file("precise/file", b"x")
        .pax(&precise)
        .symlink("precise/link", "file")
        // podman takes what the entry of a hard link says of the file, umoci and Podling what the file's own says.
        .pax(&precise)
        .hard_link("linked", "precise/file")
        .pax(&precise)
        .hard_link("linked-link", "precise/link")
        .owned_by(0, 0)
        .device("null", EntryType::Char, 1, 3)
        .device("large", EntryType::Block, 259, 300_000)
        .entry("pipe", EntryType::Fifo, 0o640, "", b"")
        .file("group/again", b"directory given earlier")
        .symlink("absolute", "/etc")
        .symlink("dangling", "../../nowhere");
    let long = format!("{}/file", "a-directory-with-a-long-name/".repeat(9));
    let parents: Vec<_> = long
        .match_indices('/')
        .map(|(at, _)| long[..at].to_owned())
        .collect();
    for parent in parents.iter().filter(|parent| !parent.ends_with('/')) {
        low = low.dir(parent);
    }
    low = low.file(&long.replace("//", "/"), b"long");
    for i in 0..files {
        if i % 50 == 0 {
            low = low.dir(&format!("many{}", i / 50));
        }
        let name = format!("many{}/file{i}", i / 50);
        low = low.file(&name, format!("content {i} ").repeat(i % 300).as_bytes());
    }
    let high = Tar::new()
        .owned_by(0, 0)
        .entry("./", EntryType::Directory, 0o755, "", b"")
        .dir("etc")
        .file("etc/.wh.removed", b"")
        .entry("etc/replaced", EntryType::Regular, 0o600, "", b"new")
        .entry("opaque", EntryType::Directory, 0o700, "", b"")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/high", b"x")
        .file("becomes-file", b"now a file")
        .dir("becomes-directory")
        .file("becomes-directory/x", b"x")
        .file(".wh.dangling", b"");
    TestImage::new(vec![low.finish(), high.finish()])
}

fn compare(layout: &Path, scratch: &Path) {
    let store = ImageStore::open(&scratch.join("images")).unwrap();
    let options = LoadOptions {
        reference: Some("host.example/compared:1".parse().unwrap()),
        ..LoadOptions::default()
    };
    let images = store.load(layout, &options).unwrap();
    let mounted = mount(&images[0]);
    let ours = facts::read(Path::new(&format!("/proc/self/fd/{}", mounted.as_raw_fd())));
    let mut all = Vec::new();
    for (tool, theirs) in [
        ("umoci", umoci(layout, scratch)),
        ("podman", podman(layout, scratch)),
    ] {
        assert!(theirs.len() > 30, "{tool} has unpacked nothing");
        let found = facts::differences(&ours, &theirs);
        let found = found
            .into_iter()
            .filter(|(path, what)| !is_known(tool, path, what));
        all.extend(found.map(|(path, what)| format!("{tool}: {}: {what}", path.display())));
    }
    let shown = all.iter().take(40).cloned().collect::<Vec<_>>().join("\n");
    assert!(
        all.is_empty(),
        "{}: {} differences\n{shown}",
        layout.display(),
        all.len()
    );
}

/// Differences that are known, and why they are right.
fn is_known(tool: &str, path: &Path, what: &str) -> bool {
    let is_root_time = path.as_os_str().is_empty() && what.starts_with("mtime");
    // podman makes the root directory itself and leaves its time as it happens to be.
    let podmans_root = tool == "podman" && is_root_time;
    // podman copies a link to which a hard link is made.
    let podmans_links = tool == "podman"
        && what.starts_with("same file as")
        && path
            .file_name()
            .is_some_and(|name| name == "link" || name == "linked-link");
    podmans_root || podmans_links
}

/// The image as a container sees it, in a mount that no namespace has.
fn mount(image: &Image) -> OwnedFd {
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    // One by one: a parameter has at most 255 bytes (fsconfig(2)).
    for layer in image.layers.iter().rev() {
        rustix::mount::fsconfig_set_string(&fs, "lowerdir+", layer).unwrap();
    }
    rustix::mount::fsconfig_create(&fs).unwrap();
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    rustix::mount::fsmount(&fs, flags, MountAttrFlags::empty()).unwrap()
}

fn umoci(layout: &Path, scratch: &Path) -> Tree {
    let bundle = scratch.join("bundle");
    let image = format!("{}:latest", layout.display());
    support::run(
        "umoci",
        &["unpack", "--image", &image, bundle.to_str().unwrap()],
    )
    .expect("umoci is needed: apt-get install umoci");
    facts::read(&bundle.join("rootfs"))
}

/// Podman with storage of its own, of the kind that needs no mounts. Skopeo fills it, with podman's library: podman
/// itself wants a layout whose path is a name of an image.
fn podman(layout: &Path, scratch: &Path) -> Tree {
    let tmp = scratch.join("tmp").display().to_string();
    let (root, runroot) = containers_storage(layout, scratch, "vfs");
    let mounted = unshared(&[
        "podman",
        "--root",
        root.to_str().unwrap(),
        "--runroot",
        runroot.to_str().unwrap(),
        "--tmpdir",
        &tmp,
        "--storage-driver=vfs",
        "--cgroup-manager=cgroupfs",
        "image",
        "mount",
        COMPARED,
    ]);
    facts::read(Path::new(mounted.trim()))
}

/// What the image is called in podman's storage.
const COMPARED: &str = "localhost/compared:1";

/// Fills a storage of podman's by its own library. Gives its directory, and that of its state.
fn containers_storage(layout: &Path, scratch: &Path, driver: &str) -> (PathBuf, PathBuf) {
    let (root, runroot) = (scratch.join("storage"), scratch.join("run"));
    let storage = format!("[{driver}@{}+{}]", root.display(), runroot.display());
    unshared(&[
        "skopeo",
        "--insecure-policy",
        "copy",
        "--quiet",
        &format!("oci:{}:latest", layout.display()),
        &format!("containers-storage:{storage}{COMPARED}"),
    ]);
    (root, runroot)
}

/// Runs a program in a mount namespace of its own; gives its output.
fn unshared(arguments: &[&str]) -> String {
    let mut all = vec!["--mount", "--propagation", "private"];
    all.extend(arguments);
    support::run("unshare", &all).expect("unshare is needed: apt-get install util-linux")
}
