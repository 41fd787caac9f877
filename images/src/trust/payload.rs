//! What a signature says: the payload of "simple signing" (containers-signature(5); cosign's
//! `specs/SIGNATURE_SPEC.md`).
//!
//! ```json
//! {"critical": {"type": "cosign container image signature",
//!               "identity": {"docker-reference": "registry.example/team/app"},
//!               "image": {"docker-manifest-digest": "sha256:…"}},
//!  "optional": null}
//! ```
//! The signature is over these bytes as they are. It is checked before they are parsed.

use base64::Engine;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::signature::{Claim, ClaimedName};
use super::{QUOTED_MAX_CHARS, shown};

/// The largest payload: one has some 300 bytes, and room for annotations of the signer's.
pub(super) const PAYLOAD_MAX_BYTES: u64 = 64 << 10;
/// The largest signature: that of RSA with 8192 bits has 1024 bytes.
pub(super) const SIGNATURE_MAX_BYTES: usize = 4096;
/// What a payload must be of.
const PAYLOAD_TYPE: &str = "cosign container image signature";

/// One signature as it was found: nothing of it is to be believed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SignedPayload {
    /// What was signed.
    pub(crate) payload: Vec<u8>,
    /// The signature, base64.
    pub(crate) base64: String,
}

impl SignedPayload {
    /// The signature's bytes; none if they are no base64, or too many to be a signature.
    pub(super) fn bytes(&self) -> Option<Vec<u8>> {
        if self.base64.len() > SIGNATURE_MAX_BYTES {
            return None;
        }
        let text: String = self.base64.split_ascii_whitespace().collect();
        let engine = base64::engine::general_purpose::STANDARD;
        engine.decode(text).ok()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    critical: Critical,
    /// Notes of the signer's, which decide nothing.
    #[serde(default, rename = "optional")]
    _optional: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    #[serde(rename = "type")]
    kind: String,
    identity: SignedIdentity,
    image: SignedImage,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignedIdentity {
    #[serde(rename = "docker-reference")]
    docker_reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignedImage {
    #[serde(rename = "docker-manifest-digest")]
    docker_manifest_digest: String,
}

/// Parses what a trusted key signed. What is not understood is refused: it might be meant to forbid something.
pub(super) fn parse(payload: &[u8]) -> Result<Claim, String> {
    if payload.len() as u64 > PAYLOAD_MAX_BYTES {
        return Err(format!(
            "its payload is larger than {PAYLOAD_MAX_BYTES} bytes"
        ));
    }
    let payload: Payload = serde_json::from_slice(payload)
        .map_err(|e| format!("its payload is not that of an image's signature: {e}"))?;
    let critical = payload.critical;
    if critical.kind != PAYLOAD_TYPE {
        return Err(format!(
            "its payload has the type `{}` instead of `{PAYLOAD_TYPE}`",
            shown(&critical.kind, QUOTED_MAX_CHARS)
        ));
    }
    let name = ClaimedName::parse(critical.identity.docker_reference)
        .map_err(|e| format!("its payload names no image: {e}"))?;
    let digest = critical.image.docker_manifest_digest.parse();
    let digest = digest.map_err(|e| format!("its payload names no manifest: {e}"))?;
    Ok(Claim {
        name: Some(name),
        digest,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::digest::Digest;

    fn payload() -> Value {
        json!({
            "critical": {
                "type": PAYLOAD_TYPE,
                "identity": {"docker-reference": "h.example/app"},
                "image": {"docker-manifest-digest": Digest::sha256(b"x").to_string()},
            },
            "optional": {"creator": "podling", "timestamp": 1},
        })
    }

    #[test]
    fn a_payload_of_cosign_or_skopeo_is_understood() {
        let claim = parse(payload().to_string().as_bytes()).unwrap();
        assert_eq!(claim.digest, Digest::sha256(b"x"));
        assert_eq!(claim.name.unwrap().text, "h.example/app");
        let mut of_cosign = payload();
        of_cosign["optional"] = Value::Null;
        assert!(parse(of_cosign.to_string().as_bytes()).is_ok());
    }

    #[test]
    fn a_payload_of_another_kind_is_refused() {
        type Edit = fn(&mut Value);
        let cases: [(Edit, &str); 9] = [
            (
                |p| p["critical"]["type"] = json!("atomic container signature"),
                "type `atomic",
            ),
            (
                |p| p["critical"]["type"] = json!(1),
                "not that of an image's",
            ),
            (
                |p| p["critical"]["more"] = json!(true),
                "unknown field `more`",
            ),
            (|p| p["more"] = json!(true), "unknown field `more`"),
            (
                |p| p["critical"]["image"]["more"] = json!(1),
                "unknown field",
            ),
            (|p| p["critical"]["identity"] = json!({}), "missing field"),
            (
                |p| p["critical"]["identity"]["docker-reference"] = json!("../x"),
                "names no image",
            ),
            (
                |p| p["critical"]["image"]["docker-manifest-digest"] = json!("md5:00"),
                "names no manifest",
            ),
            (|p| p["optional"] = json!("text"), "not that of an image's"),
        ];
        for (edit, expected) in cases {
            let mut payload = payload();
            edit(&mut payload);
            let refused = parse(payload.to_string().as_bytes()).unwrap_err();
            assert!(refused.contains(expected), "{payload}: {refused}");
        }
        for text in [
            "",
            "null",
            "[]",
            "{}",
            "\u{0}",
            "{\"critical\":{},\"critical\":{}}",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        let long = " ".repeat(PAYLOAD_MAX_BYTES as usize + 1);
        assert!(parse(long.as_bytes()).unwrap_err().contains("larger"));
    }

    #[test]
    fn a_field_given_twice_is_refused() {
        let digest = Digest::sha256(b"x");
        let twice = format!(
            r#"{{"critical":{{"type":"{PAYLOAD_TYPE}","identity":{{"docker-reference":"a.example/a","docker-reference":"b.example/b"}},"image":{{"docker-manifest-digest":"{digest}"}}}}}}"#
        );
        let refused = parse(twice.as_bytes()).unwrap_err();
        assert!(refused.contains("duplicate field"), "{refused}");
    }

    #[test]
    fn what_is_no_base64_is_no_signature() {
        let bytes = |text: &str| {
            let signature = SignedPayload {
                payload: Vec::new(),
                base64: text.to_owned(),
            };
            signature.bytes()
        };
        // Of RFC 4648, section 10; `base64` of coreutils breaks lines.
        assert_eq!(bytes("Zm9v\nYmFy\n").as_deref(), Some(&b"foobar"[..]));
        for text in [
            "Zm9",
            "!!!!",
            "Zm9v-mFy",
            &"A".repeat(SIGNATURE_MAX_BYTES + 4),
        ] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
