//! Entries of a layout's `index.json`: which are images and which are signatures, and how signatures are entered.

use serde_json::{Value, json};

use super::found::holds_bundle;
use super::sigstore::{BUNDLE_MEDIA_TYPE, is_bundle};
use crate::digest::Digest;
use crate::manifest::{Descriptor, OCI_INDEX, OCI_MANIFEST};

/// In the index of a layout that cosign wrote.
const KIND_ANNOTATION: &str = "kind";
const KIND_PREFIX: &str = "dev.cosignproject.cosign/";
const IMAGE_KINDS: [&str; 2] = ["image", "imageIndex"];
const SIGNATURE_KIND: &str = "sigs";
const REF_NAME_ANNOTATION: &str = "org.opencontainers.image.ref.name";

/// How cosign marks signatures in the index of a layout: key and value.
pub(crate) const SIGNATURES_ANNOTATION: (&str, &str) =
    (KIND_ANNOTATION, "dev.cosignproject.cosign/sigs");

/// How cosign marks the image that signatures beside it in a layout are of, by the media type of its entry.
pub(crate) fn signed_image_annotation(media_type: &str) -> (&'static str, &'static str) {
    let kind = match media_type {
        OCI_INDEX => "dev.cosignproject.cosign/imageIndex",
        _ => "dev.cosignproject.cosign/image",
    };
    (KIND_ANNOTATION, kind)
}

/// What an entry of a layout's index is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// An image, or an index of images.
    Image,
    /// Signatures, or a bundle.
    Signatures,
    /// The list of all that refers to an image.
    Referrers,
    /// Attestations and bills of materials: neither is looked at.
    Other,
}

/// Tells the entries of a layout's index apart.
pub(crate) fn entry_kind(entry: &Descriptor) -> EntryKind {
    let kind = entry.annotations.get(KIND_ANNOTATION);
    if let Some(kind) = kind.and_then(|kind| kind.strip_prefix(KIND_PREFIX)) {
        return match kind {
            SIGNATURE_KIND => EntryKind::Signatures,
            kind if IMAGE_KINDS.contains(&kind) => EntryKind::Image,
            _ => EntryKind::Other,
        };
    }
    if entry.artifact_type.as_deref().is_some_and(is_bundle) {
        return EntryKind::Signatures;
    }
    let name = entry.annotations.get(REF_NAME_ANNOTATION);
    let Some(tag) = name.and_then(|name| name.rsplit([':', '/']).next()) else {
        return EntryKind::Image;
    };
    let is_about = |stem: &str| {
        let parts = stem.split_once('-');
        parts.is_some_and(|(algorithm, hex)| format!("{algorithm}:{hex}").parse::<Digest>().is_ok())
    };
    match tag.rsplit_once('.') {
        None if is_about(tag) && entry.media_type == OCI_INDEX => EntryKind::Referrers,
        Some((stem, "sig")) if is_about(stem) => EntryKind::Signatures,
        Some((stem, "att" | "sbom")) if is_about(stem) => EntryKind::Other,
        _ => EntryKind::Image,
    }
}

/// The entry of signatures that are saved: as cosign marks them, or as ORAS enters what refers to an image.
pub(crate) fn entry_of(digest: &Digest, manifest: &[u8]) -> Value {
    let mut entry = json!({
        "mediaType": OCI_MANIFEST,
        "digest": digest.to_string(),
        "size": manifest.len(),
    });
    if !holds_bundle(manifest) {
        let (key, kind) = SIGNATURES_ANNOTATION;
        entry["annotations"] = json!({key: kind});
        return entry;
    }
    entry["artifactType"] = json!(BUNDLE_MEDIA_TYPE);
    let manifest: Option<Value> = serde_json::from_slice(manifest).ok();
    let annotations = manifest.as_ref().and_then(|m| m.get("annotations"));
    if let Some(annotations @ Value::Object(_)) = annotations {
        entry["annotations"] = annotations.clone();
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::{SignatureImage, signature_tag};

    fn entry(key: &str, value: &str) -> Descriptor {
        Descriptor {
            media_type: OCI_MANIFEST.to_owned(),
            digest: Digest::sha256(b"x"),
            size: 1,
            platform: None,
            artifact_type: None,
            annotations: [(key.to_owned(), value.to_owned())].into(),
        }
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
            assert_eq!(entry_kind(&entry(key, value)), expected, "{key} {value}");
        }
    }

    #[test]
    fn the_list_of_referrers_is_an_index_with_the_tag_of_a_digest() {
        let tag = signature_tag(&Digest::sha256(b"x")).replace(".sig", "");
        let mut list = entry(REF_NAME_ANNOTATION, &tag);
        assert_eq!(entry_kind(&list), EntryKind::Image);
        list.media_type = OCI_INDEX.to_owned();
        assert_eq!(entry_kind(&list), EntryKind::Referrers);
    }

    #[test]
    fn saved_signatures_are_found_again() {
        for image in [
            SignatureImage::of_files(b"payload".to_vec(), "c2ln".to_owned()),
            SignatureImage::of_bundle(b"{}".to_vec(), None),
        ] {
            let (digest, manifest) = &image.blobs[0];
            let written = entry_of(digest, manifest);
            let mut found = entry("none", "none");
            found.artifact_type = written["artifactType"].as_str().map(str::to_owned);
            found.annotations = serde_json::from_value(written["annotations"].clone()).unwrap();
            assert_eq!(entry_kind(&found), EntryKind::Signatures, "{written}");
        }
    }
}
