//! What is damaged is found and mended with what is here, or with what is fetched, and nothing else is touched.

use std::os::unix::fs::{PermissionsExt, symlink};

use tar::EntryType;

use super::tests::{Fixture, image, reference};
use super::*;
use crate::test_archive::{Tar, TestImage};

type Breakage = (&'static str, fn(&Path), &'static str);

fn write(path: &Path, content: &[u8]) {
    std::fs::write(path, content).unwrap();
}

fn remove(path: &Path) {
    std::fs::remove_file(path).unwrap();
}

/// A layer with one of everything that needs no root.
fn layer() -> TestImage {
    TestImage::new(vec![
        Tar::new()
            .dir("etc")
            .entry("etc/secret", EntryType::Regular, 0o600, "", b"secret")
            .entry("bin/tool", EntryType::Regular, 0o4755, "", b"tool")
            .hard_link("bin/same", "bin/tool")
            .symlink("bin/link", "tool")
            .entry("private", EntryType::Directory, 0o700, "", b"")
            .finish(),
    ])
}

/// The store of before is opened for each.
fn problem(store: &ImageStore) -> Problem {
    let mut problems = store.verify().unwrap();
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems.remove(0)
}

#[test]
fn every_kind_of_damage_to_a_layer_is_found_and_mended_from_its_blob() {
    let breakages: [Breakage; 11] = [
        (
            "content",
            |fs| write(&fs.join("etc/secret"), b"sEcret"),
            "content",
        ),
        (
            "size",
            |fs| write(&fs.join("etc/secret"), b""),
            "0 bytes instead of 6",
        ),
        ("missing", |fs| remove(&fs.join("bin/same")), "missing"),
        (
            "mode",
            |fs| {
                let mode = std::fs::Permissions::from_mode(0o644);
                std::fs::set_permissions(fs.join("etc/secret"), mode).unwrap();
            },
            "mode is 0644 instead of 0600",
        ),
        (
            "directory",
            |fs| {
                let mode = std::fs::Permissions::from_mode(0o755);
                std::fs::set_permissions(fs.join("private"), mode).unwrap();
            },
            "mode is 0755 instead of 0700",
        ),
        (
            "link",
            |fs| {
                remove(&fs.join("bin/link"));
                symlink("loot", fs.join("bin/link")).unwrap();
            },
            "content",
        ),
        (
            "kind",
            |fs| {
                remove(&fs.join("etc/secret"));
                symlink("/etc/shadow", fs.join("etc/secret")).unwrap();
            },
            "another kind",
        ),
        (
            "more",
            |fs| write(&fs.join("etc/more"), b"more"),
            "14 bytes instead of 10",
        ),
        (
            "list",
            |fs| write(&fs.parent().unwrap().join("files.zst"), b"("),
            "files.zst",
        ),
        (
            "no list",
            |fs| remove(&fs.parent().unwrap().join("files.zst")),
            "files.zst: it is missing",
        ),
        (
            "description",
            |fs| write(&fs.parent().unwrap().join("layer.json"), b"("),
            "layer.json: expected value",
        ),
    ];
    let fixture = Fixture::new();
    let loaded = fixture.load_layout(&layer(), "app:1");
    let other = fixture.load_layout(&image(b"other"), "other:1");
    assert_eq!(fixture.store.verify().unwrap(), []);
    for (name, damage, says) in breakages {
        damage(&loaded.layers[0]);
        let found = problem(&fixture.store);
        assert!(found.what.contains(says), "{name}: {found:?}");
        assert!(!found.what.contains("pull"), "{name}: {found:?}");
        assert_eq!(found.images, [reference("app:1")]);
        let healed = fixture.store.heal(&found, None).unwrap();
        assert!(matches!(healed, Healed::Unpacked), "{name}: {healed:?}");
        assert_eq!(fixture.store.verify().unwrap(), [], "{name}");
        let healed = fixture.store.heal(&found, None).unwrap();
        assert!(matches!(healed, Healed::Whole), "{name}: {healed:?}");
    }
    let again = fixture.store.resolve(&reference("other:1")).unwrap();
    assert_eq!(again.unwrap().layers, other.layers);
}

/// Entries that later ones replace are no damage.
#[test]
fn what_a_layer_replaces_itself_is_not_taken_for_damage() {
    let fixture = Fixture::new();
    let test = TestImage::new(vec![
        Tar::new()
            .file("twice", b"first")
            .file("twice", b"second")
            .dir("tree")
            .file("tree/gone", b"gone")
            .file("tree/sub/gone", b"gone")
            .file("tree", b"a file now")
            .dir("again")
            .file("again/gone", b"gone")
            .symlink("again", "tree")
            .entry("mode", EntryType::Directory, 0o755, "", b"")
            .entry("mode", EntryType::Directory, 0o700, "", b"")
            .dir("real")
            .symlink("alias", "real")
            .file("alias/file", b"by the alias")
            .file("real/file", b"by its name")
            .finish(),
    ]);
    let loaded = fixture.load_layout(&test, "app:1");
    assert_eq!(fixture.store.verify().unwrap(), []);
    write(&loaded.layers[0].join("twice"), b"SECOND");
    assert!(problem(&fixture.store).what.contains("twice"));
}

#[test]
fn a_layer_whose_blob_is_damaged_too_is_fetched_again() {
    let fixture = Fixture::new();
    let test = image(b"hello");
    let loaded = fixture.load_layout(&test, "app:1");
    let blob = loaded.parts[1].blob.clone().unwrap();
    write(&loaded.layers[1].join("content"), b"jello");
    write(&disk::blob_path(fixture.store.dir(), &blob.digest), b"");
    let problems = fixture.store.verify().unwrap();
    assert_eq!(problems.len(), 2);
    let layer = &problems[0];
    assert_eq!(layer.part, Part::Layer(loaded.parts[1].diff_id.clone()));
    assert_eq!(layer.part.to_string().parse::<Part>().unwrap(), layer.part);
    let forged = |_: &Lost, take: &mut dyn FnMut(&[u8]) -> std::io::Result<()>| Ok(take(b"x")?);
    let healed = fixture.store.heal(layer, Some(&forged)).unwrap();
    assert!(matches!(healed, Healed::Broken(_)), "{healed:?}");
    let fetch = |lost: &Lost, take: &mut dyn FnMut(&[u8]) -> std::io::Result<()>| {
        assert_eq!(lost.digest, blob.digest);
        assert_eq!(
            (lost.size_bytes, lost.is_manifest),
            (Some(blob.size_bytes), false)
        );
        let (one, two) = test.blobs[1].split_at(20);
        take(one)?;
        Ok(take(two)?)
    };
    let healed = fixture.store.heal(layer, Some(&fetch)).unwrap();
    assert!(matches!(healed, Healed::Fetched), "{healed:?}");
    assert_eq!(fixture.store.verify().unwrap(), []);
    assert_eq!(fixture.store.list().unwrap().len(), 1);
}

#[test]
fn a_damaged_blob_is_dropped_only_if_it_cannot_be_fetched() {
    let fixture = Fixture::new();
    let test = image(b"hello");
    let loaded = fixture.load_layout(&test, "app:1");
    let path = disk::blob_path(fixture.store.dir(), &Digest::sha256(&test.blobs[0]));
    let fetch =
        |_: &Lost, take: &mut dyn FnMut(&[u8]) -> std::io::Result<()>| Ok(take(&test.blobs[0])?);
    write(&path, b"damaged");
    let healed = fixture.store.heal(&problem(&fixture.store), Some(&fetch));
    assert!(matches!(healed, Ok(Healed::Fetched)), "{healed:?}");
    assert_eq!(std::fs::read(&path).unwrap(), test.blobs[0]);
    write(&path, b"damaged");
    let healed = fixture.store.heal(&problem(&fixture.store), None);
    assert!(matches!(healed, Ok(Healed::Dropped)), "{healed:?}");
    assert!(!path.exists());
    let found = fixture.store.resolve(&reference("app:1")).unwrap().unwrap();
    assert_eq!(found.layers, loaded.layers);

    // It is not forgotten, whatever is collected, and comes back as soon as it can be fetched.
    fixture.store.gc(&Default::default()).unwrap();
    let lost = problem(&fixture.store);
    assert!(lost.what.contains("could not be fetched again"), "{lost:?}");
    let healed = fixture.store.heal(&lost, None);
    assert!(matches!(healed, Ok(Healed::Dropped)), "{healed:?}");
    let healed = fixture.store.heal(&problem(&fixture.store), Some(&fetch));
    assert!(matches!(healed, Ok(Healed::Fetched)), "{healed:?}");
    assert_eq!(std::fs::read(&path).unwrap(), test.blobs[0]);
    assert_eq!(fixture.store.verify().unwrap(), []);
    fixture.store.gc(&Default::default()).unwrap();
    let notes = std::fs::read_dir(fixture.store.dir().join("dropped"));
    assert_eq!(notes.unwrap().count(), 0);
}

/// Where compressed layers are not kept none has to come back.
#[test]
fn a_damaged_blob_is_dropped_for_good_where_blobs_are_not_kept() {
    let fixture = Fixture::new();
    let test = image(b"hello");
    fixture.load_layout(&test, "app:1");
    let path = disk::blob_path(fixture.store.dir(), &Digest::sha256(&test.blobs[0]));
    write(&path, b"damaged");
    let store = fixture.store.clone().with_kept_blobs(false);
    let healed = store.heal(&problem(&store), None);
    assert!(matches!(healed, Ok(Healed::Dropped)), "{healed:?}");
    assert_eq!(store.verify().unwrap(), []);
    assert_eq!(fixture.store.verify().unwrap(), []);
}

#[test]
fn a_damaged_manifest_or_configuration_is_fetched_again() {
    let fixture = Fixture::new();
    let test = image(b"hello");
    fixture.load_layout(&test, "app:1");
    for (content, is_manifest) in [(&test.manifest, true), (&test.config, false)] {
        write(
            &disk::blob_path(fixture.store.dir(), &Digest::sha256(content)),
            b"",
        );
        let found = problem(&fixture.store);
        let healed = fixture.store.heal(&found, None).unwrap();
        assert!(matches!(healed, Healed::Broken(_)), "{healed:?}");
        let fetch = |lost: &Lost, take: &mut dyn FnMut(&[u8]) -> std::io::Result<()>| {
            assert_eq!((lost.size_bytes, lost.is_manifest), (None, is_manifest));
            assert_eq!(lost.image, reference("app:1"));
            Ok(take(content)?)
        };
        let healed = fixture.store.heal(&found, Some(&fetch)).unwrap();
        assert!(matches!(healed, Healed::Fetched), "{healed:?}");
        assert_eq!(fixture.store.verify().unwrap(), []);
    }
    assert!(
        fixture
            .store
            .resolve(&reference("app:1"))
            .unwrap()
            .is_some()
    );
}
