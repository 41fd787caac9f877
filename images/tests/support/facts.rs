//! All that can be told of a tree of files, so that two can be compared entry by entry.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Debug;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::Digest;

/// What one entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub kind: &'static str,
    pub mode: u32,
    pub owner: (u32, u32),
    /// Of a file.
    pub size: u64,
    pub content: Option<String>,
    pub target: Option<PathBuf>,
    pub device: u64,
    pub mtime: (i64, i64),
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// The first of all names of the same file.
    pub same_as: Option<PathBuf>,
}

/// A tree by path; the root is the empty path.
pub type Tree = BTreeMap<PathBuf, Facts>;

/// Reads all below `root`, which may be a path of /proc/self/fd.
pub fn read(root: &Path) -> Tree {
    let mut tree = Tree::new();
    let mut first_names = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        // With a slash at the end, so that the root may be a link to the directory.
        let full = root.join(&path);
        let metadata = if path.as_os_str().is_empty() {
            std::fs::metadata(root).unwrap()
        } else {
            std::fs::symlink_metadata(&full).unwrap()
        };
        let kind = metadata.file_type();
        if kind.is_dir() {
            for entry in std::fs::read_dir(&full).unwrap() {
                todo.push(path.join(entry.unwrap().file_name()));
            }
        } else {
            let key = (metadata.dev(), metadata.ino());
            first_names
                .entry(key)
                .or_insert_with(Vec::new)
                .push(path.clone());
        }
        let is_device = kind.is_block_device() || kind.is_char_device();
        let facts = Facts {
            kind: match () {
                () if kind.is_dir() => "directory",
                () if kind.is_symlink() => "link",
                () if kind.is_file() => "file",
                () if kind.is_fifo() => "fifo",
                () if kind.is_block_device() => "block device",
                () if kind.is_char_device() => "character device",
                () => "other",
            },
            mode: metadata.mode() & 0o7777,
            owner: (metadata.uid(), metadata.gid()),
            size: if kind.is_file() { metadata.len() } else { 0 },
            content: kind.is_file().then(|| digest(&full)),
            target: kind
                .is_symlink()
                .then(|| std::fs::read_link(&full).unwrap()),
            device: if is_device { metadata.rdev() } else { 0 },
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            xattrs: xattrs(&full),
            same_as: None,
        };
        tree.insert(path, facts);
    }
    for names in first_names.values().filter(|names| names.len() > 1) {
        for name in names {
            tree.get_mut(name).unwrap().same_as = names.iter().min().cloned();
        }
    }
    tree
}

/// What differs, one line each.
pub fn differences(ours: &Tree, theirs: &Tree) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for (path, facts) in ours {
        let Some(other) = theirs.get(path) else {
            found.push((path.clone(), format!("only here: {}", facts.kind)));
            continue;
        };
        let mut differ = |what: &str, a: &dyn Debug, b: &dyn Debug| {
            let (a, b) = (format!("{a:?}"), format!("{b:?}"));
            if a != b {
                found.push((path.clone(), format!("{what}: here {a}, there {b}")));
            }
        };
        differ("kind", &facts.kind, &other.kind);
        differ("mode", &facts.mode, &other.mode);
        differ("owner", &facts.owner, &other.owner);
        differ("size", &facts.size, &other.size);
        differ("content", &facts.content, &other.content);
        differ("target", &facts.target, &other.target);
        differ("device", &facts.device, &other.device);
        differ("mtime", &facts.mtime, &other.mtime);
        differ("xattrs", &facts.xattrs, &other.xattrs);
        differ("same file as", &facts.same_as, &other.same_as);
    }
    let only_there = theirs.iter().filter(|(path, _)| !ours.contains_key(*path));
    found.extend(
        only_there.map(|(path, facts)| (path.clone(), format!("only there: {}", facts.kind))),
    );
    found
}

fn digest(path: &Path) -> String {
    let mut hasher = sha2::Sha256::new();
    let mut file = std::fs::File::open(path).unwrap();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match std::io::Read::read(&mut file, &mut buffer).unwrap() {
            0 => return hex::encode(hasher.finalize()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0_u8; 64 * 1024];
    let len = rustix::fs::llistxattr(path, &mut names).unwrap_or(0);
    let names = names[..len]
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0_u8; 64 * 1024];
            let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value).unwrap();
            value.truncate(len);
            (String::from_utf8_lossy(name).into_owned(), value)
        })
        .collect()
}
