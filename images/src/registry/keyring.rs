//! Credentials for many registries, and which of them are for an image: the rules of the kubelet
//! (`pkg/credentialprovider/keyring.go` of Kubernetes; "Pull an Image from a Private Registry" in its documentation).
//!
//! ```text
//! key of an entry:  [ "https://" ] host-glob [ ":" port ] [ "/" path-prefix ]
//!   *.example.com           a.example.com, not example.com and not b.a.example.com: a glob stays within its label
//!   reg.example:5000        this port only
//!   reg.example/team        all repositories whose name begins with `team`, before those of `reg.example`
//!   https://index.docker.io/v1/    Docker's registry, as `docker login` writes it
//! ```
//! All entries that match are candidates, those with the most specific path first.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;

use super::Credentials;

/// Docker's own registry in Docker's configuration.
const DOCKER_HUB: &str = "index.docker.io";
/// Its name in references.
const DOCKER_HUB_REGISTRY: &str = "docker.io";
/// Docker writes padding, other tools do not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Credentials for many registries.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Keyring {
    /// Sorted by key, backwards, so that longer paths come before shorter ones; equal keys in the order given.
    entries: Vec<Entry>,
}

/// Text that is no Docker configuration.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// It is not JSON of that form.
    #[error("not a Docker configuration in JSON")]
    Json(#[source] serde_json::Error),
    /// An entry's `auth` cannot be used.
    #[error("the `auth` of `{0}` is not base64 of `name:password`")]
    Auth(String),
}

#[derive(Clone, PartialEq, Eq)]
struct Entry {
    /// Host and path, for the order.
    key: String,
    host: String,
    /// Empty, or with its leading slash.
    path: String,
    credentials: Credentials,
}

/// `~/.docker/config.json`, of which only this part matters here.
#[derive(Deserialize)]
struct DockerConfigJson {
    #[serde(default)]
    auths: BTreeMap<String, AuthEntry>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthEntry {
    auth: String,
    username: String,
    password: String,
    #[serde(rename = "identitytoken")]
    identity_token: String,
    #[serde(rename = "registrytoken")]
    registry_token: String,
}

impl Keyring {
    /// Reads `~/.docker/config.json`, or a Secret's `.dockerconfigjson`. Credential helpers in it are not asked.
    ///
    /// # Errors
    /// When it is not such a text.
    pub fn from_docker_config_json(text: &[u8]) -> Result<Self, KeyringError> {
        let config: DockerConfigJson = serde_json::from_slice(text).map_err(KeyringError::Json)?;
        Self::from_entries(config.auths)
    }

    /// Reads the older `~/.dockercfg`, or a Secret's `.dockercfg`: the same without `auths` around it.
    ///
    /// # Errors
    /// When it is not such a text.
    pub fn from_docker_cfg(text: &[u8]) -> Result<Self, KeyringError> {
        Self::from_entries(serde_json::from_slice(text).map_err(KeyringError::Json)?)
    }

    fn from_entries(auths: BTreeMap<String, AuthEntry>) -> Result<Self, KeyringError> {
        let mut keyring = Self::default();
        for (key, entry) in auths {
            if let Some(credentials) = entry.into_credentials(&key)? {
                keyring.entries.push(Entry::new(&key, credentials));
            }
        }
        keyring.sort();
        Ok(keyring)
    }

    /// Adds the entries of another; at equal keys, its own stay first.
    pub fn extend(&mut self, other: Self) {
        self.entries.extend(other.entries);
        self.sort();
    }

    /// True without any entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The candidates for a repository, the most specific first.
    #[must_use]
    pub fn find(&self, registry: &str, repository: &str) -> Vec<Credentials> {
        let path = format!("/{repository}");
        let matching = |entry: &&Entry| {
            host_matches(&entry.host, registry) && path.starts_with(entry.path.as_str())
        };
        let found: Vec<_> = self.entries.iter().filter(matching).collect();
        let is_hub = |entry: &&Entry| entry.key == DOCKER_HUB;
        let found = if found.is_empty() && registry == DOCKER_HUB_REGISTRY {
            self.entries.iter().filter(is_hub).collect()
        } else {
            found
        };
        found.into_iter().map(|e| e.credentials.clone()).collect()
    }

    fn sort(&mut self) {
        self.entries.sort_by(|a, b| b.key.cmp(&a.key));
    }
}

impl fmt::Debug for Keyring {
    /// Without secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.entries.iter().map(|entry| &entry.key);
        f.debug_list().entries(keys).finish()
    }
}

impl Entry {
    fn new(key: &str, credentials: Credentials) -> Self {
        let bare = key
            .strip_prefix("https://")
            .or_else(|| key.strip_prefix("http://"))
            .unwrap_or(key);
        let (host, path) = match bare.find('/') {
            Some(at) => bare.split_at(at),
            None => (bare, ""),
        };
        // The API's version is not a part of repositories' names.
        let path = match path.get(..4) {
            Some("/v1/" | "/v2/") => &path[3..],
            _ => path,
        };
        let path = if path == "/" { "" } else { path };
        Self {
            key: format!("{host}{path}"),
            host: host.to_owned(),
            path: path.to_owned(),
            credentials,
        }
    }
}

impl AuthEntry {
    /// None for an empty entry: Docker leaves one where a credential helper has the secret.
    fn into_credentials(self, key: &str) -> Result<Option<Credentials>, KeyringError> {
        if !self.identity_token.is_empty() {
            return Ok(Some(Credentials::IdentityToken(self.identity_token)));
        }
        if !self.registry_token.is_empty() {
            return Ok(Some(Credentials::Bearer(self.registry_token)));
        }
        if self.auth.is_empty() {
            let given = !self.username.is_empty() || !self.password.is_empty();
            return Ok(given.then_some(Credentials::Basic {
                username: self.username,
                password: self.password,
            }));
        }
        let bad = || KeyringError::Auth(key.to_owned());
        let bytes = BASE64.decode(self.auth.trim()).map_err(|_| bad())?;
        let text = String::from_utf8(bytes).map_err(|_| bad())?;
        let (username, password) = text.split_once(':').ok_or_else(bad)?;
        Ok(Some(Credentials::Basic {
            username: username.to_owned(),
            // Old versions of Docker fill up with zeros.
            password: password.trim_end_matches('\0').to_owned(),
        }))
    }
}

/// Equal ports, as many labels, and each label of the glob matches its counterpart.
fn host_matches(glob: &str, host: &str) -> bool {
    let (glob, glob_port) = split_port(glob);
    let (host, port) = split_port(host);
    let (globs, labels): (Vec<_>, Vec<_>) = (glob.split('.').collect(), host.split('.').collect());
    glob_port == port
        && globs.len() == labels.len()
        && globs.iter().zip(&labels).all(|(glob, label)| {
            let glob: Vec<char> = glob.chars().collect();
            let label: Vec<char> = label.chars().collect();
            label_matches(&glob, &label)
        })
}

/// Host, and port if there is one; an IPv6 address keeps its brackets.
fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (host, None),
    }
}

/// Go's `filepath.Match` without separators: `*`, `?`, `[a-z]`, `[^a-z]`, and `\` before a plain character.
fn label_matches(glob: &[char], label: &[char]) -> bool {
    match (glob, label) {
        ([], []) => true,
        (['*', rest @ ..], _) => (0..=label.len()).any(|at| label_matches(rest, &label[at..])),
        (['?', rest @ ..], [_, others @ ..]) => label_matches(rest, others),
        (['[', rest @ ..], [c, others @ ..]) => match in_class(rest, *c) {
            Some((true, rest)) => label_matches(rest, others),
            Some((false, _)) | None => false,
        },
        (['\\', plain, rest @ ..], [c, others @ ..]) | ([plain, rest @ ..], [c, others @ ..]) => {
            plain == c && label_matches(rest, others)
        }
        _ => false,
    }
}

/// Whether a character is in the class that begins here, and what follows the class; none for a malformed one.
fn in_class(class: &[char], c: char) -> Option<(bool, &[char])> {
    let (negated, class) = match class {
        ['^', rest @ ..] => (true, rest),
        _ => (false, class),
    };
    let end = class.iter().skip(1).position(|c| *c == ']')? + 1;
    let (mut members, rest) = (&class[..end], &class[end + 1..]);
    let mut found = false;
    while let [from, others @ ..] = members {
        let (to, others) = match others {
            ['-', to, others @ ..] => (to, others),
            _ => (from, others),
        };
        found |= (*from..=*to).contains(&c);
        members = others;
    }
    Some((found != negated, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A keyring whose passwords say which entry they are from.
    fn keyring(keys: &[&str]) -> Keyring {
        let auths: serde_json::Map<_, _> = keys
            .iter()
            .map(|key| {
                let entry = serde_json::json!({"username": "me", "password": key});
                ((*key).to_owned(), entry)
            })
            .collect();
        let text = serde_json::json!({ "auths": auths }).to_string();
        Keyring::from_docker_config_json(text.as_bytes()).unwrap()
    }

    fn found(keyring: &Keyring, registry: &str, repository: &str) -> Vec<String> {
        let found = keyring.find(registry, repository).into_iter();
        found
            .map(|credentials| match credentials {
                Credentials::Basic { password, .. } => password,
                Credentials::IdentityToken(token) | Credentials::Bearer(token) => token,
            })
            .collect()
    }

    #[test]
    fn the_matches_of_the_kubernetes_documentation() {
        for (key, registry, repository, matches) in [
            ("*.kubernetes.io", "abc.kubernetes.io", "x", true),
            ("*.kubernetes.io", "kubernetes.io", "x", false),
            ("*.*.kubernetes.io", "abc.kubernetes.io", "x", false),
            ("*.*.kubernetes.io", "abc.def.kubernetes.io", "x", true),
            ("prefix.*.io", "prefix.kubernetes.io", "x", true),
            (
                "*-good.kubernetes.io",
                "prefix-good.kubernetes.io",
                "x",
                true,
            ),
            (
                "my-registry.example/images",
                "my-registry.example",
                "images/my-image",
                true,
            ),
            (
                "my-registry.example/images",
                "my-registry.example",
                "other",
                false,
            ),
            (
                "*.my-registry.example/images",
                "sub.my-registry.example",
                "images/my-image",
                true,
            ),
            (
                "*.my-registry.example/images",
                "a.sub.my-registry.example",
                "images/my-image",
                false,
            ),
            (
                "*.my-registry.example/images",
                "my-registry.example",
                "images/my-image",
                false,
            ),
            ("reg.example:5000", "reg.example:5000", "x", true),
            ("reg.example:5000", "reg.example", "x", false),
            ("reg.example", "reg.example:5000", "x", false),
            ("https://reg.example/v2/", "reg.example", "x", true),
            ("http://reg.example/v1/team", "reg.example", "team/x", true),
            (
                "https://index.docker.io/v1/",
                "docker.io",
                "library/nginx",
                true,
            ),
            ("docker.io", "docker.io", "library/nginx", true),
            ("index.docker.io", "other.example", "library/nginx", false),
            ("reg[0-9].example", "reg7.example", "x", true),
            ("reg[^0-9].example", "reg7.example", "x", false),
            ("reg?.example", "reg.example", "x", false),
            ("reg[.example", "reg[.example", "x", false),
            ("[::1]:5000", "[::1]:5000", "x", false),
        ] {
            let is = !found(&keyring(&[key]), registry, repository).is_empty();
            assert_eq!(is, matches, "{key} for {registry}/{repository}");
        }
    }

    #[test]
    fn the_most_specific_path_comes_first_and_all_matches_are_candidates() {
        let keyring = keyring(&[
            "reg.example",
            "reg.example/a/b",
            "reg.example/a",
            "x.example",
        ]);
        let all = ["reg.example/a/b", "reg.example/a", "reg.example"];
        assert_eq!(found(&keyring, "reg.example", "a/b/c"), all);
        assert_eq!(found(&keyring, "reg.example", "a/c"), all[1..]);
        assert_eq!(found(&keyring, "reg.example", "c"), all[2..]);
    }

    #[test]
    fn keyrings_are_joined_the_first_first() {
        let entry = |password: &str| {
            let text =
                format!(r#"{{"reg.example": {{"username": "me", "password": "{password}"}}}}"#);
            Keyring::from_docker_cfg(text.as_bytes()).unwrap()
        };
        let mut keyring = entry("one");
        keyring.extend(entry("two"));
        assert_eq!(found(&keyring, "reg.example", "x"), ["one", "two"]);
    }

    #[test]
    fn all_kinds_of_entries_are_read() {
        let text = r#"{"auths": {
            "a.example": {"auth": "bWU6cGFzczp3b3Jk"},
            "b.example": {"auth": "PHRva2VuPjo=", "identitytoken": "refresh"},
            "c.example": {"registrytoken": "bearer"},
            "d.example": {},
            "e.example": {"auth": "bWU6cA", "email": "me@example"}}, "credsStore": "x"}"#;
        let keyring = Keyring::from_docker_config_json(text.as_bytes()).unwrap();
        for (registry, expected) in [
            ("a.example", vec!["pass:word"]),
            ("b.example", vec!["refresh"]),
            ("c.example", vec!["bearer"]),
            ("d.example", vec![]),
            ("e.example", vec!["p"]),
        ] {
            assert_eq!(found(&keyring, registry, "x"), expected, "{registry}");
        }
        let shown = format!("{keyring:?}");
        assert!(
            shown.contains("a.example") && !shown.contains("word"),
            "{shown}"
        );
    }

    #[test]
    fn what_is_no_configuration_is_refused_with_the_entry() {
        for bad in [
            "",
            "7",
            "{\"auths\": 1}",
            "{\"auths\": {\"a\": {\"auth\": 1}}}",
        ] {
            assert!(
                Keyring::from_docker_config_json(bad.as_bytes()).is_err(),
                "{bad}"
            );
        }
        for auth in ["%%%", "bm8tY29sb24="] {
            let text = format!(r#"{{"reg.example": {{"auth": "{auth}"}}}}"#);
            let error = Keyring::from_docker_cfg(text.as_bytes()).unwrap_err();
            assert!(error.to_string().contains("reg.example"), "{error}");
        }
    }
}
