//! Decompresses layers and archives: gzip, zstd or none, told apart by their first bytes.

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;

/// How something is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952, of one or more members.
    Gzip,
    /// RFC 8878, of one or more frames.
    Zstd,
}

impl Compression {
    /// Looks at the first bytes. Formats that are known but not supported give an error that names them.
    pub fn detect(start: &[u8]) -> io::Result<Self> {
        let refused = match start {
            [0x1f, 0x8b, ..] => return Ok(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                return Ok(Self::Zstd);
            }
            [b'B', b'Z', b'h', ..] => "bzip2",
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => "xz",
            _ => return Ok(Self::None),
        };
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("it is compressed with {refused}; gzip, zstd and no compression are supported"),
        ))
    }
}

/// The largest window of zstd that is decompressed, as a power of two: the 8 MiB that every decoder should support
/// (RFC 8878, section 3.1.1.1.2), and that no ordinary level exceeds (`--ultra` and `--long` do). Each layer that is
/// being unpacked holds one window in memory.
pub(crate) const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// A reader of the decompressed content of `input`.
pub fn decompress<'a, R: BufRead + 'a>(mut input: R) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match Compression::detect(input.fill_buf()?)? {
        Compression::None => Box::new(input),
        Compression::Gzip => Box::new(MultiGzDecoder::new(input)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(ZstdReader(decoder))
        }
    })
}

/// Says what to do about a window that is too large.
struct ZstdReader<'a, R: BufRead>(zstd::stream::read::Decoder<'a, R>);

impl<R: BufRead> Read for ZstdReader<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|e| {
            // The library tells its errors by text alone.
            if !e.to_string().contains("too much memory") {
                return e;
            }
            io::Error::new(
                io::ErrorKind::Unsupported,
                "it is compressed by zstd with a window above 8 MiB; compress it without `--ultra` and `--long`",
            )
        })
    }
}

/// Fails once more than `limit` bytes were read: what it says is `message`.
pub struct LimitedReader<R> {
    inner: R,
    left: u64,
    message: String,
}

impl<R: Read> LimitedReader<R> {
    /// Reads at most `limit` bytes from `inner`.
    pub fn new(inner: R, limit: u64, message: String) -> Self {
        Self {
            inner,
            left: limit,
            message,
        }
    }
}

impl<R: Read> Read for LimitedReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self
            .left
            .checked_sub(n as u64)
            .ok_or_else(|| io::Error::new(io::ErrorKind::FileTooLarge, self.message.clone()))?;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn reads_all_three_and_joined_members() {
        let mut members = gzip(b"hello ");
        members.extend(gzip(b"world"));
        let mut frames = zstd::encode_all(&b"hello "[..], 1).unwrap();
        frames.extend(zstd::encode_all(&b"world"[..], 1).unwrap());
        for input in [members, frames, b"hello world".to_vec()] {
            let mut out = String::new();
            decompress(input.as_slice())
                .unwrap()
                .read_to_string(&mut out)
                .unwrap();
            assert_eq!(out, "hello world");
        }
    }

    #[test]
    fn a_window_that_would_cost_too_much_memory_is_refused() {
        let content: Vec<u8> = (0..20_000_000_u32).map(|i| (i / 4096) as u8).collect();
        let compress = |window_log| {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
            encoder.window_log(window_log).unwrap();
            encoder.write_all(&content).unwrap();
            encoder.finish().unwrap()
        };
        let read = |blob: &[u8]| {
            let mut out = Vec::new();
            decompress(blob)?.read_to_end(&mut out).map(|_| out)
        };
        assert!(read(&compress(ZSTD_WINDOW_LOG_MAX)).unwrap() == content);
        let error = read(&compress(ZSTD_WINDOW_LOG_MAX + 1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        assert!(error.to_string().contains("window above 8 MiB"), "{error}");
    }

    #[test]
    fn names_what_it_does_not_support() {
        let error = decompress(&b"BZh91AY"[..]).err().unwrap().to_string();
        assert!(error.contains("bzip2"), "{error}");
    }

    #[test]
    fn corrupt_gzip_is_an_error() {
        let mut bad = gzip(b"hello world");
        let middle = bad.len() - 6;
        bad[middle] ^= 0xff;
        let mut out = Vec::new();
        assert!(
            decompress(bad.as_slice())
                .unwrap()
                .read_to_end(&mut out)
                .is_err()
        );
    }
}
