//! Images of which not all is here: other compressions, other platforms.

use super::*;
use crate::{ArchiveFormat, Platforms};

/// Two repositories, `team/app` and `team/two`, and what was asked of them.
async fn serving(one: &TestImage, two: &TestImage) -> (String, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (log, one, two) = (Arc::clone(&asked), one.clone(), two.clone());
    let registry = serve(move |request| {
        log.lock().unwrap().push(request.path.clone());
        let is_second = request.path.contains("/team/two/");
        let request = Request {
            method: request.method.clone(),
            path: request.path.replace("/team/two/", "/team/app/"),
            headers: request.headers.clone(),
            body: Vec::new(),
        };
        honest(if is_second { &two } else { &one }, &request)
    })
    .await;
    (registry, asked)
}

fn save(store: &ImageStore, name: &Reference) -> Result<Vec<u8>, crate::SaveError> {
    let mut archive = Vec::new();
    let names = std::slice::from_ref(name);
    store.save(names, Platforms::One, ArchiveFormat::Oci, &mut archive)?;
    Ok(archive)
}

/// A pull fetches no files that are here. To save the image, its own blobs are fetched.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_whose_files_came_in_another_compression_is_completed_to_save_it() {
    let gzipped = image();
    let plain = gzipped.uncompressed();
    let (registry, asked) = serving(&gzipped, &plain).await;
    let puller = Puller::new(&[&registry]);
    puller.pull(&registry).await.unwrap();
    let name: Reference = format!("{registry}/team/two:1").parse().unwrap();
    asked.lock().unwrap().clear();
    puller.store.pull(&name, &puller.options).await.unwrap();
    let digests: Vec<_> = plain.blobs.iter().map(|blob| sha256(blob)).collect();
    let is_layer = |path: &String| digests.iter().any(|digest| path.ends_with(digest));
    assert!(!asked.lock().unwrap().iter().any(is_layer));

    // The image is whole: it runs. Only its own blobs are not here.
    assert_eq!(puller.store.verify().unwrap(), []);
    let names = std::slice::from_ref(&name);
    let missing = puller.store.missing_blobs(names).unwrap();
    let missing: Vec<_> = missing.iter().map(|blob| blob.digest.to_string()).collect();
    assert_eq!(missing, digests);
    let error = save(&puller.store, &name).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("only unpacked"), "{text}");
    assert!(digests.iter().any(|digest| text.contains(digest)), "{text}");

    let fetched = puller.store.fetch_missing_blobs(names, &puller.options);
    assert_eq!(fetched.await.unwrap().blobs.len(), 2);
    assert_eq!(puller.store.missing_blobs(names).unwrap(), []);
    assert_eq!(puller.store.verify().unwrap(), []);
    let archive = save(&puller.store, &name).unwrap();
    let other = tempfile::tempdir().unwrap();
    let file = other.path().join("image.tar");
    std::fs::write(&file, archive).unwrap();
    let store = ImageStore::open(&other.path().join("images")).unwrap();
    let loaded = store.load(&file, &crate::LoadOptions::default()).unwrap();
    assert_eq!(loaded[0].digest, Digest::sha256(&plain.manifest));
    // They belong to the image now, and stay.
    puller.store.gc(&Default::default()).unwrap();
    assert_eq!(puller.store.missing_blobs(names).unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_blobs_are_not_kept_they_are_lent_for_a_save() {
    let test = image();
    let (registry, _) = serving(&test, &test).await;
    let mut puller = Puller::new(&[&registry]);
    puller.store = puller.store.with_kept_blobs(false);
    puller.pull(&registry).await.unwrap();
    let name: Reference = format!("{registry}/team/app:1").parse().unwrap();
    let names = std::slice::from_ref(&name);
    assert!(save(&puller.store, &name).is_err());
    let fetched = puller.store.fetch_missing_blobs(names, &puller.options);
    let fetched = fetched.await.unwrap();
    puller.store.gc(&Default::default()).unwrap();
    save(&puller.store, &name).unwrap();
    drop(fetched);
    puller.store.gc(&Default::default()).unwrap();
    assert_eq!(puller.store.missing_blobs(names).unwrap().len(), 2);
    assert_eq!(puller.store.verify().unwrap(), []);
}

/// What has come of a blob is used, unless it is wrong: then all of it is fetched again.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_blob_is_gone_on_with_and_a_wrong_one_is_never_kept() {
    let test = image();
    for damage in [0, 1] {
        let (registry, _) = serving(&test, &test).await;
        let puller = Puller::new(&[&registry]);
        puller.pull(&registry).await.unwrap();
        let digest = Digest::sha256(&test.blobs[1]);
        puller.store.remove_blob(&digest).unwrap();
        let mut part = test.blobs[1][..100_000].to_vec();
        part[50_000] ^= damage;
        let partial = crate::store::disk::ingest_path(puller.store.dir(), &digest);
        std::fs::write(partial, part).unwrap();
        let name: Reference = format!("{registry}/team/app:1").parse().unwrap();
        let names = std::slice::from_ref(&name);
        let fetched = puller.store.fetch_missing_blobs(names, &puller.options);
        assert_eq!(fetched.await.unwrap().blobs.len(), 1);
        assert_eq!(puller.store.verify().unwrap(), []);
    }
    let registry = lying::lying(&test, &lying::noise_blob(&test), |_, mut reply| {
        reply.body[50_000] ^= 1;
        reply
    })
    .await;
    let (good, _) = serving(&test, &test).await;
    let puller = Puller::new(&[&registry, &good]);
    puller.pull(&good).await.unwrap();
    let name: Reference = format!("{registry}/team/app:1").parse().unwrap();
    let here = format!("{good}/team/app:1").parse().unwrap();
    puller.store.tag(&here, &name).unwrap();
    puller.store.remove(&here).unwrap();
    let digest = Digest::sha256(&test.blobs[1]);
    puller.store.remove_blob(&digest).unwrap();
    let names = std::slice::from_ref(&name);
    let fetched = puller.store.fetch_missing_blobs(names, &puller.options);
    let error = fetched.await.unwrap_err();
    assert!(
        matches!(error, PullError::Registry(RegistryError::Mismatch { .. })),
        "{error}"
    );
    assert!(puller.store.open_blob(&digest).unwrap().is_none());
}

/// A pull of an image that is whole but for a blob that was dropped as damaged fetches that, and only that.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_blob_comes_back_with_the_next_pull() {
    let test = image();
    let (registry, asked) = serving(&test, &test).await;
    let puller = Puller::new(&[&registry]);
    puller.pull(&registry).await.unwrap();
    let digest = Digest::sha256(&test.blobs[1]);
    let path = crate::store::disk::blob_path(puller.store.dir(), &digest);
    std::fs::write(&path, b"damaged").unwrap();
    let found = puller.store.verify().unwrap();
    puller.store.heal(&found[0], None).unwrap();
    assert!(!path.exists());
    asked.lock().unwrap().clear();
    puller.pull(&registry).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), test.blobs[1]);
    assert_eq!(puller.store.verify().unwrap(), []);
    let asked = asked.lock().unwrap();
    assert_eq!(
        asked.iter().filter(|path| path.contains("/blobs/")).count(),
        1,
        "{asked:?}"
    );
}

/// A name means one platform, the one pulled last. What it meant before stays under another name, if it has one.
#[tokio::test(flavor = "multi_thread")]
async fn a_pull_of_a_second_platform_takes_the_name_and_a_tag_keeps_the_first() {
    let images = ["amd64", "arm64"].map(|architecture| image().of_architecture(architecture));
    let entries: Vec<_> = images
        .iter()
        .zip(["amd64", "arm64"])
        .map(|(image, architecture)| {
            let mut entry = descriptor(manifest::OCI_MANIFEST, &image.manifest);
            entry["platform"] = json!({"os": "linux", "architecture": architecture});
            entry
        })
        .collect();
    let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
    let (served, document) = (images.clone(), index.clone());
    let registry = serve(move |request| {
        if request.path.ends_with("manifests/1") {
            return Reply::new(200, document.as_bytes());
        }
        let first = honest(&served[0], request);
        match first.status {
            404 => honest(&served[1], request),
            _ => first,
        }
    })
    .await;
    let mut puller = Puller::new(&[&registry]);
    let name: Reference = format!("{registry}/team/app:1").parse().unwrap();
    let store = puller.store.clone();
    let mut pull = async |platform: &str| {
        puller.options.platform = Some(platform.parse().unwrap());
        puller.pull(&registry).await.unwrap().digest
    };
    let [first, second] = images
        .each_ref()
        .map(|image| Digest::sha256(&image.manifest));
    assert_eq!(pull("linux/amd64").await, first);
    assert_eq!(pull("linux/arm64").await, second);
    let resolved = store.resolve(&name).unwrap().unwrap();
    assert_eq!(
        (&resolved.digest, &resolved.index),
        (&second, &Some(Digest::sha256(index.as_bytes())))
    );
    assert_eq!(store.list().unwrap().len(), 1);
    // The collector takes what has no name.
    store.gc(&Default::default()).unwrap();
    assert!(store.read_blob(&first).is_err());
    assert_eq!(store.verify().unwrap(), []);

    // With a name of its own each stays, and a save of either is of that platform alone.
    let kept: Reference = format!("{registry}/team/app:arm").parse().unwrap();
    store.tag(&name, &kept).unwrap();
    assert_eq!(pull("linux/amd64").await, first);
    store.gc(&Default::default()).unwrap();
    for (name, digest) in [(&name, &first), (&kept, &second)] {
        assert_eq!(&store.resolve(name).unwrap().unwrap().digest, digest);
        let names = std::slice::from_ref(name);
        let saved = store.save(names, Platforms::One, ArchiveFormat::Oci, std::io::sink());
        let saved = saved.unwrap();
        assert_eq!((saved.len(), &saved[0].digest), (1, digest));
    }
    assert_eq!(store.verify().unwrap(), []);
}

/// An index of images for two platforms, and what Buildkit puts beside them; all that it consists of.
fn index_with_attestation(images: &[TestImage]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let statement = b"{\"_type\": \"https://in-toto.io/Statement/v0.1\"}".to_vec();
    let config = b"{\"architecture\": \"unknown\", \"os\": \"unknown\"}".to_vec();
    let attestation = json!({
        "schemaVersion": 2, "mediaType": manifest::OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.in-toto+json", &statement)],
    });
    let attestation = attestation.to_string().into_bytes();
    let documents = images.iter().map(|image| &image.manifest);
    let platforms = [
        ("linux", "amd64"),
        ("linux", "arm64"),
        ("unknown", "unknown"),
    ];
    let entries: Vec<_> = documents
        .chain([&attestation])
        .zip(platforms)
        .map(|(document, (os, architecture))| {
            let mut entry = descriptor(manifest::OCI_MANIFEST, document);
            entry["platform"] = json!({"os": os, "architecture": architecture});
            entry
        })
        .collect();
    let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
    let index = index.into_bytes();
    let mut all = vec![index.clone(), attestation, config, statement];
    all.extend(images.iter().flat_map(TestImage::all_blobs).cloned());
    (index, all)
}

/// Then the index itself is saved, and each node takes its own image out of it. Here nothing of it stays.
#[tokio::test(flavor = "multi_thread")]
async fn all_platforms_are_fetched_to_save_them_and_freed_again() {
    let other = TestImage::new(vec![Tar::new().file("other", b"other").finish()]);
    let images = [
        image().of_architecture("amd64"),
        other.of_architecture("arm64"),
    ];
    let (index, all) = index_with_attestation(&images);
    let (document, served) = (index.clone(), all.clone());
    let registry = serve(move |request| {
        let is_asked = |blob: &&Vec<u8>| request.path.ends_with(&sha256(blob));
        match served.iter().find(is_asked) {
            _ if request.path.ends_with("manifests/1") => Reply::new(200, &document),
            Some(blob) => Reply::new(200, blob),
            None => Reply::new(404, b"{}"),
        }
    })
    .await;
    let mut puller = Puller::new(&[&registry]);
    puller.options.platform = Some("linux/amd64".parse().unwrap());
    let store = puller.store.clone();
    puller.pull(&registry).await.unwrap();
    let name: Reference = format!("{registry}/team/app:1").parse().unwrap();
    let names = std::slice::from_ref(&name);
    let save = || {
        let mut archive = Vec::new();
        let saved = store.save(names, Platforms::All, ArchiveFormat::Oci, &mut archive);
        saved.map(|saved| (saved, archive))
    };
    let error = save().unwrap_err();
    assert!(
        matches!(&error, crate::SaveError::PlatformNotHere { part, .. } if *part == Digest::sha256(&images[1].manifest)),
        "{error}"
    );
    let docker = store.save(
        names,
        Platforms::All,
        ArchiveFormat::Docker,
        std::io::sink(),
    );
    assert!(matches!(docker, Err(crate::SaveError::SinglePlatform)));

    let fetched = store.fetch_all_platforms(names, &puller.options);
    let fetched = fetched.await.unwrap();
    // The other image's configuration and layer, and the two parts of the attestation.
    assert_eq!(fetched.blobs.len(), 4);
    store.gc(&Default::default()).unwrap();
    let (saved, archive) = save().unwrap();
    assert_eq!(saved[0].digest, Digest::sha256(&index));
    drop(fetched);
    store.gc(&Default::default()).unwrap();
    assert!(save().is_err());
    assert_eq!(store.verify().unwrap(), []);
    assert_eq!(
        store.resolve(&name).unwrap().unwrap().digest,
        Digest::sha256(&images[0].manifest)
    );

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("image.tar");
    std::fs::write(&file, &archive).unwrap();
    for (platform, image) in ["linux/amd64", "linux/arm64"].into_iter().zip(&images) {
        let elsewhere = ImageStore::open(&dir.path().join(platform)).unwrap();
        let options = crate::LoadOptions {
            platform: Some(platform.parse().unwrap()),
            ..crate::LoadOptions::default()
        };
        let loaded = elsewhere.load(&file, &options).unwrap();
        assert_eq!(loaded[0].digest, Digest::sha256(&image.manifest));
        assert_eq!(loaded[0].index, Some(Digest::sha256(&index)));
    }
    let mut blobs = 0;
    for entry in tar::Archive::new(&archive[..]).entries().unwrap() {
        let path = entry.unwrap().path().unwrap().into_owned();
        blobs += usize::from(path.starts_with("blobs/sha256") && path.components().count() == 3);
    }
    assert_eq!(blobs, all.len());
}
