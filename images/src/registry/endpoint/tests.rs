use super::*;

#[tokio::test]
async fn a_token_server_without_tls_gets_no_credentials_of_a_registry_with_tls() {
    // The scheme is what decides; no connection is made.
    let reference: Reference = "host.example/team/app:1".parse().unwrap();
    let credentials = Credentials::Basic {
        username: "me".to_owned(),
        password: "secret".to_owned(),
    };
    let host = Host {
        skip_verify: true,
        ..Host::new("host.example")
    };
    let access = Access::default();
    let endpoint =
        Endpoint::new(&host, &reference, &access, Purpose::Pull, Some(credentials)).unwrap();
    let error = endpoint
        .token("http://auth.example/token", None, None)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("not https"), "{error}");
}

#[test]
fn what_a_registry_says_of_an_error_is_found() {
    let body = br#"{"errors":[{"code":"DENIED","message":"no"},{"code":"OTHER"}]}"#;
    assert_eq!(error_message(body).as_deref(), Some("DENIED: no"));
    for bad in [&b""[..], b"<html>", b"{\"errors\":[]}"] {
        assert_eq!(error_message(bad), None);
    }
}

#[test]
fn long_waits_are_told_in_whole_seconds() {
    assert_eq!(seconds(Duration::from_micros(60_001_234)), "60 s");
    assert_eq!(seconds(Duration::from_millis(200)), "200ms");
}
