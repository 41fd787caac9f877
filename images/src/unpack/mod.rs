//! Turns a layer tar into a directory that overlayfs can stack.
//!
//! ```text
//! blob ─► hash, keep ═╪═► decompress ─► limit ═╪═► entries ─► files below one directory descriptor
//!                                              ╪═► hash (diff ID)
//! ```
//! Each `╪` is another thread: see `pipeline.rs`.
//!
//! A layer is hostile input, unpacked by root. Therefore:
//! - Names lose leading slashes; one with `..`, too long or too deep is refused.
//! - Each directory on the way is opened from the one above it and kept open, and no link is followed. Only where the
//!   layer has a link in place of a directory, the kernel resolves the path with the layer's directory as the root
//!   (openat2(2), `RESOLVE_IN_ROOT`), so that the link leads at most to another place in the layer.
//!   The last component is never followed.
//! - Hard links are made only to what the same layer holds.
//! - An entry replaces what an earlier one of the same name made, except that directories merge.
//! - Entries, bytes and the ratio of decompression are limited ([`Limits`]).
//! - Extended attributes of overlayfs (`trusted.overlay.*`, `user.overlay.*`) and security labels of the machine
//!   that built the image are left out.
//!
//! Whiteouts of the image format (`.wh.name`, `.wh..wh..opq`) become those of overlayfs: a character device 0/0, and
//! the attribute `trusted.overlay.opaque`. They concern the layers below only, wherever in the tar they stand.
//!
//! In a user namespace (an ordinary user's `unshare`, rootless podman's `podman unshare`): owners are mapped, devices are
//! left out with a warning, `trusted` attributes too since nobody could see them, and opaque directories get
//! `user.overlay.opaque`, which overlayfs reads when mounted with `userxattr`.

mod buffers;
mod caller;
mod directories;
mod list;
mod metadata;
mod pipeline;
mod tree;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::digest::{Algorithm, Digest};
use crate::tar_stream::{Entry, Kind, TarError, TarStream};
use list::{HashedContent, ListWriter};
use pipeline::PlainReader;
use tree::Tree;

pub(crate) use list::compare;
pub(crate) use metadata::is_left_out;
pub(crate) use pipeline::{ARRIVED_WAITING, Keep, PIECE_BYTES, Pieces, pieces};
pub(crate) use tree::{is_opaque, is_whiteout};

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// PATH_MAX with its NUL.
const PATH_MAX_BYTES: usize = 4095;
/// Removing a tree holds one descriptor for each level; this stays far below the usual limit of 1024.
const DEPTH_MAX: usize = 256;

/// What a layer may ask for. The defaults hold for any honest image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Entries in one layer.
    pub entries: u64,
    /// Bytes of one layer after decompression, and of its files with their holes.
    pub layer_bytes: u64,
    /// Bytes after decompression for each byte before, once a layer exceeds [`ratio_free_bytes`](Self::ratio_free_bytes).
    pub ratio: u64,
    /// Up to here the ratio does not matter.
    pub ratio_free_bytes: u64,
}

impl Default for Limits {
    /// 2 million entries, 64 GiB, and 200 to 1 beyond 1 GiB (text compresses 5 to 1, a bomb 1000 to 1).
    fn default() -> Self {
        Self {
            entries: 2_000_000,
            layer_bytes: 64 << 30,
            ratio: 200,
            ratio_free_bytes: 1 << 30,
        }
    }
}

impl Limits {
    fn decompressed_bytes(&self, compressed_bytes: u64) -> u64 {
        let by_ratio = compressed_bytes.saturating_mul(self.ratio);
        by_ratio.max(self.ratio_free_bytes).min(self.layer_bytes)
    }
}

/// What was unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// The digest of the blob as it was read.
    pub blob: Digest,
    /// Its size.
    pub blob_bytes: u64,
    /// The digest of the tar.
    pub diff_id: Digest,
    /// Bytes of all regular files; a hard link counts nothing.
    pub file_bytes: u64,
    /// The layer hides all below it.
    pub root_is_opaque: bool,
    /// Directories that have no entry of their own, relative to the root, which is the empty name. What the layers below
    /// say of them should hold.
    pub implied: BTreeSet<Vec<u8>>,
}

/// Where a layer is unpacked to.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// The directory for its files.
    pub(crate) fs: PathBuf,
    /// A file for the list of them, which [`compare`] reads.
    pub(crate) list: Option<PathBuf>,
}

/// What is known of a digest before the content is here.
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'a> {
    /// Any content is right; its digest is computed so.
    Any(Algorithm),
    /// Only content of this digest is right.
    Digest(&'a Digest),
}

impl Wanted<'_> {
    fn algorithm(self) -> Algorithm {
        match self {
            Self::Any(algorithm) => algorithm,
            Self::Digest(digest) => digest.algorithm(),
        }
    }

    /// If it is wrong: what was expected, and what it is.
    fn check(self, actual: &Digest) -> Result<(), (Digest, Digest)> {
        match self {
            Self::Digest(expected) if expected != actual => Err((expected.clone(), actual.clone())),
            Self::Digest(_) | Self::Any(_) => Ok(()),
        }
    }
}

/// A layer that cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The blob's source failed.
    #[error("cannot read the layer")]
    Source(#[source] io::Error),
    /// The blob cannot be written to the store while it is unpacked.
    #[error("cannot write the layer's blob")]
    Keep(#[source] io::Error),
    /// The blob has another digest than it should.
    #[error("the layer has the digest {actual} instead of {expected}")]
    WrongDigest {
        /// What it should be.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// The decompressed layer has another digest than it should.
    #[error("the decompressed layer has the digest {actual} instead of {expected}")]
    WrongDiffId {
        /// What it should be.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// The list of the layer's files cannot be written.
    #[error("cannot write the list of the layer's files")]
    List(#[source] io::Error),
    /// A thread cannot be started.
    #[error("cannot start a thread to unpack with")]
    Thread(#[source] io::Error),
    /// The stream is no archive, or is corrupt, or too large.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The blob cannot be read or decompressed.
    #[error("cannot decompress the layer")]
    Decompress(#[from] io::Error),
    /// The directory cannot be opened.
    #[error("cannot open the directory to unpack to")]
    Target(#[source] io::Error),
    /// An entry is refused.
    #[error("entry `{path}` is refused: {reason}")]
    Refused {
        /// Its name.
        path: String,
        /// Why.
        reason: &'static str,
    },
    /// An entry cannot be made.
    #[error("cannot {action} for entry `{path}`")]
    Entry {
        /// Its name.
        path: String,
        /// What was attempted, such as `create the file`.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// More entries or bytes than allowed.
    #[error("the layer has more than {limit} {what}: raise the limit if you trust it")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
}

impl UnpackError {
    /// True when the content makes no sense, so that it may have been damaged on its way.
    fn is_corruption(&self) -> bool {
        match self {
            Self::Tar(_) | Self::Decompress(_) => true,
            Self::Entry { source, .. } => source
                .get_ref()
                .is_some_and(|e| e.is::<pipeline::Corruption>()),
            _ => false,
        }
    }

    /// True when the store's file system has no space left for the layer.
    pub fn is_out_of_space(&self) -> bool {
        match self {
            Self::Keep(e) | Self::List(e) | Self::Target(e) | Self::Entry { source: e, .. } => {
                matches!(
                    e.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                )
            }
            _ => false,
        }
    }
}

/// Unpacks the layer `blob` of `blob_size` bytes into the empty directory `target`.
///
/// The caller compares the digests, and throws the directory away on any error. Ownership, devices and the opaque
/// attribute need root; without it, only layers whose files belong to the caller can be unpacked.
pub fn unpack_layer(
    blob: impl Read + Send,
    blob_size: u64,
    target: &Path,
    algorithms: (Algorithm, Algorithm),
    limits: &Limits,
) -> Result<Unpacked, UnpackError> {
    let wanted = (Wanted::Any(algorithms.0), Wanted::Any(algorithms.1));
    let target = Target {
        fs: target.to_owned(),
        list: None,
    };
    unpack_stream(pieces(blob), |_| Ok(()), blob_size, &target, wanted, limits)
}

/// Unpacks a layer while its blob of `blob_size` bytes arrives, and compares both digests (of the blob, and of the
/// decompressed content). `keep` sees each piece of the blob in order.
pub(crate) fn unpack_stream(
    source: impl Pieces,
    keep: impl Keep,
    blob_size: u64,
    target: &Target,
    wanted: (Wanted<'_>, Wanted<'_>),
    limits: &Limits,
) -> Result<Unpacked, UnpackError> {
    let list = target.list.as_deref().map(ListWriter::create).transpose();
    let list = list.map_err(UnpackError::List)?;
    let root = rustix::fs::open(
        &target.fs,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| UnpackError::Target(e.into()))?;
    let bytes = limits.decompressed_bytes(blob_size);
    let message = format!(
        "the layer of {blob_size} bytes holds more than {bytes} bytes: raise the limit if you trust it"
    );
    let allowed = pipeline::Allowed { bytes, message };
    let consume = |plain: &mut PlainReader| unpack_entries(plain, root, list, limits);
    let (content, passed) = pipeline::run(source, keep, wanted, allowed, consume)?;
    Ok(Unpacked {
        blob: passed.blob,
        blob_bytes: passed.blob_bytes,
        diff_id: passed.diff_id,
        file_bytes: content.file_bytes,
        root_is_opaque: content.root_is_opaque,
        implied: content.implied,
    })
}

/// What the entries of a layer have made.
struct Content {
    file_bytes: u64,
    root_is_opaque: bool,
    implied: BTreeSet<Vec<u8>>,
}

fn unpack_entries(
    tar: impl BufRead,
    root: OwnedFd,
    mut list: Option<ListWriter>,
    limits: &Limits,
) -> Result<Content, UnpackError> {
    let mut stream = TarStream::new(tar);
    let mut tree = Tree::new(root, limits.entries).map_err(|e| UnpackError::Target(e.into()))?;
    let mut entries = 0_u64;
    let mut file_bytes = 0_u64;
    while let Some(entry) = stream.next_entry()? {
        entries += 1;
        if entries > limits.entries {
            return Err(UnpackError::TooLarge {
                what: "entries",
                limit: limits.entries,
            });
        }
        if entry.kind == Kind::File {
            file_bytes = file_bytes.saturating_add(entry.size);
            if file_bytes > limits.layer_bytes {
                return Err(UnpackError::TooLarge {
                    what: "bytes of files",
                    limit: limits.layer_bytes,
                });
            }
        }
        unpack_entry(&mut tree, &entry, &mut stream, list.as_mut())?;
    }
    if tree.skipped_devices() > 0 {
        tracing::warn!(
            devices = tree.skipped_devices(),
            "devices of the layer are left out: none can be made in a user namespace"
        );
    }
    let root_is_opaque = tree.root_is_opaque();
    file_bytes = file_bytes.saturating_sub(tree.removed_bytes());
    let implied = tree.finish()?;
    list.map_or(Ok(()), ListWriter::finish)
        .map_err(UnpackError::List)?;
    Ok(Content {
        file_bytes,
        root_is_opaque,
        implied,
    })
}

fn unpack_entry(
    tree: &mut Tree,
    entry: &Entry,
    content: &mut TarStream<impl BufRead>,
    list: Option<&mut ListWriter>,
) -> Result<(), UnpackError> {
    let path = clean_path(&entry.path)?;
    let note = |note: &dyn Fn(&mut ListWriter) -> io::Result<()>| {
        list.map_or(Ok(()), note).map_err(UnpackError::List)
    };
    let Some((name, parent)) = path.split_last() else {
        match entry.kind {
            Kind::Directory => tree.set_root(entry)?,
            _ => return Err(refused(&entry.path, "the layer's root must be a directory")),
        }
        return note(&|list| list.entry(&path, entry, 0));
    };
    if *name == OPAQUE_MARKER {
        tree.make_opaque(parent, &entry.path)?;
        // The root has no mark: the layers below it are left out.
        return match parent {
            [] => Ok(()),
            _ => note(&|list| list.opaque(parent)),
        };
    }
    if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
        if hidden.starts_with(WHITEOUT_PREFIX) {
            // Bookkeeping of AUFS, such as `.wh..wh.plnk`: not part of the file system.
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(refused(&entry.path, "a whiteout must name a file"));
        }
        tree.whiteout(parent, hidden, &entry.path)?;
        return note(&|list| list.whiteout(parent, hidden));
    }
    let skipped = tree.skipped_devices();
    let mut hash = 0;
    match entry.kind {
        Kind::Directory => tree.directory(parent, name, entry)?,
        Kind::File => {
            let mut content = HashedContent::new(content, entry);
            tree.file(parent, name, entry, &mut content)?;
            hash = content.finish();
        }
        Kind::HardLink => {
            let target = clean_path(&entry.link)
                .map_err(|_| refused(&entry.path, "its hard link leads out of the layer"))?;
            tree.hard_link(parent, name, &target, entry)?;
        }
        Kind::Symlink => tree.symlink(parent, name, entry)?,
        Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => tree.special(parent, name, entry)?,
    }
    if tree.skipped_devices() > skipped {
        return Ok(());
    }
    note(&|list| list.entry(&path, entry, hash))
}

/// The components of a name. `.` and slashes too many do not count; `..` is refused.
fn clean_path(path: &[u8]) -> Result<Vec<&[u8]>, UnpackError> {
    if path.len() > PATH_MAX_BYTES {
        return Err(refused(path, "its name is longer than 4095 bytes"));
    }
    if path.contains(&0) {
        return Err(refused(path, "its name holds a zero byte"));
    }
    let components: Vec<_> = path
        .split(|b| *b == b'/')
        .filter(|c| !matches!(*c, b"" | b"."))
        .collect();
    if components.contains(&&b".."[..]) {
        return Err(refused(path, "its name holds `..`"));
    }
    if components.len() > DEPTH_MAX {
        return Err(refused(path, "it is more than 256 directories deep"));
    }
    Ok(components)
}

fn refused(path: &[u8], reason: &'static str) -> UnpackError {
    UnpackError::Refused {
        path: shown(path),
        reason,
    }
}

/// A name for people: bounded, and without bytes that are not text.
fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(&path[..path.len().min(300)]).into_owned()
}

/// Unpacks a layer from a file of the host.
pub fn unpack_file(
    file: File,
    target: &Path,
    algorithms: (Algorithm, Algorithm),
    limits: &Limits,
) -> Result<Unpacked, UnpackError> {
    let size = file.metadata()?.len();
    unpack_layer(file, size, target, algorithms, limits)
}

#[cfg(test)]
mod escape_tests;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod tests;
