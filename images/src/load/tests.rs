//! Layouts and archives that lie, and the kinds of layers that real tools write. What is loaded honestly is tested with
//! the store.

use serde_json::{Value, json};

use super::*;
use crate::test_archive::{Tar, TestImage, descriptor, gzip, sha256, write_blob, write_index};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

struct Fixture {
    dir: tempfile::TempDir,
    store: ImageStore,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(&dir.path().join("images")).unwrap();
        Self { dir, store }
    }

    fn layout(&self) -> PathBuf {
        self.dir.path().join("layout")
    }

    /// An OCI layout whose `index.json` names these.
    fn load(&self, entries: Vec<Value>, blobs: &[&[u8]]) -> Result<Vec<Image>, LoadError> {
        for blob in blobs {
            write_blob(&self.layout(), blob);
        }
        write_index(&self.layout(), entries.into_iter().map(named).collect());
        self.store.load(&self.layout(), &LoadOptions::default())
    }

    fn refusal(&self, entries: Vec<Value>, blobs: &[&[u8]]) -> String {
        let mut error: &dyn std::error::Error = &self.load(entries, blobs).unwrap_err();
        let mut text = error.to_string();
        while let Some(source) = error.source() {
            text.push_str(": ");
            text.push_str(&source.to_string());
            error = source;
        }
        assert!(self.store.list().unwrap().is_empty());
        text
    }
}

fn named(mut entry: Value) -> Value {
    entry["annotations"]["org.opencontainers.image.ref.name"] = json!("host.example/app:1");
    entry
}

fn image() -> TestImage {
    TestImage::new(vec![Tar::new().file("app", b"#!app").finish()])
}

/// An index of one entry, as JSON.
fn index_of(entry: &Value) -> Vec<u8> {
    json!({"schemaVersion": 2, "mediaType": manifest::OCI_INDEX, "manifests": [entry]})
        .to_string()
        .into_bytes()
}

#[test]
fn indexes_may_be_nested_four_deep_and_not_deeper() {
    for (depth, is_taken) in [(1, true), (4, true), (5, false), (40, false)] {
        let fixture = Fixture::new();
        let image = image();
        let mut blobs: Vec<Vec<u8>> = image.all_blobs().cloned().collect();
        let mut entry = descriptor(OCI_MANIFEST, &image.manifest);
        for _ in 0..depth {
            let index = index_of(&entry);
            entry = descriptor(manifest::OCI_INDEX, &index);
            blobs.push(index);
        }
        let blobs: Vec<&[u8]> = blobs.iter().map(Vec::as_slice).collect();
        if is_taken {
            assert_eq!(fixture.load(vec![entry], &blobs).unwrap().len(), 1);
        } else {
            let text = fixture.refusal(vec![entry], &blobs);
            assert!(text.contains("nested too deep"), "{text}");
        }
    }
}

#[test]
fn an_index_that_holds_itself_is_refused() {
    let fixture = Fixture::new();
    // A digest cannot be chosen, so a loop must lie about one.
    let digest = sha256(b"the loop");
    let entry = json!({"mediaType": manifest::OCI_INDEX, "digest": digest, "size": 0});
    let mut index = index_of(&entry);
    let sized = json!({"mediaType": manifest::OCI_INDEX, "digest": digest, "size": index.len()});
    index = index_of(&sized);
    let sized = json!({"mediaType": manifest::OCI_INDEX, "digest": digest, "size": index.len()});
    let path = fixture
        .layout()
        .join("blobs")
        .join(digest.replace(':', "/"));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, &index).unwrap();
    let text = fixture.refusal(vec![sized], &[]);
    assert!(text.contains("damaged or forged"), "{text}");
}

#[test]
fn sizes_that_lie_are_refused() {
    let image = image();
    let blobs: Vec<&[u8]> = image.all_blobs().map(Vec::as_slice).collect();
    let with_size = |part: &str, size: u64| {
        let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
        match part {
            "config" => manifest["config"]["size"] = json!(size),
            _ => manifest["layers"][0]["size"] = json!(size),
        }
        manifest.to_string().into_bytes()
    };
    for part in ["config", "layer"] {
        for size in [0, 1, 1 << 22] {
            let manifest = with_size(part, size);
            let mut all = blobs.clone();
            all.push(&manifest);
            let entry = descriptor(OCI_MANIFEST, &manifest);
            let text = Fixture::new().refusal(vec![entry], &all);
            assert!(text.contains("bytes, not"), "{part} {size}: {text}");
        }
    }
    let mut entry = descriptor(OCI_MANIFEST, &image.manifest);
    entry["size"] = json!(7);
    let text = Fixture::new().refusal(vec![entry], &blobs);
    assert!(text.contains("not 7 as the image says"), "{text}");
}

#[test]
fn a_helm_chart_in_a_layout_is_called_by_its_name() {
    let chart = gzip(b"chart");
    let manifest = json!({
        "schemaVersion": 2,
        "config": descriptor("application/vnd.cncf.helm.config.v1+json", b"{}"),
        "layers": [descriptor("application/vnd.cncf.helm.chart.content.v1.tar+gzip", &chart)],
    })
    .to_string()
    .into_bytes();
    let entry = descriptor(OCI_MANIFEST, &manifest);
    let text = Fixture::new().refusal(vec![entry], &[&manifest, b"{}", &chart]);
    assert!(text.contains("a Helm chart"), "{text}");
}

/// The image with its one layer as this blob.
fn with_layer(image: &TestImage, media_type: &str, blob: &[u8]) -> Vec<u8> {
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    manifest["layers"] = json!([descriptor(media_type, blob)]);
    manifest.to_string().into_bytes()
}

#[test]
fn estargz_and_zstd_chunked_are_ordinary_layers() {
    let image = image();
    let tar = &image.tars[0];
    let (head, tail) = tar.split_at(512);
    // eStargz: each file and the table of contents are gzip members of their own; the last is empty, and its extra
    // field says where the table begins.
    let mut estargz = gzip(head);
    estargz.extend(gzip(tail));
    let footer = flate2::GzBuilder::new().extra(b"SG\x16\x000000000000000000STARGZ".to_vec());
    estargz.extend(
        footer
            .write(Vec::new(), flate2::Compression::none())
            .finish()
            .unwrap(),
    );
    // zstd:chunked: frames, and the table of contents in skippable frames (RFC 8878, section 3.1.2).
    let skippable = |content: &[u8]| {
        let mut frame = vec![0x50, 0x2a, 0x4d, 0x18];
        frame.extend((content.len() as u32).to_le_bytes());
        frame.extend(content);
        frame
    };
    let mut chunked = zstd::encode_all(head, 3).unwrap();
    chunked.extend(zstd::encode_all(tail, 3).unwrap());
    chunked.extend(skippable(&zstd::encode_all(&b"{}"[..], 3).unwrap()));
    chunked.extend(skippable(b"GNUlInUx and numbers"));
    let mut leading = skippable(b"first");
    leading.extend(zstd::encode_all(tar.as_slice(), 3).unwrap());
    for (suffix, blob) in [
        ("+gzip", estargz),
        ("+zstd", chunked),
        ("+zstd", leading),
        ("", tar.clone()),
        // A compressed layer that is called uncompressed is read by what it is.
        ("", gzip(tar)),
    ] {
        let fixture = Fixture::new();
        let manifest = with_layer(&image, &format!("{LAYER}{suffix}"), &blob);
        let entry = descriptor(OCI_MANIFEST, &manifest);
        let images = fixture.load(vec![entry], &[&manifest, &image.config, &blob]);
        let layer = &images.unwrap()[0].layers[0];
        assert_eq!(std::fs::read(layer.join("app")).unwrap(), b"#!app");
    }
}

#[test]
fn docker_manifests_and_lists_load_as_they_are() {
    let fixture = Fixture::new();
    let image = image();
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    manifest["mediaType"] = json!(manifest::DOCKER_MANIFEST);
    manifest["config"]["mediaType"] = json!("application/vnd.docker.container.image.v1+json");
    manifest["layers"][0]["mediaType"] = json!("application/vnd.docker.image.rootfs.diff.tar.gzip");
    let manifest = manifest.to_string().into_bytes();
    let mut entry = descriptor(manifest::DOCKER_MANIFEST, &manifest);
    let current = Platform::current();
    entry["platform"] = json!({"os": "linux", "architecture": current.architecture});
    let list = json!({
        "schemaVersion": 2, "mediaType": manifest::DOCKER_INDEX, "manifests": [entry],
    })
    .to_string()
    .into_bytes();
    let entry = descriptor(manifest::DOCKER_INDEX, &list);
    let blobs = [&list, &manifest, &image.config, &image.blobs[0]];
    let images = fixture
        .load(vec![entry], &blobs.map(Vec::as_slice))
        .unwrap();
    assert_eq!(images[0].digest, Digest::sha256(&manifest));
}

#[test]
fn the_index_that_an_image_was_chosen_from_must_hold_it() {
    let image = image();
    let entry = descriptor(OCI_MANIFEST, &image.manifest);
    let honest = index_of(&entry);
    let other = index_of(&descriptor(OCI_MANIFEST, b"another"));
    let blobs: Vec<&[u8]> = image.all_blobs().map(Vec::as_slice).collect();
    let with_index = |index: &[u8]| {
        let mut entry = entry.clone();
        entry["annotations"][INDEX_ANNOTATION] = json!(sha256(index));
        entry
    };
    let mut all = blobs.clone();
    all.push(&honest);
    let fixture = Fixture::new();
    fixture.load(vec![with_index(&honest)], &all).unwrap();
    let by_index = format!("host.example/app@{}", sha256(&honest));
    let found = fixture.store.resolve(&by_index.parse().unwrap()).unwrap();
    assert_eq!(found.unwrap().digest, Digest::sha256(&image.manifest));

    let mut all = blobs.clone();
    all.push(&other);
    let text = Fixture::new().refusal(vec![with_index(&other)], &all);
    assert!(text.contains("does not hold the image"), "{text}");
    let text = Fixture::new().refusal(vec![with_index(&honest)], &blobs);
    assert!(text.contains("has no file"), "{text}");
}

#[test]
fn an_archive_may_come_through_a_pipe_compressed_or_not() {
    let archive = image().docker_archive(&["localhost/app:1"]).finish();
    for bytes in [
        archive.clone(),
        gzip(&archive),
        zstd::encode_all(&archive[..], 1).unwrap(),
    ] {
        let fixture = Fixture::new();
        let options = LoadOptions::default();
        let images = fixture
            .store
            .load_stream(bytes.as_slice(), &options)
            .unwrap();
        assert_eq!(images.len(), 1);
    }
    let fixture = Fixture::new();
    let options = LoadOptions::default();
    let error = fixture
        .store
        .load_stream(&b"no archive"[..], &options)
        .unwrap_err();
    assert!(error.to_string().contains("/dev/stdin"), "{error}");
}
