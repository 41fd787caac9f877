//! One blob on its way to a registry (distribution-spec, "Pushing blobs").
//!
//! ```text
//! HEAD ─► POST, with a mount ─► PATCH of all that is missing ─► PUT with the digest
//!                                  │ breaks                      small blobs: PUT with all bytes, without PATCH
//!                                  └─► GET: how far did it come? ─► PATCH of the rest
//! ```
//! Bytes go from the file to the network as they are; the registry compares the digest.

use std::fs::File;
use std::io::SeekFrom;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::stream;
use reqwest::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION,
    RANGE,
};
use reqwest::{Body, Method, Response, StatusCode, Url};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::plan::Upload;
use super::{Arrival, Push, PushError, PushProgress};
use crate::image::LayerBlob;
use crate::pull::{PullError, fetch_blob};
use crate::registry::{Endpoint, RegistryError, Request};

/// Smaller blobs are sent in one request.
const PATCH_MIN_BYTES: u64 = 1 << 20;
/// Of the file, at once.
const PIECE_BYTES: usize = 128 * 1024;
/// Between two reports of progress.
const REPORT_BYTES: u64 = 256 * 1024;

/// Why an upload does not go on.
enum Stopped {
    /// For good.
    Failed(PushError),
    /// A connection broke, or a token expired: the registry may be asked how far it came.
    Broken(RegistryError),
}

impl From<PushError> for Stopped {
    fn from(error: PushError) -> Self {
        match error {
            PushError::Registry(error) => error.into(),
            other => Self::Failed(other),
        }
    }
}

impl From<RegistryError> for Stopped {
    fn from(error: RegistryError) -> Self {
        match error.is_transient() {
            true => Self::Broken(error),
            false => Self::Failed(error.into()),
        }
    }
}

impl Push<'_> {
    /// Makes sure that the registry has a blob.
    pub(super) async fn send(&self, blob: &Upload) -> Result<Arrival, PushError> {
        if self.is_there(blob).await? {
            return Ok(Arrival::Present);
        }
        let Some(mut url) = self.begin(blob).await? else {
            return Ok(Arrival::Mounted);
        };
        let file = self.open(blob).await?;
        let (mut offset, mut failures) = (0, 0);
        loop {
            let error = match self.go_on(blob, &file, &mut url, offset).await {
                Ok(()) => return Ok(Arrival::Uploaded),
                Err(Stopped::Failed(e)) => return Err(e),
                Err(Stopped::Broken(e)) => e,
            };
            self.endpoint.wait_after(error, &mut failures).await?;
            let reached = match self.reached(&mut url).await? {
                Some(bytes) if bytes <= blob.size_bytes => bytes,
                // The registry has forgotten the upload, or has more than there is.
                _ => match self.begin(blob).await? {
                    Some(begun) => {
                        url = begun;
                        0
                    }
                    None => return Ok(Arrival::Mounted),
                },
            };
            if reached > offset {
                failures = 0;
            }
            offset = reached;
        }
    }

    /// The blob, which is fetched if it is not here.
    async fn open(&self, blob: &Upload) -> Result<File, PushError> {
        if let Some(file) = self.store.open_blob(&blob.digest)? {
            return Ok(file);
        }
        let not_kept = |source| PushError::NotKept {
            layer: blob.digest.clone(),
            registry: self.endpoint.registry().to_owned(),
            source: Box::new(source),
        };
        let wanted = LayerBlob {
            digest: blob.digest.clone(),
            media_type: String::new(),
            size_bytes: blob.size_bytes,
        };
        let fetched = fetch_blob(self.session, &self.plan.names, self.access, &wanted);
        fetched.await.map_err(not_kept)?;
        let opened = self.store.open_blob(&blob.digest)?;
        opened.ok_or_else(|| not_kept(PullError::Cancelled))
    }

    async fn is_there(&self, blob: &Upload) -> Result<bool, RegistryError> {
        let path = format!("blobs/{}", blob.digest);
        let request = self.request(Method::HEAD, self.endpoint.url(&path), &path);
        match self.endpoint.small_answer(&request, "the answer", 0).await {
            Ok(_) => Ok(true),
            Err(
                RegistryError::Status { status: 404, .. }
                | RegistryError::Storage { status: 404, .. },
            ) => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Begins an upload: gives where the bytes go, or nothing if the registry took the blob from another repository.
    async fn begin(&self, blob: &Upload) -> Result<Option<Url>, RegistryError> {
        if let Some(from) = &blob.mount_from {
            let mut url = self.endpoint.url("blobs/uploads/");
            url.query_pairs_mut()
                .append_pair("mount", &blob.digest.to_string())
                .append_pair("from", from);
            match self.post(url).await {
                Ok(response) if response.status() == StatusCode::CREATED => return Ok(None),
                Ok(response) => return self.location(&response).map(Some),
                // The other repository may be closed to us.
                Err(e) if !e.is_transient() => {}
                Err(e) => return Err(e),
            }
        }
        let response = self.post(self.endpoint.url("blobs/uploads/")).await?;
        self.location(&response).map(Some)
    }

    /// May be repeated: an upload that is begun and not gone on with is forgotten by the registry.
    async fn post(&self, url: Url) -> Result<Response, RegistryError> {
        let mut request = self.request(Method::POST, url, "blobs/uploads/");
        let none = HeaderValue::from_static("0");
        request.headers.insert(CONTENT_LENGTH, none);
        let mut failures = 0;
        loop {
            match self.endpoint.send(&request).await {
                Ok(response) => return Ok(response),
                Err(e) => self.endpoint.wait_after(e, &mut failures).await?,
            }
        }
    }

    /// Sends what is missing, and ends the upload.
    async fn go_on(
        &self,
        blob: &Upload,
        file: &File,
        url: &mut Url,
        offset: u64,
    ) -> Result<(), Stopped> {
        let rest = offset..blob.size_bytes;
        if blob.size_bytes < PATCH_MIN_BYTES && offset == 0 {
            let to = with_digest(url, blob);
            self.exchange(Method::PUT, to, blob, file, rest).await?;
            return Ok(());
        }
        if !rest.is_empty() {
            let to = url.clone();
            let response = self.exchange(Method::PATCH, to, blob, file, rest).await?;
            *url = self.location(&response)?;
        }
        let nothing = blob.size_bytes..blob.size_bytes;
        let to = with_digest(url, blob);
        self.exchange(Method::PUT, to, blob, file, nothing).await?;
        Ok(())
    }

    /// One request with a part of the file.
    async fn exchange(
        &self,
        method: Method,
        url: Url,
        blob: &Upload,
        file: &File,
        part: std::ops::Range<u64>,
    ) -> Result<Response, Stopped> {
        let read = |source| PushError::Read {
            blob: blob.digest.clone(),
            source,
        };
        let mut headers = HeaderMap::new();
        let bytes = HeaderValue::from_static("application/octet-stream");
        headers.insert(CONTENT_TYPE, bytes);
        headers.insert(CONTENT_LENGTH, HeaderValue::from(part.end - part.start));
        if part.start > 0 && !part.is_empty() {
            // Not `bytes start-end`: the registry's own form (distribution-spec, "Pushing a blob in chunks").
            let range = HeaderValue::try_from(format!("{}-{}", part.start, part.end - 1));
            headers.extend(range.ok().map(|range| (CONTENT_RANGE, range)));
        }
        let mut file = tokio::fs::File::from_std(file.try_clone().map_err(read)?);
        let at = SeekFrom::Start(part.start);
        file.seek(at).await.map_err(read)?;
        let sent = Arc::new(AtomicU64::new(part.start));
        let body = body(file, part.clone(), Arc::clone(&sent));
        let path = format!("blobs/{}", blob.digest);
        let transfer = Transfer {
            endpoint: &self.endpoint,
            path: &path,
            sent: &sent,
            end: part.end,
            report: &|bytes| {
                self.report(|| PushProgress::Uploading {
                    blob: blob.digest.clone(),
                    bytes,
                    total_bytes: blob.size_bytes,
                });
            },
        };
        transfer.run(method, url, headers, body).await
    }

    /// How many bytes of an unfinished upload the registry has; none if it has forgotten it.
    async fn reached(&self, url: &mut Url) -> Result<Option<u64>, PushError> {
        let request = self.request(Method::GET, url.clone(), "an upload");
        let answer = self.endpoint.small_answer(&request, "the answer", 4096);
        let headers = match answer.await {
            Ok((headers, _)) => headers,
            Err(RegistryError::Status {
                status: 400..=499, ..
            }) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        if let Some(location) = headers.get(LOCATION).and_then(|value| value.to_str().ok()) {
            *url = self.endpoint.join(location)?;
        }
        let range = headers.get(RANGE).and_then(|value| value.to_str().ok());
        let last = range.and_then(|range| range.rsplit('-').next()?.parse::<u64>().ok());
        // `0-0` may be one byte or none; none does no harm.
        Ok(Some(match last {
            Some(last) if last > 0 => last + 1,
            _ => 0,
        }))
    }

    fn request<'r>(&self, method: Method, url: Url, what: &'r str) -> Request<'r> {
        Request {
            method,
            url,
            headers: HeaderMap::new(),
            body: None,
            what,
        }
    }

    /// Where an upload goes on.
    fn location(&self, response: &Response) -> Result<Url, RegistryError> {
        let location = response.headers().get(LOCATION);
        let location = location.and_then(|value| value.to_str().ok());
        match location {
            Some(location) => self.endpoint.join(location),
            None => Err(self
                .endpoint
                .web_page(response, "an upload")
                .unwrap_or_else(|| {
                    let what = "it does not say where an upload goes";
                    self.endpoint.protocol(what.to_owned())
                })),
        }
    }
}

/// A request with a body that may be large: it is given up when no byte goes out, not after a certain time.
struct Transfer<'a> {
    endpoint: &'a Endpoint,
    path: &'a str,
    /// How far the body was read.
    sent: &'a AtomicU64,
    end: u64,
    report: &'a (dyn Fn(u64) + Sync),
}

impl Transfer<'_> {
    async fn run(
        &self,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Body,
    ) -> Result<Response, Stopped> {
        let endpoint = self.endpoint;
        let (mut request, used) = endpoint.builder(method, &url);
        request = request.headers(headers).body(body);
        if let Some(value) = &used {
            request = request.header(AUTHORIZATION, value.clone());
        }
        let response = self.watch(request.send()).await?;
        match response.status() {
            status if status.is_success() => match endpoint.web_page(&response, self.path) {
                None => Ok(response),
                Some(page) => Err(page.into()),
            },
            // The body is gone: who sends it asks how far it came, and goes on with the new token.
            StatusCode::UNAUTHORIZED if endpoint.is_own(&url) => {
                endpoint.renew(&response, used).await?;
                Err(Stopped::Broken(RegistryError::TokenExpired {
                    registry: endpoint.registry().to_owned(),
                    what: self.path.to_owned(),
                }))
            }
            status if status.is_redirection() => Err(Stopped::Failed(
                endpoint
                    .protocol(format!("it redirects the upload of {}", self.path))
                    .into(),
            )),
            _ => Err(endpoint.refusal(response, self.path).await.into()),
        }
    }

    /// Waits for the answer as long as bytes go out; then as long as for any small answer, since the registry compares
    /// the digest of all that came.
    async fn watch(
        &self,
        sending: impl Future<Output = Result<Response, reqwest::Error>>,
    ) -> Result<Response, RegistryError> {
        let patience = self.endpoint.patience();
        let mut sending = std::pin::pin!(sending);
        let (mut reported, mut before) = (0, None);
        let mut quiet = std::time::Duration::ZERO;
        let tick = (patience.idle / 20).max(std::time::Duration::from_millis(10));
        loop {
            // Cancel-safe: the request is kept, and only the tick is begun anew.
            tokio::select! {
                answer = &mut sending => return answer.map_err(|e| self.endpoint.connect(e)),
                () = tokio::time::sleep(tick) => {}
            }
            let sent = self.sent.load(Ordering::Relaxed);
            if sent >= reported + REPORT_BYTES || sent == self.end && sent != reported {
                reported = sent;
                (self.report)(sent);
            }
            quiet = match before == Some(sent) {
                true => quiet + tick,
                false => std::time::Duration::ZERO,
            };
            before = Some(sent);
            let limit = match sent >= self.end {
                true => patience.small_answer,
                false => patience.idle,
            };
            if quiet >= limit {
                return Err(self.endpoint.too_slow(self.path, limit));
            }
        }
    }
}

/// A part of a file as the body of a request.
fn body(file: tokio::fs::File, part: std::ops::Range<u64>, sent: Arc<AtomicU64>) -> Body {
    let pieces = stream::try_unfold((file, part.start), move |(mut file, at)| {
        let (sent, end) = (Arc::clone(&sent), part.end);
        async move {
            if at >= end {
                return Ok::<_, std::io::Error>(None);
            }
            let wanted = PIECE_BYTES.min(usize::try_from(end - at).unwrap_or(PIECE_BYTES));
            let mut piece = vec![0; wanted];
            let read = file.read(&mut piece).await?;
            if read == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            piece.truncate(read);
            let at = at + read as u64;
            sent.store(at, Ordering::Relaxed);
            Ok(Some((Bytes::from(piece), (file, at))))
        }
    });
    Body::wrap_stream(pieces)
}

fn with_digest(url: &Url, blob: &Upload) -> Url {
    let mut url = url.clone();
    url.query_pairs_mut()
        .append_pair("digest", &blob.digest.to_string());
    url
}
