//! Layers that mean harm, each attack by its name. More stand beside what they attack, in tests.rs.

use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::atomic::{AtomicBool, Ordering};

use tar::EntryType;

use super::tests::{Layer, unpack, unpack_blob};
use super::*;
use crate::test_archive::{Tar, gzip};

const ENDLESS_BYTES: usize = 64 << 20;

/// An archive that goes on far beyond any limit of these tests: the same blocks again and again. (Of a blob that makes no
/// sense the rest is read for its digest, so that it must end some time.)
struct Endless {
    blocks: Vec<u8>,
    position: usize,
    given: usize,
}

impl Endless {
    fn new(tar: Tar) -> Self {
        Self {
            blocks: tar.bytes,
            position: 0,
            given: 0,
        }
    }
}

impl Read for &mut Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = &self.blocks[self.position..];
        let n = rest.len().min(buffer.len()).min(ENDLESS_BYTES - self.given);
        buffer[..n].copy_from_slice(&rest[..n]);
        self.position = (self.position + n) % self.blocks.len();
        self.given += n;
        Ok(n)
    }
}

/// Unpacks what never ends; gives the error and how much was read.
fn unpack_endless(tar: Tar, limits: &Limits) -> (String, usize) {
    let dir = tempfile::tempdir().unwrap();
    let mut endless = Endless::new(tar);
    let algorithms = (Algorithm::Sha256, Algorithm::Sha256);
    let result = unpack_layer(&mut endless, u64::MAX, dir.path(), algorithms, limits);
    (result.unwrap_err().to_string(), endless.given)
}

#[test]
fn ten_million_tiny_entries_end_at_the_limit() {
    let limits = Limits {
        entries: 20_000,
        ..Limits::default()
    };
    let (error, read) = unpack_endless(Tar::new().file(".wh..wh.tiny", b""), &limits);
    assert!(error.contains("more than 20000 entries"), "{error}");
    // Not read further than the pieces that were on their way.
    assert!(read < 20_000 * 512 + (40 << 20), "{read}");
}

#[test]
fn directories_without_entries_count_against_the_limit() {
    let limits = Limits {
        entries: 1000,
        ..Limits::default()
    };
    let mut tar = Tar::new();
    for i in 0..10 {
        tar = tar.file(&format!("{i}/{}x", "d/".repeat(200)), b"");
    }
    let layer = unpack_blob(&tar.finish(), &limits);
    assert!(
        layer.error().contains("more than 1000 directories"),
        "{}",
        layer.error()
    );
}

#[test]
fn an_endless_file_ends_at_the_limit() {
    let limits = Limits {
        layer_bytes: 4 << 20,
        ..Limits::default()
    };
    // The size is the largest that the field holds.
    let tar = Tar::new().entry_of_size("f", EntryType::Regular, 0o644, "", b"", 0o777_7777_7777);
    let (error, _) = unpack_endless(tar, &limits);
    assert!(error.contains("more than 4194304"), "{error}");
}

#[test]
fn endless_headers_without_an_entry_end_at_the_limit() {
    let limits = Limits {
        layer_bytes: 4 << 20,
        ..Limits::default()
    };
    let long_name = Tar::new().entry("l", EntryType::GNULongName, 0, "", &[b'n'; 5000]);
    for tar in [long_name, Tar::new().pax(&[("comment", b"x")])] {
        let (error, _) = unpack_endless(tar, &limits);
        assert!(error.contains("cannot read the archive"), "{error}");
    }
}

#[test]
fn concatenated_gzip_members_are_one_archive() {
    let tar = Tar::new().file("a", b"one").file("b", b"two").finish();
    let (first, second) = tar.split_at(700);
    let layer = unpack_blob(
        &[gzip(first), gzip(b""), gzip(second)].concat(),
        &Limits::default(),
    );
    assert!(layer.result.as_ref().unwrap().diff_id.matches(&tar));
    assert_eq!(
        (layer.read("a"), layer.read("b")),
        ("one".to_owned(), "two".to_owned())
    );
}

#[test]
fn a_bomb_in_a_later_gzip_member_is_stopped() {
    let tar = Tar::new().file("a", b"one").finish();
    let bomb = [gzip(&tar), gzip(&vec![0; 8 << 20])].concat();
    let limits = Limits {
        ratio: 10,
        ratio_free_bytes: 1 << 20,
        ..Limits::default()
    };
    let layer = unpack_blob(&bomb, &limits);
    assert!(
        layer.error().contains("raise the limit"),
        "{}",
        layer.error()
    );
}

#[test]
fn garbage_after_the_compressed_layer_is_an_error() {
    let tar = Tar::new().file("a", b"one").finish();
    for garbage in [&b"garbage"[..], &[0; 100], &[0x1f, 0x8b]] {
        let blob = [&gzip(&tar)[..], garbage].concat();
        let layer = unpack_blob(&blob, &Limits::default());
        assert!(layer.result.is_err(), "{garbage:?}");
    }
}

#[test]
fn what_follows_the_archive_is_hashed_and_makes_no_files() {
    let hidden = Tar::new().file("hidden", b"").finish();
    let tar = [Tar::new().file("a", b"one").finish(), hidden].concat();
    let layer = unpack_blob(&gzip(&tar), &Limits::default());
    assert!(layer.result.as_ref().unwrap().diff_id.matches(&tar));
    assert!(!layer.path("hidden").exists());
}

#[test]
fn a_truncated_gzip_stream_is_an_error_wherever_it_ends() {
    let blob = gzip(
        &Tar::new()
            .file("a", b"one")
            .dir("d")
            .symlink("s", "d")
            .finish(),
    );
    for len in 0..blob.len() {
        // No bytes at all are an empty archive that is not compressed.
        let layer = unpack_blob(&blob[..len], &Limits::default());
        assert_eq!(
            layer.result.is_ok(),
            len == 0,
            "{len} of {} bytes",
            blob.len()
        );
    }
}

#[test]
fn a_flood_of_attributes_is_an_error_that_says_so() {
    let value = vec![b'v'; 1000];
    let names: Vec<_> = (0..900)
        .map(|i| format!("SCHILY.xattr.user.a{i}"))
        .collect();
    let records: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), &value[..]))
        .collect();
    for tar in [
        Tar::new().pax(&records).file("f", b""),
        Tar::new().pax(&records).dir("d"),
    ] {
        let layer = unpack(tar);
        // Some file systems have room for it.
        if layer.result.is_err() {
            assert!(
                layer.error().contains("no room for so many"),
                "{}",
                layer.error()
            );
        }
    }
    let long = vec![b'v'; 70_000];
    let layer = unpack(
        Tar::new()
            .pax(&[("SCHILY.xattr.user.a", &long)])
            .file("f", b""),
    );
    assert!(
        layer.error().contains("extended attribute"),
        "{}",
        layer.error()
    );
    let name = format!("SCHILY.xattr.user.{}", "n".repeat(300));
    let layer = unpack(Tar::new().pax(&[(&name, b"v")]).file("f", b""));
    assert!(
        layer.error().contains("extended attribute"),
        "{}",
        layer.error()
    );
}

#[test]
fn a_hard_link_to_a_whiteout_is_refused() {
    let layer = unpack(
        Tar::new()
            .file(".wh.removed", b"")
            .hard_link("link", "removed"),
    );
    assert!(layer.error().contains("removed file"), "{}", layer.error());
}

#[test]
fn a_hard_link_to_a_directory_or_the_root_is_refused() {
    for target in ["d", ".", "/"] {
        let layer = unpack(Tar::new().dir("d").hard_link("link", target));
        assert!(layer.error().contains("hard link"), "{}", layer.error());
    }
}

#[test]
fn a_hard_link_in_place_of_its_targets_directory_is_an_error() {
    let layer = unpack(Tar::new().dir("d").file("d/f", b"x").hard_link("d", "d/f"));
    assert!(
        layer.error().contains("make the hard link"),
        "{}",
        layer.error()
    );
}

#[test]
fn a_whiteout_through_a_link_stays_in_the_layer() {
    let layer = unpack(
        Tar::new()
            .symlink("up", "../..")
            .file("up/.wh.outside", b"")
            .file("up/.wh..wh..opq", b""),
    );
    let hidden = std::fs::symlink_metadata(layer.path("outside")).unwrap();
    assert!(hidden.file_type().is_char_device());
}

#[test]
fn a_directory_removed_through_a_link_while_it_is_open_is_not_written_to() {
    let layer = unpack(
        Tar::new()
            .dir("a")
            .dir("a/b")
            .symlink("a/b/root", "/")
            // Replaces the directory that the archive is in.
            .file("a/b/root/a", b"now a file")
            .file("a/b/later", b"x"),
    );
    assert!(
        layer.error().contains("not a directory"),
        "{}",
        layer.error()
    );
    assert_eq!(layer.read("a"), "now a file");
}

#[test]
fn an_attribute_cannot_be_set_through_a_link() {
    let layer = unpack(
        Tar::new()
            .pax(&[("SCHILY.xattr.user.a", b"evil")])
            .symlink("link", "../outside"),
    );
    assert!(
        layer.error().contains("extended attribute"),
        "{}",
        layer.error()
    );
    let outside = layer.dir.path().join("outside");
    assert!(rustix::fs::getxattr(outside, "user.a", &mut [0_u8; 8]).is_err());
}

/// Somebody exchanges a directory of the layer for a link to the outside, as fast as possible, while it is unpacked.
#[test]
fn a_race_that_swaps_a_directory_for_a_link_leads_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let (root, outside) = (dir.path().join("root"), dir.path().join("victim"));
    std::fs::create_dir(&root).unwrap();
    std::fs::create_dir(&outside).unwrap();
    let evil = dir.path().join("evil");
    std::os::unix::fs::symlink(&outside, &evil).unwrap();
    let mut tar = Tar::new().dir("d");
    for i in 0..500 {
        tar = tar
            .file("other/file", b"")
            .file(&format!("d/file{i}"), b"evil");
    }
    let blob = tar.finish();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let directory = root.join("d");
            while !done.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                let (cwd, from) = (rustix::fs::CWD, &evil);
                // Fails until the directory is there.
                rustix::fs::renameat_with(cwd, from, cwd, &directory, flags).ok();
            }
        });
        for _ in 0..10 {
            let algorithms = (Algorithm::Sha256, Algorithm::Sha256);
            let size = blob.len() as u64;
            // Whether it can be unpacked depends on who is faster.
            drop(unpack_layer(
                &blob[..],
                size,
                &root,
                algorithms,
                &Limits::default(),
            ));
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(std::fs::metadata(&outside).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn an_archive_that_is_its_own_bomb_of_holes_is_refused() {
    // A megabyte of map for a file of an exabyte.
    let map: String = (0..20_000_u64)
        .map(|i| format!("{},0,", i * 4096))
        .collect();
    let layer = unpack(
        Tar::new()
            .pax(&[
                ("GNU.sparse.name", b"f"),
                ("GNU.sparse.size", b"1152921504606846976"),
                ("GNU.sparse.numblocks", b"20000"),
                ("GNU.sparse.map", map.trim_end_matches(',').as_bytes()),
            ])
            .file("f", b""),
    );
    assert!(
        layer.error().contains("bytes of files"),
        "{}",
        layer.error()
    );
}

/// The size that the bomb's footer tells is a lie, and is not believed.
#[test]
fn a_gzip_footer_that_lies_is_an_error() {
    let mut blob = gzip(&Tar::new().file("a", b"one").finish());
    let end = blob.len();
    (&mut blob[end - 4..]).write_all(&[1, 0, 0, 0]).unwrap();
    let layer: Layer = unpack_blob(&blob, &Limits::default());
    assert!(layer.result.is_err());
}
