//! Pulls from a registry that misbehaves: a small HTTP server on loopback, told what to answer. The real registry is
//! tried in `tests/registry.rs`.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::net::TcpListener;

use super::*;
use crate::registry::test_server::{Reply, Request, serve};
use crate::registry::{ConnectKind, Patience};
use crate::test_archive::{Tar, TestImage, descriptor, noise, sha256};

/// What an honest registry answers for one image `team/app:1`.
fn honest(image: &TestImage, request: &Request) -> Reply {
    assert!(matches!(request.method.as_str(), "GET" | "HEAD"));
    let path = request.path.split('?').next().unwrap();
    let Some(rest) = path.strip_prefix("/v2/team/app/") else {
        return Reply::new(404, b"{}");
    };
    if rest == "manifests/1" || rest == format!("manifests/{}", sha256(&image.manifest)) {
        return Reply::new(200, &image.manifest)
            .header("Docker-Content-Digest", &sha256(&image.manifest));
    }
    let blob = image
        .all_blobs()
        .find(|blob| rest == format!("blobs/{}", sha256(blob)));
    let Some(blob) = blob else {
        return Reply::new(
            404,
            br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"gone"}]}"#,
        );
    };
    let range = request.headers.get("range");
    match range.and_then(|r| {
        r.strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse::<usize>()
            .ok()
    }) {
        Some(from) => {
            let range = format!("bytes {from}-{}/{}", blob.len() - 1, blob.len());
            Reply::new(206, &blob[from..]).header("Content-Range", &range)
        }
        None => Reply::new(200, blob),
    }
}

fn image() -> TestImage {
    TestImage::new(vec![
        Tar::new().file("low", b"low").finish(),
        Tar::new().file("noise", &noise(300_000, 0)).finish(),
    ])
}

/// So that tests that wait for a registry to be given up are fast.
fn hasty() -> Patience {
    Patience {
        idle: Duration::from_millis(500),
        small_answer: Duration::from_secs(2),
        min_bytes_per_second: 20_000,
        retry_after_max: Duration::from_secs(1),
        tries: 3,
        back_off_min: Duration::from_millis(1),
        back_off_max: Duration::from_millis(5),
        ..Patience::default()
    }
}

struct Puller {
    _dir: tempfile::TempDir,
    store: ImageStore,
    options: PullOptions,
}

impl Puller {
    fn new(registries: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(&dir.path().join("images")).unwrap();
        let options = PullOptions {
            docker_config: Some(dir.path().join("none.json")),
            registries: RegistriesConfig {
                plain_http: registries.iter().map(|r| (*r).to_owned()).collect(),
                patience: hasty(),
                ..RegistriesConfig::default()
            },
            ..PullOptions::default()
        };
        Self {
            _dir: dir,
            store,
            options,
        }
    }

    async fn pull(&self, registry: &str) -> Result<Image, PullError> {
        let reference = format!("{registry}/team/app:1").parse().unwrap();
        self.store.pull(&reference, &self.options).await
    }

    /// No image is there, and no temporary file once the last thread has ended.
    async fn assert_nothing_visible(&self) {
        assert!(self.store.list().unwrap().is_empty());
        let tmp = self.store.dir().join("tmp");
        for _ in 0..600 {
            if std::fs::read_dir(&tmp).unwrap().count() == 0 {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("temporary files are left");
    }
}

#[tokio::test]
async fn an_image_is_pulled_with_progress_and_not_fetched_twice() {
    let test = image();
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&requests);
    let served = test.clone();
    let registry = serve(move |request| {
        seen.lock().unwrap().push(request.path.clone());
        honest(&served, request)
    })
    .await;
    let mut puller = Puller::new(&[&registry]);
    let events = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&events);
    puller.options.progress = Some(Arc::new(move |event| listener.lock().unwrap().push(event)));
    let pulled = puller.pull(&registry).await.unwrap();
    assert_eq!(pulled.digest, Digest::sha256(&test.manifest));
    assert_eq!(std::fs::read(pulled.layers[0].join("low")).unwrap(), b"low");
    let events = std::mem::take(&mut *events.lock().unwrap());
    let done = |e: &&Progress| matches!(e, Progress::Done { .. });
    assert_eq!(events.iter().filter(done).count(), 2);
    assert!(matches!(&events[0], Progress::Resolved { layers, .. } if !layers[0].present));
    requests.lock().unwrap().clear();
    puller.pull(&registry).await.unwrap();
    let fetched: Vec<_> = requests.lock().unwrap().clone();
    assert!(
        !fetched
            .iter()
            .any(|path| path.contains(&sha256(&test.blobs[1]))),
        "{fetched:?}"
    );
    assert_eq!(puller.store.verify().unwrap(), []);
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_stopped() {
    for can_resume in [true, false] {
        let test = image();
        let served = test.clone();
        let big = format!("blobs/{}", sha256(&test.blobs[1]));
        let breaks = AtomicUsize::new(0);
        let resumed = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&resumed);
        let registry = serve(move |request| {
            let mut reply = honest(&served, request);
            if !request.path.ends_with(&big) {
                return reply;
            }
            if reply.status == 206 {
                count.fetch_add(1, Ordering::SeqCst);
                if !can_resume {
                    reply = Reply::new(200, &served.blobs[1]);
                }
            }
            if breaks.fetch_add(1, Ordering::SeqCst) < 2 {
                reply.cut = Some(100_000);
            }
            reply
        })
        .await;
        let pulled = Puller::new(&[&registry]).pull(&registry).await.unwrap();
        assert_eq!(pulled.layers.len(), 2);
        assert_eq!(resumed.load(Ordering::SeqCst), 2);
    }
}

#[tokio::test]
async fn forged_content_is_refused_and_stays_invisible() {
    let test = image();
    let others = TestImage::new(vec![Tar::new().file("evil", b"evil").finish()]);
    let mut same_size = test.blobs[1].clone();
    let middle = same_size.len() / 2;
    same_size[middle] ^= 1;
    let wrong_manifest = [test.manifest.as_slice(), b" "].concat();
    for (what, path, body) in [
        (
            "a layer",
            format!("blobs/{}", sha256(&test.blobs[1])),
            same_size,
        ),
        (
            "a configuration",
            format!("blobs/{}", sha256(&test.config)),
            others.config.clone(),
        ),
        ("a manifest", "manifests/1".to_owned(), wrong_manifest),
    ] {
        let served = test.clone();
        let registry = serve(move |request| {
            let mut reply = honest(&served, request);
            if request.path.ends_with(&path) {
                reply.body = body.clone();
            }
            reply
        })
        .await;
        let puller = Puller::new(&[&registry]);
        let error = puller.pull(&registry).await.unwrap_err();
        assert!(
            matches!(&error, PullError::Registry(RegistryError::Mismatch { what: found, .. }) if *found == what),
            "{error}"
        );
        puller.assert_nothing_visible().await;
    }
}

#[tokio::test]
async fn a_layer_larger_than_its_manifest_says_is_cut_off() {
    let test = image();
    let served = test.clone();
    let registry = serve(move |request| {
        let mut reply = honest(&served, request);
        if request.path.ends_with(&sha256(&served.blobs[0])) {
            reply.body.resize(1 << 20, 0);
        }
        reply
    })
    .await;
    let puller = Puller::new(&[&registry]);
    let error = puller.pull(&registry).await.unwrap_err().to_string();
    assert!(error.contains("larger than"), "{error}");
    puller.assert_nothing_visible().await;
}

#[tokio::test]
async fn a_manifest_without_end_is_refused() {
    let registry = serve(|_| Reply::new(200, &vec![b' '; 5 << 20])).await;
    let error = Puller::new(&[&registry]).pull(&registry).await.unwrap_err();
    assert!(error.to_string().contains("larger than"), "{error}");
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let registry = serve(|request| match &request.path {
        path if path.contains("/secret/") => {
            Reply::new(401, b"{}").header("WWW-Authenticate", "Basic realm=\"x\"")
        }
        path if path.contains("/teapot/") => Reply::new(
            418,
            br#"{"errors":[{"code":"TEAPOT","message":"short and stout"}]}"#,
        ),
        _ => Reply::new(404, b"{}"),
    })
    .await;
    let puller = Puller::new(&[&registry]);
    for (name, part) in [
        ("secret/app:1", "without credentials"),
        (
            "teapot/app:1",
            "418 to the request for manifests/1: TEAPOT: short and stout",
        ),
        ("none/app:1", "has no image"),
    ] {
        let reference = format!("{registry}/{name}").parse().unwrap();
        let error = puller
            .store
            .pull(&reference, &puller.options)
            .await
            .unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert!(!error.is_transient());
    }
}

#[tokio::test]
async fn plain_http_is_never_spoken_unasked() {
    let registry = serve(|_| panic!("a request came by plain HTTP")).await;
    let error = Puller::new(&[]).pull(&registry).await.unwrap_err();
    // The other error is of a machine that trusts no certificate authority at all.
    let scheme = matches!(error, PullError::Registry(RegistryError::Connect { scheme, .. }) if scheme == "https");
    assert!(
        scheme || matches!(error, PullError::Registry(RegistryError::Client { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn a_registry_that_is_not_reached_says_why() {
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let puller = Puller::new(&[&nobody]);
    let error = puller.pull(&nobody).await.unwrap_err();
    let PullError::Registry(RegistryError::Connect { source, .. }) = &error else {
        panic!("{error}");
    };
    assert_eq!(source.kind(), ConnectKind::Refused, "{source}");
}

#[tokio::test]
async fn mirrors_are_asked_first_and_the_registry_when_they_fail() {
    let test = image();
    let served = test.clone();
    let mirror = serve(move |request| {
        assert!(
            request.path.ends_with("?ns=host.example"),
            "{}",
            request.path
        );
        honest(&served, request)
    })
    .await;
    let broken = serve(|_| Reply::new(404, b"")).await;
    let mut puller = Puller::new(&[&mirror, &broken]);
    let mirrors = vec![broken.clone(), mirror.clone()];
    puller
        .options
        .registries
        .mirrors
        .insert("host.example".to_owned(), mirrors);
    let pulled = puller.pull("host.example").await.unwrap();
    assert_eq!(pulled.references[0].registry(), "host.example");
    let served = test.clone();
    let registry = serve(move |request| honest(&served, request)).await;
    let mut puller = Puller::new(&[&registry, &broken]);
    puller
        .options
        .registries
        .mirrors
        .insert(registry.clone(), vec![broken]);
    puller.pull(&registry).await.unwrap();
}

#[tokio::test]
async fn a_digest_pins_the_image() {
    let test = image();
    let served = test.clone();
    let registry = serve(move |request| {
        let mut reply = honest(&served, request);
        if request.path.contains("/manifests/sha256:1111") {
            reply = Reply::new(200, &served.manifest);
        }
        reply
    })
    .await;
    let puller = Puller::new(&[&registry]);
    let right = format!("{registry}/team/app@{}", sha256(&test.manifest));
    let pulled = puller
        .store
        .pull(&right.parse().unwrap(), &puller.options)
        .await
        .unwrap();
    assert_eq!(pulled.references[0].to_string(), right);
    let wrong = format!("{registry}/team/app@sha256:{}", "1".repeat(64));
    let error = puller
        .store
        .pull(&wrong.parse().unwrap(), &puller.options)
        .await
        .unwrap_err();
    assert!(
        matches!(error, PullError::Registry(RegistryError::Mismatch { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn the_platform_is_chosen_from_an_index() {
    let test = image();
    let current = Platform::current();
    let mut mine = descriptor("application/vnd.oci.image.manifest.v1+json", &test.manifest);
    mine["platform"] = json!({"os": current.os, "architecture": current.architecture});
    let mut other = descriptor("application/vnd.oci.image.manifest.v1+json", b"other");
    other["platform"] = json!({"os": "linux", "architecture": "s390x"});
    let index = json!({"schemaVersion": 2, "manifests": [other, mine]}).to_string();
    let served = test.clone();
    let registry = serve(move |request| {
        if request.path.ends_with("manifests/1") {
            return Reply::new(200, index.as_bytes());
        }
        honest(&served, request)
    })
    .await;
    let mut puller = Puller::new(&[&registry]);
    let pulled = puller.pull(&registry).await.unwrap();
    assert_eq!(pulled.digest, Digest::sha256(&test.manifest));
    puller.options.platform = Some("linux/riscv64".parse().unwrap());
    assert!(puller.pull(&registry).await.is_err());
    // What was here under the name is still.
    let name: Reference = format!("{registry}/team/app:1").parse().unwrap();
    let kept = puller.store.resolve(&name).unwrap().unwrap();
    assert_eq!(kept.digest, pulled.digest);
}

#[tokio::test]
async fn a_platform_that_the_index_does_not_have_is_an_error_with_those_that_it_has() {
    let test = image();
    let entries = ["amd64", "arm64", "s390x"].map(|architecture| {
        let mut entry = descriptor(manifest::OCI_MANIFEST, &test.manifest);
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entry
    });
    let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let registry = serve(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        Reply::new(200, index.as_bytes())
    })
    .await;
    let mut puller = Puller::new(&[&registry]);
    puller.options.platform = Some("linux/riscv64".parse().unwrap());
    let error = puller.pull(&registry).await.unwrap_err();
    assert!(!error.is_transient());
    let told = error.to_string();
    assert_eq!(told, format!("cannot use the image {registry}/team/app:1"));
    assert_eq!(
        std::error::Error::source(&error).unwrap().to_string(),
        "there is no image for linux/riscv64; there are images for linux/amd64, linux/arm64, linux/s390x"
    );
    // Only the index was asked for.
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    puller.assert_nothing_visible().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pulls_of_one_image_fetch_each_layer_once() {
    let test = image();
    let served = test.clone();
    let fetched = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&fetched);
    let registry = serve(move |request| {
        if request.path.ends_with(&sha256(&served.blobs[1])) {
            count.fetch_add(1, Ordering::SeqCst);
        }
        honest(&served, request)
    })
    .await;
    let puller = Puller::new(&[&registry]);
    let pulls = (0..6).map(|_| puller.pull(&registry));
    let pulled = futures_util::future::try_join_all(pulls).await.unwrap();
    assert_eq!(pulled.len(), 6);
    assert_eq!(fetched.load(Ordering::SeqCst), 1);
    assert_eq!(puller.store.verify().unwrap(), []);
}

#[tokio::test]
async fn a_registry_that_does_not_listen_is_a_transient_error() {
    let registry = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let error = Puller::new(&[&registry]).pull(&registry).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert!(error.to_string().contains("cannot reach"), "{error}");
}

#[tokio::test]
async fn a_pull_can_be_spawned() {
    let puller = Puller::new(&[]);
    let (store, options) = (puller.store.clone(), puller.options.clone());
    let reference: Reference = "127.0.0.1:1/team/app:1".parse().unwrap();
    let task = tokio::spawn(async move { store.pull(&reference, &options).await });
    assert!(task.await.unwrap().is_err());
}

mod credentials;
mod hosts;
mod lying;
mod missing;
mod resume;
