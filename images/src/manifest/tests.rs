//! Documents of honest and hostile authors.

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

fn entry(media_type: &str, platform: Option<Value>) -> Value {
    let digest = Digest::sha256(platform.clone().unwrap_or_default().to_string().as_bytes());
    let mut entry = json!({"mediaType": media_type, "digest": digest.to_string(), "size": 2});
    if let Some(platform) = platform {
        entry["platform"] = platform;
    }
    entry
}

fn manifest() -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": entry(OCI_CONFIG, None),
        "layers": [entry("application/vnd.oci.image.layer.v1.tar+gzip", None)],
    })
}

fn index(platforms: &[(&str, &str)]) -> Vec<Descriptor> {
    let entries: Vec<_> = platforms
        .iter()
        .map(|(os, architecture)| {
            entry(
                OCI_MANIFEST,
                Some(json!({"os": os, "architecture": architecture})),
            )
        })
        .collect();
    index_of(entries)
}

fn index_of(entries: Vec<Value>) -> Vec<Descriptor> {
    let json = json!({"schemaVersion": 2, "manifests": entries}).to_string();
    match parse_document(json.as_bytes()).unwrap() {
        Document::Index(entries) => entries,
        Document::Manifest(_) => panic!("an index was read as a manifest"),
    }
}

fn refusal(document: &Value) -> String {
    let error = parse_document(document.to_string().as_bytes()).unwrap_err();
    error.to_string()
}

#[test]
fn chooses_the_platform_and_says_what_there_is() {
    let entries = index(&[
        ("unknown", "unknown"),
        ("linux", "arm64"),
        ("linux", "amd64"),
    ]);
    let amd64 = "linux/amd64".parse().unwrap();
    let chosen = choose(&entries, &amd64).unwrap();
    assert_eq!(chosen.platform.as_ref(), Some(&amd64));
    let error = choose(&entries, &"linux/s390x".parse().unwrap()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no image for linux/s390x; there are images for linux/amd64, linux/arm64"
    );
}

#[test]
fn a_document_that_is_both_manifest_and_index_is_refused() {
    let mut both = manifest();
    both["manifests"] = json!([]);
    assert!(refusal(&both).contains("neither clearly"));
    both["mediaType"] = Value::Null;
    assert!(refusal(&both).contains("neither clearly"));
}

#[test]
fn what_is_no_image_is_refused_with_the_reason() {
    let mut encrypted = manifest();
    encrypted["layers"][0]["mediaType"] =
        json!("application/vnd.oci.image.layer.v1.tar+gzip+encrypted");
    assert!(refusal(&encrypted).contains("decrypt the image first"));
    let mut empty = manifest();
    empty["layers"] = json!([]);
    assert!(refusal(&empty).contains("0 layers"));
    assert!(refusal(&json!({"schemaVersion": 2})).contains("neither"));
}

#[test]
fn schema_1_is_refused_with_a_remedy() {
    let signed = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    for old in [
        json!({"schemaVersion": 1, "fsLayers": [], "history": []}),
        json!({"schemaVersion": 1, "name": "library/old", "tag": "1"}),
        json!({"mediaType": signed, "fsLayers": []}),
    ] {
        let text = refusal(&old);
        assert!(text.contains("schema 1") && text.contains("skopeo copy --format v2s2"));
    }
}

#[test]
fn artifacts_are_refused_by_their_names() {
    let layer = |media_type: &str| json!([entry(media_type, None)]);
    let artifact = |config: &str, layers: Value| {
        let mut artifact = manifest();
        artifact["config"]["mediaType"] = json!(config);
        artifact["layers"] = layers;
        artifact
    };
    let helm = artifact(
        "application/vnd.cncf.helm.config.v1+json",
        layer("application/vnd.cncf.helm.chart.content.v1.tar+gzip"),
    );
    let cosign = artifact(
        OCI_CONFIG,
        layer("application/vnd.dev.cosign.simplesigning.v1+json"),
    );
    let mut typed = artifact(OCI_EMPTY, layer(OCI_EMPTY));
    typed["artifactType"] = json!("application/vnd.acme.rocket.v1");
    let mut image_with_type = manifest();
    image_with_type["artifactType"] = json!("application/vnd.acme.rocket.v1");
    let attestation = artifact(OCI_CONFIG, layer("application/vnd.in-toto+json"));
    let untyped = artifact(OCI_EMPTY, layer("text/plain"));
    let old =
        json!({"mediaType": OCI_ARTIFACT, "artifactType": "application/spdx+json", "blobs": []});
    for (document, part) in [
        (
            helm,
            "a Helm chart (`application/vnd.cncf.helm.config.v1+json`): `helm pull",
        ),
        (cosign, "a cosign signature"),
        (typed, "the type `application/vnd.acme.rocket.v1`"),
        (image_with_type, "the type `application/vnd.acme.rocket.v1`"),
        (attestation, "an attestation"),
        (untyped, "an artifact without a type"),
        (old, "a bill of materials"),
    ] {
        let text = refusal(&document);
        assert!(
            text.contains("not a container image") && text.contains(part),
            "{text}"
        );
    }
}

#[test]
fn an_image_may_say_that_it_is_one() {
    let mut image = manifest();
    image["artifactType"] = json!(OCI_CONFIG);
    image["subject"] = entry(OCI_MANIFEST, None);
    assert!(parse_document(image.to_string().as_bytes()).is_ok());
}

#[test]
fn every_kind_of_layer_is_taken() {
    let oci = "application/vnd.oci.image.layer.v1.tar";
    let docker = "application/vnd.docker.image.rootfs.diff.tar";
    let mut image = manifest();
    image["layers"] = json!([
        entry(oci, None),
        entry(&format!("{oci}+gzip"), None),
        entry(&format!("{oci}+zstd"), None),
        entry(&format!("{docker}.gzip"), None),
        entry(&format!("{docker}.zstd"), None),
        entry(
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            None
        ),
    ]);
    assert!(parse_document(image.to_string().as_bytes()).is_ok());
}

#[test]
fn a_manifest_with_thousands_of_layers_is_refused() {
    let mut many = manifest();
    let layer = many["layers"][0].clone();
    many["layers"] = json!(vec![layer.clone(); 5000]);
    assert!(refusal(&many).contains("5000 layers; 1 to 500"));
    many["layers"] = json!(vec![layer; 500]);
    assert!(parse_document(many.to_string().as_bytes()).is_ok());
}

#[test]
fn sizes_and_digests_that_make_no_sense_are_refused() {
    for size in [json!(-1), json!(1e30), json!("12"), json!(1.5), Value::Null] {
        let mut bad = manifest();
        bad["layers"][0]["size"] = size;
        assert!(refusal(&bad).contains("malformed"));
    }
    let mut huge = manifest();
    huge["config"]["size"] = json!(u64::MAX);
    assert!(refusal(&huge).contains("larger than 8 MiB"));
    for digest in [
        "sha256:../../etc/passwd",
        "sha256:",
        "md5:d41d8cd98f00b204e9800998ecf8427e",
    ] {
        let mut bad = manifest();
        bad["layers"][0]["digest"] = json!(digest);
        refusal(&bad);
    }
}

#[test]
fn json_that_is_nested_without_end_is_refused() {
    let deep = format!("{{\"annotations\":{}", "[".repeat(100_000));
    assert!(parse_document(deep.as_bytes()).is_err());
    let twice = br#"{"schemaVersion":2,"schemaVersion":1,"manifests":[]}"#;
    assert!(
        parse_document(twice)
            .unwrap_err()
            .to_string()
            .contains("malformed")
    );
}

#[test]
fn what_stands_beside_the_images_of_an_index_is_passed_over() {
    let amd64 = json!({"os": "linux", "architecture": "amd64"});
    let mut signature = entry(OCI_MANIFEST, Some(amd64.clone()));
    signature["artifactType"] = json!("application/vnd.dev.sigstore.bundle.v0.3+json");
    let mut attestation = entry(
        OCI_MANIFEST,
        Some(json!({"os": "unknown", "architecture": "unknown"})),
    );
    attestation["annotations"] = json!({DOCKER_REFERENCE_TYPE: "attestation-manifest"});
    let image = entry(OCI_MANIFEST, None);
    let both = index_of(vec![signature.clone(), attestation.clone(), image]);
    let chosen = choose(&both, &"linux/amd64".parse().unwrap()).unwrap();
    assert!(chosen.platform.is_none());
    let none = index_of(vec![signature, attestation]);
    let error = choose(&none, &"linux/amd64".parse().unwrap()).unwrap_err();
    assert!(
        error.to_string().contains("a sigstore signature"),
        "{error}"
    );
}

#[test]
fn the_best_variant_that_runs_is_chosen() {
    let variants = |architecture: &str, variants: &[&str]| {
        let entries = variants.iter().map(|variant| {
            let mut platform = json!({"os": "linux", "architecture": architecture});
            if !variant.is_empty() {
                platform["variant"] = json!(variant);
            }
            entry(OCI_MANIFEST, Some(platform))
        });
        index_of(entries.collect())
    };
    let amd64 = variants("amd64", &["v4", "", "v3", "v2"]);
    let arm = variants("arm", &["v5", "v7", "v6"]);
    for (entries, wanted, expected) in [
        (&amd64, "linux/amd64", Some("linux/amd64")),
        (&amd64, "linux/amd64/v2", Some("linux/amd64/v2")),
        (&amd64, "linux/amd64/v3", Some("linux/amd64/v3")),
        (&arm, "linux/arm/v6", Some("linux/arm/v6")),
        (&arm, "linux/arm/v8", Some("linux/arm/v7")),
        (&arm, "linux/arm", Some("linux/arm/v7")),
        (&arm, "linux/arm64", Some("linux/arm/v7")),
        (&arm, "linux/amd64", None),
    ] {
        let chosen = choose(entries, &wanted.parse().unwrap());
        let platform = chosen.ok().and_then(|e| e.platform.clone());
        assert_eq!(platform, expected.map(|p| p.parse().unwrap()), "{wanted}");
    }
}

#[test]
fn a_configuration_must_fit_its_manifest_and_the_machine() {
    let config = json!({
        "os": "linux", "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [Digest::sha256(b"").to_string()]},
    })
    .to_string();
    let amd64 = "linux/amd64".parse().unwrap();
    assert!(parse_config(config.as_bytes(), 1, &amd64).is_ok());
    let error = parse_config(config.as_bytes(), 2, &amd64).unwrap_err();
    assert!(error.to_string().contains("2 layers"));
    assert!(parse_config(config.as_bytes(), 1, &"linux/arm64".parse().unwrap()).is_err());
}

proptest! {
    /// Any damage to a manifest, index or configuration gives a document or an error.
    #[test]
    fn damaged_documents_end_in_peace(
        which in 0_usize..3,
        damage in proptest::collection::vec((0_usize..1000, any::<u8>()), 1..6),
        cut in 0_usize..1000,
    ) {
        let index = json!({"schemaVersion": 2, "manifests": [manifest()["config"]]});
        let config = json!({
            "os": "linux", "architecture": "amd64", "created": "2026-01-01T00:00:00Z",
            "config": {"User": "a:b", "ExposedPorts": {"80/tcp": {}}, "Labels": {"a": "b"}},
            "rootfs": {"type": "layers", "diff_ids": [Digest::sha256(b"").to_string()]},
        });
        let mut json = [manifest(), index, config][which].to_string().into_bytes();
        for (at, byte) in damage {
            let at = at % json.len();
            json[at] = byte;
        }
        json.truncate(cut.max(10));
        drop(parse_document(&json));
        drop(parse_config(&json, 1, &Platform::current()));
    }
}
