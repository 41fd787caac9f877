//! The bytes of one blob, from an offset to its end, on their way to who unpacks them.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::manifest::Descriptor;
use crate::registry::{RegistryError, Repository};
use crate::unpack::PIECE_BYTES;

/// Between two reports of progress.
const REPORT_BYTES: u64 = 256 * 1024;

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

/// Sends the bytes of `blob` from `offset` to its end into `pieces`, each once and in order, whatever the connection does
/// meanwhile. Nothing is verified here.
pub(super) async fn download(
    repository: &Arc<Repository>,
    blob: &Descriptor,
    offset: u64,
    pieces: &mpsc::Sender<Bytes>,
    report: impl Fn(u64) + Sync,
) -> Result<Downloaded, RegistryError> {
    let (mut bytes, mut reported) = (offset, offset);
    let mut stream = repository.blob(blob, offset);
    while let Some(mut chunk) = stream.next().await? {
        bytes += chunk.len() as u64;
        while !chunk.is_empty() {
            let piece = chunk.split_to(chunk.len().min(PIECE_BYTES));
            if pieces.send(piece).await.is_err() {
                return Ok(Downloaded::Unwanted);
            }
        }
        if bytes - reported >= REPORT_BYTES {
            reported = bytes;
            report(bytes);
        }
    }
    report(bytes);
    Ok(if offset == 0 && stream.responses() <= 1 {
        Downloaded::AtOnce
    } else {
        Downloaded::InParts
    })
}
