//! The directories on the way to the current entry, each open.
//!
//! ```text
//! root ── usr ── share ── doc      entry usr/share/doc/x: all are open, nothing is resolved
//!                    └─── man      entry usr/share/man/y: doc is left, man is entered
//! ```
//!
//! Making a file changes its directory's time, and a mode may forbid making it. So what an entry says of a directory is
//! applied when the archive leaves it; a directory that is entered again gets back what it had. This takes memory and
//! descriptors by depth only, whatever the number of directories.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::caller::Caller;
use super::metadata;
use super::tree::{failed, failed_at, remove_whiteout};
use super::{UnpackError, refused};
use crate::confined::open_in_root;
use crate::tar_stream::Entry;

/// A directory that no entry describes. Its time is fixed so that the same layer gives the same tree.
const IMPLIED_MODE: Mode = Mode::from_raw_mode(0o755);
const IMPLIED_TIME: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// How long the names of implied directories may be together: for 100,000 of them, and a bound for the memory.
const IMPLIED_MAX_BYTES: usize = 8 << 20;

/// The longest value of an attribute (XATTR_SIZE_MAX).
const XATTR_MAX_BYTES: usize = 64 * 1024;

/// The way from the layer's root to the current directory.
pub(super) struct Directories {
    root: Directory,
    below: Vec<Directory>,
    caller: Caller,
    /// Something was removed that may have been on the way.
    is_stale: bool,
    /// A directory has an attribute that new files inherit.
    has_default_acls: bool,
    /// Directories that no entry has described so far. The root is the empty name.
    implied: BTreeSet<Vec<u8>>,
    implied_bytes: usize,
    /// How many directories may still be made without an entry, and may be made at all.
    implied_left: u64,
    implied_max: u64,
}

struct Directory {
    name: Vec<u8>,
    fd: OwnedFd,
    /// New files may get another group than the caller's.
    foreign_group: bool,
    at_leave: AtLeave,
}

/// What a directory gets when it is left.
struct AtLeave {
    /// None leaves it as it is.
    owner: Option<(Uid, Gid)>,
    mode: Option<Mode>,
    times: Timestamps,
    default_acl: Option<Vec<u8>>,
}

impl Directories {
    /// Starts in the directory `root`, which is empty.
    pub(super) fn new(root: OwnedFd, caller: Caller, implied_max: u64) -> Result<Self, Errno> {
        // Files must inherit nothing from where the store happens to be.
        match rustix::fs::fremovexattr(&root, metadata::DEFAULT_ACL) {
            Ok(()) | Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(e) => return Err(e),
        }
        let stat = rustix::fs::fstat(&root)?;
        Ok(Self {
            root: Directory {
                name: Vec::new(),
                foreign_group: passes_on_group(&stat, &caller),
                fd: root,
                at_leave: AtLeave {
                    owner: None,
                    mode: None,
                    times: implied_times(),
                    default_acl: None,
                },
            },
            below: Vec::new(),
            caller,
            is_stale: false,
            has_default_acls: false,
            implied: BTreeSet::from([Vec::new()]),
            implied_bytes: 0,
            implied_left: implied_max,
            implied_max,
        })
    }

    /// The directory that was entered last.
    pub(super) fn current(&self) -> BorrowedFd<'_> {
        self.last().fd.as_fd()
    }

    /// True when new files in the current directory may belong to another group than the caller's.
    pub(super) fn foreign_group(&self) -> bool {
        self.last().foreign_group
    }

    fn last(&self) -> &Directory {
        self.below.last().unwrap_or(&self.root)
    }

    /// Goes to this directory, for `entry`. Missing ones are made.
    pub(super) fn enter(&mut self, components: &[&[u8]], entry: &[u8]) -> Result<(), UnpackError> {
        if std::mem::take(&mut self.is_stale) {
            self.leave_to(0)?;
        }
        let common = self
            .below
            .iter()
            .zip(components)
            .take_while(|(directory, component)| directory.name == **component)
            .count();
        self.leave_to(common)?;
        for depth in common..components.len() {
            self.descend(&components[..=depth], entry)?;
        }
        Ok(())
    }

    /// True when this is the current directory.
    pub(super) fn is_current(&self, components: &[&[u8]]) -> bool {
        !self.is_stale
            && self
                .below
                .iter()
                .map(|d| d.name.as_slice())
                .eq(components.iter().copied())
    }

    /// Enters `fd`, a directory called `name` in the current one, which gets what `entry` says when it is left.
    /// `is_new` is false when an earlier entry made it.
    pub(super) fn push(
        &mut self,
        name: &[u8],
        fd: OwnedFd,
        entry: &Entry,
        is_new: bool,
    ) -> Result<(), UnpackError> {
        let mut directory = Directory {
            name: name.to_vec(),
            foreign_group: self.last().foreign_group || !is_new,
            fd,
            at_leave: AtLeave {
                owner: None,
                mode: None,
                times: implied_times(),
                default_acl: None,
            },
        };
        if !is_new {
            metadata::clear_xattrs(directory.fd.as_fd())
                .map_err(failed(entry, "replace extended attributes"))?;
        }
        directory.describe(entry, &self.caller)?;
        self.has_default_acls |= directory.at_leave.default_acl.is_some();
        self.below.push(directory);
        if self.implied.len() > 1 {
            self.implied.remove(&self.current_path());
        }
        Ok(())
    }

    /// What an entry says of the layer's root.
    pub(super) fn describe_root(&mut self, entry: &Entry) -> Result<(), UnpackError> {
        metadata::clear_xattrs(self.root.fd.as_fd())
            .map_err(failed(entry, "replace extended attributes"))?;
        self.implied.remove(&b""[..]);
        self.root.describe(entry, &self.caller)
    }

    /// Opens a directory of the layer by its path from the root. Links on the way lead to places in the layer.
    pub(super) fn resolve(&self, components: &[&[u8]]) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        open_in_root(
            &self.root.fd,
            &components.join(&b'/'),
            flags,
            ResolveFlags::NO_XDEV,
        )
    }

    /// A directory was removed: it may be one of those that are open.
    pub(super) fn removed_one(&mut self) {
        self.is_stale = true;
    }

    /// The directory `name` in the current one is not what the layers below have there: they are hidden.
    pub(super) fn takes_nothing_from_below(&mut self, name: &[u8]) {
        let mut path = self.current_path();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        self.implied.remove(&path);
    }

    fn current_path(&self) -> Vec<u8> {
        let names: Vec<&[u8]> = self.below.iter().map(|d| d.name.as_slice()).collect();
        names.join(&b'/')
    }

    /// Leaves all. Gives the directories that no entry has described.
    pub(super) fn finish(mut self) -> Result<BTreeSet<Vec<u8>>, UnpackError> {
        self.leave_to(0)?;
        self.root.leave().map_err(failed_at(
            b".",
            "set owner, mode and time of the root directory",
        ))?;
        Ok(self.implied)
    }

    fn leave_to(&mut self, depth: usize) -> Result<(), UnpackError> {
        while self.below.len() > depth {
            let Some(directory) = self.below.pop() else {
                break;
            };
            directory.leave().map_err(|errno| {
                let mut path: Vec<&[u8]> = self.below.iter().map(|d| d.name.as_slice()).collect();
                path.push(&directory.name);
                failed_at(
                    &path.join(&b'/'),
                    "set owner, mode and time of the directory",
                )(errno)
            })?;
        }
        Ok(())
    }

    /// Enters the last of `path` from the one before it, which is the current one.
    fn descend(&mut self, path: &[&[u8]], entry: &[u8]) -> Result<(), UnpackError> {
        let Some(name) = path.last() else {
            return Ok(());
        };
        let opened = match open_own_directory(self.current(), name) {
            Ok(opened) => opened,
            Err(Errno::NOENT) => return self.push_implied(name, false, entry),
            // Not a directory, but it may be a link to one.
            Err(Errno::NOTDIR | Errno::LOOP) => match self.resolve(path) {
                Ok(fd) => (fd, None),
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    let removed = remove_whiteout(self.current(), name)
                        .map_err(failed_at(entry, "make the parent directory"))?;
                    return match removed {
                        true => self.push_implied(name, true, entry),
                        false => Err(refused(entry, "its parent is not a directory")),
                    };
                }
                Err(e) => return Err(failed_at(entry, "open the parent directory")(e)),
            },
            Err(e) => return Err(failed_at(entry, "open the parent directory")(e)),
        };
        let directory = self
            .entered_again(name, opened)
            .map_err(failed_at(entry, "look at the parent directory"))?;
        self.below.push(directory);
        Ok(())
    }

    /// A directory that was left before: it gets back its time, and what else must change meanwhile.
    fn entered_again(
        &self,
        name: &[u8],
        (fd, mode): (OwnedFd, Option<Mode>),
    ) -> Result<Directory, Errno> {
        let stat = rustix::fs::fstat(&fd)?;
        let mut default_acl = None;
        if self.has_default_acls {
            let mut value = vec![0; XATTR_MAX_BYTES];
            if let Ok(len) = rustix::fs::fgetxattr(&fd, metadata::DEFAULT_ACL, &mut value) {
                value.truncate(len);
                rustix::fs::fremovexattr(&fd, metadata::DEFAULT_ACL)?;
                default_acl = Some(value);
            }
        }
        Ok(Directory {
            name: name.to_vec(),
            foreign_group: passes_on_group(&stat, &self.caller),
            fd,
            at_leave: AtLeave {
                owner: None,
                mode,
                times: Timestamps {
                    last_access: time(stat.st_atime, stat.st_atime_nsec),
                    last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
                },
                default_acl,
            },
        })
    }

    /// Makes and enters a directory that no entry has described so far.
    fn push_implied(
        &mut self,
        name: &[u8],
        over_whiteout: bool,
        entry: &[u8],
    ) -> Result<(), UnpackError> {
        let too_many = |what, limit| UnpackError::TooLarge { what, limit };
        self.implied_left = self
            .implied_left
            .checked_sub(1)
            .ok_or_else(|| too_many("directories without an entry", self.implied_max))?;
        let failed = || failed_at(entry, "make the parent directory");
        rustix::fs::mkdirat(self.current(), name, Mode::RWXU).map_err(failed())?;
        let fd = open_directory(self.current(), name).map_err(failed())?;
        if over_whiteout {
            super::tree::set_opaque(fd.as_fd(), &self.caller).map_err(failed())?;
        }
        let foreign_group = self.last().foreign_group;
        let owner = (
            Uid::from_raw(self.caller.uid),
            Gid::from_raw(self.caller.gid),
        );
        self.below.push(Directory {
            name: name.to_vec(),
            fd,
            foreign_group,
            at_leave: AtLeave {
                owner: foreign_group.then_some(owner),
                mode: Some(IMPLIED_MODE),
                times: implied_times(),
                default_acl: None,
            },
        });
        let path = self.current_path();
        self.implied_bytes += path.len();
        if self.implied_bytes > IMPLIED_MAX_BYTES {
            return Err(too_many(
                "bytes of names of directories without an entry",
                IMPLIED_MAX_BYTES as u64,
            ));
        }
        // What is below is removed, and this is another directory.
        if !over_whiteout {
            self.implied.insert(path);
        }
        Ok(())
    }
}

impl Directory {
    /// Takes what an entry says. Attributes are set at once, all else when the directory is left.
    fn describe(&mut self, entry: &Entry, caller: &Caller) -> Result<(), UnpackError> {
        let (uid, gid) = metadata::owner(entry)?;
        metadata::set_xattrs(self.fd.as_fd(), entry, caller)?;
        let default_acl = metadata::default_acl(entry).cloned();
        if default_acl
            .as_ref()
            .is_some_and(|acl| acl.len() > XATTR_MAX_BYTES)
        {
            return Err(refused(
                &entry.path,
                "its default ACL is longer than 64 KiB",
            ));
        }
        let is_own = metadata::belongs_to(caller, uid, gid) && !self.foreign_group;
        self.at_leave = AtLeave {
            owner: (!is_own).then_some((uid, gid)),
            mode: Some(metadata::mode(entry)),
            times: metadata::times(entry),
            default_acl,
        };
        Ok(())
    }

    fn leave(&self) -> Result<(), Errno> {
        let AtLeave {
            owner,
            mode,
            times,
            default_acl,
        } = &self.at_leave;
        if let Some((uid, gid)) = owner {
            rustix::fs::fchown(&self.fd, Some(*uid), Some(*gid))?;
        }
        if let Some(acl) = default_acl {
            rustix::fs::fsetxattr(&self.fd, metadata::DEFAULT_ACL, acl, XattrFlags::empty())?;
        }
        if let Some(mode) = mode {
            rustix::fs::fchmod(&self.fd, *mode)?;
        }
        rustix::fs::futimens(&self.fd, times)
    }
}

/// Opens a directory, which is not a link to one.
pub(super) fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(
        parent,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Opens a directory that an earlier entry made, so that files can be made in it. If its mode forbids that to its owner
/// (who is not root), the mode is changed, and that to be restored is returned.
pub(super) fn open_own_directory(
    parent: BorrowedFd<'_>,
    name: &[u8],
) -> Result<(OwnedFd, Option<Mode>), Errno> {
    if rustix::process::geteuid().is_root() {
        return Ok((open_directory(parent, name)?, None));
    }
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let mode = Mode::from_raw_mode(stat.st_mode);
    let is_directory =
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory;
    if !is_directory || mode.contains(Mode::RWXU) {
        return Ok((open_directory(parent, name)?, None));
    }
    rustix::fs::chmodat(parent, name, mode | Mode::RWXU, AtFlags::empty())?;
    Ok((open_directory(parent, name)?, Some(mode)))
}

/// A directory with the set-group-ID bit passes on its group; with some mount options each does (inode(7)).
fn passes_on_group(stat: &rustix::fs::Stat, caller: &Caller) -> bool {
    stat.st_gid != caller.gid
}

fn implied_times() -> Timestamps {
    Timestamps {
        last_access: IMPLIED_TIME,
        last_modification: IMPLIED_TIME,
    }
}

fn time(secs: i64, nanos: u64) -> Timespec {
    Timespec {
        tv_sec: secs,
        tv_nsec: nanos as i64,
    }
}
