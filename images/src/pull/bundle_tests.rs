//! Pulls of images that are signed with sigstore bundles, from a registry that is told what to answer.

use serde_json::{Value, json};

use super::signature_tests::{Puller, Repository, image, name, policy};
use super::*;
use crate::load::LoadOptions;
use crate::save::{ArchiveFormat, Platforms};
use crate::test_archive::{TestImage, sha256};
use crate::trust::Verdict;
use crate::trust::test_keys::{
    BUNDLE, Keys, SignatureImage, attestation, bundle_by, signed_by, statement,
};

const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// Puts a bundle beside the image, and gives its entry in the list of referrers.
fn attach(repository: &mut Repository, test: &TestImage, bundle: Vec<u8>, kind: &str) -> Value {
    let artifact = SignatureImage::of_bundle(bundle, &test.manifest);
    repository.signatures("unused", &artifact);
    artifact.referrer(kind)
}

/// Lists referrers, by the API or by the tag.
fn list(repository: &mut Repository, test: &TestImage, entries: &[Value], with_api: bool) {
    let digest = sha256(&test.manifest);
    let list = json!({"schemaVersion": 2, "manifests": entries}).to_string();
    match with_api {
        true => {
            let path = format!("referrers/{digest}");
            repository.contents.insert(path, list.into_bytes());
        }
        false => repository.manifest(&digest.replace(':', "-"), list.as_bytes()),
    }
}

#[tokio::test]
async fn a_bundle_that_refers_to_the_image_is_found_kept_and_goes_with_the_image() {
    // Without the API, cosign before 3.1 writes the type of the configuration, or none.
    for (with_api, kind) in [(true, BUNDLE), (false, BUNDLE), (false, EMPTY), (false, "")] {
        let (keys, test) = (Keys::new(), image());
        let key = keys.p256("ours");
        let digest = sha256(&test.manifest);
        let mut repository = Repository::of(&test);
        let attested = keys.bundle("ours", &attestation(&digest));
        let signed = keys.bundle("ours", &statement(&digest));
        let entries = [
            attach(&mut repository, &test, attested, kind),
            attach(&mut repository, &test, signed, kind),
        ];
        list(&mut repository, &test, &entries, with_api);
        let registry = repository.serve().await;
        let puller = Puller::new();
        let rule = policy(&bundle_by(&key));
        let pulled = puller.pull(&registry, &rule).await.unwrap();
        let trust = pulled.trust.unwrap();
        assert!(
            matches!(&trust.verdict, Verdict::Signed { signed_by, .. } if signed_by[0].identity.is_none())
        );
        puller.store.gc(&HashSet::new()).unwrap();
        assert_eq!(puller.store.verify().unwrap(), []);
        repository.asked();
        let judged = puller.store.judge(&name(&registry), &rule).unwrap();
        assert_eq!(judged, Some(trust.verdict));
        let strict = policy(&signed_by(&key));
        let refused = puller.store.judge(&name(&registry), &strict).unwrap_err();
        assert!(refused.to_string().contains("acceptUnnamed"), "{refused}");
        assert!(repository.asked().is_empty());
        assert_saved_and_loaded(&puller, &registry, rule);
    }
}

/// In both forms of a layout the bundle goes with the image.
fn assert_saved_and_loaded(puller: &Puller, registry: &str, rule: crate::Policy) {
    let (archive, layout) = (puller.dir.path().join("a.tar"), puller.dir.path().join("l"));
    let names = [name(registry)];
    let file = std::fs::File::create(&archive).unwrap();
    puller
        .store
        .save(&names, Platforms::One, ArchiveFormat::Oci, file)
        .unwrap();
    puller
        .store
        .save_layout(&names, Platforms::One, &layout)
        .unwrap();
    let rule = Arc::new(rule);
    for path in [archive, layout] {
        let elsewhere = Puller::new();
        let options = LoadOptions {
            policy: Some(Arc::clone(&rule)),
            ..LoadOptions::default()
        };
        let loaded = elsewhere.store.load(&path, &options).unwrap();
        let verdict = &loaded[0].trust.as_ref().unwrap().verdict;
        assert!(matches!(verdict, Verdict::Signed { .. }), "{verdict:?}");
    }
}

#[tokio::test]
async fn a_flood_of_attestations_hides_no_signature_and_costs_little() {
    let (keys, test) = (Keys::new(), image());
    let key = keys.p256("ours");
    let digest = sha256(&test.manifest);
    let mut repository = Repository::of(&test);
    let mut entries: Vec<_> = (0..3000)
        .map(|n: u32| {
            let mut entry = json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": sha256(&n.to_le_bytes()),
                "size": 1,
                "artifactType": BUNDLE,
            });
            if n.is_multiple_of(2) {
                let kind = "https://slsa.dev/provenance/v1";
                entry["annotations"] = json!({"dev.sigstore.bundle.predicateType": kind});
            }
            entry
        })
        .collect();
    list(&mut repository, &test, &entries, true);
    let without = repository.clone();
    let signed = keys.bundle("ours", &statement(&digest));
    let mut entry = attach(&mut repository, &test, signed, BUNDLE);
    let kind = "https://sigstore.dev/cosign/sign/v1";
    entry["annotations"] = json!({"dev.sigstore.bundle.predicateType": kind});
    entries.push(entry);
    list(&mut repository, &test, &entries, true);
    let rule = policy(&bundle_by(&key));
    let registry = repository.serve().await;
    Puller::new().pull(&registry, &rule).await.unwrap();
    let registry = without.serve().await;
    without.asked();
    let error = Puller::new().pull(&registry, &rule).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("1500 attestations are no signatures")
            && text.contains("of 1500 referrers only 32"),
        "{text}"
    );
    let count = without.asked().len();
    assert!(count < 50, "{count} requests");
}

#[tokio::test]
async fn hostile_bundles_cost_little_and_refuse_the_image() {
    let (keys, test) = (Keys::new(), image());
    let key = keys.p256("ours");
    let digest = sha256(&test.manifest);
    let signed = keys.bundle("ours", &statement(&digest));
    let text = String::from_utf8(signed.clone()).unwrap();
    let mut huge = signed.clone();
    huge.resize(200 << 10, b' ');
    let deep = format!("{{\"verificationMaterial\":{}", "{\"a\":".repeat(20_000));
    let twice = text.replacen("\"payload\":", "\"payload\":\"e30=\",\"payload\":", 1);
    let keyless = text.replacen("\"publicKey\"", "\"certificate\"", 1);
    let replayed = keys.bundle("ours", &statement(&sha256(b"older")));
    for (bundle, expected) in [
        (huge, "bytes; at most 131072 are read"),
        (deep.into_bytes(), "malformed"),
        (twice.into_bytes(), "duplicate field"),
        (keyless.into_bytes(), "Fulcio"),
        (replayed, "another image"),
        (
            keys.bundle("ours", &attestation(&digest)),
            "not a signature",
        ),
    ] {
        let mut repository = Repository::of(&test);
        let entry = attach(&mut repository, &test, bundle, BUNDLE);
        list(&mut repository, &test, &[entry], true);
        let registry = repository.serve().await;
        let puller = Puller::new();
        let rule = policy(&bundle_by(&key));
        let error = puller.pull(&registry, &rule).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{expected}: {error}");
        assert!(matches!(error, PullError::Distrust(_)), "{error}");
        puller.assert_no_layer_is_here();
        let count = repository.asked().len();
        assert!(count < 10, "{expected}: {count} requests");
    }
}

/// The list and the manifest promise little, and the blob is endless.
#[tokio::test]
async fn a_bundle_that_is_larger_than_it_says_is_not_read_to_its_end() {
    let (keys, test) = (Keys::new(), image());
    let key = keys.p256("ours");
    let mut repository = Repository::of(&test);
    let bundle = keys.bundle("ours", &statement(&sha256(&test.manifest)));
    let entry = attach(&mut repository, &test, bundle.clone(), BUNDLE);
    list(&mut repository, &test, &[entry], true);
    let blob = format!("blobs/{}", sha256(&bundle));
    repository.contents.insert(blob, vec![b' '; 4 << 20]);
    let registry = repository.serve().await;
    let puller = Puller::new();
    let error = puller.pull(&registry, &policy(&bundle_by(&key))).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains("131072"), "{error}");
    puller.assert_no_layer_is_here();
}

#[tokio::test]
async fn all_signatures_come_where_they_are_asked_for_without_a_policy() {
    let (keys, test) = (Keys::new(), image());
    let key = keys.p256("ours");
    let digest = sha256(&test.manifest);
    let mut repository = Repository::of(&test);
    let classic = keys.signature_image("ours", "h.example/app", &digest);
    let tag = crate::trust::test_keys::signature_tag(&digest);
    repository.signatures(&tag, &classic);
    let bundle = keys.bundle("ours", &statement(&digest));
    let entry = attach(&mut repository, &test, bundle, BUNDLE);
    list(&mut repository, &test, &[entry], true);
    let registry = repository.serve().await;
    let puller = Puller::new();
    let options = PullOptions {
        signatures: true,
        ..puller.options(&registry)
    };
    let pulled = puller.store.pull(&name(&registry), &options).await.unwrap();
    let trust = pulled.trust.unwrap();
    assert_eq!(trust.verdict, Verdict::Unchecked {});
    assert_eq!(trust.signatures.len(), 2);
    let judged = puller
        .store
        .judge(&name(&registry), &policy(&bundle_by(&key)));
    assert!(judged.is_ok());
}

/// The mirror answers that nothing refers to the image; only the registry itself has what does.
#[tokio::test]
async fn a_bundle_that_the_mirror_does_not_have_is_found_at_the_registry() {
    for registry_has_api in [true, false] {
        let (keys, test) = (Keys::new(), image());
        let key = keys.p256("ours");
        let mut mirrored = Repository::of(&test);
        list(&mut mirrored, &test, &[], true);
        let mut repository = Repository::of(&test);
        let bundle = keys.bundle("ours", &statement(&sha256(&test.manifest)));
        let entry = attach(&mut repository, &test, bundle, BUNDLE);
        list(&mut repository, &test, &[entry], registry_has_api);
        let (mirror, registry) = (mirrored.serve().await, repository.serve().await);
        let puller = Puller::new();
        let mut options = puller.options(&registry);
        options.registries.plain_http.insert(mirror.clone());
        let mirrors = [(registry.clone(), vec![mirror])];
        options.registries.mirrors = mirrors.into();
        options.policy = Some(Arc::new(policy(&bundle_by(&key))));
        puller.store.pull(&name(&registry), &options).await.unwrap();
        let layer = format!("blobs/{}", sha256(&test.blobs[0]));
        assert!(mirrored.asked().contains(&layer));
    }
}
