//! Loads that are judged: signatures in a layout, and beside a file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::test_keys::{
    BUNDLE, Keys, SignatureImage, attestation, bundle_by, payload, signature_tag_of, signed_by,
    statement,
};
use super::{Distrust, Policy, PublicKey, Verdict};
use crate::load::{LoadError, LoadOptions};
use crate::store::ImageStore;
use crate::test_archive::{Tar, TestImage, descriptor, pack, sha256, write_blob, write_index};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const NAME: &str = "h.example/app:1";

struct Stick {
    dir: tempfile::TempDir,
    store: ImageStore,
    keys: Keys,
    key: PathBuf,
    image: TestImage,
}

impl Stick {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(&dir.path().join("images")).unwrap();
        let keys = Keys::new();
        let key = keys.p256("ours");
        keys.p256("theirs");
        let image = TestImage::new(vec![Tar::new().file("content", b"from a stick").finish()]);
        Self {
            dir,
            store,
            keys,
            key,
            image,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the layout `layout` and the archive `app.tar`.
    fn write(&self, signatures: Option<(&SignatureImage, Value)>) {
        let layout = self.path("layout");
        drop(std::fs::remove_dir_all(&layout));
        let mut entry = descriptor(MANIFEST, &self.image.manifest);
        entry["annotations"] = json!({REF_NAME: NAME});
        let mut entries = vec![entry];
        for blob in self.image.all_blobs() {
            write_blob(&layout, blob);
        }
        if let Some((signatures, annotations)) = signatures {
            let mut entry = descriptor(MANIFEST, &signatures.manifest);
            entry["annotations"] = annotations;
            entries.push(entry);
            for blob in signatures.blobs() {
                write_blob(&layout, blob);
            }
        }
        write_index(&layout, entries);
        std::fs::write(self.path("app.tar"), pack(&layout)).unwrap();
    }

    fn signed(&self, key: &str) -> SignatureImage {
        let digest = sha256(&self.image.manifest);
        self.keys.signature_image(key, "h.example/app", &digest)
    }

    fn by_tag(&self) -> Value {
        json!({REF_NAME: signature_tag_of(&self.image.manifest)})
    }

    fn load(&self, name: &str, options: &LoadOptions) -> Result<Verdict, LoadError> {
        let mut images = self.store.load(&self.path(name), options)?;
        Ok(images.remove(0).trust.unwrap().verdict)
    }

    fn with_key(&self) -> LoadOptions {
        LoadOptions {
            require_signature: Some(vec![PublicKey::read(&self.key).unwrap()]),
            ..LoadOptions::default()
        }
    }

    /// With the key, and for bundles that name no image.
    fn with_key_unnamed(&self) -> LoadOptions {
        LoadOptions {
            accept_unnamed: true,
            ..self.with_key()
        }
    }

    fn bundle(&self, key: &str) -> Vec<u8> {
        let digest = sha256(&self.image.manifest);
        self.keys.bundle(key, &statement(&digest))
    }

    fn assert_nothing_is_here(&self) {
        assert!(self.store.list().unwrap().is_empty());
        let layers = std::fs::read_dir(self.store.dir().join("layers/sha256"));
        assert_eq!(layers.map_or(0, Iterator::count), 0);
    }
}

fn policy(json: &Value) -> Option<Arc<Policy>> {
    let policy = Policy::parse(Path::new("/etc/policy.json"), json.to_string().as_bytes());
    Some(Arc::new(policy.unwrap()))
}

#[test]
fn a_signed_bundle_is_loaded_from_layout_and_archive() {
    let kind = json!({"kind": "dev.cosignproject.cosign/sigs"});
    for by_kind in [true, false] {
        let stick = Stick::new();
        let annotations = if by_kind {
            kind.clone()
        } else {
            stick.by_tag()
        };
        stick.write(Some((&stick.signed("ours"), annotations)));
        for name in ["layout", "app.tar"] {
            let verdict = stick.load(name, &stick.with_key()).unwrap();
            assert!(matches!(verdict, Verdict::Signed { .. }), "{verdict:?}");
        }
        assert_eq!(stick.store.verify().unwrap(), []);
    }
}

#[test]
fn a_bundle_without_the_signature_that_is_asked_for_is_not_unpacked() {
    let stick = Stick::new();
    let other_name = {
        let digest = sha256(&stick.image.manifest);
        stick
            .keys
            .signature_image("ours", "h.example/other", &digest)
    };
    for (signatures, expected) in [
        (None, "no signature was found"),
        (Some(stick.signed("theirs")), "not made with the key"),
        (Some(other_name), "h.example/other"),
    ] {
        stick.write(signatures.as_ref().map(|image| (image, stick.by_tag())));
        for name in ["layout", "app.tar"] {
            let error = stick.load(name, &stick.with_key()).unwrap_err();
            assert!(matches!(error, LoadError::Distrust(_)), "{error}");
            assert!(error.to_string().contains(expected), "{error}");
            stick.assert_nothing_is_here();
        }
    }
}

#[test]
fn a_signature_may_lie_beside_the_archive() {
    let stick = Stick::new();
    stick.write(None);
    let payload = payload("h.example/app", &sha256(&stick.image.manifest));
    std::fs::write(stick.path("app.tar.payload"), &payload).unwrap();
    let error = stick.load("app.tar", &stick.with_key()).unwrap_err();
    assert!(
        error.to_string().contains("app.tar.sig is not there"),
        "{error}"
    );
    let mut signature = stick.keys.sign("ours", &payload);
    signature.push('\n');
    std::fs::write(stick.path("app.tar.sig"), signature).unwrap();
    stick.load("app.tar", &stick.with_key()).unwrap();
    let rule = policy(&json!({"default": signed_by(&stick.key)})).unwrap();
    assert!(
        stick
            .store
            .judge(&NAME.parse().unwrap(), &rule)
            .unwrap()
            .is_some()
    );
    // A pipe, which nobody writes to, is not waited for.
    std::fs::remove_file(stick.path("app.tar.sig")).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, stick.path("app.tar.sig"), kind, mode, 0).unwrap();
    let error = stick.load("app.tar", &stick.with_key()).unwrap_err();
    assert!(error.to_string().contains("it is no file"), "{error}");
    std::fs::remove_file(stick.path("app.tar.sig")).unwrap();
    std::fs::write(stick.path("app.tar.sig"), vec![b'A'; 1 << 20]).unwrap();
    let error = stick.load("app.tar", &stick.with_key()).unwrap_err();
    assert!(error.to_string().contains("larger than"), "{error}");
}

#[test]
fn without_a_key_the_policy_of_the_images_registry_decides() {
    let stick = Stick::new();
    stick.write(Some((&stick.signed("ours"), stick.by_tag())));
    let options = |policy| LoadOptions {
        require_signature: Some(Vec::new()),
        policy,
        ..LoadOptions::default()
    };
    let accept = json!([{"type": "insecureAcceptAnything"}]);
    let of_registry = json!({
        "default": accept,
        "transports": {"docker": {"h.example": signed_by(&stick.key)}},
    });
    assert!(
        stick
            .load("app.tar", &options(policy(&of_registry)))
            .is_ok()
    );
    for none in [None, policy(&json!({"default": accept}))] {
        let error = stick.load("app.tar", &options(none)).unwrap_err();
        assert!(
            matches!(error, LoadError::Distrust(Distrust::NoKey { .. })),
            "{error}"
        );
    }
}

#[test]
fn the_policy_judges_files_by_their_path() {
    let stick = Stick::new();
    stick.write(None);
    let allowed_below = |dir: &str| {
        let dir = stick.dir.path().canonicalize().unwrap().join(dir);
        let accept = json!([{"type": "insecureAcceptAnything"}]);
        let json = json!({
            "default": [{"type": "reject"}],
            "transports": {"oci-archive": {dir.to_str().unwrap(): accept}},
        });
        LoadOptions {
            policy: policy(&json),
            ..LoadOptions::default()
        }
    };
    let error = stick
        .load("app.tar", &allowed_below("elsewhere"))
        .unwrap_err();
    assert!(
        matches!(error, LoadError::Distrust(Distrust::Rejected { .. })),
        "{error}"
    );
    stick.assert_nothing_is_here();
    let options = allowed_below("app.tar");
    let verdict = stick.load("app.tar", &options).unwrap();
    assert!(matches!(verdict, Verdict::Allowed { scope } if scope.starts_with("oci-archive /")));
    // It is still of that file when a pod asks for it.
    let judge = |options: &LoadOptions| {
        let policy = options.policy.as_ref().unwrap();
        stick.store.judge(&NAME.parse().unwrap(), policy)
    };
    assert!(judge(&options).is_ok());
    assert!(judge(&allowed_below("elsewhere")).is_err());
}

#[test]
fn a_docker_archive_cannot_be_signed() {
    let stick = Stick::new();
    let archive = stick.image.docker_archive(&[NAME]).finish();
    std::fs::write(stick.path("docker.tar"), archive).unwrap();
    let error = stick.load("docker.tar", &stick.with_key()).unwrap_err();
    assert!(
        error.to_string().contains("docker-archive cannot hold"),
        "{error}"
    );
    stick.assert_nothing_is_here();
    let verdict = stick.load("docker.tar", &LoadOptions::default()).unwrap();
    assert_eq!(verdict, Verdict::Unchecked {});
}

#[test]
fn a_name_given_to_a_signed_image_is_judged_as_such() {
    let stick = Stick::new();
    stick.write(Some((&stick.signed("ours"), stick.by_tag())));
    stick.load("app.tar", &stick.with_key()).unwrap();
    let (old, new) = (NAME.parse().unwrap(), "h.example/prod:1".parse().unwrap());
    stick.store.tag(&old, &new).unwrap();
    let rule = policy(&json!({"default": signed_by(&stick.key)})).unwrap();
    assert!(stick.store.judge(&old, &rule).is_ok());
    assert!(stick.store.judge(&new, &rule).is_err());
}

#[test]
fn a_sigstore_bundle_may_lie_beside_the_archive() {
    let stick = Stick::new();
    stick.write(None);
    let beside = stick.path("app.tar.sigstore.json");
    let of_image = attestation(&sha256(&stick.image.manifest));
    for (bundle, options, expected) in [
        (stick.bundle("ours"), stick.with_key(), "acceptUnnamed"),
        (
            stick.bundle("theirs"),
            stick.with_key_unnamed(),
            "not made with the key",
        ),
        (
            stick.keys.bundle("ours", &of_image),
            stick.with_key_unnamed(),
            "not a signature",
        ),
        (vec![b' '; 1 << 20], stick.with_key_unnamed(), "larger than"),
    ] {
        std::fs::write(&beside, bundle).unwrap();
        let error = stick.load("app.tar", &options).unwrap_err();
        assert!(error.to_string().contains(expected), "{expected}: {error}");
        stick.assert_nothing_is_here();
    }
    std::fs::write(&beside, stick.bundle("ours")).unwrap();
    stick.load("app.tar", &stick.with_key_unnamed()).unwrap();
    assert_eq!(stick.store.verify().unwrap(), []);
    let rule = policy(&json!({"default": bundle_by(&stick.key)})).unwrap();
    let judged = stick.store.judge(&NAME.parse().unwrap(), &rule);
    assert!(judged.unwrap().is_some());
}

/// As ORAS copies an image with all that refers to it, and as registries without the referrers API list it.
#[test]
fn a_sigstore_bundle_in_a_layout_counts() {
    for by_list in [false, true] {
        let stick = Stick::new();
        stick.write(None);
        let layout = stick.path("layout");
        let signed = SignatureImage::of_bundle(stick.bundle("ours"), &stick.image.manifest);
        let of_image = attestation(&sha256(&stick.image.manifest));
        let attested = stick.keys.bundle("ours", &of_image);
        let attested = SignatureImage::of_bundle(attested, &stick.image.manifest);
        let mut image = descriptor(MANIFEST, &stick.image.manifest);
        image["annotations"] = json!({REF_NAME: NAME});
        let mut materials = descriptor(MANIFEST, b"a bill of materials");
        materials["artifactType"] = json!("application/spdx+json");
        let referrers = vec![
            attested.referrer(BUNDLE),
            signed.referrer(BUNDLE),
            materials,
        ];
        for blob in signed.blobs().chain(attested.blobs()) {
            write_blob(&layout, blob);
        }
        let mut entries = vec![image];
        if by_list {
            let list = json!({"schemaVersion": 2, "manifests": referrers}).to_string();
            write_blob(&layout, list.as_bytes());
            let mut entry = descriptor("application/vnd.oci.image.index.v1+json", list.as_bytes());
            let tag = signature_tag_of(&stick.image.manifest).replace(".sig", "");
            entry["annotations"] = json!({REF_NAME: tag});
            entries.push(entry);
        } else {
            entries.extend(referrers);
        }
        write_index(&layout, entries);
        let verdict = stick.load("layout", &stick.with_key_unnamed()).unwrap();
        assert!(matches!(verdict, Verdict::Signed { .. }), "{verdict:?}");
        let error = stick.load("layout", &stick.with_key()).unwrap_err();
        assert!(error.to_string().contains("not a signature"), "{error}");
        assert!(error.to_string().contains("acceptUnnamed"), "{error}");
    }
}

/// As `cosign save` of cosign 3 writes it: what refers to the image is in the layout, and not in its index.
#[test]
fn a_bundle_that_cosign_saved_without_an_entry_in_the_index_counts() {
    let stick = Stick::new();
    stick.write(None);
    let layout = stick.path("layout");
    let add = |key: &str| {
        let signed = SignatureImage::of_bundle(stick.bundle(key), &stick.image.manifest);
        for blob in signed.blobs() {
            write_blob(&layout, blob);
        }
        std::fs::write(stick.path("app.tar"), pack(&layout)).unwrap();
    };
    for (key, expected) in [
        (None, "no signature was found"),
        (Some("theirs"), "not made with the key"),
    ] {
        if let Some(key) = key {
            add(key);
        }
        for name in ["layout", "app.tar"] {
            let error = stick.load(name, &stick.with_key_unnamed()).unwrap_err();
            assert!(error.to_string().contains(expected), "{expected}: {error}");
            stick.assert_nothing_is_here();
        }
    }
    add("ours");
    for name in ["layout", "app.tar"] {
        let verdict = stick.load(name, &stick.with_key_unnamed()).unwrap();
        assert!(matches!(verdict, Verdict::Signed { .. }), "{verdict:?}");
    }
}

#[test]
fn signatures_are_of_the_image_that_they_came_with() {
    let stick = Stick::new();
    stick.write(Some((&stick.signed("ours"), stick.by_tag())));
    stick.load("app.tar", &stick.with_key()).unwrap();
    let (old, new) = (NAME.parse().unwrap(), "h.example/app:2".parse().unwrap());
    stick.store.tag(&old, &new).unwrap();
    let usage = stick.store.disk_usage().unwrap();
    // Manifest, configuration, one layer, and three blobs of the signature.
    assert_eq!((usage.blobs.count, usage.layers.count), (6, 1));
    assert_eq!(usage.unneeded, crate::Usage::default());
    let whole = usage.blobs.bytes + usage.layers.bytes;
    assert_eq!(usage.images[0].unique_bytes, whole);
    let freed = stick.store.gc(&std::collections::HashSet::new()).unwrap();
    assert_eq!((freed.blobs, freed.layers), (0, 0));
}
