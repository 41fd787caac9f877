use std::collections::HashSet;

use serde_json::json;

use super::*;
use crate::load::LoadOptions;
use crate::test_archive::{Tar, TestImage};

pub(super) fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

pub(super) struct Fixture {
    dir: tempfile::TempDir,
    pub(super) store: ImageStore,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(&dir.path().join("images")).unwrap();
        Self { dir, store }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn load_layout(&self, image: &TestImage, name: &str) -> Image {
        let layout = self.path("layout");
        drop(std::fs::remove_dir_all(&layout));
        image.write_layout(&layout, name);
        let mut images = self.store.load(&layout, &LoadOptions::default()).unwrap();
        assert_eq!(images.len(), 1);
        images.remove(0)
    }

    pub(super) fn load_error(&self, path: &Path) -> String {
        let error = self.store.load(path, &LoadOptions::default()).unwrap_err();
        chain(&error)
    }

    pub(super) fn temporary_files(&self) -> usize {
        std::fs::read_dir(self.path("images/tmp")).unwrap().count()
    }

    pub(super) fn layer_count(&self) -> usize {
        disk::names(&self.path("images/layers/sha256"))
            .unwrap()
            .len()
    }
}

pub(super) fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

pub(super) fn image(content: &[u8]) -> TestImage {
    TestImage::new(vec![
        Tar::new()
            .dir("etc")
            .file("etc/passwd", b"app:x:7:8::/home/app:\n")
            .finish(),
        Tar::new().file("content", content).finish(),
    ])
}

#[test]
fn names_can_be_added_and_removed_and_the_last_frees_the_image() {
    let fixture = Fixture::new();
    let loaded = fixture.load_layout(&image(b"x"), "app:1");
    let tagged = fixture
        .store
        .tag(&reference("app:1"), &reference("app:2"))
        .unwrap()
        .unwrap();
    assert_eq!(tagged.references, [reference("app:1"), reference("app:2")]);
    assert_eq!(fixture.store.list().unwrap().len(), 1);
    let removed = fixture.store.remove(&reference("app:1")).unwrap();
    assert_eq!(removed.unreferenced, None);
    assert_eq!(
        fixture.store.gc(&HashSet::new()).unwrap(),
        Collected::default()
    );
    let removed = fixture.store.remove(&reference("app:2")).unwrap();
    assert_eq!(removed.references, [reference("app:2")]);
    assert_eq!(removed.unreferenced.as_ref(), Some(&loaded.digest));
    assert_eq!(fixture.store.list().unwrap().len(), 0);
    assert_eq!(
        fixture
            .store
            .remove(&reference("app:2"))
            .unwrap()
            .references,
        []
    );
}

#[test]
fn stray_files_are_no_concern_of_the_collector() {
    let fixture = Fixture::new();
    for stray in ["layers/sha256/.swp", "layers/notes", "blobs/sha256/x"] {
        std::fs::write(fixture.path("images").join(stray), "").unwrap();
    }
    let collected = fixture.store.gc(&HashSet::new()).unwrap();
    assert_eq!(collected, Collected::default());
    assert!(fixture.path("images/layers/sha256/.swp").exists());
}

#[test]
fn layers_in_use_are_not_collected() {
    let fixture = Fixture::new();
    let loaded = fixture.load_layout(&image(b"x"), "app:1");
    fixture.store.remove(&reference("app:1")).unwrap();
    let in_use = HashSet::from([loaded.layers[0].clone()]);
    let collected = fixture.store.gc(&in_use).unwrap();
    assert_eq!((collected.layers, collected.blobs), (1, 4));
    assert!(loaded.layers[0].exists());
    assert!(!loaded.layers[1].exists());
    let other_path = fixture.path("other-path");
    std::os::unix::fs::symlink(fixture.store.dir(), &other_path).unwrap();
    let layer = loaded.layers[0].strip_prefix(fixture.store.dir()).unwrap();
    let in_use = HashSet::from([other_path.join(layer)]);
    assert_eq!(fixture.store.gc(&in_use).unwrap(), Collected::default());
    assert_eq!(fixture.store.gc(&HashSet::new()).unwrap().layers, 1);
}

#[test]
fn what_a_living_session_holds_is_not_collected() {
    let fixture = Fixture::new();
    let loaded = fixture.load_layout(&image(b"x"), "app:1");
    fixture.store.remove(&reference("app:1")).unwrap();
    let session = Session::begin(&fixture.store).unwrap();
    session.hold(&[Held::Blob(loaded.digest.clone())]).unwrap();
    let again = ImageStore::open(fixture.store.dir()).unwrap();
    assert_eq!(again.gc(&HashSet::new()).unwrap().blobs, 3);
    drop(session);
    assert_eq!(again.gc(&HashSet::new()).unwrap().blobs, 1);
    assert_eq!(fixture.temporary_files(), 0);
}

#[test]
fn opening_removes_what_dead_sessions_left() {
    let fixture = Fixture::new();
    let dead = fixture.path("images/tmp/1-1");
    std::fs::create_dir_all(dead.join("f0/fs/etc")).unwrap();
    std::fs::write(dead.join("lease"), "blob sha256:").unwrap();
    std::fs::create_dir_all(fixture.path("images/tmp/1-2")).unwrap();
    let alive = Session::begin(&fixture.store).unwrap();
    ImageStore::open(fixture.store.dir()).unwrap();
    assert_eq!(fixture.temporary_files(), 1);
    drop(alive);
}

#[test]
fn a_damaged_image_is_reported_and_not_resolved() {
    let fixture = Fixture::new();
    let loaded = fixture.load_layout(&image(b"hello"), "app:1");
    std::fs::write(loaded.layers[1].join("content"), "").unwrap();
    let problems = fixture.store.verify().unwrap();
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].what.contains("0 bytes instead of 5"),
        "{problems:?}"
    );
    assert_eq!(problems[0].images, [reference("app:1")]);
    std::fs::write(
        disk::blob_path(fixture.store.dir(), &loaded.config_digest),
        "",
    )
    .unwrap();
    assert!(
        fixture
            .store
            .resolve(&reference("app:1"))
            .unwrap()
            .is_none()
    );
    // Loading again repairs the blob.
    fixture.load_layout(&image(b"hello"), "app:1");
    assert!(
        fixture
            .store
            .resolve(&reference("app:1"))
            .unwrap()
            .is_some()
    );
}

#[test]
fn many_threads_load_one_image_at_once() {
    let fixture = Fixture::new();
    let test = image(&[b'x'; 100_000]);
    test.write_layout(&fixture.path("layout"), "app:1");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let store = ImageStore::open(fixture.store.dir()).unwrap();
                store
                    .load(&fixture.path("layout"), &LoadOptions::default())
                    .unwrap();
                store.gc(&HashSet::new()).unwrap();
            });
        }
    });
    assert_eq!(fixture.store.verify().unwrap(), []);
    assert_eq!(fixture.layer_count(), 2);
    assert_eq!(fixture.temporary_files(), 0);
}

#[test]
fn a_layer_that_an_image_has_twice_is_stacked_once() {
    let fixture = Fixture::new();
    let repeated = Tar::new().file("a", b"a").finish();
    let between = Tar::new().file("b", b"b").finish();
    let test = TestImage::new(vec![repeated.clone(), between, repeated]);
    let loaded = fixture.load_layout(&test, "app:1");
    assert_eq!(loaded.layers.len(), 2);
    assert!(loaded.layers[0].join("b").exists());
    assert!(loaded.layers[1].join("a").exists());
    let root = std::fs::metadata(&loaded.layers[0]).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&root) & 0o777, 0o755);
}

fn index(fixture: &Fixture) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(fixture.path("images/index.json")).unwrap()).unwrap()
}

#[test]
fn the_store_is_an_oci_layout_with_all_blobs() {
    let fixture = Fixture::new();
    let test = image(b"hello");
    assert_eq!(index(&fixture)["manifests"], json!([]));
    let loaded = fixture.load_layout(&test, "host.example/app:1");
    for blob in test.all_blobs() {
        assert!(
            fixture
                .store
                .open_blob(&Digest::sha256(blob))
                .unwrap()
                .is_some()
        );
    }
    let sizes: Vec<_> = loaded
        .parts
        .iter()
        .map(|part| part.blob.as_ref().unwrap().size_bytes)
        .collect();
    assert_eq!(
        sizes,
        [test.blobs[0].len() as u64, test.blobs[1].len() as u64]
    );
    let entries = &index(&fixture)["manifests"];
    assert_eq!(entries[0]["digest"], loaded.digest.to_string());
    assert_eq!(
        entries[0]["annotations"]["org.opencontainers.image.ref.name"],
        "host.example/app:1"
    );
    // So it loads into another store.
    let other = ImageStore::open(&fixture.path("other")).unwrap();
    let again = other.load(fixture.store.dir(), &LoadOptions::default());
    assert_eq!(again.unwrap()[0].digest, loaded.digest);
    fixture
        .store
        .remove(&reference("host.example/app:1"))
        .unwrap();
    assert_eq!(index(&fixture)["manifests"], json!([]));
}

#[test]
fn the_index_is_mended_when_the_store_is_opened() {
    let fixture = Fixture::new();
    fixture.load_layout(&image(b"x"), "app:1");
    let right = index(&fixture);
    std::fs::write(fixture.path("images/index.json"), "{").unwrap();
    std::fs::write(fixture.path("images/index.json.new"), "{").unwrap();
    std::fs::remove_file(fixture.path("images/oci-layout")).unwrap();
    ImageStore::open(fixture.store.dir()).unwrap();
    assert_eq!(index(&fixture), right);
    assert!(fixture.path("images/oci-layout").exists());
    assert!(!fixture.path("images/index.json.new").exists());
}

#[test]
fn compressed_layers_are_dropped_when_they_are_not_to_be_kept() {
    let fixture = Fixture::new();
    let test = image(b"x");
    fixture.load_layout(&test, "app:1");
    let store = fixture.store.clone().with_kept_blobs(false);
    assert_eq!(store.gc(&HashSet::new()).unwrap().blobs, 2);
    assert_eq!(store.verify().unwrap(), []);
    test.write_layout(&fixture.path("layout"), "app:2");
    let loaded = store.load(&fixture.path("layout"), &LoadOptions::default());
    let blob = loaded.unwrap()[0].parts[1].blob.clone().unwrap();
    assert_eq!(blob.digest, Digest::sha256(&test.blobs[1]));
    assert!(store.open_blob(&blob.digest).unwrap().is_none());
    // And come back with the next load.
    fixture.load_layout(&test, "app:3");
    assert!(store.open_blob(&blob.digest).unwrap().is_some());
}

/// A store as it was before layers were kept.
#[test]
fn records_with_only_diff_ids_are_read() {
    let fixture = Fixture::new();
    let test = image(b"x");
    let loaded = fixture.load_layout(&test, "app:1");
    let path = Record::path(fixture.store.dir(), &reference("app:1"));
    let diff_ids: Vec<_> = loaded.parts.iter().map(|p| p.diff_id.to_string()).collect();
    let old = json!({
        "version": 1,
        "reference": "docker.io/library/app:1",
        "manifest": loaded.digest.to_string(),
        "config": loaded.config_digest.to_string(),
        "layers": diff_ids,
    });
    std::fs::write(&path, old.to_string()).unwrap();
    for blob in &test.blobs {
        fixture.store.remove_blob(&Digest::sha256(blob)).unwrap();
    }
    let store = ImageStore::open(fixture.store.dir()).unwrap();
    let found = store.resolve(&reference("app:1")).unwrap().unwrap();
    assert_eq!(found.parts, loaded.parts);
    assert_eq!(store.verify().unwrap(), []);
    assert_eq!(store.gc(&HashSet::new()).unwrap(), Collected::default());
    std::fs::write(
        &path,
        old.to_string().replace("\"version\":1", "\"version\":9"),
    )
    .unwrap();
    assert!(store.resolve(&reference("app:1")).unwrap().is_none());
    let problems = store.verify().unwrap();
    assert!(problems[0].what.contains("version 9"), "{problems:?}");
    // Of a later version: nothing is done to it.
    let healed = store.heal(&problems[0], None).unwrap();
    assert!(matches!(healed, Healed::Broken(_)), "{healed:?}");
    assert!(path.exists());
}

#[test]
fn a_damaged_record_costs_its_image_only_and_is_made_again() {
    let fixture = Fixture::new();
    let loaded = fixture.load_layout(&image(b"x"), "app:1");
    fixture.load_layout(&image(b"y"), "other:1");
    let path = Record::path(fixture.store.dir(), &reference("app:1"));
    for stray in ["x.json.swp", "x.json", ".hidden"] {
        std::fs::write(path.with_file_name(stray), "").unwrap();
    }
    assert_eq!(fixture.store.verify().unwrap(), []);
    let whole = std::fs::read_to_string(&path).unwrap();
    for content in ["", &whole[..whole.len() / 2], "{}"] {
        std::fs::write(&path, content).unwrap();
        let store = ImageStore::open(fixture.store.dir()).unwrap();
        assert_eq!(store.list().unwrap().len(), 1);
        assert!(store.resolve(&reference("app:1")).unwrap().is_none());
        let error = store.gc(&HashSet::new()).unwrap_err().to_string();
        assert!(error.contains("nothing is freed"), "{error}");
        assert!(loaded.layers[1].exists());
        assert_eq!(store.disk_usage().unwrap().unneeded.count, 0);
        let problems = store.verify().unwrap();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert_eq!(problems[0].path, path);
        assert_eq!(problems[0].images, [reference("app:1")]);
        let healed = store.heal(&problems[0], None).unwrap();
        assert!(matches!(healed, Healed::Rebuilt), "{healed:?}");
        assert_eq!(store.verify().unwrap(), []);
        let found = store.resolve(&reference("app:1")).unwrap().unwrap();
        assert_eq!(
            (&found.digest, &found.parts),
            (&loaded.digest, &loaded.parts)
        );
        assert_eq!(store.gc(&HashSet::new()).unwrap(), Collected::default());
    }
}

#[test]
fn a_damaged_record_that_cannot_be_made_again_is_moved_aside() {
    let fixture = Fixture::new();
    let loaded = fixture.load_layout(&image(b"x"), "app:1");
    let store = &fixture.store;
    let path = Record::path(store.dir(), &reference("app:1"));
    std::fs::write(&path, "{").unwrap();
    store.remove_blob(&loaded.config_digest).unwrap();
    let problems = store.verify().unwrap();
    let healed = store.heal(&problems[0], None).unwrap();
    let Healed::Broken(reason) = healed else {
        panic!("{healed:?}");
    };
    assert!(reason.to_string().contains(".damaged"), "{reason}");
    assert_eq!(std::fs::read(path.with_extension("damaged")).unwrap(), b"{");
    assert_eq!(store.verify().unwrap(), []);
    assert_eq!(index(&fixture)["manifests"], json!([]));
    fixture.load_layout(&image(b"x"), "app:1");
    // What is not wanted any more goes by its name.
    std::fs::write(&path, "{").unwrap();
    let removed = store.remove(&reference("app:1")).unwrap();
    assert_eq!(removed.references, [reference("app:1")]);
    assert_eq!(store.gc(&HashSet::new()).unwrap().layers, 2);
}

#[test]
fn a_damaged_layer_is_replaced_and_kept_for_who_uses_it() {
    let fixture = Fixture::new();
    let test = image(b"hello");
    let loaded = fixture.load_layout(&test, "app:1");
    let layer = loaded.layers[1].parent().unwrap().to_owned();
    // As an overlay mount does, this holds on to the directory.
    let held = std::fs::File::open(&loaded.layers[1]).unwrap();
    std::fs::remove_file(layer.join("layer.json")).unwrap();
    fixture.load_layout(&test, "app:1");
    let seen = rustix::fs::openat(
        &held,
        "content",
        rustix::fs::OFlags::RDONLY,
        rustix::fs::Mode::empty(),
    );
    assert!(seen.is_ok());
    let replaced = || disk::names(&fixture.path("images/replaced")).unwrap().len();
    assert_eq!(replaced(), 1);
    let in_use = HashSet::from([loaded.layers[1].clone()]);
    fixture.store.gc(&in_use).unwrap();
    assert_eq!(replaced(), 1);
    fixture.store.gc(&HashSet::new()).unwrap();
    assert_eq!(replaced(), 0);
    assert_eq!(fixture.store.verify().unwrap(), []);
}

/// What a collection would leave is not said to be unneeded, and what was replaced takes its space.
#[test]
fn what_is_told_of_the_disk_is_what_a_collection_would_free() {
    let fixture = Fixture::new();
    let image = fixture.load_layout(&image(b"hello"), "app:1");
    let store = &fixture.store;
    let ingest = store.dir().join("ingest");
    let week = std::time::Duration::from_secs(8 * 24 * 3600);
    for (name, age) in [("new", std::time::Duration::ZERO), ("old", week)] {
        let path = disk::ingest_path(store.dir(), &Digest::sha256(name.as_bytes()));
        std::fs::write(&path, [0; 10]).unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(std::time::SystemTime::now() - age)
            .unwrap();
    }
    std::fs::write(image.layers[0].join("file"), b"damaged").unwrap();
    for problem in store.verify().unwrap() {
        store.heal(&problem, None).unwrap();
    }
    let usage = store.disk_usage().unwrap();
    let of = |usage: crate::Usage| (usage.count, usage.bytes);
    assert_eq!((of(usage.partial), of(usage.unneeded)), ((2, 20), (1, 10)));
    assert_eq!(usage.replaced.count, 1);
    assert!(usage.replaced.bytes >= 7, "{usage:?}");
    store.gc(&Default::default()).unwrap();
    assert_eq!(std::fs::read_dir(&ingest).unwrap().count(), 1);
    let usage = store.disk_usage().unwrap();
    assert_eq!((of(usage.unneeded), of(usage.replaced)), ((0, 0), (0, 0)));
}

#[test]
fn old_partial_downloads_are_collected_and_those_going_on_are_not() {
    let fixture = Fixture::new();
    let digest = Digest::sha256(b"whole");
    let session = Session::begin(&fixture.store).unwrap();
    let mut ingest = session.receive(&digest, 5).unwrap();
    ingest.keep(b"who").unwrap();
    let remove = |age| {
        let age = std::time::Duration::from_secs(age);
        fixture.store.remove_partial_downloads(age).unwrap()
    };
    assert_eq!(remove(0), 0);
    drop(ingest);
    assert_eq!(remove(3600), 0);
    let ingest = session.receive(&digest, 5).unwrap();
    assert_eq!(ingest.before(), 3);
    drop(ingest);
    // Longer than it can be: of another blob, or damaged.
    assert_eq!(session.receive(&digest, 2).unwrap().before(), 0);
    assert_eq!(remove(0), 0);
    assert_eq!(
        disk::names(&fixture.path("images/ingest")).unwrap().len(),
        0
    );
}
