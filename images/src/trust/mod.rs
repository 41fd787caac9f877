//! Which images are trusted: a signature policy, and signatures that are checked offline.
//!
//! ```text
//!  policy.json ─► Policy ─┬─ scope of the image ─► requirements ─┐
//!                         │                                       ├─► verdict, recorded with the image
//!  registry, layout, ─────┴─► signatures: payloads, bundles ──────┘      or a refusal before any layer is fetched
//!  file beside, store
//! ```
//!
//! - `policy`: the file, in the format of containers-policy.json(5); `scope`: which part of it is meant; `identity`: which
//!   name a signature must be for.
//! - `signature`: one signature, as cosign and skopeo make it with a `key`: a `payload` of simple signing, or a bundle
//!   (`sigstore`) with a `statement` in it.
//! - `judge`: the verdict. It is pure: all that it needs is fetched before.
//! - `found`: signatures as registries, layouts and the store keep them; `referrers`: which of the many things that
//!   refer to an image may be signatures; `layout` and `entry`: those of an OCI layout; `merge`: those of two
//!   registries together.
//!
//! The signature of the manifest for this platform counts, and that of the index that the manifest was chosen from:
//! an index names its manifests by digest.
//!
//! An attestation (how an image was built, what is in it) is no signature, even by the same key: see `statement`.
//!
//! Deliberately absent: GPG (`signedBy`), certificates (Fulcio) and transparency logs (Rekor), which need a network or a
//! clock. A policy that asks for them is refused as a whole.

mod entry;
mod found;
mod identity;
mod judge;
mod key;
mod layout;
mod merge;
mod once;
mod payload;
mod policy;
mod referrers;
mod scope;
mod signature;
mod sigstore;
mod statement;

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;

use crate::digest::Digest;
#[cfg(test)]
use crate::test_archive;
#[cfg(test)]
pub(crate) use entry::SIGNATURES_ANNOTATION;
pub(crate) use entry::{EntryKind, entry_kind, entry_of, signed_image_annotation};
pub(crate) use found::{
    Part, SIGNATURE_MANIFEST_MAX_BYTES, SIGNATURES_MAX, SignatureImage, parts, signature_tag,
};
pub use found::{StoredSignatures, Trust};
pub use judge::{Distrust, SignedBy, Verdict};
pub(crate) use judge::{Found, Rules, Subject};
pub use key::{KeyError, PublicKey};
pub(crate) use layout::{Gathered, Marks};
pub(crate) use merge::merge_signatures;
pub use policy::{Policy, PolicyError};
pub(crate) use referrers::signature_referrers;
pub use scope::Origin;
#[cfg(test)]
use signature::Signature;
#[cfg(test)]
pub(crate) use sigstore::BUNDLE_MEDIA_TYPE;

/// What the payload of a signature vouches for: the name of an image, and the digest of its manifest or index. Nothing is
/// verified by this.
///
/// # Errors
/// Why it is no payload of an image's signature.
pub fn payload_claim(payload: &[u8]) -> Result<(String, Digest), String> {
    let claim = payload::parse(payload)?;
    let name = claim.name.map(|name| name.text).unwrap_or_default();
    Ok((name, claim.digest))
}

/// What the statement of a bundle vouches for: as [`bundle_claims`], of its payload alone.
///
/// # Errors
/// Why it is no statement of an image's signature.
pub fn statement_claims(payload: &[u8]) -> Result<Vec<(Option<String>, Digest)>, String> {
    let claims = statement::parse(payload)?.into_iter();
    Ok(claims
        .map(|claim| (claim.name.map(|name| name.text), claim.digest))
        .collect())
}

/// What a sigstore bundle vouches for: the digests of manifests or indexes, each with the name of an image if there is one.
/// Nothing is verified by this.
///
/// # Errors
/// Why it is no bundle of an image's signature.
pub fn bundle_claims(json: &[u8]) -> Result<Vec<(Option<String>, Digest)>, String> {
    statement_claims(sigstore::parse(json)?.payload())
}

/// As much as an error quotes of a type or a name that somebody wrote.
const QUOTED_MAX_CHARS: usize = 100;

/// The beginning of a text that anybody may have written, for an error: nothing of it reaches a terminal as a command.
fn shown(text: &str, max_chars: usize) -> String {
    let shown: String = text
        .chars()
        .take(max_chars)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    match shown.len() < text.len() && text.chars().count() > max_chars {
        true => shown + "…",
        false => shown,
    }
}

/// Reads a small file, and refuses a larger one. A pipe or device, which would make us wait, is refused, too.
fn read_bounded(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file"));
    }
    file.take(max_bytes + 1).read_to_end(&mut content)?;
    if content.len() as u64 > max_bytes {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is larger than {max_bytes} bytes"),
        ));
    }
    Ok(content)
}

#[cfg(test)]
mod bundle_tests;
#[cfg(test)]
mod load_tests;
#[cfg(test)]
mod peer_tests;
#[cfg(test)]
pub(crate) mod test_keys;
#[cfg(test)]
mod tests;
