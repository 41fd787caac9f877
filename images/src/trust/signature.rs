//! One signature, in either of the forms that cosign makes with a key, and what it vouches for.
//!
//! | form | what is signed | the name of the image |
//! |---|---|---|
//! | simple signing (`payload`) | the payload as it is | always in it |
//! | sigstore bundle (`sigstore`, `statement`) | the DSSE encoding of an in-toto statement | cosign writes none |
//!
//! The key is looked for first, and what a trusted key did not sign is not believed.

use super::identity::Named;
use super::key::PublicKey;
use super::payload::{self, SignedPayload};
use super::{sigstore, statement};
use crate::digest::Digest;

/// A signature as it was found: nothing of it is to be believed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Signature {
    /// A payload, with its signature beside it.
    Payload(SignedPayload),
    /// A sigstore bundle: JSON.
    Bundle(Vec<u8>),
}

/// What a signature vouches for: that an image is one of the signer's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    /// The name of the image, if the signature has one.
    pub(super) name: Option<ClaimedName>,
    /// The manifest or index.
    pub(super) digest: Digest,
}

/// The name that a signature is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClaimedName {
    /// Parsed.
    pub(super) named: Named,
    /// As it is written.
    pub(super) text: String,
}

impl ClaimedName {
    pub(super) fn parse(text: String) -> Result<Self, String> {
        let named = Named::parse(&text).map_err(|e| e.to_string())?;
        Ok(Self { named, text })
    }
}

impl Signature {
    /// Which of the keys it is made with, and what it vouches for; else why it does not count.
    pub(super) fn verify<'k>(
        &self,
        keys: &'k [PublicKey],
    ) -> Result<(&'k PublicKey, Vec<Claim>), String> {
        match self {
            Self::Payload(signed) => {
                let bytes = signed.bytes().ok_or("it is not base64")?;
                let key = signer(keys, &signed.payload, &bytes)
                    .ok_or_else(|| not_made_with(keys, None))?;
                Ok((key, vec![payload::parse(&signed.payload)?]))
            }
            Self::Bundle(json) => verify_bundle(json, keys).map_err(|e| format!("bundle: {e}")),
        }
    }

    /// What it says that it is for. Nothing is verified by this.
    pub(crate) fn claimed_digests(&self) -> Vec<Digest> {
        let claims = match self {
            Self::Payload(signed) => payload::parse(&signed.payload).map(|claim| vec![claim]),
            Self::Bundle(json) => {
                sigstore::parse(json).and_then(|bundle| statement::parse(bundle.payload()))
            }
        };
        let claims = claims.unwrap_or_default().into_iter();
        claims.map(|claim| claim.digest).collect()
    }
}

fn verify_bundle<'k>(
    json: &[u8],
    keys: &'k [PublicKey],
) -> Result<(&'k PublicKey, Vec<Claim>), String> {
    let bundle = sigstore::parse(json)?;
    let message = bundle.message();
    match signer(keys, &message, bundle.signature()) {
        Some(key) => Ok((key, statement::parse(bundle.payload())?)),
        // An attestation is no signature, whoever made it: that says more than that its key is another.
        None => match statement::check_kind(bundle.payload()) {
            Err(reason) => Err(reason),
            Ok(()) => Err(not_made_with(keys, bundle.hint())),
        },
    }
}

fn signer<'k>(keys: &'k [PublicKey], message: &[u8], signature: &[u8]) -> Option<&'k PublicKey> {
    keys.iter().find(|key| key.signed(message, signature))
}

fn not_made_with(keys: &[PublicKey], hint: Option<&Digest>) -> String {
    let hint = hint.map_or_else(String::new, |hint| {
        format!(", but by its own word with {}", &hint.hex()[..16])
    });
    match keys {
        [key] => format!("it is not made with the key {key}{hint}"),
        keys => format!("it is made with none of the {} keys{hint}", keys.len()),
    }
}
