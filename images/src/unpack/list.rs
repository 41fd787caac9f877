//! The list of what a layer holds, written while it is unpacked, and compared with the directory later.
//!
//! A record for each entry of the archive, in its order: kind, mode, owner, group, size, a hash of the content, and the
//! name, ended by a zero byte; all compressed, with a checksum of its own. The hash is XXH3 of 64 bits: it finds damage
//! (disks, power cuts, a slip of the hand), not forgery, since who can write to the store can write this list, too. It
//! costs a hundredth of what SHA-256 does where the processor has no instruction for that. Against forgery there are the
//! digests of the compressed layers. fs-verity would find both, but only few file systems have it, and those must have
//! been made with it.
//!
//! An entry may be replaced by a later one. So what does not fit its record counts only if no later record is about it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use xxhash_rust::xxh3::{Xxh3Default, xxh3_64};

use super::tree::{is_opaque, is_whiteout};
use crate::confined::open_in_root;
use crate::tar_stream::{Entry, Kind};

const BUFFER_BYTES: usize = 128 * 1024;
/// The longest record: a name of PATH_MAX, and numbers.
const RECORD_MAX_BYTES: u64 = 8 * 1024;
/// More differences than this are not looked into one by one.
const SUSPECTS_MAX: usize = 10_000;
const ZEROES: [u8; 4096] = [0; 4096];

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    File,
    /// Another name of a file.
    HardLink,
    Directory,
    Symlink,
    /// Device or pipe.
    Special,
    /// A mark that hides what is below.
    Hidden,
    /// A directory that hides all below it.
    Opaque,
}

const LETTERS: [(What, &str); 7] = [
    (What::File, "f"),
    (What::HardLink, "h"),
    (What::Directory, "d"),
    (What::Symlink, "l"),
    (What::Special, "s"),
    (What::Hidden, "w"),
    (What::Opaque, "o"),
];

impl What {
    fn letter(self) -> &'static str {
        let found = LETTERS.iter().find(|(what, _)| *what == self);
        found.map_or("", |(_, letter)| letter)
    }

    fn parse(text: &str) -> Option<Self> {
        let found = LETTERS.iter().find(|(_, letter)| *letter == text);
        found.map(|(what, _)| *what)
    }
}

/// Writes the list.
pub(super) struct ListWriter {
    out: zstd::stream::write::Encoder<'static, BufWriter<File>>,
}

impl ListWriter {
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let file = BufWriter::with_capacity(BUFFER_BYTES, File::create_new(path)?);
        let mut out = zstd::stream::write::Encoder::new(file, 1)?;
        out.include_checksum(true)?;
        Ok(Self { out })
    }

    /// An entry that was made at `path`, with the hash of its content if it is a file.
    pub(super) fn entry(&mut self, path: &[&[u8]], entry: &Entry, hash: u64) -> io::Result<()> {
        let (what, hash) = match entry.kind {
            Kind::File => (What::File, hash),
            Kind::HardLink => (What::HardLink, 0),
            Kind::Directory => (What::Directory, 0),
            Kind::Symlink => (What::Symlink, xxh3_64(&entry.link)),
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => (What::Special, 0),
        };
        let numbers = (entry.mode & 0o7777, entry.uid, entry.gid, entry.size);
        self.record(what, numbers, hash, path)
    }

    /// A name that is hidden of the layers below.
    pub(super) fn whiteout(&mut self, parent: &[&[u8]], hidden: &[u8]) -> io::Result<()> {
        let path: Vec<&[u8]> = parent.iter().copied().chain([hidden]).collect();
        self.record(What::Hidden, (0, 0, 0, 0), 0, &path)
    }

    /// A directory that hides all below it.
    pub(super) fn opaque(&mut self, directory: &[&[u8]]) -> io::Result<()> {
        self.record(What::Opaque, (0, 0, 0, 0), 0, directory)
    }

    fn record(
        &mut self,
        what: What,
        (mode, uid, gid, size): (u32, u64, u64, u64),
        hash: u64,
        path: &[&[u8]],
    ) -> io::Result<()> {
        let what = what.letter();
        write!(self.out, "{what} {mode:o} {uid} {gid} {size} {hash:x} ")?;
        self.out.write_all(&path.join(&b'/'))?;
        self.out.write_all(&[0])
    }

    pub(super) fn finish(self) -> io::Result<()> {
        self.out.finish()?.flush()
    }
}

/// The content of a file, on its way from the archive to where it is written, and hashed on the way.
pub(super) struct HashedContent<'a, R> {
    inner: &'a mut R,
    hash: ContentHash,
}

/// Hashes the content of a file as it will read, holes included.
struct ContentHash {
    hasher: Xxh3Default,
    /// Where the next bytes of the stream go, the next piece last.
    pieces: Vec<(u64, u64)>,
    position: u64,
    size: u64,
}

impl<'a, R: BufRead> HashedContent<'a, R> {
    pub(super) fn new(inner: &'a mut R, entry: &Entry) -> Self {
        let mut pieces = match &entry.sparse {
            Some(pieces) => pieces.clone(),
            None => vec![(0, entry.size)],
        };
        pieces.reverse();
        let hash = ContentHash {
            hasher: Xxh3Default::new(),
            pieces,
            position: 0,
            size: entry.size,
        };
        Self { inner, hash }
    }

    /// Writes the next `max_bytes` of what the archive holds, or all that is left. No byte is copied in between.
    pub(super) fn write_to(&mut self, out: &mut impl Write, max_bytes: u64) -> io::Result<()> {
        let mut left = max_bytes;
        while left > 0 {
            let stored = match self.inner.fill_buf() {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                stored => stored?,
            };
            let n = left.min(stored.len() as u64) as usize;
            if n == 0 {
                break;
            }
            out.write_all(&stored[..n])?;
            self.hash.add(&stored[..n]);
            self.inner.consume(n);
            left -= n as u64;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> u64 {
        self.hash.finish()
    }
}

impl ContentHash {
    fn finish(mut self) -> u64 {
        self.zeroes_to(self.size);
        self.hasher.digest()
    }

    fn zeroes_to(&mut self, end: u64) {
        while self.position < end {
            let n = (end - self.position).min(ZEROES.len() as u64);
            self.hasher.update(&ZEROES[..n as usize]);
            self.position += n;
        }
    }

    fn add(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let Some((offset, len)) = self.pieces.pop() else {
                return;
            };
            self.zeroes_to(offset);
            let n = len.min(bytes.len() as u64);
            let (these, rest) = bytes.split_at(n as usize);
            self.hasher.update(these);
            self.position += n;
            if n < len {
                self.pieces.push((offset + n, len - n));
            }
            bytes = rest;
        }
    }
}

/// A record, as it is read.
struct Record<'a> {
    what: What,
    mode: u32,
    owner: (u64, u64),
    size: u64,
    hash: u64,
    path: &'a [u8],
}

impl<'a> Record<'a> {
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(7, |byte| *byte == b' ');
        let mut field = || std::str::from_utf8(fields.next()?).ok();
        Some(Self {
            what: What::parse(field()?)?,
            mode: u32::from_str_radix(field()?, 8).ok()?,
            owner: (field()?.parse().ok()?, field()?.parse().ok()?),
            size: field()?.parse().ok()?,
            hash: u64::from_str_radix(field()?, 16).ok()?,
            path: fields.next()?,
        })
    }
}

/// What did not fit its record: by path, the record's number and what is wrong.
type Suspects = BTreeMap<Vec<u8>, (u64, String)>;

/// Compares a layer's directory `fs` with its list. Says what is wrong with the first file that is wrong, if any is.
/// `pace` is told the size of each file before it is read.
///
/// # Errors
/// When the list itself cannot be read, or is damaged.
pub(crate) fn compare(
    list: &Path,
    fs: &Path,
    pace: &mut dyn FnMut(u64),
) -> io::Result<Option<String>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(fs, flags, Mode::empty())?;
    let mut suspects = Suspects::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    each_record(list, |number, record| {
        if let Some(wrong) = differs(&root, record, &mut buffer, pace)
            && suspects.len() < SUSPECTS_MAX
        {
            suspects.insert(record.path.to_vec(), (number, wrong));
        }
    })?;
    if suspects.is_empty() {
        return Ok(None);
    }
    each_record(list, |number, record| {
        forgive(&mut suspects, number, record);
    })?;
    // What was made by way of a symbolic link may have been replaced under its true name.
    suspects.retain(|path, _| !is_alias(&root, path));
    let first = suspects.into_iter().next();
    Ok(first.map(|(path, (_, wrong))| format!("{}: {wrong}", super::shown(&path))))
}

/// Removes the suspects that a later record is about: itself, or a directory on the way to it that is none any more.
fn forgive(suspects: &mut Suspects, number: u64, record: &Record<'_>) {
    let is_earlier = |suspect: Option<&(u64, String)>| suspect.is_some_and(|(n, _)| *n < number);
    if is_earlier(suspects.get(record.path)) {
        suspects.remove(record.path);
    }
    if matches!(record.what, What::Directory | What::Opaque | What::Hidden) {
        return;
    }
    let below = [record.path, b"/"].concat();
    let gone: Vec<_> = suspects
        .range(below.clone()..)
        .take_while(|(path, _)| path.starts_with(&below))
        .filter(|(_, suspect)| is_earlier(Some(suspect)))
        .map(|(path, _)| path.clone())
        .collect();
    for path in gone {
        suspects.remove(&path);
    }
}

fn each_record(list: &Path, mut see: impl FnMut(u64, &Record<'_>)) -> io::Result<()> {
    let file = BufReader::with_capacity(BUFFER_BYTES, File::open(list)?);
    let plain = zstd::stream::read::Decoder::with_buffer(file)?;
    let mut plain = BufReader::with_capacity(BUFFER_BYTES, plain);
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the list of files is damaged");
    let mut line = Vec::new();
    for number in 0.. {
        line.clear();
        let mut limited = plain.by_ref().take(RECORD_MAX_BYTES);
        if limited.read_until(0, &mut line)? == 0 {
            break;
        }
        if line.pop() != Some(0) {
            return Err(damaged());
        }
        see(number, &Record::parse(&line).ok_or_else(damaged)?);
    }
    Ok(())
}

/// What is wrong with the file of a record.
fn differs(
    root: &OwnedFd,
    record: &Record<'_>,
    buffer: &mut [u8],
    pace: &mut dyn FnMut(u64),
) -> Option<String> {
    // What is not read is not opened either: a device or pipe may do something then.
    let fd = match open(root, record.path, OFlags::PATH | OFlags::NOFOLLOW) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR) => return Some("it is missing".to_owned()),
        Err(e) => return Some(format!("it cannot be opened: {e}")),
    };
    match compare_one(root, &fd, record, buffer, pace) {
        Ok(wrong) => wrong,
        Err(e) => Some(format!("it cannot be read: {e}")),
    }
}

fn compare_one(
    root: &OwnedFd,
    fd: &OwnedFd,
    record: &Record<'_>,
    buffer: &mut [u8],
    pace: &mut dyn FnMut(u64),
) -> io::Result<Option<String>> {
    let stat = rustix::fs::fstat(fd)?;
    if !is_kind(record.what, &stat) {
        return Ok(Some("it is another kind of file".to_owned()));
    }
    let mode = stat.st_mode & 0o7777;
    let owner = (u64::from(stat.st_uid), u64::from(stat.st_gid));
    match record.what {
        What::HardLink | What::Hidden => return Ok(None),
        What::Opaque => {
            let directory = open(root, record.path, OFlags::RDONLY | OFlags::DIRECTORY)?;
            let is_open = !is_opaque(directory.as_fd());
            return Ok(is_open.then(|| "it does not hide what is below it".to_owned()));
        }
        _ => {}
    }
    if record.what != What::Symlink && mode != record.mode {
        let expected = record.mode;
        return Ok(Some(format!(
            "its mode is {mode:04o} instead of {expected:04o}"
        )));
    }
    if owner != record.owner {
        let ((uid, gid), expected) = (owner, record.owner);
        return Ok(Some(format!(
            "its owner is {uid}:{gid} instead of {}:{}",
            expected.0, expected.1
        )));
    }
    let hash = match record.what {
        What::Symlink => xxh3_64(rustix::fs::readlinkat(fd, "", Vec::new())?.as_bytes()),
        What::File => {
            let (size, expected) = (stat.st_size.cast_unsigned(), record.size);
            if size != expected {
                return Ok(Some(format!("it has {size} bytes instead of {expected}")));
            }
            pace(size);
            let file = open(root, record.path, OFlags::RDONLY | OFlags::NOFOLLOW)?;
            hash_of(&file, buffer)?
        }
        _ => return Ok(None),
    };
    Ok((hash != record.hash).then(|| "its content is not what was unpacked".to_owned()))
}

fn is_kind(what: What, stat: &Stat) -> bool {
    let kind = FileType::from_raw_mode(stat.st_mode);
    match what {
        What::File => kind == FileType::RegularFile,
        What::Directory | What::Opaque => kind == FileType::Directory,
        What::Symlink => kind == FileType::Symlink,
        What::Special => !is_whiteout(stat),
        What::HardLink | What::Hidden => true,
    }
}

fn hash_of(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<u64> {
    let mut hasher = Xxh3Default::new();
    loop {
        match rustix::io::read(fd, &mut *buffer)? {
            0 => return Ok(hasher.digest()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

fn open(root: &OwnedFd, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    open_in_root(root, path, flags, ResolveFlags::empty())
}

/// True when the way to `path` leads through a symbolic link.
fn is_alias(root: &OwnedFd, path: &[u8]) -> bool {
    let Some(slash) = path.iter().rposition(|byte| *byte == b'/') else {
        return false;
    };
    let parent = &path[..slash];
    let Ok(fd) = open(root, parent, OFlags::PATH | OFlags::DIRECTORY) else {
        return false;
    };
    let place = |fd: &OwnedFd| {
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        rustix::fs::readlink(link, Vec::new()).map(|path| path.into_bytes())
    };
    match (place(root), place(&fd)) {
        (Ok(mut expected), Ok(found)) => {
            expected.push(b'/');
            expected.extend(parent);
            expected != found
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_hashed_as_they_read() {
        let entry = Entry {
            path: Vec::new(),
            link: Vec::new(),
            kind: Kind::File,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            device: (0, 0),
            size: 10_000,
            sparse: Some(vec![(3, 2), (5000, 3), (10_000, 0)]),
            xattrs: BTreeMap::new(),
        };
        let mut whole = vec![0; 10_000];
        whole[3..5].copy_from_slice(b"ab");
        whole[5000..5003].copy_from_slice(b"cde");
        let mut stored = &b"abcde"[..];
        let mut content = HashedContent::new(&mut stored, &entry);
        let mut written = Vec::new();
        content.write_to(&mut written, 4).unwrap();
        content.write_to(&mut written, 4).unwrap();
        assert_eq!(written, b"abcde");
        assert_eq!(content.finish(), xxh3_64(&whole));
        let entry = Entry {
            sparse: None,
            ..entry
        };
        let mut stored = whole.as_slice();
        let mut content = HashedContent::new(&mut stored, &entry);
        content.write_to(&mut io::sink(), u64::MAX).unwrap();
        assert_eq!(content.finish(), xxh3_64(&whole));
    }

    #[test]
    fn a_list_that_is_cut_short_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list");
        let mut list = ListWriter::create(&path).unwrap();
        list.whiteout(&[b"a", b"b c"], b"d").unwrap();
        list.finish().unwrap();
        let mut found = Vec::new();
        each_record(&path, |_, record| {
            found.push((record.what, record.path.to_vec()));
        })
        .unwrap();
        assert_eq!(found, [(What::Hidden, b"a/b c/d".to_vec())]);
        let whole = std::fs::read(&path).unwrap();
        for cut in 1..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(each_record(&path, |_, _| ()).is_err(), "{cut}");
        }
    }
}
