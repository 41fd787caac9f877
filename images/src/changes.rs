//! What differs between the files of two images.
//!
//! Both are read as overlayfs would stack their layers, without mounting. A file of a layer that both images have is
//! the same; others are compared: kind, permissions, owner, capabilities, the target of a link, the numbers of a
//! device, and content, byte by byte. Times are not: two builds of the same files differ in nothing else.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::unpack::{is_opaque, is_whiteout};

/// A path that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Where, from the root of the image, such as `/etc/passwd`.
    pub path: PathBuf,
    /// How.
    pub kind: ChangeKind,
    /// The size of the file in the first image; 0 where there is none, or it is no file.
    pub bytes_before: u64,
    /// The size of the file in the second image.
    pub bytes_after: u64,
}

/// How a path differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeKind {
    /// Only the second image has it.
    Added,
    /// Only the first image has it.
    Removed,
    /// Both have it.
    Changed(Vec<Aspect>),
}

/// What of a path differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aspect {
    /// A file here, a directory or something else there.
    Kind,
    /// The content of a file, the target of a link, or the numbers of a device.
    Content,
    /// Permission bits.
    Mode,
    /// User or group.
    Owner,
    /// `security.capability`.
    Capabilities,
}

/// A file of a layer that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}")]
pub struct ChangesError {
    /// What was attempted.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// What differs between two images, sorted by path. Each is given by its layers, as [`Image::layers`] has them.
///
/// [`Image::layers`]: crate::Image::layers
///
/// # Errors
/// When a layer cannot be read.
pub fn changes(before: &[PathBuf], after: &[PathBuf]) -> Result<Vec<Change>, ChangesError> {
    let (before, after) = (Tree::read(before)?, Tree::read(after)?);
    let mut changes = Vec::new();
    for (name, old) in &before.nodes {
        let kind = match after.nodes.get(name) {
            None => ChangeKind::Removed,
            Some(new) => match compare(old, new)? {
                aspects if aspects.is_empty() => continue,
                aspects => ChangeKind::Changed(aspects),
            },
        };
        let new = after.nodes.get(name);
        changes.push(change(name, kind, Some(old), new));
    }
    for (name, new) in &after.nodes {
        if !before.nodes.contains_key(name) {
            changes.push(change(name, ChangeKind::Added, None, Some(new)));
        }
    }
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(changes)
}

fn change(name: &[u8], kind: ChangeKind, old: Option<&Node>, new: Option<&Node>) -> Change {
    let bytes = |node: Option<&Node>| match node {
        Some(node) if node.metadata.is_file() => node.metadata.len(),
        _ => 0,
    };
    let mut path = b"/".to_vec();
    path.extend(name);
    Change {
        path: OsString::from_vec(path).into(),
        kind,
        bytes_before: bytes(old),
        bytes_after: bytes(new),
    }
}

/// A path of the image, and the file of the layer that shows there.
struct Node {
    path: PathBuf,
    metadata: std::fs::Metadata,
}

/// The paths of an image, without a leading slash.
#[derive(Default)]
struct Tree {
    nodes: BTreeMap<Vec<u8>, Node>,
}

impl Tree {
    fn read(layers: &[PathBuf]) -> Result<Self, ChangesError> {
        let mut tree = Self::default();
        for layer in layers {
            let mut todo = vec![Vec::new()];
            while let Some(name) = todo.pop() {
                tree.add_children(layer, &name, &mut todo)?;
            }
        }
        Ok(tree)
    }

    /// Lays the entries of one directory of a layer over what is there.
    fn add_children(
        &mut self,
        layer: &Path,
        parent: &[u8],
        todo: &mut Vec<Vec<u8>>,
    ) -> Result<(), ChangesError> {
        let dir = layer.join(OsStr::from_bytes(parent));
        for entry in std::fs::read_dir(&dir).map_err(failed("list", &dir))? {
            let entry = entry.map_err(failed("list", &dir))?;
            let path = entry.path();
            let metadata = entry.metadata().map_err(failed("look at", &path))?;
            let mut name = parent.to_vec();
            if !name.is_empty() {
                name.push(b'/');
            }
            name.extend(entry.file_name().as_bytes());
            if is_removed(&path, &metadata) {
                self.remove_below(&name);
                self.nodes.remove(&name);
                continue;
            }
            if metadata.is_dir() {
                let opened = File::open(&path).map_err(failed("open", &path))?;
                let hides = self.nodes.get(&name).is_some_and(|n| !n.metadata.is_dir());
                if hides || is_opaque(&opened) {
                    self.remove_below(&name);
                }
                todo.push(name.clone());
            } else {
                self.remove_below(&name);
            }
            self.nodes.insert(name, Node { path, metadata });
        }
        Ok(())
    }

    fn remove_below(&mut self, name: &[u8]) {
        let bound = |end: u8| {
            let mut bound = name.to_vec();
            bound.push(end);
            bound
        };
        // The byte after the slash ends the range of what is below.
        let below = self.nodes.range(bound(b'/')..bound(b'/' + 1));
        let names: Vec<_> = below.map(|(name, _)| name.clone()).collect();
        for name in names {
            self.nodes.remove(&name);
        }
    }
}

fn is_removed(path: &Path, metadata: &std::fs::Metadata) -> bool {
    metadata.file_type().is_char_device()
        && rustix::fs::lstat(path).is_ok_and(|stat| is_whiteout(&stat))
}

fn compare(old: &Node, new: &Node) -> Result<Vec<Aspect>, ChangesError> {
    if old.path == new.path {
        return Ok(Vec::new());
    }
    let (a, b) = (&old.metadata, &new.metadata);
    if kind(a) != kind(b) {
        return Ok(vec![Aspect::Kind]);
    }
    let mut aspects = Vec::new();
    if differ_in_content(old, new)? {
        aspects.push(Aspect::Content);
    }
    // A link has no permissions of its own.
    if a.mode() != b.mode() && !a.is_symlink() {
        aspects.push(Aspect::Mode);
    }
    if (a.uid(), a.gid()) != (b.uid(), b.gid()) {
        aspects.push(Aspect::Owner);
    }
    if a.is_file() && capabilities(&old.path) != capabilities(&new.path) {
        aspects.push(Aspect::Capabilities);
    }
    Ok(aspects)
}

fn kind(metadata: &std::fs::Metadata) -> u8 {
    let kind = metadata.file_type();
    match () {
        () if kind.is_dir() => 0,
        () if kind.is_file() => 1,
        () if kind.is_symlink() => 2,
        () if kind.is_char_device() => 3,
        () if kind.is_block_device() => 4,
        () if kind.is_fifo() => 5,
        () => 6,
    }
}

fn differ_in_content(old: &Node, new: &Node) -> Result<bool, ChangesError> {
    let (a, b) = (&old.metadata, &new.metadata);
    if a.is_file() {
        return Ok(a.len() != b.len() || differ_in_bytes(&old.path, &new.path)?);
    }
    if a.is_symlink() {
        let target = |node: &Node| {
            std::fs::read_link(&node.path).map_err(failed("read the link", &node.path))
        };
        return Ok(target(old)? != target(new)?);
    }
    let is_device = a.file_type().is_char_device() || a.file_type().is_block_device();
    Ok(is_device && a.rdev() != b.rdev())
}

/// Of two files of the same length.
fn differ_in_bytes(old: &Path, new: &Path) -> Result<bool, ChangesError> {
    const CHUNK: usize = 64 * 1024;
    let open = |path: &Path| {
        let file = File::open(path).map_err(failed("open", path))?;
        Ok(io::BufReader::with_capacity(CHUNK, file))
    };
    let (mut a, mut b) = (open(old)?, open(new)?);
    let (mut left, mut right) = (vec![0; CHUNK], vec![0; CHUNK]);
    loop {
        let n = a.read(&mut left).map_err(failed("read", old))?;
        if n == 0 {
            return Ok(false);
        }
        // A shorter one differs, whatever was said of its length.
        match b.read_exact(&mut right[..n]) {
            Ok(()) if left[..n] == right[..n] => {}
            Ok(()) => return Ok(true),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(true),
            Err(e) => return Err(failed("read", new)(e)),
        }
    }
}

/// None without, and on a file system that has none.
fn capabilities(path: &Path) -> Option<Vec<u8>> {
    // As much as the largest revision takes (capability.h, `XATTR_CAPS_SZ`), and some more.
    let mut value = [0; 64];
    let len = rustix::fs::lgetxattr(path, "security.capability", &mut value).ok()?;
    Some(value[..len].to_vec())
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ChangesError + use<> {
    let path = path.to_owned();
    move |source| ChangesError {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, create_dir_all, set_permissions, write};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::fs::symlink;

    fn lines(before: &[PathBuf], after: &[PathBuf]) -> Vec<String> {
        let changes = changes(before, after).unwrap();
        let line = |c: &Change| match &c.kind {
            ChangeKind::Added => format!("A {} {}", c.path.display(), c.bytes_after),
            ChangeKind::Removed => format!("D {} {}", c.path.display(), c.bytes_before),
            ChangeKind::Changed(what) => format!("C {} {what:?}", c.path.display()),
        };
        changes.iter().map(line).collect()
    }

    #[test]
    fn tells_added_removed_and_changed_files_by_what_differs() {
        let dir = tempfile::tempdir().unwrap();
        let layer = |name: &str| {
            let layer = dir.path().join(name);
            create_dir_all(layer.join("etc")).unwrap();
            layer
        };
        let (base, old, new) = (layer("base"), layer("old"), layer("new"));
        write(base.join("etc/shared"), "same").unwrap();
        for (layer, text, target) in [(&old, "one", "a"), (&new, "two", "b")] {
            write(layer.join("etc/content"), text).unwrap();
            write(layer.join("etc/equal"), "equal").unwrap();
            write(layer.join("mode"), "mode").unwrap();
            symlink(target, layer.join("link")).unwrap();
        }
        set_permissions(new.join("mode"), Permissions::from_mode(0o600)).unwrap();
        set_permissions(old.join("mode"), Permissions::from_mode(0o644)).unwrap();
        write(old.join("gone"), "gone").unwrap();
        write(old.join("kind"), "file").unwrap();
        create_dir_all(new.join("kind/below")).unwrap();
        write(new.join("new"), "12345").unwrap();
        let (before, after) = ([base.clone(), old], [base, new]);
        assert_eq!(
            lines(&before, &after),
            [
                "C /etc/content [Content]",
                "D /gone 4",
                "C /kind [Kind]",
                "A /kind/below 0",
                "C /link [Content]",
                "C /mode [Mode]",
                "A /new 5",
            ]
        );
        assert_eq!(lines(&before, &before), Vec::<String>::new());
    }

    #[test]
    fn a_file_over_a_directory_hides_all_below() {
        let dir = tempfile::tempdir().unwrap();
        let (low, high) = (dir.path().join("low"), dir.path().join("high"));
        create_dir_all(low.join("a/b")).unwrap();
        write(low.join("a/b/c"), "x").unwrap();
        write(low.join("a-b"), "kept").unwrap();
        create_dir_all(&high).unwrap();
        write(high.join("a"), "file").unwrap();
        let layers = [low.clone(), high];
        assert_eq!(
            lines(&[low], &layers),
            ["C /a [Kind]", "D /a/b 0", "D /a/b/c 1"]
        );
    }
}
