//! Pulls from Debian's real registry on loopback, with and without a password, and what other tools pushed there.
#![cfg(feature = "privileged-tests")]
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::{Arc, Mutex};

use podling_images::{
    Arrival, Credentials, Digest, ImageStore, LoadOptions, PullError, PullOptions, PushOptions,
    PushProgress, Reference, RegistriesConfig, RegistryError,
};
use serde_json::json;
use support::test_archive::{Tar, TestImage, descriptor, sha256};
use support::{Registry, pull_options, run};

fn image() -> TestImage {
    let passwd = b"web:x:33:33::/var/www:\n";
    TestImage::new(vec![
        Tar::new()
            .owned_by(0, 0)
            .dir("etc")
            .file("etc/passwd", passwd)
            .finish(),
        Tar::new()
            .owned_by(33, 33)
            .file("content", &vec![b'x'; 2 << 20])
            .finish(),
    ])
}

struct Puller {
    dir: tempfile::TempDir,
    store: ImageStore,
    options: PullOptions,
}

impl Puller {
    fn new(registry: &Registry) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self {
            store: ImageStore::open(&dir.path().join("images")).unwrap(),
            options: PullOptions {
                docker_config: Some(dir.path().join("config.json")),
                ..pull_options(&registry.address)
            },
            dir,
        }
    }
}

fn reference(registry: &Registry, name: &str) -> Reference {
    support::reference(&registry.address, name)
}

#[tokio::test]
async fn images_are_pulled_by_tag_and_by_digest() {
    let registry = Registry::start(false);
    let test = image();
    registry.push(&test, "team/app", "1").await;
    let puller = Puller::new(&registry);
    let pulled = puller
        .store
        .pull(&reference(&registry, "team/app:1"), &puller.options)
        .await;
    let pulled = pulled.unwrap();
    assert_eq!(pulled.digest, Digest::sha256(&test.manifest));
    assert_eq!(pulled.user("web").unwrap().uid, 33);
    let pinned = format!("team/app@{}", sha256(&test.manifest));
    let pinned = puller
        .store
        .pull(&reference(&registry, &pinned), &puller.options)
        .await;
    assert_eq!(pinned.unwrap().layers, pulled.layers);
    assert_eq!(puller.store.verify().unwrap(), []);
    let missing = puller
        .store
        .pull(&reference(&registry, "team/app:2"), &puller.options)
        .await;
    assert!(matches!(
        missing,
        Err(PullError::Registry(RegistryError::NotFound { .. }))
    ));
}

#[tokio::test]
async fn a_password_is_asked_for_and_read_from_the_docker_configuration() {
    let registry = Registry::start(true);
    registry.push(&image(), "team/app", "1").await;
    let mut puller = Puller::new(&registry);
    let name = reference(&registry, "team/app:1");
    let refused = puller.store.pull(&name, &puller.options).await.unwrap_err();
    assert!(
        refused.to_string().contains("without credentials"),
        "{refused}"
    );
    puller.options.credentials = Some(Credentials::Basic {
        username: "me".to_owned(),
        password: "wrong".to_owned(),
    });
    let refused = puller.store.pull(&name, &puller.options).await.unwrap_err();
    assert!(
        refused.to_string().contains("with the credentials given"),
        "{refused}"
    );
    puller.options.credentials = None;
    let config = json!({"auths": {registry.address.clone(): {"auth": "bWU6c2VjcmV0"}}});
    std::fs::write(puller.dir.path().join("config.json"), config.to_string()).unwrap();
    puller.store.pull(&name, &puller.options).await.unwrap();
}

#[tokio::test]
async fn an_index_gives_the_image_for_this_machine() {
    let registry = Registry::start(false);
    let test = image();
    registry.push(&test, "team/app", "single").await;
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    let current = podling_images::Platform::current();
    let mut entry = descriptor(manifest, &test.manifest);
    entry["platform"] = json!({"os": "linux", "architecture": current.architecture});
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    })
    .to_string();
    let media_type = "application/vnd.oci.image.index.v1+json";
    registry
        .push_manifest("team/app", "multi", media_type, index.as_bytes())
        .await;
    let puller = Puller::new(&registry);
    let name = reference(&registry, "team/app:multi");
    let pulled = puller.store.pull(&name, &puller.options).await.unwrap();
    assert_eq!(pulled.digest, Digest::sha256(&test.manifest));
    let by_index = format!("team/app@{}", sha256(index.as_bytes()));
    let found = puller
        .store
        .resolve(&reference(&registry, &by_index))
        .unwrap();
    assert!(found.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_stores_on_one_directory_pull_at_once() {
    let registry = Registry::start(false);
    registry.push(&image(), "team/app", "1").await;
    let puller = Puller::new(&registry);
    let name = Arc::new(reference(&registry, "team/app:1"));
    let mut pulls = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let store = ImageStore::open(puller.store.dir()).unwrap();
        let (name, options) = (Arc::clone(&name), puller.options.clone());
        pulls.spawn(async move { store.pull(&name, &options).await });
    }
    for pulled in pulls.join_all().await {
        assert_eq!(pulled.unwrap().layers.len(), 2);
    }
    assert_eq!(puller.store.verify().unwrap(), []);
    assert_eq!(
        std::fs::read_dir(puller.store.dir().join("tmp"))
            .unwrap()
            .count(),
        0
    );
}

/// What skopeo copies between all formats is loaded and pulled.
#[tokio::test]
async fn images_of_skopeo_load_and_pull() {
    let registry = Registry::start(false);
    let puller = Puller::new(&registry);
    let layout = puller.dir.path().join("layout");
    image().write_layout(&layout, "1");
    let source = format!("oci:{}:1", layout.display());
    let pushed = format!("docker://{}/team/skopeo:1", registry.address);
    let copy = [
        "copy",
        "--insecure-policy",
        "--dest-tls-verify=false",
        &source,
        &pushed,
    ];
    if run("skopeo", &copy).is_none() {
        eprintln!("skipped: skopeo is not installed");
        return;
    }
    let name = reference(&registry, "team/skopeo:1");
    let pulled = puller.store.pull(&name, &puller.options).await.unwrap();
    for (format, name) in [
        ("docker-archive", "host.example/a:1"),
        ("oci-archive", "host.example/b:1"),
    ] {
        let file = puller.dir.path().join(format);
        let target = format!("{format}:{}:{name}", file.display());
        run("skopeo", &["copy", "--insecure-policy", &source, &target]);
        let loaded = puller.store.load(&file, &LoadOptions::default()).unwrap();
        assert_eq!(loaded[0].layers, pulled.layers, "{format}");
        assert!(
            loaded[0].references.contains(&name.parse().unwrap()),
            "{format}"
        );
    }
}

/// A layer that umoci makes has the files that umoci put there.
#[test]
fn images_of_umoci_load() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    if run("umoci", &["init", "--layout", &path("layout")]).is_none() {
        eprintln!("skipped: umoci is not installed");
        return;
    }
    let image = format!("{}:1", path("layout"));
    run("umoci", &["new", "--image", &image]);
    std::fs::create_dir_all(path("files/sub")).unwrap();
    std::fs::write(path("files/sub/hello"), "hello").unwrap();
    run(
        "umoci",
        &["insert", "--image", &image, &path("files"), "/opt"],
    );
    run(
        "umoci",
        &[
            "insert",
            "--image",
            &image,
            "--opaque",
            &path("files/sub"),
            "/opt/sub",
        ],
    );
    run(
        "umoci",
        &["insert", "--image", &image, "--whiteout", "/opt/sub/hello"],
    );
    run(
        "umoci",
        &[
            "config",
            "--image",
            &image,
            "--config.cmd",
            "/opt/x",
            "--config.user",
            "5:6",
        ],
    );
    let store = ImageStore::open(&dir.path().join("images")).unwrap();
    let options = LoadOptions {
        reference: Some("made/by-umoci".parse().unwrap()),
        ..LoadOptions::default()
    };
    let loaded = store.load(&dir.path().join("layout"), &options).unwrap();
    assert_eq!(loaded[0].layers.len(), 3);
    let hello = loaded[0].layers[0].join("opt/sub/hello");
    assert_eq!(std::fs::read_to_string(hello).unwrap(), "hello");
    assert_eq!(loaded[0].user("5:6").unwrap().gid, 6);
}

/// Keeps how each blob came to the registry.
fn push_options(puller: &Puller) -> (PushOptions, Arc<Mutex<Vec<Arrival>>>) {
    let arrivals = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&arrivals);
    let options = PushOptions {
        credentials: puller.options.credentials.clone(),
        docker_config: puller.options.docker_config.clone(),
        registries: puller.options.registries.clone(),
        progress: Some(Arc::new(move |event| {
            if let PushProgress::Done { how, .. } = event {
                listener.lock().unwrap().push(how);
            }
        })),
        ..PushOptions::default()
    };
    (options, arrivals)
}

#[tokio::test]
async fn what_was_pulled_is_pushed_mounted_and_pulled_again() {
    let registry = Registry::start(true);
    let test = image();
    registry.push(&test, "team/app", "1").await;
    let mut puller = Puller::new(&registry);
    puller.options.credentials = Some(Credentials::Basic {
        username: "me".to_owned(),
        password: "secret".to_owned(),
    });
    let source = reference(&registry, "team/app:1");
    puller.store.pull(&source, &puller.options).await.unwrap();
    // To another repository of the same registry: the blobs are mounted there.
    let (options, arrivals) = push_options(&puller);
    let target = reference(&registry, "other/app:2");
    let pushed = puller.store.push(&source, &target, &options).await.unwrap();
    assert_eq!(
        pushed.reference.digest(),
        Some(&Digest::sha256(&test.manifest))
    );
    assert_eq!(*arrivals.lock().unwrap(), [Arrival::Mounted; 3]);
    // To a registry that has nothing: they are sent.
    let empty = Registry::start(true);
    let mut other = Puller::new(&empty);
    other.options.credentials = puller.options.credentials.clone();
    let (options, arrivals) = push_options(&other);
    let target = reference(&empty, "team/app:1");
    puller.store.push(&source, &target, &options).await.unwrap();
    assert_eq!(*arrivals.lock().unwrap(), [Arrival::Uploaded; 3]);
    let pulled = other.store.pull(&target, &other.options).await.unwrap();
    assert_eq!(pulled.digest, Digest::sha256(&test.manifest));
    assert_eq!(other.store.verify().unwrap(), []);
    let (mut options, _) = push_options(&other);
    options.credentials = None;
    let error = puller.store.push(&source, &target, &options).await;
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("without credentials")
    );
}

#[tokio::test]
async fn of_an_index_those_platforms_are_pushed_that_are_here() {
    let registry = Registry::start(false);
    let (test, other) = (
        image(),
        TestImage::new(vec![Tar::new().dir("other").finish()]),
    );
    registry.push(&test, "team/app", "single").await;
    registry.push(&other, "team/app", "other").await;
    let manifest = "application/vnd.oci.image.manifest.v1+json";
    let current = podling_images::Platform::current();
    let mut mine = descriptor(manifest, &test.manifest);
    mine["platform"] = json!({"os": "linux", "architecture": current.architecture});
    let mut foreign = descriptor(manifest, &other.manifest);
    foreign["platform"] = json!({"os": "linux", "architecture": "s390x"});
    let media_type = "application/vnd.oci.image.index.v1+json";
    for (tag, entries, left_out) in [
        ("both", json!([mine, foreign]), 1),
        ("one", json!([mine]), 0),
    ] {
        let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries});
        let index = index.to_string();
        registry
            .push_manifest("team/app", tag, media_type, index.as_bytes())
            .await;
        let puller = Puller::new(&registry);
        let source = reference(&registry, &format!("team/app:{tag}"));
        puller.store.pull(&source, &puller.options).await.unwrap();
        let (options, _) = push_options(&puller);
        let target = reference(&registry, &format!("copy/app:{tag}"));
        let pushed = puller.store.push(&source, &target, &options).await.unwrap();
        assert_eq!((pushed.platforms, pushed.left_out), (1, left_out));
        let expected = match left_out {
            0 => index.as_bytes(),
            _ => &test.manifest,
        };
        assert_eq!(pushed.reference.digest(), Some(&Digest::sha256(expected)));
        puller.store.pull(&target, &puller.options).await.unwrap();
    }
}

#[tokio::test]
async fn hosts_toml_names_authority_and_client_certificate() {
    let dir = tempfile::tempdir().unwrap();
    support::certificates(dir.path());
    let registry = Registry::start_with_tls(dir.path());
    let hosts = dir.path().join("certs.d").join(&registry.address);
    std::fs::create_dir_all(&hosts).unwrap();
    let mut puller = Puller::new(&registry);
    puller.options.registries = RegistriesConfig {
        hosts_directory: Some(dir.path().join("certs.d")),
        ..RegistriesConfig::default()
    };
    let name = reference(&registry, "team/app:1");
    for (text, part) in [
        ("ca = \"../../ca.pem\"\n", "cannot reach"),
        (
            "client = [[\"../../client.pem\", \"../../client.key\"]]\n",
            "cannot reach",
        ),
        ("ca = \"../../client.key\"\n", "no PEM certificate"),
        (
            "skip_verify = true\nclient = [[\"../../client.pem\", \"../../client.key\"]]\n",
            "has no image",
        ),
        (
            "ca = \"../../ca.pem\"\nclient = [[\"../../client.pem\", \"../../client.key\"]]\n",
            "has no image",
        ),
    ] {
        std::fs::write(hosts.join("hosts.toml"), text).unwrap();
        let error = puller.store.pull(&name, &puller.options).await.unwrap_err();
        assert!(error.to_string().contains(part), "{text}: {error}");
    }
    // Docker's layout, without a hosts.toml.
    std::fs::remove_file(hosts.join("hosts.toml")).unwrap();
    for (from, to) in [
        ("ca.pem", "ca.crt"),
        ("client.pem", "x.cert"),
        ("client.key", "x.key"),
    ] {
        std::fs::copy(dir.path().join(from), hosts.join(to)).unwrap();
    }
    let error = puller.store.pull(&name, &puller.options).await.unwrap_err();
    assert!(error.to_string().contains("has no image"), "{error}");
    // And an image both ways.
    let layout = dir.path().join("layout");
    let test = image();
    test.write_layout(&layout, "local.example/app:1");
    puller.store.load(&layout, &LoadOptions::default()).unwrap();
    let (options, _) = push_options(&puller);
    let source = "local.example/app:1".parse().unwrap();
    puller.store.push(&source, &name, &options).await.unwrap();
    let pulled = puller.store.pull(&name, &puller.options).await.unwrap();
    assert_eq!(pulled.digest, Digest::sha256(&test.manifest));
}
