//! Signatures as they are kept: an image whose layers are payloads, with each signature in an annotation of its layer
//! (cosign's `specs/SIGNATURE_SPEC.md`).
//!
//! | where | how it is found |
//! |---|---|
//! | registry | the tag `sha256-<hex>.sig` beside the image, or a referrer (OCI 1.1) of cosign's artifact type |
//! | OCI layout or archive | an entry of `index.json` with that tag, or of the kind that `cosign save` writes |
//! | beside a file | `FILE.sig` and `FILE.payload`, as `cosign sign --output-signature --output-payload` writes them |
//! | store | blobs, which the image's record names |

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::payload::{PAYLOAD_MAX_BYTES, Signature};
use super::{Origin, Verdict};
use crate::digest::Digest;

/// Signatures of one image that are looked at. Each costs a request and a verification for each key.
pub(crate) const SIGNATURES_MAX: usize = 128;
/// Images of signatures that are looked at for one digest.
pub(crate) const SIGNATURE_IMAGES_MAX: usize = 16;
/// The manifest of [`SIGNATURES_MAX`] signatures, with all that cosign notes beside each, has some 800 KiB.
pub(crate) const SIGNATURE_MANIFEST_MAX_BYTES: u64 = 1 << 20;
/// A signature image's configuration says nothing.
const CONFIG_MAX_BYTES: u64 = 64 << 10;

const PAYLOAD_MEDIA_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// Of a referrer.
const ARTIFACT_TYPE: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
/// In the index of a layout that cosign wrote.
const KIND_ANNOTATION: &str = "kind";
const KIND_PREFIX: &str = "dev.cosignproject.cosign/";
const IMAGE_KINDS: [&str; 2] = ["image", "imageIndex"];
const SIGNATURE_KIND: &str = "sigs";
const REF_NAME_ANNOTATION: &str = "org.opencontainers.image.ref.name";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// How cosign marks signatures in the index of a layout: key and value.
pub(crate) const SIGNATURES_ANNOTATION: (&str, &str) =
    (KIND_ANNOTATION, "dev.cosignproject.cosign/sigs");

/// The tag of the signatures of a manifest or index.
pub(crate) fn signature_tag(digest: &Digest) -> String {
    format!("{}-{}.sig", digest.algorithm().name(), digest.hex())
}

/// What an entry of a layout's index is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// An image, or an index of images.
    Image,
    /// Signatures.
    Signatures,
    /// Attestations and bills of materials: neither is looked at.
    Other,
}

/// Tells the entries of a layout's index apart.
pub(crate) fn entry_kind(annotations: &std::collections::HashMap<String, String>) -> EntryKind {
    let kind = annotations.get(KIND_ANNOTATION);
    if let Some(kind) = kind.and_then(|kind| kind.strip_prefix(KIND_PREFIX)) {
        return match kind {
            SIGNATURE_KIND => EntryKind::Signatures,
            kind if IMAGE_KINDS.contains(&kind) => EntryKind::Image,
            _ => EntryKind::Other,
        };
    }
    let name = annotations.get(REF_NAME_ANNOTATION);
    let tag = name.map(|name| name.rsplit([':', '/']).next().unwrap_or_default());
    let Some((stem, suffix)) = tag.and_then(|tag| tag.rsplit_once('.')) else {
        return EntryKind::Image;
    };
    let is_about = stem
        .split_once('-')
        .is_some_and(|(algorithm, hex)| format!("{algorithm}:{hex}").parse::<Digest>().is_ok());
    match suffix {
        "sig" if is_about => EntryKind::Signatures,
        "att" | "sbom" if is_about => EntryKind::Other,
        _ => EntryKind::Image,
    }
}

/// A part of a signature image that must be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) digest: Digest,
    pub(crate) max_bytes: u64,
    /// The signature of this payload; none for the configuration.
    base64: Option<String>,
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
            if let Some(base64) = &part.base64 {
                image.signatures.push(Signature {
                    payload: content.clone(),
                    base64: base64.clone(),
                });
            }
            image.blobs.push((part.digest.clone(), content));
        }
        image
    }

    /// Makes one of a payload and a signature that are not in an image, as cosign would.
    pub(crate) fn of_files(payload: Vec<u8>, base64: String) -> Self {
        let digest = Digest::sha256(&payload);
        let config = json!({
            "architecture": "",
            "config": {},
            "os": "",
            "rootfs": {"type": "layers", "diff_ids": [digest.to_string()]},
        })
        .to_string()
        .into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": OCI_CONFIG,
                "size": config.len(),
                "digest": Digest::sha256(&config).to_string(),
            },
            "layers": [{
                "mediaType": PAYLOAD_MEDIA_TYPE,
                "size": payload.len(),
                "digest": digest.to_string(),
                "annotations": {SIGNATURE_ANNOTATION: base64},
            }],
        })
        .to_string()
        .into_bytes();
        let signature = Signature {
            payload: payload.clone(),
            base64,
        };
        Self {
            blobs: vec![
                (Digest::sha256(&manifest), manifest),
                (Digest::sha256(&config), config),
                (digest, payload),
            ],
            signatures: vec![signature],
        }
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
    annotations: BTreeMap<String, String>,
}

/// The parts of a signature image that must be fetched: its configuration, and each payload that has a signature.
pub(crate) fn parts(manifest: &[u8]) -> Result<Vec<Part>, String> {
    let manifest: RawManifest =
        serde_json::from_slice(manifest).map_err(|e| format!("it is not a manifest: {e}"))?;
    let config = Part {
        digest: manifest.config.digest,
        max_bytes: CONFIG_MAX_BYTES,
        base64: None,
    };
    let signed = manifest.layers.into_iter().filter_map(|mut layer| {
        let base64 = layer.annotations.remove(SIGNATURE_ANNOTATION)?;
        (layer.media_type == PAYLOAD_MEDIA_TYPE).then_some(Part {
            digest: layer.digest,
            max_bytes: PAYLOAD_MAX_BYTES,
            base64: Some(base64),
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

/// The referrers that are signatures.
pub(crate) fn signature_referrers(index: &[u8]) -> Result<Vec<Digest>, String> {
    #[derive(Deserialize)]
    struct Index {
        manifests: Vec<Referrer>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Referrer {
        digest: Digest,
        #[serde(default)]
        artifact_type: String,
    }
    let index: Index = serde_json::from_slice(index)
        .map_err(|e| format!("the list of referrers is malformed: {e}"))?;
    let referrers = index.manifests.into_iter();
    let signatures = referrers.filter(|referrer| referrer.artifact_type == ARTIFACT_TYPE);
    Ok(signatures
        .map(|referrer| referrer.digest)
        .take(SIGNATURE_IMAGES_MAX)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(key: &str, value: &str) -> EntryKind {
        entry_kind(&[(key.to_owned(), value.to_owned())].into())
    }

    #[test]
    fn entries_of_a_layout_are_told_apart() {
        let tag = signature_tag(&Digest::sha256(b"x"));
        assert!(tag.starts_with("sha256-") && tag.len() == 75);
        let in_repository = format!("h.example/app:{tag}");
        let attestation = tag.replace(".sig", ".att");
        for (key, value, expected) in [
            (
                SIGNATURES_ANNOTATION.0,
                SIGNATURES_ANNOTATION.1,
                EntryKind::Signatures,
            ),
            (REF_NAME_ANNOTATION, tag.as_str(), EntryKind::Signatures),
            (REF_NAME_ANNOTATION, &in_repository, EntryKind::Signatures),
            (REF_NAME_ANNOTATION, &attestation, EntryKind::Other),
            (REF_NAME_ANNOTATION, "sha256-00.sig", EntryKind::Image),
            (REF_NAME_ANNOTATION, "v1.sig", EntryKind::Image),
            (REF_NAME_ANNOTATION, "h.example/app:1", EntryKind::Image),
            (
                "kind",
                "dev.cosignproject.cosign/sigs",
                EntryKind::Signatures,
            ),
            ("kind", "dev.cosignproject.cosign/atts", EntryKind::Other),
            ("kind", "dev.cosignproject.cosign/image", EntryKind::Image),
            (
                "kind",
                "dev.cosignproject.cosign/imageIndex",
                EntryKind::Image,
            ),
            ("kind", "something else", EntryKind::Image),
        ] {
            assert_eq!(kind(key, value), expected, "{key} {value}");
        }
    }

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

    #[test]
    fn of_referrers_only_signatures_are_taken_and_not_without_end() {
        let entry =
            |kind: &str| json!({"digest": Digest::sha256(b"x").to_string(), "artifactType": kind});
        let index = |entries: Vec<_>| json!({"manifests": entries}).to_string();
        let two = index(vec![entry(ARTIFACT_TYPE), entry("application/spdx+json")]);
        assert_eq!(signature_referrers(two.as_bytes()).unwrap().len(), 1);
        let many = index(vec![entry(ARTIFACT_TYPE); 5000]);
        assert_eq!(
            signature_referrers(many.as_bytes()).unwrap().len(),
            SIGNATURE_IMAGES_MAX
        );
        assert!(signature_referrers(b"{}").is_err());
    }
}
