//! Round trips with Debian's skopeo and umoci: what they make is loaded, what is saved they read, and nothing changes on
//! the way. The store itself they read in place.
#![cfg(feature = "privileged-tests")]
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use podling_images::{ArchiveFormat, Digest, Image, ImageStore, LoadOptions, Platforms, Reference};
use serde_json::Value;
use support::test_archive::{Tar, TestImage, sha256};

const NAME: &str = "registry.example/team/app:v1";

/// Debian's skopeo, umoci, jq and the like are installed by `make deps-test`.
fn run(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|e| panic!("{program} is needed: {e}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    output.stdout
}

fn copy(from: &str, to: &str, options: &[&str]) {
    let arguments = ["copy", "--insecure-policy", "--quiet"];
    run("skopeo", &[&arguments[..], options, &[from, to]].concat());
}

/// The manifest that a tool sees, as it is.
fn raw(image: &str) -> Digest {
    Digest::sha256(&run("skopeo", &["inspect", "--raw", image]))
}

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

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn load(&self, path: &str, name: Option<&str>) -> Image {
        let options = LoadOptions {
            reference: name.map(|name| name.parse().unwrap()),
            ..LoadOptions::default()
        };
        self.store
            .load(Path::new(path), &options)
            .unwrap()
            .remove(0)
    }

    fn save(&self, format: ArchiveFormat, file: &str) -> String {
        let path = self.path(file);
        let names: [Reference; 1] = [NAME.parse().unwrap()];
        let file = std::fs::File::create(&path).unwrap();
        self.store
            .save(&names, Platforms::One, format, file)
            .unwrap();
        path
    }
}

fn image() -> TestImage {
    let big: Vec<u8> = (0..300_000_u32)
        .flat_map(|i| (i / 7).to_le_bytes())
        .collect();
    TestImage::new(vec![
        Tar::new()
            .owned_by(0, 0)
            .dir("etc")
            .file("etc/passwd", b"root:x:0:0::/:\n")
            .finish(),
        Tar::new()
            .owned_by(0, 0)
            .file("content", &big)
            .file("<&>", b"odd name")
            .finish(),
    ])
}

/// The blobs of a layout directory, by digest; `index.json` aside.
fn blobs(layout: &str) -> BTreeMap<String, Vec<u8>> {
    let dir = Path::new(layout).join("blobs/sha256");
    let files = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    files
        .map(|path| (name(&path), std::fs::read(&path).unwrap()))
        .collect()
}

fn members(archive: &str) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let file = std::fs::File::open(archive).unwrap();
    for entry in tar::Archive::new(file).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        if entry.header().entry_type().is_file() {
            files.insert(entry.path().unwrap().display().to_string(), content);
        }
    }
    files
}

#[test]
fn oci_archives_of_skopeo_go_round_bit_for_bit() {
    let image = image();
    for (compression, suffix) in [("gzip", "gzip"), ("zstd", "zstd")] {
        let fixture = Fixture::new();
        let (source, archive) = (fixture.path("source"), fixture.path("skopeo.tar"));
        image.write_layout(Path::new(&source), "v1");
        let options = ["--dest-compress", "--dest-compress-format", compression];
        let to = format!("oci-archive:{archive}:{NAME}");
        copy(&format!("oci:{source}:v1"), &to, &options);
        let before = raw(&format!("oci-archive:{archive}"));
        let loaded = fixture.load(&archive, None);
        assert_eq!(loaded.digest, before);
        let media_type = &loaded.parts[0].blob.as_ref().unwrap().media_type;
        assert!(media_type.ends_with(suffix), "{media_type}");

        let saved = fixture.save(ArchiveFormat::Oci, "saved.tar");
        let named = format!("oci-archive:{saved}:{NAME}");
        assert_eq!(raw(&named), before);
        // Both copied into layouts: every blob is the same, byte for byte.
        let (a, b) = (fixture.path("a"), fixture.path("b"));
        copy(
            &format!("oci-archive:{archive}"),
            &format!("oci:{a}:x"),
            &[],
        );
        copy(&named, &format!("oci:{b}:x"), &[]);
        assert!(blobs(&a) == blobs(&b));
        assert_eq!(blobs(&a).len(), 4);
    }
}

#[test]
fn the_store_is_a_layout_that_skopeo_and_umoci_read_in_place() {
    let fixture = Fixture::new();
    let (source, back) = (fixture.path("source"), fixture.path("back"));
    let image = image();
    image.write_layout(Path::new(&source), NAME);
    let loaded = fixture.load(&source, None);
    let store = format!("oci:{}:{NAME}", fixture.store.dir().display());
    assert_eq!(raw(&store), loaded.digest);
    copy(&store, &format!("oci:{back}:v1"), &[]);
    assert!(blobs(&source) == blobs(&back));
    // umoci takes no slash in a name; it walks the whole layout all the same.
    let listed = run(
        "umoci",
        &["list", "--layout", fixture.store.dir().to_str().unwrap()],
    );
    assert_eq!(String::from_utf8(listed).unwrap().trim(), NAME);
    let bundle = fixture.path("bundle");
    run(
        "umoci",
        &["unpack", "--image", &format!("{back}:v1"), &bundle],
    );
    let content = std::fs::read(Path::new(&bundle).join("rootfs/content")).unwrap();
    assert!(content == std::fs::read(loaded.layers[1].join("content")).unwrap());
}

#[test]
fn docker_archives_are_those_of_skopeo() {
    let fixture = Fixture::new();
    let (source, archive) = (fixture.path("source"), fixture.path("skopeo.tar"));
    let image = image();
    image.write_layout(Path::new(&source), NAME);
    copy(
        &format!("oci:{source}:{NAME}"),
        &format!("docker-archive:{archive}:{NAME}"),
        &[],
    );
    fixture.load(&source, None);
    let ours = fixture.save(ArchiveFormat::Docker, "ours.tar");
    // What only Docker before 1.10 read aside: a directory for each layer, and `repositories`.
    let mut theirs = members(&archive);
    theirs.retain(|name, _| !name.contains('/') && name != "repositories");
    assert_eq!(
        members(&ours).keys().collect::<Vec<_>>(),
        theirs.keys().collect::<Vec<_>>()
    );
    assert!(members(&ours) == theirs);

    // Theirs is loaded, with the links of those directories, and saved as ours.
    let other = Fixture::new();
    let loaded = other.load(&archive, None);
    assert_eq!(loaded.config_digest, Digest::sha256(&image.config));
    let again = other.save(ArchiveFormat::Docker, "again.tar");
    assert!(std::fs::read(&again).unwrap() == std::fs::read(&ours).unwrap());
    // And read by skopeo with the same configuration and layers (an OCI layout would be a conversion).
    let back = fixture.path("back");
    copy(
        &format!("docker-archive:{again}"),
        &format!("dir:{back}"),
        &[],
    );
    let manifest = std::fs::read(Path::new(&back).join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["config"]["digest"], sha256(&image.config));
}

#[test]
fn compressed_archives_load_like_plain_ones() {
    let fixture = Fixture::new();
    let source = fixture.path("source");
    image().write_layout(Path::new(&source), NAME);
    let loaded = fixture.load(&source, None);
    for format in [ArchiveFormat::Oci, ArchiveFormat::Docker] {
        let archive = std::fs::read(fixture.save(format, "plain.tar")).unwrap();
        let gzip = support::test_archive::gzip(&archive);
        let zstd = zstd::encode_all(&archive[..], 1).unwrap();
        for compressed in [gzip, zstd] {
            let other = Fixture::new();
            let path = other.path("archive");
            std::fs::write(&path, compressed).unwrap();
            let again = other.load(&path, None);
            assert_eq!(again.config_digest, loaded.config_digest);
        }
    }
}

#[test]
fn what_umoci_makes_is_loaded() {
    let fixture = Fixture::new();
    let (layout, file) = (fixture.path("umoci"), fixture.path("motd"));
    std::fs::write(&file, "hello").unwrap();
    run("umoci", &["init", "--layout", &layout]);
    let image = format!("{layout}:v1");
    run("umoci", &["new", "--image", &image]);
    run("umoci", &["insert", "--image", &image, &file, "/etc/motd"]);
    let before = raw(&format!("oci:{image}"));
    let loaded = fixture.load(&layout, Some(NAME));
    assert_eq!(loaded.digest, before);
    let motd = loaded.layers.last().unwrap().join("etc/motd");
    assert_eq!(std::fs::read_to_string(motd).unwrap(), "hello");
}
