//! What is saved is what was loaded, byte for byte; the formats as other tools read them are tested with those tools.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

use serde_json::{Value, json};

use super::*;
use crate::image::Image;
use crate::load::LoadOptions;
use crate::manifest::{OCI_INDEX, OCI_MANIFEST};
use crate::test_archive::{Tar, TestImage, descriptor, sha256, write_blob, write_index};
use crate::trust::SIGNATURES_ANNOTATION;

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

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn load(&self, path: &Path) -> Vec<Image> {
        self.store.load(path, &LoadOptions::default()).unwrap()
    }

    fn load_image(&self, image: &TestImage, name: &str) -> Image {
        let layout = self.path(&sha256(&image.manifest)[7..20]);
        image.write_layout(&layout, name);
        self.load(&layout).remove(0)
    }

    fn save(&self, names: &[&str], format: ArchiveFormat) -> Result<Vec<u8>, SaveError> {
        let mut archive = Vec::new();
        self.store
            .save(&references(names), Platforms::One, format, &mut archive)?;
        Ok(archive)
    }

    /// Loads what another store saved.
    fn load_bytes(&self, archive: &[u8]) -> Vec<Image> {
        let path = self.path("archive.tar");
        std::fs::write(&path, archive).unwrap();
        self.load(&path)
    }
}

fn references(names: &[&str]) -> Vec<Reference> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn image(content: &[u8]) -> TestImage {
    TestImage::new(vec![
        Tar::new().file("base", b"base").finish(),
        Tar::new().file("app", content).finish(),
    ])
}

/// The files of an archive, by name.
fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        files.insert(name, content);
    }
    files
}

fn json_of(content: &[u8]) -> Value {
    serde_json::from_slice(content).unwrap()
}

const NAME: &str = "host.example/app:1";

#[test]
fn an_oci_archive_has_the_same_blobs_and_loads_to_the_same_digests() {
    let (from, to) = (Fixture::new(), Fixture::new());
    let image = image(b"one");
    let loaded = from.load_image(&image, NAME);
    let archive = from.save(&[NAME], ArchiveFormat::Oci).unwrap();
    let files = files(&archive);
    for blob in image.all_blobs() {
        let name = format!("blobs/{}", sha256(blob).replace(':', "/"));
        assert_eq!(&files[&name], blob);
    }
    let again = to.load_bytes(&archive).remove(0);
    assert_eq!(again.digest, loaded.digest);
    assert_eq!(again.config_digest, loaded.config_digest);
    assert_eq!(again.references, references(&[NAME]));
    // The same images give the same archive, on any machine.
    assert_eq!(to.save(&[NAME], ArchiveFormat::Oci).unwrap(), archive);
}

#[test]
fn a_docker_archive_has_uncompressed_layers_and_the_same_configuration() {
    let (from, to) = (Fixture::new(), Fixture::new());
    let image = image(b"one");
    let loaded = from.load_image(&image, NAME);
    let archive = from.save(&[NAME], ArchiveFormat::Docker).unwrap();
    let files = files(&archive);
    let config = format!("{}.json", &sha256(&image.config)[7..]);
    let layers: Vec<_> = image
        .tars
        .iter()
        .map(|t| format!("{}.tar", &sha256(t)[7..]))
        .collect();
    assert_eq!(files[&config], image.config);
    for (name, tar) in layers.iter().zip(&image.tars) {
        assert_eq!(&files[name], tar);
    }
    assert_eq!(
        json_of(&files["manifest.json"]),
        json!([{"Config": config, "RepoTags": [NAME], "Layers": layers}])
    );
    let again = to.load_bytes(&archive).remove(0);
    assert_eq!(again.config_digest, loaded.config_digest);
    // What came as a docker-archive goes as the same one.
    assert_eq!(to.save(&[NAME], ArchiveFormat::Docker).unwrap(), archive);
}

#[test]
fn several_images_and_names_go_into_one_archive() {
    let (from, to) = (Fixture::new(), Fixture::new());
    let other = "localhost/other:2";
    from.load_image(&image(b"one"), NAME);
    from.load_image(&image(b"two"), other);
    from.store
        .tag(
            &NAME.parse().unwrap(),
            &"localhost/again:1".parse().unwrap(),
        )
        .unwrap();
    for format in [ArchiveFormat::Oci, ArchiveFormat::Docker] {
        let names = [NAME, other, "localhost/again:1", NAME];
        let archive = from.save(&names, format).unwrap();
        assert_eq!(to.load_bytes(&archive).len(), 2);
        let mut found: Vec<_> = to
            .store
            .list()
            .unwrap()
            .into_iter()
            .flat_map(|i| i.references)
            .collect();
        found.sort();
        let mut expected = references(&names[..3]);
        expected.sort();
        assert_eq!(found, expected);
    }
}

#[test]
fn the_digest_of_the_index_survives() {
    let (from, to) = (Fixture::new(), Fixture::new());
    let image = image(b"one");
    let mut entry = descriptor(OCI_MANIFEST, &image.manifest);
    let current = crate::platform::Platform::current();
    entry["platform"] = json!({"os": "linux", "architecture": current.architecture});
    let mut elsewhere = descriptor(OCI_MANIFEST, b"not here");
    elsewhere["platform"] = json!({"os": "linux", "architecture": "s390x"});
    let index =
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [elsewhere, entry]});
    let index = index.to_string().into_bytes();
    let layout = from.path("layout");
    image
        .all_blobs()
        .chain([&index])
        .for_each(|blob| write_blob(&layout, blob));
    let mut entry = descriptor(OCI_INDEX, &index);
    entry["annotations"] = json!({REF_NAME: NAME});
    write_index(&layout, vec![entry]);
    from.load(&layout);
    to.load_bytes(&from.save(&[NAME], ArchiveFormat::Oci).unwrap());
    let by_index = format!("host.example/app@{}", sha256(&index))
        .parse()
        .unwrap();
    let found = to.store.resolve(&by_index).unwrap().unwrap();
    assert_eq!(found.digest, Digest::sha256(&image.manifest));
    assert_eq!(found.index, Some(Digest::sha256(&index)));
}

const REF_NAME: &str = "org.opencontainers.image.ref.name";

#[test]
fn a_layout_in_a_directory_keeps_what_is_there() {
    let (from, to) = (Fixture::new(), Fixture::new());
    let other = "localhost/other:2";
    let (one, two) = (image(b"one"), image(b"two"));
    from.load_image(&one, NAME);
    from.load_image(&two, other);
    let dir = to.path("stick");
    from.store
        .save_layout(&references(&[NAME]), Platforms::One, &dir)
        .unwrap();
    let base = dir
        .join("blobs")
        .join(sha256(&one.blobs[0]).replace(':', "/"));
    let before = std::fs::metadata(&base).unwrap();
    from.store
        .save_layout(&references(&[other]), Platforms::One, &dir)
        .unwrap();
    assert_eq!(to.load(&dir).len(), 2);
    // The blob that both have was not written again.
    let after = std::fs::metadata(&base).unwrap();
    assert_eq!(
        (before.ino(), before.mtime_nsec()),
        (after.ino(), after.mtime_nsec())
    );
    // A damaged one is.
    std::fs::write(&base, "damaged").unwrap();
    from.store
        .save_layout(&references(&[NAME, other]), Platforms::One, &dir)
        .unwrap();
    assert_eq!(std::fs::read(&base).unwrap(), one.blobs[0]);
    let index = json_of(&std::fs::read(dir.join("index.json")).unwrap());
    assert_eq!(index["manifests"].as_array().unwrap().len(), 2);

    std::fs::create_dir(to.path("other")).unwrap();
    std::fs::write(to.path("other/precious"), "data").unwrap();
    let error = from
        .store
        .save_layout(&references(&[NAME]), Platforms::One, &to.path("other"));
    assert!(matches!(error, Err(SaveError::NotALayout { .. })));
}

#[test]
fn a_damaged_store_gives_an_error_and_no_archive() {
    let fixture = Fixture::new();
    let image = image(b"one");
    fixture.load_image(&image, NAME);
    let path = |blob: &[u8]| {
        let name = sha256(blob).replace(':', "/");
        fixture.store.dir().join("blobs").join(name)
    };
    let layer = path(&image.blobs[1]);
    let mut damaged = image.blobs[1].clone();
    let last = damaged.len() - 9;
    damaged[last] ^= 1;
    for content in [&damaged[..], &damaged[..20], b""] {
        std::fs::write(&layer, content).unwrap();
        for format in [ArchiveFormat::Oci, ArchiveFormat::Docker] {
            let error = fixture.save(&[NAME], format).unwrap_err();
            assert!(matches!(error, SaveError::Damaged(_)), "{error}");
        }
        let stick = fixture.path("stick");
        let error = fixture
            .store
            .save_layout(&references(&[NAME]), Platforms::One, &stick)
            .unwrap_err();
        assert!(matches!(error, SaveError::Damaged(_)), "{error}");
        assert!(!stick.join("index.json").exists());
        std::fs::remove_dir_all(&stick).unwrap();
    }
    std::fs::remove_file(&layer).unwrap();
    let error = fixture
        .save(&[NAME], ArchiveFormat::Oci)
        .unwrap_err()
        .to_string();
    assert!(error.contains("only unpacked"), "{error}");
}

#[test]
fn what_cannot_be_saved_is_refused() {
    let fixture = Fixture::new();
    let image = image(b"one");
    fixture.load_image(&image, NAME);
    let by_digest = format!("host.example/app@{}", sha256(&image.manifest));
    assert!(fixture.save(&[&by_digest], ArchiveFormat::Oci).is_ok());
    let error = fixture
        .save(&[&by_digest], ArchiveFormat::Docker)
        .unwrap_err();
    assert!(matches!(error, SaveError::NoTag(_)), "{error}");
    let error = fixture
        .save(&["host.example/none"], ArchiveFormat::Oci)
        .unwrap_err();
    assert!(matches!(error, SaveError::NotFound(_)), "{error}");
    assert!(matches!(
        fixture.save(&[], ArchiveFormat::Oci),
        Err(SaveError::Nothing)
    ));
}

/// Fails after some bytes, as a full disk does.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = bytes.len().min(self.0);
        self.0 -= n;
        match n {
            0 => Err(io::ErrorKind::StorageFull.into()),
            n => Ok(n),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_told_apart_from_a_damaged_store() {
    let fixture = Fixture::new();
    fixture.load_image(&image(b"one"), NAME);
    for room in [0, 100, 2000, 4000] {
        let error = fixture
            .store
            .save(
                &references(&[NAME]),
                Platforms::One,
                ArchiveFormat::Oci,
                Full(room),
            )
            .unwrap_err();
        assert!(matches!(error, SaveError::Archive(_)), "{error}");
    }
}

#[test]
fn signatures_go_with_the_image() {
    let (from, to) = (Fixture::new(), Fixture::new());
    let image = image(b"one");
    let payload = json!({"critical": {}}).to_string().into_bytes();
    let mut part = descriptor("application/vnd.dev.cosign.simplesigning.v1+json", &payload);
    part["annotations"] = json!({"dev.cosignproject.cosign/signature": "c2lnbmF0dXJl"});
    let signatures = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", b"{}"),
        "layers": [part],
    })
    .to_string()
    .into_bytes();
    let layout = from.path("layout");
    let blobs = [&signatures, &payload, &b"{}".to_vec()];
    image
        .all_blobs()
        .chain(blobs)
        .for_each(|blob| write_blob(&layout, blob));
    let mut named = descriptor(OCI_MANIFEST, &image.manifest);
    named["annotations"] = json!({REF_NAME: NAME});
    let mut signed = descriptor(OCI_MANIFEST, &signatures);
    let (key, kind) = SIGNATURES_ANNOTATION;
    signed["annotations"] = json!({key: kind});
    write_index(&layout, vec![named, signed.clone()]);
    from.load(&layout);
    let archive = from.save(&[NAME], ArchiveFormat::Oci).unwrap();
    let files = files(&archive);
    let index = json_of(&files["index.json"]);
    assert_eq!(index["manifests"][1], signed);
    assert!(files.contains_key(&format!("blobs/{}", sha256(&payload).replace(':', "/"))));
    to.load_bytes(&archive);
    assert_eq!(to.save(&[NAME], ArchiveFormat::Oci).unwrap(), archive);
}
