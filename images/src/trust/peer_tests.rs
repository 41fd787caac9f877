//! Signatures that cosign and skopeo made, each by their own command: `tests/fixtures/sigstore` has them.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::payload::SignedPayload;
use super::test_keys::{bundle_by, signed_by};
use super::*;
use crate::digest::Digest;

/// What all of them are signatures of.
const MANIFEST: &str = "sha256:d2d9be8252254fe79f658f22beafdaf8917e9b9d0a0711701b70eacc9685ac30";

fn fixture(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sigstore");
    dir.join(name)
}

fn read(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap()
}

fn classic(name: &str) -> SignedPayload {
    SignedPayload {
        payload: read(&format!("{name}.payload")),
        base64: String::from_utf8(read(&format!("{name}.sig"))).unwrap(),
    }
}

fn judge(requirements: &Value, image: &str, of: &str, signature: &Signature) -> Result<(), String> {
    let json = json!({"default": requirements}).to_string();
    let policy = Policy::parse(Path::new("/etc/podling/policy.json"), json.as_bytes()).unwrap();
    let image = image.parse().unwrap();
    let found = Found {
        signatures: vec![signature],
        problems: &[],
    };
    let manifest: Digest = of.parse().unwrap();
    let subject = Subject {
        image: &image,
        manifest: &manifest,
        index: None,
    };
    let verdict = policy.rules(&Origin::Docker, &image).judge(subject, &found);
    match verdict.map_err(|e| e.to_string())? {
        Verdict::Signed { .. } => Ok(()),
        verdict => panic!("{verdict:?}"),
    }
}

#[test]
fn signatures_that_cosign_and_skopeo_made_count_by_their_key_and_name() {
    for (name, image, other_image, other_key) in [
        (
            "cosign-2",
            "127.0.0.1:5000/sig/c2:1",
            "127.0.0.1:5000/sig/sk:1",
            "skopeo.pub",
        ),
        (
            "cosign-3",
            "127.0.0.1:5000/sig/c3classic:1",
            "127.0.0.1:5000/sig/c3:1",
            "cosign-2.pub",
        ),
        (
            "skopeo",
            "127.0.0.1:5000/sig/sk:1",
            "127.0.0.1:5000/sig/c2:1",
            "cosign-3.pub",
        ),
    ] {
        let rule = signed_by(&fixture(&format!("{name}.pub")));
        let signature = Signature::Payload(classic(name));
        judge(&rule, image, MANIFEST, &signature).unwrap();
        for (rule, image, of, expected) in [
            (
                &rule,
                other_image,
                MANIFEST.to_owned(),
                "it is for the name",
            ),
            (
                &rule,
                image,
                Digest::sha256(b"other").to_string(),
                "of another image",
            ),
            (
                &signed_by(&fixture(other_key)),
                image,
                MANIFEST.to_owned(),
                "not made with the key",
            ),
        ] {
            let refused = judge(rule, image, &of, &signature).unwrap_err();
            assert!(refused.contains(expected), "{name}: {refused}");
        }
        // By one byte of what was signed.
        let mut forged = classic(name);
        let end = forged.payload.len() - 3;
        forged.payload[end] ^= 1;
        judge(&rule, image, MANIFEST, &Signature::Payload(forged)).unwrap_err();
    }
}

#[test]
fn a_bundle_that_cosign_made_counts_where_the_policy_takes_unnamed_ones() {
    let (key, bundle) = (fixture("cosign-3.pub"), read("cosign-3.sigstore.json"));
    let image = "127.0.0.1:5000/sig/c3:1";
    let signature = Signature::Bundle(bundle);
    judge(&bundle_by(&key), image, MANIFEST, &signature).unwrap();
    let refused = judge(&signed_by(&key), image, MANIFEST, &signature).unwrap_err();
    assert!(refused.contains("acceptUnnamed"), "{refused}");
    let other = bundle_by(&fixture("cosign-2.pub"));
    let refused = judge(&other, image, MANIFEST, &signature).unwrap_err();
    assert!(refused.contains("not made with the key"), "{refused}");
    let elsewhere = Digest::sha256(b"other").to_string();
    judge(&bundle_by(&key), image, &elsewhere, &signature).unwrap_err();
}
