//! Pushes to a registry that misbehaves. The real registry is tried in `tests/registry.rs`.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use super::*;
use crate::manifest;
use crate::registry::Patience;
use crate::registry::test_server::{Reply, Request as Asked, serve};
use crate::test_archive::{self, Tar, TestImage, descriptor, noise, sha256};
use crate::{LoadOptions, PullOptions};

/// A registry in memory, with the rules of the specification that matter here.
#[derive(Default)]
pub(super) struct Shelf {
    pub(super) blobs: HashMap<String, Vec<u8>>,
    pub(super) uploads: HashMap<String, Vec<u8>>,
    pub(super) manifests: HashMap<String, (String, Vec<u8>)>,
    pub(super) log: Vec<String>,
    /// As many PATCH requests are broken off after half of their bytes.
    pub(super) breaks: usize,
    /// Uploads are forgotten when one breaks.
    pub(super) forgets: bool,
    /// As many uploads are refused for now.
    pub(super) busy: usize,
    /// What refers to something is listed by the registry itself.
    pub(super) has_referrers: bool,
}

impl Shelf {
    fn answer(&mut self, asked: &Asked) -> Reply {
        let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
        let query: HashMap<_, _> = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .collect();
        let rest = path.strip_prefix("/v2/team/app/").unwrap_or_default();
        self.log.push(format!("{} {rest}", asked.method));
        if let Some(name) = rest.strip_prefix("manifests/") {
            return self.manifest(asked, name);
        }
        if let Some(id) = rest.strip_prefix("blobs/uploads/") {
            return self.upload(asked, id, &query);
        }
        let digest = rest.strip_prefix("blobs/").unwrap_or_default();
        match self.blobs.get(digest) {
            Some(blob) => Reply::new(200, blob),
            None => Reply::new(404, b""),
        }
    }

    fn manifest(&mut self, asked: &Asked, name: &str) -> Reply {
        if asked.method == "PUT" {
            let media_type = asked.headers["content-type"].clone();
            let content = (media_type, asked.body.clone());
            self.manifests.insert(sha256(&asked.body), content.clone());
            self.manifests.insert(name.to_owned(), content);
            let reply = Reply::new(201, b"").header("Docker-Content-Digest", &sha256(&asked.body));
            let document: serde_json::Value = serde_json::from_slice(&asked.body).unwrap();
            return match document["subject"]["digest"].as_str() {
                Some(subject) if self.has_referrers => reply.header("OCI-Subject", subject),
                _ => reply,
            };
        }
        match self.manifests.get(name) {
            Some((media_type, json)) => Reply::new(200, json).header("Content-Type", media_type),
            None => Reply::new(404, b""),
        }
    }

    fn upload(&mut self, asked: &Asked, id: &str, query: &HashMap<&str, &str>) -> Reply {
        if asked.method == "POST" {
            if self.busy > 0 {
                self.busy -= 1;
                return Reply::new(503, b"").header("Retry-After", "0");
            }
            let id = format!("u{}", self.uploads.len() + self.log.len());
            self.uploads.insert(id.clone(), Vec::new());
            return accepted(202, &id, 0);
        }
        let Some(upload) = self.uploads.get_mut(id) else {
            return Reply::new(404, b"");
        };
        match asked.method.as_str() {
            "GET" => accepted(204, id, upload.len()),
            "PATCH" => {
                let start = asked.headers.get("content-range");
                let start = start.map_or(0, |r| r.split('-').next().unwrap().parse().unwrap());
                assert_eq!(start, upload.len(), "a part that does not fit");
                if self.breaks > 0 {
                    self.breaks -= 1;
                    upload.extend(&asked.body[..asked.body.len() / 2]);
                    if self.forgets {
                        self.uploads.remove(id);
                    }
                    return Reply::new(503, b"");
                }
                upload.extend(&asked.body);
                accepted(202, id, upload.len())
            }
            _ => {
                upload.extend(&asked.body);
                let digest = query["digest"].replace("%3A", ":");
                if sha256(upload) != digest {
                    return Reply::new(400, br#"{"errors":[{"code":"DIGEST_INVALID"}]}"#);
                }
                let blob = upload.clone();
                self.uploads.remove(id);
                self.blobs.insert(digest, blob);
                Reply::new(201, b"")
            }
        }
    }
}

/// Where an upload goes on, relative to the host.
fn accepted(status: u16, id: &str, bytes: usize) -> Reply {
    Reply::new(status, b"")
        .header(
            "Location",
            &format!("/v2/team/app/blobs/uploads/{id}?state=x"),
        )
        .header("Range", &format!("0-{}", bytes.saturating_sub(1)))
}

pub(super) async fn start(shelf: Shelf) -> (String, Arc<Mutex<Shelf>>) {
    let shelf = Arc::new(Mutex::new(shelf));
    let own = Arc::clone(&shelf);
    let registry = serve(move |asked| own.lock().unwrap().answer(asked)).await;
    (registry, shelf)
}

pub(super) fn image() -> TestImage {
    TestImage::new(vec![
        Tar::new().file("low", b"low").finish(),
        Tar::new().file("noise", &noise(3 << 20, 0)).finish(),
    ])
}

pub(super) struct Pusher {
    pub(super) dir: tempfile::TempDir,
    pub(super) store: ImageStore,
    options: PushOptions,
    events: Arc<Mutex<Vec<PushProgress>>>,
}

impl Pusher {
    pub(super) fn new(registry: &str, test: &TestImage) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = dir.path().join("layout");
        test.write_layout(&layout, "local.example/app:1");
        let store = ImageStore::open(&dir.path().join("images")).unwrap();
        store.load(&layout, &LoadOptions::default()).unwrap();
        let events = Arc::new(Mutex::new(Vec::new()));
        let listener = Arc::clone(&events);
        let patience = Patience {
            idle: Duration::from_millis(500),
            small_answer: Duration::from_secs(2),
            tries: 3,
            back_off_min: Duration::from_millis(1),
            back_off_max: Duration::from_millis(5),
            ..Patience::default()
        };
        let options = PushOptions {
            docker_config: Some(dir.path().join("none.json")),
            registries: RegistriesConfig {
                plain_http: [registry.to_owned()].into(),
                patience,
                ..RegistriesConfig::default()
            },
            progress: Some(Arc::new(move |event| listener.lock().unwrap().push(event))),
            ..PushOptions::default()
        };
        Self {
            dir,
            store,
            options,
            events,
        }
    }

    pub(super) async fn push(&self, target: &str) -> Result<Pushed, PushError> {
        let source = "local.example/app:1".parse().unwrap();
        let target = target.parse().unwrap();
        self.store.push(&source, &target, &self.options).await
    }

    fn arrivals(&self) -> Vec<Arrival> {
        let events = std::mem::take(&mut *self.events.lock().unwrap());
        let arrivals = events.into_iter().filter_map(|event| match event {
            PushProgress::Done { how, .. } => Some(how),
            PushProgress::Planned { .. }
            | PushProgress::Uploading { .. }
            | PushProgress::Retrying(_) => None,
        });
        arrivals.collect()
    }
}

#[tokio::test]
async fn an_image_is_pushed_and_pulled_again_bit_for_bit() {
    let test = image();
    let (registry, shelf) = start(Shelf::default()).await;
    let pusher = Pusher::new(&registry, &test);
    let target = format!("{registry}/team/app:new");
    let pushed = pusher.push(&target).await.unwrap();
    assert_eq!(
        pushed.reference.digest(),
        Some(&Digest::sha256(&test.manifest))
    );
    assert_eq!((pushed.platforms, pushed.left_out), (1, 0));
    assert_eq!(pusher.arrivals(), [Arrival::Uploaded; 3]);
    let options = PullOptions {
        registries: pusher.options.registries.clone(),
        docker_config: pusher.options.docker_config.clone(),
        ..PullOptions::default()
    };
    let other = ImageStore::open(&pusher.dir.path().join("other")).unwrap();
    let pulled = other
        .pull(&target.parse().unwrap(), &options)
        .await
        .unwrap();
    assert_eq!(pulled.digest, Digest::sha256(&test.manifest));
    // The manifest came last, and a second push sends nothing but the manifest.
    let log = std::mem::take(&mut shelf.lock().unwrap().log);
    let manifest = log
        .iter()
        .position(|line| line == "PUT manifests/new")
        .unwrap();
    let last_blob = log
        .iter()
        .rposition(|line| line.starts_with("PUT blobs/"))
        .unwrap();
    assert!(last_blob < manifest, "{log:?}");
    pusher.push(&target).await.unwrap();
    assert_eq!(pusher.arrivals(), [Arrival::Present; 3]);
    let log = std::mem::take(&mut shelf.lock().unwrap().log);
    assert!(!log.iter().any(|line| line.starts_with("POST")), "{log:?}");
}

#[tokio::test]
async fn a_push_that_breaks_goes_on_where_it_broke() {
    for forgets in [false, true] {
        let test = image();
        let (registry, shelf) = start(Shelf {
            breaks: 2,
            busy: 2,
            forgets,
            ..Shelf::default()
        })
        .await;
        let pusher = Pusher::new(&registry, &test);
        pusher
            .push(&format!("{registry}/team/app:1"))
            .await
            .unwrap();
        let shelf = shelf.lock().unwrap();
        assert!(shelf.blobs[&sha256(&test.blobs[1])] == test.blobs[1]);
        assert_eq!(shelf.breaks, 0);
        let events = pusher.events.lock().unwrap();
        let retries = events.iter().filter(|event| match event {
            PushProgress::Retrying(retry) => retry.reason.contains("answers 503"),
            _ => false,
        });
        assert_eq!(retries.count(), 4);
    }
}

#[tokio::test]
async fn a_registry_that_never_takes_a_blob_is_given_up() {
    let test = image();
    let (registry, shelf) = start(Shelf {
        breaks: usize::MAX,
        forgets: true,
        ..Shelf::default()
    })
    .await;
    let pusher = Pusher::new(&registry, &test);
    let error = pusher
        .push(&format!("{registry}/team/app:1"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("answers 503"), "{error}");
    assert!(error.is_transient());
    assert!(shelf.lock().unwrap().manifests.is_empty());
}

/// A registry whose tokens end while a layer is sent, so many times.
async fn forgetful(times: usize) -> String {
    let shelf = Mutex::new(Shelf::default());
    let refused = std::sync::atomic::AtomicUsize::new(0);
    serve(move |asked| {
        let count = std::sync::atomic::Ordering::SeqCst;
        if asked.path.starts_with("/token") {
            let number = refused.load(count);
            return Reply::new(200, format!(r#"{{"token": "t{number}"}}"#).as_bytes());
        }
        if asked.method == "PATCH" && refused.load(count) < times {
            refused.fetch_add(1, count);
            let realm = format!("http://{}/token", asked.headers["host"]);
            let challenge = format!(r#"Bearer realm="{realm}",service="here""#);
            return Reply::new(401, b"").header("WWW-Authenticate", &challenge);
        }
        shelf.lock().unwrap().answer(asked)
    })
    .await
}

#[tokio::test]
async fn a_token_that_expires_is_renewed_and_one_that_always_does_is_told() {
    let test = image();
    let registry = forgetful(2).await;
    let pusher = Pusher::new(&registry, &test);
    let target = format!("{registry}/team/app:1");
    pusher.push(&target).await.unwrap();

    let registry = forgetful(usize::MAX).await;
    let pusher = Pusher::new(&registry, &test);
    let target = format!("{registry}/team/app:1");
    let error = pusher.push(&target).await.unwrap_err();
    let expired = matches!(
        error,
        PushError::Registry(RegistryError::TokenExpired { .. })
    );
    assert!(expired && error.is_transient(), "{error}");
    assert!(!error.to_string().contains("408"), "{error}");
}

/// A captive portal answers everything with 200: nothing of that may be taken for an image that was pushed.
#[tokio::test]
async fn a_portal_takes_no_image() {
    let test = image();
    let page = |_: &Asked| Reply::new(200, b"<html>").header("Content-Type", "text/html");
    let registry = serve(page).await;
    let pusher = Pusher::new(&registry, &test);
    let target = format!("{registry}/team/app:1");
    let error = pusher.push(&target).await.unwrap_err();
    let is_page = matches!(error, PushError::Registry(RegistryError::WebPage { .. }));
    assert!(is_page, "{error}");
}

#[tokio::test]
async fn a_registry_that_stops_reading_is_given_up() {
    let test = image();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let registry = listener.local_addr().unwrap().to_string();
    let pusher = Pusher::new(&registry, &test);
    // Accepted by the kernel, never answered.
    let error = pusher
        .push(&format!("{registry}/team/app:1"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("too slow"), "{error}");
}

/// The files of an image that came in another compression are not fetched again by a pull: its blobs are not here.
#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_here_only_unpacked_is_fetched_from_where_the_image_came_from() {
    let test = image().uncompressed();
    let mut origin = Shelf::default();
    for blob in test.blobs.iter().chain([&test.config]) {
        origin.blobs.insert(sha256(blob), blob.clone());
    }
    let manifest = (manifest::OCI_MANIFEST.to_owned(), test.manifest.clone());
    for name in [sha256(&test.manifest), "1".to_owned()] {
        origin.manifests.insert(name, manifest.clone());
    }
    let (from, origin) = start(origin).await;
    let (to, target) = start(Shelf::default()).await;
    let mut pusher = Pusher::new(&from, &image());
    pusher.options.registries.plain_http.insert(to.clone());
    let options = PullOptions {
        registries: pusher.options.registries.clone(),
        docker_config: pusher.options.docker_config.clone(),
        ..PullOptions::default()
    };
    let source: Reference = format!("{from}/team/app:1").parse().unwrap();
    pusher.store.pull(&source, &options).await.unwrap();
    let name = std::slice::from_ref(&source);
    assert_eq!(pusher.store.missing_blobs(name).unwrap().len(), 2);

    // Where the image came from no longer has one of them.
    let (gone, lost) = (sha256(&test.blobs[1]), test.blobs[1].clone());
    origin.lock().unwrap().blobs.remove(&gone);
    let destination = format!("{to}/team/app:1").parse().unwrap();
    let push = || pusher.store.push(&source, &destination, &pusher.options);
    let error = push().await.unwrap_err();
    assert!(
        matches!(&error, PushError::NotKept { layer, .. } if layer.to_string() == gone),
        "{error}"
    );
    assert!(error.to_string().contains("images.keepBlobs"), "{error}");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("404"), "{cause}");
    assert!(!target.lock().unwrap().manifests.contains_key("1"));

    origin.lock().unwrap().blobs.insert(gone, lost);
    let pushed = push().await.unwrap();
    assert_eq!(
        pushed.reference.digest(),
        Some(&Digest::sha256(&test.manifest))
    );
    for blob in &test.blobs {
        assert!(target.lock().unwrap().blobs.contains_key(&sha256(blob)));
    }
    assert_eq!(pusher.store.missing_blobs(name).unwrap(), []);
    assert_eq!(pusher.store.verify().unwrap(), []);
}

#[tokio::test]
async fn targets_that_cannot_be_written_are_refused_before_anything_is_sent() {
    let test = image();
    let (registry, shelf) = start(Shelf::default()).await;
    let pusher = Pusher::new(&registry, &test);
    let other = format!("{registry}/team/app@sha256:{}", "1".repeat(64));
    let error = pusher.push(&other).await.unwrap_err();
    assert!(matches!(error, PushError::OtherDigest { .. }), "{error}");
    let source = "local.example/none:1".parse().unwrap();
    let target = format!("{registry}/team/app:1").parse().unwrap();
    let error = pusher.store.push(&source, &target, &pusher.options).await;
    assert!(matches!(error, Err(PushError::NotHere(_))));
    assert!(shelf.lock().unwrap().log.is_empty());
    // Its own digest is as good as a tag.
    let own = format!("{registry}/team/app@{}", sha256(&test.manifest));
    pusher.push(&own).await.unwrap();
}

/// What Buildkit puts beside the images of an index: manifest, configuration, statement.
fn attestation() -> [Vec<u8>; 3] {
    let statement = b"{\"_type\": \"https://in-toto.io/Statement/v0.1\"}".to_vec();
    let config = b"{\"architecture\": \"unknown\", \"os\": \"unknown\"}".to_vec();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": manifest::OCI_MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.in-toto+json", &statement)],
    });
    [manifest.to_string().into_bytes(), config, statement]
}

/// Of an index all must be here for it to be sent: otherwise a registry refuses it, or it leads nowhere.
#[tokio::test]
async fn an_index_of_which_a_blob_is_not_here_is_left_out_and_the_manifest_is_pushed() {
    let (mine, foreign) = (image(), Tar::new().file("foreign", b"x").finish());
    let foreign = TestImage::new(vec![foreign]).of_architecture("s390x");
    let attestation = attestation();
    let current = crate::Platform::current().architecture;
    let entries = [
        (&mine.manifest, "linux", current.as_str()),
        (&foreign.manifest, "linux", "s390x"),
        (&attestation[0], "unknown", "unknown"),
    ];
    let entries = entries.map(|(document, os, architecture)| {
        let mut entry = descriptor(manifest::OCI_MANIFEST, document);
        entry["platform"] = serde_json::json!({"os": os, "architecture": architecture});
        entry
    });
    let index = serde_json::json!({"schemaVersion": 2, "manifests": entries}).to_string();
    let (registry, shelf) = start(Shelf::default()).await;
    let pusher = Pusher::new(&registry, &mine);
    let layout = pusher.dir.path().join("both");
    let blobs = mine.all_blobs().chain(foreign.all_blobs());
    blobs.for_each(|blob| test_archive::write_blob(&layout, blob));
    test_archive::write_blob(&layout, index.as_bytes());
    let mut entry = descriptor(manifest::OCI_INDEX, index.as_bytes());
    entry["annotations"] =
        serde_json::json!({"org.opencontainers.image.ref.name": "local.example/app:1"});
    test_archive::write_index(&layout, vec![entry]);
    let load = |options: LoadOptions| pusher.store.load(&layout, &options).unwrap();
    let target = format!("{registry}/team/app:1");
    let tagged = || shelf.lock().unwrap().manifests["1"].1.clone();

    // Of the other platform nothing is here.
    load(LoadOptions::default());
    let pushed = pusher.push(&target).await.unwrap();
    let digest = Digest::sha256(&mine.manifest);
    assert_eq!(pushed.reference.digest(), Some(&digest));
    assert_eq!((pushed.platforms, pushed.left_out), (1, 1));
    assert_eq!(tagged(), mine.manifest);

    // Both images are here: an index of these. What else the index names is no platform that is left out.
    load(LoadOptions {
        reference: Some("local.example/foreign:1".parse().unwrap()),
        platform: Some("linux/s390x".parse().unwrap()),
        ..LoadOptions::default()
    });
    let pushed = pusher.push(&target).await.unwrap();
    assert_eq!((pushed.platforms, pushed.left_out), (2, 0));
    let reduced: serde_json::Value = serde_json::from_slice(&tagged()).unwrap();
    assert_eq!(reduced["manifests"], serde_json::json!(entries[..2]));

    // All of it is here: the index itself, after all that it names.
    let session = Session::begin(&pusher.store).unwrap();
    for blob in &attestation {
        session.put_blob(&Digest::sha256(blob), blob).unwrap();
    }
    let pushed = pusher.push(&target).await.unwrap();
    assert_eq!((pushed.platforms, pushed.left_out), (2, 0));
    assert_eq!(tagged(), index.as_bytes());
    let shelves = |digest: String| {
        let shelf = shelf.lock().unwrap();
        shelf.blobs.contains_key(&digest) || shelf.manifests.contains_key(&digest)
    };
    assert!(attestation.iter().all(|blob| shelves(sha256(blob))));

    // Then one layer of the other platform is gone.
    let lost = Digest::sha256(&foreign.blobs[0]);
    pusher.store.remove_blob(&lost).unwrap();
    let pushed = pusher.push(&target).await.unwrap();
    assert_eq!(pushed.reference.digest(), Some(&digest));
    assert_eq!((pushed.platforms, pushed.left_out), (1, 1));
    assert_eq!(tagged(), mine.manifest);
}
