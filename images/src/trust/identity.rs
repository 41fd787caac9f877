//! Which name a signature must be for (containers-policy.json(5), "signedIdentity").

use crate::digest::Digest;
use crate::reference::{Reference, ReferenceError};

/// The name in a signature, or in a policy: as it is written, without the tag that [`Reference`] adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    /// Registry and repository, such as `docker.io/library/nginx`.
    pub(super) name: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Named {
    pub(super) fn parse(text: &str) -> Result<Self, ReferenceError> {
        let reference = Reference::parse(text)?;
        let before_digest = text.split('@').next().unwrap_or_default();
        let last = before_digest.rsplit('/').next().unwrap_or_default();
        let has_tag = last.contains(':');
        Ok(Self {
            name: name(&reference),
            tag: reference
                .tag()
                .filter(|_| has_tag)
                .map(std::borrow::ToOwned::to_owned),
            digest: reference.digest().cloned(),
        })
    }

    /// What an image is asked for by: the digest decides where there is one.
    fn of(image: &Reference) -> Self {
        let digest = image.digest().cloned();
        Self {
            name: name(image),
            tag: image
                .tag()
                .filter(|_| digest.is_none())
                .map(std::borrow::ToOwned::to_owned),
            digest,
        }
    }

    /// Neither tag nor digest: a whole repository.
    pub(super) fn is_name_only(&self) -> bool {
        self.tag.is_none() && self.digest.is_none()
    }
}

/// `registry/repository`.
pub(super) fn name(reference: &Reference) -> String {
    format!("{}/{}", reference.registry(), reference.repository())
}

/// `signedIdentity`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) enum Identity {
    /// The very name that the image is asked for by.
    MatchExact,
    /// The same, except that of an image that is asked for by digest only the repository counts.
    #[default]
    MatchRepoDigestOrExact,
    /// The repository that the image is asked from.
    MatchRepository,
    /// This name, whatever the image is asked for by.
    ExactReference(Named),
    /// This repository.
    ExactRepository(String),
    /// [`Self::MatchRepoDigestOrExact`], after one prefix was replaced by another: for mirrors.
    Remap {
        /// What the image's name begins with.
        prefix: String,
        /// What the name in the signature begins with.
        signed_prefix: String,
    },
}

impl Identity {
    /// True when a signature for `signed` may vouch for `image`.
    pub(super) fn accepts(&self, image: &Reference, signed: &Named) -> bool {
        let wanted = Named::of(image);
        match self {
            Self::MatchExact => is_exact(&wanted, signed),
            Self::MatchRepoDigestOrExact => is_repo_digest_or_exact(&wanted, signed),
            Self::MatchRepository => wanted.name == signed.name,
            Self::ExactReference(wanted) => is_exact(wanted, signed),
            Self::ExactRepository(wanted) => *wanted == signed.name,
            Self::Remap {
                prefix,
                signed_prefix,
            } => {
                let name = remapped(&wanted.name, prefix, signed_prefix);
                is_repo_digest_or_exact(&Named { name, ..wanted }, signed)
            }
        }
    }
}

fn is_exact(wanted: &Named, signed: &Named) -> bool {
    !signed.is_name_only() && wanted == signed
}

fn is_repo_digest_or_exact(wanted: &Named, signed: &Named) -> bool {
    match (&wanted.digest, signed.is_name_only()) {
        (_, true) => false,
        // That the content has the digest was found out when it was fetched.
        (Some(_), false) => wanted.name == signed.name,
        (None, false) => wanted == signed,
    }
}

/// Replaces a prefix that ends where a part of the name ends.
fn remapped(name: &str, prefix: &str, signed_prefix: &str) -> String {
    match name.strip_prefix(prefix) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{signed_prefix}{rest}"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn accepts(rule: &Identity, image: &str, signed: &str) -> bool {
        rule.accepts(&image.parse().unwrap(), &Named::parse(signed).unwrap())
    }

    #[test]
    fn each_rule_takes_what_the_man_page_says() {
        let by_digest = format!("h.example/app@{DIGEST}");
        let tagged_and_digest = format!("h.example/app:1@{DIGEST}");
        let exact = Identity::ExactReference(Named::parse("h.example/app:1").unwrap());
        let repository = Identity::ExactRepository("h.example/app".to_owned());
        let cases = [
            (
                &Identity::MatchExact,
                "h.example/app:1",
                "h.example/app:1",
                true,
            ),
            (
                &Identity::MatchExact,
                "h.example/app:1",
                "h.example/app:2",
                false,
            ),
            (
                &Identity::MatchExact,
                "h.example/app",
                "h.example/app",
                false,
            ),
            (&Identity::MatchExact, &by_digest, "h.example/app:1", false),
            (&Identity::MatchExact, &by_digest, &by_digest, true),
            (
                &Identity::MatchRepoDigestOrExact,
                "h.example/app:1",
                "h.example/app:1",
                true,
            ),
            (
                &Identity::MatchRepoDigestOrExact,
                "h.example/app:1",
                "h.example/app",
                false,
            ),
            (
                &Identity::MatchRepoDigestOrExact,
                "h.example/app:1",
                "h.example/app:2",
                false,
            ),
            (
                &Identity::MatchRepoDigestOrExact,
                &by_digest,
                "h.example/app:2",
                true,
            ),
            (
                &Identity::MatchRepoDigestOrExact,
                &tagged_and_digest,
                "h.example/app:2",
                true,
            ),
            (
                &Identity::MatchRepoDigestOrExact,
                &by_digest,
                "h.example/app",
                false,
            ),
            (
                &Identity::MatchRepoDigestOrExact,
                &by_digest,
                "h.example/other:1",
                false,
            ),
            (
                &Identity::MatchRepository,
                "h.example/app:1",
                "h.example/app",
                true,
            ),
            (
                &Identity::MatchRepository,
                "h.example/app:1",
                "h.example/app:2",
                true,
            ),
            (
                &Identity::MatchRepository,
                "h.example/app:1",
                "g.example/app:1",
                false,
            ),
            (
                &Identity::MatchRepository,
                "nginx",
                "docker.io/library/nginx",
                true,
            ),
            (&exact, "elsewhere.example/x:9", "h.example/app:1", true),
            (&exact, "h.example/app:1", "h.example/app:2", false),
            (
                &repository,
                "elsewhere.example/x:9",
                "h.example/app:2",
                true,
            ),
            (&repository, "h.example/app:1", "h.example/app2:1", false),
        ];
        for (rule, image, signed, expected) in cases {
            assert_eq!(
                accepts(rule, image, signed),
                expected,
                "{rule:?} {image} {signed}"
            );
        }
    }

    #[test]
    fn a_prefix_is_replaced_only_where_a_part_of_the_name_ends() {
        let rule = Identity::Remap {
            prefix: "mirror:5000/vendor".to_owned(),
            signed_prefix: "vendor.example".to_owned(),
        };
        for (image, signed, expected) in [
            ("mirror:5000/vendor/a:1", "vendor.example/a:1", true),
            ("mirror:5000/vendor/a:1", "vendor.example/a:2", false),
            ("mirror:5000/vendor/a:1", "mirror:5000/vendor/a:1", false),
            ("mirror:5000/vendor2/a:1", "vendor.example2/a:1", false),
            ("mirror:5000/vendor2/a:1", "mirror:5000/vendor2/a:1", true),
        ] {
            assert_eq!(accepts(&rule, image, signed), expected, "{image} {signed}");
        }
    }
}
