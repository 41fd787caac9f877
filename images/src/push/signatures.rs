//! Signatures of an image on their way to a registry, so that a mirror serves nodes that ask for them.
//!
//! | form | where it goes | what is there already |
//! |---|---|---|
//! | simple signing | the tag `sha256-<hex>.sig` | its signatures stay, and ours are added, as cosign and skopeo do |
//! | sigstore bundle | an artifact whose subject is the image | stays: bundles do not know of each other |
//!
//! A registry that knows no referrers (it answers without `OCI-Subject`) keeps a list of them under the tag
//! `sha256-<hex>`, which is then added to (distribution-spec, "Pushing Manifests with Subject").
//!
//! Only signatures of what was pushed go along. They are sent as they came; whether they count is for the policy of who
//! pulls.

use reqwest::header::HeaderMap;
use serde_json::{Value, json};

use super::plan::{PlannedDocument, Upload};
use super::{Push, PushError, blocking};
use crate::digest::Digest;
use crate::manifest::{DOCKER_MANIFEST, MANIFEST_MAX_BYTES, OCI_INDEX, OCI_MANIFEST};
use crate::trust::{
    SIGNATURE_MANIFEST_MAX_BYTES, SignatureImage, entry_of, merge_signatures, signature_tag,
};

/// In the answer of a registry that lists referrers by itself.
const SUBJECT_HEADER: &str = "oci-subject";

/// Signatures, and what they are of.
#[derive(Debug)]
pub(super) struct PlannedSignatures {
    subject: Subject,
    image: SignatureImage,
}

/// Which of the documents that are pushed.
#[derive(Debug)]
struct Subject {
    digest: Digest,
    media_type: String,
    bytes: usize,
}

/// Those of some signatures that are of what is pushed, and how many are not.
pub(super) fn plan(
    images: Vec<SignatureImage>,
    documents: &[PlannedDocument],
) -> (Vec<PlannedSignatures>, usize) {
    let mut planned = Vec::new();
    let count = images.len();
    for image in images {
        let claimed = image.claimed_digests();
        // The index comes last, and is what `cosign sign` signs.
        let subject = documents.iter().rev().find(|d| claimed.contains(&d.digest));
        planned.extend(subject.map(|document| PlannedSignatures {
            subject: Subject {
                digest: document.digest.clone(),
                media_type: document.media_type.clone(),
                bytes: document.json.len(),
            },
            image,
        }));
    }
    let left_out = count - planned.len();
    (planned, left_out)
}

impl Push<'_> {
    /// One after the other: two may go to the same tag.
    pub(super) async fn push_signatures(&self) -> Result<(), PushError> {
        for planned in &self.plan.signatures {
            match planned.image.bundle() {
                Some(bundle) => self.push_bundle(planned, bundle).await?,
                None => self.push_payloads(planned).await?,
            }
        }
        Ok(())
    }

    async fn push_payloads(&self, planned: &PlannedSignatures) -> Result<(), PushError> {
        let tag = signature_tag(&planned.subject.digest);
        let accept = [OCI_MANIFEST, DOCKER_MANIFEST].join(", ");
        let there = self
            .endpoint
            .manifest_if_any(&tag, &accept, SIGNATURE_MANIFEST_MAX_BYTES)
            .await?;
        let merged = merge_signatures(there.as_deref(), &planned.image);
        let image = merged.map_err(|reason| PushError::OtherTag {
            tag: tag.clone(),
            reason,
        })?;
        let Some(image) = image else {
            return Ok(());
        };
        self.put_signatures(&image, &tag).await?;
        Ok(())
    }

    async fn push_bundle(
        &self,
        planned: &PlannedSignatures,
        bundle: &[u8],
    ) -> Result<(), PushError> {
        let subject = &planned.subject;
        // One that came beside a file refers to nothing, so that nobody would find it.
        let image = match planned.image.subject() {
            Some(digest) if digest == subject.digest => planned.image.clone(),
            _ => SignatureImage::of_bundle(bundle.to_vec(), Some(subject.descriptor())),
        };
        let Some((digest, manifest)) = image.blobs.first() else {
            return Ok(());
        };
        let headers = self.put_signatures(&image, &digest.to_string()).await?;
        if headers.contains_key(SUBJECT_HEADER) {
            return Ok(());
        }
        self.list_referrer(subject, entry_of(digest, manifest))
            .await
    }

    /// Sends all that signatures consist of; the manifest last, under `name`.
    async fn put_signatures(
        &self,
        image: &SignatureImage,
        name: &str,
    ) -> Result<HeaderMap, PushError> {
        let Some(((digest, manifest), blobs)) = image.blobs.split_first() else {
            return Ok(HeaderMap::new());
        };
        for (digest, content) in blobs {
            let (session, held) = (self.session.clone(), (digest.clone(), content.clone()));
            // What was made for this registry alone is sent from the store, too, which forgets it afterwards.
            blocking(move || Ok(session.put_blob(&held.0, &held.1)?)).await?;
            self.send(&Upload {
                digest: digest.clone(),
                size_bytes: content.len() as u64,
                mount_from: None,
            })
            .await?;
        }
        let document = PlannedDocument {
            digest: digest.clone(),
            media_type: OCI_MANIFEST.to_owned(),
            json: manifest.clone(),
        };
        self.document(&document, name).await
    }

    /// Adds an entry to the list that stands for the referrers API.
    async fn list_referrer(&self, subject: &Subject, entry: Value) -> Result<(), PushError> {
        let digest = &subject.digest;
        let tag = format!("{}-{}", digest.algorithm().name(), digest.hex());
        let there = self
            .endpoint
            .manifest_if_any(&tag, OCI_INDEX, MANIFEST_MAX_BYTES)
            .await?;
        let other = |reason: &str| PushError::OtherTag {
            tag: tag.clone(),
            reason: reason.to_owned(),
        };
        let mut index = match there {
            None => json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}),
            Some(json) => serde_json::from_slice(&json).map_err(|_| other("it is not JSON"))?,
        };
        let Some(Value::Array(entries)) = index.get_mut("manifests") else {
            return Err(other("it is no index"));
        };
        if entries.iter().any(|old| old["digest"] == entry["digest"]) {
            return Ok(());
        }
        entries.push(entry);
        let json = index.to_string().into_bytes();
        if json.len() as u64 > MANIFEST_MAX_BYTES {
            return Err(other("it is full: delete attestations that nobody needs"));
        }
        let document = PlannedDocument {
            digest: Digest::sha256(&json),
            media_type: OCI_INDEX.to_owned(),
            json,
        };
        self.document(&document, &tag).await?;
        Ok(())
    }
}

impl Subject {
    fn descriptor(&self) -> Value {
        json!({
            "mediaType": self.media_type,
            "digest": self.digest.to_string(),
            "size": self.bytes,
        })
    }
}
