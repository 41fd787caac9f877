//! Hosts that a `hosts.toml` names.

use super::*;

/// A directory that says this of all registries.
fn directory(text: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("_default")).unwrap();
    std::fs::write(dir.path().join("_default/hosts.toml"), text).unwrap();
    dir
}

fn puller(hosts: &tempfile::TempDir) -> Puller {
    let mut puller = Puller::new(&[]);
    puller.options.registries.hosts_directory = Some(hosts.path().to_owned());
    puller
}

type Log = Arc<Mutex<Vec<(String, String)>>>;

/// An honest registry that notes what is asked, and the header `x-own` of it.
async fn noting(test: &TestImage) -> (String, Log) {
    let log = Log::default();
    let (own, served) = (Arc::clone(&log), test.clone());
    let registry = serve(move |request| {
        let header = request.headers.get("x-own").cloned().unwrap_or_default();
        let line = format!("{} {}", request.method, request.path);
        own.lock().unwrap().push((line, header));
        let path = request.path.replace("/v2/cache/", "/v2/");
        honest(
            &served,
            &Request {
                method: request.method.clone(),
                path,
                headers: request.headers.clone(),
                body: Vec::new(),
            },
        )
    })
    .await;
    (registry, log)
}

#[tokio::test]
async fn who_may_only_resolve_is_not_asked_for_content_and_the_other_way_round() {
    let test = image();
    let (resolver, resolver_log) = noting(&test).await;
    let (puller_host, puller_log) = noting(&test).await;
    let hosts = directory(&format!(
        "server = \"http://127.0.0.1:1\"\n[host.\"http://{puller_host}\"]\ncapabilities = [\"pull\"]\n\
         [host.\"http://{resolver}\"]\ncapabilities = [\"resolve\"]\n"
    ));
    puller(&hosts).pull("reg.example").await.unwrap();
    let resolver_log = resolver_log.lock().unwrap();
    let asked: Vec<_> = resolver_log.iter().map(|(line, _)| line.as_str()).collect();
    assert_eq!(asked, ["HEAD /v2/team/app/manifests/1?ns=reg.example"]);
    let puller_log = puller_log.lock().unwrap();
    assert!(puller_log.len() >= 4);
    let by_tag = |(line, _): &&(String, String)| line.contains("manifests/1?");
    assert_eq!(
        puller_log.iter().filter(by_tag).count(),
        0,
        "{puller_log:?}"
    );
}

#[tokio::test]
async fn headers_and_paths_are_for_their_host_alone() {
    let test = image();
    let (storage, storage_log) = noting(&test).await;
    let (served, to) = (test.clone(), storage.clone());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let mirror = serve(move |request| {
        log.lock()
            .unwrap()
            .push(request.headers.get("x-own").cloned());
        let path = request.path.replace("/prefix/", "/v2/");
        assert_ne!(path, request.path);
        if path.contains("/blobs/") {
            return Reply::new(307, b"").header("Location", &format!("http://{to}{path}"));
        }
        honest(
            &served,
            &Request {
                method: request.method.clone(),
                path,
                headers: HashMap::new(),
                body: Vec::new(),
            },
        )
    })
    .await;
    let hosts = directory(&format!(
        "[host.\"http://{mirror}/prefix\"]\noverride_path = true\n\
         [host.\"http://{mirror}/prefix\".header]\nx-own = \"secret\"\n"
    ));
    puller(&hosts).pull("reg.example").await.unwrap();
    let seen = seen.lock().unwrap();
    assert!(
        seen.iter()
            .all(|header| header.as_deref() == Some("secret"))
    );
    let storage_log = storage_log.lock().unwrap();
    assert!(storage_log.len() >= 3);
    assert!(
        storage_log.iter().all(|(_, header)| header.is_empty()),
        "{storage_log:?}"
    );
}

#[tokio::test]
async fn nobody_who_may_be_asked_is_an_error_with_the_file() {
    let hosts = directory("capabilities = [\"push\"]\n");
    let error = puller(&hosts)
        .pull("reg.example")
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("may be asked to resolve"), "{error}");
    assert!(error.contains("_default/hosts.toml"), "{error}");
}

#[tokio::test]
async fn what_the_configuration_says_of_a_registry_wins() {
    let test = image();
    let served = test.clone();
    let registry = serve(move |request| honest(&served, request)).await;
    let hosts = directory("server = \"http://127.0.0.1:1\"\n");
    let mut puller = puller(&hosts);
    puller
        .options
        .registries
        .plain_http
        .insert(registry.clone());
    puller.pull(&registry).await.unwrap();
    let broken = directory("servre = \"x\"\n");
    puller.options.registries.hosts_directory = Some(broken.path().to_owned());
    puller.pull(&registry).await.unwrap();
    let error = puller.pull("reg.example").await.unwrap_err();
    let PullError::Registry(RegistryError::Hosts { source, .. }) = &error else {
        panic!("{error}");
    };
    assert!(source.to_string().contains("line 1, servre"), "{source}");
}

#[tokio::test]
async fn a_tag_that_is_here_is_only_asked_about() {
    let test = image();
    let (registry, log) = noting(&test).await;
    let puller = Puller::new(&[&registry]);
    puller.pull(&registry).await.unwrap();
    log.lock().unwrap().clear();
    puller.pull(&registry).await.unwrap();
    let log = log.lock().unwrap();
    let asked: Vec<_> = log.iter().map(|(line, _)| line.as_str()).collect();
    assert_eq!(asked, ["HEAD /v2/team/app/manifests/1"]);
}

#[tokio::test]
async fn a_registry_that_does_not_know_head_is_asked_for_the_manifest() {
    let test = image();
    let served = test.clone();
    let registry = serve(move |request| match request.method.as_str() {
        "HEAD" => Reply::new(405, b""),
        _ => honest(&served, request),
    })
    .await;
    let puller = Puller::new(&[&registry]);
    puller.pull(&registry).await.unwrap();
    puller.pull(&registry).await.unwrap();
}

#[tokio::test]
async fn two_different_images_with_a_common_layer_fetch_it_once() {
    let common = Tar::new().file("common", &[7; 200_000]).finish();
    let tests = [b"one", b"two"]
        .map(|own| TestImage::new(vec![common.clone(), Tar::new().file("own", own).finish()]));
    let served = tests.clone();
    let fetched = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&fetched);
    let shared = format!("blobs/{}", sha256(&tests[0].blobs[0]));
    let registry = serve(move |request| {
        count.fetch_add(
            usize::from(request.path.contains(&shared)),
            Ordering::SeqCst,
        );
        let is_second = request.path.contains("/team/two/");
        let path = request.path.replace("/team/two/", "/team/app/");
        let request = Request {
            method: request.method.clone(),
            path,
            headers: request.headers.clone(),
            body: Vec::new(),
        };
        honest(&served[usize::from(is_second)], &request)
    })
    .await;
    let puller = Puller::new(&[&registry]);
    let two = format!("{registry}/team/two:1").parse().unwrap();
    let (one, two) = tokio::join!(
        puller.pull(&registry),
        puller.store.pull(&two, &puller.options)
    );
    assert_eq!(one.unwrap().layers[0], two.unwrap().layers[0]);
    assert_eq!(fetched.load(Ordering::SeqCst), 1);
    assert_eq!(puller.store.verify().unwrap(), []);
}
