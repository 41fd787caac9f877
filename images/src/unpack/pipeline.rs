//! Decompresses on a second thread, while the first writes files.

use std::io::{self, BufReader, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use crate::compression::{LimitedReader, decompress};
use crate::digest::{Algorithm, Digest, HashingReader};

const CHUNK_BYTES: usize = 256 * 1024;
/// With the chunks in both hands, at most 10 x 256 KiB of memory for each layer.
const CHUNKS_WAITING: usize = 8;

/// Hashes and decompresses `blob` on another thread, and gives the content to `consume`. Returns what that returns,
/// and the digest and size of the whole blob.
///
/// An error of the blob reaches `consume` as an error of its reader. If `consume` fails, its error is returned once the
/// thread has read the blob to its end.
pub(super) fn decompressed<T, E: From<io::Error>>(
    blob: impl Read + Send,
    algorithm: Algorithm,
    allowed_bytes: u64,
    message: String,
    consume: impl FnOnce(ChunkReader) -> Result<T, E>,
) -> Result<(T, Digest, u64), E> {
    let (sender, receiver) = sync_channel(CHUNKS_WAITING);
    thread::scope(|scope| {
        let producer = thread::Builder::new()
            .name("decompress".to_owned())
            .spawn_scoped(scope, move || {
                let mut blob = HashingReader::new(blob, algorithm);
                let produced = produce(&mut blob, allowed_bytes, message, &sender);
                drop(sender);
                produced?;
                blob.finish()
            })?;
        let consumed = consume(ChunkReader {
            receiver,
            chunk: Vec::new(),
            position: 0,
        });
        let hashed = match producer.join() {
            Ok(hashed) => hashed,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let consumed = consumed?;
        let (digest, bytes) = hashed?;
        Ok((consumed, digest, bytes))
    })
}

/// Sends the content in chunks. An error is sent too; here it is none, so that the consumer's view of it is reported.
fn produce(
    blob: impl Read,
    allowed_bytes: u64,
    message: String,
    sender: &SyncSender<io::Result<Vec<u8>>>,
) -> io::Result<()> {
    let plain = match decompress(BufReader::with_capacity(CHUNK_BYTES, blob)) {
        Ok(plain) => plain,
        Err(e) => return give_up(sender, e),
    };
    let mut plain = LimitedReader::new(plain, allowed_bytes, message);
    loop {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        let read = plain
            .by_ref()
            .take(CHUNK_BYTES as u64)
            .read_to_end(&mut chunk);
        if let Err(e) = read {
            return give_up(sender, e);
        }
        // The consumer is gone: it has failed, and says why.
        if chunk.is_empty() || sender.send(Ok(chunk)).is_err() {
            return Ok(());
        }
    }
}

fn give_up(sender: &SyncSender<io::Result<Vec<u8>>>, error: io::Error) -> io::Result<()> {
    match sender.send(Err(error)) {
        Ok(()) => Ok(()),
        Err(returned) => returned.0.map(drop),
    }
}

/// What the other thread decompresses.
pub(super) struct ChunkReader {
    receiver: Receiver<io::Result<Vec<u8>>>,
    chunk: Vec<u8>,
    position: usize,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position == self.chunk.len() {
            match self.receiver.recv() {
                Ok(chunk) => (self.chunk, self.position) = (chunk?, 0),
                Err(_) => return Ok(0),
            }
        }
        let n = (self.chunk.len() - self.position).min(buffer.len());
        buffer[..n].copy_from_slice(&self.chunk[self.position..self.position + n]);
        self.position += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<T>(
        blob: &[u8],
        allowed: u64,
        consume: impl FnOnce(ChunkReader) -> io::Result<T>,
    ) -> io::Result<(T, Digest, u64)> {
        decompressed(
            blob,
            Algorithm::Sha256,
            allowed,
            "too much".to_owned(),
            consume,
        )
    }

    fn read_all(mut reader: ChunkReader) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        reader.read_to_end(&mut all)?;
        Ok(all)
    }

    #[test]
    fn all_arrives_in_order_and_is_hashed() {
        let content: Vec<u8> = (0..5_000_000_u32).map(|i| (i / 1000) as u8).collect();
        let (all, digest, bytes) = run(&content, 1 << 30, read_all).unwrap();
        assert!(all == content);
        assert!(digest.matches(&content));
        assert_eq!(bytes, 5_000_000);
    }

    #[test]
    fn errors_of_both_sides_are_returned() {
        let content = vec![1; 5_000_000];
        let error = run(&content, 1_000_000, read_all).unwrap_err();
        assert_eq!(error.to_string(), "too much");
        let failing = |_reader| Err::<(), _>(io::Error::other("mine"));
        let error = run(&content, 1 << 30, failing).unwrap_err();
        assert_eq!(error.to_string(), "mine");
        assert!(run(b"BZh91AY", 1 << 30, read_all).is_err());
    }

    #[test]
    fn what_the_consumer_leaves_is_hashed_all_the_same() {
        let content = vec![7; 5_000_000];
        let (_, digest, bytes) = run(&content, 1 << 30, |_reader| Ok(())).unwrap();
        assert!(digest.matches(&content));
        assert_eq!(bytes, 5_000_000);
    }
}
