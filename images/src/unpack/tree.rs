//! Makes the files of one layer below a directory descriptor.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Dev, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::caller::Caller;
use super::directories::{Directories, open_directory, open_own_directory};
use super::list::HashedContent;
use super::{UnpackError, metadata, refused, shown};
use crate::tar_stream::{Entry, Kind};

const OPAQUE_ATTRIBUTE: &str = "trusted.overlay.opaque";
/// What overlayfs reads instead when it was mounted with `userxattr`, as in a user namespace it must be.
const USER_OPAQUE_ATTRIBUTE: &str = "user.overlay.opaque";

/// A layer's directory while it is being filled.
pub(super) struct Tree {
    directories: Directories,
    caller: Caller,
    root_is_opaque: bool,
    /// Bytes of files that were replaced.
    removed_bytes: u64,
    skipped_devices: u64,
}

impl Tree {
    /// At most `implied_max` directories may come without an entry of their own.
    pub(super) fn new(root: OwnedFd, implied_max: u64) -> Result<Self, Errno> {
        let caller = Caller::of_this_process();
        Ok(Self {
            directories: Directories::new(root, caller, implied_max)?,
            caller,
            root_is_opaque: false,
            removed_bytes: 0,
            skipped_devices: 0,
        })
    }

    pub(super) fn root_is_opaque(&self) -> bool {
        self.root_is_opaque
    }

    /// Bytes of files that were made and then replaced.
    pub(super) fn removed_bytes(&self) -> u64 {
        self.removed_bytes
    }

    /// Devices that were not made because the kernel allows none in a user namespace.
    pub(super) fn skipped_devices(&self) -> u64 {
        self.skipped_devices
    }

    pub(super) fn set_root(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        self.directories.describe_root(entry)
    }

    pub(super) fn directory(
        &mut self,
        parent: &[&[u8]],
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        self.directories.enter(parent, &entry.path)?;
        let create = |parent: BorrowedFd<'_>| rustix::fs::mkdirat(parent, name, Mode::RWXU);
        let failed = || failed(entry, "create the directory");
        let mut was_whiteout = false;
        let is_new = match create(self.directories.current()) {
            Ok(()) => true,
            Err(Errno::EXIST) if self.is_directory(name).map_err(failed())? => false,
            Err(Errno::EXIST) => {
                was_whiteout = self.make_way(name, entry)?;
                create(self.directories.current()).map_err(failed())?;
                true
            }
            Err(e) => return Err(failed()(e)),
        };
        let (fd, _) = open_own_directory(self.directories.current(), name)
            .map_err(super::tree::failed(entry, "open the directory"))?;
        if was_whiteout {
            self.set_opaque(fd.as_fd(), &entry.path)?;
        }
        self.directories.push(name, fd, entry, is_new)
    }

    pub(super) fn file(
        &mut self,
        parent: &[&[u8]],
        name: &[u8],
        entry: &Entry,
        content: &mut HashedContent<'_, impl BufRead>,
    ) -> Result<(), UnpackError> {
        self.directories.enter(parent, &entry.path)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Nobody else sees the layer yet, so that a file may have its mode from the start.
        let mode = metadata::mode(entry);
        let created_mode = self.caller.creates_with(mode).then_some(mode);
        let fd = self.make(name, entry, "create the file", |parent| {
            let mode = created_mode.unwrap_or(Mode::RUSR | Mode::WUSR);
            rustix::fs::openat(parent, name, flags, mode)
        })?;
        let mut file = File::from(fd);
        match &entry.sparse {
            None => content.write_to(&mut file, u64::MAX),
            Some(pieces) => write_sparse(&mut file, content, pieces, entry.size),
        }
        .map_err(|source| UnpackError::Entry {
            path: shown(&entry.path),
            action: "write the file",
            source,
        })?;
        let foreign_group = self.directories.foreign_group();
        metadata::set_all(
            file.as_fd(),
            entry,
            &self.caller,
            created_mode,
            foreign_group,
        )
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
        let not_found = || failed(entry, "find the target of the hard link");
        self.directories.enter(parent, &entry.path)?;
        let resolved = match self.directories.is_current(target_parent) {
            true => None,
            false => Some(
                self.directories
                    .resolve(target_parent)
                    .map_err(not_found())?,
            ),
        };
        let target_fd = match &resolved {
            Some(fd) => fd.as_fd(),
            None => self.directories.current(),
        };
        let stat = rustix::fs::statat(target_fd, *target_name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(not_found())?;
        if is_whiteout(&stat) {
            return Err(refused(&entry.path, "its hard link names a removed file"));
        }
        self.make(name, entry, "make the hard link", |parent| {
            let target_fd = resolved.as_ref().map_or(parent, |fd| fd.as_fd());
            rustix::fs::linkat(target_fd, *target_name, parent, name, AtFlags::empty())
        })
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
        self.directories.enter(parent, &entry.path)?;
        self.make(name, entry, "make the symbolic link", |parent| {
            rustix::fs::symlinkat(OsStr::from_bytes(&entry.link), parent, name)
        })?;
        self.set_all_by_name(name, entry)
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
        if self.caller.in_user_namespace && file_type != FileType::Fifo {
            self.skipped_devices += 1;
            return Ok(());
        }
        self.directories.enter(parent, &entry.path)?;
        let number = rustix::fs::makedev(device.0, device.1);
        self.make(
            name,
            entry,
            "make the device or pipe (this needs root)",
            |parent| rustix::fs::mknodat(parent, name, file_type, Mode::RUSR | Mode::WUSR, number),
        )?;
        self.set_all_by_name(name, entry)
    }

    /// Hides `name` of the layers below. If this layer has it already, only a directory needs hiding below it.
    pub(super) fn whiteout(
        &mut self,
        parent: &[&[u8]],
        name: &[u8],
        path: &[u8],
    ) -> Result<(), UnpackError> {
        self.directories.enter(parent, path)?;
        let parent_fd = self.directories.current();
        match make_whiteout(parent_fd, name) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => {
                if !self
                    .is_directory(name)
                    .map_err(failed_at(path, "look at the file to hide"))?
                {
                    return Ok(());
                }
                let fd = open_directory(parent_fd, name)
                    .map_err(failed_at(path, "open the directory"))?;
                self.set_opaque(fd.as_fd(), path)?;
                self.directories.takes_nothing_from_below(name);
                Ok(())
            }
            Err(e) => Err(failed_at(path, "make the whiteout")(e)),
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
        self.directories.enter(directory, path)?;
        self.set_opaque(self.directories.current(), path)
    }

    /// Sets what is left to set on directories, and gives those without an entry of their own.
    pub(super) fn finish(self) -> Result<BTreeSet<Vec<u8>>, UnpackError> {
        self.directories.finish()
    }

    /// Makes something in the current directory; what an earlier entry made there is removed.
    fn make<T>(
        &mut self,
        name: &[u8],
        entry: &Entry,
        action: &'static str,
        make: impl Fn(BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> Result<T, UnpackError> {
        match make(self.directories.current()) {
            Err(Errno::EXIST) => {
                self.make_way(name, entry)?;
                make(self.directories.current())
            }
            made => made,
        }
        .map_err(failed(entry, action))
    }

    /// Removes what an earlier entry made in the current directory. True when that was a whiteout.
    fn make_way(&mut self, name: &[u8], entry: &Entry) -> Result<bool, UnpackError> {
        let parent = self.directories.current();
        let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed(entry, "look at what is there"))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let freed =
                remove_tree(parent, name).map_err(failed(entry, "replace the directory"))?;
            self.removed_bytes += freed;
            self.directories.removed_one();
            return Ok(false);
        }
        rustix::fs::unlinkat(parent, name, AtFlags::empty())
            .map_err(failed(entry, "replace what is there"))?;
        self.removed_bytes += freed_bytes(&stat);
        Ok(is_whiteout(&stat))
    }

    fn is_directory(&self, name: &[u8]) -> Result<bool, Errno> {
        let stat = rustix::fs::statat(self.directories.current(), name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    fn set_all_by_name(&self, name: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        let directories = &self.directories;
        let (parent, foreign_group) = (directories.current(), directories.foreign_group());
        metadata::set_all_by_name(parent, name, entry, &self.caller, foreign_group)
    }

    fn set_opaque(&self, directory: BorrowedFd<'_>, path: &[u8]) -> Result<(), UnpackError> {
        set_opaque(directory, &self.caller).map_err(failed_at(
            path,
            "mark the directory opaque (this needs root)",
        ))
    }
}

pub(super) fn set_opaque(directory: BorrowedFd<'_>, caller: &Caller) -> Result<(), Errno> {
    let attribute = match caller.in_user_namespace {
        true => USER_OPAQUE_ATTRIBUTE,
        false => OPAQUE_ATTRIBUTE,
    };
    rustix::fs::fsetxattr(directory, attribute, b"y", rustix::fs::XattrFlags::empty())
}

/// True when the directory hides what the layers below have in it.
pub(crate) fn is_opaque(directory: impl AsFd) -> bool {
    [OPAQUE_ATTRIBUTE, USER_OPAQUE_ATTRIBUTE]
        .iter()
        .any(|attribute| {
            let mut value = [0; 2];
            let len = rustix::fs::fgetxattr(&directory, *attribute, &mut value);
            matches!(len, Ok(1)) && value[0] == b'y'
        })
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

pub(super) fn remove_whiteout(parent: BorrowedFd<'_>, name: &[u8]) -> Result<bool, Errno> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if is_whiteout(&stat) => {
            rustix::fs::unlinkat(parent, name, AtFlags::empty()).map(|()| true)
        }
        Ok(_) | Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

fn write_sparse(
    file: &mut File,
    content: &mut HashedContent<'_, impl BufRead>,
    pieces: &[(u64, u64)],
    size: u64,
) -> io::Result<()> {
    for (offset, len) in pieces {
        file.seek(SeekFrom::Start(*offset))?;
        content.write_to(file, *len)?;
    }
    file.set_len(size)
}

pub(super) fn failed(entry: &Entry, action: &'static str) -> impl FnOnce(Errno) -> UnpackError {
    failed_at(&entry.path, action)
}

pub(super) fn failed_at(path: &[u8], action: &'static str) -> impl FnOnce(Errno) -> UnpackError {
    move |errno| UnpackError::Entry {
        path: shown(path),
        action,
        source: errno.into(),
    }
}
