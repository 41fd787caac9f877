//! Bytes become records: `<time> <stream> <P|F> <line>\n`.

use jiff::Timestamp;

/// A longer line is split into records of this size.
pub const MAX_LINE_BYTES: usize = 16 * 1024;

/// Where a container wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, and all output of a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// A record's time, in UTC with nanoseconds: Go's `RFC3339Nano` with all digits.
pub(super) fn time(at: Timestamp) -> String {
    format!("{at:.9}")
}

/// Splits what a stream brings into records.
#[derive(Debug)]
pub(super) struct Splitter {
    stream: Stream,
    /// The line so far; shorter than a record may be, or as long and waiting to see whether it ends.
    line: Vec<u8>,
}

impl Splitter {
    pub(super) fn new(stream: Stream) -> Self {
        Self {
            stream,
            line: Vec::new(),
        }
    }

    /// Gives each record that `bytes` completes to `write`.
    pub(super) fn feed(&mut self, mut bytes: &[u8], time: &str, write: &mut dyn FnMut(&[u8])) {
        let mut record = Vec::new();
        while !bytes.is_empty() {
            let room = MAX_LINE_BYTES - self.line.len();
            // One byte more than there is room for tells a line that just fits from one that has to be split.
            let look = &bytes[..bytes.len().min(room + 1)];
            match look.iter().position(|&b| b == b'\n') {
                Some(end) => {
                    self.compose(&mut record, time, b'F', &bytes[..end]);
                    write(&record);
                    bytes = &bytes[end + 1..];
                }
                None if look.len() > room => {
                    self.compose(&mut record, time, b'P', &bytes[..room]);
                    write(&record);
                    bytes = &bytes[room..];
                }
                None => {
                    self.line.extend_from_slice(bytes);
                    return;
                }
            }
        }
    }

    /// The stream has ended: what is left of a line becomes a partial record.
    pub(super) fn end(&mut self, time: &str, write: &mut dyn FnMut(&[u8])) {
        if !self.line.is_empty() {
            let mut record = Vec::new();
            self.compose(&mut record, time, b'P', &[]);
            write(&record);
        }
    }

    fn compose(&mut self, record: &mut Vec<u8>, time: &str, tag: u8, rest: &[u8]) {
        record.clear();
        record.extend_from_slice(time.as_bytes());
        record.push(b' ');
        record.extend_from_slice(self.stream.name().as_bytes());
        record.extend_from_slice(&[b' ', tag, b' ']);
        record.extend_from_slice(&self.line);
        record.extend_from_slice(rest);
        record.push(b'\n');
        // A buffer that once held a long line goes back.
        self.line = Vec::new();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIME: &str = "2026-11-21T05:00:00.000000001Z";

    /// All records of the chunks, and then of the stream's end.
    fn split(chunks: &[&[u8]]) -> Vec<(u8, Vec<u8>)> {
        let mut records = Vec::new();
        let mut write = |record: &[u8]| {
            let prefix = format!("{TIME} stderr ");
            let rest = record.strip_prefix(prefix.as_bytes()).expect("the prefix");
            let line = rest[2..].strip_suffix(b"\n").expect("one newline");
            assert!(!line.contains(&b'\n') && line.len() <= MAX_LINE_BYTES);
            records.push((rest[0], line.to_vec()));
        };
        let mut splitter = Splitter::new(Stream::Stderr);
        for chunk in chunks {
            splitter.feed(chunk, TIME, &mut write);
            assert!(splitter.line.len() <= MAX_LINE_BYTES);
        }
        splitter.end(TIME, &mut write);
        records
    }

    #[test]
    fn times_have_nanoseconds_and_utc() {
        let at = Timestamp::new(1_479_772_029, 5).expect("a time");
        assert_eq!(time(at), "2016-11-21T23:47:09.000000005Z");
    }

    #[test]
    fn whole_and_partial_lines() {
        assert_eq!(
            split(&[b"a\nb", b"c\n\n", b"d"]),
            [
                (b'F', b"a".to_vec()),
                (b'F', b"bc".to_vec()),
                (b'F', b"".to_vec()),
                (b'P', b"d".to_vec())
            ]
        );
    }

    #[test]
    fn a_line_that_just_fits_is_not_split_and_a_longer_one_is() {
        let mut line = vec![b'x'; MAX_LINE_BYTES];
        line.push(b'\n');
        assert_eq!(split(&[&line]).len(), 1);
        line.insert(0, b'y');
        let records = split(&[&line]);
        assert_eq!(
            records.iter().map(|r| (r.0, r.1.len())).collect::<Vec<_>>(),
            [(b'P', MAX_LINE_BYTES), (b'F', 1)]
        );
    }

    proptest! {
        #[test]
        fn any_stream_joins_to_the_same_bytes(
            pieces in proptest::collection::vec((any::<u8>(), 0_usize..20_000), 0..12),
            raw in proptest::collection::vec(any::<u8>(), 0..300),
            cut in 1_usize..9_000,
        ) {
            let mut bytes = raw;
            for (byte, count) in pieces {
                bytes.extend(std::iter::repeat_n(byte, count.min(if byte == b'\n' { 3 } else { count })));
                bytes.push(b'\n');
            }
            bytes.pop();
            let chunks: Vec<_> = bytes.chunks(cut).collect();
            let mut joined = Vec::new();
            for (tag, line) in split(&chunks) {
                joined.extend_from_slice(&line);
                if tag == b'F' {
                    joined.push(b'\n');
                }
            }
            prop_assert_eq!(joined, bytes);
        }
    }
}
