//! What only root can unpack: owners, devices, capabilities, whiteouts; seen through a real overlay mount.
//!
//! The overlay is mounted detached (fsmount(2)): it appears in no mount namespace, and ends with its descriptor.
#![cfg(feature = "privileged-tests")]
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use oci_spec::image::ConfigBuilder;
use podling_images::{FileSource, Image, ImageFile, ImageStore, LoadOptions};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use support::test_archive::{Tar, TestImage};
use tar::EntryType;

fn load(store: &ImageStore, tars: Vec<Vec<u8>>) -> Image {
    let dir = tempfile::tempdir().unwrap();
    TestImage::new(tars).write_layout(dir.path(), "host.example/app:1");
    store
        .load(dir.path(), &LoadOptions::default())
        .unwrap()
        .remove(0)
}

fn store() -> (tempfile::TempDir, ImageStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    (dir, store)
}

/// The image as a container sees it.
fn mount(image: &Image) -> OwnedFd {
    mount_with(image, MountAttrFlags::empty())
}

fn mount_with(image: &Image, attributes: MountAttrFlags) -> OwnedFd {
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    let layers: Vec<_> = image
        .layers
        .iter()
        .rev()
        .map(|l| l.display().to_string())
        .collect();
    rustix::mount::fsconfig_set_string(&fs, "lowerdir", layers.join(":")).unwrap();
    rustix::mount::fsconfig_create(&fs).unwrap();
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    rustix::mount::fsmount(&fs, flags, attributes).unwrap()
}

fn names(root: &OwnedFd, path: &str) -> Vec<String> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(root, path, flags, Mode::empty()).unwrap();
    let mut names: Vec<_> = rustix::fs::Dir::read_from(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name != "." && name != "..")
        .collect();
    names.sort();
    names
}

fn read(root: &OwnedFd, path: &str) -> String {
    let fd = rustix::fs::openat(root, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
    let mut text = String::new();
    File::from(fd.unwrap()).read_to_string(&mut text).unwrap();
    text
}

#[test]
fn whiteouts_and_opaque_directories_hide_what_is_below() {
    let (_dir, store) = store();
    let image = load(
        &store,
        vec![
            Tar::new()
                .file("kept", b"kept")
                .file("removed", b"x")
                .file("opaque/low", b"x")
                .file("merged/low", b"low")
                .file("replaced/low", b"x")
                .file("etc/passwd", b"low:x:1:1::/low:\n")
                .file("etc/group", b"low:x:1:\n")
                .finish(),
            Tar::new()
                .file(".wh.removed", b"")
                .file("opaque/.wh..wh..opq", b"")
                .file("opaque/high", b"x")
                .file("merged/high", b"high")
                // The whiteout and the new directory stand in either order.
                .file(".wh.replaced", b"")
                .file("replaced/high", b"x")
                .file("etc/.wh.passwd", b"")
                .finish(),
        ],
    );
    let root = mount(&image);
    assert_eq!(
        names(&root, "."),
        ["etc", "kept", "merged", "opaque", "replaced"]
    );
    assert_eq!(names(&root, "opaque"), ["high"]);
    assert_eq!(names(&root, "merged"), ["high", "low"]);
    assert_eq!(names(&root, "replaced"), ["high"]);
    assert_eq!(read(&root, "merged/low"), "low");
    // Users are looked up as the mount shows the files.
    assert!(image.user("low").is_err());
    assert_eq!(image.user("9:low").unwrap().gid, 1);
}

#[test]
fn an_opaque_root_drops_the_layers_below() {
    let (_dir, store) = store();
    let image = load(
        &store,
        vec![
            Tar::new().file("low", b"x").finish(),
            Tar::new()
                .file(".wh..wh..opq", b"")
                .file("high", b"x")
                .finish(),
        ],
    );
    assert_eq!(image.layers.len(), 1);
    assert!(image.layers[0].join("high").exists());
}

#[test]
fn owners_devices_set_user_id_and_capabilities_are_kept() {
    // cap_net_bind_service=ep, as setcap(8) writes it (capability.h, VFS_CAP_REVISION_2).
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let (_dir, store) = store();
    let tar = Tar::new()
        .owned_by(1234, 5678)
        .dir("home")
        .entry("home/su", EntryType::Regular, 0o6755, "", b"program")
        .pax(&[("SCHILY.xattr.security.capability", &capability)])
        .file("home/server", b"program")
        .symlink("home/link", "/nowhere")
        .device("null", EntryType::Char, 1, 3)
        .device("loop", EntryType::Block, 7, 0)
        .entry("fifo", EntryType::Fifo, 0o640, "", b"")
        .finish();
    let image = load(&store, vec![tar]);
    let layer = &image.layers[0];
    let stat = |name: &str| std::fs::symlink_metadata(layer.join(name)).unwrap();
    for name in ["home", "home/su", "home/link", "null", "fifo"] {
        assert_eq!((stat(name).uid(), stat(name).gid()), (1234, 5678), "{name}");
        assert_eq!(stat(name).mtime(), 1_000_000_000, "{name}");
    }
    assert_eq!(stat("home/su").mode() & 0o7777, 0o6755);
    assert_eq!(stat("null").mode(), 0o020660);
    assert_eq!(stat("null").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(stat("loop").mode(), 0o060660);
    let mut value = [0; 32];
    let path = layer.join("home/server");
    let len = rustix::fs::getxattr(path, "security.capability", &mut value).unwrap();
    assert_eq!(value[..len], capability);
}

const NODEV_CHILD: &str = "PODLING_TEST_NODEV_IN";

/// The store may lie on a file system that is mounted `nodev`. A layer's device node is made there all the same, and
/// means nothing there; whether a container may open it is decided by the container's own mount (and device cgroup).
///
/// In a mount namespace of its own: this test program, started again with a variable that tells it what to do.
#[test]
fn a_device_node_under_nodev_is_made_and_opens_only_as_the_containers_mount_says() {
    if let Some(dir) = std::env::var_os(NODEV_CHILD) {
        return under_nodev(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let script = r#"mount -t tmpfs -o nodev tmpfs "$1" && shift && exec "$@""#;
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .args(["sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "a_device_node_under_nodev_is_made_and_opens_only_as_the_containers_mount_says",
        ])
        .env(NODEV_CHILD, dir.path())
        .status()
        .expect("unshare is needed: apt-get install util-linux");
    assert!(status.success());
}

fn under_nodev(dir: &Path) {
    let store = ImageStore::open(&dir.join("images")).unwrap();
    let tar = Tar::new()
        .owned_by(0, 0)
        .device("null", EntryType::Char, 1, 3)
        .device("disk", EntryType::Block, 7, 0);
    // An overlay of lower layers alone has two at least.
    let other = Tar::new().owned_by(0, 0).file("file", b"");
    let image = load(&store, vec![tar.finish(), other.finish()]);
    let node = image.layers[0].join("null");
    let stat = std::fs::symlink_metadata(&node).unwrap();
    assert_eq!(
        (stat.mode() & 0o170_000, stat.rdev()),
        (0o020_000, rustix::fs::makedev(1, 3))
    );
    let refused = File::open(&node).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
    assert_eq!(store.verify().unwrap(), []);
    let open = |attributes| {
        let root = mount_with(&image, attributes);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&root, "null", flags, Mode::empty()).map(drop)
    };
    let nodev = MountAttrFlags::MOUNT_ATTR_NODEV;
    assert_eq!(open(nodev), Err(rustix::io::Errno::ACCESS));
    assert_eq!(open(MountAttrFlags::empty()), Ok(()));
}

#[test]
fn files_in_a_set_group_id_directory_keep_their_group() {
    let (_dir, store) = store();
    let tar = Tar::new()
        .owned_by(0, 50)
        .entry("staff", EntryType::Directory, 0o2775, "", b"")
        .owned_by(0, 0)
        .file("staff/first", b"")
        .dir("other")
        .file("staff/later", b"")
        .symlink("staff/link", "first")
        .dir("staff/dir")
        .file("staff/dir/file", b"")
        .file("staff/implied/file", b"")
        .finish();
    let image = load(&store, vec![tar]);
    let stat = |name: &str| std::fs::symlink_metadata(image.layers[0].join(name)).unwrap();
    assert_eq!(
        (stat("staff").gid(), stat("staff").mode() & 0o7777),
        (50, 0o2775)
    );
    for name in [
        "first",
        "later",
        "link",
        "dir",
        "dir/file",
        "implied",
        "implied/file",
    ] {
        let stat = stat(&format!("staff/{name}"));
        assert_eq!((stat.gid(), stat.mode() & 0o2000), (0, 0), "{name}");
    }
}

#[test]
fn a_very_large_owner_is_kept_and_a_larger_one_is_refused() {
    let (_dir, store) = store();
    let tar = Tar::new()
        .owned_by(4_294_967_294, 4_000_000_000)
        .file("f", b"");
    let image = load(&store, vec![tar.finish()]);
    let stat = std::fs::metadata(image.layers[0].join("f")).unwrap();
    assert_eq!((stat.uid(), stat.gid()), (4_294_967_294, 4_000_000_000));
    for owner in [u64::from(u32::MAX), 1 << 32] {
        let dir = tempfile::tempdir().unwrap();
        let tar = Tar::new().owned_by(owner, 0).file("f", b"").finish();
        TestImage::new(vec![tar]).write_layout(dir.path(), "host.example/app:2");
        assert!(store.load(dir.path(), &LoadOptions::default()).is_err());
    }
}

#[test]
fn directories_without_an_entry_are_as_in_the_layers_below() {
    let (_dir, store) = store();
    let attribute = [("SCHILY.xattr.user.note", &b"kept"[..])];
    let low = Tar::new()
        .owned_by(0, 0)
        .entry("./", EntryType::Directory, 0o751, "", b"")
        .entry("tmp", EntryType::Directory, 0o1777, "", b"")
        .owned_by(65532, 65532)
        .pax(&attribute)
        .entry("home", EntryType::Directory, 0o700, "", b"")
        .entry("opaque", EntryType::Directory, 0o700, "", b"")
        .entry("removed", EntryType::Directory, 0o700, "", b"")
        .entry("replaced", EntryType::Directory, 0o700, "", b"")
        .entry("described", EntryType::Directory, 0o700, "", b"");
    let middle = Tar::new().owned_by(0, 0).file("middle/file", b"");
    let high = Tar::new()
        .owned_by(0, 0)
        .file("tmp/file", b"")
        .file("home/file", b"")
        .file("new/file", b"")
        .file("opaque/file", b"")
        .file("opaque/.wh..wh..opq", b"")
        .file(".wh.removed", b"")
        .file("removed/file", b"")
        .file("replaced/file", b"")
        .file(".wh.replaced", b"")
        .file("described/file", b"")
        .entry("described", EntryType::Directory, 0o711, "", b"");
    let tars = [low, middle, high].map(Tar::finish);
    let image = load(&store, tars.to_vec());
    let top = &image.layers[2];
    let stat = |name: &str| std::fs::symlink_metadata(top.join(name)).unwrap();
    for (name, mode, owner, time) in [
        ("", 0o751, 0, 1_000_000_000),
        ("tmp", 0o1777, 0, 1_000_000_000),
        ("home", 0o700, 65532, 1_000_000_000),
        ("new", 0o755, 0, 0),
        ("opaque", 0o700, 65532, 1_000_000_000),
        ("removed", 0o755, 0, 0),
        ("replaced", 0o755, 0, 0),
        ("described", 0o711, 0, 1_000_000_000),
    ] {
        let found = (
            stat(name).mode() & 0o7777,
            stat(name).uid(),
            stat(name).mtime(),
        );
        assert_eq!(found, (mode, owner, time), "{name}");
    }
    let mut value = [0; 8];
    let len = rustix::fs::getxattr(top.join("home"), "user.note", &mut value).unwrap();
    assert_eq!(value[..len], *b"kept");
    // On other layers it stays as it is: a container may be running on it.
    let other = Tar::new()
        .owned_by(0, 0)
        .entry("tmp", EntryType::Directory, 0o700, "", b"");
    let second = load(&store, vec![other.finish(), tars[2].clone()]);
    assert_eq!(&second.layers[1], top);
    assert_eq!(stat("tmp").mode() & 0o7777, 0o1777);
    assert_eq!(store.verify().unwrap(), []);
}

#[test]
fn an_image_built_from_files_is_reproducible_and_belongs_to_root() {
    let build = || {
        let (dir, store) = store();
        let program = dir.path().join("program");
        std::fs::write(&program, "#!program").unwrap();
        let files = [
            ImageFile {
                path: "/app".into(),
                mode: 0o755,
                source: FileSource::Host(program),
            },
            ImageFile {
                path: "/etc/passwd".into(),
                mode: 0o644,
                source: FileSource::Bytes(b"web:x:33:33::/:\n".to_vec()),
            },
            ImageFile {
                path: "/tmp".into(),
                mode: 0o1777,
                source: FileSource::Directory,
            },
            ImageFile {
                path: "/bin/app".into(),
                mode: 0o777,
                source: FileSource::Symlink("/app".into()),
            },
        ];
        let labels = (0..20).map(|i| (format!("label{i}"), "x".to_owned()));
        let config = ConfigBuilder::default()
            .entrypoint(vec!["/app".to_owned(), "demo".to_owned()])
            .exposed_ports(vec!["8080/tcp".to_owned(), "9090/tcp".to_owned()])
            .env(vec!["A=b".to_owned()])
            .user("web")
            .labels(labels.collect::<std::collections::HashMap<_, _>>())
            .build()
            .unwrap();
        let name = "podling.local/demo:latest".parse().unwrap();
        let image = store.build_from_files(&name, &files, &config).unwrap();
        assert_eq!(store.verify().unwrap(), []);
        (dir, image)
    };
    let (_first_dir, first) = build();
    let (_second_dir, second) = build();
    assert_eq!(first.digest, second.digest);
    let layer = &first.layers[0];
    let app = std::fs::metadata(layer.join("app")).unwrap();
    assert_eq!((app.uid(), app.gid(), app.mode() & 0o7777), (0, 0, 0o755));
    let tmp = std::fs::metadata(layer.join("tmp")).unwrap();
    assert_eq!(tmp.mode() & 0o7777, 0o1777);
    assert_eq!(first.user("web").unwrap().uid, 33);
    let config = first.config.config().as_ref().unwrap();
    assert_eq!(config.entrypoint().as_ref().unwrap()[1], "demo");
}
