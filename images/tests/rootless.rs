//! Layers in a user namespace, as rootless podman and `unshare --user` give one to an ordinary user.
//!
//! The process in the namespace is this test program, started again with a variable that tells it what to do.
#![cfg(feature = "privileged-tests")]
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use podling_images::{ImageStore, LoadOptions};
use support::test_archive::{Tar, TestImage};
use tar::EntryType;

const CHILD: &str = "PODLING_TEST_ROOTLESS_IN";

#[test]
fn a_user_namespace_maps_owners_and_leaves_devices_out() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return load(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let layer = Tar::new()
        .owned_by(0, 0)
        .dir("d")
        .file("d/.wh..wh..opq", b"")
        .file("d/.wh.removed", b"")
        .pax(&[("SCHILY.xattr.trusted.note", b"nobody sees it")])
        .entry("d/su", EntryType::Regular, 0o4755, "", b"program")
        .device("d/null", EntryType::Char, 1, 3)
        .entry("d/pipe", EntryType::Fifo, 0o600, "", b"");
    let image = TestImage::new(vec![layer.finish()]);
    image.write_layout(&dir.path().join("mapped"), "host.example/app:1");
    // The namespace has one owner only.
    let foreign = Tar::new().owned_by(7, 7).file("f", b"").finish();
    let image = TestImage::new(vec![foreign]);
    image.write_layout(&dir.path().join("foreign"), "host.example/app:2");
    let status = Command::new("unshare")
        .args(["--user", "--map-root-user"])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_user_namespace_maps_owners_and_leaves_devices_out",
        ])
        .env(CHILD, dir.path())
        .status()
        .expect("unshare is needed: apt-get install util-linux");
    assert!(status.success());
}

fn load(dir: &Path) {
    let store = ImageStore::open(&dir.join("images")).unwrap();
    let options = LoadOptions::default();
    let images = store.load(&dir.join("mapped"), &options).unwrap();
    let path = |name: &str| images[0].layers[0].join(name);
    let su = std::fs::metadata(path("d/su")).unwrap();
    assert_eq!((su.uid(), su.mode() & 0o7777), (0, 0o4755));
    let removed = std::fs::symlink_metadata(path("d/removed")).unwrap();
    assert!(removed.file_type().is_char_device() && removed.rdev() == 0);
    let pipe = std::fs::symlink_metadata(path("d/pipe")).unwrap();
    assert!(pipe.file_type().is_fifo());
    assert!(!path("d/null").exists());
    let mut value = [0; 8];
    let len = rustix::fs::getxattr(path("d"), "user.overlay.opaque", &mut value).unwrap();
    assert_eq!(value[..len], *b"y");
    let error = store.load(&dir.join("foreign"), &options).unwrap_err();
    let mut text = String::new();
    let mut next: Option<&dyn std::error::Error> = Some(&error);
    while let Some(error) = next {
        text += &error.to_string();
        next = error.source();
    }
    assert!(text.contains("subuid(5)"), "{text}");
}

const ORDINARY: &str = "PODLING_TEST_ORDINARY_USER_IN";
const OUTSIDE: &str = "PODLING_TEST_OUTSIDE_THE_NAMESPACE";

/// An ordinary user, with the ids that `/etc/subuid` gives: owners are theirs, as with rootless podman.
#[test]
fn an_ordinary_user_unpacks_the_files_of_many_owners_with_the_ids_of_subuid() {
    if let Some(dir) = std::env::var_os(ORDINARY) {
        let dir = Path::new(&dir);
        return match std::env::var_os(OUTSIDE) {
            Some(_) => remove_owned(dir),
            None => load_owned(dir),
        };
    }
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(dir.path(), Some(65534), Some(65534)).unwrap();
    let layer = Tar::new()
        .owned_by(0, 0)
        .file("root", b"")
        .owned_by(33, 44)
        .dir("private")
        .file("private/page", b"")
        .file("www", b"")
        .entry("su", EntryType::Regular, 0o6755, "", b"program");
    let image = TestImage::new(vec![layer.finish()]);
    image.write_layout(&dir.path().join("owned"), "host.example/app:1");
    std::fs::write(dir.path().join("ids"), "65534:100000:65536\n").unwrap();
    std::fs::write(dir.path().join("program"), "").unwrap();
    as_ordinary_user(dir.path(), Where::InNamespace);
    // As the machine sees it.
    let store = dir.path().join("images/layers/sha256");
    let layer = std::fs::read_dir(store).unwrap().next().unwrap().unwrap();
    let owner = |name: &str| {
        let metadata = std::fs::symlink_metadata(layer.path().join("fs").join(name)).unwrap();
        (metadata.uid(), metadata.gid())
    };
    assert_eq!(owner("root"), (65534, 65534));
    assert_eq!(owner("www"), (100_032, 100_043));
    // Outside of the namespace the same user may not remove what others own: said, and the store still opens.
    as_ordinary_user(dir.path(), Where::Outside);
}

enum Where {
    InNamespace,
    Outside,
}

/// Starts this test again as an ordinary user.
fn as_ordinary_user(dir: &Path, place: Where) {
    // The machine's own files stay as they are: all is mounted in a namespace of its own. There the program is where
    // anybody may reach it.
    let script = r#"set -e
        mount --make-rprivate /
        mount --bind "$1/ids" /etc/subuid
        mount --bind "$1/ids" /etc/subgid
        mount --bind "$2" "$1/program"
        exec setpriv --reuid 65534 --regid 65534 --clear-groups $4 "$1/program" --exact "$3""#;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(dir)
        .arg(std::env::current_exe().unwrap())
        .arg("an_ordinary_user_unpacks_the_files_of_many_owners_with_the_ids_of_subuid")
        .env(ORDINARY, dir);
    match place {
        Where::InNamespace => command.arg("unshare --map-root-user --map-auto"),
        Where::Outside => command.env(OUTSIDE, "1"),
    };
    let status = command
        .status()
        .expect("unshare is needed: apt-get install util-linux");
    assert!(status.success());
}

fn load_owned(dir: &Path) {
    let store = ImageStore::open(&dir.join("images")).unwrap();
    let options = LoadOptions::default();
    let images = store.load(&dir.join("owned"), &options).unwrap();
    let su = std::fs::metadata(images[0].layers[0].join("su")).unwrap();
    assert_eq!((su.uid(), su.gid(), su.mode() & 0o7777), (33, 44, 0o6755));
    assert_eq!(store.verify().unwrap(), []);
}

fn remove_owned(dir: &Path) {
    let store = ImageStore::open(&dir.join("images")).unwrap();
    store
        .remove(&"host.example/app:1".parse().unwrap())
        .unwrap();
    let error = store.gc(&HashSet::new()).unwrap_err().to_string();
    assert!(
        error.contains("files of other users") && error.contains("--map-auto"),
        "{error}"
    );
    drop(store);
    let store = ImageStore::open(&dir.join("images")).unwrap();
    assert_eq!(store.gc(&HashSet::new()).unwrap().layers, 0);
}
