//! Who we are to a registry: credentials, challenges and tokens (distribution's "Token Authentication Specification").

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use reqwest::header::HeaderValue;
use serde::Deserialize;

use super::{Access, Credentials, Keyring, RegistryError};
use crate::reference::Reference;

/// What Docker's own registry is called in Docker's configuration.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";

/// What a registry asks for in `WWW-Authenticate`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// Name and password with each request.
    Basic,
    /// A token from `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// The first challenge of the header that is known (RFC 9110, section 11.6.1).
    pub(super) fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let parameters = parse_parameters(rest);
        let get = |key: &str| {
            let found = parameters.iter().find(|(k, _)| k.eq_ignore_ascii_case(key));
            found.map(|(_, value)| value.clone())
        };
        Some(Self::Bearer {
            realm: get("realm")?,
            service: get("service"),
            scope: get("scope"),
        })
    }
}

/// `key="value", key=value`, with backslashes in quoted values.
fn parse_parameters(text: &str) -> Vec<(String, String)> {
    let mut parameters = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        let key: String = std::iter::from_fn(|| chars.next_if(|c| *c != '=')).collect();
        if chars.next().is_none() {
            return parameters;
        }
        let mut value = String::new();
        if chars.next_if_eq(&'"').is_some() {
            while let Some(c) = chars.next() {
                match c {
                    '"' => break,
                    '\\' => value.extend(chars.next()),
                    c => value.push(c),
                }
            }
            while chars.next_if(|c| *c != ',').is_some() {}
        } else {
            value.extend(std::iter::from_fn(|| chars.next_if(|c| *c != ',')));
        }
        parameters.push((key.trim().to_owned(), value));
        chars.next();
        while chars.next_if(|c| c.is_whitespace() || *c == ',').is_some() {}
    }
}

/// What a token server answers.
#[derive(Deserialize)]
pub(super) struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

impl TokenAnswer {
    pub(super) fn into_header(self) -> Option<HeaderValue> {
        bearer(&self.token.or(self.access_token)?)
    }
}

pub(super) fn bearer(token: &str) -> Option<HeaderValue> {
    secret(format!("Bearer {token}"))
}

pub(super) fn basic(username: &str, password: &str) -> Option<HeaderValue> {
    let pair = format!("{username}:{password}");
    let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
    secret(format!("Basic {encoded}"))
}

fn secret(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The credentials to try, the first first: those of the caller alone, else those of the keyring, then those of the
/// Docker configuration. What is for a registry is not shown to its mirrors.
pub(super) async fn candidates(
    registry: &str,
    reference: &Reference,
    access: &Access,
) -> Result<Vec<Credentials>, RegistryError> {
    if let Some(credentials) = &access.credentials
        && registry == reference.registry()
    {
        return Ok(vec![credentials.clone()]);
    }
    let repository = reference.repository().to_owned();
    let mut found = access.keyring.find(registry, &repository);
    let Some(path) = access.docker_config.clone().or_else(docker_config) else {
        return Ok(found);
    };
    let registry = registry.to_owned();
    // A credential helper is another program, which may take its time.
    let of_file = super::blocking(move || read_docker_config(&path, &registry, &repository));
    found.extend(of_file.await?);
    Ok(found)
}

fn docker_config() -> Option<PathBuf> {
    if let Some(dir) = std::env::var_os("DOCKER_CONFIG") {
        return Some(PathBuf::from(dir).join("config.json"));
    }
    // A service of systemd has no HOME.
    let is_root = rustix::process::geteuid().is_root();
    let home = std::env::var_os("HOME").or_else(|| is_root.then(|| "/root".into()))?;
    Some(PathBuf::from(home).join(".docker/config.json"))
}

/// The entries of the file that match, else what its credential helpers say.
fn read_docker_config(
    path: &Path,
    registry: &str,
    repository: &str,
) -> Result<Vec<Credentials>, RegistryError> {
    let failed = |reason: String| RegistryError::Credentials {
        registry: registry.to_owned(),
        path: path.to_owned(),
        reason,
    };
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(failed(e.to_string())),
    };
    let keyring = Keyring::from_docker_config_json(&text).map_err(|e| {
        let cause = e.source().map(|source| format!(": {source}"));
        failed(format!("{e}{}", cause.unwrap_or_default()))
    })?;
    let found = keyring.find(registry, repository);
    if !found.is_empty() {
        return Ok(found);
    }
    let keys: &[&str] = match registry {
        "docker.io" => &[DOCKER_HUB_KEY, "docker.io", "index.docker.io"],
        other => &[other],
    };
    for key in keys {
        match docker_credential::get_credential_from_reader(text.as_slice(), key) {
            Ok(DockerCredential::UsernamePassword(username, password)) => {
                return Ok(vec![Credentials::Basic { username, password }]);
            }
            Ok(DockerCredential::IdentityToken(token)) => {
                return Ok(vec![Credentials::IdentityToken(token)]);
            }
            Err(CredentialRetrievalError::NoCredentialConfigured) => {}
            Err(e) => {
                let helper = Helpers::of(&text, key);
                let helper = helper.map(|name| {
                    format!(" (the helper is `docker-credential-{name}`: is it installed?)")
                });
                return Err(failed(format!("{e}{}", helper.unwrap_or_default())));
            }
        }
    }
    Ok(Vec::new())
}

/// Who is asked for credentials that the file does not hold.
#[derive(Deserialize)]
struct Helpers {
    #[serde(default, rename = "credHelpers")]
    of_registries: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    of_all: Option<String>,
}

impl Helpers {
    fn of(config: &[u8], key: &str) -> Option<String> {
        let mut helpers: Self = serde_json::from_slice(config).ok()?;
        helpers.of_registries.remove(key).or(helpers.of_all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_parse() {
        assert_eq!(
            Challenge::parse("Basic realm=\"x\""),
            Some(Challenge::Basic)
        );
        assert_eq!(Challenge::parse("Digest realm=\"x\""), None);
        assert_eq!(Challenge::parse("Bearer service=\"x\""), None);
        let header = r#"Bearer realm="https://auth.example/token",service="reg,\"istry", scope="repository:a/b:pull,push",error=invalid"#;
        assert_eq!(
            Challenge::parse(header),
            Some(Challenge::Bearer {
                realm: "https://auth.example/token".to_owned(),
                service: Some("reg,\"istry".to_owned()),
                scope: Some("repository:a/b:pull,push".to_owned()),
            })
        );
    }

    #[test]
    fn odd_headers_end_in_peace() {
        for header in [
            "",
            "Bearer",
            "Bearer =",
            "Bearer a",
            "bearer realm=\"",
            "Bearer realm=,=",
        ] {
            drop(Challenge::parse(header));
        }
    }

    #[test]
    fn docker_configurations_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let read = |registry: &str| read_docker_config(&path, registry, "team/app");
        assert!(read("docker.io").unwrap().is_empty());
        let auth = base64::engine::general_purpose::STANDARD.encode("me:pass:word");
        let text = format!(
            r#"{{"auths": {{"{DOCKER_HUB_KEY}": {{"auth": "{auth}"}}, "host.example:5000": {{"auth": "{auth}"}}}}}}"#
        );
        std::fs::write(&path, text).unwrap();
        for registry in ["docker.io", "host.example:5000"] {
            let found = read(registry).unwrap();
            let expected = Credentials::Basic {
                username: "me".to_owned(),
                password: "pass:word".to_owned(),
            };
            assert!(found == [expected], "{registry}");
        }
        assert!(read("other.example").unwrap().is_empty());
        std::fs::write(&path, r#"{"credsStore": "that-is-not-there"}"#).unwrap();
        let Err(error) = read("docker.io") else {
            panic!("a helper that is not there");
        };
        let text = error.to_string();
        assert!(
            text.contains("docker-credential-that-is-not-there"),
            "{text}"
        );
        std::fs::write(&path, "{").unwrap();
        assert!(read("docker.io").is_err());
    }
}
