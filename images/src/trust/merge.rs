//! Signatures of simple signing that are added to those that lie at the same tag already.

use serde::Deserialize;
use serde_json::Value;

use super::found::{SIGNATURES_MAX, SignatureImage, documents, parts};

#[derive(Deserialize)]
struct Manifest {
    layers: Vec<Value>,
}

/// What is to be pushed so that the signatures of `ours` are there beside those of the manifest `theirs`; none if all are
/// there. Only the configuration and our payloads are in it: theirs are in the registry.
///
/// # Errors
/// When `theirs` is no image of signatures, or would become too large.
pub(crate) fn merge_signatures(
    theirs: Option<&[u8]>,
    ours: &SignatureImage,
) -> Result<Option<SignatureImage>, String> {
    let Some(theirs) = theirs else {
        return Ok(Some(ours.clone()));
    };
    let Some((_, manifest)) = ours.blobs.first() else {
        return Ok(None);
    };
    parts(theirs)?;
    let mut layers = layers(theirs)?;
    let known = layers.len();
    for layer in self::layers(manifest)? {
        // The same payload may be signed by two keys.
        let is_same =
            |old: &Value| old["digest"] == layer["digest"] && signature(old) == signature(&layer);
        if !layers.iter().any(is_same) {
            layers.push(layer);
        }
    }
    if layers.len() == known {
        return Ok(None);
    }
    if layers.len() > SIGNATURES_MAX {
        return Err(format!(
            "with ours there would be {} signatures in it; at most {SIGNATURES_MAX} are looked at",
            layers.len()
        ));
    }
    // Manifest and configuration, then payloads.
    let payloads = ours.blobs.iter().skip(2).cloned();
    Ok(Some(SignatureImage {
        blobs: documents(&layers).into_iter().chain(payloads).collect(),
        signatures: ours.signatures.clone(),
    }))
}

fn layers(manifest: &[u8]) -> Result<Vec<Value>, String> {
    let manifest: Manifest =
        serde_json::from_slice(manifest).map_err(|e| format!("it is not a manifest: {e}"))?;
    Ok(manifest.layers)
}

fn signature(layer: &Value) -> Option<&Value> {
    layer
        .get("annotations")?
        .get(super::found::SIGNATURE_ANNOTATION)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(payload: &str, signature: &str) -> SignatureImage {
        SignatureImage::of_files(payload.into(), signature.to_owned())
    }

    fn manifest(image: &SignatureImage) -> &[u8] {
        &image.blobs[0].1
    }

    #[test]
    fn signatures_that_are_there_stay_and_ours_are_added_once() {
        let (theirs, ours) = (image("a", "eA=="), image("b", "eQ=="));
        let alone = merge_signatures(None, &ours).unwrap();
        assert_eq!(alone.as_ref(), Some(&ours));
        let both = merge_signatures(Some(manifest(&theirs)), &ours).unwrap();
        let both = both.unwrap();
        assert_eq!(parts(manifest(&both)).unwrap().len(), 3);
        assert!(
            both.blobs
                .iter()
                .all(|(digest, content)| digest.matches(content))
        );
        for again in [&theirs, &ours] {
            assert_eq!(
                merge_signatures(Some(manifest(&both)), again).unwrap(),
                None
            );
        }
        // Of the same payload by another key.
        let other_key = image("b", "eg==");
        let three = merge_signatures(Some(manifest(&both)), &other_key).unwrap();
        assert_eq!(parts(manifest(&three.unwrap())).unwrap().len(), 4);
    }

    #[test]
    fn what_is_no_image_of_signatures_is_not_written_over() {
        for text in ["", "{}", "{\"manifests\": []}"] {
            assert!(merge_signatures(Some(text.as_bytes()), &image("a", "eA==")).is_err());
        }
    }
}
