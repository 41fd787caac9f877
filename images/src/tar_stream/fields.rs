//! Number fields, PAX records, and what the extra headers before an entry say.

use std::collections::BTreeMap;

use super::TarError;

/// What headers before the entry's own say about it.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(super) sparse_real_size: Option<u64>,
    pub(super) sparse_name: Option<Vec<u8>>,
}

impl Records {
    pub(super) fn parse_pax(&mut self, records: &[u8], name: &str) -> Result<(), TarError> {
        let mut sparse_version = (None, None);
        each_pax_record(records, name, |key, value| {
            let decimal = || {
                std::str::from_utf8(value)
                    .ok()
                    .and_then(|text| text.parse::<u64>().ok())
                    .ok_or_else(|| corrupt(name, "a PAX record is not a number"))
            };
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"size" => self.size = Some(decimal()?),
                b"uid" => self.uid = Some(decimal()?),
                b"gid" => self.gid = Some(decimal()?),
                b"mtime" => {
                    self.mtime = Some(
                        parse_time(value)
                            .ok_or_else(|| corrupt(name, "a PAX time is malformed"))?,
                    );
                }
                b"GNU.sparse.major" => sparse_version.0 = Some(decimal()?),
                b"GNU.sparse.minor" => sparse_version.1 = Some(decimal()?),
                b"GNU.sparse.name" => self.sparse_name = Some(value.to_vec()),
                b"GNU.sparse.realsize" => self.sparse_real_size = Some(decimal()?),
                _ if key.starts_with(b"GNU.sparse.") => {
                    return Err(unsupported(name, "GNU sparse format 0.x"));
                }
                _ => {
                    if let Some(attribute) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattrs.insert(attribute.to_vec(), value.to_vec());
                    }
                    // Others (atime, ctime, uname, gname, comment, vendor keys) say nothing that is kept.
                }
            }
            Ok(())
        })?;
        match (sparse_version, self.sparse_real_size) {
            ((Some(1), Some(0)), Some(_)) | ((None, None), None) => Ok(()),
            _ => Err(unsupported(name, "GNU sparse format 0.x")),
        }
    }
}

/// Calls `each` with key and value of every `<length> <key>=<value>\n`.
pub(super) fn each_pax_record(
    mut records: &[u8],
    name: &str,
    mut each: impl FnMut(&[u8], &[u8]) -> Result<(), TarError>,
) -> Result<(), TarError> {
    let bad = || corrupt(name, "its PAX records are malformed");
    while !records.is_empty() {
        let space = records
            .iter()
            .take(8)
            .position(|b| *b == b' ')
            .ok_or_else(bad)?;
        let len: usize = std::str::from_utf8(&records[..space])
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(bad)?;
        let record = records.get(space + 1..len).ok_or_else(bad)?;
        let record = record.strip_suffix(b"\n").ok_or_else(bad)?;
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
        each(&record[..equals], &record[equals + 1..])?;
        records = &records[len..];
    }
    Ok(())
}

/// A number field: octal digits with blanks around, or base 256 with the top bit set. An empty field is zero.
pub(super) fn number(field: &[u8], name: &str) -> Result<i64, TarError> {
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

pub(super) fn unsigned(field: &[u8], name: &str) -> Result<u64, TarError> {
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

pub(super) fn lossy(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).into_owned();
    // In a message it must stay on its line.
    match text.chars().any(char::is_control) {
        true => text.escape_debug().to_string(),
        false => text,
    }
}

pub(super) fn corrupt(name: &str, what: &'static str) -> TarError {
    TarError::Corrupt {
        name: name.to_owned(),
        what,
    }
}

pub(super) fn unsupported(name: &str, what: &'static str) -> TarError {
    TarError::Unsupported {
        name: name.to_owned(),
        what,
    }
}
