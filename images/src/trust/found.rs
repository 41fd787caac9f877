//! Signatures as they are kept: an image whose layers are payloads, with each signature in an annotation of its layer
//! (cosign's `specs/SIGNATURE_SPEC.md`), or an artifact whose only layer is a sigstore bundle (`specs/BUNDLE_SPEC.md`).
//!
//! | where | how payloads are found | how bundles are found |
//! |---|---|---|
//! | registry | the tag `sha256-<hex>.sig` beside the image, or a referrer (OCI 1.1) | a referrer |
//! | OCI layout or archive | an entry of `index.json` with that tag, or of the kind that `cosign save` writes | an entry of a bundle's type, or the index with the tag `sha256-<hex>` that lists referrers |
//! | beside a file | `FILE.sig` and `FILE.payload`, as `cosign sign --output-signature --output-payload` writes them | `FILE.sigstore.json`, as `cosign sign --bundle` writes it |
//! | store | blobs, which the image's record names | the same |

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::payload::{PAYLOAD_MAX_BYTES, SignedPayload};
use super::signature::Signature;
use super::sigstore::{BUNDLE_MAX_BYTES, BUNDLE_MEDIA_TYPE, is_bundle};
use super::statement::SIGNATURE_PREDICATE;
use super::{Origin, Verdict};
use crate::digest::Digest;
use crate::manifest::{OCI_CONFIG, OCI_EMPTY, OCI_MANIFEST};

/// Signatures of one image that are looked at. Each costs a request and a verification for each key.
pub(crate) const SIGNATURES_MAX: usize = 128;
/// The manifest of [`SIGNATURES_MAX`] signatures, with all that cosign notes beside each, has some 800 KiB.
pub(crate) const SIGNATURE_MANIFEST_MAX_BYTES: u64 = 1 << 20;
/// A signature image's configuration says nothing.
const CONFIG_MAX_BYTES: u64 = 64 << 10;
/// The content of an empty configuration (image-spec, manifest.md, "Guidance for an Empty Descriptor").
const EMPTY: &[u8] = b"{}";

const PAYLOAD_MEDIA_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
pub(super) const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";
const BUNDLE_CONTENT_ANNOTATION: &str = "dev.sigstore.bundle.content";
pub(super) const BUNDLE_PREDICATE_ANNOTATION: &str = "dev.sigstore.bundle.predicateType";

/// The tag of the signatures of a manifest or index.
pub(crate) fn signature_tag(digest: &Digest) -> String {
    format!("{}-{}.sig", digest.algorithm().name(), digest.hex())
}

/// A part of a signature image that must be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) digest: Digest,
    pub(crate) max_bytes: u64,
    role: Role,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Role {
    Configuration,
    /// What was signed, with the signature in base64.
    Payload(String),
    Bundle,
}

impl Part {
    /// The content, where the digest says it already.
    pub(crate) fn known(&self) -> Option<Vec<u8>> {
        self.digest.matches(EMPTY).then(|| EMPTY.to_vec())
    }
}

/// Signatures, with all that they consist of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SignatureImage {
    /// The manifest, the configuration and the payloads, by digest.
    pub(crate) blobs: Vec<(Digest, Vec<u8>)>,
    pub(crate) signatures: Vec<Signature>,
}

impl SignatureImage {
    /// Puts together what was fetched: the contents of the parts, in their order.
    pub(crate) fn new(manifest: (Digest, Vec<u8>), parts: &[Part], contents: Vec<Vec<u8>>) -> Self {
        let mut image = Self {
            blobs: vec![manifest],
            signatures: Vec::new(),
        };
        for (part, content) in parts.iter().zip(contents) {
            match &part.role {
                Role::Configuration => {}
                Role::Payload(base64) => {
                    image.signatures.push(Signature::Payload(SignedPayload {
                        payload: content.clone(),
                        base64: base64.clone(),
                    }));
                }
                Role::Bundle => image.signatures.push(Signature::Bundle(content.clone())),
            }
            image.blobs.push((part.digest.clone(), content));
        }
        image
    }

    /// Makes one of a payload and a signature that are not in an image, as cosign would.
    pub(crate) fn of_files(payload: Vec<u8>, base64: String) -> Self {
        let digest = Digest::sha256(&payload);
        let layer = json!({
            "mediaType": PAYLOAD_MEDIA_TYPE,
            "size": payload.len(),
            "digest": digest.to_string(),
            "annotations": {SIGNATURE_ANNOTATION: &base64},
        });
        let [manifest, config] = documents(&[layer]);
        let signature = Signature::Payload(SignedPayload {
            payload: payload.clone(),
            base64,
        });
        Self {
            blobs: vec![manifest, config, (digest, payload)],
            signatures: vec![signature],
        }
    }

    /// Makes one of a bundle that is not in a registry, as cosign would; `subject` is the descriptor of what it is for.
    pub(crate) fn of_bundle(bundle: Vec<u8>, subject: Option<Value>) -> Self {
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": BUNDLE_MEDIA_TYPE,
            "config": {
                "mediaType": OCI_EMPTY,
                "size": EMPTY.len(),
                "digest": Digest::sha256(EMPTY).to_string(),
            },
            "layers": [{
                "mediaType": BUNDLE_MEDIA_TYPE,
                "size": bundle.len(),
                "digest": Digest::sha256(&bundle).to_string(),
            }],
            "annotations": {
                BUNDLE_CONTENT_ANNOTATION: "dsse-envelope",
                BUNDLE_PREDICATE_ANNOTATION: SIGNATURE_PREDICATE,
            },
        });
        if let Some(subject) = subject {
            manifest["subject"] = subject;
        }
        let manifest = manifest.to_string().into_bytes();
        Self {
            signatures: vec![Signature::Bundle(bundle.clone())],
            blobs: vec![
                (Digest::sha256(&manifest), manifest),
                (Digest::sha256(EMPTY), EMPTY.to_vec()),
                (Digest::sha256(&bundle), bundle),
            ],
        }
    }

    /// The bundle, if it holds one.
    pub(crate) fn bundle(&self) -> Option<&[u8]> {
        self.signatures
            .iter()
            .find_map(|signature| match signature {
                Signature::Bundle(json) => Some(&json[..]),
                Signature::Payload(_) => None,
            })
    }

    /// What its signatures say that they are of. Nothing is verified by this.
    pub(crate) fn claimed_digests(&self) -> Vec<Digest> {
        let signatures = self.signatures.iter();
        signatures.flat_map(Signature::claimed_digests).collect()
    }

    /// What its manifest refers to.
    pub(crate) fn subject(&self) -> Option<Digest> {
        #[derive(Deserialize)]
        struct Referring {
            subject: RawSubject,
        }
        #[derive(Deserialize)]
        struct RawSubject {
            digest: Digest,
        }
        let (_, manifest) = self.blobs.first()?;
        let referring: Referring = serde_json::from_slice(manifest).ok()?;
        Some(referring.subject.digest)
    }

    pub(crate) fn stored(&self) -> Option<StoredSignatures> {
        let mut digests = self.blobs.iter().map(|(digest, _)| digest.clone());
        Some(StoredSignatures {
            manifest: digests.next()?,
            blobs: digests.collect(),
        })
    }
}

/// How an image came here, why it was allowed, and its signatures, in its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Trust {
    /// Where it came from.
    pub origin: Origin,
    /// The verdict when it came.
    pub verdict: Verdict,
    /// Its signatures, in the store: it can be judged again without a network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signatures: Vec<StoredSignatures>,
}

/// An image of signatures in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredSignatures {
    /// Its manifest.
    pub manifest: Digest,
    /// Its configuration and its payloads.
    pub blobs: Vec<Digest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    config: RawDescriptor,
    layers: Vec<RawDescriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: String,
    digest: Digest,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// True for the manifest of a bundle.
pub(super) fn holds_bundle(manifest: &[u8]) -> bool {
    let manifest: Result<RawManifest, _> = serde_json::from_slice(manifest);
    manifest.is_ok_and(|manifest| {
        manifest
            .layers
            .iter()
            .any(|layer| is_bundle(&layer.media_type))
    })
}

/// The parts of a signature image that must be fetched: its configuration, and its bundle or each payload that has a
/// signature.
pub(crate) fn parts(manifest: &[u8]) -> Result<Vec<Part>, String> {
    let manifest: RawManifest =
        serde_json::from_slice(manifest).map_err(|e| format!("it is not a manifest: {e}"))?;
    let config = Part {
        digest: manifest.config.digest,
        max_bytes: CONFIG_MAX_BYTES,
        role: Role::Configuration,
    };
    let (bundles, others): (Vec<_>, Vec<_>) = manifest
        .layers
        .into_iter()
        .partition(|layer| is_bundle(&layer.media_type));
    if !bundles.is_empty() {
        return Ok(vec![config, bundle_part(bundles)?]);
    }
    let signed = others.into_iter().filter_map(|mut layer| {
        let base64 = layer.annotations.remove(SIGNATURE_ANNOTATION)?;
        (layer.media_type == PAYLOAD_MEDIA_TYPE).then_some(Part {
            digest: layer.digest,
            max_bytes: PAYLOAD_MAX_BYTES,
            role: Role::Payload(base64),
        })
    });
    let parts: Vec<_> = std::iter::once(config).chain(signed).collect();
    match parts.len() - 1 {
        0 => Err("there is no signature in it".to_owned()),
        1..=SIGNATURES_MAX => Ok(parts),
        n => Err(format!(
            "there are {n} signatures in it; at most {SIGNATURES_MAX} are looked at"
        )),
    }
}

/// An artifact holds one bundle. One that is too large is not fetched: it is an attestation, which may have megabytes.
fn bundle_part(layers: Vec<RawDescriptor>) -> Result<Part, String> {
    let layer = match <[_; 1]>::try_from(layers) {
        Ok([layer]) => layer,
        Err(layers) => return Err(format!("there are {} bundles in it", layers.len())),
    };
    if layer.size > BUNDLE_MAX_BYTES {
        return Err(format!(
            "its bundle has {} bytes; at most {BUNDLE_MAX_BYTES} are read",
            layer.size
        ));
    }
    Ok(Part {
        digest: layer.digest,
        max_bytes: BUNDLE_MAX_BYTES,
        role: Role::Bundle,
    })
}

/// The manifest of an image whose layers are signed payloads, and its configuration, as cosign makes them.
pub(super) fn documents(layers: &[Value]) -> [(Digest, Vec<u8>); 2] {
    let diff_ids: Vec<_> = layers.iter().map(|layer| &layer["digest"]).collect();
    let config = json!({
        "architecture": "",
        "config": {},
        "os": "",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": OCI_CONFIG,
            "size": config.len(),
            "digest": Digest::sha256(&config).to_string(),
        },
        "layers": layers,
    });
    [manifest.to_string().into_bytes(), config].map(|json| (Digest::sha256(&json), json))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_image_of_files_is_one_that_is_understood() {
        let image = SignatureImage::of_files(b"payload".to_vec(), "c2ln".to_owned());
        let parts = parts(&image.blobs[0].1).unwrap();
        let contents = image.blobs[1..].iter().map(|(_, content)| content.clone());
        let again = SignatureImage::new(image.blobs[0].clone(), &parts, contents.collect());
        assert_eq!(again, image);
        assert!(
            image
                .blobs
                .iter()
                .all(|(digest, content)| digest.matches(content))
        );
    }

    #[test]
    fn an_artifact_of_a_bundle_is_one_that_is_understood() {
        let image = SignatureImage::of_bundle(b"a bundle".to_vec(), None);
        let parts = parts(&image.blobs[0].1).unwrap();
        assert_eq!(parts[0].known().as_deref(), Some(EMPTY));
        let contents = vec![EMPTY.to_vec(), b"a bundle".to_vec()];
        let again = SignatureImage::new(image.blobs[0].clone(), &parts, contents);
        assert_eq!(again, image);
        assert_eq!(again.bundle(), Some(&b"a bundle"[..]));
    }

    #[test]
    fn an_artifact_of_a_huge_bundle_or_of_several_is_refused_before_one_is_fetched() {
        let image = SignatureImage::of_bundle(b"a bundle".to_vec(), None);
        let mut manifest: Value = serde_json::from_slice(&image.blobs[0].1).unwrap();
        manifest["layers"][0]["size"] = json!(BUNDLE_MAX_BYTES + 1);
        let refused = parts(manifest.to_string().as_bytes()).unwrap_err();
        assert!(refused.contains("has 131073 bytes"), "{refused}");
        manifest["layers"] = json!(vec![manifest["layers"][0].clone(); 3]);
        let refused = parts(manifest.to_string().as_bytes()).unwrap_err();
        assert!(refused.contains("3 bundles"), "{refused}");
    }

    fn manifest(signatures: usize) -> String {
        let digest = Digest::sha256(b"x").to_string();
        let layer = json!({
            "mediaType": PAYLOAD_MEDIA_TYPE, "digest": digest, "size": 1,
            "annotations": {SIGNATURE_ANNOTATION: "c2ln"},
        });
        let config = json!({"mediaType": OCI_CONFIG, "digest": digest, "size": 1});
        json!({"schemaVersion": 2, "config": config, "layers": vec![layer; signatures]}).to_string()
    }

    #[test]
    fn a_manifest_of_thousands_of_signatures_is_refused_before_one_is_fetched() {
        assert_eq!(
            parts(manifest(SIGNATURES_MAX).as_bytes()).unwrap().len(),
            SIGNATURES_MAX + 1
        );
        let refused = parts(manifest(5000).as_bytes()).unwrap_err();
        assert!(refused.contains("5000 signatures"), "{refused}");
    }

    #[test]
    fn what_is_no_signature_image_is_refused() {
        let other_type = manifest(1).replace("simplesigning", "other");
        let no_annotation = manifest(1).replace("cosign/signature", "cosign/other");
        for text in [
            "",
            "{}",
            "[]",
            "{\"manifests\": []}",
            &manifest(0),
            &other_type,
            &no_annotation,
        ] {
            assert!(parts(text.as_bytes()).is_err(), "{text}");
        }
    }
}
