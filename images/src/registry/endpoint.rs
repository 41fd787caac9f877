//! One repository at one host: requests, redirects, tokens, retries.
//!
//! ```text
//! request ─► host ─┬─ 2xx ─► answer
//!                  ├─ 3xx ─► the same request there; to another host without credentials and without own headers
//!                  ├─ 401 ─► token or name and password, once; then again
//!                  └─ 408, 429, 5xx, a broken connection ─► after a wait again, a few times
//! ```

use std::sync::RwLock;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, HeaderMap, HeaderName, HeaderValue, LOCATION, RANGE,
    RETRY_AFTER,
};
use reqwest::{Method, Response, StatusCode, Url};

use super::host::Host;
use super::patience::{Patience, retry_after};
use super::proxy::Proxies;
use super::web_page::unless_page;
use super::{Access, Credentials, RegistryError, RetryListener, auth, client};
use crate::digest::{Digest, Hasher};
use crate::manifest::{
    DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, MANIFEST_MAX_BYTES, OCI_INDEX, OCI_MANIFEST,
};
use crate::reference::Reference;

/// An error message longer than this is a web page.
const MESSAGE_MAX_BYTES: u64 = 4096;
/// As many as browsers and Go's client follow, about; registries need one or two.
const REDIRECTS_MAX: usize = 10;
/// What a registry says the manifest's digest is (distribution-spec, "Pulling manifests").
pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What an endpoint is used for: the actions of a token (distribution's "Token Scope Documentation").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Pull,
    Push,
}

pub(crate) struct Endpoint {
    pub(super) http: reqwest::Client,
    pub(super) host: Host,
    patience: Patience,
    retries: RetryListener,
    pub(super) reference: Reference,
    pub(super) credentials: Option<Credentials>,
    pub(super) purpose: Purpose,
    /// `https://host/v2/repository`.
    base: Url,
    /// `ns=registry` when this is a mirror of another registry.
    query: Option<String>,
    /// The header that the registry took last.
    authorization: RwLock<Option<HeaderValue>>,
}

/// One request, which may be sent more than once.
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Option<Vec<u8>>,
    /// What it is for, for errors.
    pub(crate) what: &'a str,
}

impl Endpoint {
    pub(super) fn new(
        host: &Host,
        reference: &Reference,
        access: &Access,
        purpose: Purpose,
        credentials: Option<Credentials>,
    ) -> Result<Self, RegistryError> {
        let (scheme, authority, path) = (host.scheme.name(), &host.authority, &host.path);
        let repository = reference.repository();
        let base = format!("{scheme}://{authority}{path}/{repository}");
        let base = Url::parse(&base).map_err(|e| RegistryError::Client {
            registry: host.name.clone(),
            reason: format!("`{base}` is not an address: {e}"),
        })?;
        let patience = &access.registries.patience;
        let authorization = match &credentials {
            Some(Credentials::Bearer(token)) => auth::bearer(token),
            _ => None,
        };
        Ok(Self {
            http: client::build(host, patience, Proxies::from_environment()?)?,
            host: host.clone(),
            patience: patience.clone(),
            retries: access.retries.clone(),
            reference: reference.clone(),
            credentials,
            purpose,
            base,
            query: host
                .is_mirror
                .then(|| format!("ns={}", reference.registry())),
            authorization: RwLock::new(authorization),
        })
    }

    /// The host's name.
    pub(crate) fn registry(&self) -> &str {
        &self.host.name
    }

    /// An address below the repository.
    pub(crate) fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/{path}", self.base.path()));
        url.set_query(self.query.as_deref());
        url
    }

    /// How long this host is waited for.
    pub(crate) fn patience(&self) -> &Patience {
        &self.patience
    }

    /// True for addresses of this host, which get its credentials and headers.
    pub(crate) fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    /// A request with this host's headers if it goes there, and the authorization to send with it.
    pub(crate) fn builder(
        &self,
        method: Method,
        url: &Url,
    ) -> (reqwest::RequestBuilder, Option<HeaderValue>) {
        let builder = self.http.request(method, url.clone());
        if !self.is_own(url) {
            return (builder, None);
        }
        let headers = self.host.headers.iter().cloned().collect();
        (builder.headers(headers), self.authorization())
    }

    /// An address that the registry gave, which may be relative (RFC 9110, section 10.2.2).
    pub(crate) fn join(&self, location: &str) -> Result<Url, RegistryError> {
        let url = self.joined(location)?;
        match (self.base.scheme(), url.scheme()) {
            ("https", "https") | ("http", "http" | "https") => Ok(url),
            _ => Err(self.protocol("it sends to an address without TLS".to_owned())),
        }
    }

    fn joined(&self, location: &str) -> Result<Url, RegistryError> {
        self.base.join(location).map_err(|e| {
            self.protocol(format!(
                "it sends to `{location}`, which is no address: {e}"
            ))
        })
    }

    fn get(&self, path: &str) -> Request<'_> {
        Request {
            method: Method::GET,
            url: self.url(path),
            headers: HeaderMap::new(),
            body: None,
            what: "",
        }
    }

    /// A manifest or index by tag or digest. Checked against the digest if one is given, or if the registry states one.
    pub(crate) async fn manifest(
        &self,
        name: &str,
        digest: Option<&Digest>,
    ) -> Result<(Digest, Vec<u8>), RegistryError> {
        let path = format!("manifests/{name}");
        let mut request = self.get(&path);
        request.headers.insert(ACCEPT, accepted_manifests());
        request.what = &path;
        let (headers, json) = self
            .small_answer(&request, "the manifest", MANIFEST_MAX_BYTES)
            .await?;
        let Some(expected) = digest.cloned().or_else(|| stated_digest(&headers)) else {
            return Ok((Digest::sha256(&json), json));
        };
        self.check("a manifest", expected.clone(), &json)?;
        Ok((expected, json))
    }

    /// What a tag means now, without fetching it; none if the registry does not say. Docker's registry does not count
    /// this as a pull.
    pub(crate) async fn resolve(&self, name: &str) -> Result<Option<Digest>, RegistryError> {
        let path = format!("manifests/{name}");
        let mut request = self.get(&path);
        request.method = Method::HEAD;
        request.headers.insert(ACCEPT, accepted_manifests());
        request.what = &path;
        let (headers, _) = self.small_answer(&request, "the answer", 0).await?;
        Ok(stated_digest(&headers))
    }

    /// A blob that fits into memory.
    pub(crate) async fn small_blob(
        &self,
        descriptor: &Descriptor,
        what: &'static str,
        max_bytes: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let path = format!("blobs/{}", descriptor.digest);
        let mut request = self.get(&path);
        request.what = &path;
        let (_, content) = self.small_answer(&request, what, max_bytes).await?;
        self.check(what, descriptor.digest.clone(), &content)?;
        Ok(content)
    }

    /// Opens a blob at an offset: gives the response, and how many bytes of it come before the offset, because the
    /// registry sends all again.
    pub(super) async fn open_blob(
        &self,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<(Response, u64), RegistryError> {
        let path = format!("blobs/{}", descriptor.digest);
        let mut request = self.get(&path);
        request.what = &path;
        if offset > 0 {
            let range = HeaderValue::try_from(format!("bytes={offset}-"));
            request
                .headers
                .extend(range.ok().map(|range| (RANGE, range)));
        }
        let sent = self.send(&request).await;
        // A registry may refuse the range instead of ignoring it (RFC 9110, section 15.5.17).
        let refused = matches!(&sent, Err(RegistryError::Status { status: 416, .. }));
        let response = if refused && offset > 0 {
            request.headers.remove(RANGE);
            self.send(&request).await?
        } else {
            sent?
        };
        let skip = match (response.status(), range_start(&response)) {
            (StatusCode::PARTIAL_CONTENT, Some(start)) if start == offset => 0,
            (StatusCode::PARTIAL_CONTENT, start) => {
                let start = start.map_or("nowhere".to_owned(), |start| start.to_string());
                return Err(self.protocol(format!(
                    "asked for {path} from byte {offset}, it sends from {start}"
                )));
            }
            _ => offset,
        };
        let rest = descriptor.size - offset.min(descriptor.size) + skip;
        if response.content_length() != Some(rest)
            && let Some(page) = self.web_page(&response, &path)
        {
            return Err(page);
        }
        match response.content_length() {
            Some(len) if len > rest => Err(self.protocol(format!(
                "layer {} is larger than the {} bytes of the manifest",
                descriptor.digest, descriptor.size
            ))),
            Some(len) if len < rest => Err(self.protocol(format!(
                "layer {} has {} bytes instead of the {} bytes of the manifest",
                descriptor.digest,
                descriptor.size - rest + len,
                descriptor.size
            ))),
            _ => Ok((response, skip)),
        }
    }

    /// Sends a request, with a token where one is asked for, and follows redirects. Gives a success or an error.
    pub(crate) async fn send(&self, request: &Request<'_>) -> Result<Response, RegistryError> {
        let mut url = request.url.clone();
        let mut authorized = false;
        let mut redirects = 0;
        loop {
            let is_own = self.is_own(&url);
            let (response, authorization) = self.exchange(request, &url).await?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if status == StatusCode::UNAUTHORIZED && is_own && !authorized {
                authorized = true;
                self.renew(&response, authorization).await?;
            } else if status.is_redirection()
                && let Some(location) = response.headers().get(LOCATION)
            {
                redirects += 1;
                if redirects > REDIRECTS_MAX {
                    let what = request.what;
                    return Err(self.protocol(format!(
                        "it redirects more than {REDIRECTS_MAX} times for {what}"
                    )));
                }
                url = self.redirected(request, &url, location)?;
            } else if is_own {
                return Err(self.refusal(response, request.what).await);
            } else {
                return Err(RegistryError::Storage {
                    registry: self.host.name.clone(),
                    host: url.host_str().unwrap_or_default().to_owned(),
                    what: request.what.to_owned(),
                    status: status.as_u16(),
                });
            }
        }
    }

    /// One request and the head of its answer, with the authorization that was sent.
    async fn exchange(
        &self,
        request: &Request<'_>,
        url: &Url,
    ) -> Result<(Response, Option<HeaderValue>), RegistryError> {
        let (builder, authorization) = self.builder(request.method.clone(), url);
        let mut builder = builder.headers(request.headers.clone());
        if let Some(value) = &authorization {
            builder = builder.header(AUTHORIZATION, value.clone());
        }
        if let Some(body) = &request.body {
            builder = builder.body(body.clone());
        }
        match tokio::time::timeout(self.patience.idle, builder.send()).await {
            Ok(sent) => Ok((sent.map_err(|e| self.connect(e))?, authorization)),
            Err(_) => Err(self.too_slow(request.what, self.patience.idle)),
        }
    }

    /// Where a redirect leads to.
    fn redirected(
        &self,
        request: &Request<'_>,
        from: &Url,
        location: &HeaderValue,
    ) -> Result<Url, RegistryError> {
        let text = String::from_utf8_lossy(location.as_bytes());
        let what = request.what;
        let to = from.join(&text).map_err(|e| {
            self.protocol(format!(
                "it redirects to what is no address for {what}: {e}"
            ))
        })?;
        // The address may be a signed one, and so a secret: only its host is told.
        let host = to.host_str().unwrap_or_default();
        match (from.scheme(), to.scheme()) {
            ("https", "http") => Err(self.protocol(format!(
                "it redirects from TLS to {host} without TLS for {what}"
            ))),
            (_, "http" | "https") if matches!(request.method, Method::GET | Method::HEAD) => Ok(to),
            (_, "http" | "https") => Err(self.protocol(format!(
                "it redirects the {} request for {what} to {host}; only reading follows redirects",
                request.method
            ))),
            (_, other) => Err(self.protocol(format!(
                "it redirects to an address with the scheme `{other}` for {what}"
            ))),
        }
    }

    /// The whole of an answer that fits into memory, in bounded time. What may help is tried again: the request must be
    /// one that may be repeated.
    pub(crate) async fn small_answer(
        &self,
        request: &Request<'_>,
        what: &str,
        max_bytes: u64,
    ) -> Result<(HeaderMap, Vec<u8>), RegistryError> {
        let once = || {
            async {
                let answer = async {
                    let response = self.send(request).await?;
                    let headers = response.headers().clone();
                    let page = self.web_page(&response, request.what);
                    let body = self.body(response, what, max_bytes).await;
                    Ok((headers, unless_page(page, body)?))
                };
                let limit = self.patience.small_answer;
                match tokio::time::timeout(limit, answer).await {
                    Ok(answered) => answered,
                    Err(_) => Err(self.too_slow(request.what, limit)),
                }
            }
            .boxed()
        };
        self.with_retries(once).await
    }

    async fn with_retries<'a, T>(
        &self,
        once: impl Fn() -> BoxFuture<'a, Result<T, RegistryError>>,
    ) -> Result<T, RegistryError> {
        let mut failures = 0;
        loop {
            match once().await {
                Ok(done) => return Ok(done),
                Err(e) => self.wait_after(e, &mut failures).await?,
            }
        }
    }

    /// Counts a failure, and waits for the next try; gives the error back when it was the last.
    pub(crate) async fn wait_after(
        &self,
        error: RegistryError,
        failures: &mut u32,
    ) -> Result<(), RegistryError> {
        *failures += 1;
        self.retries.wait(&self.patience, error, *failures).await
    }

    fn authorization(&self) -> Option<HeaderValue> {
        let value = self.authorization.read();
        value.unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Does what a 401 asks for, unless another request has done so since `used` was sent.
    pub(crate) async fn renew(
        &self,
        response: &Response,
        used: Option<HeaderValue>,
    ) -> Result<(), RegistryError> {
        if self.authorization() != used {
            return Ok(());
        }
        let value = self.authorize(response).await?;
        *self
            .authorization
            .write()
            .unwrap_or_else(|e| e.into_inner()) = Some(value);
        Ok(())
    }

    /// Turns a response that is no success into an error with what the registry says.
    pub(crate) async fn refusal(&self, response: Response, what: &str) -> RegistryError {
        let status = response.status();
        let is_manifest = what.starts_with("manifests/");
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return self.unauthorized(),
            StatusCode::NOT_FOUND if is_manifest => {
                return RegistryError::NotFound {
                    reference: Box::new(self.reference.clone()),
                    registry: self.host.name.clone(),
                };
            }
            _ => {}
        }
        let wait = response.headers().get(RETRY_AFTER);
        let wait = wait.and_then(|value| retry_after(value.to_str().ok()?, jiff::Timestamp::now()));
        let body = self.body(response, "the error", MESSAGE_MAX_BYTES);
        let body = tokio::time::timeout(self.patience.idle, body).await;
        let message = body
            .ok()
            .and_then(Result::ok)
            .and_then(|body| error_message(&body));
        RegistryError::Status {
            registry: self.host.name.clone(),
            status: status.as_u16(),
            what: what.to_owned(),
            message: message
                .or_else(|| status.canonical_reason().map(str::to_owned))
                .unwrap_or_default(),
            retry_after: wait,
        }
    }

    pub(super) async fn body(
        &self,
        mut response: Response,
        what: &str,
        max_bytes: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(&mut response, what).await? {
            body.extend_from_slice(&chunk);
            if body.len() as u64 > max_bytes {
                return Err(self.protocol(format!("{what} is larger than {max_bytes} bytes")));
            }
        }
        Ok(body)
    }

    /// The next piece of a body.
    pub(super) async fn chunk(
        &self,
        response: &mut Response,
        what: &str,
    ) -> Result<Option<bytes::Bytes>, RegistryError> {
        match tokio::time::timeout(self.patience.idle, response.chunk()).await {
            Ok(chunk) => chunk.map_err(|e| RegistryError::BrokenOff {
                registry: self.host.name.clone(),
                what: what.to_owned(),
                source: e.into(),
            }),
            Err(_) => Err(self.too_slow(what, self.patience.idle)),
        }
    }

    fn check(
        &self,
        what: &'static str,
        expected: Digest,
        content: &[u8],
    ) -> Result<(), RegistryError> {
        let mut hasher = Hasher::new(expected.algorithm());
        hasher.update(content);
        let actual = hasher.finish();
        if actual == expected {
            return Ok(());
        }
        Err(RegistryError::Mismatch {
            registry: self.host.name.clone(),
            what,
            expected,
            actual,
        })
    }

    pub(crate) fn connect(&self, error: reqwest::Error) -> RegistryError {
        RegistryError::Connect {
            registry: self.host.name.clone(),
            scheme: self.host.scheme.name(),
            source: error.into(),
        }
    }

    pub(crate) fn too_slow(&self, what: &str, waited: Duration) -> RegistryError {
        RegistryError::TooSlow {
            registry: self.host.name.clone(),
            what: format!("nothing of {what} came in {}", seconds(waited)),
        }
    }

    pub(crate) fn protocol(&self, what: String) -> RegistryError {
        RegistryError::Protocol {
            registry: self.host.name.clone(),
            what,
        }
    }

    pub(crate) fn unauthorized(&self) -> RegistryError {
        RegistryError::Unauthorized {
            reference: Box::new(self.reference.clone()),
            registry: self.host.name.clone(),
            with_credentials: self.credentials.is_some(),
        }
    }
}

/// In whole seconds; what is shorter than one, as it is.
pub(super) fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0 => format!("{time:?}"),
        _ => format!("{:.0} s", time.as_secs_f64()),
    }
}

/// What [`crate::manifest`] can read.
fn accepted_manifests() -> HeaderValue {
    let all = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX].join(", ");
    HeaderValue::try_from(all).unwrap_or_else(|_| HeaderValue::from_static("*/*"))
}

fn stated_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get(CONTENT_DIGEST)?.to_str().ok()?.parse().ok()
}

/// Where the part begins that the response holds (RFC 9110, section 14.4).
fn range_start(response: &Response) -> Option<u64> {
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    let start = range.strip_prefix("bytes ")?.split('-').next()?;
    start.parse().ok()
}

/// The first message of a registry's error (distribution-spec, "Error Codes").
fn error_message(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<OneError>,
    }
    #[derive(serde::Deserialize)]
    struct OneError {
        code: Option<String>,
        message: Option<String>,
    }
    let errors: Errors = serde_json::from_slice(body).ok()?;
    let first = errors.errors.into_iter().next()?;
    let parts = [first.code, first.message];
    Some(parts.into_iter().flatten().collect::<Vec<_>>().join(": "))
}

#[cfg(test)]
mod tests;
