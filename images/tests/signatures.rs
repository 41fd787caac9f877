//! Signed images at Debian's real registry, compared with skopeo where that of Debian 12 can: it is built without sigstore's
//! cryptography, so that it finds, copies and stores such signatures, and judges policies, but verifies none.
#![cfg(feature = "privileged-tests")]
#![allow(clippy::unwrap_used)]

mod support;
#[path = "../src/trust/test_keys.rs"]
mod test_keys;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use podling_images::trust::Verdict;
use podling_images::{
    Image, ImageStore, LoadOptions, Policy, PublicKey, PullError, PullOptions, PushOptions,
};
use serde_json::{Value, json};
use support::test_archive::{self, Tar, TestImage, sha256};
use support::{Registry, plain_http, pull_options, reference};
use test_keys::{
    BUNDLE, Keys, SignatureImage, attestation, bundle_by, payload, signature_tag, signed_by,
    statement,
};

/// A policy of skopeo's that allows everything.
const ACCEPT: &str = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn image() -> TestImage {
    TestImage::new(vec![Tar::new().file("content", b"signed").finish()])
}

async fn push_signed(
    registry: &Registry,
    image: &TestImage,
    repository: &str,
    keys: &Keys,
    key: &str,
) {
    registry.push(image, repository, "1").await;
    let digest = sha256(&image.manifest);
    let identity = format!("{}/{repository}", registry.address);
    let signatures = keys.signature_image(key, &identity, &digest);
    for blob in signatures.payloads.iter().chain([&signatures.config]) {
        registry.push_blob(repository, blob).await;
    }
    let tag = signature_tag(&digest);
    registry
        .push_manifest(repository, &tag, MANIFEST, &signatures.manifest)
        .await;
}

/// Pushes a bundle beside an image, as cosign 3 does where there is no referrers API (Debian's registry has none).
async fn push_bundles(
    registry: &Registry,
    image: &TestImage,
    repository: &str,
    bundles: Vec<Vec<u8>>,
) {
    let mut entries = Vec::new();
    for bundle in bundles {
        let artifact = SignatureImage::of_bundle(bundle, &image.manifest);
        for blob in artifact.payloads.iter().chain([&artifact.config]) {
            registry.push_blob(repository, blob).await;
        }
        let digest = sha256(&artifact.manifest);
        registry
            .push_manifest(repository, &digest, MANIFEST, &artifact.manifest)
            .await;
        entries.push(artifact.referrer(BUNDLE));
    }
    let kind = "application/vnd.oci.image.index.v1+json";
    let list = json!({"schemaVersion": 2, "mediaType": kind, "manifests": entries}).to_string();
    let tag = sha256(&image.manifest).replace(':', "-");
    registry
        .push_manifest(repository, &tag, kind, list.as_bytes())
        .await;
}

async fn pull(registry: &Registry, name: &str, policy: &Value) -> Result<Image, PullError> {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    let policy = Policy::parse(Path::new("/etc/policy.json"), policy.to_string().as_bytes());
    let options = PullOptions {
        policy: Some(Arc::new(policy.unwrap())),
        ..pull_options(&registry.address)
    };
    let reference = reference(&registry.address, name);
    let pulled = store.pull(&reference, &options).await;
    if pulled.is_ok() {
        assert_eq!(store.verify().unwrap(), []);
    }
    pulled
}

/// Runs skopeo with a policy, and with signatures in registries turned on.
fn skopeo(dir: &Path, policy: &str, arguments: &[&str]) -> Result<(), String> {
    let registries = dir.join("registries.d");
    std::fs::create_dir_all(&registries).unwrap();
    let settings = "default-docker:\n  use-sigstore-attachments: true\n";
    std::fs::write(registries.join("default.yaml"), settings).unwrap();
    std::fs::write(dir.join("policy.json"), policy).unwrap();
    let output = Command::new("skopeo")
        .arg("--policy")
        .arg(dir.join("policy.json"))
        .arg("--registries.d")
        .arg(&registries)
        .args(arguments)
        .output()
        .expect("skopeo is needed: apt-get install skopeo");
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

#[tokio::test]
async fn a_signature_beside_the_image_is_found_and_counts() {
    let (registry, keys, test) = (Registry::start(false), Keys::new(), image());
    let (ours, theirs) = (keys.p256("ours"), keys.p256("theirs"));
    push_signed(&registry, &test, "team/app", &keys, "ours").await;
    registry.push(&test, "team/unsigned", "1").await;
    let policy = |key: &Path| json!({"default": signed_by(key)});
    let pulled = pull(&registry, "team/app:1", &policy(&ours)).await.unwrap();
    let verdict = pulled.trust.unwrap().verdict;
    assert!(matches!(verdict, Verdict::Signed { .. }), "{verdict:?}");
    let pinned = format!("team/app@{}", sha256(&test.manifest));
    pull(&registry, &pinned, &policy(&ours)).await.unwrap();
    for (name, key) in [("team/app:1", &theirs), ("team/unsigned:1", &ours)] {
        let error = pull(&registry, name, &policy(key)).await.unwrap_err();
        assert!(matches!(error, PullError::Distrust(_)), "{name}: {error}");
    }
    // Debian's skopeo finds the same signature, and says that it cannot check it.
    let dir = tempfile::tempdir().unwrap();
    let source = |name: &str| format!("docker://{}/{name}", registry.address);
    let out = format!("dir:{}", dir.path().join("out").display());
    let text = policy(&ours).to_string();
    let copy = |name: &str| {
        let arguments = ["copy", "--src-tls-verify=false", &source(name), &out];
        skopeo(dir.path(), &text, &arguments).unwrap_err()
    };
    assert!(!copy("team/app:1").contains("no signature exists"));
    assert!(copy("team/unsigned:1").contains("no signature exists"));
}

#[tokio::test]
async fn a_signature_that_skopeo_copied_to_a_mirror_counts() {
    let (registry, keys, test) = (Registry::start(false), Keys::new(), image());
    let key = keys.p256("ours");
    push_signed(&registry, &test, "vendor/app", &keys, "ours").await;
    let dir = tempfile::tempdir().unwrap();
    let name = |repository: &str| format!("docker://{}/{repository}/app:1", registry.address);
    let arguments = [
        "copy",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        &name("vendor"),
        &name("mirror"),
    ];
    skopeo(dir.path(), ACCEPT, &arguments).unwrap();
    let exact = |repository: &str| {
        let repository = format!("{}/{repository}/app", registry.address);
        json!({"default": [{
            "type": "sigstoreSigned",
            "keyPath": key,
            "signedIdentity": {"type": "exactRepository", "dockerRepository": repository},
        }]})
    };
    pull(&registry, "mirror/app:1", &exact("vendor"))
        .await
        .unwrap();
    assert!(
        pull(&registry, "mirror/app:1", &exact("mirror"))
            .await
            .is_err()
    );
}

#[tokio::test]
async fn verdicts_by_scope_are_those_of_skopeo() {
    let (registry, test) = (Registry::start(false), image());
    registry.push(&test, "team/app", "1").await;
    let host = &registry.address;
    let digest = sha256(&test.manifest);
    let (accept, reject) = (
        json!([{"type": "insecureAcceptAnything"}]),
        json!([{"type": "reject"}]),
    );
    let both = json!([{"type": "insecureAcceptAnything"}, {"type": "reject"}]);
    let scope = |scope: &str| scope.replace("HOST", host);
    let mut policies = vec![
        json!({"default": accept}),
        json!({"default": reject}),
        json!({"default": both}),
        json!({"default": accept, "transports": {"docker": {scope("HOST/team"): reject, scope("HOST/team/app"): accept}}}),
        json!({"default": accept, "transports": {"docker": {scope("HOST/team"): accept, scope("HOST/team/app"): reject}}}),
    ];
    for scope in [
        scope("HOST/team/app:1"),
        scope("HOST/team/app:2"),
        format!("{host}/team/app@{digest}"),
        scope("HOST/team/app"),
        scope("HOST/team/ap"),
        scope("HOST/team"),
        scope("HOST"),
        "127.0.0.1".to_owned(),
        "*.0.0.1".to_owned(),
        "*.0.1".to_owned(),
        "*.0.0.2".to_owned(),
        String::new(),
    ] {
        policies.push(json!({"default": reject, "transports": {"docker": {scope: accept}}}));
    }
    policies.push(json!({"default": reject, "transports": {"oci": {"": accept}, "docker-daemon": {"": accept}}}));
    let dir = tempfile::tempdir().unwrap();
    let (mut allowed, mut refused) = (0, 0);
    for policy in policies {
        for name in ["team/app:1".to_owned(), format!("team/app@{digest}")] {
            let source = format!("docker://{host}/{name}");
            let out = format!("dir:{}", dir.path().join("out").display());
            let arguments = ["copy", "--src-tls-verify=false", &source, &out];
            let theirs = skopeo(dir.path(), &policy.to_string(), &arguments);
            let ours = pull(&registry, &name, &policy).await;
            assert_eq!(
                ours.is_ok(),
                theirs.is_ok(),
                "{name} {policy}: {ours:?} {theirs:?}"
            );
            match ours {
                Ok(_) => allowed += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert!(allowed > 8 && refused > 8, "{allowed} {refused}");
}

#[tokio::test]
async fn policies_that_skopeo_refuses_are_refused() {
    let (registry, keys) = (Registry::start(false), Keys::new());
    registry.push(&image(), "team/app", "1").await;
    let key = keys.p256("key");
    let key = key.to_str().unwrap();
    let reject = r#"[{"type":"reject"}]"#;
    let signed = |more: &str| format!(r#"{{"default":[{{"type":"sigstoreSigned",{more}}}]}}"#);
    let dir = tempfile::tempdir().unwrap();
    let source = format!("docker://{}/team/app:1", registry.address);
    let out = format!("dir:{}", dir.path().join("out").display());
    for text in [
        String::new(),
        "{}".to_owned(),
        r#"{"default":[]}"#.to_owned(),
        r#"{"default":[{"type":"accept"}]}"#.to_owned(),
        r#"{"default":[{"type":"reject","more":1}]}"#.to_owned(),
        format!(r#"{{"default":{reject},"more":1}}"#),
        format!(r#"{{"default":{reject},"default":{reject}}}"#),
        format!(
            r#"{{"default":{reject},"transports":{{"docker":{{"a.example":{reject},"a.example":{reject}}}}}}}"#
        ),
        format!(r#"{{"default":{reject},"transports":{{"oci":{{"relative":{reject}}}}}}}"#),
        format!(r#"{{"default":{reject},"transports":{{"oci":{{"/":{reject}}}}}}}"#),
        format!(r#"{{"default":{reject},"transports":{{"docker-archive":{{"/a":{reject}}}}}}}"#),
        signed(r#""keyFile":"x""#),
        signed(&format!(r#""keyPath":"{key}","keyData":"eA==""#)),
        signed(&format!(
            r#""keyPath":"{key}","signedIdentity":{{"type":"matchAll"}}"#
        )),
        signed(&format!(
            r#""keyPath":"{key}","signedIdentity":{{"type":"exactReference","dockerReference":"a.example/b"}}"#
        )),
        signed(&format!(
            r#""keyPath":"{key}","signedIdentity":{{"type":"remapIdentity","prefix":"a.example/b:1","signedPrefix":"c.example"}}"#
        )),
    ] {
        let arguments = ["copy", "--src-tls-verify=false", &source, &out];
        let theirs = skopeo(dir.path(), &text, &arguments).unwrap_err();
        assert!(
            !theirs.contains("Source image rejected"),
            "{text}: {theirs}"
        );
        let ours = Policy::parse(Path::new("/etc/policy.json"), text.as_bytes());
        assert!(ours.is_err(), "{text}");
    }
}

#[tokio::test]
async fn an_archive_of_skopeos_is_loaded_with_a_signature_beside_it() {
    let (registry, keys, test) = (Registry::start(false), Keys::new(), image());
    let key = keys.p256("ours");
    registry.push(&test, "team/app", "1").await;
    let dir = tempfile::tempdir().unwrap();
    let name = format!("{}/team/app:1", registry.address);
    let archive = dir.path().join("app.tar");
    let target = format!("oci-archive:{}:{name}", archive.display());
    let arguments = [
        "copy",
        "--src-tls-verify=false",
        &format!("docker://{name}"),
        &target,
    ];
    skopeo(dir.path(), ACCEPT, &arguments).unwrap();
    let payload = payload(
        &format!("{}/team/app", registry.address),
        &sha256(&test.manifest),
    );
    std::fs::write(dir.path().join("app.tar.sig"), keys.sign("ours", &payload)).unwrap();
    std::fs::write(dir.path().join("app.tar.payload"), payload).unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    let options = LoadOptions {
        require_signature: Some(vec![PublicKey::read(&key).unwrap()]),
        ..LoadOptions::default()
    };
    let loaded = store.load(&archive, &options).unwrap();
    assert_eq!(loaded[0].references[0].to_string(), name);
    keys.p256("theirs");
    let options = LoadOptions {
        require_signature: Some(vec![PublicKey::read(&keys.path("theirs.pub")).unwrap()]),
        ..LoadOptions::default()
    };
    assert!(store.load(&archive, &options).is_err());
}

#[tokio::test]
async fn a_bundle_of_cosign_3_at_the_real_registry_counts() {
    let (registry, keys, test) = (Registry::start(false), Keys::new(), image());
    let (ours, theirs) = (keys.p256("ours"), keys.p256("theirs"));
    let digest = sha256(&test.manifest);
    let attested = keys.bundle("ours", &attestation(&digest));
    let signed = keys.bundle("ours", &statement(&digest));
    for (repository, bundles) in [
        ("team/app", vec![attested.clone(), signed]),
        ("team/attested", vec![attested]),
    ] {
        registry.push(&test, repository, "1").await;
        push_bundles(&registry, &test, repository, bundles).await;
    }
    let policy = |requirements: Value| json!({"default": requirements});
    let rule = policy(bundle_by(&ours));
    let pulled = pull(&registry, "team/app:1", &rule).await.unwrap();
    let verdict = pulled.trust.unwrap().verdict;
    assert!(matches!(verdict, Verdict::Signed { .. }), "{verdict:?}");
    for (name, rule, expected) in [
        ("team/app:1", policy(signed_by(&ours)), "acceptUnnamed"),
        (
            "team/app:1",
            policy(bundle_by(&theirs)),
            "not made with the key",
        ),
        ("team/attested:1", rule, "it is an attestation"),
    ] {
        let error = pull(&registry, name, &rule).await.unwrap_err();
        assert!(matches!(error, PullError::Distrust(_)), "{name}: {error}");
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
}

/// A mirror for a fleet that asks for signatures: pulled with them, pushed with them, and pulled by the fleet.
#[tokio::test]
async fn an_image_is_pushed_with_its_signatures() {
    let (registry, keys, test) = (Registry::start(false), Keys::new(), image());
    let key = keys.p256("ours");
    keys.p256("mirrors");
    push_signed(&registry, &test, "vendor/app", &keys, "ours").await;
    let bundle = keys.bundle("ours", &statement(&sha256(&test.manifest)));
    push_bundles(&registry, &test, "vendor/app", vec![bundle]).await;
    // The mirror has signed it, too: that stays.
    push_signed(&registry, &test, "mirror/app", &keys, "mirrors").await;
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    let options = PullOptions {
        signatures: true,
        ..pull_options(&registry.address)
    };
    let name = |repository: &str| reference(&registry.address, &format!("{repository}/app:1"));
    store.pull(&name("vendor"), &options).await.unwrap();
    let options = PushOptions {
        docker_config: Some(dir.path().join("none.json")),
        registries: plain_http(&registry.address),
        ..PushOptions::default()
    };
    // Twice: nothing is there twice afterwards.
    for repository in ["mirror", "mirror", "copy"] {
        let target = name(repository);
        let pushed = store.push(&name("vendor"), &target, &options).await;
        assert_eq!(pushed.unwrap().signatures, 2);
    }
    let without = PushOptions {
        remove_signatures: true,
        ..options
    };
    let pushed = store.push(&name("vendor"), &name("bare"), &without).await;
    assert_eq!(pushed.unwrap().signatures, 0);
    let of_vendor = |requirements: Value| {
        let mut rule = json!({"default": requirements});
        rule["default"][0]["signedIdentity"] = json!({
            "type": "exactRepository",
            "dockerRepository": format!("{}/vendor/app", registry.address),
        });
        rule
    };
    for repository in ["mirror", "copy"] {
        // By the classic signature, then by the bundle alone.
        let image = format!("{repository}/app:1");
        let classic = of_vendor(signed_by(&key));
        pull(&registry, &image, &classic).await.unwrap();
        let mut other_name = json!({"default": bundle_by(&key)});
        other_name["default"][0]["signedIdentity"] = json!({
            "type": "exactRepository",
            "dockerRepository": "h.example/nothing",
        });
        let pulled = pull(&registry, &image, &other_name).await.unwrap();
        let verdict = pulled.trust.unwrap().verdict;
        assert!(
            matches!(&verdict, Verdict::Signed { signed_by, .. } if signed_by[0].identity.is_none()),
            "{verdict:?}"
        );
    }
    let by_mirror = json!({"default": signed_by(&keys.path("mirrors.pub"))});
    pull(&registry, "mirror/app:1", &by_mirror).await.unwrap();
    let bare = pull(&registry, "bare/app:1", &of_vendor(bundle_by(&key))).await;
    assert!(matches!(bare.unwrap_err(), PullError::Distrust(_)));
    // skopeo still reads what was merged.
    let out = format!("docker://{}/again/app:1", registry.address);
    let source = format!("docker://{}", name("mirror"));
    let flags = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    let arguments = ["copy", flags[0], flags[1], &source, &out];
    skopeo(dir.path(), ACCEPT, &arguments).unwrap();
    pull(&registry, "again/app:1", &by_mirror_of(&keys, &registry))
        .await
        .unwrap();
}

/// Signed by the mirror, under the mirror's name.
fn by_mirror_of(keys: &Keys, registry: &Registry) -> Value {
    json!({"default": [{
        "type": "sigstoreSigned",
        "keyPath": keys.path("mirrors.pub"),
        "signedIdentity": {
            "type": "exactRepository",
            "dockerRepository": format!("{}/mirror/app", registry.address),
        },
    }]})
}
