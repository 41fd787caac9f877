//! Registries that lie: each costs bounded time, memory and disk, and gives an error that says what is wrong.

use super::*;

/// What a registry answers that keeps to the protocol but for one kind of request.
pub(super) async fn lying(
    test: &TestImage,
    path: &str,
    lie: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static,
) -> String {
    let (served, path) = (test.clone(), path.to_owned());
    serve(move |request| {
        let reply = honest(&served, request);
        match request.path.contains(&path) {
            true => lie(request, reply),
            false => reply,
        }
    })
    .await
}

/// The whole of the error of a pull that must fail, and leave nothing behind.
async fn refusal(registry: &str) -> String {
    let puller = Puller::new(&[registry]);
    let error = puller.pull(registry).await.unwrap_err();
    puller.assert_nothing_visible().await;
    let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

pub(super) fn noise_blob(test: &TestImage) -> String {
    format!("blobs/{}", sha256(&test.blobs[1]))
}

#[tokio::test]
async fn a_layer_of_another_length_is_refused_before_it_is_read() {
    let test = image();
    for (bytes, part) in [(10, "has 10 bytes instead of"), (1 << 20, "larger than")] {
        let registry = lying(&test, &noise_blob(&test), move |_, mut reply| {
            reply.body.resize(bytes, 0);
            reply
        })
        .await;
        let error = refusal(&registry).await;
        assert!(error.contains(part), "{error}");
    }
}

/// Without a length before it, the end of the answer is all that tells.
#[tokio::test]
async fn a_layer_that_ends_too_soon_is_told_with_what_came_of_it() {
    let test = image();
    let registry = lying(&test, &noise_blob(&test), |request, mut reply| {
        let whole = reply.body.len();
        match request.headers.contains_key("range") {
            true => reply.body.clear(),
            false => reply.body.truncate(100_000),
        }
        assert!(reply.body.len() < whole);
        reply.chunked = true;
        reply
    })
    .await;
    let error = refusal(&registry).await;
    let says = format!(
        "sent 100000 of the {} bytes of layer {}, and ended",
        test.blobs[1].len(),
        sha256(&test.blobs[1])
    );
    assert!(error.contains(&says), "{error}");
}

/// What a captive portal answers to everything.
fn portal() -> Reply {
    let page = b"<!DOCTYPE html><html><body>Please log in</body></html>";
    Reply::new(200, page).header("Content-Type", "text/html; charset=utf-8")
}

#[tokio::test]
async fn a_web_page_in_place_of_an_answer_is_told_as_that() {
    let test = image();
    let places = [
        "/",
        "manifests/1",
        &sha256(&test.config),
        &noise_blob(&test),
    ];
    for place in places {
        let registry = lying(&test, place, |_, _| portal()).await;
        let error = refusal(&registry).await;
        assert!(
            error.contains("a web page of 127.0.0.1 comes (text/html)"),
            "{place}: {error}"
        );
        assert!(!error.contains("malformed"), "{place}: {error}");
        assert!(error.contains("portal or proxy"), "{place}: {error}");
    }
    // The portal stands where tokens come from.
    let registry = serve(move |request| {
        let realm = format!("http://{}/token", request.headers["host"]);
        let challenge = format!(r#"Bearer realm="{realm}",service="here""#);
        match request.path.starts_with("/token") {
            true => portal(),
            false => Reply::new(401, b"").header("WWW-Authenticate", &challenge),
        }
    })
    .await;
    let error = refusal(&registry).await;
    assert!(
        error.contains("is asked for a token, and a web page"),
        "{error}"
    );
    // An image whose name is here already is asked for by HEAD first.
    let open = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let (is_open, served) = (Arc::clone(&open), test.clone());
    let registry = serve(move |request| match is_open.load(Ordering::SeqCst) {
        true => honest(&served, request),
        false => portal(),
    })
    .await;
    let puller = Puller::new(&[&registry]);
    puller.pull(&registry).await.unwrap();
    open.store(false, Ordering::SeqCst);
    let error = puller.pull(&registry).await.unwrap_err().to_string();
    assert!(error.contains("a web page of"), "{error}");
}

/// Registries of static files say odd things of what they send.
#[tokio::test]
async fn json_that_says_that_it_is_a_web_page_is_taken_as_json() {
    let test = image();
    let registry = lying(&test, "/", |_, mut reply| {
        reply.headers = vec![("Content-Type".to_owned(), "text/html".to_owned())];
        reply
    })
    .await;
    let puller = Puller::new(&[&registry]);
    puller.pull(&registry).await.unwrap();
}

#[tokio::test]
async fn a_layer_without_end_is_cut_off_at_its_size() {
    let test = image();
    let registry = lying(&test, &noise_blob(&test), |_, mut reply| {
        reply.body = vec![0; 1 << 16];
        reply.endless()
    })
    .await;
    let error = refusal(&registry).await;
    assert!(error.contains("larger than"), "{error}");
}

#[tokio::test]
async fn a_layer_in_chunks_without_a_length_is_pulled() {
    let test = image();
    let registry = lying(&test, "/v2/", |_, mut reply| {
        reply.chunked = true;
        reply.paced(100_000, Duration::ZERO)
    })
    .await;
    Puller::new(&[&registry]).pull(&registry).await.unwrap();
}

#[tokio::test]
async fn a_slow_loris_is_given_up() {
    let test = image();
    // Always a byte before the wait for one ends.
    let registry = lying(&test, &noise_blob(&test), |_, reply| {
        reply.paced(1, Duration::from_millis(50))
    })
    .await;
    let error = refusal(&registry).await;
    assert!(error.contains("less than 20000 bytes a second"), "{error}");
}

/// Who waits for a registry that is asked again is told why, and for how long.
#[tokio::test]
async fn a_registry_that_is_asked_again_is_told_of() {
    let test = image();
    let registry = lying(&test, "/", |_, _| Reply::new(503, b"")).await;
    let mut puller = Puller::new(&[&registry]);
    let events = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&events);
    puller.options.progress = Some(Arc::new(move |event| listener.lock().unwrap().push(event)));
    puller.pull(&registry).await.unwrap_err();
    let events = std::mem::take(&mut *events.lock().unwrap());
    let tries: Vec<_> = events
        .iter()
        .map(|event| match event {
            Progress::Retrying(retry) => {
                assert!(retry.reason.contains("answers 503"), "{retry:?}");
                assert!(!retry.wait.is_zero(), "{retry:?}");
                (retry.attempt, retry.attempts)
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(tries, [(2, 3), (3, 3)]);
}

#[tokio::test]
async fn a_registry_that_falls_silent_is_given_up() {
    let test = image();
    for path in [noise_blob(&test), "manifests/1".to_owned()] {
        let registry = lying(&test, &path, |_, reply| {
            reply.paced(1 << 20, Duration::from_secs(3600))
        })
        .await;
        let error = refusal(&registry).await;
        assert!(error.contains("too slow: nothing of"), "{error}");
    }
}

#[tokio::test]
async fn a_manifest_that_drips_is_given_up() {
    let test = image();
    let registry = lying(&test, "manifests/1", |_, reply| {
        reply.paced(1, Duration::from_millis(100))
    })
    .await;
    let error = refusal(&registry).await;
    assert!(error.contains("too slow"), "{error}");
}

#[tokio::test]
async fn a_storm_of_500_is_given_up_and_a_short_one_is_sat_out() {
    let test = image();
    let registry = lying(&test, "/blobs/", |_, _| Reply::new(500, b"")).await;
    let error = refusal(&registry).await;
    assert!(error.contains("answers 500"), "{error}");
    let failures = AtomicUsize::new(0);
    let registry = lying(&test, &noise_blob(&test), move |_, reply| {
        match failures.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => Reply::new(503, b""),
            _ => reply,
        }
    })
    .await;
    Puller::new(&[&registry]).pull(&registry).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_always_breaks_after_a_little_is_given_up() {
    let test = image();
    let registry = lying(&test, &noise_blob(&test), |_, mut reply| {
        reply.cut = Some(100);
        reply
    })
    .await;
    let error = refusal(&registry).await;
    assert!(error.contains("broke off: layer sha256:"), "{error}");
}

#[tokio::test]
async fn retry_after_is_obeyed_and_a_long_one_is_reported() {
    let test = image();
    for header in ["1", "Thu, 01 Jan 1970 00:00:00 GMT"] {
        let limited = AtomicUsize::new(0);
        let registry = lying(&test, "/v2/", move |_, reply| {
            match limited.fetch_add(1, Ordering::SeqCst) {
                0 => Reply::new(429, b"").header("Retry-After", header),
                _ => reply,
            }
        })
        .await;
        Puller::new(&[&registry]).pull(&registry).await.unwrap();
    }
    let requests = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&requests);
    let registry = lying(&test, "/v2/", move |_, _| {
        count.fetch_add(1, Ordering::SeqCst);
        Reply::new(
            429,
            br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#,
        )
        .header("Retry-After", "7200")
    })
    .await;
    let error = refusal(&registry).await;
    assert!(
        error.contains("slow down; it asks to wait for 7200 s"),
        "{error}"
    );
    assert_eq!(requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn redirects_without_end_are_given_up() {
    let test = image();
    let registry = lying(&test, "/blobs/", |request, _| {
        Reply::new(307, b"").header("Location", &request.path)
    })
    .await;
    let error = refusal(&registry).await;
    assert!(error.contains("redirects more than 10 times"), "{error}");
}

#[tokio::test]
async fn headers_without_end_are_refused() {
    let test = image();
    let registry = lying(&test, "manifests/1", |_, mut reply| {
        for i in 0..2000 {
            reply = reply.header(&format!("X-{i}"), &"x".repeat(1000));
        }
        reply
    })
    .await;
    let error = refusal(&registry).await;
    assert!(error.contains("cannot reach"), "{error}");
}

#[tokio::test]
async fn a_token_without_end_is_refused() {
    for drips in [false, true] {
        let address = Arc::new(Mutex::new(String::new()));
        let own = Arc::clone(&address);
        let registry = serve(move |request| {
            if request.path.starts_with("/token") {
                return match drips {
                    true => Reply::new(200, &[b' '; 1 << 16]).paced(1, Duration::from_millis(100)),
                    false => Reply::new(200, &[b' '; 1 << 16]).endless(),
                };
            }
            let challenge = format!(r#"Bearer realm="http://{}/token""#, own.lock().unwrap());
            Reply::new(401, b"").header("WWW-Authenticate", &challenge)
        })
        .await;
        *address.lock().unwrap() = registry.clone();
        let error = refusal(&registry).await;
        let part = if drips {
            "nothing of the token came"
        } else {
            "the token is larger than"
        };
        assert!(
            error.contains(part) || drips && error.contains("too slow"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn an_error_message_without_end_is_left_out() {
    let test = image();
    let registry = lying(&test, "manifests/1", |_, _| {
        Reply::new(418, &[b'x'; 100]).endless()
    })
    .await;
    let error = refusal(&registry).await;
    assert!(
        error.ends_with("answers 418 to the request for manifests/1: I'm a teapot"),
        "{error}"
    );
}

#[tokio::test]
async fn a_token_that_expires_in_mid_pull_is_renewed() {
    let test = image();
    let address = Arc::new(Mutex::new(String::new()));
    let (own, served, big) = (Arc::clone(&address), test.clone(), noise_blob(&test));
    let issued = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&issued);
    let breaks = AtomicUsize::new(0);
    let registry = serve(move |request| {
        if request.path.starts_with("/token") {
            let number = count.fetch_add(1, Ordering::SeqCst);
            return Reply::new(200, format!(r#"{{"token": "t{number}"}}"#).as_bytes());
        }
        let valid = format!("Bearer t{}", count.load(Ordering::SeqCst).wrapping_sub(1));
        let is_resumed = request.headers.contains_key("range");
        let expired = is_resumed && valid == "Bearer t0";
        if request.headers.get("authorization") == Some(&valid) && !expired {
            let mut reply = honest(&served, request);
            if request.path.contains(&big) && breaks.fetch_add(1, Ordering::SeqCst) == 0 {
                reply.cut = Some(100_000);
            }
            return reply;
        }
        let challenge = format!(r#"Bearer realm="http://{}/token""#, own.lock().unwrap());
        Reply::new(401, b"").header("WWW-Authenticate", &challenge)
    })
    .await;
    *address.lock().unwrap() = registry.clone();
    Puller::new(&[&registry]).pull(&registry).await.unwrap();
    assert_eq!(issued.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_range_from_elsewhere_is_refused() {
    let test = image();
    let registry = lying(
        &test,
        &noise_blob(&test),
        |request, mut reply| match request.headers.contains_key("range") {
            true => Reply::new(206, b"xx").header("Content-Range", "bytes 7-8/9"),
            false => {
                reply.cut = Some(100_000);
                reply
            }
        },
    )
    .await;
    let error = refusal(&registry).await;
    assert!(error.contains("it sends from 7"), "{error}");
}

#[tokio::test]
async fn a_registry_that_refuses_ranges_sends_all_again() {
    let test = image();
    let breaks = AtomicUsize::new(0);
    let registry = lying(&test, &noise_blob(&test), move |request, mut reply| {
        if request.headers.contains_key("range") {
            return Reply::new(416, b"");
        }
        if breaks.fetch_add(1, Ordering::SeqCst) == 0 {
            reply.cut = Some(100_000);
        }
        reply
    })
    .await;
    Puller::new(&[&registry]).pull(&registry).await.unwrap();
}

#[tokio::test]
async fn redirects_to_another_host_carry_no_credentials() {
    let test = image();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (log, served) = (Arc::clone(&seen), test.clone());
    let storage = serve(move |request| {
        log.lock()
            .unwrap()
            .push(request.headers.get("authorization").cloned());
        honest(&served, request)
    })
    .await;
    let (served, to) = (test.clone(), storage.clone());
    let registry = serve(move |request| {
        if !request.headers.contains_key("authorization") {
            return Reply::new(401, b"").header("WWW-Authenticate", "Basic realm=\"x\"");
        }
        match request.path.contains("/blobs/") {
            true => {
                Reply::new(307, b"").header("Location", &format!("http://{to}{}", request.path))
            }
            false => honest(&served, request),
        }
    })
    .await;
    let mut puller = Puller::new(&[&registry]);
    puller.options.credentials = Some(Credentials::Basic {
        username: "me".to_owned(),
        password: "secret".to_owned(),
    });
    puller.pull(&registry).await.unwrap();
    let seen = seen.lock().unwrap();
    assert!(
        seen.len() >= 3 && seen.iter().all(Option::is_none),
        "{seen:?}"
    );
}

#[tokio::test]
async fn a_signed_address_that_expired_is_asked_for_again() {
    let test = image();
    let served = test.clone();
    let uses = AtomicUsize::new(0);
    let storage = serve(move |request| match uses.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::new(403, b"<Error>Request has expired</Error>"),
        _ => honest(&served, request),
    })
    .await;
    let registry = lying(&test, &noise_blob(&test), move |request, _| {
        Reply::new(307, b"").header("Location", &format!("http://{storage}{}", request.path))
    })
    .await;
    Puller::new(&[&registry]).pull(&registry).await.unwrap();
}

#[tokio::test]
async fn a_mirror_that_dies_in_mid_pull_is_replaced_by_the_registry() {
    let test = image();
    let mirror = lying(&test, &noise_blob(&test), |request, mut reply| {
        if request.headers.contains_key("range") {
            return Reply::new(500, b"");
        }
        reply.cut = Some(100_000);
        reply
    })
    .await;
    let (served, resumed) = (test.clone(), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&resumed);
    let registry = serve(move |request| {
        count.fetch_add(
            usize::from(request.headers.contains_key("range")),
            Ordering::SeqCst,
        );
        honest(&served, request)
    })
    .await;
    let mut puller = Puller::new(&[&registry, &mirror]);
    let mirrors = &mut puller.options.registries.mirrors;
    mirrors.insert(registry.clone(), vec![mirror]);
    puller.pull(&registry).await.unwrap();
    assert_eq!(resumed.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn when_no_host_helps_the_error_tells_what_each_said() {
    let teapot = serve(|_| Reply::new(418, b"")).await;
    let empty = serve(|_| Reply::new(404, b"")).await;
    let mut puller = Puller::new(&[&teapot, &empty]);
    let mirrors = &mut puller.options.registries.mirrors;
    mirrors.insert(
        empty.clone(),
        vec![teapot.clone(), "127.0.0.1:1".to_owned()],
    );
    puller
        .options
        .registries
        .plain_http
        .insert("127.0.0.1:1".to_owned());
    let error = puller.pull(&empty).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&format!("{teapot} answers 418")), "{text}");
    assert!(text.contains("127.0.0.1:1 by http"), "{text}");
    let PullError::Registry(error) = &error else {
        panic!("{error}");
    };
    assert!(matches!(error.decisive(), RegistryError::NotFound { .. }));
}
