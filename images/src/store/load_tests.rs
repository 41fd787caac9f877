//! What is loaded from files, and what is refused.

use std::collections::HashSet;

use serde_json::json;

use super::tests::{Fixture, image, reference};
use super::*;
use crate::load::{LoadError, LoadOptions};
use crate::platform::Platform;
use crate::test_archive::{Tar, descriptor, gzip, pack, write_blob, write_index, write_layout};

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
