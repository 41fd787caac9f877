//! One record of a CRI log: `<RFC 3339 time> <stdout|stderr> <P|F> <text>`.
//!
//! `F` ends a line; `P` is a part of one that goes on in the next record of the same stream, or the end of output that
//! did not end with a newline.

use jiff::Timestamp;

/// A record; what is not one (a torn write after a power cut) is shown as it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) time: &'a str,
    pub(super) stderr: bool,
    pub(super) full: bool,
    pub(super) text: &'a [u8],
}

impl<'a> Record<'a> {
    /// Parses a line without its newline.
    pub(super) fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(4, |b| *b == b' ');
        let time = std::str::from_utf8(fields.next()?).ok()?;
        let stderr = match fields.next()? {
            b"stdout" => false,
            b"stderr" => true,
            _ => return None,
        };
        // Tags may be joined by colons; the first is the one that counts.
        let full = match fields.next()?.split(|b| *b == b':').next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        Some(Self {
            time,
            stderr,
            full,
            text: fields.next().unwrap_or_default(),
        })
    }

    pub(super) fn timestamp(&self) -> Option<Timestamp> {
        self.time.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        let record = Record::parse(b"2026-01-01T00:00:00.5Z stderr P a  b").expect("a record");
        assert!(record.stderr && !record.full);
        assert_eq!(record.text, b"a  b");
        assert!(record.timestamp().is_some());
        let empty = Record::parse(b"2026-01-01T00:00:00Z stdout F ").expect("an empty line");
        assert!(empty.full && empty.text.is_empty());
        assert_eq!(Record::parse(b"torn"), None);
        assert_eq!(Record::parse(b"2026-01-01T00:00:00Z stdlog F x"), None);
    }
}
