//! Public keys, and what they signed.
//!
//! PEM with a SubjectPublicKeyInfo (RFC 5280, section 4.1.2.7), as `cosign generate-key-pair` and
//! `openssl pkey -pubout` write it. The mathematics is *ring*'s, the parsing of DER that of `webpki`: the same that
//! check the certificates of registries.

use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use webpki::RawPublicKeyEntity;
use webpki::ring::{
    ECDSA_P256_SHA256, ECDSA_P384_SHA256, ECDSA_P384_SHA384, ED25519, RSA_PKCS1_2048_8192_SHA256,
};

use super::read_bounded;
use crate::digest::Digest;

/// A key file is one PEM section of a few hundred bytes.
const KEY_MAX_BYTES: u64 = 64 << 10;
/// The shortest encoding of an RSA key of 2048 bits (it has 294 bytes): *ring* takes no shorter one.
const RSA_2048_MIN_BYTES: usize = 290;

/// What a key is of, and what it may sign with. Cosign hashes with SHA-256 whatever the curve is; newer versions, with
/// the hash that fits the curve.
const KINDS: [(&str, &[&dyn SignatureVerificationAlgorithm]); 4] = [
    ("ECDSA P-256", &[ECDSA_P256_SHA256]),
    ("ECDSA P-384", &[ECDSA_P384_SHA256, ECDSA_P384_SHA384]),
    ("Ed25519", &[ED25519]),
    ("RSA", &[RSA_PKCS1_2048_8192_SHA256]),
];

/// A public key that images may be signed with: ECDSA on P-256 or P-384, Ed25519, or RSA of 2048 to 8192 bits.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    spki: SubjectPublicKeyInfoDer<'static>,
    /// An index into [`KINDS`].
    kind: usize,
    file: Option<PathBuf>,
}

/// A key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("cannot read the key {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// It is not base64 (RFC 4648, section 4).
    #[error("the key data is not base64")]
    Base64(#[source] base64::DecodeError),
    /// There is no public key in it.
    #[error(
        "there is no public key in it (`-----BEGIN PUBLIC KEY-----`); of a private key, `cosign public-key` and \
         `openssl pkey -pubout` give it"
    )]
    None,
    /// The section is malformed.
    #[error("its PEM section is malformed: {0}")]
    Pem(String),
    /// There are several, and only one of them would count.
    #[error("there are {0} keys in it; list them one by one")]
    Several(usize),
    /// It is a key, and not of a kind that is supported.
    #[error(
        "it is a key of a kind that is not supported; ECDSA P-256 and P-384, Ed25519 and RSA of 2048 to 8192 bits are"
    )]
    Unsupported,
}

impl PublicKey {
    /// Reads a PEM file.
    ///
    /// # Errors
    /// When the file cannot be read, or does not hold exactly one key of a supported kind.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let pem = read_bounded(path, KEY_MAX_BYTES).map_err(|source| KeyError::Read {
            path: path.to_owned(),
            source,
        })?;
        let mut key = Self::parse(&pem)?;
        key.file = Some(path.to_owned());
        Ok(key)
    }

    /// Takes base64 of PEM, as `keyData` of a policy has it.
    pub(super) fn from_base64(text: &str) -> Result<Self, KeyError> {
        let pem = base64::engine::general_purpose::STANDARD.decode(text);
        Self::parse(&pem.map_err(KeyError::Base64)?)
    }

    /// Parses PEM.
    ///
    /// # Errors
    /// When it does not hold exactly one key of a supported kind.
    pub fn parse(pem: &[u8]) -> Result<Self, KeyError> {
        let sections = SubjectPublicKeyInfoDer::pem_slice_iter(pem);
        let keys: Vec<_> = sections
            .collect::<Result<_, _>>()
            .map_err(|e| KeyError::Pem(e.to_string()))?;
        let spki = match <[_; 1]>::try_from(keys) {
            Ok([spki]) => spki,
            Err(keys) if keys.is_empty() => return Err(KeyError::None),
            Err(keys) => return Err(KeyError::Several(keys.len())),
        };
        let kind = kind(&spki).ok_or(KeyError::Unsupported)?;
        Ok(Self {
            spki,
            kind,
            file: None,
        })
    }

    /// The file it was read from.
    #[must_use]
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// What people compare: the SHA-256 of the DER encoding, which
    /// `openssl pkey -pubin -in FILE -outform DER | sha256sum` prints.
    #[must_use]
    pub fn fingerprint(&self) -> Digest {
        Digest::sha256(self.spki.as_ref())
    }

    /// True when this key signed `message`.
    pub(super) fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let Ok(key) = RawPublicKeyEntity::try_from(&self.spki) else {
            return false;
        };
        let (_, algorithms) = KINDS[self.kind];
        algorithms
            .iter()
            .any(|algorithm| key.verify_signature(*algorithm, message, signature).is_ok())
    }
}

/// Which of [`KINDS`] the key is of.
fn kind(spki: &SubjectPublicKeyInfoDer<'_>) -> Option<usize> {
    let key = RawPublicKeyEntity::try_from(spki).ok()?;
    let found = KINDS.iter().position(|(_, algorithms)| {
        // With a key of another kind the signature is not even looked at, which the error tells.
        matches!(
            key.verify_signature(algorithms[0], b"", b""),
            Err(webpki::Error::InvalidSignatureForPublicKey)
        )
    })?;
    let is_short = KINDS[found].0 == "RSA" && spki.as_ref().len() < RSA_2048_MIN_BYTES;
    (!is_short).then_some(found)
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fingerprint = self.fingerprint();
        write!(f, "{} {}", KINDS[self.kind].0, &fingerprint.hex()[..16])?;
        match &self.file {
            Some(file) => write!(f, " ({})", file.display()),
            None => Ok(()),
        }
    }
}
