//! What a power cut leaves: replays every prefix of the steps that were recorded, under rules as bad as POSIX allows.
//!
//! A name lasts when its directory was synced after the change; before, each change of names may be lost by itself.
//! A file's content lasts when it was synced; before, it may be there, be gone, or be zeroes of the right length.
//! syncfs(2) makes all last. Each state is written to a directory of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::journal::Step;

type Inode = usize;

/// A file as programs see it, and as it is on disk.
#[derive(Clone, Default)]
struct File {
    seen: Vec<u8>,
    synced: Vec<u8>,
}

/// A change of names that may be lost.
#[derive(Clone)]
struct Change {
    /// Syncing one of these makes it last.
    directories: Vec<PathBuf>,
    gone: Vec<PathBuf>,
    /// Path, file, and where it was before if it came along with its directory.
    new: Vec<(PathBuf, Inode, Option<PathBuf>)>,
}

/// The disk and the cache above it.
#[derive(Clone, Default)]
pub(crate) struct Disk {
    files: Vec<File>,
    seen: BTreeMap<PathBuf, Inode>,
    synced: BTreeMap<PathBuf, Inode>,
    pending: Vec<Change>,
}

/// What of the unsynced is there after the cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// All, as after `kill -9`.
    Nothing,
    /// Nothing.
    All,
    /// All names, and files of zeroes.
    Zeroes,
    /// All names, and empty files.
    Contents,
    /// Some of each, chosen by this seed.
    Some(u64),
}

impl Disk {
    pub(crate) fn apply(&mut self, step: &Step) {
        match step {
            // Directories come with the files in them; the store makes those it needs.
            Step::MakeDir(_) => {}
            Step::Write(path, content) => {
                let inode = self.create(path);
                self.files[inode].seen = content.clone();
            }
            Step::Append(path, piece) => {
                let inode = match self.seen.get(path) {
                    Some(inode) => *inode,
                    None => self.create(path),
                };
                self.files[inode].seen.extend(piece);
            }
            Step::Truncate(path, bytes) => {
                if let Some(inode) = self.seen.get(path) {
                    self.files[*inode].seen.truncate(*bytes as usize);
                }
            }
            Step::Fill(directory, files) => {
                for (name, content) in files {
                    let inode = self.create(&directory.join(name));
                    self.files[inode].seen = content.clone();
                }
            }
            Step::SyncFile(path) => {
                if let Some(inode) = self.seen.get(path) {
                    let file = &mut self.files[*inode];
                    file.synced = file.seen.clone();
                }
            }
            Step::SyncDir(directory) => {
                let (synced, pending) = std::mem::take(&mut self.pending)
                    .into_iter()
                    .partition(|change| change.directories.contains(directory));
                self.pending = pending;
                let synced: Vec<Change> = synced;
                synced
                    .iter()
                    .for_each(|change| change.apply(&mut self.synced));
            }
            Step::SyncAll(_) => {
                self.pending.clear();
                self.synced = self.seen.clone();
                for file in &mut self.files {
                    file.synced = file.seen.clone();
                }
            }
            Step::Rename(from, to) => {
                let moved = self.below(from);
                let mut gone = names(&moved);
                gone.extend(names(&self.below(to)));
                let new = moves(&moved, from, to);
                self.change(vec![parent(to)], gone, new);
            }
            Step::Exchange(a, b) => {
                let (of_a, of_b) = (self.below(a), self.below(b));
                let mut gone = names(&of_a);
                gone.extend(names(&of_b));
                let mut new = moves(&of_a, a, b);
                new.extend(moves(&of_b, b, a));
                self.change(vec![parent(a), parent(b)], gone, new);
            }
            Step::Remove(path) => {
                let gone = names(&self.below(path));
                self.change(vec![parent(path)], gone, Vec::new());
            }
        }
    }

    /// True when a power cut now may lose something.
    pub(crate) fn has_unsynced(&self) -> bool {
        !self.pending.is_empty() || self.files.iter().any(|file| file.seen != file.synced)
    }

    /// Writes what is there after a power cut. Paths of the recording begin with `from`.
    pub(crate) fn write(&self, cut: Cut, from: &Path, to: &Path) {
        let mut random = Random(match cut {
            Cut::Some(seed) => seed | 1,
            _ => 1,
        });
        let mut names = self.synced.clone();
        for change in &self.pending {
            let is_kept = match cut {
                Cut::Nothing | Cut::Zeroes | Cut::Contents => true,
                Cut::All => false,
                Cut::Some(_) => random.next().is_multiple_of(2),
            };
            if is_kept {
                change.apply(&mut names);
            }
        }
        // What all saw is what `kill -9` leaves, whatever the order of names.
        let names = if cut == Cut::Nothing {
            &self.seen
        } else {
            &names
        };
        for (path, inode) in names {
            let file = &self.files[*inode];
            let content = match (cut, file.seen == file.synced) {
                (_, true) | (Cut::Nothing, _) => file.seen.clone(),
                (Cut::All, _) => file.synced.clone(),
                (Cut::Zeroes, _) => vec![0; file.seen.len()],
                (Cut::Contents, _) => Vec::new(),
                (Cut::Some(_), _) => match random.next() % 4 {
                    0 => file.seen.clone(),
                    1 => vec![0; file.seen.len()],
                    2 => file.seen[..file.seen.len() / 2].to_vec(),
                    _ => file.synced.clone(),
                },
            };
            let path = to.join(path.strip_prefix(from).unwrap_or(path));
            std::fs::create_dir_all(parent(&path)).unwrap();
            std::fs::write(path, content).unwrap();
        }
    }

    fn create(&mut self, path: &Path) -> Inode {
        let inode = self.files.len();
        self.files.push(File::default());
        let new = vec![(path.to_owned(), inode, None)];
        self.change(vec![parent(path)], Vec::new(), new);
        inode
    }

    fn below(&self, path: &Path) -> Vec<(PathBuf, Inode)> {
        let below = self.seen.iter().filter(|(name, _)| name.starts_with(path));
        below.map(|(name, inode)| (name.clone(), *inode)).collect()
    }

    fn change(
        &mut self,
        directories: Vec<PathBuf>,
        gone: Vec<PathBuf>,
        new: Vec<(PathBuf, Inode, Option<PathBuf>)>,
    ) {
        for path in &gone {
            self.seen.remove(path);
        }
        for (path, inode, _) in &new {
            self.seen.insert(path.clone(), *inode);
        }
        self.pending.push(Change {
            directories,
            gone,
            new,
        });
    }
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<PathBuf, Inode>) {
        let before = names.clone();
        for path in &self.gone {
            names.remove(path);
        }
        for (path, inode, came_along) in &self.new {
            // A file whose own name was lost does not come along with its directory.
            if came_along
                .as_ref()
                .is_none_or(|from| before.contains_key(from))
            {
                names.insert(path.clone(), *inode);
            }
        }
    }
}

fn names(files: &[(PathBuf, Inode)]) -> Vec<PathBuf> {
    files.iter().map(|(path, _)| path.clone()).collect()
}

fn moves(
    files: &[(PathBuf, Inode)],
    from: &Path,
    to: &Path,
) -> Vec<(PathBuf, Inode, Option<PathBuf>)> {
    let moved = |(path, inode): &(PathBuf, Inode)| match path.strip_prefix(from) {
        Ok(rest) if !rest.as_os_str().is_empty() => (to.join(rest), *inode, Some(path.clone())),
        _ => (to.to_owned(), *inode, None),
    };
    files.iter().map(moved).collect()
}

fn parent(path: &Path) -> PathBuf {
    path.parent().unwrap_or(path).to_owned()
}

/// Xorshift.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 3
    }
}
