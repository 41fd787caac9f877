//! Policies, and verdicts on signatures that `openssl` made.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::payload::SignedPayload;
use super::test_keys::{self, Keys, signed_by};
use super::*;
use crate::digest::Digest;
use crate::reference::Reference;

const FILE: &str = "/etc/podling/policy.json";

fn sign(keys: &Keys, key: &str, payload: &[u8]) -> Signature {
    Signature::Payload(SignedPayload {
        payload: payload.to_vec(),
        base64: keys.sign(key, payload),
    })
}

fn manifest() -> Digest {
    Digest::sha256(b"the manifest")
}

fn payload(identity: &str, digest: &Digest) -> Vec<u8> {
    test_keys::payload(identity, &digest.to_string())
}

fn policy(json: &Value) -> Result<Policy, PolicyError> {
    Policy::parse(Path::new(FILE), json.to_string().as_bytes())
}

fn refusal(json: &Value) -> String {
    let error = policy(json).unwrap_err();
    match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn verdict(policy: &Policy, image: &str, signatures: &[Signature]) -> Result<Verdict, Distrust> {
    let image: Reference = image.parse().unwrap();
    let found = Found {
        signatures: signatures.iter().collect(),
        problems: &[],
    };
    let subject = Subject {
        image: &image,
        manifest: &manifest(),
        index: None,
    };
    policy.rules(&Origin::Docker, &image).judge(subject, &found)
}

#[test]
fn each_kind_of_key_that_cosign_uses_verifies() {
    let keys = Keys::new();
    let payload = payload("h.example/app", &manifest());
    let rsa = ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
    let p384 = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"];
    let p256 = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"];
    for (name, arguments, hash) in [
        ("p256", &p256[..], &["-sha256"][..]),
        ("p384", &p384, &["-sha256"]),
        ("p384", &p384, &["-sha384"]),
        ("rsa", &rsa, &["-sha256"]),
        ("ed25519", &["-algorithm", "ED25519"], &[]),
    ] {
        let path = keys.make(name, arguments);
        let key = PublicKey::read(&path).unwrap();
        let signed = SignedPayload {
            payload: payload.clone(),
            base64: keys.sign_with(name, &payload, hash),
        };
        let signature = Signature::Payload(signed.clone());
        let policy = policy(&json!({"default": signed_by(&path)})).unwrap();
        let verdict =
            verdict(&policy, "h.example/app:1", std::slice::from_ref(&signature)).unwrap();
        let Verdict::Signed { signed_by, scope } = verdict else {
            panic!("{verdict:?}");
        };
        assert_eq!(scope, "default");
        assert_eq!(signed_by[0].key, key.fingerprint());
        assert_eq!(signed_by[0].digest, manifest());
        let mut forged = signed;
        *forged.payload.last_mut().unwrap() = b' ';
        let forged = Signature::Payload(forged);
        let refused = self::verdict(&policy, "h.example/app:1", &[forged]).unwrap_err();
        assert!(
            refused.to_string().contains("not made with the key"),
            "{refused}"
        );
    }
}

#[test]
fn keys_that_are_no_keys_are_refused() {
    let keys = Keys::new();
    keys.p256("good");
    let read = |name: &str| std::fs::read(keys.path(name)).unwrap();
    let (private, public) = (read("good"), read("good.pub"));
    let twice = [public.clone(), public.clone()].concat();
    let cut = public[..public.len() / 2].to_vec();
    let garbage = b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n".to_vec();
    for (content, expected) in [
        (private, "no public key"),
        (b"ssh-ed25519 AAAA".to_vec(), "no public key"),
        (Vec::new(), "no public key"),
        (twice, "2 keys"),
        (cut, "malformed"),
        (garbage, "not supported"),
        (vec![b'x'; 1 << 20], "larger than"),
    ] {
        std::fs::write(keys.path("key"), content).unwrap();
        let error = PublicKey::read(&keys.path("key")).unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string);
        let text = format!("{error} {}", source.unwrap_or_default());
        assert!(text.contains(expected), "{text}");
    }
    for arguments in [
        &["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-521"][..],
        &[
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:secp256k1",
        ],
        &["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024"],
        &["-algorithm", "X25519"],
    ] {
        keys.make("other", arguments);
        let error = PublicKey::read(&keys.path("other.pub")).unwrap_err();
        assert!(
            matches!(error, KeyError::Unsupported),
            "{arguments:?}: {error}"
        );
    }
    assert!(matches!(
        PublicKey::from_base64("%"),
        Err(KeyError::Base64(_))
    ));
}

#[test]
fn the_most_specific_scope_decides() {
    let reject = json!([{"type": "reject"}]);
    let accept = json!([{"type": "insecureAcceptAnything"}]);
    let policy = policy(&json!({
        "default": reject,
        "transports": {
            "docker": {
                "h.example": accept,
                "h.example/secret": reject,
                "h.example/secret/open:1": accept,
                "*.b.example": accept,
                "": reject,
            },
            "docker-daemon": {"": accept},
        },
    }))
    .unwrap();
    for (image, allowed) in [
        ("h.example/app", Some("docker h.example")),
        ("h.example/secret", None),
        ("h.example/secret/x", None),
        ("h.example/secrets", Some("docker h.example")),
        (
            "h.example/secret/open:1",
            Some("docker h.example/secret/open:1"),
        ),
        ("h.example/secret/open:2", None),
        ("h.example:5000/app", None),
        ("a.b.example:5000/app", Some("docker *.b.example")),
        ("b.example/app", None),
        ("nginx", None),
    ] {
        let scope = match verdict(&policy, image, &[]) {
            Ok(Verdict::Allowed { scope }) => Some(scope),
            Err(Distrust::Rejected { .. }) => None,
            other => panic!("{image}: {other:?}"),
        };
        assert_eq!(scope.as_deref(), allowed, "{image}");
    }
    let image: Reference = "h.example/app:1".parse().unwrap();
    let path = PathBuf::from("/media/usb/app.tar");
    let rules = policy.rules(&Origin::OciArchive { path }, &image);
    assert!(
        matches!(rules.check_rejected(), Err(Distrust::Rejected { scope, .. }) if scope == "default")
    );
}

#[test]
fn all_requirements_of_a_scope_must_be_fulfilled() {
    let keys = Keys::new();
    let (vendor, reviewer) = (keys.p256("vendor"), keys.p256("reviewer"));
    let requirement = |key: &Path| signed_by(key)[0].clone();
    let policy =
        policy(&json!({"default": [requirement(&vendor), requirement(&reviewer)]})).unwrap();
    let payload = payload("h.example/app", &manifest());
    let (first, second) = (
        sign(&keys, "vendor", &payload),
        sign(&keys, "reviewer", &payload),
    );
    assert!(verdict(&policy, "h.example/app:1", std::slice::from_ref(&first)).is_err());
    assert!(verdict(&policy, "h.example/app:1", std::slice::from_ref(&second)).is_err());
    let Ok(Verdict::Signed { signed_by, .. }) =
        verdict(&policy, "h.example/app:1", &[second, first])
    else {
        panic!("refused");
    };
    assert_eq!(signed_by.len(), 2);
}

#[test]
fn a_signature_of_another_image_or_name_does_not_count() {
    let keys = Keys::new();
    let (key, _) = (keys.p256("ours"), keys.p256("theirs"));
    let policy = policy(&json!({"default": signed_by(&key)})).unwrap();
    let right = payload("h.example/app", &manifest());
    let other_image = payload("h.example/app", &Digest::sha256(b"another"));
    let other_name = payload("h.example/other", &manifest());
    let with = |base64: &str| {
        Signature::Payload(SignedPayload {
            payload: right.clone(),
            base64: base64.to_owned(),
        })
    };
    let (no_base64, empty) = (with("%%%"), with(""));
    for (signature, expected) in [
        (sign(&keys, "theirs", &right), "not made with the key"),
        (sign(&keys, "ours", &other_image), "another image"),
        (sign(&keys, "ours", &other_name), "h.example/other"),
        (
            sign(&keys, "ours", b"{}"),
            "not that of an image's signature",
        ),
        (no_base64, "not base64"),
        (empty, "not made with the key"),
    ] {
        let refused = verdict(&policy, "h.example/app:1", &[signature]).unwrap_err();
        assert!(
            matches!(refused, Distrust::NotAccepted { .. }),
            "{refused:?}"
        );
        let text = refused.to_string();
        assert!(text.contains(expected) && text.contains(FILE), "{text}");
    }
    let refused = verdict(&policy, "h.example/app:1", &[]).unwrap_err();
    assert!(matches!(refused, Distrust::Unsigned { .. }));
    let good = sign(&keys, "ours", &right);
    let bad = sign(&keys, "theirs", &right);
    assert!(verdict(&policy, "h.example/app:1", &[bad, good]).is_ok());
}

#[test]
fn the_signature_of_the_index_counts_as_that_of_the_manifest() {
    let keys = Keys::new();
    let key = keys.p256("ours");
    let policy = policy(&json!({"default": signed_by(&key)})).unwrap();
    let image: Reference = "h.example/app:1".parse().unwrap();
    let index = Digest::sha256(b"the index");
    let signature = sign(&keys, "ours", &payload("h.example/app", &index));
    let found = Found {
        signatures: vec![&signature],
        problems: &[],
    };
    let rules = policy.rules(&Origin::Docker, &image);
    let judge = |index| {
        let subject = Subject {
            image: &image,
            manifest: &manifest(),
            index,
        };
        rules.judge(subject, &found)
    };
    assert!(judge(Some(&index)).is_ok());
    assert!(judge(None).is_err());
}

#[test]
fn reasons_of_thousands_of_signatures_are_summed_up() {
    let keys = Keys::new();
    let key = keys.p256("ours");
    let policy = policy(&json!({"default": signed_by(&key)})).unwrap();
    let signature = |n: u32| {
        sign(
            &keys,
            "ours",
            &payload(&format!("h.example/a{n}"), &manifest()),
        )
    };
    let signatures: Vec<_> = (0..6).map(signature).collect();
    let refused = verdict(&policy, "h.example/app:1", &signatures)
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("3 other reasons") && refused.len() < 2000,
        "{refused}"
    );
}

#[test]
fn what_a_policy_must_not_have_is_refused_with_file_and_place() {
    let keys = Keys::new();
    let key = keys.p256("key");
    let key_path = key.to_str().unwrap();
    let accept = json!([{"type": "insecureAcceptAnything"}]);
    let signed = |more: &Value| {
        let mut requirement = json!({"type": "sigstoreSigned"});
        for (name, value) in more.as_object().unwrap() {
            requirement[name] = value.clone();
        }
        json!({"default": [requirement]})
    };
    let identity =
        |identity: Value| signed(&json!({"keyPath": key_path, "signedIdentity": identity}));
    for (json, expected) in [
        (json!({}), "missing field `default`"),
        (json!({"default": []}), "`default`: the list is empty"),
        (
            json!({"default": accept, "extra": 1}),
            "unknown field `extra`",
        ),
        (json!({"default": [{"type": "acceptAll"}]}), "default[0]"),
        (
            json!({"default": [{"type": "reject", "why": "x"}]}),
            "unknown field `why`",
        ),
        (
            json!({"default": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}]}),
            "signedBy (GPG)",
        ),
        (
            json!({"default": accept, "transports": {"docekr": {}}}),
            "`docekr` is no transport",
        ),
        (
            json!({"default": accept, "transports": {"docker": {"busybox": accept}}}),
            "transports.docker.busybox",
        ),
        (
            json!({"default": accept, "transports": {"docker": {"": []}}}),
            "the list is empty",
        ),
        (signed(&json!({})), "exactly one of keyPath"),
        (
            signed(&json!({"keyPath": key_path, "keyData": ""})),
            "exactly one of keyPath",
        ),
        (signed(&json!({"keyPaths": []})), "there are 0 keys"),
        (
            signed(&json!({"keyPath": "relative.pub"})),
            "must be absolute",
        ),
        (
            signed(&json!({"keyPath": "/nonexistent/key.pub"})),
            "cannot read the key /nonexistent/key.pub",
        ),
        (signed(&json!({"keyData": "bm90IGEga2V5"})), "no public key"),
        (
            signed(&json!({"keyPath": key_path, "rekorPublicKeyPath": "/r"})),
            "rekorPublicKey… is not supported",
        ),
        (signed(&json!({"fulcio": {}})), "certificates"),
        (
            signed(&json!({"keyPath": key_path, "keyfile": "x"})),
            "unknown field `keyfile`",
        ),
        (identity(json!({"type": "matchAnything"})), "matchAnything"),
        (
            identity(json!({"type": "matchExact", "more": 1})),
            "unknown field `more`",
        ),
        (
            identity(json!({"type": "exactReference", "dockerReference": "h.example/a"})),
            "tag or a digest",
        ),
        (
            identity(json!({"type": "exactRepository", "dockerRepository": "h.example/a:1"})),
            "must not have a tag",
        ),
        (
            identity(
                json!({"type": "remapIdentity", "prefix": "busybox", "signedPrefix": "h.example"}),
            ),
            "full form",
        ),
    ] {
        let refused = refusal(&json);
        assert!(
            refused.contains(expected) && refused.contains(FILE),
            "{json}: {refused}"
        );
    }
}

#[test]
fn a_scope_or_field_given_twice_makes_a_policy_unusable() {
    let accept = r#"[{"type":"insecureAcceptAnything"}]"#;
    let reject = r#"[{"type":"reject"}]"#;
    for text in [
        format!(r#"{{"default":{reject},"default":{accept}}}"#),
        format!(
            r#"{{"default":{reject},"transports":{{"docker":{{"h.example":{reject},"h.example":{accept}}}}}}}"#
        ),
        format!(
            r#"{{"default":{reject},"transports":{{"docker":{{}},"docker":{{"":{accept}}}}}}}"#
        ),
        r#"{"default":[{"type":"reject","type":"insecureAcceptAnything"}]}"#.to_owned(),
        format!("{{\"default\":{accept}}} trailing"),
    ] {
        assert!(
            Policy::parse(Path::new(FILE), text.as_bytes()).is_err(),
            "{text}"
        );
    }
}

#[test]
fn an_oversized_or_absent_policy_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.json");
    assert!(matches!(Policy::load(&path), Err(PolicyError::Read { .. })));
    let mut text = br#"{"default":[{"type":"insecureAcceptAnything"}]}"#.to_vec();
    std::fs::write(&path, &text).unwrap();
    assert!(Policy::load(&path).is_ok());
    text.resize((1 << 20) + 1, b' ');
    std::fs::write(&path, &text).unwrap();
    assert!(matches!(Policy::load(&path), Err(PolicyError::Read { .. })));
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    assert!(Policy::parse(&path, format!("{{\"default\":{deep}}}").as_bytes()).is_err());
}

#[test]
fn the_policy_that_debian_and_fedora_install_is_understood() {
    let text = r#"{"default":[{"type":"insecureAcceptAnything"}],
        "transports":{"docker-daemon":{"":[{"type":"insecureAcceptAnything"}]}}}"#;
    assert!(Policy::parse(Path::new(FILE), text.as_bytes()).is_ok());
}
