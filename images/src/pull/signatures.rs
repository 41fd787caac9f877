//! Signatures of an image at its registry: fetched only where the policy or the caller asks for them, before any layer is.

use std::sync::Arc;

use super::{Pull, PullError, blocking};
use crate::digest::Digest;
use crate::manifest::{DOCKER_MANIFEST, OCI_MANIFEST};
use crate::trust::{
    Found, Origin, Part, Rules, SIGNATURE_MANIFEST_MAX_BYTES, SIGNATURES_MAX, SignatureImage,
    Subject, Trust, Verdict, parts, signature_referrers, signature_tag,
};

impl Pull<'_> {
    /// Judges the image by the policy. The signatures that were found go into the store.
    pub(super) async fn judge(
        &self,
        manifest: &Digest,
        index: Option<&Digest>,
    ) -> Result<Trust, PullError> {
        let subject = Subject {
            image: self.reference,
            manifest,
            index,
        };
        let rules = self.options.policy.as_ref();
        let rules = rules.map(|policy| policy.rules(&Origin::Docker, self.reference));
        let judge = |found: &Found<'_>| match &rules {
            Some(rules) => rules.judge(subject, found),
            None => Ok(Verdict::Unchecked {}),
        };
        let mut search = Search {
            pull: self,
            images: Vec::new(),
            problems: Vec::new(),
        };
        let must_be_signed = rules.as_ref().is_some_and(Rules::need_signatures);
        if !must_be_signed && !self.options.signatures {
            let verdict = judge(&Found::default())?;
            return search.keep(verdict).await;
        }
        // Tags first: one request finds the signatures of years.
        for step in [Step::Tag, Step::Referrers] {
            for digest in subject.digests() {
                let before = search.images.len();
                match step {
                    Step::Tag => search.tagged(&digest).await?,
                    Step::Referrers => search.referrers(&digest).await?,
                }
                if !self.options.signatures
                    && search.images.len() > before
                    && let Ok(verdict) = judge(&search.found())
                {
                    return search.keep(verdict).await;
                }
            }
        }
        let verdict = judge(&search.found())?;
        search.keep(verdict).await
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
        let found = signature_referrers(&self.pull.repository.referrers(digest).await?);
        self.problems.extend(found.problems);
        for referrer in found.digests {
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
            match self.content(part).await? {
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

    async fn content(&self, part: &Part) -> Result<Option<Vec<u8>>, PullError> {
        if let Some(content) = part.known() {
            return Ok(Some(content));
        }
        let path = format!("blobs/{}", part.digest);
        let repository = &self.pull.repository;
        let content = repository
            .beside(&path, "*/*", "a signature", part.max_bytes)
            .await?;
        Ok(content.filter(|content| part.digest.matches(content)))
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
