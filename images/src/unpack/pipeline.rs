//! The one stream of a layer: each byte comes by once, and hashing is on other cores than decompression.
//!
//! ```text
//!          thread "blob"                thread "decompress"        the caller's thread      thread "diff-id"
//! source ─► hash, write the blob ═╪═► decompress ─► limit ═╪═► entries ─► files ═╪═► hash: the diff ID
//! ```
//! Pieces are shared, not copied, and every arrow that crosses threads (`═╪═`) holds a bounded number of them: with the
//! pieces in all hands at most [`LAYER_MAX_BYTES`] for each layer, whatever the layer is.
//!
//! Decompressing is what all wait for. So the threads that hash give way to it, and it wakes one thread and not two, for
//! large pieces: each wake-up costs it some 10 us in a virtual machine.
//!
//! Who fails ends the others. Only when the content makes no sense is the rest of the blob read all the same, because
//! its digest tells a damaged blob from a layer that was made badly.

use std::io::{self, BufRead, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, Scope, ScopedJoinHandle};

use bytes::{Buf, Bytes};

use super::buffers::Buffers;
use super::{UnpackError, Wanted};
use crate::compression::{LimitedReader, ZSTD_WINDOW_LOG_MAX, decompress};
use crate::digest::{Digest, Hasher};

/// The largest piece of a blob; a source should give pieces of at most this size.
pub(crate) const PIECE_BYTES: usize = 256 * 1024;
/// Pieces of a blob that wait for the stream.
pub(crate) const ARRIVED_WAITING: usize = 2;
/// Pieces of a blob that wait for the decompressor.
const COMPRESSED_WAITING: usize = 8;
/// A decompressed piece.
const PLAIN_PIECE_BYTES: usize = 512 * 1024;
/// Decompressed pieces that wait for the thread of the entries: many small files in a row take it longer than
/// decompressing them.
const ENTRIES_WAITING: usize = 3;
/// Decompressed pieces that wait for the diff ID.
const DIFF_ID_WAITING: usize = 1;
/// What the pieces of one layer hold at most: those that wait before the stream and in it, and one in each of six
/// hands. Three layers at once stay below 64 MiB together with their decompressors and buffers.
pub(crate) const LAYER_MAX_BYTES: usize = (ARRIVED_WAITING + COMPRESSED_WAITING + 3) * PIECE_BYTES
    + (ENTRIES_WAITING + DIFF_ID_WAITING + 3) * PLAIN_PIECE_BYTES;
const _: () = assert!(3 * (LAYER_MAX_BYTES + (1 << ZSTD_WINDOW_LOG_MAX)) <= 60 << 20);

/// Pieces of a blob, in order.
pub(crate) trait Pieces: Iterator<Item = io::Result<Bytes>> + Send {}

impl<T: Iterator<Item = io::Result<Bytes>> + Send> Pieces for T {}

/// Where the blob itself goes while it is unpacked.
pub(crate) trait Keep: FnMut(&[u8]) -> io::Result<()> + Send {}

impl<T: FnMut(&[u8]) -> io::Result<()> + Send> Keep for T {}

/// Reads pieces from a file or pipe.
pub(crate) fn pieces(mut reader: impl Read + Send) -> impl Pieces {
    let buffers = Buffers::of(PIECE_BYTES);
    let mut ended = false;
    std::iter::from_fn(move || {
        if ended {
            return None;
        }
        let read = buffers.read_piece(&mut reader);
        ended = read.as_ref().map_or(true, Bytes::is_empty);
        match read {
            Ok(piece) if piece.is_empty() => None,
            read => Some(read),
        }
    })
}

/// An error of the content, told from those of the files that it is written to.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct Corruption(io::Error);

/// What passed through the stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Passed {
    pub(super) blob: Digest,
    pub(super) blob_bytes: u64,
    pub(super) diff_id: Digest,
}

/// How much may come out of the decompressor, and what is said when it is more.
pub(super) struct Allowed {
    pub(super) bytes: u64,
    pub(super) message: String,
}

/// Runs the stream: `keep` sees each piece of the blob, `consume` the decompressed content. Both digests are compared.
pub(super) fn run<T>(
    source: impl Pieces,
    keep: impl Keep,
    (blob, diff_id): (Wanted<'_>, Wanted<'_>),
    allowed: Allowed,
    consume: impl FnOnce(&mut PlainReader) -> Result<T, UnpackError>,
) -> Result<(T, Passed), UnpackError> {
    let stop = &AtomicBool::new(false);
    let (to_decompress, compressed) = sync_channel(COMPRESSED_WAITING);
    let (to_entries, entries) = sync_channel(ENTRIES_WAITING);
    let (to_diff_id, plain) = sync_channel::<Bytes>(DIFF_ID_WAITING);
    let (consumed, received, produced, hashed) = thread::scope(|scope| {
        let receiving = spawn(scope, "blob", stop, move || {
            give_way();
            receive(source, keep, blob, &to_decompress, stop)
        })?;
        let producing = spawn(scope, "decompress", stop, move || {
            produce(compressed, allowed, &to_entries, stop)
        })?;
        let hashing = spawn(scope, "diff-id", stop, move || {
            give_way();
            let mut hasher = Hasher::new(diff_id.algorithm());
            plain.iter().for_each(|piece| hasher.update(&piece));
            hasher.finish()
        })?;
        let mut plain = PlainReader {
            receiver: entries,
            to_diff_id,
            piece: Bytes::new(),
        };
        let consumed = consume(&mut plain).inspect(|_| plain.skip());
        drop(plain);
        if consumed.as_ref().is_err_and(|e| !e.is_corruption()) {
            stop.store(true, Ordering::Relaxed);
        }
        let produced = join(producing);
        let received = join(receiving);
        Ok::<_, UnpackError>((consumed, received, produced, join(hashing)))
    })?;
    // Whoever failed first: the others see its failure only as the end of their input.
    let (found, blob_bytes) = match (received, consumed.as_ref()) {
        (Received::Stopped, _) => (None, 0),
        (Received::Failed(e), _) => return Err(e),
        (Received::Whole(digest, bytes), _) => (Some(digest), bytes),
    };
    if let Some(found) = &found {
        blob.check(found)
            .map_err(|(expected, actual)| UnpackError::WrongDigest { expected, actual })?;
    }
    let content = consumed?;
    produced.map_err(UnpackError::Decompress)?;
    diff_id
        .check(&hashed)
        .map_err(|(expected, actual)| UnpackError::WrongDiffId { expected, actual })?;
    let Some(found) = found else {
        return Err(UnpackError::Source(io::ErrorKind::Interrupted.into()));
    };
    let passed = Passed {
        blob: found,
        blob_bytes,
        diff_id: hashed,
    };
    Ok((content, passed))
}

/// A thread of the stream. If it cannot be made, those before it are ended.
fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    stop: &AtomicBool,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>, UnpackError> {
    let thread = thread::Builder::new().name(name.to_owned());
    thread.spawn_scoped(scope, work).map_err(|e| {
        stop.store(true, Ordering::Relaxed);
        UnpackError::Thread(e)
    })
}

/// What a thread that hashes adds to its nice value, which counts among the threads of this program's cgroup only
/// (sched(7)).
const HASHING_NICE: i32 = 10;

fn give_way() {
    // Without it all works the same, and a little slower.
    rustix::process::nice(HASHING_NICE).unwrap_or_default();
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// How the blob's thread ended.
enum Received {
    /// Digest and size of the whole.
    Whole(Digest, u64),
    Failed(UnpackError),
    /// Another thread had failed.
    Stopped,
}

fn receive(
    source: impl Pieces,
    mut keep: impl Keep,
    wanted: Wanted<'_>,
    to_decompress: &SyncSender<io::Result<Bytes>>,
    stop: &AtomicBool,
) -> Received {
    let mut hasher = Hasher::new(wanted.algorithm());
    let mut bytes = 0;
    let mut is_heard = true;
    // The decompressor is told that there is no more, and not mistaken for the one that failed.
    let fail = |error: UnpackError| {
        let told = io::Error::new(io::ErrorKind::UnexpectedEof, "the layer is not whole");
        drop(to_decompress.send(Err(told)));
        Received::Failed(error)
    };
    for piece in source {
        if stop.load(Ordering::Relaxed) {
            return Received::Stopped;
        }
        let piece = match piece {
            Ok(piece) => piece,
            Err(e) => return fail(UnpackError::Source(e)),
        };
        // Nobody listens once the content made no sense.
        is_heard = is_heard && to_decompress.send(Ok(piece.clone())).is_ok();
        hasher.update(&piece);
        bytes += piece.len() as u64;
        if let Err(e) = keep(&piece) {
            return fail(UnpackError::Keep(e));
        }
    }
    Received::Whole(hasher.finish(), bytes)
}

/// Sends the content in pieces. An error reaches whoever reads the entries, and is returned.
fn produce(
    compressed: Receiver<io::Result<Bytes>>,
    allowed: Allowed,
    to_entries: &SyncSender<io::Result<Bytes>>,
    stop: &AtomicBool,
) -> io::Result<()> {
    let compressed = PieceReader {
        receiver: compressed,
        piece: Bytes::new(),
    };
    let plain = match decompress(compressed) {
        Ok(plain) => plain,
        Err(e) => return give_up(to_entries, e),
    };
    let mut plain = LimitedReader::new(plain, allowed.bytes, allowed.message);
    let buffers = Buffers::of(PLAIN_PIECE_BYTES);
    while !stop.load(Ordering::Relaxed) {
        let piece = match buffers.read_piece(&mut plain) {
            Ok(piece) => piece,
            Err(e) => return give_up(to_entries, e),
        };
        if piece.is_empty() || to_entries.send(Ok(piece)).is_err() {
            break;
        }
    }
    Ok(())
}

/// Tells whoever reads the entries. They may have read the end of the archive and read no more, so that the error is
/// returned, too.
fn give_up(sender: &SyncSender<io::Result<Bytes>>, error: io::Error) -> io::Result<()> {
    let returned = io::Error::new(error.kind(), error.to_string());
    drop(sender.send(Err(error)));
    Err(returned)
}

/// The compressed pieces, for a decompressor.
struct PieceReader {
    receiver: Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl BufRead for PieceReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() {
            match self.receiver.recv() {
                Ok(piece) => self.piece = piece?,
                Err(_) => return Ok(&[]),
            }
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, amount: usize) {
        self.piece.advance(amount);
    }
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buffer)?;
        self.consume(n);
        Ok(n)
    }
}

/// What the other thread decompresses. Each piece is passed on to the thread that hashes.
pub(super) struct PlainReader {
    receiver: Receiver<io::Result<Bytes>>,
    to_diff_id: SyncSender<Bytes>,
    piece: Bytes,
}

impl PlainReader {
    /// Passes on what follows the end of the archive: it counts for the diff ID, too. Its errors are returned by the
    /// thread that decompresses.
    fn skip(&mut self) {
        while let Ok(Ok(piece)) = self.receiver.recv() {
            self.pass_on(&piece);
        }
    }

    fn pass_on(&self, piece: &Bytes) {
        // Nobody listens only after a panic of the other thread, and whoever joins it finds that.
        self.to_diff_id.send(piece.clone()).unwrap_or_default();
    }
}

impl BufRead for PlainReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() {
            match self.receiver.recv() {
                Ok(piece) => {
                    self.piece = piece.map_err(|e| io::Error::new(e.kind(), Corruption(e)))?;
                    self.pass_on(&self.piece);
                }
                Err(_) => return Ok(&[]),
            }
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, amount: usize) {
        self.piece.advance(amount);
    }
}

impl Read for PlainReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buffer)?;
        self.consume(n);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    const ANY: Wanted<'static> = Wanted::Any(Algorithm::Sha256);

    fn run_with<T>(
        blob: &[u8],
        wanted: (Wanted<'_>, Wanted<'_>),
        allowed: u64,
        consume: impl FnOnce(&mut PlainReader) -> Result<T, UnpackError>,
    ) -> Result<(T, Passed), UnpackError> {
        let allowed = Allowed {
            bytes: allowed,
            message: "too much".to_owned(),
        };
        let mut kept = Vec::new();
        let keep = |piece: &[u8]| {
            kept.extend_from_slice(piece);
            Ok(())
        };
        let result = run(pieces(blob), keep, wanted, allowed, consume);
        assert!(result.is_err() || kept == blob);
        result
    }

    /// Compared as a whole, so that a test that fails does not print it.
    #[derive(PartialEq)]
    struct Content(Vec<u8>);

    impl std::fmt::Debug for Content {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "{} bytes", self.0.len())
        }
    }

    fn read_all(reader: &mut PlainReader) -> Result<Content, UnpackError> {
        let mut all = Vec::new();
        reader.read_to_end(&mut all)?;
        Ok(Content(all))
    }

    #[test]
    fn all_arrives_in_order_and_both_sides_are_hashed() {
        let content: Vec<u8> = (0..5_000_000_u32).map(|i| (i / 1000) as u8).collect();
        let blob = crate::test_archive::gzip(&content);
        let digests = (Digest::sha256(&blob), Digest::sha256(&content));
        let wanted = (Wanted::Digest(&digests.0), Wanted::Digest(&digests.1));
        let (all, passed) = run_with(&blob, wanted, 1 << 30, read_all).unwrap();
        assert_eq!(all, Content(content));
        assert_eq!((passed.blob, passed.diff_id), digests.clone());
        assert_eq!(passed.blob_bytes, blob.len() as u64);
        let swapped = (Wanted::Digest(&digests.1), ANY);
        let error = run_with(&blob, swapped, 1 << 30, read_all).unwrap_err();
        assert!(matches!(error, UnpackError::WrongDigest { .. }), "{error}");
        let swapped = (ANY, Wanted::Digest(&digests.0));
        let error = run_with(&blob, swapped, 1 << 30, read_all).unwrap_err();
        assert!(matches!(error, UnpackError::WrongDiffId { .. }), "{error}");
    }

    #[test]
    fn errors_of_all_threads_are_returned() {
        let content = vec![1; 5_000_000];
        let error = run_with(&content, (ANY, ANY), 1_000_000, read_all).unwrap_err();
        assert!(matches!(&error, UnpackError::Decompress(e) if e.to_string() == "too much"));
        let failing =
            |_: &mut PlainReader| Err::<(), _>(UnpackError::Keep(io::Error::other("mine")));
        let error = run_with(&content, (ANY, ANY), 1 << 30, failing).unwrap_err();
        assert!(matches!(&error, UnpackError::Keep(e) if e.to_string() == "mine"));
        assert!(run_with(b"BZh91AY", (ANY, ANY), 1 << 30, read_all).is_err());
        let allowed = || Allowed {
            bytes: 1 << 30,
            message: String::new(),
        };
        let full = |_: &[u8]| Err(io::ErrorKind::StorageFull.into());
        let error = run(pieces(&*content), full, (ANY, ANY), allowed(), read_all).unwrap_err();
        assert!(matches!(error, UnpackError::Keep(_)), "{error}");
        let broken = [
            Ok(Bytes::from_static(b"begun")),
            Err(io::Error::other("gone")),
        ];
        let keep = |_: &[u8]| Ok(());
        let error = run(broken.into_iter(), keep, (ANY, ANY), allowed(), read_all).unwrap_err();
        assert!(matches!(error, UnpackError::Source(_)), "{error}");
    }

    #[test]
    fn what_the_consumer_leaves_is_hashed_all_the_same() {
        let content = vec![7; 5_000_000];
        let ((), passed) =
            run_with(&content, (ANY, ANY), 1 << 30, |_: &mut PlainReader| Ok(())).unwrap();
        assert!(passed.blob.matches(&content) && passed.diff_id.matches(&content));
        assert_eq!(passed.blob_bytes, 5_000_000);
        let leaves_all = |_: &mut PlainReader| Ok(());
        let error = run_with(&content, (ANY, ANY), 1_000_000, leaves_all).unwrap_err();
        assert!(matches!(error, UnpackError::Decompress(_)), "{error}");
    }

    /// A blob that was damaged on its way is told from a layer that was made badly.
    #[test]
    fn a_damaged_blob_is_reported_by_its_digest() {
        let content: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut blob = crate::test_archive::gzip(&content);
        let digest = Digest::sha256(&blob);
        let middle = blob.len() / 2;
        blob[middle] ^= 0xff;
        let wanted = (Wanted::Digest(&digest), ANY);
        let error = run_with(&blob, wanted, 1 << 30, read_all).unwrap_err();
        assert!(matches!(error, UnpackError::WrongDigest { .. }), "{error}");
        let digest = Digest::sha256(&blob);
        let wanted = (Wanted::Digest(&digest), ANY);
        let error = run_with(&blob, wanted, 1 << 30, read_all).unwrap_err();
        assert!(matches!(error, UnpackError::Decompress(_)), "{error}");
    }
}
