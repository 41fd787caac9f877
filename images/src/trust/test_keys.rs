//! Keys and signatures for tests, made by `openssl` as cosign makes them.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use serde_json::{Value, json};

use super::test_archive::{descriptor, sha256};

/// The media type of a sigstore bundle.
pub const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// Keys in a directory.
pub struct Keys {
    dir: tempfile::TempDir,
}

impl Keys {
    pub fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes `name` and `name.pub`; gives the path of the latter.
    pub fn make(&self, name: &str, arguments: &[&str]) -> PathBuf {
        let public = self.path(&format!("{name}.pub"));
        let private = self.path(name);
        let private = private.to_str().unwrap();
        openssl(&[&["genpkey", "-out", private], arguments].concat());
        openssl(&[
            "pkey",
            "-in",
            private,
            "-pubout",
            "-out",
            public.to_str().unwrap(),
        ]);
        public
    }

    /// The kind that `cosign generate-key-pair` makes.
    pub fn p256(&self, name: &str) -> PathBuf {
        self.make(
            name,
            &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
        )
    }

    /// The signature of a payload, base64.
    pub fn sign(&self, name: &str, payload: &[u8]) -> String {
        self.sign_with(name, payload, &["-sha256"])
    }

    /// With another hash, or none for Ed25519, which has its own.
    pub fn sign_with(&self, name: &str, payload: &[u8], hash: &[&str]) -> String {
        let (key, file) = (self.path(name), self.path("payload"));
        std::fs::write(&file, payload).unwrap();
        let (key, file) = (key.to_str().unwrap(), file.to_str().unwrap());
        let signature = match hash {
            [] => openssl(&["pkeyutl", "-sign", "-rawin", "-inkey", key, "-in", file]),
            hash => openssl(&[&["dgst"], hash, &["-sign", key, file]].concat()),
        };
        base64::engine::general_purpose::STANDARD.encode(signature)
    }

    /// A signature image for `digest` under the name `identity`.
    pub fn signature_image(&self, key: &str, identity: &str, digest: &str) -> SignatureImage {
        let payload = payload(identity, digest);
        SignatureImage::new(vec![(payload.clone(), self.sign(key, &payload))])
    }

    /// A sigstore bundle of a statement, as cosign 3 makes it.
    pub fn bundle(&self, key: &str, statement: &Value) -> Vec<u8> {
        self.bundle_with(key, statement, &["-sha256"])
    }

    /// With another hash, or none for Ed25519.
    pub fn bundle_with(&self, key: &str, statement: &Value, hash: &[&str]) -> Vec<u8> {
        let (kind, payload) = ("application/vnd.in-toto+json", statement.to_string());
        let message = format!("DSSEv1 {} {kind} {} {payload}", kind.len(), payload.len());
        let engine = base64::engine::general_purpose::STANDARD;
        json!({
            "mediaType": BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": ""}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": engine.encode(&payload),
                "payloadType": kind,
                "signatures": [{"sig": self.sign_with(key, message.as_bytes(), hash)}],
            },
        })
        .to_string()
        .into_bytes()
    }
}

/// What `cosign sign` states of an image, and nothing more.
pub fn statement(digest: &str) -> Value {
    let (algorithm, hex) = digest.split_once(':').unwrap();
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {algorithm: hex}, "annotations": {}}],
        "predicateType": "https://sigstore.dev/cosign/sign/v1",
        "predicate": {},
    })
}

/// What is no signature, of the same image.
pub fn attestation(digest: &str) -> Value {
    let mut statement = statement(digest);
    statement["predicateType"] = json!("https://slsa.dev/provenance/v1");
    statement
}

fn openssl(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments:?}: {errors}");
    output.stdout
}

/// What cosign signs.
pub fn payload(identity: &str, digest: &str) -> Vec<u8> {
    json!({
        "critical": {
            "identity": {"docker-reference": identity},
            "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
        },
        "optional": null,
    })
    .to_string()
    .into_bytes()
}

/// An image of signatures, as cosign pushes it.
#[derive(Clone)]
pub struct SignatureImage {
    pub manifest: Vec<u8>,
    pub config: Vec<u8>,
    pub payloads: Vec<Vec<u8>>,
}

impl SignatureImage {
    /// Of payloads with their signatures.
    pub fn new(signed: Vec<(Vec<u8>, String)>) -> Self {
        let config =
            br#"{"architecture":"","config":{},"os":"","rootfs":{"diff_ids":[],"type":"layers"}}"#;
        let layers: Vec<_> = signed
            .iter()
            .map(|(payload, signature)| {
                let kind = "application/vnd.dev.cosign.simplesigning.v1+json";
                let mut layer = descriptor(kind, payload);
                layer["annotations"] = json!({"dev.cosignproject.cosign/signature": signature});
                layer
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": layers,
        });
        Self {
            manifest: manifest.to_string().into_bytes(),
            config: config.to_vec(),
            payloads: signed.into_iter().map(|(payload, _)| payload).collect(),
        }
    }

    /// Of a sigstore bundle that refers to an image, as cosign 3 pushes it.
    pub fn of_bundle(bundle: Vec<u8>, subject: &[u8]) -> Self {
        let config = b"{}".to_vec();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": BUNDLE,
            "config": descriptor("application/vnd.oci.empty.v1+json", &config),
            "layers": [descriptor(BUNDLE, &bundle)],
            "subject": descriptor("application/vnd.oci.image.manifest.v1+json", subject),
        });
        Self {
            manifest: manifest.to_string().into_bytes(),
            config,
            payloads: vec![bundle],
        }
    }

    /// Its entry in a list of referrers.
    pub fn referrer(&self, artifact_type: &str) -> Value {
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let mut entry = descriptor(kind, &self.manifest);
        entry["artifactType"] = json!(artifact_type);
        entry
    }

    pub fn blobs(&self) -> impl Iterator<Item = &Vec<u8>> {
        [&self.manifest, &self.config]
            .into_iter()
            .chain(&self.payloads)
    }
}

/// The tag of the signatures of a manifest.
pub fn signature_tag(digest: &str) -> String {
    format!("{}.sig", digest.replace(':', "-"))
}

/// The tag of the signatures of a manifest.
pub fn signature_tag_of(manifest: &[u8]) -> String {
    signature_tag(&sha256(manifest))
}

/// A requirement that cosign's signatures by this key fulfil.
pub fn signed_by(key: &Path) -> Value {
    json!([{
        "type": "sigstoreSigned",
        "keyPath": key,
        "signedIdentity": {"type": "matchRepository"},
    }])
}

/// The same, for bundles that name no image.
pub fn bundle_by(key: &Path) -> Value {
    let mut requirements = signed_by(key);
    requirements[0]["acceptUnnamed"] = json!(true);
    requirements
}
