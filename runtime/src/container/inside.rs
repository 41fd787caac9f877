//! Paths inside a container's root file system, which its image chose and cannot be trusted.
//!
//! Every path is resolved by the kernel with `RESOLVE_IN_ROOT` (openat2(2)): `..` and symbolic links, absolute ones
//! too, stay below the root. What is missing is made one component at a time, by descriptor. No host path is ever
//! joined with a container's.

use std::cell::RefCell;
use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::confined;

/// The kernel's own limit on symbolic links in one resolution (`MAXSYMLINKS`).
const LINKS_MAX: u32 = 40;

/// How many descriptors are left open that are done with; a process may have 1024 open as a rule.
const ASIDE_MAX: usize = 64;

/// The root directory of a container.
#[derive(Debug)]
pub(super) struct Inside {
    root: OwnedFd,
    /// Descriptors that are done with.
    aside: RefCell<Vec<OwnedFd>>,
}

/// What a mount target must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
}

impl Inside {
    /// `root` is a descriptor of the root directory.
    pub(super) fn new(root: OwnedFd) -> Self {
        Self {
            root,
            aside: RefCell::default(),
        }
    }

    /// Leaves a descriptor open that is done with: the process closes all it has at once before it executes its
    /// program, and each close(2) before that is a system call. Only so many that the limit of open files is far.
    pub(super) fn set_aside(&self, fd: OwnedFd) {
        let mut aside = self.aside.borrow_mut();
        if aside.len() < ASIDE_MAX {
            aside.push(fd);
        }
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens what is at `path`.
    pub(super) fn open(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        self.resolve(path, flags, ResolveFlags::empty())
    }

    /// As [`Self::ensure`] for a directory, but through no symbolic link: `ELOOP` then.
    pub(super) fn ensure_real(&self, path: &Path) -> io::Result<OwnedFd> {
        let open = || {
            self.resolve(
                path,
                OFlags::PATH | OFlags::DIRECTORY,
                ResolveFlags::NO_SYMLINKS,
            )
        };
        match open() {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                self.make(path, Kind::Directory, &mut 0)?;
                open()
            }
            result => result,
        }
    }

    fn resolve(&self, path: &Path, flags: OFlags, how: ResolveFlags) -> io::Result<OwnedFd> {
        let bounds = how | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        Ok(confined::open(&self.root, path, flags, bounds)?)
    }

    /// A descriptor of the place `path`, made with its parents when it is missing.
    pub(super) fn ensure(&self, path: &Path, kind: Kind) -> io::Result<OwnedFd> {
        match self.open(path, OFlags::PATH) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                self.make(path, kind, &mut 0)?;
                self.open(path, OFlags::PATH)
            }
            result => result,
        }
    }

    /// As [`Self::ensure`], but a symbolic link at `path` is the place itself.
    pub(super) fn ensure_itself(&self, path: &Path, kind: Kind) -> io::Result<OwnedFd> {
        match self.open(path, OFlags::PATH | OFlags::NOFOLLOW) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => self.ensure(path, kind),
            result => result,
        }
    }

    /// Makes a symbolic link at `path`, with its parents. One with that target may be there.
    pub(super) fn ensure_link(&self, path: &Path, target: &CStr) -> io::Result<()> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let directory = self.ensure(parent, Kind::Directory)?;
        match rustix::fs::symlinkat(target, &directory, name) {
            Err(Errno::EXIST) => match rustix::fs::readlinkat(&directory, name, Vec::new()) {
                Ok(there) if there.as_c_str() == target => Ok(()),
                _ => Err(Errno::EXIST.into()),
            },
            result => Ok(result?),
        }
    }

    /// Makes what is missing of `path`. Each prefix is resolved again from the root, so that nothing hangs on what a
    /// component was a moment ago.
    fn make(&self, path: &Path, kind: Kind, links: &mut u32) -> io::Result<()> {
        // The usual case: only the last component is missing.
        if let (Some(parent), Some(name)) = (path.parent(), path.file_name())
            && let Ok(directory) = self.open(parent, OFlags::PATH | OFlags::DIRECTORY)
        {
            return self.make_one(&directory, parent, name, kind, links);
        }
        let mut prefix = PathBuf::from("/");
        let mut components = path
            .components()
            .filter(|c| matches!(c, Component::Normal(_) | Component::ParentDir))
            .peekable();
        while let Some(component) = components.next() {
            let parent = prefix.clone();
            prefix.push(component);
            match self.open(&prefix, OFlags::PATH) {
                Ok(_) => continue,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) => return Err(error),
            }
            let Component::Normal(name) = component else {
                return Err(io::Error::from_raw_os_error(libc::ENOENT));
            };
            let kind = if components.peek().is_some() {
                Kind::Directory
            } else {
                kind
            };
            let directory = self.open(&parent, OFlags::PATH | OFlags::DIRECTORY)?;
            self.make_one(&directory, &parent, name, kind, links)?;
        }
        Ok(())
    }

    /// `directory` is what `parent` led to.
    fn make_one(
        &self,
        directory: &OwnedFd,
        parent: &Path,
        name: &OsStr,
        kind: Kind,
        links: &mut u32,
    ) -> io::Result<()> {
        let made = match kind {
            Kind::Directory => rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(0o755)),
            Kind::File => rustix::fs::mknodat(
                directory,
                name,
                FileType::RegularFile,
                Mode::from_raw_mode(0o644),
                0,
            ),
        };
        match made {
            Ok(()) => Ok(()),
            // A symbolic link to what does not exist: make that.
            Err(Errno::EXIST) => {
                *links += 1;
                if *links > LINKS_MAX {
                    return Err(io::Error::from_raw_os_error(libc::ELOOP));
                }
                let target = rustix::fs::readlinkat(directory, name, Vec::new())?;
                let target = Path::new(OsStr::from_bytes(target.as_bytes()));
                self.make(&parent.join(target), kind, links)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// Stats what a descriptor refers to.
pub(super) fn stat(fd: BorrowedFd<'_>) -> io::Result<Stat> {
    Ok(rustix::fs::statat(fd, c"", AtFlags::EMPTY_PATH)?)
}

/// The kind of what a descriptor refers to.
pub(super) fn kind_of(fd: BorrowedFd<'_>) -> io::Result<Kind> {
    Ok(match FileType::from_raw_mode(stat(fd)?.st_mode) {
        FileType::Directory => Kind::Directory,
        _ => Kind::File,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn inside(directory: &Path) -> Inside {
        Inside::new(
            rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
                .expect("opens"),
        )
    }

    /// A directory that holds `root` and, beside it, `outside`.
    fn directories() -> (tempfile::TempDir, Inside) {
        let directory = tempfile::tempdir().expect("temporary directory");
        fs::create_dir(directory.path().join("root")).expect("root");
        fs::create_dir(directory.path().join("outside")).expect("outside");
        let inside = inside(&directory.path().join("root"));
        (directory, inside)
    }

    #[test]
    fn parents_are_made() {
        let (directory, inside) = directories();
        inside
            .ensure(Path::new("/a/b/c"), Kind::File)
            .expect("makes a file");
        assert!(directory.path().join("root/a/b/c").is_file());
        inside
            .ensure(Path::new("x/y"), Kind::Directory)
            .expect("makes a directory");
        assert!(directory.path().join("root/x/y").is_dir());
    }

    #[test]
    fn a_link_out_of_the_root_stays_inside() {
        let (directory, inside) = directories();
        symlink(
            directory.path().join("outside"),
            directory.path().join("root/absolute"),
        )
        .expect("link");
        symlink("../../outside", directory.path().join("root/relative")).expect("link");
        for path in ["/absolute/secret", "/relative/secret"] {
            inside
                .ensure(Path::new(path), Kind::Directory)
                .expect("makes it inside");
        }
        assert_eq!(
            fs::read_dir(directory.path().join("outside"))
                .expect("reads")
                .count(),
            0
        );
        assert!(directory.path().join("root/outside/secret").is_dir());
    }

    #[test]
    fn dots_stay_inside() {
        let (directory, inside) = directories();
        inside
            .ensure(Path::new("/../../../outside/x"), Kind::Directory)
            .expect("makes it inside");
        assert!(directory.path().join("root/outside/x").is_dir());
        assert!(!directory.path().join("outside/x").exists());
    }

    #[test]
    fn a_link_to_itself_is_an_error() {
        let (directory, inside) = directories();
        symlink("loop", directory.path().join("root/loop")).expect("link");
        let error = inside
            .ensure(Path::new("/loop/x"), Kind::Directory)
            .expect_err("loops");
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn a_dangling_link_is_followed_inside() {
        let (directory, inside) = directories();
        fs::create_dir(directory.path().join("root/var")).expect("var");
        symlink("/run", directory.path().join("root/var/run")).expect("link");
        inside
            .ensure(Path::new("/var/run/secrets"), Kind::Directory)
            .expect("makes it");
        assert!(directory.path().join("root/run/secrets").is_dir());
    }
}
