//! Reads a tar stream: entries with their long names, PAX records, extended attributes and sparse maps.
//!
//! The header fields come from the `tar` crate; the framing is done here, because layers are hostile input and its
//! reader has no limit on the size of a long name, splits PAX records at newlines (so that a capability with the
//! byte 0x0a breaks), and trusts the size field of entries that have no data. Where the formats leave a choice, this
//! follows Go's `archive/tar`, with which nearly all images are made and checked.
//!
//! Not supported, and refused: multi-volume archives, and global PAX records that would say something of all entries.

mod fields;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, BufRead, Read};

use tar::{EntryType, GnuExtSparseHeader, Header};

use fields::{
    PaxRecords, PaxSparse, Records, corrupt, each_pax_record, number, unsigned, unsupported,
    until_nul,
};

const BLOCK: usize = 512;
/// The longest long name or set of PAX records (`maxSpecialFileSize` of Go's package).
const RECORDS_MAX_BYTES: u64 = 1 << 20;
/// The most data pieces of a sparse file: more than 1 GB of alternating 4 KiB pages.
const SPARSE_PIECES_MAX: usize = 1 << 18;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A file with `size` bytes of content.
    File,
    /// A hard link to `link`.
    HardLink,
    /// A symbolic link to `link`.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

/// An entry's header. Its content is read from the [`TarStream`] it came from.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The name as written, unchecked.
    pub path: Vec<u8>,
    /// The target of a link as written, unchecked.
    pub link: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits with set-user-ID and the like.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// The length of the file, holes included.
    pub size: u64,
    /// The pieces (offset, length) that the stream holds, when the file is sparse.
    pub sparse: Option<Vec<(u64, u64)>>,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A stream that is not a tar archive, or not one that is supported.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream cannot be read: it is corrupt, too large, or its source failed.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// It does not begin like an archive.
    #[error(
        "this is not a tar archive, or one that is compressed by other means than gzip and zstd"
    )]
    NotAnArchive,
    /// It ends too early.
    #[error("the archive ends in the middle of {0}")]
    Truncated(&'static str),
    /// A field makes no sense.
    #[error("the archive's header for `{name}` is corrupt: {what}")]
    Corrupt {
        /// The entry, as far as known.
        name: String,
        /// What is wrong.
        what: &'static str,
    },
    /// A feature that is not supported.
    #[error("the archive's entry `{name}` uses {what}, which is not supported")]
    Unsupported {
        /// The entry.
        name: String,
        /// The feature.
        what: &'static str,
    },
}

/// A tar archive, read from front to back.
pub struct TarStream<R> {
    inner: R,
    /// Bytes from the start of the stream.
    position: u64,
    /// Content of the current entry that was not read yet.
    content_left: u64,
    /// Filling bytes after it.
    padding_left: u64,
    ended: bool,
}

impl<R: Read> TarStream<R> {
    /// Reads from `inner`.
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            position: 0,
            content_left: 0,
            padding_left: 0,
            ended: false,
        }
    }

    /// The offset in the stream of what is read next.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next entry; what was not read of the one before is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        self.skip_content()?;
        let mut pending = Records::default();
        loop {
            let Some(header) = self.next_header()? else {
                return Ok(None);
            };
            let name = header.path_bytes();
            let size = number(&header.as_old().size, &name)?;
            let size = u64::try_from(size).map_err(|_| corrupt(&name, "its size is negative"))?;
            match header.entry_type() {
                EntryType::GNULongName => {
                    pending.gnu_path = Some(until_nul(&self.read_records(size, &name)?));
                }
                EntryType::GNULongLink => {
                    pending.gnu_link = Some(until_nul(&self.read_records(size, &name)?));
                }
                EntryType::XHeader => {
                    let records = self.read_records(size, &name)?;
                    pending.pax = PaxRecords::parse(&records, &name)?;
                }
                EntryType::XGlobalHeader => {
                    let records = self.read_records(size, &name)?;
                    check_global_records(&records, &name)?;
                }
                _ => return self.entry(&header, size, pending).map(Some),
            }
        }
    }

    fn entry(&mut self, header: &Header, size: u64, records: Records) -> Result<Entry, TarError> {
        let Records {
            gnu_path,
            gnu_link,
            mut pax,
        } = records;
        let path = gnu_path
            .or(pax.path.take())
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let name = path.as_slice();
        let field = |bytes: &[u8]| number(bytes, name);
        let owner = |pax: Option<u64>, bytes: &[u8]| match pax {
            Some(id) => Ok(id),
            None => u64::try_from(field(bytes)?)
                .map_err(|_| corrupt(name, "its owner or group is negative")),
        };
        let old = header.as_old();
        let kind = kind(header, name)?;
        let stored = match kind {
            Kind::File => pax.size.unwrap_or(size),
            // Go's package, too, holds that these have no content, whatever their size field says.
            _ => 0,
        };
        let mut entry = Entry {
            link: gnu_link
                .or(pax.link)
                .or_else(|| header.link_name_bytes().map(Cow::into_owned))
                .unwrap_or_default(),
            mode: (field(&old.mode)? & 0o7777) as u32,
            uid: owner(pax.uid, &old.uid)?,
            gid: owner(pax.gid, &old.gid)?,
            mtime: match pax.mtime {
                Some(mtime) => mtime,
                None => (field(&old.mtime)?, 0),
            },
            device: device(header, &kind, name)?,
            kind,
            size: stored,
            sparse: None,
            xattrs: pax.xattrs,
            path: Vec::new(),
        };
        if header.entry_type() == EntryType::GNUSparse {
            let (pieces, real_size) = self.old_sparse_map(header, name)?;
            entry.size = real_size;
            entry.sparse = Some(pieces);
        }
        self.content_left = stored;
        self.padding_left = stored.next_multiple_of(BLOCK as u64) - stored;
        if let Some(sparse) = pax.sparse.take_if(|_| entry.kind == Kind::File) {
            return self.pax_sparse_entry(entry, path, sparse);
        }
        if let Some(pieces) = &entry.sparse {
            check_sparse(pieces, entry.size, stored, name)?;
        }
        entry.path = path;
        Ok(entry)
    }

    fn pax_sparse_entry(
        &mut self,
        mut entry: Entry,
        path: Vec<u8>,
        sparse: PaxSparse,
    ) -> Result<Entry, TarError> {
        entry.path = sparse.name.unwrap_or(path);
        entry.size = sparse.real_size;
        let pieces = match sparse.map {
            Some(pieces) if pieces.len() > SPARSE_PIECES_MAX => {
                return Err(corrupt(&entry.path, "its sparse map has too many pieces"));
            }
            Some(pieces) => pieces,
            None => self.pax_sparse_map(&entry.path)?,
        };
        check_sparse(&pieces, entry.size, self.content_left, &entry.path)?;
        entry.sparse = Some(pieces);
        Ok(entry)
    }

    fn skip_content(&mut self) -> Result<(), TarError> {
        while self.content_left > 0 {
            let mut buffer = [0; 8192];
            let want = self.content_left.min(buffer.len() as u64) as usize;
            self.fill(&mut buffer[..want], "an entry")?;
            self.content_left -= want as u64;
        }
        let mut buffer = [0; BLOCK];
        let padding = std::mem::take(&mut self.padding_left) as usize;
        // Some programs (umoci) leave out the filling after the last file, and the end marks.
        if padding > 0 && !self.fill_or_end(&mut buffer[..padding])? {
            self.ended = true;
        }
        Ok(())
    }

    /// The next header; none at the two zero blocks that end an archive, or at the end of the stream.
    fn next_header(&mut self) -> Result<Option<Header>, TarError> {
        if self.ended {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        if !self.fill_or_end(&mut block)? {
            self.ended = true;
            return Ok(None);
        }
        if block.iter().all(|b| *b == 0) {
            self.ended = true;
            if self.fill_or_end(&mut block)? && block.iter().any(|b| *b != 0) {
                return Err(corrupt(b"", "data follows a zero block"));
            }
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let name = header.path_bytes();
        let is_first = self.position == BLOCK as u64;
        let stated = match number(&header.as_old().cksum, &name) {
            Err(_) if is_first => return Err(TarError::NotAnArchive),
            stated => stated?,
        };
        if !is_checksum(&block, stated) {
            return match is_first {
                true => Err(TarError::NotAnArchive),
                false => Err(corrupt(&name, "its checksum is wrong")),
            };
        }
        drop(name);
        Ok(Some(header))
    }

    fn read_records(&mut self, size: u64, name: &[u8]) -> Result<Vec<u8>, TarError> {
        if size > RECORDS_MAX_BYTES {
            return Err(corrupt(name, "a name or set of PAX records exceeds 1 MiB"));
        }
        let mut records = vec![0; size.next_multiple_of(BLOCK as u64) as usize];
        self.fill(&mut records, "a header")?;
        records.truncate(size as usize);
        Ok(records)
    }

    fn old_sparse_map(
        &mut self,
        header: &Header,
        name: &[u8],
    ) -> Result<(Vec<(u64, u64)>, u64), TarError> {
        let gnu = header
            .as_gnu()
            .ok_or_else(|| corrupt(name, "a sparse file without a GNU header"))?;
        let mut pieces = Vec::new();
        let add = |pieces: &mut Vec<(u64, u64)>, offset: &[u8], len: &[u8]| {
            if offset[0] == 0 || len[0] == 0 {
                return Ok(());
            }
            pieces.push((unsigned(offset, name)?, unsigned(len, name)?));
            Ok(())
        };
        for s in &gnu.sparse {
            add(&mut pieces, &s.offset, &s.numbytes)?;
        }
        let mut is_extended = gnu.is_extended();
        while is_extended {
            let mut ext = GnuExtSparseHeader::new();
            self.fill(ext.as_mut_bytes(), "a sparse map")?;
            for s in ext.sparse() {
                add(&mut pieces, &s.offset, &s.numbytes)?;
            }
            if pieces.len() > SPARSE_PIECES_MAX {
                return Err(corrupt(name, "its sparse map has too many pieces"));
            }
            is_extended = ext.is_extended();
        }
        Ok((pieces, unsigned(&gnu.realsize, name)?))
    }

    /// GNU sparse format 1.0: decimal numbers, one a line, at the start of the content, filled up to a block.
    fn pax_sparse_map(&mut self, name: &[u8]) -> Result<Vec<(u64, u64)>, TarError> {
        let bad = || corrupt(name, "its sparse map is malformed");
        let start = self.content_left;
        let mut next = || -> Result<u64, TarError> {
            let mut value = None::<u64>;
            loop {
                let mut byte = [0];
                if self.read(&mut byte).map_err(TarError::Read)? == 0 {
                    return Err(bad());
                }
                match byte[0] {
                    b'\n' => return value.ok_or_else(bad),
                    digit @ b'0'..=b'9' => {
                        let digit = u64::from(digit - b'0');
                        let sum = value
                            .unwrap_or(0)
                            .checked_mul(10)
                            .and_then(|v| v.checked_add(digit));
                        value = Some(sum.ok_or_else(bad)?);
                    }
                    _ => return Err(bad()),
                }
            }
        };
        let count = next()?;
        if count > SPARSE_PIECES_MAX as u64 {
            return Err(corrupt(name, "its sparse map has too many pieces"));
        }
        let mut pieces = Vec::new();
        for _ in 0..count {
            pieces.push((next()?, next()?));
        }
        let used = start - self.content_left;
        let mut filling = vec![0; (used.next_multiple_of(BLOCK as u64) - used) as usize];
        if self.content_left < filling.len() as u64 {
            return Err(bad());
        }
        self.fill(&mut filling, "a sparse map")?;
        self.content_left -= filling.len() as u64;
        Ok(pieces)
    }

    fn fill(&mut self, buffer: &mut [u8], what: &'static str) -> Result<(), TarError> {
        if buffer.is_empty() || self.fill_or_end(buffer)? {
            Ok(())
        } else {
            Err(TarError::Truncated(what))
        }
    }

    /// Fills the buffer; false when the stream was at its end.
    fn fill_or_end(&mut self, buffer: &mut [u8]) -> Result<bool, TarError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.inner.read(&mut buffer[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(TarError::Truncated("a block")),
                Ok(n) => {
                    filled += n;
                    self.position += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(TarError::Read(e)),
            }
        }
        Ok(true)
    }
}

/// Reads the current entry's content. A stream that ends within it is an error.
impl<R: Read> Read for TarStream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = self.content_left.min(buffer.len() as u64) as usize;
        if want == 0 {
            return Ok(0);
        }
        let n = self.inner.read(&mut buffer[..want])?;
        if n == 0 {
            return Err(ends_in_file());
        }
        self.position += n as u64;
        self.content_left -= n as u64;
        Ok(n)
    }
}

/// The same without a copy.
impl<R: BufRead> BufRead for TarStream<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.content_left == 0 {
            return Ok(&[]);
        }
        let buffer = self.inner.fill_buf()?;
        if buffer.is_empty() {
            return Err(ends_in_file());
        }
        let len = self.content_left.min(buffer.len() as u64) as usize;
        Ok(&buffer[..len])
    }

    fn consume(&mut self, amount: usize) {
        self.inner.consume(amount);
        self.position += amount as u64;
        self.content_left -= amount as u64;
    }
}

fn ends_in_file() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the archive ends in the middle of a file",
    )
}

/// True when the block's bytes, those of the checksum itself taken as blanks, sum up to `stated`. Some old programs
/// summed signed bytes.
fn is_checksum(block: &[u8; BLOCK], stated: i64) -> bool {
    let mut blank = *block;
    blank[148..156].fill(b' ');
    let sum: u32 = blank.iter().map(|b| u32::from(*b)).sum();
    let signed_sum: i32 = blank.iter().map(|b| i32::from(b.cast_signed())).sum();
    stated == i64::from(sum) || stated == i64::from(signed_sum)
}

fn kind(header: &Header, name: &[u8]) -> Result<Kind, TarError> {
    // Before POSIX a directory was a file, of type zero, whose name ends in a slash.
    let is_old_type = header.as_old().linkflag == [0];
    Ok(match header.entry_type() {
        EntryType::Regular if is_old_type && name.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => Kind::File,
        EntryType::Link => Kind::HardLink,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Char => Kind::CharDevice,
        EntryType::Block => Kind::BlockDevice,
        EntryType::Directory => Kind::Directory,
        EntryType::Fifo => Kind::Fifo,
        _ => return Err(unsupported(name, "an unknown type of entry")),
    })
}

fn device(header: &Header, kind: &Kind, name: &[u8]) -> Result<(u32, u32), TarError> {
    if !matches!(kind, Kind::CharDevice | Kind::BlockDevice) {
        return Ok((0, 0));
    }
    let (major, minor) = match (header.as_ustar(), header.as_gnu()) {
        (Some(h), _) => (&h.dev_major, &h.dev_minor),
        (_, Some(h)) => (&h.dev_major, &h.dev_minor),
        _ => return Err(corrupt(name, "a device without numbers")),
    };
    let part = |bytes| {
        u32::try_from(number(bytes, name)?)
            .map_err(|_| corrupt(name, "a device number is out of range"))
    };
    Ok((part(major)?, part(minor)?))
}

/// Global records may say only what is not kept of single entries either: `git archive`, for one, writes a comment.
fn check_global_records(records: &[u8], name: &[u8]) -> Result<(), TarError> {
    each_pax_record(records, name, |key, _| {
        let is_kept = matches!(
            key,
            b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"mtime"
        ) || [&b"GNU.sparse."[..], b"SCHILY.xattr.", b"LIBARCHIVE.xattr."]
            .iter()
            .any(|prefix| key.starts_with(prefix));
        match is_kept {
            true => Err(unsupported(name, "global PAX records")),
            false => Ok(()),
        }
    })
}

/// Pieces must be in order, within the file, and fill the stored content exactly.
fn check_sparse(
    pieces: &[(u64, u64)],
    size: u64,
    content: u64,
    name: &[u8],
) -> Result<(), TarError> {
    let (mut end, mut sum) = (0_u64, 0_u64);
    for (offset, len) in pieces {
        let next = offset.checked_add(*len);
        if *offset < end || next.is_none_or(|next| next > size) {
            return Err(corrupt(name, "its sparse map is out of order or range"));
        }
        end = offset + len;
        sum += len;
    }
    if sum != content {
        return Err(corrupt(name, "its sparse map does not fit its content"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
