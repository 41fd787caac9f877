//! Image references, parsed and completed as Docker does: `nginx` means `docker.io/library/nginx:latest`.
//!
//! Grammar: the one of the `distribution/reference` Go package, which Docker, containerd and Kubernetes use:
//!
//! ```text
//! reference  := name [ ":" tag ] [ "@" digest ]
//! name       := [ domain "/" ] component *( "/" component )     at most 255 characters
//! domain     := host [ ":" port ]                               the first part, when it has a dot or a port, is
//!                                                               `localhost`, or has an upper-case letter
//! component  := alnum *( separator alnum ), separator := "." | "_" | "__" | "-"*
//! tag        := [A-Za-z0-9_] [A-Za-z0-9_.-]{0,127}
//! ```
//! With a tag and a digest the digest decides; the tag is kept for people. A name of one word in upper case, such as
//! `Team/app`, has a host of that name, as in Docker. Two things are refused that the Go package lets through, to fail
//! later: ports above 65535, and what stands in brackets and is no IPv6 address.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::{Digest, DigestError};

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
/// `NameTotalLengthMax` of the Go package.
const NAME_LEN_MAX: usize = 255;
const TAG_LEN_MAX: usize = 128;

/// A complete image reference: registry, repository, and a tag or a digest or both.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses and completes a reference.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        Self::parse_parts(text).map_err(|reason| ReferenceError {
            text: text.chars().take(300).collect(),
            reason,
        })
    }

    fn parse_parts(text: &str) -> Result<Self, Reason> {
        if text.is_empty() {
            return Err(Reason::Empty);
        }
        if let Some(c) = text.chars().find(|c| !c.is_ascii_graphic()) {
            return Err(Reason::Character(c));
        }
        if text.contains("://") {
            return Err(Reason::Scheme);
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse().map_err(Reason::Digest)?)),
            None => (text, None),
        };
        // A colon after the last slash starts the tag; one before it belongs to a port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') && !tag.ends_with(']') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag {
            check_tag(tag)?;
        }
        let (registry, repository) = split_domain(name);
        let registry = match registry {
            None | Some("index.docker.io" | "registry-1.docker.io") => DEFAULT_REGISTRY.to_owned(),
            Some(domain) => {
                check_domain(domain)?;
                domain.to_owned()
            }
        };
        check_repository(repository)?;
        let is_official = registry == DEFAULT_REGISTRY && !repository.contains('/');
        if is_official && repository.len() == 64 && is_lower_hex(repository) {
            return Err(Reason::LooksLikeAnId);
        }
        let repository = if is_official {
            format!("library/{repository}")
        } else {
            repository.to_owned()
        };
        if registry.len() + 1 + repository.len() > NAME_LEN_MAX {
            return Err(Reason::TooLong);
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Self {
            registry,
            repository,
            tag,
            digest,
        })
    }

    /// Host and optional port of the registry, such as `docker.io` or `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository in the registry, such as `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag. With a digest it is only a note for people: the digest decides.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of a manifest or of an index.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same repository at this digest, without a tag.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            tag: None,
            digest: Some(digest),
        }
    }

    /// What decides which image this is: the digest where there is one, without the tag beside it.
    pub fn canonical(&self) -> Self {
        match &self.digest {
            Some(digest) => self.with_digest(digest.clone()),
            None => self.clone(),
        }
    }

    /// The short form that people write: without `docker.io/library/`.
    pub fn familiar(&self) -> String {
        let whole = self.to_string();
        // Of `docker.io/a.b/c` and `docker.io/library/a/b` something else would be left.
        let short = ["docker.io/library/", "docker.io/"]
            .into_iter()
            .find_map(|prefix| {
                let short = whole.strip_prefix(prefix)?;
                (Self::parse(short).as_ref() == Ok(self)).then(|| short.to_owned())
            });
        short.unwrap_or(whole)
    }
}

fn split_domain(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (Some(first), rest)
        }
        _ => (None, name),
    }
}

fn check_domain(domain: &str) -> Result<(), Reason> {
    let invalid = || Reason::Domain(domain.to_owned());
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or_else(invalid)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| invalid())?;
            match port {
                "" => (None, None),
                _ => (None, Some(port.strip_prefix(':').ok_or_else(invalid)?)),
            }
        }
        None => match domain.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(domain), None),
        },
    };
    if let Some(host) = host {
        let is_label = |label: &str| {
            !label.is_empty()
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if !host.split('.').all(is_label) {
            return Err(invalid());
        }
    }
    match port {
        Some(port) if !port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().is_err() => {
            Err(invalid())
        }
        _ => Ok(()),
    }
}

fn check_repository(repository: &str) -> Result<(), Reason> {
    if repository.is_empty() {
        return Err(Reason::NoName);
    }
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(Reason::UpperCase(repository.to_ascii_lowercase()));
    }
    match repository.split('/').find(|c| !is_component(c)) {
        Some(component) => Err(Reason::Component(component.to_owned())),
        None => Ok(()),
    }
}

/// Runs of `[a-z0-9]` joined by one dot, one or two underscores, or any number of dashes.
fn is_component(component: &str) -> bool {
    let is_alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends_well = |b: Option<&u8>| b.is_some_and(|b| is_alnum(*b));
    if !ends_well(bytes.first()) || !ends_well(bytes.last()) {
        return false;
    }
    component
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        })
}

fn check_tag(tag: &str) -> Result<(), Reason> {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let ok = tag.len() <= TAG_LEN_MAX
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|b| is_word(b) || b == b'.' || b == b'-');
    if ok {
        Ok(())
    } else {
        Err(Reason::Tag(tag.to_owned()))
    }
}

fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, ReferenceError> {
        Self::parse(&text)
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

/// Text that is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid image reference `{text}`: {reason}")]
pub struct ReferenceError {
    text: String,
    reason: Reason,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Reason {
    #[error("it is empty")]
    Empty,
    #[error("it holds the character {0:?}")]
    Character(char),
    #[error("write it without `docker://`, `http://` or `https://`")]
    Scheme,
    #[error("it has no name before the tag or digest")]
    NoName,
    #[error("the repository name must be lower case; write `{0}`")]
    UpperCase(String),
    #[error(
        "the name part `{0}` must be letters and digits joined by one of `.`, `_`, `__` or dashes"
    )]
    Component(String),
    #[error("`{0}` is not a registry host with an optional port")]
    Domain(String),
    #[error("the name is longer than {NAME_LEN_MAX} characters")]
    TooLong,
    #[error(
        "the tag `{0}` must start with a letter, digit or `_`, go on with those, `.` or `-`, and have at most {TAG_LEN_MAX} characters"
    )]
    Tag(String),
    #[error("64 hexadecimal digits are an image ID, not a name")]
    LooksLikeAnId,
    #[error("{0}")]
    Digest(DigestError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn completes_as_docker_does() {
        let with_digest = format!("nginx@sha256:{HEX}");
        let whole_digest = format!("docker.io/library/nginx@sha256:{HEX}");
        let both = format!("a.b/c:1@sha256:{HEX}");
        for (short, whole) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker.io/library/nginx:1.27"),
            ("team/app", "docker.io/team/app:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            ("host.example/a/b/c:T_-.1", "host.example/a/b/c:T_-.1"),
            ("127.0.0.1:5000/a:b", "127.0.0.1:5000/a:b"),
            ("[::1]:5000/a:b", "[::1]:5000/a:b"),
            ("[::1]/a", "[::1]/a:latest"),
            ("Host/app", "Host/app:latest"),
            ("a__b/c--d/e.f_g", "docker.io/a__b/c--d/e.f_g:latest"),
            (&with_digest, &whole_digest),
            (&both, &both),
        ] {
            assert_eq!(Reference::parse(short).unwrap().to_string(), whole);
        }
        assert_eq!(
            Reference::parse("nginx").unwrap().familiar(),
            "nginx:latest"
        );
    }

    #[test]
    fn refuses_with_the_reason() {
        let long = "a".repeat(256);
        let tag = format!("a:{}", "t".repeat(129));
        for (text, part) in [
            ("", "empty"),
            ("a b", "character ' '"),
            ("a\n", "character"),
            ("ä", "character"),
            ("https://host.example/a", "`http://` or `https://`"),
            ("docker://host.example/a", "without `docker://`"),
            (":tag", "no name"),
            ("host.example/", "no name"),
            ("Nginx", "lower case; write `nginx`"),
            ("docker.io/Team/App", "lower case; write `team/app`"),
            ("a//b", "name part ``"),
            ("a/../b", "name part `..`"),
            ("-a", "name part `-a`"),
            ("a_", "name part"),
            ("a___b", "name part"),
            ("a..b", "name part"),
            ("host.example:port/a", "not a registry"),
            ("host.example:99999/a", "not a registry"),
            ("-host.example/a", "not a registry"),
            ("host..example/a", "not a registry"),
            ("[::x]/a", "not a registry"),
            ("a:", "tag ``"),
            ("a:.b", "tag `.b`"),
            ("a@sha256:12", "wrong length"),
            ("a@b@c", "invalid digest"),
            (HEX, "image ID"),
            (&long, "longer than"),
            (&tag, "tag `"),
        ] {
            let error = Reference::parse(text).expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    /// `anchoredNameRegexp`, tag and digest of the Go package's `regexp.go`, put together as its `ReferenceRegexp`.
    fn go_regexp() -> regex_lite::Regex {
        let component = "[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*";
        let label = "(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])";
        let host = format!(r"(?:{label}(?:\.{label})*|\[(?:[a-fA-F0-9:]+)\])");
        let name = format!(r"(?:{host}(?::[0-9]+)?/)?{component}(?:/{component})*");
        let tag = r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}";
        let digest = "[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}";
        regex_lite::Regex::new(&format!("^{name}(?::{tag})?(?:@{digest})?$")).unwrap()
    }

    #[test]
    fn names_with_tag_and_digest_mean_the_digest() {
        let text = format!("nginx:1.27@sha256:{HEX}");
        let reference = Reference::parse(&text).unwrap();
        assert_eq!(reference.tag(), Some("1.27"));
        assert_eq!(reference.familiar(), text);
        let canonical = format!("docker.io/library/nginx@sha256:{HEX}");
        assert_eq!(reference.canonical().to_string(), canonical);
    }

    #[test]
    fn the_familiar_form_means_the_same() {
        for (whole, familiar) in [
            ("docker.io/library/nginx:1", "nginx:1"),
            ("docker.io/team/app:1", "team/app:1"),
            ("docker.io/l.ib/app:1", "docker.io/l.ib/app:1"),
            ("docker.io/localhost/app:1", "docker.io/localhost/app:1"),
            ("docker.io/library/team/app:1", "library/team/app:1"),
            ("host.example/app:1", "host.example/app:1"),
        ] {
            assert_eq!(Reference::parse(whole).unwrap().familiar(), familiar);
        }
    }

    proptest! {
        /// What is accepted, Docker accepts; what is refused beyond that, is refused for a reason of its own.
        #[test]
        fn the_grammar_is_that_of_docker(
            text in r"([A-Za-z0-9.:\[\]-]{1,8}/)?[a-zA-Z0-9._/-]{0,12}(:[A-Za-z0-9_.-]{0,8})?(@sha256:([0-9a-f]{64}|[0-9a-fA-F]{1,4}))?"
        ) {
            let go = go_regexp();
            match Reference::parse(&text) {
                // The Go package parses what it has completed.
                Ok(reference) => prop_assert!(go.is_match(&reference.to_string()), "{}", text),
                Err(ReferenceError { reason: Reason::Domain(_) | Reason::Digest(_) | Reason::UpperCase(_), .. }) => {}
                Err(error) => prop_assert!(!go.is_match(&text), "{}: {}", text, error),
            }
        }

        #[test]
        fn what_is_displayed_parses_to_the_same(
            text in r"([a-z0-9]{1,5}(\.[a-z0-9]{1,5}){0,2}(:[0-9]{1,4})?/)?[a-z0-9]{1,8}((_|__|-{1,3})[a-z0-9]{1,4}){0,3}(/[a-z0-9]{1,8}(\.[a-z0-9]{1,3})?){0,3}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,20})?(@sha256:[0-9a-f]{64})?"
        ) {
            let once = Reference::parse(&text).unwrap();
            let again = Reference::parse(&once.to_string()).unwrap();
            prop_assert_eq!(&once, &again);
            prop_assert_eq!(Reference::parse(&once.familiar()).unwrap(), once);
        }

        #[test]
        fn any_text_is_accepted_or_refused_in_peace(text in "\\PC{0,60}|[a-z:@/._\\[\\]A-Z0-9-]{0,60}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.to_string()).unwrap(), reference);
            }
        }
    }
}
