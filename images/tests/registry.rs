//! Pulls from Debian's real registry on loopback, with and without a password, and what other tools pushed there.
#![cfg(feature = "privileged-tests")]
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use podling_images::{
    Credentials, Digest, ImageStore, LoadOptions, PullError, PullOptions, Reference,
    RegistriesConfig, RegistryError,
};
use serde_json::json;
use support::test_archive::{Tar, TestImage, descriptor, sha256};
use support::{Registry, run};

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
                registries: RegistriesConfig {
                    plain_http: [registry.address.clone()].into(),
                    ..RegistriesConfig::default()
                },
                ..PullOptions::default()
            },
            dir,
        }
    }
}

fn reference(registry: &Registry, name: &str) -> Reference {
    format!("{}/{name}", registry.address).parse().unwrap()
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
