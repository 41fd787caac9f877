//! Signatures of an image at its registry: fetched only where the policy asks for them, before any layer is.

use std::sync::Arc;

use super::{Pull, PullError, blocking};
use crate::digest::Digest;
use crate::manifest::{DOCKER_MANIFEST, OCI_MANIFEST};
use crate::trust::{
    Found, Origin, SIGNATURE_IMAGES_MAX, SIGNATURE_MANIFEST_MAX_BYTES, SIGNATURES_MAX,
    SignatureImage, Subject, Trust, Verdict, parts, signature_referrers, signature_tag,
};

impl Pull<'_> {
    /// Judges the image by the policy. Signatures that are accepted go into the store.
    pub(super) async fn judge(
        &self,
        manifest: &Digest,
        index: Option<&Digest>,
    ) -> Result<Trust, PullError> {
        let unsigned = |verdict| Trust {
            origin: Origin::Docker,
            verdict,
            signatures: Vec::new(),
        };
        let Some(policy) = &self.options.policy else {
            return Ok(unsigned(Verdict::Unchecked {}));
        };
        let rules = policy.rules(&Origin::Docker, self.reference);
        let subject = Subject {
            image: self.reference,
            manifest,
            index,
        };
        if !rules.need_signatures() {
            return Ok(unsigned(rules.judge(subject, &Found::default())?));
        }
        let mut search = Search {
            pull: self,
            images: Vec::new(),
            problems: Vec::new(),
        };
        // Tags first: nearly all signatures are found by them.
        for step in [Step::Tag, Step::Referrers] {
            for digest in subject.digests() {
                let before = search.images.len();
                match step {
                    Step::Tag => search.tagged(&digest).await?,
                    Step::Referrers => search.referrers(&digest).await?,
                }
                if search.images.len() > before
                    && let Ok(verdict) = rules.judge(subject, &search.found())
                {
                    return search.keep(verdict).await;
                }
            }
        }
        Ok(unsigned(rules.judge(subject, &search.found())?))
    }
}

#[derive(Clone, Copy)]
enum Step {
    Tag,
    Referrers,
}

/// What was found so far.
struct Search<'a> {
    pull: &'a Pull<'a>,
    images: Vec<SignatureImage>,
    problems: Vec<String>,
}

impl Search<'_> {
    fn found(&self) -> Found<'_> {
        Found::in_images(&self.images, &self.problems)
    }

    /// The image of signatures that cosign and skopeo push beside the image.
    async fn tagged(&mut self, digest: &Digest) -> Result<(), PullError> {
        let tag = signature_tag(digest);
        let path = format!("manifests/{tag}");
        if let Some(manifest) = self.manifest(&path).await? {
            let digest = Digest::sha256(&manifest);
            self.add(&tag, (digest, manifest)).await?;
        }
        Ok(())
    }

    /// Those that refer to the image.
    async fn referrers(&mut self, digest: &Digest) -> Result<(), PullError> {
        let mut referrers = Vec::new();
        for page in self.pull.repository.referrers(digest).await? {
            match signature_referrers(&page) {
                Ok(found) => referrers.extend(found),
                Err(problem) => self.problems.push(problem),
            }
        }
        for referrer in referrers.into_iter().take(SIGNATURE_IMAGES_MAX) {
            let Some(manifest) = self.manifest(&format!("manifests/{referrer}")).await? else {
                continue;
            };
            if referrer.matches(&manifest) {
                self.add(&referrer.to_string(), (referrer.clone(), manifest))
                    .await?;
            } else {
                self.problems.push(format!("{referrer} has another digest"));
            }
        }
        Ok(())
    }

    async fn manifest(&self, path: &str) -> Result<Option<Vec<u8>>, PullError> {
        let accept = [OCI_MANIFEST, DOCKER_MANIFEST].join(", ");
        let repository = &self.pull.repository;
        let what = "the manifest of the signatures";
        Ok(repository
            .beside(path, &accept, what, SIGNATURE_MANIFEST_MAX_BYTES)
            .await?)
    }

    /// Fetches what a signature image consists of. One that cannot be used is a problem, and no more: another may do.
    async fn add(&mut self, name: &str, manifest: (Digest, Vec<u8>)) -> Result<(), PullError> {
        let parts = match parts(&manifest.1) {
            Ok(parts) => parts,
            Err(problem) => {
                self.problems.push(format!("{name}: {problem}"));
                return Ok(());
            }
        };
        let found: usize = self.images.iter().map(|image| image.signatures.len()).sum();
        if found + parts.len() > SIGNATURES_MAX + 1 {
            self.problems.push(format!("{name}: too many signatures"));
            return Ok(());
        }
        let mut contents = Vec::new();
        for part in &parts {
            let path = format!("blobs/{}", part.digest);
            let repository = &self.pull.repository;
            let content = repository
                .beside(&path, "*/*", "a signature", part.max_bytes)
                .await?;
            match content.filter(|content| part.digest.matches(content)) {
                Some(content) => contents.push(content),
                None => {
                    let problem = format!("{name}: {} is not there, or another", part.digest);
                    self.problems.push(problem);
                    return Ok(());
                }
            }
        }
        self.images
            .push(SignatureImage::new(manifest, &parts, contents));
        Ok(())
    }

    /// Writes what was found into the store, so that the image can be judged again offline.
    async fn keep(self, verdict: Verdict) -> Result<Trust, PullError> {
        let session = Arc::clone(&self.pull.session);
        let images = self.images;
        blocking(move || {
            for (digest, content) in images.iter().flat_map(|image| &image.blobs) {
                session.put_blob(digest, content)?;
            }
            let signatures = images.iter().filter_map(SignatureImage::stored);
            Ok(Trust {
                origin: Origin::Docker,
                verdict,
                signatures: signatures.collect(),
            })
        })
        .await
    }
}
