//! Pushes of signatures. The real registry is tried in `tests/signatures.rs`.

use serde_json::json;

use super::tests::{Pusher, Shelf, image, start};
use crate::LoadOptions;
use crate::manifest::{OCI_INDEX, OCI_MANIFEST};
use crate::test_archive::{descriptor, sha256, write_blob, write_index};
use crate::trust::test_keys::{BUNDLE, Keys, statement};

/// Loads a layout of the pusher's with a bundle beside it.
fn load_signed(pusher: &Pusher, layout: &str, bundle: &[u8]) {
    let layout = pusher.dir.path().join(layout);
    std::fs::write(layout.with_extension("sigstore.json"), bundle).unwrap();
    pusher.store.load(&layout, &LoadOptions::default()).unwrap();
}

/// Pushes an image that came with a bundle beside its file, to a registry with the referrers API or without.
#[tokio::test]
async fn a_bundle_from_beside_a_file_refers_to_the_image_where_it_is_pushed() {
    let test = image();
    let bundle = Keys::new();
    bundle.p256("ours");
    let digest = sha256(&test.manifest);
    let bundle = bundle.bundle("ours", &statement(&digest));
    for has_referrers in [true, false] {
        let (registry, shelf) = start(Shelf {
            has_referrers,
            ..Shelf::default()
        })
        .await;
        let pusher = Pusher::new(&registry, &test);
        load_signed(&pusher, "layout", &bundle);
        let target = format!("{registry}/team/app:new");
        // The second push adds nothing.
        for _ in 0..2 {
            let pushed = pusher.push(&target).await.unwrap();
            assert_eq!((pushed.signatures, pushed.signatures_left_out), (1, 0));
        }
        let shelf = shelf.lock().unwrap();
        assert!(shelf.blobs.contains_key(&sha256(&bundle)));
        let documents = shelf.manifests.values().map(|(_, json)| {
            let document: serde_json::Value = serde_json::from_slice(json).unwrap();
            document
        });
        let referring = |document: &serde_json::Value| document["subject"]["digest"] == digest;
        assert!(documents.clone().any(|document| referring(&document)));
        let list = shelf.manifests.get(&digest.replace(':', "-"));
        assert_eq!(list.is_none(), has_referrers);
        if let Some((_, list)) = list {
            let list: serde_json::Value = serde_json::from_slice(list).unwrap();
            assert_eq!(list["manifests"].as_array().unwrap().len(), 1);
            assert_eq!(list["manifests"][0]["artifactType"], BUNDLE);
        }
    }
}

#[tokio::test]
async fn what_is_no_list_of_referrers_is_not_written_over() {
    let test = image();
    let keys = Keys::new();
    keys.p256("ours");
    let digest = sha256(&test.manifest);
    let (registry, shelf) = start(Shelf::default()).await;
    let pusher = Pusher::new(&registry, &test);
    let bundle = keys.bundle("ours", &statement(&digest));
    load_signed(&pusher, "layout", &bundle);
    let (tag, other) = (digest.replace(':', "-"), (String::new(), b"{}".to_vec()));
    shelf.lock().unwrap().manifests.insert(tag.clone(), other);
    let target = format!("{registry}/team/app:new");
    let error = pusher.push(&target).await.unwrap_err();
    assert!(
        error.to_string().contains("its signatures are not"),
        "{error}"
    );
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(
        source.contains(&tag) && source.contains("no index"),
        "{source}"
    );
    assert_eq!(shelf.lock().unwrap().manifests[&tag].1, b"{}");
}

#[tokio::test]
async fn signatures_of_something_else_are_left_out() {
    let test = image();
    let keys = Keys::new();
    keys.p256("ours");
    let (registry, shelf) = start(Shelf::default()).await;
    let pusher = Pusher::new(&registry, &test);
    let bundle = keys.bundle("ours", &statement(&sha256(b"the index of all platforms")));
    load_signed(&pusher, "layout", &bundle);
    let target = format!("{registry}/team/app:new");
    let pushed = pusher.push(&target).await.unwrap();
    assert_eq!((pushed.signatures, pushed.signatures_left_out), (0, 1));
    // The image's manifest, by its tag and its digest.
    assert_eq!(shelf.lock().unwrap().manifests.len(), 2);
}

/// What `cosign sign` signs of an image for several platforms.
#[tokio::test]
async fn a_signature_of_the_index_goes_with_the_whole_index() {
    let test = image();
    let keys = Keys::new();
    keys.p256("ours");
    let platform = crate::Platform::current();
    let mut entry = descriptor(OCI_MANIFEST, &test.manifest);
    entry["platform"] = json!({"os": platform.os, "architecture": platform.architecture});
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    let (registry, shelf) = start(Shelf {
        has_referrers: true,
        ..Shelf::default()
    })
    .await;
    let pusher = Pusher::new(&registry, &test);
    let layout = pusher.dir.path().join("whole");
    test.all_blobs().for_each(|blob| write_blob(&layout, blob));
    write_blob(&layout, index.as_bytes());
    let mut entry = descriptor(OCI_INDEX, index.as_bytes());
    let name = "local.example/app:1";
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    write_index(&layout, vec![entry]);
    let bundle = keys.bundle("ours", &statement(&sha256(index.as_bytes())));
    load_signed(&pusher, "whole", &bundle);
    let target = format!("{registry}/team/app:new");
    let pushed = pusher.push(&target).await.unwrap();
    assert_eq!((pushed.signatures, pushed.signatures_left_out), (1, 0));
    let shelf = shelf.lock().unwrap();
    let subject = json!(descriptor(OCI_INDEX, index.as_bytes()));
    let refers = shelf.manifests.values().any(|(_, json)| {
        let document: serde_json::Value = serde_json::from_slice(json).unwrap();
        document["subject"] == subject
    });
    assert!(refers);
}
