//! Verdicts on sigstore bundles: of an independent implementation, and made by `openssl`.

use serde_json::{Value, json};

use super::payload::SignedPayload;
use super::test_keys::{Keys, attestation, bundle_by, signed_by, statement};
use super::*;
use crate::digest::Digest;
use crate::reference::Reference;

const IMAGE: &str = "h.example/app:1";

fn manifest() -> Digest {
    Digest::sha256(b"the manifest")
}

fn judge(
    requirements: &Value,
    index: Option<&Digest>,
    signatures: &[Signature],
) -> Result<SignedBy, String> {
    let json = json!({"default": requirements}).to_string();
    let policy = Policy::parse(Path::new("/etc/podling/policy.json"), json.as_bytes()).unwrap();
    let image: Reference = IMAGE.parse().unwrap();
    let found = Found {
        signatures: signatures.iter().collect(),
        problems: &[],
    };
    let subject = Subject {
        image: &image,
        manifest: &manifest(),
        index,
    };
    match policy.rules(&Origin::Docker, &image).judge(subject, &found) {
        Ok(Verdict::Signed { mut signed_by, .. }) => Ok(signed_by.remove(0)),
        Ok(verdict) => panic!("{verdict:?}"),
        Err(e) => Err(e.to_string()),
    }
}

fn accepted(requirements: &Value, bundle: &[u8]) -> Result<SignedBy, String> {
    judge(requirements, None, &[Signature::Bundle(bundle.to_vec())])
}

fn fixture(name: &str) -> std::path::PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sigstore");
    dir.join(name)
}

#[test]
fn bundles_of_another_implementation_verify_by_each_kind_of_key() {
    let read = |name: &str| std::fs::read(fixture(&format!("{name}.sigstore.json"))).unwrap();
    for name in ["p256", "ed25519", "rsa"] {
        let key = fixture(&format!("{name}.pub"));
        let signed_by = accepted(&bundle_by(&key), &read(name)).unwrap();
        let fingerprint = PublicKey::read(&key).unwrap().fingerprint();
        assert_eq!(
            (signed_by.key, signed_by.digest, signed_by.identity),
            (fingerprint.clone(), manifest(), None)
        );
        // The key that it names by itself is told where another is asked for.
        let other = fixture(if name == "p256" {
            "rsa.pub"
        } else {
            "p256.pub"
        });
        let refused = accepted(&bundle_by(&other), &read(name)).unwrap_err();
        let hint = format!("by its own word with {}", &fingerprint.hex()[..16]);
        assert!(refused.contains(&hint), "{refused}");
    }
    let key = fixture("p256.pub");
    let refused = accepted(&bundle_by(&key), &read("attestation")).unwrap_err();
    assert!(
        refused.contains("https://slsa.dev/provenance/v1"),
        "{refused}"
    );
}

#[test]
fn each_kind_of_key_that_cosign_uses_verifies_a_bundle() {
    let keys = Keys::new();
    let p384 = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"];
    let rsa = ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:3072"];
    keys.p256("p256");
    keys.make("p384", &p384);
    keys.make("rsa", &rsa);
    keys.make("ed25519", &["-algorithm", "ED25519"]);
    let all = ["p256.pub", "p384.pub", "rsa.pub", "ed25519.pub"].map(|name| keys.path(name));
    let any = json!([{"type": "sigstoreSigned", "keyPaths": all, "acceptUnnamed": true}]);
    for (name, hash) in [
        ("p256", &["-sha256"][..]),
        ("p384", &["-sha256"]),
        ("p384", &["-sha384"]),
        ("rsa", &["-sha256"]),
        ("ed25519", &[]),
    ] {
        let statement = statement(&manifest().to_string());
        let bundle = keys.bundle_with(name, &statement, hash);
        let signed_by = accepted(&any, &bundle).unwrap();
        assert_eq!(signed_by.key_file, Some(keys.path(&format!("{name}.pub"))));
    }
}

#[test]
fn an_attestation_by_the_right_key_is_no_signature() {
    let keys = Keys::new();
    let key = keys.p256("ours");
    keys.p256("theirs");
    let statement = attestation(&manifest().to_string());
    for signer in ["ours", "theirs"] {
        let refused = accepted(&bundle_by(&key), &keys.bundle(signer, &statement)).unwrap_err();
        assert!(refused.contains("not a signature"), "{refused}");
    }
    let mut older = self::statement(&manifest().to_string());
    older["_type"] = json!("https://in-toto.io/Statement/v0.1");
    let refused = accepted(&bundle_by(&key), &keys.bundle("ours", &older)).unwrap_err();
    assert!(refused.contains("Statement/v0.1"), "{refused}");
}

#[test]
fn a_bundle_that_names_no_image_counts_only_where_the_policy_says_so() {
    let keys = Keys::new();
    let key = keys.p256("ours");
    let bundle = keys.bundle("ours", &statement(&manifest().to_string()));
    let refused = accepted(&signed_by(&key), &bundle).unwrap_err();
    assert!(
        refused.contains("names no image") && refused.contains("acceptUnnamed"),
        "{refused}"
    );
    let mut no = bundle_by(&key);
    no[0]["acceptUnnamed"] = json!(false);
    assert!(accepted(&no, &bundle).is_err());
    assert!(accepted(&bundle_by(&key), &bundle).is_ok());
    // Whatever names are asked for: it has none.
    let mut exact = bundle_by(&key);
    exact[0]["signedIdentity"] = json!({"type": "matchExact"});
    assert!(accepted(&exact, &bundle).is_ok());
}

#[test]
fn a_name_that_a_bundle_has_must_be_that_of_the_image() {
    let keys = Keys::new();
    let key = keys.p256("ours");
    let mut named = statement(&manifest().to_string());
    named["subject"][0]["name"] = json!("h.example/app");
    let ours = keys.bundle("ours", &named);
    let signed = accepted(&signed_by(&key), &ours).unwrap();
    assert_eq!(signed.identity.as_deref(), Some("h.example/app"));
    named["subject"][0]["name"] = json!("h.example/other");
    let other = keys.bundle("ours", &named);
    for requirements in [signed_by(&key), bundle_by(&key)] {
        let refused = accepted(&requirements, &other).unwrap_err();
        assert!(
            refused.contains("for the name h.example/other"),
            "{refused}"
        );
    }
}

#[test]
fn acceptunnamed_does_not_loosen_what_names_an_image() {
    let keys = Keys::new();
    let key = keys.p256("ours");
    let payload = test_keys::payload("h.example/other", &manifest().to_string());
    let classic = Signature::Payload(SignedPayload {
        base64: keys.sign("ours", &payload),
        payload,
    });
    let refused = judge(&bundle_by(&key), None, &[classic]).unwrap_err();
    assert!(
        refused.contains("for the name h.example/other"),
        "{refused}"
    );
}

#[test]
fn a_bundle_of_another_image_does_not_count_and_one_of_the_index_does() {
    let keys = Keys::new();
    let key = keys.p256("ours");
    let index = Digest::sha256(b"the index");
    let of_index = keys.bundle("ours", &statement(&index.to_string()));
    let refused = accepted(&bundle_by(&key), &of_index).unwrap_err();
    assert!(refused.contains(&index.to_string()), "{refused}");
    let signatures = [Signature::Bundle(of_index)];
    let signed = judge(&bundle_by(&key), Some(&index), &signatures).unwrap();
    assert_eq!(signed.digest, index);
    // One statement for several images is one for each.
    let mut several = statement(&index.to_string());
    let other = statement(&manifest().to_string())["subject"][0].clone();
    several["subject"].as_array_mut().unwrap().push(other);
    assert!(accepted(&bundle_by(&key), &keys.bundle("ours", &several)).is_ok());
}

#[test]
fn a_signature_of_one_form_is_not_one_of_the_other() {
    let keys = Keys::new();
    let key = keys.p256("ours");
    let statement = statement(&manifest().to_string());
    // Of the statement itself, without the encoding of DSSE.
    let mut bare: Value = serde_json::from_slice(&keys.bundle("ours", &statement)).unwrap();
    let base64 = keys.sign("ours", statement.to_string().as_bytes());
    bare["dsseEnvelope"]["signatures"][0]["sig"] = json!(base64);
    let refused = accepted(&bundle_by(&key), bare.to_string().as_bytes()).unwrap_err();
    assert!(refused.contains("not made with the key"), "{refused}");
    // A payload of simple signing in an envelope.
    let payload: Value = serde_json::from_slice(&test_keys::payload(
        "h.example/app",
        &manifest().to_string(),
    ))
    .unwrap();
    let refused = accepted(&bundle_by(&key), &keys.bundle("ours", &payload)).unwrap_err();
    assert!(refused.contains("no statement"), "{refused}");
    // And the signed message of a bundle as the payload of simple signing.
    let text = statement.to_string();
    let kind = "application/vnd.in-toto+json";
    let payload = format!("DSSEv1 {} {kind} {} {text}", kind.len(), text.len()).into_bytes();
    let classic = Signature::Payload(SignedPayload {
        base64: keys.sign("ours", &payload),
        payload,
    });
    let refused = judge(&bundle_by(&key), None, &[classic]).unwrap_err();
    assert!(
        refused.contains("not that of an image's signature"),
        "{refused}"
    );
}

#[test]
fn a_forged_bundle_is_refused() {
    let keys = Keys::new();
    let key = keys.p256("ours");
    let signed: Value = serde_json::from_slice(
        &keys.bundle("ours", &statement(&Digest::sha256(b"other").to_string())),
    )
    .unwrap();
    let engine = base64::engine::general_purpose::STANDARD;
    let mut forged = signed.clone();
    let payload = statement(&manifest().to_string()).to_string();
    forged["dsseEnvelope"]["payload"] = json!(base64::Engine::encode(&engine, payload));
    let mut certified = signed;
    certified["verificationMaterial"] = json!({"certificate": {"rawBytes": "eA=="}});
    for (bundle, expected) in [
        (forged, "not made with the key"),
        (certified, "with a certificate (\"keyless\", Fulcio)"),
        (json!({}), "malformed"),
    ] {
        let refused = accepted(&bundle_by(&key), bundle.to_string().as_bytes()).unwrap_err();
        assert!(refused.contains(expected), "{expected}: {refused}");
    }
}

#[test]
fn acceptunnamed_is_true_or_false() {
    let keys = Keys::new();
    let mut requirements = bundle_by(&keys.p256("ours"));
    requirements[0]["acceptUnnamed"] = json!("yes");
    let json = json!({"default": requirements}).to_string();
    let error = Policy::parse(Path::new("/p.json"), json.as_bytes()).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("expected a boolean"), "{source}");
}

#[test]
fn a_bundle_of_which_any_byte_is_another_is_refused_or_says_the_same() {
    let requirements = bundle_by(&fixture("p256.pub"));
    let bundle = std::fs::read(fixture("p256.sigstore.json")).unwrap();
    let bundle = bundle.trim_ascii_end();
    let whole = accepted(&requirements, bundle).unwrap();
    let mut same = 0;
    for at in 0..bundle.len() {
        for bit in [0x01, 0x20] {
            let mut changed = bundle.to_vec();
            changed[at] ^= bit;
            if let Ok(signed) = accepted(&requirements, &changed) {
                assert_eq!(signed, whole);
                same += 1;
            }
        }
        assert!(accepted(&requirements, &bundle[..at]).is_err());
    }
    // The hint and the key's id are not signed, and decide nothing.
    assert!((50..400).contains(&same), "{same} of {}", bundle.len());
}

#[test]
fn nothing_that_a_stranger_wrote_reaches_a_terminal_as_a_command() {
    let keys = Keys::new();
    let key = keys.p256("ours");
    let text = "\u{1b}]0;title\u{7}".repeat(500);
    let mut kind = statement(&manifest().to_string());
    kind["predicateType"] = json!(text);
    let mut field = json!({});
    field[&text] = json!(1);
    for bundle in [
        keys.bundle("ours", &kind),
        field.to_string().into_bytes(),
        json!({"mediaType": text}).to_string().into_bytes(),
    ] {
        let refused = accepted(&bundle_by(&key), &bundle).unwrap_err();
        assert!(!refused.contains(char::is_control), "{refused:?}");
        assert!(refused.chars().count() < 1000, "{}", refused.len());
    }
}
