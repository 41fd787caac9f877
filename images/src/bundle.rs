//! The named files of a directory or of a tar archive, read in any order.
//!
//! An archive is indexed in one pass; its members are then read in place. A compressed archive is first decompressed
//! to a temporary file.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, OFlags, ResolveFlags};

use crate::compression::{Compression, LimitedReader, decompress};
use crate::confined;
use crate::tar_stream::{Kind, TarError, TarStream};

/// Members of one archive: an image of 500 layers has about 1,000.
const MEMBERS_MAX: usize = 100_000;
/// Old archives share layers by links; one link may lead to another.
const LINKS_MAX: usize = 8;

/// A file or directory that cannot be read as a bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// A file operation failed.
    #[error("cannot {action} {path}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is nothing in the file, or nothing came from the pipe.
    #[error("{path} is empty: what should have written an archive there has failed")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The archive is corrupt.
    #[error("cannot read the archive {path}")]
    Archive {
        /// The archive.
        path: PathBuf,
        /// Why not.
        #[source]
        source: TarError,
    },
    /// A member that others name is not there.
    #[error("{path} has no file `{name}`")]
    Missing {
        /// The archive or directory.
        path: PathBuf,
        /// The member.
        name: String,
    },
    /// A member that should be small is not.
    #[error("`{name}` in {path} is larger than {max_bytes} bytes")]
    TooLarge {
        /// The archive or directory.
        path: PathBuf,
        /// The member.
        name: String,
        /// The limit.
        max_bytes: u64,
    },
}

/// Files by name.
pub(crate) struct Bundle {
    path: PathBuf,
    source: Source,
}

enum Source {
    Directory(File),
    Archive {
        file: Arc<File>,
        members: BTreeMap<String, Member>,
    },
}

enum Member {
    File { offset: u64, size: u64 },
    Link(String),
}

impl Bundle {
    /// Opens a directory or an archive. `temporary` may be used for a decompressed copy of at most `max_bytes`.
    pub(crate) fn open(path: &Path, temporary: &Path, max_bytes: u64) -> Result<Self, BundleError> {
        let failed = |action| io_error(action, path);
        // A pipe or device must not make the opening wait.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(path)
            .map_err(failed("open"))?;
        let metadata = file.metadata().map_err(failed("look at"))?;
        if metadata.is_dir() {
            return Ok(Self {
                path: path.to_owned(),
                source: Source::Directory(file),
            });
        }
        if !metadata.is_file() {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "it is no file or directory");
            return Err(failed("read")(error));
        }
        Self::open_archive(path, file, temporary, max_bytes)
    }

    /// Copies what comes from a pipe to `temporary`, decompressed, at most `max_bytes`: an archive is read in any
    /// order. `name` is what errors call it.
    pub(crate) fn open_stream(
        name: &Path,
        input: impl Read,
        temporary: &Path,
        max_bytes: u64,
    ) -> Result<Self, BundleError> {
        let file = decompress_to(input, temporary, max_bytes).map_err(io_error("read", name))?;
        Self::open_archive(name, file, temporary, max_bytes)
    }

    fn open_archive(
        path: &Path,
        mut file: File,
        temporary: &Path,
        max_bytes: u64,
    ) -> Result<Self, BundleError> {
        let failed = |action| io_error(action, path);
        let mut start = [0; 8];
        let n = file.read_at(&mut start, 0).map_err(failed("read"))?;
        if n == 0 {
            return Err(BundleError::Empty {
                path: path.to_owned(),
            });
        }
        if Compression::detect(&start[..n]).map_err(failed("read"))? != Compression::None {
            file = decompress_to(file, temporary, max_bytes).map_err(failed("decompress"))?;
        }
        let members = index(&file).map_err(|source| BundleError::Archive {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            path: path.to_owned(),
            source: Source::Archive {
                file: Arc::new(file),
                members,
            },
        })
    }

    /// True for a directory, false for an archive.
    pub(crate) fn is_directory(&self) -> bool {
        matches!(self.source, Source::Directory(_))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// True when there is a file of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.file(name).is_ok()
    }

    /// A file and its size.
    pub(crate) fn file(&self, name: &str) -> Result<(Box<dyn Read + Send>, u64), BundleError> {
        let missing = || BundleError::Missing {
            path: self.path.clone(),
            name: name.to_owned(),
        };
        match &self.source {
            Source::Directory(dir) => {
                let fd = confined::open(
                    dir,
                    name,
                    OFlags::RDONLY | OFlags::NONBLOCK,
                    ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
                );
                let path = self.path.join(name);
                let file = match fd {
                    Ok(fd) => File::from(fd),
                    Err(rustix::io::Errno::NOENT) => return Err(missing()),
                    Err(e) => return Err(io_error("open", &path)(e.into())),
                };
                let metadata = file.metadata().map_err(io_error("look at", &path))?;
                if !metadata.is_file() {
                    return Err(missing());
                }
                Ok((Box::new(file), metadata.len()))
            }
            Source::Archive { file, members } => {
                let mut name = normal(name).ok_or_else(missing)?;
                for _ in 0..LINKS_MAX {
                    match members.get(&name) {
                        Some(Member::File { offset, size }) => {
                            let part = FilePart {
                                file: Arc::clone(file),
                                offset: *offset,
                                left: *size,
                            };
                            return Ok((Box::new(part), *size));
                        }
                        Some(Member::Link(target)) => name = target.clone(),
                        None => return Err(missing()),
                    }
                }
                Err(missing())
            }
        }
    }

    /// The names of the files in a directory that have at most `max_bytes`, sorted: the first `count_max` of them. None
    /// where the directory cannot be read.
    pub(crate) fn small_files(&self, dir: &str, max_bytes: u64, count_max: usize) -> Vec<String> {
        let mut names = match &self.source {
            Source::Directory(root) => small_files_in(root, dir, max_bytes).unwrap_or_default(),
            Source::Archive { members, .. } => {
                let prefix = format!("{dir}/");
                let below = members.range(prefix.clone()..);
                let inside = below.map_while(|(name, member)| {
                    let name = name.strip_prefix(&prefix)?;
                    Some((name, member))
                });
                let small = inside.filter(|(name, member)| {
                    let is_small =
                        matches!(member, Member::File { size, .. } if *size <= max_bytes);
                    is_small && !name.contains('/')
                });
                small.map(|(name, _)| name.to_owned()).collect()
            }
        };
        names.sort();
        names.truncate(count_max);
        names
    }

    /// A small file.
    pub(crate) fn read(&self, name: &str, max_bytes: u64) -> Result<Vec<u8>, BundleError> {
        let (reader, _) = self.file(name)?;
        let mut content = Vec::new();
        reader
            .take(max_bytes + 1)
            .read_to_end(&mut content)
            .map_err(io_error("read", &self.path.join(name)))?;
        if content.len() as u64 > max_bytes {
            return Err(BundleError::TooLarge {
                path: self.path.clone(),
                name: name.to_owned(),
                max_bytes,
            });
        }
        Ok(content)
    }
}

fn small_files_in(root: &File, dir: &str, max_bytes: u64) -> rustix::io::Result<Vec<String>> {
    let bounds = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let dir = confined::open(root, dir, OFlags::RDONLY | OFlags::DIRECTORY, bounds)?;
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(&dir)?.take(MEMBERS_MAX) {
        let name = entry?.file_name().to_owned();
        let status = rustix::fs::statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        let is_file = FileType::from_raw_mode(status.st_mode) == FileType::RegularFile;
        if is_file && u64::try_from(status.st_size).is_ok_and(|size| size <= max_bytes) {
            names.extend(name.into_string());
        }
    }
    Ok(names)
}

/// A piece of a file, read without moving the file's own position.
struct FilePart {
    file: Arc<File>,
    offset: u64,
    left: u64,
}

impl Read for FilePart {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = self.left.min(buffer.len() as u64) as usize;
        let n = self.file.read_at(&mut buffer[..want], self.offset)?;
        if n == 0 && want > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += n as u64;
        self.left -= n as u64;
        Ok(n)
    }
}

fn decompress_to(file: impl Read, temporary: &Path, max_bytes: u64) -> io::Result<File> {
    let input = decompress(BufReader::with_capacity(128 * 1024, file))?;
    let message = format!("it holds more than {max_bytes} bytes");
    let mut input = LimitedReader::new(input, max_bytes, message);
    let mut output = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temporary)?;
    io::copy(&mut input, &mut output)?;
    output.seek(SeekFrom::Start(0))?;
    Ok(output)
}

fn index(file: &File) -> Result<BTreeMap<String, Member>, TarError> {
    let mut stream = TarStream::new(BufReader::with_capacity(128 * 1024, file));
    let mut members = BTreeMap::new();
    while let Some(entry) = stream.next_entry()? {
        let Some(name) = std::str::from_utf8(&entry.path).ok().and_then(normal) else {
            continue;
        };
        let link = String::from_utf8_lossy(&entry.link);
        let member = match entry.kind {
            Kind::File if entry.sparse.is_none() => Member::File {
                offset: stream.position(),
                size: entry.size,
            },
            Kind::HardLink => match normal(&link) {
                Some(target) => Member::Link(target),
                None => continue,
            },
            Kind::Symlink => {
                let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
                match normal(&format!("{parent}/{link}")) {
                    Some(target) if !link.starts_with('/') => Member::Link(target),
                    _ => continue,
                }
            }
            _ => continue,
        };
        members.insert(name, member);
        if members.len() > MEMBERS_MAX {
            return Err(TarError::Unsupported {
                name: String::new(),
                what: "more than 100,000 files",
            });
        }
    }
    Ok(members)
}

/// Without `.`, `..` and needless slashes; none if it leads out.
fn normal(name: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BundleError + use<> {
    let path = path.to_owned();
    move |source| BundleError::Io {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_or_pipe_without_content_is_called_empty() {
        let dir = tempfile::tempdir().unwrap();
        let (file, temporary) = (dir.path().join("file"), dir.path().join("temporary"));
        std::fs::write(&file, "").unwrap();
        let of_file = Bundle::open(&file, &temporary, 1).err();
        assert!(matches!(of_file, Some(BundleError::Empty { .. })));
        let pipe = Path::new("/dev/stdin");
        let of_pipe = Bundle::open_stream(pipe, io::empty(), &temporary, 1).err();
        assert!(matches!(of_pipe, Some(BundleError::Empty { .. })));
    }

    #[test]
    fn names_are_normal_or_nothing() {
        assert_eq!(normal("./a//b/../c").as_deref(), Some("a/c"));
        assert_eq!(normal("../a"), None);
        assert_eq!(normal("a/../../b"), None);
    }
}
