//! The verdict: an image, the signatures that were found for it, and what the policy asks.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::found::SignatureImage;
use super::identity::Identity;
use super::key::PublicKey;
use super::policy::{Policy, Requirement};
use super::scope::Origin;
use super::shown;
use super::signature::{ClaimedName, Signature};
use crate::digest::Digest;
use crate::reference::Reference;

/// Different reasons that an error names; the rest is counted.
const REASONS_SHOWN: usize = 3;
/// Of each; the longest of ours have some 300.
const REASON_MAX_CHARS: usize = 500;

/// Why an image may be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "camelCase", deny_unknown_fields)]
pub enum Verdict {
    /// There was no policy.
    #[serde(rename_all = "camelCase")]
    Unchecked {},
    /// The policy allows it without a signature.
    #[serde(rename_all = "camelCase")]
    Allowed {
        /// The part of the policy that decided, such as `docker registry.example/team`.
        scope: String,
    },
    /// It is signed, as the policy or the command asks.
    #[serde(rename_all = "camelCase")]
    Signed {
        /// The part of the policy that decided.
        scope: String,
        /// A signature for each requirement.
        signed_by: Vec<SignedBy>,
    },
}

/// A signature that was accepted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SignedBy {
    /// The key's fingerprint: the SHA-256 of its DER encoding.
    pub key: Digest,
    /// The key's file, where it came from one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// The name that the signature is for; none of a bundle that names no image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// The manifest or index that it is for.
    pub digest: Digest,
}

/// An image that may not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Distrust {
    /// The policy allows none of its kind.
    #[error("the signature policy {policy} allows no image of {scope}, and {image} is one")]
    Rejected {
        /// The image.
        image: Box<Reference>,
        /// The policy's file.
        policy: PathBuf,
        /// The part of the policy that decided.
        scope: String,
    },
    /// It must be signed, and is not.
    #[error("{image} must be signed ({asked}), and no signature was found for {digest}{problems}")]
    Unsigned {
        /// The image.
        image: Box<Reference>,
        /// Who asks.
        asked: String,
        /// Its manifest.
        digest: Digest,
        /// What went wrong with what was looked at.
        problems: String,
    },
    /// There are signatures, and none of them counts.
    #[error(
        "{image} must be signed ({asked}), and no signature of {digest} is accepted: {reasons}"
    )]
    NotAccepted {
        /// The image.
        image: Box<Reference>,
        /// Who asks.
        asked: String,
        /// Its manifest.
        digest: Digest,
        /// What is wrong with them.
        reasons: String,
    },
    /// It must be signed, and came in a form that has no place for signatures.
    #[error(
        "{image} must be signed ({asked}), and a docker-archive cannot hold signatures: bring it as an OCI archive or \
         OCI layout"
    )]
    CannotBeSigned {
        /// The image.
        image: Box<Reference>,
        /// Who asks.
        asked: String,
    },
    /// A signature was asked for, without a key.
    #[error(
        "a signature of {image} is asked for, and no key is known for it: give one, or write `sigstoreSigned` for its \
         registry into the signature policy"
    )]
    NoKey {
        /// The image.
        image: Box<Reference>,
    },
}

/// What is to be judged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    /// The name that the image is asked for by, or gets.
    pub(crate) image: &'a Reference,
    /// Its manifest.
    pub(crate) manifest: &'a Digest,
    /// The index that the manifest was chosen from. It names the manifest by digest, so that its signature is as good.
    pub(crate) index: Option<&'a Digest>,
}

impl Subject<'_> {
    /// What signatures may be for: the index first, since that is what `cosign sign` signs.
    pub(crate) fn digests(&self) -> Vec<Digest> {
        self.index
            .into_iter()
            .chain([self.manifest])
            .cloned()
            .collect()
    }
}

/// Signatures that were found, and what else was.
#[derive(Debug, Clone, Default)]
pub(crate) struct Found<'a> {
    pub(crate) signatures: Vec<&'a Signature>,
    /// What looked like a signature and could not be read.
    pub(crate) problems: &'a [String],
}

impl<'a> Found<'a> {
    /// All signatures of some images of signatures.
    pub(crate) fn in_images(images: &'a [SignatureImage], problems: &'a [String]) -> Self {
        Self {
            signatures: images.iter().flat_map(|image| &image.signatures).collect(),
            problems,
        }
    }
}

/// What one image is held to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rules {
    image: Reference,
    policy: PathBuf,
    scope: String,
    requirements: Vec<Requirement>,
}

impl Policy {
    /// What the policy asks of an image of this name that comes from `origin`.
    pub(crate) fn rules(&self, origin: &Origin, image: &Reference) -> Rules {
        let scopes = self.transports.get(origin.transport());
        let found = scopes.and_then(|by_scope| {
            let mut scopes = origin.scopes(image).into_iter();
            scopes.find_map(|scope| Some((by_scope.get(&scope)?, scope)))
        });
        let (requirements, scope) = match found {
            Some((requirements, scope)) if scope.is_empty() => {
                (requirements, origin.transport().to_owned())
            }
            Some((requirements, scope)) => {
                (requirements, format!("{} {scope}", origin.transport()))
            }
            None => (&self.default, "default".to_owned()),
        };
        Rules {
            image: image.clone(),
            policy: self.file.clone(),
            scope,
            requirements: requirements.clone(),
        }
    }
}

impl Rules {
    /// Rules of a command: a signature by one of these keys, for the repository of the image, or, if that is accepted, for
    /// no name at all.
    pub(crate) fn of_keys(image: &Reference, keys: Vec<PublicKey>, accept_unnamed: bool) -> Self {
        Self {
            image: image.clone(),
            policy: PathBuf::new(),
            scope: "asked for by the command".to_owned(),
            requirements: vec![Requirement::Signed {
                keys,
                identity: Identity::MatchRepository,
                accept_unnamed,
            }],
        }
    }

    /// True when a signature is asked for, so that it must be fetched.
    pub(crate) fn need_signatures(&self) -> bool {
        let signed = |r: &Requirement| matches!(r, Requirement::Signed { .. });
        self.requirements.iter().any(signed)
    }

    /// Refuses at once what no signature could help.
    pub(crate) fn check_rejected(&self) -> Result<(), Distrust> {
        if !self.requirements.contains(&Requirement::Reject) {
            return Ok(());
        }
        Err(Distrust::Rejected {
            image: Box::new(self.image.clone()),
            policy: self.policy.clone(),
            scope: self.scope.clone(),
        })
    }

    /// The verdict; an image is allowed when all requirements are fulfilled.
    pub(crate) fn judge(
        &self,
        subject: Subject<'_>,
        found: &Found<'_>,
    ) -> Result<Verdict, Distrust> {
        self.check_rejected()?;
        let mut signed_by = Vec::new();
        for requirement in &self.requirements {
            if let Requirement::Signed {
                keys,
                identity,
                accept_unnamed,
            } = requirement
            {
                let wanted = Wanted {
                    keys,
                    identity,
                    accept_unnamed: *accept_unnamed,
                };
                signed_by.push(self.find_signature(wanted, subject, found)?);
            }
        }
        let scope = self.scope.clone();
        Ok(match signed_by.is_empty() {
            true => Verdict::Allowed { scope },
            false => Verdict::Signed { scope, signed_by },
        })
    }

    /// The verdict on an image that came without a manifest of its own, so that there is nothing to sign.
    pub(crate) fn judge_unsignable(&self) -> Result<Verdict, Distrust> {
        self.check_rejected()?;
        if self.need_signatures() {
            return Err(Distrust::CannotBeSigned {
                image: Box::new(self.image.clone()),
                asked: self.asked(),
            });
        }
        Ok(Verdict::Allowed {
            scope: self.scope.clone(),
        })
    }

    fn find_signature(
        &self,
        wanted: Wanted<'_>,
        subject: Subject<'_>,
        found: &Found<'_>,
    ) -> Result<SignedBy, Distrust> {
        let mut reasons = Vec::new();
        for signature in &found.signatures {
            match accept(signature, wanted, subject) {
                Ok(signed_by) => return Ok(signed_by),
                Err(reason) => reasons.push(reason),
            }
        }
        let image = Box::new(self.image.clone());
        let digest = subject.manifest.clone();
        let asked = self.asked();
        if reasons.is_empty() {
            let problems = match found.problems {
                [] => String::new(),
                problems => format!("; {}", summary(problems.to_vec())),
            };
            return Err(Distrust::Unsigned {
                image,
                asked,
                digest,
                problems,
            });
        }
        reasons.extend_from_slice(found.problems);
        let reasons = summary(reasons);
        Err(Distrust::NotAccepted {
            image,
            asked,
            digest,
            reasons,
        })
    }

    fn asked(&self) -> String {
        match self.policy.as_os_str().is_empty() {
            true => self.scope.clone(),
            false => format!("{} of {}", self.scope, self.policy.display()),
        }
    }
}

/// What a signature is held to.
#[derive(Clone, Copy)]
struct Wanted<'a> {
    keys: &'a [PublicKey],
    identity: &'a Identity,
    accept_unnamed: bool,
}

/// One signature: first the key, then what it says.
fn accept(
    signature: &Signature,
    wanted: Wanted<'_>,
    subject: Subject<'_>,
) -> Result<SignedBy, String> {
    let (key, claims) = signature.verify(wanted.keys)?;
    let digests = subject.digests();
    let mut reason = None;
    for claim in claims {
        if !digests.contains(&claim.digest) {
            reason.get_or_insert_with(|| format!("it is of another image, {}", claim.digest));
            continue;
        }
        match check_name(claim.name.as_ref(), wanted, subject.image) {
            Ok(()) => {
                return Ok(SignedBy {
                    key: key.fingerprint(),
                    key_file: key.file().map(std::borrow::ToOwned::to_owned),
                    identity: claim.name.map(|name| name.text),
                    digest: claim.digest,
                });
            }
            // Says more than that it is of other images, too.
            Err(refused) => reason = Some(refused),
        }
    }
    Err(reason.unwrap_or_else(|| "it is of no image".to_owned()))
}

/// Whether a signature that is for this name may vouch for the image.
fn check_name(
    name: Option<&ClaimedName>,
    wanted: Wanted<'_>,
    image: &Reference,
) -> Result<(), String> {
    match name {
        Some(name) if wanted.identity.accepts(image, &name.named) => Ok(()),
        Some(name) => Err(format!(
            "it is for the name {}, which signedIdentity does not accept for {image}",
            name.text
        )),
        None if wanted.accept_unnamed => Ok(()),
        None => Err(format!(
            "bundle: its key is right, but it names no image, so that it may have been made for another than {image}; \
             such count only with `acceptUnnamed`"
        )),
    }
}

/// Different reasons, each once, a few of them. They may quote what anybody wrote.
fn summary(reasons: Vec<String>) -> String {
    let mut different: Vec<String> = Vec::new();
    for reason in reasons {
        let reason = shown(&reason, REASON_MAX_CHARS);
        if !different.contains(&reason) {
            different.push(reason);
        }
    }
    let more = different.len().saturating_sub(REASONS_SHOWN);
    different.truncate(REASONS_SHOWN);
    let mut text = different.join("; ");
    if more > 0 {
        text += &format!("; and {more} other reasons");
    }
    text
}
