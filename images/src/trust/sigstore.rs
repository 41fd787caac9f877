//! The envelope of a signature: a sigstore bundle, as cosign 3 makes it (sigstore's `protos/sigstore_bundle.proto`, in
//! the JSON of protocol buffers).
//!
//! ```json
//! {"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
//!  "verificationMaterial": {"publicKey": {"hint": "…"}, "tlogEntries": […], "timestampVerificationData": {…}},
//!  "dsseEnvelope": {"payloadType": "application/vnd.in-toto+json", "payload": "…base64…",
//!                   "signatures": [{"sig": "…base64…"}]}}
//! ```
//! What is signed is the payload with its type before it ("pre-authentication encoding" of DSSE's `protocol.md`), so that
//! no other message can be taken for it. Entries of transparency logs and timestamps are passed over: with a key neither
//! a log nor a clock is needed.
//!
//! Deliberately absent: certificates, and signatures of bare files (`messageSignature`), which do not say what they are
//! meant for.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::payload::{PAYLOAD_MAX_BYTES, SIGNATURE_MAX_BYTES};
use super::{QUOTED_MAX_CHARS, shown};
use crate::digest::Digest;

/// The largest bundle: that of a signature has 1 to 20 KiB, with timestamps and proofs of logs.
pub(super) const BUNDLE_MAX_BYTES: u64 = 128 << 10;
/// What a bundle is called in a registry.
pub(crate) const BUNDLE_MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// How the types of all its versions begin.
const BUNDLE_TYPE_PREFIX: &str = "application/vnd.dev.sigstore.bundle";
/// The versions that differ only in what is passed over here.
const MEDIA_TYPES: [&str; 4] = [
    BUNDLE_MEDIA_TYPE,
    "application/vnd.dev.sigstore.bundle+json;version=0.3",
    "application/vnd.dev.sigstore.bundle+json;version=0.2",
    "application/vnd.dev.sigstore.bundle+json;version=0.1",
];
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// Protocol buffers' JSON may be written with either alphabet, with or without padding.
const BASE64: [GeneralPurpose; 2] = [
    GeneralPurpose::new(&alphabet::STANDARD, INDIFFERENT),
    GeneralPurpose::new(&alphabet::URL_SAFE, INDIFFERENT),
];
const INDIFFERENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);

/// True for the media type of a bundle of whichever version.
pub(super) fn is_bundle(media_type: &str) -> bool {
    media_type.starts_with(BUNDLE_TYPE_PREFIX)
}

/// What a bundle holds: nothing of it is to be believed yet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SigstoreBundle {
    payload: Vec<u8>,
    signature: Vec<u8>,
    hint: Option<Digest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawBundle {
    media_type: String,
    #[serde(default)]
    verification_material: Option<RawMaterial>,
    #[serde(default)]
    dsse_envelope: Option<RawEnvelope>,
    #[serde(default)]
    message_signature: Option<IgnoredAny>,
}

/// Other fields are evidence for those who have no key.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMaterial {
    #[serde(default)]
    public_key: Option<RawHint>,
    #[serde(default)]
    certificate: Option<IgnoredAny>,
    #[serde(default, rename = "x509CertificateChain")]
    certificate_chain: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct RawHint {
    #[serde(default)]
    hint: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RawEnvelope {
    payload: String,
    payload_type: String,
    signatures: Vec<RawSignature>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSignature {
    sig: String,
    /// Not signed, so it says nothing (DSSE's `protocol.md`).
    #[serde(default, rename = "keyid")]
    _keyid: Option<IgnoredAny>,
}

/// Parses a bundle, and refuses what is none of a statement that a key signed.
pub(super) fn parse(json: &[u8]) -> Result<SigstoreBundle, String> {
    if json.len() as u64 > BUNDLE_MAX_BYTES {
        return Err(format!("it is larger than {BUNDLE_MAX_BYTES} bytes"));
    }
    let bundle: RawBundle =
        serde_json::from_slice(json).map_err(|e| format!("it is malformed: {e}"))?;
    if !MEDIA_TYPES.contains(&bundle.media_type.as_str()) {
        let found = shown(&bundle.media_type, QUOTED_MAX_CHARS);
        return Err(format!(
            "it has the media type `{found}`, which is not supported; `{BUNDLE_MEDIA_TYPE}` is"
        ));
    }
    let material = bundle.verification_material;
    if material.as_ref().is_some_and(|material| {
        material.certificate.is_some() || material.certificate_chain.is_some()
    }) {
        return Err(
            "it is made with a certificate (\"keyless\", Fulcio), and a key is asked for"
                .to_owned(),
        );
    }
    let envelope = match (bundle.dsse_envelope, bundle.message_signature) {
        (Some(envelope), None) => envelope,
        (None, Some(IgnoredAny)) => {
            let reason = "it is the signature of a file (messageSignature), not of an image";
            return Err(reason.to_owned());
        }
        (Some(_), Some(_)) => {
            return Err("it has both a dsseEnvelope and a messageSignature".to_owned());
        }
        (None, None) => return Err("there is no dsseEnvelope in it".to_owned()),
    };
    let hint = material
        .and_then(|material| material.public_key?.hint)
        .and_then(|hint| fingerprint(&hint));
    open(&envelope, hint)
}

fn open(envelope: &RawEnvelope, hint: Option<Digest>) -> Result<SigstoreBundle, String> {
    if envelope.payload_type != PAYLOAD_TYPE {
        let found = shown(&envelope.payload_type, QUOTED_MAX_CHARS);
        return Err(format!(
            "its payload has the type `{found}` instead of `{PAYLOAD_TYPE}`"
        ));
    }
    let [signature] = &envelope.signatures[..] else {
        let count = envelope.signatures.len();
        return Err(format!("there are {count} signatures in it instead of one"));
    };
    if signature.sig.len() > SIGNATURE_MAX_BYTES {
        return Err(format!(
            "its signature has more than {SIGNATURE_MAX_BYTES} characters"
        ));
    }
    let signature = decode(&signature.sig).ok_or("its signature is not base64")?;
    let payload = decode(&envelope.payload).ok_or("its payload is not base64")?;
    if payload.len() as u64 > PAYLOAD_MAX_BYTES {
        return Err(format!(
            "its payload is larger than {PAYLOAD_MAX_BYTES} bytes"
        ));
    }
    Ok(SigstoreBundle {
        payload,
        signature,
        hint,
    })
}

impl SigstoreBundle {
    /// The statement.
    pub(super) fn payload(&self) -> &[u8] {
        &self.payload
    }

    pub(super) fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// The fingerprint of the key that the bundle names, if it names one as cosign does.
    pub(super) fn hint(&self) -> Option<&Digest> {
        self.hint.as_ref()
    }

    /// What is signed: the payload's type and the payload, each with its length before it.
    pub(super) fn message(&self) -> Vec<u8> {
        pre_authentication_encoding(&self.payload)
    }
}

fn pre_authentication_encoding(payload: &[u8]) -> Vec<u8> {
    let (kind, kind_length, length) = (PAYLOAD_TYPE, PAYLOAD_TYPE.len(), payload.len());
    let mut message = format!("DSSEv1 {kind_length} {kind} {length} ").into_bytes();
    message.extend_from_slice(payload);
    message
}

/// A hint is free text; that of cosign is the base64 of the SHA-256 of the key's DER encoding.
fn fingerprint(hint: &str) -> Option<Digest> {
    let bytes = decode(hint).filter(|bytes| bytes.len() == 32)?;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}").parse().ok()
}

fn decode(text: &str) -> Option<Vec<u8>> {
    BASE64.iter().find_map(|engine| engine.decode(text).ok())
}

#[cfg(test)]
#[path = "sigstore/tests.rs"]
mod tests;
