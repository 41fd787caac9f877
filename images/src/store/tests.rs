use std::collections::HashSet;

use serde_json::json;

use super::*;
use crate::load::{LoadError, LoadOptions};
use crate::platform::Platform;
use crate::test_archive::{
    Tar, TestImage, descriptor, gzip, pack, write_blob, write_index, write_layout,
};

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

    fn load_error(&self, path: &Path) -> String {
        let error = self.store.load(path, &LoadOptions::default()).unwrap_err();
        chain(&error)
    }

    fn temporary_files(&self) -> usize {
        std::fs::read_dir(self.path("images/tmp")).unwrap().count()
    }

    fn layer_count(&self) -> usize {
        disk::names(&self.path("images/layers/sha256"))
            .unwrap()
            .len()
    }
}

fn chain(error: &dyn std::error::Error) -> String {
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
fn an_oci_layout_loads_and_resolves() {
    let fixture = Fixture::new();
    let test = image(b"hello");
    let loaded = fixture.load_layout(&test, "host.example/app:1");
    assert_eq!(loaded.digest, Digest::sha256(&test.manifest));
    assert_eq!(loaded.config_digest, Digest::sha256(&test.config));
    assert_eq!(loaded.layers.len(), 2);
    assert_eq!(
        std::fs::read(loaded.layers[1].join("content")).unwrap(),
        b"hello"
    );
    assert_eq!(loaded.size_bytes, 27);
    let config = loaded.config.config().as_ref().unwrap();
    assert_eq!(
        config.entrypoint().as_deref(),
        Some(&["/bin/app".to_owned()][..])
    );
    assert_eq!(loaded.user("app").unwrap().gid, 8);
    let by_digest = format!("host.example/app@{}", loaded.digest);
    for name in ["host.example/app:1", &by_digest] {
        let found = fixture.store.resolve(&reference(name)).unwrap().unwrap();
        assert_eq!(found.digest, loaded.digest);
    }
    let elsewhere = format!("host.example/other@{}", loaded.digest);
    assert!(
        fixture
            .store
            .resolve(&reference(&elsewhere))
            .unwrap()
            .is_none()
    );
    assert_eq!(loaded.pinned_reference().unwrap().to_string(), by_digest);
    assert_eq!(fixture.temporary_files(), 0);
    assert_eq!(fixture.store.verify().unwrap(), []);
}

#[test]
fn oci_archives_load_compressed_or_not() {
    let test = image(b"x");
    let dir = tempfile::tempdir().unwrap();
    test.write_layout(dir.path(), "host.example/app:1");
    let archive = pack(dir.path());
    let zstd = zstd::encode_all(archive.as_slice(), 1).unwrap();
    for bytes in [archive.clone(), gzip(&archive), zstd] {
        let fixture = Fixture::new();
        std::fs::write(fixture.path("archive"), bytes).unwrap();
        let images = fixture
            .store
            .load(&fixture.path("archive"), &LoadOptions::default());
        assert_eq!(images.unwrap()[0].digest, Digest::sha256(&test.manifest));
    }
}

#[test]
fn docker_archives_load_with_all_their_names() {
    let test = image(b"x");
    let archive = test
        .docker_archive(&["app:1", "host.example/app:2"])
        .finish();
    for bytes in [archive.clone(), gzip(&archive)] {
        let fixture = Fixture::new();
        std::fs::write(fixture.path("archive"), bytes).unwrap();
        let images = fixture
            .store
            .load(&fixture.path("archive"), &LoadOptions::default())
            .unwrap();
        assert_eq!(images.len(), 1);
        assert_eq!(
            images[0].references,
            [
                reference("docker.io/library/app:1"),
                reference("host.example/app:2")
            ]
        );
        assert_eq!(images[0].config_digest, Digest::sha256(&test.config));
        assert_eq!(fixture.store.verify().unwrap(), []);
    }
}

#[test]
fn docker_archives_may_share_layers_by_links() {
    let test = image(b"x");
    let config = "config.json";
    let manifest = json!([{
        "Config": config, "RepoTags": ["app:1"], "Layers": ["a/layer.tar", "b/layer.tar"],
    }]);
    let archive = Tar::new()
        .file("real/layer.tar", &test.tars[0])
        .symlink("a/layer.tar", "../real/layer.tar")
        .file("b/layer.tar", &test.tars[1])
        .file(config, &test.config)
        .file("manifest.json", manifest.to_string().as_bytes())
        .finish();
    let fixture = Fixture::new();
    std::fs::write(fixture.path("archive"), archive).unwrap();
    let images = fixture
        .store
        .load(&fixture.path("archive"), &LoadOptions::default())
        .unwrap();
    assert_eq!(images[0].layers.len(), 2);
}

#[test]
fn a_given_name_replaces_that_of_the_archive() {
    let fixture = Fixture::new();
    write_layout(&fixture.path("layout"), &[(&image(b"x"), Some("latest"))]);
    let error = fixture.load_error(&fixture.path("layout"));
    assert!(error.contains("only the tag `latest`"), "{error}");
    let options = LoadOptions {
        reference: Some(reference("mine:3")),
        ..LoadOptions::default()
    };
    let images = fixture
        .store
        .load(&fixture.path("layout"), &options)
        .unwrap();
    assert_eq!(images[0].references, [reference("mine:3")]);
    write_layout(
        &fixture.path("two"),
        &[(&image(b"x"), Some("a:1")), (&image(b"y"), Some("b:1"))],
    );
    let error = fixture
        .store
        .load(&fixture.path("two"), &options)
        .unwrap_err();
    assert!(matches!(error, LoadError::SeveralImages { count: 2, .. }));
    let images = fixture
        .store
        .load(&fixture.path("two"), &LoadOptions::default());
    assert_eq!(images.unwrap().len(), 2);
}

#[test]
fn the_platform_is_chosen_from_nested_indexes() {
    let fixture = Fixture::new();
    let test = image(b"x");
    let layout = fixture.path("layout");
    test.write_layout(&layout, "unused:1");
    let mut mine = descriptor("application/vnd.oci.image.manifest.v1+json", &test.manifest);
    let platform = Platform::current();
    mine["platform"] = json!({"os": platform.os, "architecture": platform.architecture});
    let mut other = descriptor("application/vnd.oci.image.manifest.v1+json", b"not here");
    other["platform"] = json!({"os": "linux", "architecture": "s390x"});
    let index = |entries| json!({"schemaVersion": 2, "manifests": entries}).to_string();
    let inner = index(json!([other, mine]));
    write_blob(&layout, inner.as_bytes());
    let inner_entry = descriptor("application/vnd.oci.image.index.v1+json", inner.as_bytes());
    let outer = index(json!([inner_entry]));
    write_blob(&layout, outer.as_bytes());
    let mut entry = descriptor("application/vnd.oci.image.index.v1+json", outer.as_bytes());
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "app:1"});
    write_index(&layout, vec![entry]);
    let images = fixture
        .store
        .load(&layout, &LoadOptions::default())
        .unwrap();
    assert_eq!(images[0].digest, Digest::sha256(&test.manifest));
    let by_index = format!("app@{}", Digest::sha256(outer.as_bytes()));
    assert!(
        fixture
            .store
            .resolve(&reference(&by_index))
            .unwrap()
            .is_some()
    );
}

#[test]
fn indexes_nested_without_end_are_refused() {
    let fixture = Fixture::new();
    let layout = fixture.path("layout");
    let mut blob = image(b"x").manifest;
    for _ in 0..10 {
        write_blob(&layout, &blob);
        let entry = descriptor("application/vnd.oci.image.index.v1+json", &blob);
        blob = json!({"schemaVersion": 2, "manifests": [entry]})
            .to_string()
            .into_bytes();
    }
    write_blob(&layout, &blob);
    let mut entry = descriptor("application/vnd.oci.image.index.v1+json", &blob);
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "app:1"});
    write_index(&layout, vec![entry]);
    assert!(fixture.load_error(&layout).contains("nested too deep"));
}

#[test]
fn a_layer_with_another_digest_is_refused_and_leaves_nothing() {
    let fixture = Fixture::new();
    let test = image(b"x");
    let layout = fixture.path("layout");
    test.write_layout(&layout, "app:1");
    // Unpacks well, but is not what the manifest says.
    let forged = gzip(&Tar::new().file("content", b"forged").finish());
    let name = crate::test_archive::sha256(&test.blobs[1]).replace(':', "/");
    std::fs::write(layout.join("blobs").join(name), forged).unwrap();
    let error = fixture.load_error(&layout);
    assert!(error.contains("damaged or forged"), "{error}");
    assert!(
        fixture
            .store
            .resolve(&reference("app:1"))
            .unwrap()
            .is_none()
    );
    assert_eq!(fixture.temporary_files(), 0);
    assert_eq!(fixture.layer_count(), 1);
    assert_eq!(fixture.store.gc(&HashSet::new()).unwrap().layers, 1);
    assert_eq!(fixture.layer_count(), 0);
}

#[test]
fn a_layer_with_another_diff_id_is_refused() {
    let fixture = Fixture::new();
    let mut test = image(b"x");
    let right = test.config.clone();
    let wrong = crate::test_archive::sha256(b"wrong");
    let diff_id = crate::test_archive::sha256(&test.tars[1]);
    test.config = String::from_utf8(right)
        .unwrap()
        .replace(&diff_id, &wrong)
        .into_bytes();
    let archive = test.docker_archive(&["app:1"]).finish();
    std::fs::write(fixture.path("archive"), archive).unwrap();
    let error = fixture.load_error(&fixture.path("archive"));
    assert!(error.contains("damaged or forged"), "{error}");
}

#[test]
fn a_forged_manifest_or_configuration_is_refused() {
    let fixture = Fixture::new();
    let test = image(b"x");
    for blob in [&test.manifest, &test.config] {
        let layout = fixture.path("layout");
        test.write_layout(&layout, "app:1");
        let name = crate::test_archive::sha256(blob).replace(':', "/");
        let mut forged = blob.clone();
        forged.push(b' ');
        std::fs::write(layout.join("blobs").join(name), forged).unwrap();
        assert!(fixture.load_error(&layout).contains("damaged or forged"));
    }
}

#[test]
fn what_is_no_image_is_named() {
    let fixture = Fixture::new();
    std::fs::create_dir(fixture.path("empty")).unwrap();
    assert!(
        fixture
            .load_error(&fixture.path("empty"))
            .contains("neither an OCI layout")
    );
    std::fs::write(fixture.path("text"), "hello").unwrap();
    assert!(
        fixture
            .load_error(&fixture.path("text"))
            .contains("cannot read the archive")
    );
    assert!(
        fixture
            .load_error(&fixture.path("none"))
            .contains("cannot open")
    );
    assert!(
        fixture
            .load_error(Path::new("/dev/zero"))
            .contains("no file or directory")
    );
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
    let error = store.resolve(&reference("app:1")).unwrap_err();
    assert!(error.to_string().contains("version 9"), "{error}");
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
