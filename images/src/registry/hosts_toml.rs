//! containerd's configuration of registry hosts (its `docs/hosts.md`): a directory for each registry.
//!
//! ```text
//! certs.d/
//!   docker.io/hosts.toml               host, with `:port` if the reference has one
//!   registry.example_5000_/hosts.toml  the same without a colon, for filesystems that have none
//!   _default/hosts.toml                for registries that have no directory of their own
//!   registry.example/ca.crt            without hosts.toml, as Docker does: *.crt are authorities, *.cert with its *.key
//!                                      a client certificate
//!
//! server = "https://registry.example"  the registry itself, asked last; its keys are those of a host
//! [host."https://mirror.example"]      asked before it, in the order of the file
//!   capabilities = ["pull", "resolve"] what it may be asked for; `push` too if nothing is said
//!   ca = "mirror.crt"                  a path, or several; relative to the file
//!   client = [["client.cert", "client.key"]]     a path with both, or pairs
//!   skip_verify = false
//!   override_path = false              true: the URL's path is used as it is, without `/v2`
//!   dial_timeout = "5s"
//!   [host."https://mirror.example".header]
//!     x-custom = ["a", "b"]            a text, or several
//! ```
//! A key that is not known is an error, where containerd is silent: a misspelled `capabilities` would open what it was
//! to close. Deliberately absent: `rewrite`, which is not containerd's.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderName, HeaderValue};
use toml_edit::{Document, Item, TableLike, Value};

use super::host::{API_PATH, Capabilities, ClientCertificate, Host, Scheme};

/// What is in a directory of a registry.
const FILE_NAME: &str = "hosts.toml";
/// The directory for registries that have none of their own.
const DEFAULT_DIRECTORY: &str = "_default";
/// The keys of a host; the file itself has them too, for `server`.
const HOST_KEYS: &str =
    "capabilities, ca, client, skip_verify, header, override_path, dial_timeout";

/// A hosts directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// A file or directory of it cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A file says what it may not.
    #[error("{path}, line {line}{}: {reason}", if .key.is_empty() { String::new() } else { format!(", {}", .key) })]
    Invalid {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// The key with those around it, such as `host."https://a.example".ca`; empty where TOML itself is broken.
        key: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
}

/// Hosts, and the `hosts.toml` that names them.
pub(super) type Found = (Vec<Host>, Option<PathBuf>);

/// The hosts of a registry, in the order in which to ask them, and the file that says so; none when the directory says
/// nothing of it.
pub(super) fn read(directory: &Path, registry: &str) -> Result<Option<Found>, HostsError> {
    for name in directory_names(registry) {
        let own = directory.join(name);
        let path = own.join(FILE_NAME);
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let hosts = parse(&path, &text, registry)?;
                return Ok(Some((hosts, Some(path))));
            }
            Err(e) if is_absent(&e) => {}
            Err(source) => return Err(HostsError::Read { path, source }),
        }
        if let Some(host) = read_certificates(&own, registry)? {
            return Ok(Some((vec![host], None)));
        }
    }
    Ok(None)
}

/// The names that a registry's directory may have, the first first.
fn directory_names(registry: &str) -> Vec<String> {
    let mut names = vec![registry.to_owned()];
    if let Some((host, port)) = registry.rsplit_once(':')
        && !port.ends_with(']')
    {
        names.insert(0, format!("{host}_{port}_"));
    }
    names.push(DEFAULT_DIRECTORY.to_owned());
    names
}

fn is_absent(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

/// Docker's layout: certificates without a `hosts.toml`.
fn read_certificates(directory: &Path, registry: &str) -> Result<Option<Host>, HostsError> {
    let failed = |source| HostsError::Read {
        path: directory.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(e) if is_absent(&e) => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut host = Host::new(registry);
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        match path.extension().and_then(|e| e.to_str()) {
            Some("crt") => host.ca_files.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                host.client_certificates.push(ClientCertificate {
                    certificate: path,
                    key: Some(key),
                });
            }
            _ => {}
        }
    }
    host.ca_files.sort();
    host.client_certificates
        .sort_by(|a, b| a.certificate.cmp(&b.certificate));
    let found = !host.ca_files.is_empty() || !host.client_certificates.is_empty();
    Ok(found.then_some(host))
}

fn parse(path: &Path, text: &str, registry: &str) -> Result<Vec<Host>, HostsError> {
    let file = File { path, text };
    let document = Document::parse(text).map_err(|e| {
        let at = e.span().unwrap_or_default();
        file.invalid(Some(at), String::new(), e.message())
    })?;
    let mut server = Host::new(registry);
    let mut mirrors = Vec::new();
    // The server's own keys may come before or after it: `override_path` decides what its path is.
    let mut url = None;
    for (key, item) in document.as_table().iter() {
        let at = file.at(document.as_table(), key, item, "");
        match key {
            "server" => url = Some((item, at)),
            "host" => mirrors = file.hosts(item, &at, registry)?,
            _ => file.set(&mut server, key, item, &at)?,
        }
    }
    if let Some((item, at)) = url {
        let text = file.text_of(item, &at)?;
        file.set_url(&mut server, text, &at)?;
    }
    server.is_mirror = !is_itself(&server, registry);
    // A host that is named as a mirror too is not asked twice.
    mirrors.retain(|host| (&host.authority, &host.path) != (&server.authority, &server.path));
    mirrors.push(server);
    Ok(mirrors)
}

fn is_itself(host: &Host, registry: &str) -> bool {
    Host::name_of(&host.authority) == registry
}

/// Where in a file something is.
struct At {
    span: Option<Range<usize>>,
    /// The key with those around it.
    key: String,
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

impl File<'_> {
    fn invalid(
        &self,
        span: Option<Range<usize>>,
        key: String,
        reason: impl Into<String>,
    ) -> HostsError {
        let start = span.map_or(0, |span| span.start).min(self.text.len());
        let before = &self.text.as_bytes()[..start];
        HostsError::Invalid {
            path: self.path.to_owned(),
            line: before.iter().filter(|b| **b == b'\n').count() + 1,
            key,
            reason: reason.into(),
        }
    }

    fn wrong(&self, at: &At, reason: impl Into<String>) -> HostsError {
        self.invalid(at.span.clone(), at.key.clone(), reason)
    }

    fn at(&self, table: &dyn TableLike, key: &str, item: &Item, around: &str) -> At {
        let own = table.key(key);
        let span = own.and_then(|key| key.span()).or_else(|| item.span());
        let is_bare = key
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
        let key = if is_bare {
            key.to_owned()
        } else {
            format!("{key:?}")
        };
        At {
            span,
            key: match around {
                "" => key,
                _ => format!("{around}.{key}"),
            },
        }
    }

    /// All of `[host."…"]`.
    fn hosts(&self, item: &Item, at: &At, registry: &str) -> Result<Vec<Host>, HostsError> {
        let table = self.table_of(item, at)?;
        let mut hosts = Vec::new();
        for (url, item) in table.iter() {
            let at = self.at(table, url, item, &at.key);
            let settings = self.table_of(item, &at)?;
            let mut host = Host::new(registry);
            for (key, item) in settings.iter() {
                let at = self.at(settings, key, item, &at.key);
                self.set(&mut host, key, item, &at)?;
            }
            self.set_url(&mut host, url, &at)?;
            host.is_mirror = !is_itself(&host, registry);
            hosts.push(host);
        }
        Ok(hosts)
    }

    fn table_of<'i>(&self, item: &'i Item, at: &At) -> Result<&'i dyn TableLike, HostsError> {
        item.as_table_like().ok_or_else(|| {
            let found = item.type_name();
            self.wrong(at, format!("a table is wanted, such as `[host.\"https://mirror.example\"]`; this is of the type {found}"))
        })
    }

    /// The scheme, host and path of `server`, or of a host's name.
    fn set_url(&self, host: &mut Host, text: &str, at: &At) -> Result<(), HostsError> {
        // As containerd does: a host alone is one with TLS.
        let whole = match text.contains("://") {
            true => text.to_owned(),
            false => format!("https://{text}"),
        };
        let wrong = |reason: &str| {
            self.wrong(at, format!("`{text}` is not the address of a registry host, such as `https://mirror.example:5000`: {reason}"))
        };
        let url = Url::parse(&whole).map_err(|e| wrong(&e.to_string()))?;
        host.scheme = match url.scheme() {
            "https" => Scheme::Https,
            "http" => Scheme::Http,
            _ => return Err(wrong("its scheme is neither http nor https")),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong(
                "credentials belong into ~/.docker/config.json or imagePullSecrets",
            ));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("it has a query or a fragment"));
        }
        let name = url.host_str().ok_or_else(|| wrong("it has no host"))?;
        host.authority = match url.port() {
            Some(port) => format!("{name}:{port}"),
            None => name.to_owned(),
        };
        Host::name_of(&host.authority).clone_into(&mut host.name);
        // `override_path` was read before: an empty path marks it.
        let path = url.path().trim_end_matches('/');
        let overrides = host.path.is_empty();
        host.path = match overrides || path.ends_with(API_PATH) {
            true => path.to_owned(),
            false => format!("{path}{API_PATH}"),
        };
        Ok(())
    }

    /// One key of a host.
    fn set(&self, host: &mut Host, key: &str, item: &Item, at: &At) -> Result<(), HostsError> {
        match key {
            "capabilities" => host.capabilities = self.capabilities(item, at)?,
            "ca" => {
                let texts = self.texts_of(item, at)?;
                host.ca_files = texts.iter().map(|text| self.absolute(text)).collect();
            }
            "client" => host.client_certificates = self.client(item, at)?,
            "skip_verify" => host.skip_verify = self.bool_of(item, at)?,
            "override_path" if self.bool_of(item, at)? => host.path.clear(),
            "override_path" => {}
            "header" => host.headers = self.headers(item, at)?,
            "dial_timeout" => host.dial_timeout = Some(self.duration_of(item, at)?),
            _ => {
                let place = if at.key.starts_with("host.") {
                    String::new()
                } else {
                    "server, host, ".to_owned()
                };
                let reason = format!("unknown key; known are {place}{HOST_KEYS}");
                return Err(self.wrong(at, reason));
            }
        }
        Ok(())
    }

    fn capabilities(&self, item: &Item, at: &At) -> Result<Capabilities, HostsError> {
        let mut capabilities = Capabilities {
            pull: false,
            resolve: false,
            push: false,
        };
        for text in self.texts_of(item, at)? {
            match text {
                "pull" => capabilities.pull = true,
                "resolve" => capabilities.resolve = true,
                "push" => capabilities.push = true,
                other => {
                    let reason = format!(
                        "unknown capability `{other}`; known are `pull`, `resolve` and `push`"
                    );
                    return Err(self.wrong(at, reason));
                }
            }
        }
        Ok(capabilities)
    }

    /// One file with both, or an array of such files and of pairs.
    fn client(&self, item: &Item, at: &At) -> Result<Vec<ClientCertificate>, HostsError> {
        let one = |certificate: &str, key: Option<&str>| ClientCertificate {
            certificate: self.absolute(certificate),
            key: key
                .filter(|key| !key.is_empty())
                .map(|key| self.absolute(key)),
        };
        let wrong = || {
            self.wrong(
                at,
                "it must be a path, or an array of paths and of pairs such as [\"client.cert\", \"client.key\"]",
            )
        };
        if let Some(text) = item.as_str() {
            return Ok(vec![one(text, None)]);
        }
        let entries = item.as_array().ok_or_else(wrong)?;
        let read = |entry: &Value| match entry {
            Value::String(text) => Some(one(text.value(), None)),
            Value::Array(pair) => {
                let texts: Option<Vec<_>> = pair.iter().map(Value::as_str).collect();
                match texts?[..] {
                    [certificate] => Some(one(certificate, None)),
                    [certificate, key] => Some(one(certificate, Some(key))),
                    _ => None,
                }
            }
            _ => None,
        };
        let read: Option<Vec<_>> = entries.iter().map(read).collect();
        read.ok_or_else(wrong)
    }

    fn headers(&self, item: &Item, at: &At) -> Result<Vec<(HeaderName, HeaderValue)>, HostsError> {
        let table = item
            .as_table_like()
            .ok_or_else(|| self.wrong(at, "it must be a table of header names and texts"))?;
        let mut headers = Vec::new();
        for (key, item) in table.iter() {
            let at = self.at(table, key, item, &at.key);
            let name = HeaderName::try_from(key)
                .map_err(|_| self.wrong(&at, "this is not the name of an HTTP header"))?;
            for text in self.texts_of(item, &at)? {
                let mut value = HeaderValue::try_from(text)
                    .map_err(|_| self.wrong(&at, "this is not the value of an HTTP header"))?;
                // It may be a secret.
                value.set_sensitive(true);
                headers.push((name.clone(), value));
            }
        }
        Ok(headers)
    }

    /// A text, or an array of texts.
    fn texts_of<'i>(&self, item: &'i Item, at: &At) -> Result<Vec<&'i str>, HostsError> {
        if let Some(text) = item.as_str() {
            return Ok(vec![text]);
        }
        let texts = item
            .as_array()
            .and_then(|array| array.iter().map(Value::as_str).collect());
        texts.ok_or_else(|| {
            let found = item.type_name();
            self.wrong(
                at,
                format!("it must be a string, or an array of strings; this is of the type {found}"),
            )
        })
    }

    fn text_of<'i>(&self, item: &'i Item, at: &At) -> Result<&'i str, HostsError> {
        let found = item.type_name();
        item.as_str().ok_or_else(|| {
            self.wrong(
                at,
                format!("it must be a string; this is of the type {found}"),
            )
        })
    }

    fn bool_of(&self, item: &Item, at: &At) -> Result<bool, HostsError> {
        let found = item.type_name();
        item.as_bool().ok_or_else(|| {
            self.wrong(
                at,
                format!("it must be true or false; this is of the type {found}"),
            )
        })
    }

    /// Go's durations, of one unit or several: `1m30s`.
    fn duration_of(&self, item: &Item, at: &At) -> Result<Duration, HostsError> {
        let text = self.text_of(item, at)?;
        parse_duration(text)
            .filter(|duration| !duration.is_zero())
            .ok_or_else(|| {
                self.wrong(
                    at,
                    format!("`{text}` is not a duration such as `5s` or `500ms`"),
                )
            })
    }

    fn absolute(&self, path: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("/")).join(path)
    }
}

/// `time.ParseDuration` of Go, without signs and fractions.
fn parse_duration(mut text: &str) -> Option<Duration> {
    let mut whole = Duration::ZERO;
    while !text.is_empty() {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = text.split_at(digits);
        let number: u64 = number.parse().ok()?;
        let letters = rest.bytes().take_while(|b| !b.is_ascii_digit()).count();
        let (unit, rest) = rest.split_at(letters);
        let millis = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        whole = whole.checked_add(Duration::from_millis(number.checked_mul(millis)?))?;
        text = rest;
    }
    Some(whole)
}

#[cfg(test)]
mod tests;
