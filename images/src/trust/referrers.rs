//! Which of all that refers to an image may be its signatures: an image may have hundreds of attestations, and a hostile
//! registry lists as many as it likes.
//!
//! What a list says of an entry is not signed. It decides in which order entries are looked at, and which are not: that
//! can hide a signature, as a registry can anyway, and never make one.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::found::BUNDLE_PREDICATE_ANNOTATION;
use super::sigstore::is_bundle;
use super::statement::SIGNATURE_PREDICATE;
use crate::digest::Digest;
use crate::manifest::{OCI_EMPTY, OCI_MANIFEST};

/// Referrers that are looked at for one digest. Each costs two requests.
pub(super) const REFERRERS_MAX: usize = 32;
/// Of a signature of the classic form that refers to the image.
pub(super) const SIGNATURE_ARTIFACT_TYPE: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";

/// The referrers that may be signatures, the likeliest first.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SignatureReferrers {
    pub(crate) digests: Vec<Digest>,
    /// What was passed over, for an error.
    pub(crate) problems: Vec<String>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Referrer>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Referrer {
    digest: Digest,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    artifact_type: String,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// In the order in which they are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Signature,
    /// Of whichever statement.
    Bundle,
    /// Where there is no referrers API, versions of cosign before 3.1 do not write what an entry is.
    Unknown,
}

/// Picks from the pages of an index of referrers.
pub(crate) fn signature_referrers(pages: &[Vec<u8>]) -> SignatureReferrers {
    let mut found = SignatureReferrers::default();
    let mut candidates: Vec<(Kind, Digest)> = Vec::new();
    let (mut seen, mut attestations) = (BTreeSet::new(), 0);
    for page in pages {
        let index: Index = match serde_json::from_slice(page) {
            Ok(index) => index,
            Err(e) => {
                let problem = format!("the list of referrers is malformed: {e}");
                found.problems.push(problem);
                continue;
            }
        };
        for referrer in index.manifests {
            let predicate = referrer.predicate();
            if predicate.is_some_and(|predicate| predicate != SIGNATURE_PREDICATE) {
                attestations += 1;
                continue;
            }
            let kind = referrer.kind(predicate);
            candidates.extend(kind.map(|kind| (kind, referrer.digest)));
        }
    }
    candidates.retain(|(_, digest)| seen.insert(digest.clone()));
    // Stable: of a kind, in the order of the registry.
    candidates.sort_by_key(|(kind, _)| *kind);
    if attestations > 0 {
        let problem = format!("{attestations} attestations are no signatures");
        found.problems.push(problem);
    }
    if candidates.len() > REFERRERS_MAX {
        let count = candidates.len();
        let problem = format!("of {count} referrers only {REFERRERS_MAX} were looked at");
        found.problems.push(problem);
    }
    let first = candidates.into_iter().take(REFERRERS_MAX);
    found.digests = first.map(|(_, digest)| digest).collect();
    found
}

impl Referrer {
    fn predicate(&self) -> Option<&str> {
        let annotations = self.annotations.as_ref()?;
        annotations
            .get(BUNDLE_PREDICATE_ANNOTATION)
            .map(String::as_str)
    }

    fn kind(&self, predicate: Option<&str>) -> Option<Kind> {
        match self.artifact_type.as_str() {
            SIGNATURE_ARTIFACT_TYPE => Some(Kind::Signature),
            kind if is_bundle(kind) && predicate.is_some() => Some(Kind::Signature),
            kind if is_bundle(kind) => Some(Kind::Bundle),
            "" | OCI_EMPTY if self.media_type == OCI_MANIFEST => Some(Kind::Unknown),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::trust::BUNDLE_MEDIA_TYPE;

    fn digest(n: usize) -> Digest {
        Digest::sha256(&n.to_le_bytes())
    }

    fn entry(n: usize, kind: &str, predicate: Option<&str>) -> Value {
        let mut entry = json!({
            "mediaType": OCI_MANIFEST,
            "digest": digest(n).to_string(),
            "size": 1,
            "artifactType": kind,
        });
        if let Some(predicate) = predicate {
            entry["annotations"] = json!({BUNDLE_PREDICATE_ANNOTATION: predicate});
        }
        entry
    }

    fn picked(entries: &[Value]) -> SignatureReferrers {
        let index = json!({"manifests": entries}).to_string();
        signature_referrers(&[index.into_bytes()])
    }

    #[test]
    fn signatures_come_before_what_may_be_one_and_attestations_are_passed_over() {
        let found = picked(&[
            entry(1, "", None),
            entry(2, OCI_EMPTY, None),
            entry(3, BUNDLE_MEDIA_TYPE, None),
            entry(4, BUNDLE_MEDIA_TYPE, Some("https://slsa.dev/provenance/v1")),
            entry(5, BUNDLE_MEDIA_TYPE, Some(SIGNATURE_PREDICATE)),
            entry(6, "application/spdx+json", None),
            entry(7, SIGNATURE_ARTIFACT_TYPE, None),
            entry(5, BUNDLE_MEDIA_TYPE, Some(SIGNATURE_PREDICATE)),
        ]);
        assert_eq!(found.digests, [5, 7, 3, 1, 2].map(digest));
        assert_eq!(found.problems, ["1 attestations are no signatures"]);
    }

    #[test]
    fn thousands_of_referrers_do_not_hide_a_signature_and_are_not_all_looked_at() {
        let mut entries: Vec<_> = (0..5000)
            .map(|n| entry(n, BUNDLE_MEDIA_TYPE, None))
            .collect();
        entries.push(entry(9999, BUNDLE_MEDIA_TYPE, Some(SIGNATURE_PREDICATE)));
        let found = picked(&entries);
        assert_eq!(found.digests.len(), REFERRERS_MAX);
        assert_eq!(found.digests[0], digest(9999));
        assert!(found.problems[0].contains("of 5001"), "{found:?}");
    }

    #[test]
    fn a_malformed_page_is_a_problem_and_no_more() {
        let whole = json!({"manifests": [entry(1, SIGNATURE_ARTIFACT_TYPE, None)]}).to_string();
        for page in ["", "{}", "[]", "{\"manifests\": [{\"digest\": \"x\"}]}"] {
            let found = signature_referrers(&[page.as_bytes().to_vec(), whole.clone().into()]);
            assert_eq!(found.digests, [digest(1)], "{page}");
            assert!(found.problems[0].contains("malformed"), "{found:?}");
        }
    }
}
