use std::os::unix::fs::{MetadataExt, PermissionsExt};

use proptest::prelude::*;
use tar::EntryType;

use super::*;
use crate::test_archive::{Tar, gzip};

pub(super) struct Layer {
    pub(super) dir: tempfile::TempDir,
    pub(super) result: Result<Unpacked, UnpackError>,
}

impl Layer {
    pub(super) fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("root").join(name)
    }

    pub(super) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    pub(super) fn error(&self) -> String {
        let mut text = String::new();
        let mut error: Option<&dyn std::error::Error> = Some(self.result.as_ref().unwrap_err());
        while let Some(e) = error {
            text += &format!("{e}: ");
            error = e.source();
        }
        text
    }

    /// Nothing was made beside the layer's directory, and a file there is as it was.
    fn assert_contained(&self) {
        let mut names: Vec<_> = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["outside", "root"]);
        let outside = self.dir.path().join("outside");
        assert_eq!(std::fs::read_to_string(outside).unwrap(), "untouched");
    }
}

pub(super) fn unpack(tar: Tar) -> Layer {
    unpack_blob(&tar.finish(), &Limits::default())
}

pub(super) fn unpack_blob(blob: &[u8], limits: &Limits) -> Layer {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("root")).unwrap();
    std::fs::write(dir.path().join("outside"), "untouched").unwrap();
    let result = unpack_layer(
        blob,
        blob.len() as u64,
        &dir.path().join("root"),
        (Algorithm::Sha256, Algorithm::Sha256),
        limits,
    );
    let layer = Layer { dir, result };
    layer.assert_contained();
    layer
}

#[test]
fn files_links_modes_and_times_are_as_in_the_archive() {
    let long = format!(
        "{}/file",
        "directory-with-a-long-name/"
            .repeat(8)
            .trim_end_matches('/')
    );
    let tar = Tar::new()
        .entry("./", EntryType::Directory, 0o711, "", b"")
        .entry("bin/", EntryType::Directory, 0o555, "", b"")
        .entry("bin/su", EntryType::Regular, 0o4755, "", b"program")
        .hard_link("bin/same", "bin/su")
        .symlink("bin/link", "/etc/shadow")
        .entry("fifo", EntryType::Fifo, 0o620, "", b"")
        .file("made/without/parents", b"x")
        .file(&long, b"long");
    let archive = tar.finish();
    let layer = unpack_blob(&gzip(&archive), &Limits::default());
    let unpacked = layer.result.as_ref().unwrap();
    assert!(unpacked.diff_id.matches(&archive));
    assert!(unpacked.blob.matches(&gzip(&archive)));
    assert_eq!(unpacked.file_bytes, 12);
    let su = std::fs::metadata(layer.path("bin/su")).unwrap();
    assert_eq!(su.mode() & 0o7777, 0o4755);
    assert_eq!((su.nlink(), su.mtime()), (2, 1_000_000_000));
    let bin = std::fs::metadata(layer.path("bin")).unwrap();
    assert_eq!((bin.mode() & 0o7777, bin.mtime()), (0o555, 1_000_000_000));
    assert_eq!(
        std::fs::metadata(layer.path("")).unwrap().mode() & 0o7777,
        0o711
    );
    assert_eq!(
        std::fs::metadata(layer.path("fifo")).unwrap().mode() & 0o7777,
        0o620
    );
    assert_eq!(
        std::fs::metadata(layer.path("made/without"))
            .unwrap()
            .mode()
            & 0o7777,
        0o755
    );
    assert_eq!(layer.read("made/without/parents"), "x");
    assert_eq!(layer.read(&long), "long");
    let link = std::fs::read_link(layer.path("bin/link")).unwrap();
    assert_eq!(link, Path::new("/etc/shadow"));
    // So that the temporary directory can be removed without root.
    std::fs::set_permissions(layer.path("bin"), PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn a_directory_that_is_entered_again_keeps_its_time_and_mode() {
    let layer = unpack(
        Tar::new()
            .entry("a", EntryType::Directory, 0o555, "", b"")
            .file("a/first", b"")
            .file("b/other", b"")
            .file("a/later", b"")
            .entry("a/sub", EntryType::Directory, 0o500, "", b"")
            .file("b/again", b"")
            .file("a/sub/deep", b"")
            .symlink("link", "a/sub")
            .file("link/through", b""),
    );
    layer.result.as_ref().unwrap();
    for (name, mode) in [("a", 0o555), ("a/sub", 0o500)] {
        let stat = std::fs::metadata(layer.path(name)).unwrap();
        assert_eq!((stat.mode() & 0o7777, stat.mtime()), (mode, 1_000_000_000));
        assert_eq!(stat.mtime_nsec(), 0);
    }
    // What no entry describes is the same each time, too.
    assert_eq!(std::fs::metadata(layer.path("b")).unwrap().mtime(), 0);
    assert_eq!(std::fs::metadata(layer.path("")).unwrap().mtime(), 0);
    for name in ["a", "a/sub"] {
        std::fs::set_permissions(layer.path(name), PermissionsExt::from_mode(0o755)).unwrap();
    }
}

#[test]
fn times_are_exact_to_the_nanosecond() {
    let time = [("mtime", &b"1234567890.123456789"[..])];
    let layer = unpack(
        Tar::new()
            .pax(&time)
            .dir("d")
            .pax(&time)
            .file("d/f", b"")
            .pax(&time)
            .symlink("d/s", "f")
            .pax(&[("mtime", b"-1.5")])
            .file("d/before", b""),
    );
    layer.result.as_ref().unwrap();
    for name in ["d", "d/f", "d/s"] {
        let stat = std::fs::symlink_metadata(layer.path(name)).unwrap();
        let expected = (1_234_567_890, 123_456_789);
        assert_eq!((stat.mtime(), stat.mtime_nsec()), expected, "{name}");
    }
    let before = std::fs::metadata(layer.path("d/before")).unwrap();
    assert_eq!((before.mtime(), before.mtime_nsec()), (-2, 500_000_000));
}

#[test]
fn holes_stay_holes() {
    let layer = unpack(
        Tar::new()
            .pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"holes"),
                ("GNU.sparse.realsize", b"10000000"),
            ])
            .file("GNUSparseFile.1/holes", &{
                let mut content = b"2\n0\n3\n5000000\n3\n".to_vec();
                content.resize(512, 0);
                content.extend(b"abcxyz");
                content
            }),
    );
    layer.result.as_ref().unwrap();
    let stat = std::fs::metadata(layer.path("holes")).unwrap();
    assert_eq!(stat.len(), 10_000_000);
    assert!(stat.blocks() * 512 < 1_000_000, "{} blocks", stat.blocks());
    let content = std::fs::read(layer.path("holes")).unwrap();
    assert_eq!(
        (&content[..3], &content[5_000_000..5_000_003]),
        (&b"abc"[..], &b"xyz"[..])
    );
    assert_eq!(content.iter().filter(|b| **b != 0).count(), 6);
}

#[test]
fn names_need_not_be_text() {
    use std::os::unix::ffi::OsStrExt;
    let name = b"\xff\xfe caf\xe9";
    let layer = unpack(Tar::new().pax(&[("path", name)]).file("x", b"content"));
    layer.result.as_ref().unwrap();
    let path = layer.path("").join(std::ffi::OsStr::from_bytes(name));
    assert_eq!(std::fs::read(path).unwrap(), b"content");
}

#[test]
fn a_directory_given_twice_has_the_attributes_of_the_second_entry() {
    let attribute = |name: &str| rustix::fs::getxattr(name, "user.a", &mut [0_u8; 8]);
    let layer = unpack(
        Tar::new()
            .pax(&[("SCHILY.xattr.user.a", b"first")])
            .dir("d")
            .dir("d"),
    );
    layer.result.as_ref().unwrap();
    assert!(attribute(layer.path("d").to_str().unwrap()).is_err());
    let layer = unpack(
        Tar::new()
            .dir("d")
            .pax(&[("SCHILY.xattr.user.a", b"second")])
            .dir("d"),
    );
    assert_eq!(attribute(layer.path("d").to_str().unwrap()), Ok(6));
}

#[test]
fn files_inherit_no_default_acl_from_the_archive() {
    // user::rwx, user:7:rwx, group::r-x, mask::rwx, other::r-x (linux/posix_acl_xattr.h, version 2).
    let mut acl = 2_u32.to_le_bytes().to_vec();
    let nobody = u32::MAX;
    for (tag, permissions, id) in [
        (1_u16, 7_u16, nobody),
        (2, 7, 7),
        (4, 5, nobody),
        (16, 7, nobody),
        (32, 5, nobody),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    let layer = unpack(
        Tar::new()
            .pax(&[("SCHILY.xattr.system.posix_acl_default", &acl)])
            .dir("d")
            .file("d/first", b"")
            .dir("other")
            .file("d/later", b""),
    );
    layer.result.as_ref().unwrap();
    let mut value = [0; 128];
    let mut get = |name: &str, which: &str| {
        let len = rustix::fs::getxattr(layer.path(name), which, &mut value)?;
        Ok::<_, rustix::io::Errno>(value[..len].to_vec())
    };
    assert_eq!(get("d", "system.posix_acl_default"), Ok(acl));
    for name in ["d/first", "d/later"] {
        assert!(get(name, "system.posix_acl_access").is_err(), "{name}");
    }
}

#[test]
fn writing_to_a_hard_linked_name_replaces_it() {
    let layer = unpack(
        Tar::new()
            .file("a", b"first")
            .hard_link("b", "a")
            .file("b", b"second"),
    );
    assert_eq!(layer.result.as_ref().unwrap().file_bytes, 11);
    assert_eq!(layer.read("a"), "first");
    assert_eq!(layer.read("b"), "second");
}

#[test]
fn a_hard_link_to_a_symlink_links_the_link() {
    let layer = unpack(Tar::new().symlink("s", "../outside").hard_link("h", "s"));
    layer.result.as_ref().unwrap();
    let target = std::fs::read_link(layer.path("h")).unwrap();
    assert_eq!(target, Path::new("../outside"));
}

#[test]
fn duplicates_replace_what_came_before() {
    let layer = unpack(
        Tar::new()
            .file("a", b"one")
            .file("a", b"two!")
            .dir("d")
            .file("d/kept", b"kept")
            .entry("d", EntryType::Directory, 0o700, "", b"")
            .dir("gone")
            .file("gone/file", b"x")
            .file("gone", b"now a file"),
    );
    assert_eq!(layer.result.as_ref().unwrap().file_bytes, 18);
    assert_eq!(layer.read("a"), "two!");
    assert_eq!(layer.read("d/kept"), "kept");
    assert_eq!(
        std::fs::metadata(layer.path("d")).unwrap().mode() & 0o7777,
        0o700
    );
    assert_eq!(layer.read("gone"), "now a file");
}

#[test]
fn whiteouts_become_those_of_overlayfs() {
    let layer = unpack(
        Tar::new()
            .file("etc/.wh.removed", b"")
            .file(".wh..wh.plnk", b"")
            .file("etc/kept", b"x")
            .file("etc/.wh.kept", b""),
    );
    layer.result.as_ref().unwrap();
    let removed = std::fs::symlink_metadata(layer.path("etc/removed")).unwrap();
    assert_eq!((removed.mode() & 0o170000, removed.rdev()), (0o020000, 0));
    assert!(!layer.path(".wh..wh.plnk").exists());
    // A whiteout hides what is below, not what its own layer has.
    assert_eq!(layer.read("etc/kept"), "x");
}

#[test]
fn a_file_after_its_whiteout_is_there() {
    let layer = unpack(Tar::new().file(".wh.a", b"").file("a", b"new"));
    layer.result.as_ref().unwrap();
    assert_eq!(layer.read("a"), "new");
}

#[test]
fn a_whiteout_that_names_no_file_is_refused() {
    for name in [".wh.", ".wh..", ".wh...", "a/.wh..."] {
        let layer = unpack(Tar::new().file(name, b""));
        assert!(layer.error().contains("must name a file"), "{name}");
    }
}

#[test]
fn an_opaque_root_is_reported() {
    let layer = unpack(Tar::new().file(".wh..wh..opq", b""));
    assert!(layer.result.unwrap().root_is_opaque);
}

#[test]
fn the_root_must_be_a_directory() {
    for tar in [Tar::new().file("./", b""), Tar::new().symlink("/", "/etc")] {
        let layer = unpack(tar);
        if layer.result.is_err() {
            assert!(layer.error().contains("must be a directory"));
        }
    }
    let layer = unpack(Tar::new().symlink(".", "/etc"));
    assert!(layer.error().contains("must be a directory"));
}

#[test]
fn a_device_0_0_is_refused_because_overlayfs_reads_it_as_a_whiteout() {
    let layer = unpack(Tar::new().device("null", EntryType::Char, 0, 0));
    assert!(layer.error().contains("whiteout"), "{}", layer.error());
}

#[test]
fn a_size_that_lies_is_an_error() {
    let more = Tar::new().entry_of_size("f", EntryType::Regular, 0o644, "", b"short", 1 << 20);
    assert!(unpack(more).error().contains("ends in the middle"));
    let negative = {
        let mut tar = Tar::new().file("f", b"");
        tar.bytes[124..136].copy_from_slice(&[0xff; 12]);
        let header = tar::Header::from_byte_slice(&tar.bytes[..512]).clone();
        let mut header = header;
        header.set_cksum();
        tar.bytes[..512].copy_from_slice(header.as_bytes());
        tar
    };
    assert!(unpack(negative).error().contains("negative"));
}

#[test]
fn too_many_entries_are_refused() {
    let limits = Limits {
        entries: 2,
        ..Limits::default()
    };
    let tar = Tar::new().dir("a").dir("b").dir("c").finish();
    let layer = unpack_blob(&tar, &limits);
    assert!(layer.error().contains("more than 2 entries"));
}

#[test]
fn a_decompression_bomb_is_stopped_at_the_limit() {
    let bomb = gzip(&Tar::new().file("zeros", &vec![0; 8 << 20]).finish());
    assert!(bomb.len() < 100_000);
    let by_ratio = Limits {
        ratio_free_bytes: 1 << 20,
        ratio: 10,
        ..Limits::default()
    };
    let by_size = Limits {
        layer_bytes: 1 << 20,
        ..Limits::default()
    };
    for limits in [by_ratio, by_size] {
        let layer = unpack_blob(&bomb, &limits);
        assert!(layer.error().contains("more than"), "{}", layer.error());
    }
}

#[test]
fn a_sparse_file_of_a_petabyte_is_refused() {
    let mut header = tar::Header::new_gnu();
    header.set_path("sparse").unwrap();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_size(0);
    header.as_gnu_mut().unwrap().realsize = *b"77777777777\0";
    header.set_cksum();
    let limits = Limits {
        layer_bytes: 1 << 20,
        ..Limits::default()
    };
    let layer = unpack_blob(header.as_bytes(), &limits);
    assert!(
        layer.error().contains("bytes of files"),
        "{}",
        layer.error()
    );
}

#[test]
fn a_name_that_is_too_long_or_too_deep_is_refused() {
    let long = format!("{}x", "dddd/".repeat(1000));
    assert!(unpack(Tar::new().file(&long, b"")).error().contains("4095"));
    let deep = format!("{}x", "d/".repeat(300));
    assert!(unpack(Tar::new().file(&deep, b"")).error().contains("256"));
    let component = "n".repeat(256);
    assert!(unpack(Tar::new().file(&component, b"")).result.is_err());
}

#[test]
fn overlay_attributes_in_the_archive_are_left_out() {
    let layer = unpack(
        Tar::new()
            .pax(&[
                ("SCHILY.xattr.trusted.overlay.redirect", b"/secret"),
                ("SCHILY.xattr.user.overlay.opaque", b"y"),
                ("SCHILY.xattr.security.selinux", b"label"),
            ])
            .dir("d"),
    );
    layer.result.as_ref().unwrap();
    let mut names = [0_u8; 256];
    let len = rustix::fs::listxattr(layer.path("d"), &mut names).unwrap();
    assert!(!String::from_utf8_lossy(&names[..len]).contains("overlay"));
}

#[test]
fn an_archive_that_is_none_is_an_error() {
    assert!(
        unpack_blob(&[b'x'; 2000], &Limits::default())
            .result
            .is_err()
    );
    assert!(
        unpack_blob(&gzip(b"short"), &Limits::default())
            .result
            .is_err()
    );
    assert!(
        unpack_blob(b"BZh9", &Limits::default())
            .error()
            .contains("bzip2")
    );
}

fn any_entry() -> impl Strategy<Value = (u8, String, String)> {
    let name = "(\\.\\./|/|\\./|\\.wh\\.|a|b|c/|link/){1,4}[abc]?";
    (0_u8..9, name, name)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever the entries, nothing is made or changed beside the layer's directory.
    #[test]
    fn any_mixture_of_entries_stays_in_the_layer(
        entries in proptest::collection::vec(any_entry(), 1..12)
    ) {
        let mut tar = Tar::new();
        for (kind, name, link) in entries {
            tar = match kind {
                0 | 1 => tar.file(&name, b"content"),
                2 => tar.dir(&name),
                3 | 4 => tar.symlink(&name, &link),
                5 | 6 => tar.hard_link(&name, &link),
                7 => tar.symlink("link", &link),
                _ => tar.entry(&name, EntryType::Fifo, 0o600, "", b""),
            };
        }
        drop(unpack(tar));
    }

    /// Any damage to a compressed layer gives a directory or an error.
    #[test]
    fn damaged_layers_end_in_peace(
        damage in proptest::collection::vec((0_usize..4096, any::<u8>()), 1..10),
        compress in any::<bool>(),
    ) {
        let mut blob = Tar::new().dir("d").file("d/f", b"hello").symlink("s", "d").finish();
        if compress {
            blob = gzip(&blob);
        }
        for (at, byte) in damage {
            let at = at % blob.len();
            blob[at] = byte;
        }
        // Damage may name another owner, which needs root: that is an error too.
        drop(unpack_blob(&blob, &Limits::default()));
    }
}
