use serde_json::{Value, json};

use super::*;

fn bundle() -> Value {
    json!({
        "mediaType": BUNDLE_MEDIA_TYPE,
        "verificationMaterial": {
            "publicKey": {"hint": "tGKDM4xXMMLGBn1dpL52xVoEW77y2DGkovQe5xYwSsg="},
            "tlogEntries": [{"logIndex": "1", "inclusionProof": {"hashes": ["eA=="]}}],
            "timestampVerificationData": {"rfc3161Timestamps": []},
        },
        "dsseEnvelope": {
            "payload": "e30=",
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": "c2ln", "keyid": ""}],
        },
    })
}

fn parsed(bundle: &Value) -> Result<SigstoreBundle, String> {
    parse(bundle.to_string().as_bytes())
}

#[test]
fn what_is_signed_is_the_encoding_of_dsse() {
    // The example of DSSE's `protocol.md`, with the type of statements.
    assert_eq!(
        pre_authentication_encoding(b"hello world"),
        b"DSSEv1 28 application/vnd.in-toto+json 11 hello world"
    );
    assert_eq!(
        pre_authentication_encoding("ü".as_bytes()),
        "DSSEv1 28 application/vnd.in-toto+json 2 ü".as_bytes()
    );
}

#[test]
fn a_bundle_of_a_key_is_read() {
    let read = parsed(&bundle()).unwrap();
    assert_eq!(
        (read.payload(), read.signature()),
        (&b"{}"[..], &b"sig"[..])
    );
    assert!(read.hint().unwrap().hex().starts_with("b46283338c57"));
    let mut least = bundle();
    least["verificationMaterial"] = Value::Null;
    least["dsseEnvelope"]["payload"] = json!("e30");
    assert_eq!(parsed(&least).unwrap().hint(), None);
    let mut other_hint = bundle();
    other_hint["verificationMaterial"]["publicKey"]["hint"] = json!("our key");
    assert_eq!(parsed(&other_hint).unwrap().hint(), None);
    for media_type in MEDIA_TYPES {
        let mut older = bundle();
        older["mediaType"] = json!(media_type);
        assert!(parsed(&older).is_ok(), "{media_type}");
    }
}

#[test]
fn both_alphabets_of_base64_are_read() {
    let mut urlsafe = bundle();
    urlsafe["dsseEnvelope"]["signatures"][0]["sig"] = json!("_-8");
    assert_eq!(parsed(&urlsafe).unwrap().signature(), [0xff, 0xef]);
    let mut mixed = bundle();
    mixed["dsseEnvelope"]["signatures"][0]["sig"] = json!("_+8=");
    assert!(parsed(&mixed).unwrap_err().contains("not base64"));
}

#[test]
fn a_bundle_of_another_kind_is_refused() {
    type Edit = fn(&mut Value);
    let cases: [(Edit, &str); 14] = [
        (
            |b| b["mediaType"] = json!("application/vnd.dev.sigstore.bundle.v9+json"),
            "v9+json`, which is not supported",
        ),
        (|b| b["mediaType"] = json!("\u{7}\n"), "\u{fffd}\u{fffd}"),
        (|b| b["more"] = json!(1), "unknown field `more`"),
        (
            |b| b["verificationMaterial"] = json!({"certificate": {"rawBytes": "eA=="}}),
            "Fulcio",
        ),
        (
            |b| b["verificationMaterial"] = json!({"x509CertificateChain": {"certificates": []}}),
            "Fulcio",
        ),
        (
            |b| b["messageSignature"] = json!({"signature": "eA=="}),
            "both",
        ),
        (
            |b| {
                b["messageSignature"] = json!({"signature": "eA=="});
                b["dsseEnvelope"] = Value::Null;
            },
            "of a file",
        ),
        (|b| b["dsseEnvelope"] = Value::Null, "no dsseEnvelope"),
        (
            |b| b["dsseEnvelope"]["payloadType"] = json!("text/plain"),
            "type `text/plain`",
        ),
        (
            |b| b["dsseEnvelope"]["signatures"] = json!([]),
            "0 signatures",
        ),
        (
            |b| b["dsseEnvelope"]["signatures"] = json!([{"sig": "eA=="}, {"sig": "eA=="}]),
            "2 signatures",
        ),
        (
            |b| b["dsseEnvelope"]["signatures"] = json!([{"sig": "A".repeat(5000)}]),
            "more than 4096",
        ),
        (
            |b| b["dsseEnvelope"]["payload"] = json!("%%%"),
            "payload is not base64",
        ),
        (
            |b| b["dsseEnvelope"]["payload"] = json!("A".repeat(100_000)),
            "payload is larger",
        ),
    ];
    for (edit, expected) in cases {
        let mut bundle = bundle();
        edit(&mut bundle);
        let refused = parsed(&bundle).unwrap_err();
        assert!(refused.contains(expected), "{expected}: {refused}");
    }
}

#[test]
fn hostile_bundles_are_refused_without_cost() {
    for text in ["", "null", "[]", "{}", "\u{0}", "{\"mediaType\":1}"] {
        assert!(parse(text.as_bytes()).is_err(), "{text}");
    }
    let huge = " ".repeat(BUNDLE_MAX_BYTES as usize + 1);
    assert!(parse(huge.as_bytes()).unwrap_err().contains("larger than"));
    let deep = format!(
        "{{\"verificationMaterial\":{{\"certificate\":{}",
        "[".repeat(100_000)
    );
    assert!(parse(deep.as_bytes()).unwrap_err().contains("malformed"));
}

#[test]
fn a_field_of_a_bundle_given_twice_is_refused() {
    let once = bundle().to_string();
    for (field, twice) in [
        ("\"payload\":", "\"payload\":\"e30=\",\"payload\":"),
        ("\"payloadType\":", "\"payloadType\":\"x\",\"payloadType\":"),
        ("\"signatures\":", "\"signatures\":[],\"signatures\":"),
        ("\"sig\":", "\"sig\":\"eA==\",\"sig\":"),
        ("\"mediaType\":", "\"mediaType\":\"x\",\"mediaType\":"),
        (
            "\"dsseEnvelope\":",
            "\"dsseEnvelope\":null,\"dsseEnvelope\":",
        ),
    ] {
        let refused = parse(once.replace(field, twice).as_bytes()).unwrap_err();
        assert!(refused.contains("duplicate field"), "{field} {refused}");
    }
}
