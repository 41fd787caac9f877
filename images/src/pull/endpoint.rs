//! One repository at one registry or mirror: requests and tokens.

use std::sync::RwLock;
use std::time::{Duration, SystemTime};

use futures_util::future::{BoxFuture, FutureExt};
use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, RANGE, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode};

use super::auth::{self, Challenge, TokenAnswer};
use super::{Credentials, PullError, PullOptions, client};
use crate::digest::{Digest, Hasher};
use crate::manifest::{
    DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, MANIFEST_MAX_BYTES, OCI_INDEX, OCI_MANIFEST,
};
use crate::reference::Reference;

/// Tries in a row that bring nothing, before a request or download is given up.
pub(super) const TRIES_MAX: u32 = 5;
/// The first wait between tries; it doubles up to the other.
const BACK_OFF_MIN: Duration = Duration::from_millis(500);
const BACK_OFF_MAX: Duration = Duration::from_secs(8);
/// An error message longer than this is a web page.
const MESSAGE_MAX_BYTES: u64 = 4096;
const TOKEN_MAX_BYTES: u64 = 1 << 20;

pub(super) struct Endpoint {
    http: reqwest::Client,
    registry: String,
    scheme: &'static str,
    /// `https://host/v2/repository`.
    base: String,
    /// `?ns=registry` when this is a mirror of another registry.
    query: String,
    reference: Reference,
    credentials: Option<Credentials>,
    /// The header that the registry took last.
    authorization: RwLock<Option<HeaderValue>>,
}

impl Endpoint {
    pub(super) fn new(
        registry: &str,
        reference: &Reference,
        options: &PullOptions,
        credentials: Option<Credentials>,
    ) -> Result<Self, PullError> {
        let plain_http = options.registries.plain_http.contains(registry);
        let scheme = if plain_http { "http" } else { "https" };
        // The registry's API is at another host than its name.
        let host = match registry {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let query = if registry == reference.registry() {
            String::new()
        } else {
            format!("?ns={}", reference.registry())
        };
        let authorization = match &credentials {
            Some(Credentials::Bearer(token)) => auth::bearer(token),
            _ => None,
        };
        Ok(Self {
            http: client::build(registry, plain_http, &options.registries)?,
            registry: registry.to_owned(),
            scheme,
            base: format!("{scheme}://{host}/v2/{}", reference.repository()),
            query,
            reference: reference.clone(),
            credentials,
            authorization: RwLock::new(authorization),
        })
    }

    pub(super) fn registry(&self) -> &str {
        &self.registry
    }

    /// A manifest or index: the one with this digest, or the one that the tag means.
    pub(super) async fn manifest(
        &self,
        digest: Option<&Digest>,
    ) -> Result<(Digest, Vec<u8>), PullError> {
        let name = match (digest, self.reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        };
        let path = format!("manifests/{name}");
        let accept = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_INDEX].join(", ");
        let (json, stated) = self
            .with_retries(|| {
                async {
                    let response = self.get(&path, &accept, None).await?;
                    let stated = response.headers().get("Docker-Content-Digest").cloned();
                    let json = self
                        .body(response, "the manifest", MANIFEST_MAX_BYTES)
                        .await?;
                    Ok((json, stated))
                }
                .boxed()
            })
            .await?;
        let stated = stated.and_then(|value| value.to_str().ok()?.parse::<Digest>().ok());
        let Some(expected) = digest.cloned().or(stated) else {
            return Ok((Digest::sha256(&json), json));
        };
        self.check("a manifest", expected.clone(), &json)?;
        Ok((expected, json))
    }

    /// A blob that fits into memory.
    pub(super) async fn small_blob(
        &self,
        descriptor: &Descriptor,
        max_bytes: u64,
    ) -> Result<Vec<u8>, PullError> {
        let path = format!("blobs/{}", descriptor.digest);
        let content = self
            .with_retries(|| {
                async {
                    let response = self.get(&path, "*/*", None).await?;
                    self.body(response, "the configuration", max_bytes).await
                }
                .boxed()
            })
            .await?;
        self.check("a configuration", descriptor.digest.clone(), &content)?;
        Ok(content)
    }

    /// Something small that belongs to the image, such as a signature; none where the registry has none. The caller checks
    /// its digest.
    pub(super) async fn beside(
        &self,
        path: &str,
        accept: &str,
        what: &'static str,
        max_bytes: u64,
    ) -> Result<Option<Vec<u8>>, PullError> {
        let fetched = self
            .with_retries(|| {
                async {
                    let response = self.get(path, accept, None).await?;
                    self.body(response, what, max_bytes).await
                }
                .boxed()
            })
            .await;
        match fetched {
            Ok(content) => Ok(Some(content)),
            // What a registry answers to an interface that it does not know.
            Err(PullError::NotFound { .. })
            | Err(PullError::Status {
                status: 400 | 405 | 406 | 415,
                ..
            }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// One GET, with a token where one is asked for.
    pub(super) async fn get(
        &self,
        path: &str,
        accept: &str,
        range_from: Option<u64>,
    ) -> Result<Response, PullError> {
        let url = format!("{}/{path}{}", self.base, self.query);
        let mut authorized = false;
        loop {
            let mut request = self.http.get(&url).header(ACCEPT, accept);
            if let Some(offset) = range_from {
                request = request.header(RANGE, format!("bytes={offset}-"));
            }
            let authorization = self.authorization();
            if let Some(value) = &authorization {
                request = request.header(AUTHORIZATION, value.clone());
            }
            let response = request.send().await.map_err(|e| self.connect(e))?;
            if response.status() == StatusCode::UNAUTHORIZED && !authorized {
                authorized = true;
                // Another request may have got a token meanwhile.
                if self.authorization() == authorization {
                    let value = self.authorize(&response).await?;
                    *self
                        .authorization
                        .write()
                        .unwrap_or_else(|e| e.into_inner()) = Some(value);
                }
                continue;
            }
            if response.status().is_success() {
                return Ok(response);
            }
            return Err(self.refusal(response, path).await);
        }
    }

    fn authorization(&self) -> Option<HeaderValue> {
        let value = self.authorization.read();
        value.unwrap_or_else(|e| e.into_inner()).clone()
    }

    /// Does what a 401 asks for.
    async fn authorize(&self, response: &Response) -> Result<HeaderValue, PullError> {
        let challenges = response.headers().get_all(WWW_AUTHENTICATE);
        let challenge = challenges
            .iter()
            .filter_map(|value| Challenge::parse(value.to_str().ok()?))
            .next()
            .ok_or_else(|| self.protocol("it asks for no known kind of credentials".to_owned()))?;
        let header = match (challenge, &self.credentials) {
            (Challenge::Basic, Some(Credentials::Basic { username, password })) => {
                auth::basic(username, password)
            }
            (Challenge::Basic, _) => None,
            (
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                },
                _,
            ) => self.token(&realm, service, scope).await?,
        };
        header.ok_or_else(|| self.unauthorized())
    }

    pub(super) async fn token(
        &self,
        realm: &str,
        service: Option<String>,
        scope: Option<String>,
    ) -> Result<Option<HeaderValue>, PullError> {
        if self.scheme == "https" && !realm.starts_with("https://") {
            return Err(self.protocol(format!(
                "it wants credentials sent to `{realm}`, which is not https"
            )));
        }
        let repository = self.reference.repository();
        let scope = scope.unwrap_or_else(|| format!("repository:{repository}:pull"));
        let service = service.unwrap_or_default();
        let mut url = reqwest::Url::parse(realm)
            .map_err(|e| self.protocol(format!("its token address `{realm}` is malformed: {e}")))?;
        let request = match &self.credentials {
            Some(Credentials::IdentityToken(token)) => {
                let body = form(&[
                    ("grant_type", "refresh_token"),
                    ("service", &service),
                    ("client_id", "podling"),
                    ("scope", &scope),
                    ("refresh_token", token),
                ]);
                self.http
                    .post(url)
                    .header("Content-Type", "application/x-www-form-urlencoded")
                    .body(body)
            }
            credentials => {
                url.query_pairs_mut()
                    .append_pair("service", &service)
                    .append_pair("scope", &scope);
                let request = self.http.get(url);
                match credentials {
                    Some(Credentials::Basic { username, password }) => {
                        let value = auth::basic(username, password);
                        request.header(AUTHORIZATION, value.ok_or_else(|| self.unauthorized())?)
                    }
                    _ => request,
                }
            }
        };
        let response = request.send().await.map_err(|e| self.connect(e))?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.unauthorized()),
            _ => return Err(self.refusal(response, "a token").await),
        }
        let body = self.body(response, "the token", TOKEN_MAX_BYTES).await?;
        let answer: TokenAnswer = serde_json::from_slice(&body)
            .map_err(|e| self.protocol(format!("its token answer is malformed: {e}")))?;
        Ok(answer.into_header())
    }

    /// Turns a response that is no success into an error with what the registry says.
    async fn refusal(&self, response: Response, what: &str) -> PullError {
        match response.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return self.unauthorized(),
            StatusCode::NOT_FOUND => {
                return PullError::NotFound {
                    reference: Box::new(self.reference.clone()),
                    registry: self.registry.clone(),
                };
            }
            _ => {}
        }
        let status = response.status();
        let body = self.body(response, "the error", MESSAGE_MAX_BYTES).await;
        let message = body.ok().and_then(|body| error_message(&body));
        PullError::Status {
            registry: self.registry.clone(),
            status: status.as_u16(),
            what: what.to_owned(),
            message: message
                .or_else(|| status.canonical_reason().map(str::to_owned))
                .unwrap_or_default(),
        }
    }

    async fn body(
        &self,
        mut response: Response,
        what: &str,
        max_bytes: u64,
    ) -> Result<Vec<u8>, PullError> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| self.connect(e))? {
            body.extend_from_slice(&chunk);
            if body.len() as u64 > max_bytes {
                return Err(self.protocol(format!("{what} is larger than {max_bytes} bytes")));
            }
        }
        Ok(body)
    }

    /// Tries again what may help. Reading only, so that it may be repeated.
    async fn with_retries<'a, T>(
        &self,
        request: impl Fn() -> BoxFuture<'a, Result<T, PullError>>,
    ) -> Result<T, PullError> {
        let mut failures = 0;
        loop {
            match request().await {
                // Who is not there at all is reported at once: the caller has a back-off of its own.
                Err(e @ PullError::Connect { .. }) if is_refused(&e) => return Err(e),
                Err(e) if e.is_transient() && failures + 1 < TRIES_MAX => failures += 1,
                other => return other,
            }
            tokio::time::sleep(back_off(failures)).await;
        }
    }

    fn check(&self, what: &'static str, expected: Digest, content: &[u8]) -> Result<(), PullError> {
        let mut hasher = Hasher::new(expected.algorithm());
        hasher.update(content);
        let actual = hasher.finish();
        if actual == expected {
            return Ok(());
        }
        Err(PullError::Mismatch {
            registry: self.registry.clone(),
            what,
            expected,
            actual,
        })
    }

    pub(super) fn connect(&self, error: reqwest::Error) -> PullError {
        PullError::Connect {
            registry: self.registry.clone(),
            scheme: self.scheme,
            source: error.into(),
        }
    }

    pub(super) fn protocol(&self, what: String) -> PullError {
        PullError::Protocol {
            registry: self.registry.clone(),
            what,
        }
    }

    fn unauthorized(&self) -> PullError {
        PullError::Unauthorized {
            reference: Box::new(self.reference.clone()),
            registry: self.registry.clone(),
            with_credentials: self.credentials.is_some(),
        }
    }
}

/// True when nobody listens there, or the name is unknown.
fn is_refused(error: &PullError) -> bool {
    matches!(error, PullError::Connect { source, .. } if source.is_at_connect())
}

/// Doubles with each failure, with a jitter of up to a half so that nodes do not come back together.
pub(super) fn back_off(failures: u32) -> Duration {
    let wait = BACK_OFF_MIN * 2_u32.saturating_pow(failures.saturating_sub(1));
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let jitter = now.map_or(0, |now| now.subsec_nanos() % 500);
    let wait = wait.min(BACK_OFF_MAX);
    wait + wait * jitter / 1000
}

/// `application/x-www-form-urlencoded`.
fn form(pairs: &[(&str, &str)]) -> String {
    let mut url = match reqwest::Url::parse("http://unused") {
        Ok(url) => url,
        Err(_) => return String::new(),
    };
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}

/// The first message of a registry's error (distribution-spec, "Error Codes").
fn error_message(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<RegistryError>,
    }
    #[derive(serde::Deserialize)]
    struct RegistryError {
        code: Option<String>,
        message: Option<String>,
    }
    let errors: Errors = serde_json::from_slice(body).ok()?;
    let first = errors.errors.into_iter().next()?;
    let parts = [first.code, first.message];
    Some(parts.into_iter().flatten().collect::<Vec<_>>().join(": "))
}
