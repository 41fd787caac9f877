//! Makes the files of one layer below a directory descriptor.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Dev, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::metadata::{self, DirectoryMetadata};
use super::{UnpackError, refused, shown};
use crate::tar_stream::{Entry, Kind, TarStream};

const COPY_BUFFER_BYTES: usize = 256 * 1024;
const OPAQUE_ATTRIBUTE: &str = "trusted.overlay.opaque";

/// A layer's directory while it is being filled.
pub(super) struct Tree {
    root: OwnedFd,
    /// The last parent directory that was opened, because entries of one directory come together.
    last_parent: Option<(Vec<u8>, OwnedFd)>,
    /// Modes and times of directories. They are set at the end: making files changes a directory's time, and a mode
    /// may forbid making them.
    directories: BTreeMap<Vec<u8>, DirectoryMetadata>,
    root_is_opaque: bool,
    /// Bytes of files that were replaced.
    removed_bytes: u64,
    buffer: Vec<u8>,
}

/// What was found, and removed, where an entry goes.
#[derive(PartialEq, Eq)]
enum Before {
    Nothing,
    Directory,
    Whiteout,
}

impl Tree {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self {
            root,
            last_parent: None,
            directories: BTreeMap::new(),
            root_is_opaque: false,
            removed_bytes: 0,
            buffer: vec![0; COPY_BUFFER_BYTES],
        }
    }

    pub(super) fn root_is_opaque(&self) -> bool {
        self.root_is_opaque
    }

    /// Bytes of files that were made and then replaced.
    pub(super) fn removed_bytes(&self) -> u64 {
        self.removed_bytes
    }

    pub(super) fn set_root(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        metadata::set_owner_and_xattrs(self.root.as_fd(), entry)?;
        self.directories
            .insert(Vec::new(), DirectoryMetadata::of(entry));
        Ok(())
    }

    pub(super) fn directory(
        &mut self,
        parent: &[&[u8]],
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let before = self.make_way(parent, name, entry, true)?;
        let parent_fd = self.parent(parent, &entry.path)?;
        if before != Before::Directory {
            rustix::fs::mkdirat(parent_fd, name, Mode::RWXU)
                .map_err(failed(entry, "create the directory"))?;
        }
        let fd = open_directory(parent_fd, name).map_err(failed(entry, "open the directory"))?;
        metadata::set_owner_and_xattrs(fd.as_fd(), entry)?;
        if before == Before::Whiteout {
            set_opaque(fd.as_fd(), &entry.path)?;
        }
        self.directories
            .insert(joined(parent, name), DirectoryMetadata::of(entry));
        Ok(())
    }

    pub(super) fn file(
        &mut self,
        parent: &[&[u8]],
        name: &[u8],
        entry: &Entry,
        content: &mut TarStream<impl Read>,
    ) -> Result<(), UnpackError> {
        self.make_way(parent, name, entry, false)?;
        let mut buffer = std::mem::take(&mut self.buffer);
        let fd = rustix::fs::openat(
            self.parent(parent, &entry.path)?,
            name,
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::RUSR | Mode::WUSR,
        )
        .map_err(failed(entry, "create the file"))?;
        let mut file = File::from(fd);
        match &entry.sparse {
            None => write_whole(&mut file, content, &mut buffer),
            Some(pieces) => write_sparse(&mut file, content, pieces, entry.size),
        }
        .map_err(|source| UnpackError::Entry {
            path: shown(&entry.path),
            action: "write the file",
            source,
        })?;
        self.buffer = buffer;
        metadata::set_owner_and_xattrs(file.as_fd(), entry)?;
        metadata::set_mode_and_time(file.as_fd(), entry)
    }

    pub(super) fn hard_link(
        &mut self,
        parent: &[&[u8]],
        name: &[u8],
        target: &[&[u8]],
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let Some((target_name, target_parent)) = target.split_last() else {
            return Err(refused(&entry.path, "its hard link names the layer's root"));
        };
        if (target_parent, *target_name) == (parent, name) {
            return Err(refused(&entry.path, "it is a hard link to itself"));
        }
        let target_fd = self
            .resolve(&target_parent.join(&b'/'))
            .map_err(failed(entry, "find the target of the hard link"))?;
        let stat = rustix::fs::statat(&target_fd, *target_name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed(entry, "find the target of the hard link"))?;
        if is_whiteout(&stat) {
            return Err(refused(&entry.path, "its hard link names a removed file"));
        }
        self.make_way(parent, name, entry, false)?;
        rustix::fs::linkat(
            &target_fd,
            *target_name,
            self.parent(parent, &entry.path)?,
            name,
            AtFlags::empty(),
        )
        .map_err(failed(entry, "make the hard link"))
    }

    pub(super) fn symlink(
        &mut self,
        parent: &[&[u8]],
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        if entry.link.is_empty() || entry.link.contains(&0) {
            return Err(refused(
                &entry.path,
                "its symbolic link has no valid target",
            ));
        }
        self.make_way(parent, name, entry, false)?;
        let parent_fd = self.parent(parent, &entry.path)?;
        rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), parent_fd, name)
            .map_err(failed(entry, "make the symbolic link"))?;
        metadata::set_all_by_name(parent_fd, name, entry)
    }

    pub(super) fn special(
        &mut self,
        parent: &[&[u8]],
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let (file_type, device) = match entry.kind {
            Kind::CharDevice => (FileType::CharacterDevice, entry.device),
            Kind::BlockDevice => (FileType::BlockDevice, entry.device),
            _ => (FileType::Fifo, (0, 0)),
        };
        if entry.kind == Kind::CharDevice && device == (0, 0) {
            return Err(refused(
                &entry.path,
                "a character device 0/0 is a whiteout of overlayfs, which an image must write as `.wh.`",
            ));
        }
        self.make_way(parent, name, entry, false)?;
        let parent_fd = self.parent(parent, &entry.path)?;
        rustix::fs::mknodat(
            parent_fd,
            name,
            file_type,
            Mode::RUSR | Mode::WUSR,
            rustix::fs::makedev(device.0, device.1),
        )
        .map_err(failed(entry, "make the device or pipe (this needs root)"))?;
        metadata::set_all_by_name(parent_fd, name, entry)
    }

    /// Hides `name` of the layers below. If this layer has it already, only a directory needs hiding below it.
    pub(super) fn whiteout(
        &mut self,
        parent: &[&[u8]],
        name: &[u8],
        path: &[u8],
    ) -> Result<(), UnpackError> {
        let parent_fd = self.parent(parent, path)?;
        match rustix::fs::statat(parent_fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                let fd = open_directory(parent_fd, name)
                    .map_err(failed_at(path, "open the directory"))?;
                set_opaque(fd.as_fd(), path)
            }
            Ok(_) => Ok(()),
            Err(Errno::NOENT) => {
                make_whiteout(parent_fd, name).map_err(failed_at(path, "make the whiteout"))
            }
            Err(e) => Err(failed_at(path, "look at the file to hide")(e)),
        }
    }

    /// Hides all that the layers below have in `directory`.
    pub(super) fn make_opaque(
        &mut self,
        directory: &[&[u8]],
        path: &[u8],
    ) -> Result<(), UnpackError> {
        if directory.is_empty() {
            self.root_is_opaque = true;
            return Ok(());
        }
        let fd = self.parent(directory, path)?;
        set_opaque(fd, path)
    }

    /// Sets modes and times of directories, children first.
    pub(super) fn finish(self) -> Result<(), UnpackError> {
        for (path, metadata) in self.directories.iter().rev() {
            let fd = rustix::fs::openat2(
                &self.root,
                if path.is_empty() {
                    b"."
                } else {
                    path.as_slice()
                },
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
                resolve_flags(),
            );
            match fd {
                Ok(fd) => metadata.apply(fd.as_fd(), path)?,
                // A later entry put something else there.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(e) => return Err(failed_at(path, "open the directory")(e)),
            }
        }
        Ok(())
    }

    /// Opens the directory that `components` name, and makes those that are missing.
    fn parent(
        &mut self,
        components: &[&[u8]],
        entry: &[u8],
    ) -> Result<BorrowedFd<'_>, UnpackError> {
        let path = components.join(&b'/');
        let is_cached = matches!(&self.last_parent, Some((cached, _)) if *cached == path);
        if !is_cached {
            let fd = match self.resolve(&path) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NOTDIR) => self.make_parents(components, entry)?,
                Err(e) => return Err(failed_at(entry, "open the parent directory")(e)),
            };
            self.last_parent = Some((path, fd));
        }
        match &self.last_parent {
            Some((_, fd)) => Ok(fd.as_fd()),
            None => Ok(self.root.as_fd()),
        }
    }

    fn make_parents(&self, components: &[&[u8]], entry: &[u8]) -> Result<OwnedFd, UnpackError> {
        let failed = || failed_at(entry, "make the parent directory");
        let mut fd = self.resolve(b"").map_err(failed())?;
        for depth in 1..=components.len() {
            let name = components[depth - 1];
            let path = components[..depth].join(&b'/');
            fd = match self.resolve(&path) {
                Ok(next) => next,
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    let was_whiteout = remove_whiteout(fd.as_fd(), name).map_err(failed())?;
                    match rustix::fs::mkdirat(&fd, name, Mode::from_raw_mode(0o755)) {
                        Ok(()) => {}
                        Err(Errno::EXIST) => {
                            return Err(refused(entry, "its parent is not a directory"));
                        }
                        Err(e) => return Err(failed()(e)),
                    }
                    let next = open_directory(fd.as_fd(), name).map_err(failed())?;
                    rustix::fs::fchmod(&next, Mode::from_raw_mode(0o755)).map_err(failed())?;
                    if was_whiteout {
                        set_opaque(next.as_fd(), entry)?;
                    }
                    next
                }
                Err(e) => return Err(failed()(e)),
            };
        }
        Ok(fd)
    }

    /// Opens a directory of the layer; links in its path lead to places in the layer.
    fn resolve(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        rustix::fs::openat2(
            &self.root,
            if path.is_empty() { b"." } else { path },
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            resolve_flags(),
        )
    }

    /// Removes what an earlier entry made at this name, unless both are directories.
    fn make_way(
        &mut self,
        parent: &[&[u8]],
        name: &[u8],
        entry: &Entry,
        keep_directory: bool,
    ) -> Result<Before, UnpackError> {
        let parent_fd = self.parent(parent, &entry.path)?;
        let stat = match rustix::fs::statat(parent_fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(Before::Nothing),
            Err(e) => return Err(failed(entry, "look at what is there")(e)),
        };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            rustix::fs::unlinkat(parent_fd, name, AtFlags::empty())
                .map_err(failed(entry, "replace what is there"))?;
            self.removed_bytes += freed_bytes(&stat);
            // A removed link may have been on the way to the cached directory.
            self.last_parent = None;
            return Ok(if is_whiteout(&stat) {
                Before::Whiteout
            } else {
                Before::Nothing
            });
        }
        if keep_directory {
            return Ok(Before::Directory);
        }
        let freed = remove_tree(parent_fd, name).map_err(failed(entry, "replace the directory"))?;
        self.removed_bytes += freed;
        self.last_parent = None;
        let path = joined(parent, name);
        self.directories.retain(|d, _| {
            !(d.starts_with(&path) && matches!(d.get(path.len()), None | Some(b'/')))
        });
        Ok(Before::Nothing)
    }
}

fn resolve_flags() -> ResolveFlags {
    ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV
}

fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(
        parent,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Removes a directory and gives the bytes of files that this freed. Depth is bounded by the check of names, and so is
/// this recursion.
fn remove_tree(parent: BorrowedFd<'_>, name: &[u8]) -> Result<u64, Errno> {
    let fd = open_directory(parent, name)?;
    let mut freed = 0;
    for entry in rustix::fs::Dir::read_from(&fd)? {
        let entry = entry?;
        let child = entry.file_name();
        if matches!(child.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = rustix::fs::statat(&fd, child, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            freed += remove_tree(fd.as_fd(), child.to_bytes())?;
        } else {
            rustix::fs::unlinkat(&fd, child, AtFlags::empty())?;
            freed += freed_bytes(&stat);
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?;
    Ok(freed)
}

/// What removing this file frees: nothing while it has other names.
fn freed_bytes(stat: &rustix::fs::Stat) -> u64 {
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if is_file && stat.st_nlink == 1 {
        stat.st_size.cast_unsigned()
    } else {
        0
    }
}

/// True when the file is overlayfs' mark for a removed one.
pub(crate) fn is_whiteout(stat: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn make_whiteout(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let no_device: Dev = 0;
    rustix::fs::mknodat(
        parent,
        name,
        FileType::CharacterDevice,
        Mode::empty(),
        no_device,
    )
}

fn remove_whiteout(parent: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if is_whiteout(&stat) => {
            rustix::fs::unlinkat(parent, name, AtFlags::empty()).map(|()| true)
        }
        Ok(_) | Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

fn set_opaque(directory: BorrowedFd<'_>, path: &[u8]) -> Result<(), UnpackError> {
    rustix::fs::fsetxattr(
        directory,
        OPAQUE_ATTRIBUTE,
        b"y",
        rustix::fs::XattrFlags::empty(),
    )
    .map_err(failed_at(
        path,
        "mark the directory opaque (this needs root)",
    ))
}

fn write_whole(
    file: &mut File,
    content: &mut TarStream<impl Read>,
    buffer: &mut [u8],
) -> io::Result<()> {
    loop {
        match content.read(buffer)? {
            0 => return Ok(()),
            n => file.write_all(&buffer[..n])?,
        }
    }
}

fn write_sparse(
    file: &mut File,
    content: &mut TarStream<impl Read>,
    pieces: &[(u64, u64)],
    size: u64,
) -> io::Result<()> {
    for (offset, len) in pieces {
        file.seek(SeekFrom::Start(*offset))?;
        io::copy(&mut content.by_ref().take(*len), file)?;
    }
    file.set_len(size)
}

fn joined(parent: &[&[u8]], name: &[u8]) -> Vec<u8> {
    let mut path = parent.join(&b'/');
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend(name);
    path
}

pub(super) fn failed(entry: &Entry, action: &'static str) -> impl FnOnce(Errno) -> UnpackError {
    failed_at(&entry.path, action)
}

fn failed_at(path: &[u8], action: &'static str) -> impl FnOnce(Errno) -> UnpackError {
    let path = shown(path);
    move |errno| UnpackError::Entry {
        path,
        action,
        source: errno.into(),
    }
}
