//! Number fields, PAX records, and what the extra headers before an entry say.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use super::TarError;

/// What headers before the entry's own say about it.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// GNU's long names, which win over those of PAX.
    pub(super) gnu_path: Option<Vec<u8>>,
    pub(super) gnu_link: Option<Vec<u8>>,
    pub(super) pax: PaxRecords,
}

/// What one set of PAX records says. A second set before the same entry replaces the first.
#[derive(Debug, Default)]
pub(super) struct PaxRecords {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) sparse: Option<PaxSparse>,
}

/// How PAX records describe a sparse file (GNU tar manual, "Storing Sparse Files").
#[derive(Debug)]
pub(super) struct PaxSparse {
    pub(super) name: Option<Vec<u8>>,
    /// The length of the file with its holes.
    pub(super) real_size: u64,
    /// The pieces (offset, length), in formats 0.0 and 0.1. In format 1.0 they stand before the content.
    pub(super) map: Option<Vec<(u64, u64)>>,
}

impl PaxRecords {
    pub(super) fn parse(records: &[u8], name: &[u8]) -> Result<Self, TarError> {
        let mut parsed = Self::default();
        let mut sparse = SparseKeys::default();
        each_pax_record(records, name, |key, value| {
            if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                return sparse.add(key, value, name);
            }
            if let Some(attribute) = key.strip_prefix(b"SCHILY.xattr.") {
                parsed.xattrs.insert(attribute.to_vec(), value.to_vec());
                return Ok(());
            }
            if let Some(attribute) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                let (attribute, value) = libarchive_xattr(attribute, value)
                    .ok_or_else(|| corrupt(name, "a LIBARCHIVE attribute is malformed"))?;
                // Where both forms are given, SCHILY's is the one that needs no decoding.
                parsed.xattrs.entry(attribute).or_insert(value);
                return Ok(());
            }
            // An empty value takes back what was said before.
            let given = !value.is_empty();
            let number = || given.then(|| decimal(value, name)).transpose();
            match key {
                b"path" => parsed.path = given.then(|| value.to_vec()),
                b"linkpath" => parsed.link = given.then(|| value.to_vec()),
                b"size" => parsed.size = number()?,
                b"uid" => parsed.uid = number()?,
                b"gid" => parsed.gid = number()?,
                b"mtime" => {
                    let time = || {
                        parse_time(value).ok_or_else(|| corrupt(name, "a PAX time is malformed"))
                    };
                    parsed.mtime = given.then(time).transpose()?;
                }
                // Others (atime, ctime, uname, gname, comment, vendor keys) say nothing that is kept.
                _ => {}
            }
            Ok(())
        })?;
        parsed.sparse = sparse.finish(name)?;
        Ok(parsed)
    }
}

/// The records of a sparse file, in any of the three formats.
#[derive(Debug, Default)]
struct SparseKeys {
    version: (Option<u64>, Option<u64>),
    name: Option<Vec<u8>>,
    real_size: Option<u64>,
    count: Option<u64>,
    /// Offsets and lengths in turn.
    numbers: Vec<u64>,
    is_used: bool,
}

impl SparseKeys {
    fn add(&mut self, key: &[u8], value: &[u8], name: &[u8]) -> Result<(), TarError> {
        self.is_used = true;
        let number = || decimal(value, name);
        let misplaced = || corrupt(name, "its sparse map is malformed");
        match key {
            b"major" => self.version.0 = Some(number()?),
            b"minor" => self.version.1 = Some(number()?),
            b"name" => self.name = Some(value.to_vec()),
            b"realsize" | b"size" => self.real_size = Some(number()?),
            b"numblocks" => self.count = Some(number()?),
            // Format 0.0 repeats these two in turn.
            b"offset" if self.numbers.len().is_multiple_of(2) => self.numbers.push(number()?),
            b"numbytes" if !self.numbers.len().is_multiple_of(2) => self.numbers.push(number()?),
            b"map" if self.numbers.is_empty() && !value.is_empty() => {
                for part in value.split(|b| *b == b',') {
                    self.numbers.push(decimal(part, name)?);
                }
            }
            b"map" if value.is_empty() => {}
            b"offset" | b"numbytes" | b"map" => return Err(misplaced()),
            _ => return Err(unsupported(name, "an unknown GNU sparse format")),
        }
        Ok(())
    }

    fn finish(self, name: &[u8]) -> Result<Option<PaxSparse>, TarError> {
        if !self.is_used {
            return Ok(None);
        }
        let bad = || corrupt(name, "its sparse map is malformed");
        let real_size = self.real_size.ok_or_else(bad)?;
        let map = match self.version {
            (Some(1), Some(0)) if self.numbers.is_empty() => None,
            (None, None) | (Some(0), Some(0 | 1)) => {
                let pieces: Vec<_> = self.numbers.chunks_exact(2).map(|p| (p[0], p[1])).collect();
                if !self.numbers.len().is_multiple_of(2) || self.count != Some(pieces.len() as u64)
                {
                    return Err(bad());
                }
                Some(pieces)
            }
            (Some(1), Some(0)) => return Err(bad()),
            _ => return Err(unsupported(name, "an unknown GNU sparse format")),
        };
        Ok(Some(PaxSparse {
            name: self.name,
            real_size,
            map,
        }))
    }
}

/// libarchive writes attribute names percent-encoded and values in base64, with or without filling.
fn libarchive_xattr(name: &[u8], value: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let mut decoded = Vec::new();
    let mut rest = name;
    while let [first, others @ ..] = rest {
        rest = others;
        match (first, others) {
            (b'%', [high, low, others @ ..]) => {
                let digit = |b: &u8| char::from(*b).to_digit(16);
                decoded.push((digit(high)? * 16 + digit(low)?) as u8);
                rest = others;
            }
            (b'%', _) => return None,
            (other, _) => decoded.push(*other),
        }
    }
    let end = value
        .iter()
        .rposition(|b| *b != b'=')
        .map_or(0, |last| last + 1);
    let value = STANDARD_NO_PAD.decode(&value[..end]).ok()?;
    Some((decoded, value))
}

/// Calls `each` with key and value of every `<length> <key>=<value>\n`.
pub(super) fn each_pax_record(
    mut records: &[u8],
    name: &[u8],
    mut each: impl FnMut(&[u8], &[u8]) -> Result<(), TarError>,
) -> Result<(), TarError> {
    let bad = || corrupt(name, "its PAX records are malformed");
    while !records.is_empty() {
        let space = records
            .iter()
            .take(8)
            .position(|b| *b == b' ')
            .ok_or_else(bad)?;
        let len = decimal(&records[..space], name).map_err(|_| bad())? as usize;
        let record = records.get(space + 1..len).ok_or_else(bad)?;
        let record = record.strip_suffix(b"\n").ok_or_else(bad)?;
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
        each(&record[..equals], &record[equals + 1..])?;
        records = &records[len..];
    }
    Ok(())
}

/// A number field: octal digits with blanks around, or base 256 with the top bit set. An empty field is zero.
pub(super) fn number(field: &[u8], name: &[u8]) -> Result<i64, TarError> {
    let bad = || corrupt(name, "a number field is malformed");
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (i, byte) in field.iter().enumerate() {
            let byte = if i == 0 && !negative {
                byte & 0x7f
            } else {
                *byte
            };
            value = (value << 8) | i128::from(byte);
            if i64::try_from(value).is_err() {
                return Err(bad());
            }
        }
        return i64::try_from(value).map_err(|_| bad());
    }
    let text = std::str::from_utf8(field).map_err(|_| bad())?;
    let digits = text.trim_matches([' ', '\0']);
    let digits = digits.split(['\0', ' ']).next().unwrap_or_default();
    if digits.is_empty() {
        return Ok(0);
    }
    if !digits.bytes().all(|b| matches!(b, b'0'..=b'7')) {
        return Err(bad());
    }
    i64::from_str_radix(digits, 8).map_err(|_| bad())
}

/// The digits of a PAX record, without sign or blanks.
fn decimal(value: &[u8], name: &[u8]) -> Result<u64, TarError> {
    let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    is_number
        .then(|| std::str::from_utf8(value).ok()?.parse().ok())
        .flatten()
        .ok_or_else(|| corrupt(name, "a PAX record is not a number"))
}

pub(super) fn unsigned(field: &[u8], name: &[u8]) -> Result<u64, TarError> {
    u64::try_from(number(field, name)?).map_err(|_| corrupt(name, "a number field is negative"))
}

/// Seconds with an optional fraction, such as `1700000000.25` or `-1.5`.
fn parse_time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let secs: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanos: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        return Some((secs.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((secs, nanos))
}

pub(super) fn until_nul(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|b| *b == 0).next().unwrap_or_default().to_vec()
}

fn lossy(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
    // In a message it must stay on its line.
    match text.chars().any(char::is_control) {
        true => text.escape_debug().to_string(),
        false => text,
    }
}

pub(super) fn corrupt(name: &[u8], what: &'static str) -> TarError {
    TarError::Corrupt {
        name: lossy(name),
        what,
    }
}

pub(super) fn unsupported(name: &[u8], what: &'static str) -> TarError {
    TarError::Unsupported {
        name: lossy(name),
        what,
    }
}
