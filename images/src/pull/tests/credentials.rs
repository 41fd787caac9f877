//! Pulls that need tokens and passwords.

use super::*;

#[tokio::test]
async fn tokens_are_fetched_and_sent_and_renewed() {
    let test = image();
    let issued = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&issued);
    let address = Arc::new(Mutex::new(String::new()));
    let own = Arc::clone(&address);
    let uses = AtomicUsize::new(0);
    let registry = serve(move |request| {
        if request.path.starts_with("/token?") {
            assert!(request.path.contains("service=here"));
            assert!(
                request
                    .path
                    .contains("scope=repository%3Ateam%2Fapp%3Apull")
            );
            assert_eq!(request.headers["authorization"], "Basic bWU6c2VjcmV0");
            let number = count.fetch_add(1, Ordering::SeqCst);
            return Reply::new(200, format!(r#"{{"token": "t{number}"}}"#).as_bytes());
        }
        let valid = format!("Bearer t{}", count.load(Ordering::SeqCst).wrapping_sub(1));
        let expired = uses.fetch_add(1, Ordering::SeqCst) == 2;
        if request.headers.get("authorization") == Some(&valid) && !expired {
            return honest(&test, request);
        }
        let realm = own.lock().unwrap().clone();
        let challenge = format!(
            r#"Bearer realm="http://{realm}/token",service="here",scope="repository:team/app:pull""#
        );
        Reply::new(401, b"{}").header("WWW-Authenticate", &challenge)
    })
    .await;
    *address.lock().unwrap() = registry.clone();
    let mut puller = Puller::new(&[&registry]);
    puller.options.credentials = Some(Credentials::Basic {
        username: "me".to_owned(),
        password: "secret".to_owned(),
    });
    puller.pull(&registry).await.unwrap();
    assert_eq!(issued.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn an_identity_token_is_exchanged() {
    let test = image();
    let address = Arc::new(Mutex::new(String::new()));
    let own = Arc::clone(&address);
    let registry = serve(move |request| {
        if request.path == "/token" {
            assert_eq!(request.method, "POST");
            assert!(
                request.text().contains("grant_type=refresh_token"),
                "{}",
                request.text()
            );
            assert!(
                request.text().contains("refresh_token=refresh%26me"),
                "{}",
                request.text()
            );
            return Reply::new(200, br#"{"access_token": "fresh"}"#);
        }
        if request
            .headers
            .get("authorization")
            .is_some_and(|a| a == "Bearer fresh")
        {
            return honest(&test, request);
        }
        let realm = own.lock().unwrap().clone();
        let challenge = format!(r#"Bearer realm="http://{realm}/token""#);
        Reply::new(401, b"{}").header("WWW-Authenticate", &challenge)
    })
    .await;
    *address.lock().unwrap() = registry.clone();
    let mut puller = Puller::new(&[&registry]);
    puller.options.credentials = Some(Credentials::IdentityToken("refresh&me".to_owned()));
    puller.pull(&registry).await.unwrap();
}

/// A registry that lets `me:right` in, and answers others with `refusal`.
async fn guarded(test: &TestImage, refusal: u16) -> (String, Arc<Mutex<Vec<Option<String>>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (served, log) = (test.clone(), Arc::clone(&seen));
    let registry = serve(move |request| {
        let authorization = request.headers.get("authorization").cloned();
        log.lock().unwrap().push(authorization.clone());
        match authorization.as_deref() {
            Some("Basic bWU6cmlnaHQ=") => honest(&served, request),
            None => Reply::new(401, b"").header("WWW-Authenticate", "Basic realm=\"x\""),
            Some(_) => Reply::new(refusal, b""),
        }
    })
    .await;
    (registry, seen)
}

#[tokio::test]
async fn credentials_of_a_keyring_are_tried_until_one_is_taken() {
    let test = image();
    // Registries that hide what they have say 404.
    for refusal in [401, 403, 404] {
        let (registry, _) = guarded(&test, refusal).await;
        let mut puller = Puller::new(&[&registry]);
        let entry = |key: &str, password: &str| {
            let key = format!("{registry}{key}");
            let text = json!({key: {"username": "me", "password": password}}).to_string();
            Keyring::from_docker_cfg(text.as_bytes()).unwrap()
        };
        puller.options.keyring = entry("/team", "wrong");
        puller.pull(&registry).await.unwrap_err();
        puller.options.keyring.extend(entry("", "right"));
        puller.pull(&registry).await.unwrap();
    }
}

#[tokio::test]
async fn credentials_for_a_registry_are_not_shown_to_its_mirror() {
    let test = image();
    let (mirror, seen) = guarded(&test, 401).await;
    let mut puller = Puller::new(&[&mirror]);
    let mirrors = &mut puller.options.registries.mirrors;
    mirrors.insert("127.0.0.1:1".to_owned(), vec![mirror.clone()]);
    puller.options.credentials = Some(Credentials::Basic {
        username: "me".to_owned(),
        password: "right".to_owned(),
    });
    puller.pull("127.0.0.1:1").await.unwrap_err();
    let seen = seen.lock().unwrap();
    assert!(
        !seen.is_empty() && seen.iter().all(Option::is_none),
        "{seen:?}"
    );
}
