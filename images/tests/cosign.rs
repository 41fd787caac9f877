//! cosign itself (Debian's, 2.5 or later) and this store, at Debian's real registry: what the one signs the other takes, and
//! what is forged neither does.
//!
//! `make deps-test` gets cosign: from Debian trixie where the machine's own Debian has none.
#![cfg(feature = "privileged-tests")]
#![allow(clippy::unwrap_used)]

mod support;
#[path = "../src/trust/test_keys.rs"]
mod test_keys;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use podling_images::{
    ImageStore, LoadOptions, Platforms, Policy, PublicKey, PullError, PullOptions, PushOptions,
};
use serde_json::json;
use support::test_archive::{self, Tar, TestImage, sha256};
use support::{Registry, plain_http, pull_options, reference};
use test_keys::{SignatureImage, signature_tag, signed_by};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// cosign with a directory for its keys.
struct Cosign {
    program: PathBuf,
    dir: tempfile::TempDir,
}

impl Cosign {
    fn new() -> Self {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let brought = workspace.join("target/tools/cosign");
        let program = match brought.exists() {
            true => brought,
            false => PathBuf::from("cosign"),
        };
        let dir = tempfile::tempdir().unwrap();
        Self { program, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs it without a transparency log, as a site without a network does.
    fn run(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(&self.program)
            .args(arguments)
            .env("HOME", self.dir.path())
            .env("COSIGN_PASSWORD", "")
            .current_dir(self.dir.path())
            .output()
            .expect("cosign is needed: make deps-test");
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Makes a key pair; gives the path of the public one.
    fn key(&self, name: &str) -> PathBuf {
        let arguments = ["generate-key-pair", "--output-key-prefix", name];
        self.run(&arguments).unwrap();
        self.path(&format!("{name}.pub"))
    }

    fn sign(&self, name: &str, key: &str) {
        let key = format!("{key}.key");
        let arguments = ["sign", "--yes", "--tlog-upload=false", "--key", &key];
        let more = ["--allow-http-registry", name];
        self.run(&[&arguments[..], &more].concat()).unwrap();
    }

    /// `of` is an image in a registry, or `--local-image` with a layout.
    fn verify(&self, key: &str, of: &[&str]) -> Result<String, String> {
        let key = format!("{key}.pub");
        let arguments = ["verify", "--insecure-ignore-tlog", "--key", &key];
        let more = ["--allow-http-registry"];
        self.run(&[&arguments[..], &more, of].concat())
    }
}

fn image() -> TestImage {
    TestImage::new(vec![
        Tar::new().file("content", b"signed by cosign").finish(),
    ])
}

fn pull_by(key: &Path, registry: &Registry) -> PullOptions {
    let policy = json!({"default": signed_by(key)}).to_string();
    let policy = Policy::parse(Path::new("/etc/policy.json"), policy.as_bytes());
    PullOptions {
        policy: Some(Arc::new(policy.unwrap())),
        ..pull_options(&registry.address)
    }
}

#[tokio::test]
async fn what_cosign_signs_is_taken_and_what_is_pushed_cosign_takes() {
    let (registry, cosign, test) = (Registry::start(false), Cosign::new(), image());
    let (ours, theirs) = (cosign.key("ours"), cosign.key("theirs"));
    registry.push(&test, "vendor/app", "1").await;
    let digest = sha256(&test.manifest);
    cosign.sign(&format!("{}/vendor/app@{digest}", registry.address), "ours");

    let store = ImageStore::open(&cosign.path("images")).unwrap();
    let vendor = reference(&registry.address, "vendor/app:1");
    let refused = store.pull(&vendor, &pull_by(&theirs, &registry)).await;
    assert!(matches!(refused.unwrap_err(), PullError::Distrust(_)));
    store
        .pull(&vendor, &pull_by(&ours, &registry))
        .await
        .unwrap();

    let mirror = reference(&registry.address, "mirror/app:1");
    let options = PushOptions {
        docker_config: Some(cosign.path("none.json")),
        registries: plain_http(&registry.address),
        ..PushOptions::default()
    };
    let pushed = store.push(&vendor, &mirror, &options).await.unwrap();
    assert_eq!(pushed.signatures, 1);
    let mirror = mirror.to_string();
    let said = cosign.verify("ours", &[&mirror]).unwrap();
    assert!(said.contains(&digest), "{said}");
    assert!(cosign.verify("theirs", &[&mirror]).is_err());
}

#[tokio::test]
async fn a_signature_that_was_forged_is_refused_by_both() {
    let (registry, cosign, test) = (Registry::start(false), Cosign::new(), image());
    let ours = cosign.key("ours");
    registry.push(&test, "vendor/app", "1").await;
    let other = TestImage::new(vec![Tar::new().file("content", b"something else").finish()]);
    registry.push(&other, "vendor/other", "1").await;
    let (digest, wanted) = (sha256(&other.manifest), sha256(&test.manifest));
    let name = format!("{}/vendor/other@{digest}", registry.address);
    cosign.sign(&name, "ours");

    // The genuine signature of the one image, given to the other; then with the other's digest in what was signed.
    let tag = signature_tag(&digest);
    let genuine = cosign.run(&["download", "signature", "--allow-http-registry", &name]);
    let genuine: serde_json::Value = serde_json::from_str(&genuine.unwrap()).unwrap();
    let field = |name: &str| genuine[name].as_str().unwrap().to_owned();
    let payload = {
        use base64::Engine;
        let engine = base64::engine::general_purpose::STANDARD;
        engine.decode(field("Payload")).unwrap()
    };
    let forged = String::from_utf8(payload.clone()).unwrap();
    let forged = forged.replace(&digest, &wanted).into_bytes();
    assert_ne!(forged, payload, "{tag}");
    let store = ImageStore::open(&cosign.path("images")).unwrap();
    for payload in [payload, forged] {
        let signatures = SignatureImage::new(vec![(payload, field("Base64Signature"))]);
        for blob in signatures.payloads.iter().chain([&signatures.config]) {
            registry.push_blob("vendor/app", blob).await;
        }
        let tag = signature_tag(&wanted);
        registry
            .push_manifest("vendor/app", &tag, MANIFEST, &signatures.manifest)
            .await;
        let app = reference(&registry.address, "vendor/app:1");
        let refused = store.pull(&app, &pull_by(&ours, &registry)).await;
        assert!(matches!(refused.unwrap_err(), PullError::Distrust(_)));
        assert!(store.list().unwrap().is_empty());
        assert!(cosign.verify("ours", &[&app.to_string()]).is_err());
    }
}

#[tokio::test]
async fn what_cosign_saves_is_loaded_and_what_is_saved_cosign_reads() {
    let (registry, cosign, test) = (Registry::start(false), Cosign::new(), image());
    let (ours, theirs) = (cosign.key("ours"), cosign.key("theirs"));
    registry.push(&test, "vendor/app", "1").await;
    let name = format!("{}/vendor/app", registry.address);
    cosign.sign(&format!("{name}@{}", sha256(&test.manifest)), "ours");
    let tagged = format!("{name}:1");
    cosign
        .run(&["save", "--allow-http-registry", "--dir", "saved", &tagged])
        .unwrap();

    let store = ImageStore::open(&cosign.path("images")).unwrap();
    let load = |key: &Path| {
        let options = LoadOptions {
            reference: Some(tagged.parse().unwrap()),
            require_signature: Some(vec![PublicKey::read(key).unwrap()]),
            ..LoadOptions::default()
        };
        store.load(&cosign.path("saved"), &options)
    };
    assert!(load(&theirs).is_err());
    load(&ours).unwrap();

    let layout = cosign.path("layout");
    let names = [tagged.parse().unwrap()];
    store.save_layout(&names, Platforms::One, &layout).unwrap();
    let of = ["--local-image", layout.to_str().unwrap()];
    cosign.verify("ours", &of).unwrap();
    assert!(cosign.verify("theirs", &of).is_err());
    let again = format!("{}/again/app:1", registry.address);
    let load = ["load", "--allow-http-registry", "--dir", "layout", &again];
    cosign.run(&load).unwrap();
    cosign.verify("ours", &[&again]).unwrap();
}
