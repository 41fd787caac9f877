//! What a bundle says: an in-toto statement (in-toto's `spec/v1/statement.md`), as `cosign sign` makes it.
//!
//! ```json
//! {"_type": "https://in-toto.io/Statement/v1",
//!  "subject": [{"digest": {"sha256": "…"}}],
//!  "predicateType": "https://sigstore.dev/cosign/sign/v1", "predicate": {}}
//! ```
//! The kind of the predicate is what makes a statement a signature. Others say how an image was built (SLSA), or what is
//! in it: whoever may sign those says nothing of whether it may run. Unknown fields are passed over, as in-toto demands
//! ("parsing rules"): a statement only ever says more, never less.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::once::Once;
use super::payload::PAYLOAD_MAX_BYTES;
use super::signature::{Claim, ClaimedName};
use super::{QUOTED_MAX_CHARS, shown};

const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// What a statement that is a signature is of.
pub(super) const SIGNATURE_PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";
/// Images that one statement may be for; cosign's is for one.
const SUBJECTS_MAX: usize = 64;

#[derive(Deserialize)]
struct Kind {
    #[serde(rename = "_type")]
    statement: String,
    #[serde(rename = "predicateType")]
    predicate: String,
}

#[derive(Deserialize)]
struct Subjects {
    subject: Vec<Subject>,
}

#[derive(Deserialize)]
struct Subject {
    #[serde(default)]
    name: Option<String>,
    digest: Once<String>,
}

/// Refuses a statement that is no signature of an image.
pub(super) fn check_kind(payload: &[u8]) -> Result<(), String> {
    let kind: Kind = read(payload)?;
    if kind.statement != STATEMENT_TYPE {
        let found = shown(&kind.statement, QUOTED_MAX_CHARS);
        return Err(format!(
            "its payload has the type `{found}` instead of `{STATEMENT_TYPE}`"
        ));
    }
    if kind.predicate != SIGNATURE_PREDICATE {
        let found = shown(&kind.predicate, QUOTED_MAX_CHARS);
        return Err(format!("it is an attestation (`{found}`), not a signature"));
    }
    Ok(())
}

/// Parses what a trusted key signed: a claim for each image that it is for.
pub(super) fn parse(payload: &[u8]) -> Result<Vec<Claim>, String> {
    check_kind(payload)?;
    let Subjects { subject: subjects } = read(payload)?;
    if subjects.is_empty() || subjects.len() > SUBJECTS_MAX {
        return Err(format!(
            "it is for {} images; 1 to {SUBJECTS_MAX} are supported",
            subjects.len()
        ));
    }
    let mut claims = Vec::new();
    for Subject { name, digest } in subjects {
        let name = name.filter(|name| !name.is_empty());
        let name = name.map(ClaimedName::parse).transpose();
        let name = name.map_err(|e| format!("its subject's name is no image's: {e}"))?;
        claims.extend(digests(&digest.0).map(|digest| Claim {
            name: name.clone(),
            digest,
        }));
    }
    match claims.is_empty() {
        true => Err("it names no manifest: there is no sha256 or sha512 in it".to_owned()),
        false => Ok(claims),
    }
}

/// Those that manifests have; other algorithms are no digests of images.
fn digests(by_algorithm: &BTreeMap<String, String>) -> impl Iterator<Item = crate::digest::Digest> {
    let texts = by_algorithm
        .iter()
        .map(|(algorithm, hex)| format!("{algorithm}:{hex}"));
    texts.filter_map(|text| text.parse().ok())
}

fn read<'a, T: Deserialize<'a>>(payload: &'a [u8]) -> Result<T, String> {
    if payload.len() as u64 > PAYLOAD_MAX_BYTES {
        return Err(format!(
            "its payload is larger than {PAYLOAD_MAX_BYTES} bytes"
        ));
    }
    serde_json::from_slice(payload).map_err(|e| format!("its payload is no statement: {e}"))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::digest::Digest;

    fn statement() -> Value {
        json!({
            "_type": STATEMENT_TYPE,
            "subject": [{"digest": {"sha256": Digest::sha256(b"x").hex()}, "annotations": {}}],
            "predicateType": SIGNATURE_PREDICATE,
            "predicate": {},
        })
    }

    fn refusal(edit: impl FnOnce(&mut Value)) -> String {
        let mut statement = statement();
        edit(&mut statement);
        parse(statement.to_string().as_bytes()).unwrap_err()
    }

    #[test]
    fn a_statement_of_cosign_is_for_a_digest_and_names_no_image() {
        let claims = parse(statement().to_string().as_bytes()).unwrap();
        assert_eq!(claims.len(), 1);
        assert_eq!(claims[0].digest, Digest::sha256(b"x"));
        assert_eq!(claims[0].name, None);
    }

    #[test]
    fn a_name_that_a_statement_has_is_read() {
        let mut named = statement();
        named["subject"][0]["name"] = json!("h.example/app");
        let claims = parse(named.to_string().as_bytes()).unwrap();
        assert_eq!(claims[0].name.as_ref().unwrap().text, "h.example/app");
        let refused = refusal(|s| s["subject"][0]["name"] = json!("../x"));
        assert!(refused.contains("no image's"), "{refused}");
    }

    #[test]
    fn an_attestation_is_no_signature() {
        for kind in [
            "https://slsa.dev/provenance/v1",
            "https://spdx.dev/Document",
            "https://cyclonedx.org/bom",
            "https://sigstore.dev/cosign/sign/v2",
            "https://sigstore.dev/cosign/sign/v1/",
            "",
        ] {
            let refused = refusal(|s| s["predicateType"] = json!(kind));
            assert!(
                refused.contains("attestation") && refused.contains(kind),
                "{refused}"
            );
        }
    }

    #[test]
    fn a_statement_of_another_kind_is_refused() {
        for (refused, expected) in [
            (
                refusal(|s| s["_type"] = json!("https://in-toto.io/Statement/v0.1")),
                "has the type",
            ),
            (refusal(|s| s["_type"] = json!(1)), "no statement"),
            (refusal(|s| s["subject"] = json!([])), "for 0 images"),
            (
                refusal(|s| s["subject"] = json!(vec![s["subject"][0].clone(); 65])),
                "for 65 images",
            ),
            (refusal(|s| s["subject"] = json!({})), "no statement"),
            (
                refusal(|s| s["subject"][0]["digest"] = json!({"sha256": "00"})),
                "names no manifest",
            ),
            (
                refusal(|s| s["subject"][0]["digest"] = json!({"gitCommit": "00"})),
                "names no manifest",
            ),
        ] {
            assert!(refused.contains(expected), "{refused}");
        }
        for text in ["", "null", "[]", "{}", "\u{0}"] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        let deep = format!("{{\"_type\":{}", "[".repeat(50_000));
        assert!(parse(deep.as_bytes()).is_err());
    }

    #[test]
    fn a_field_given_twice_is_refused() {
        let once = statement().to_string();
        let hex = Digest::sha256(b"y");
        for (field, twice) in [
            ("\"_type\":", "\"_type\":\"x\",\"_type\":".to_owned()),
            (
                "\"predicateType\":",
                "\"predicateType\":\"x\",\"predicateType\":".to_owned(),
            ),
            ("\"subject\":", "\"subject\":[],\"subject\":".to_owned()),
            (
                "\"sha256\":",
                format!("\"sha256\":\"{}\",\"sha256\":", hex.hex()),
            ),
        ] {
            let refused = parse(once.replace(field, &twice).as_bytes()).unwrap_err();
            assert!(refused.contains("duplicate field"), "{field} {refused}");
        }
    }
}
