//! Pulls that a signature policy judges, from a registry that is told what to answer.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;

use serde_json::{Value, json};

use super::*;
use crate::load::LoadOptions;
use crate::registry::test_server::{Reply, serve};
use crate::save::{ArchiveFormat, Platforms};
use crate::test_archive::{Tar, TestImage, descriptor, sha256};
use crate::trust::test_keys::{Keys, SignatureImage, payload, signature_tag, signed_by};
use crate::trust::{Policy, Verdict};

const NAME: &str = "team/app";

/// A registry with one repository, as paths below it and contents; it notes what is asked for.
#[derive(Clone, Default)]
pub(super) struct Repository {
    pub(super) contents: HashMap<String, Vec<u8>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Repository {
    pub(super) fn of(image: &TestImage) -> Self {
        let mut repository = Self::default();
        repository.manifest("1", &image.manifest);
        for blob in image.blobs.iter().chain([&image.config]) {
            repository.blob(blob);
        }
        repository
    }

    pub(super) fn manifest(&mut self, tag: &str, manifest: &[u8]) {
        for name in [tag.to_owned(), sha256(manifest)] {
            self.contents
                .insert(format!("manifests/{name}"), manifest.to_vec());
        }
    }

    pub(super) fn blob(&mut self, blob: &[u8]) {
        self.contents
            .insert(format!("blobs/{}", sha256(blob)), blob.to_vec());
    }

    pub(super) fn signatures(&mut self, tag: &str, image: &SignatureImage) {
        self.manifest(tag, &image.manifest);
        for blob in image.payloads.iter().chain([&image.config]) {
            self.blob(blob);
        }
    }

    pub(super) async fn serve(&self) -> String {
        let repository = self.clone();
        serve(move |request| {
            let path = request
                .path
                .strip_prefix("/v2/team/app/")
                .unwrap_or_default();
            // A mirror is told whose it is.
            let path = path.split('?').next().unwrap_or_default();
            repository.asked.lock().unwrap().push(path.to_owned());
            match repository.contents.get(path) {
                Some(content) => Reply::new(200, content),
                None => Reply::new(404, b"{}"),
            }
        })
        .await
    }

    pub(super) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

pub(super) struct Puller {
    pub(super) dir: tempfile::TempDir,
    pub(super) store: ImageStore,
}

impl Puller {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(&dir.path().join("images")).unwrap();
        Self { dir, store }
    }

    pub(super) async fn pull(&self, registry: &str, policy: &Policy) -> Result<Image, PullError> {
        let options = PullOptions {
            policy: Some(Arc::new(policy.clone())),
            ..self.options(registry)
        };
        self.store.pull(&name(registry), &options).await
    }

    pub(super) fn options(&self, registry: &str) -> PullOptions {
        PullOptions {
            docker_config: Some(self.dir.path().join("none.json")),
            registries: RegistriesConfig {
                plain_http: [registry.to_owned()].into(),
                ..RegistriesConfig::default()
            },
            ..PullOptions::default()
        }
    }

    pub(super) fn assert_no_layer_is_here(&self) {
        assert!(self.store.list().unwrap().is_empty());
        let layers = std::fs::read_dir(self.store.dir().join("layers")).unwrap();
        let count: usize = layers
            .map(|algorithm| {
                std::fs::read_dir(algorithm.unwrap().path())
                    .unwrap()
                    .count()
            })
            .sum();
        assert_eq!(count, 0);
    }
}

pub(super) fn name(registry: &str) -> Reference {
    format!("{registry}/{NAME}:1").parse().unwrap()
}

pub(super) fn policy(default: &Value) -> Policy {
    let json = json!({"default": default}).to_string();
    Policy::parse(Path::new("/etc/policy.json"), json.as_bytes()).unwrap()
}

pub(super) fn image() -> TestImage {
    TestImage::new(vec![Tar::new().file("content", b"signed").finish()])
}

#[tokio::test]
async fn a_signed_image_is_pulled_and_judged_again_without_a_network() {
    let (keys, test) = (Keys::new(), image());
    let key = keys.p256("ours");
    let mut repository = Repository::of(&test);
    // The registry's port is not known before it serves: names of tests are for any of them.
    let identity = "placeholder.example/team/app";
    let signatures = keys.signature_image("ours", identity, &sha256(&test.manifest));
    repository.signatures(&signature_tag(&sha256(&test.manifest)), &signatures);
    let registry = repository.serve().await;
    let exact = json!([{
        "type": "sigstoreSigned",
        "keyPath": key,
        "signedIdentity": {"type": "exactRepository", "dockerRepository": identity},
    }]);
    let puller = Puller::new();
    let pulled = puller.pull(&registry, &policy(&exact)).await.unwrap();
    let trust = pulled.trust.unwrap();
    assert!(
        matches!(&trust.verdict, Verdict::Signed { signed_by, .. } if signed_by[0].key_file.as_ref() == Some(&key))
    );
    assert_eq!(trust.signatures.len(), 1);
    puller.store.gc(&HashSet::new()).unwrap();
    assert_eq!(puller.store.verify().unwrap(), []);
    repository.asked();
    let judge = |policy: &Policy| puller.store.judge(&name(&registry), policy);
    assert_eq!(judge(&policy(&exact)).unwrap(), Some(trust.verdict));
    let theirs = keys.p256("theirs");
    let refused = judge(&policy(&signed_by(&theirs))).unwrap_err().to_string();
    assert!(refused.contains("not made with the key"), "{refused}");
    let refused = judge(&policy(&signed_by(&key))).unwrap_err().to_string();
    assert!(
        refused.contains("placeholder.example/team/app"),
        "{refused}"
    );
    assert!(judge(&policy(&json!([{"type": "reject"}]))).is_err());
    assert!(repository.asked().is_empty());
}

#[tokio::test]
async fn an_image_that_is_refused_is_never_unpacked() {
    let (keys, test) = (Keys::new(), image());
    let (ours, _) = (keys.p256("ours"), keys.p256("theirs"));
    let digest = sha256(&test.manifest);
    let tag = signature_tag(&digest);
    let mut repository = Repository::of(&test);
    let unsigned = repository.clone();
    repository.signatures(
        &tag,
        &keys.signature_image("theirs", "h.example/app", &digest),
    );
    for (repository, policy, expected) in [
        (
            &unsigned,
            policy(&signed_by(&ours)),
            "no signature was found",
        ),
        (
            &repository,
            policy(&signed_by(&ours)),
            "not made with the key",
        ),
        (
            &repository,
            policy(&json!([{"type": "reject"}])),
            "allows no image of default",
        ),
    ] {
        let registry = repository.serve().await;
        let puller = Puller::new();
        let error = puller.pull(&registry, &policy).await.unwrap_err();
        assert!(matches!(error, PullError::Distrust(_)) && !error.is_transient());
        assert!(error.to_string().contains(expected), "{error}");
        puller.assert_no_layer_is_here();
        let blob = format!("blobs/{}", sha256(&test.blobs[0]));
        let asked = repository.asked();
        assert!(!asked.contains(&blob), "{asked:?}");
        assert!(
            expected.starts_with("allows no") == asked.is_empty(),
            "{asked:?}"
        );
    }
}

#[tokio::test]
async fn without_a_signature_asked_for_none_is_fetched() {
    let repository = Repository::of(&image());
    let registry = repository.serve().await;
    let accept = policy(&json!([{"type": "insecureAcceptAnything"}]));
    let pulled = Puller::new().pull(&registry, &accept).await.unwrap();
    assert!(
        matches!(pulled.trust.unwrap().verdict, Verdict::Allowed { scope } if scope == "default")
    );
    assert!(!repository.asked().iter().any(|path| path.contains(".sig")));
}

#[tokio::test]
async fn a_signature_of_the_index_is_enough_and_goes_with_the_image() {
    let (keys, test) = (Keys::new(), image());
    let key = keys.p256("ours");
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &test.manifest);
    let platform = Platform::current();
    entry["platform"] = json!({"os": platform.os, "architecture": platform.architecture});
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    let mut repository = Repository::of(&test);
    repository.manifest("1", index.as_bytes());
    let identity = "h.example/app";
    let signatures = keys.signature_image("ours", identity, &sha256(index.as_bytes()));
    repository.signatures(&signature_tag(&sha256(index.as_bytes())), &signatures);
    let exact = policy(&json!([{
        "type": "sigstoreSigned",
        "keyPath": key,
        "signedIdentity": {"type": "exactRepository", "dockerRepository": identity},
    }]));
    let registry = repository.serve().await;
    let puller = Puller::new();
    puller.pull(&registry, &exact).await.unwrap();
    assert!(puller.store.judge(&name(&registry), &exact).is_ok());
    // Saved with it, it is enough on a node without the registry, too.
    let archive = puller.dir.path().join("saved.tar");
    let file = std::fs::File::create(&archive).unwrap();
    let names = [name(&registry)];
    puller
        .store
        .save(&names, Platforms::One, ArchiveFormat::Oci, file)
        .unwrap();
    let elsewhere = Puller::new();
    let options = LoadOptions {
        policy: Some(Arc::new(exact)),
        ..LoadOptions::default()
    };
    let loaded = elsewhere.store.load(&archive, &options).unwrap();
    let verdict = &loaded[0].trust.as_ref().unwrap().verdict;
    assert!(matches!(verdict, Verdict::Signed { .. }), "{verdict:?}");
}

#[tokio::test]
async fn signatures_that_refer_to_the_image_are_found() {
    for with_api in [true, false] {
        let (keys, test) = (Keys::new(), image());
        let key = keys.p256("ours");
        let digest = sha256(&test.manifest);
        let signatures = keys.signature_image("ours", "h.example/app", &digest);
        let mut entry = descriptor(
            "application/vnd.oci.image.manifest.v1+json",
            &signatures.manifest,
        );
        entry["artifactType"] = json!("application/vnd.dev.cosign.artifact.sig.v1+json");
        let list = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
        let mut repository = Repository::of(&test);
        repository.signatures("unused", &signatures);
        match with_api {
            true => {
                let path = format!("referrers/{digest}");
                repository.contents.insert(path, list.into_bytes());
            }
            false => repository.manifest(&digest.replace(':', "-"), list.as_bytes()),
        }
        let registry = repository.serve().await;
        let rule = policy(&json!([{
            "type": "sigstoreSigned",
            "keyPath": key,
            "signedIdentity": {"type": "exactRepository", "dockerRepository": "h.example/app"},
        }]));
        Puller::new().pull(&registry, &rule).await.unwrap();
    }
}

#[tokio::test]
async fn hostile_signature_images_cost_little_and_refuse_the_image() {
    let (keys, test) = (Keys::new(), image());
    let key = keys.p256("ours");
    let digest = sha256(&test.manifest);
    let payload = payload("h.example/app", &digest);
    let signature = keys.sign("ours", &payload);
    let thousands = SignatureImage::new(vec![(payload.clone(), signature.clone()); 1000]);
    let mut huge_payload = payload.clone();
    huge_payload.resize(200 << 10, b' ');
    let huge = SignatureImage::new(vec![(huge_payload, signature.clone())]);
    let replayed = keys.signature_image("ours", "h.example/app", &sha256(b"older"));
    let no_base64 = SignatureImage::new(vec![(payload.clone(), "%%%".to_owned())]);
    let no_image = SignatureImage {
        manifest: b"{}".to_vec(),
        ..replayed.clone()
    };
    let mut endless = replayed.clone();
    endless.manifest.resize(2 << 20, b' ');
    let mut absent = SignatureImage::new(vec![(payload, signature)]);
    absent.payloads.clear();
    for (hostile, expected) in [
        (thousands, "1000 signatures"),
        (huge, "larger than"),
        (replayed, "another image"),
        (no_base64, "not base64"),
        (no_image, "not a manifest"),
        (endless, "larger than"),
        (absent, "is not there"),
    ] {
        let mut repository = Repository::of(&test);
        repository.signatures(&signature_tag(&digest), &hostile);
        let registry = repository.serve().await;
        let puller = Puller::new();
        let error = puller
            .pull(&registry, &policy(&signed_by(&key)))
            .await
            .unwrap_err();
        assert!(error.to_string().contains(expected), "{expected}: {error}");
        puller.assert_no_layer_is_here();
        let count = repository.asked().len();
        assert!(count < 10, "{expected}: {count} requests");
    }
}
