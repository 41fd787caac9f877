//! The bytes of one blob, from an offset to its end, whatever the connection does meanwhile.

use bytes::Bytes;
use futures_util::StreamExt;
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};
use tokio::sync::mpsc;

use super::PullError;
use super::endpoint::{Endpoint, TRIES_MAX, back_off};
use crate::manifest::Descriptor;
use crate::unpack::PIECE_BYTES;

/// Between two reports of progress.
const REPORT_BYTES: u64 = 256 * 1024;

/// A blob on its way from a registry.
struct Download<'a> {
    endpoint: &'a Endpoint,
    blob: &'a Descriptor,
    /// Where the blob's next byte goes.
    pieces: &'a mpsc::Sender<Bytes>,
    /// The bytes that were passed on, and those that were here before.
    bytes: u64,
    reported: u64,
    responses: u32,
}

/// How a download ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Downloaded {
    /// All bytes came in one response.
    AtOnce,
    /// All bytes came, in several responses; they may not fit together.
    InParts,
    /// Who takes the pieces wants no more.
    Unwanted,
}

impl Endpoint {
    /// Sends the bytes of `blob` from `offset` to its end into `pieces`, each once and in order. A connection that
    /// breaks is replaced, as long as bytes come. Nothing is verified here.
    pub(super) async fn download(
        &self,
        blob: &Descriptor,
        offset: u64,
        pieces: &mpsc::Sender<Bytes>,
        report: impl Fn(u64) + Sync,
    ) -> Result<Downloaded, PullError> {
        let mut download = Download {
            endpoint: self,
            blob,
            pieces,
            bytes: offset,
            reported: offset,
            responses: 0,
        };
        let mut failures = 0;
        // An empty blob is asked for, too: the registry may not have it.
        while download.bytes < blob.size || download.responses == 0 && blob.size == 0 {
            let before = download.bytes;
            match download.go_on(&report).await {
                Ok(true) if download.bytes >= blob.size => break,
                Ok(true) if failures + 1 >= TRIES_MAX => {
                    return Err(self.protocol(format!(
                        "layer {} ends after {} of {} bytes",
                        blob.digest, download.bytes, blob.size
                    )));
                }
                Ok(false) => return Ok(Downloaded::Unwanted),
                Err(e) if !e.is_transient() || failures + 1 >= TRIES_MAX => return Err(e),
                Ok(true) | Err(_) => {}
            }
            failures = if download.bytes > before {
                1
            } else {
                failures + 1
            };
            tokio::time::sleep(back_off(failures)).await;
        }
        report(download.bytes);
        Ok(if offset == 0 && download.responses <= 1 {
            Downloaded::AtOnce
        } else {
            Downloaded::InParts
        })
    }
}

impl Download<'_> {
    /// Asks for what is missing, and passes on what comes. False if nobody wants it.
    async fn go_on(&mut self, report: &(impl Fn(u64) + Sync)) -> Result<bool, PullError> {
        let path = format!("blobs/{}", self.blob.digest);
        let range_from = (self.bytes > 0).then_some(self.bytes);
        let response = self.endpoint.get(&path, "*/*", range_from).await?;
        self.responses += 1;
        // A registry that cannot resume sends all again: what is here already is passed over.
        let mut known = match range_from {
            Some(offset) if !resumes_at(&response, offset) => offset,
            _ => 0,
        };
        let mut stream = response.bytes_stream();
        while let Some(chunk) = stream.next().await {
            let mut chunk = chunk.map_err(|e| self.endpoint.connect(e))?;
            let skipped = known.min(chunk.len() as u64);
            known -= skipped;
            drop(chunk.split_to(skipped as usize));
            if chunk.is_empty() {
                continue;
            }
            self.bytes += chunk.len() as u64;
            if self.bytes > self.blob.size {
                return Err(self.endpoint.protocol(format!(
                    "layer {} is larger than the {} bytes of the manifest",
                    self.blob.digest, self.blob.size
                )));
            }
            while !chunk.is_empty() {
                let piece = chunk.split_to(chunk.len().min(PIECE_BYTES));
                if self.pieces.send(piece).await.is_err() {
                    return Ok(false);
                }
            }
            if self.bytes - self.reported >= REPORT_BYTES {
                self.reported = self.bytes;
                report(self.bytes);
            }
        }
        Ok(true)
    }
}

/// True when the response holds the rest from `offset` (RFC 9110, section 14.4).
fn resumes_at(response: &Response, offset: u64) -> bool {
    let range = response.headers().get(CONTENT_RANGE);
    let start = range.and_then(|value| {
        value
            .to_str()
            .ok()?
            .strip_prefix("bytes ")?
            .split('-')
            .next()
    });
    response.status() == StatusCode::PARTIAL_CONTENT && start == Some(offset.to_string().as_str())
}
