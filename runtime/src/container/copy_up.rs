//! The mount option `tmpcopyup`: a new tmpfs begins with what it covers.
//!
//! What is covered is the image's and not trusted: it is walked by descriptors, through no symbolic link and into no
//! other mount. The tmpfs' size limits what is copied.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::Errno;

use super::inside::Inside;
use crate::confined;

/// Deeper directories than any image has: the walk holds a descriptor for each level.
const DEPTH_MAX: usize = 200;

/// The longest name list and value of extended attributes (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR_MAX_BYTES: usize = 65_536;

/// Copies the directory at `destination` into the root of `tmpfs`, which is not attached yet. What is not there has
/// nothing in it.
///
/// # Errors
/// When something cannot be copied as it is.
pub(super) fn copy_up(
    inside: &Inside,
    destination: &Path,
    tmpfs: BorrowedFd<'_>,
    has_own_mode: bool,
) -> io::Result<()> {
    let covered = match inside.open(destination, OFlags::RDONLY | OFlags::DIRECTORY) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT)) => return Ok(()),
        result => result?,
    };
    let stat = rustix::fs::fstat(&covered)?;
    let root = rustix::fs::openat(
        tmpfs,
        c".",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    copy_entries(&covered, &root, 0)?;
    if has_own_mode {
        return Ok(());
    }
    finish(&covered, &root, &stat)
}

fn copy_entries(from: &OwnedFd, to: &OwnedFd, depth: usize) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(io::Error::from_raw_os_error(libc::ELOOP));
    }
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            copy_entry(from, to, name, depth)?;
        }
    }
    Ok(())
}

fn copy_entry(from: &OwnedFd, to: &OwnedFd, name: &CStr, depth: usize) -> io::Result<()> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            let Some(source) = open(from, name, OFlags::RDONLY | OFlags::DIRECTORY)? else {
                return Ok(());
            };
            rustix::fs::mkdirat(to, name, Mode::RWXU)?;
            let made = open(to, name, OFlags::RDONLY | OFlags::DIRECTORY)?
                .ok_or(io::ErrorKind::CrossesDevices)?;
            copy_entries(&source, &made, depth + 1)?;
            finish(&source, &made, &stat)
        }
        FileType::RegularFile => {
            // A file that somebody swaps for a FIFO must not stop us.
            let Some(source) = open(from, name, OFlags::RDONLY | OFlags::NONBLOCK)? else {
                return Ok(());
            };
            let made = rustix::fs::openat(
                to,
                name,
                OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW,
                Mode::RUSR | Mode::WUSR,
            )?;
            let (mut source, mut made) = (File::from(source), File::from(made));
            io::copy(&mut source, &mut made)?;
            finish(&source.into(), &made.into(), &stat)
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, name, Vec::new())?;
            rustix::fs::symlinkat(target, to, name)?;
            own(to, name, &stat)
        }
        kind => {
            let mode = Mode::from_raw_mode(stat.st_mode);
            rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev)?;
            own(to, name, &stat)
        }
    }
}

/// None: another mount, or gone.
fn open(directory: &OwnedFd, name: &CStr, flags: OFlags) -> io::Result<Option<OwnedFd>> {
    let bounds = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    match confined::open(directory, name, flags, bounds) {
        Err(Errno::XDEV | Errno::NOENT) => Ok(None),
        result => Ok(Some(result?)),
    }
}

fn own(directory: &OwnedFd, name: &CStr, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::chownat(
        directory,
        name,
        Some(uid),
        Some(gid),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    Ok(())
}

/// Owner first: changing it takes setuid bits and capabilities away.
fn finish(from: &OwnedFd, to: &OwnedFd, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::fchown(to, Some(uid), Some(gid))?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode))?;
    copy_xattrs(from.as_fd(), to.as_fd())?;
    let times = Timestamps {
        last_access: timespec(stat.st_atime, stat.st_atime_nsec as i64),
        last_modification: timespec(stat.st_mtime, stat.st_mtime_nsec as i64),
    };
    rustix::fs::futimens(to, &times)?;
    Ok(())
}

fn timespec(secs: i64, nanosecs: i64) -> Timespec {
    Timespec {
        tv_sec: secs,
        tv_nsec: nanosecs,
    }
}

/// File capabilities and users' own: labels are the mount's.
fn copy_xattrs(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let length = match rustix::fs::flistxattr(from, &mut [0_u8; 0][..]) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(()),
        result => result?,
    };
    let mut names = vec![0; length.min(XATTR_MAX_BYTES)];
    let length = rustix::fs::flistxattr(from, &mut names[..])?;
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else {
            continue;
        };
        let visible = |prefix: &[u8]| name.to_bytes().starts_with(prefix);
        if !visible(b"user.") && !visible(b"security.capability") {
            continue;
        }
        let mut value = vec![0; XATTR_MAX_BYTES];
        let length = rustix::fs::fgetxattr(from, name, &mut value[..])?;
        rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    fn descriptor(path: &Path) -> OwnedFd {
        File::open(path).expect("opens").into()
    }

    #[test]
    fn a_tree_is_copied_as_it_is() {
        let directory = tempfile::tempdir().expect("directory");
        let root = directory.path().join("root");
        let copy = directory.path().join("copy");
        fs::create_dir_all(root.join("covered/sub")).expect("makes");
        fs::create_dir(&copy).expect("makes");
        fs::write(root.join("covered/sub/file"), "text").expect("writes");
        fs::set_permissions(root.join("covered/sub"), fs::Permissions::from_mode(0o2750))
            .expect("mode");
        symlink("/etc/passwd", root.join("covered/link")).expect("link");
        nix::unistd::mkfifo(
            &root.join("covered/fifo"),
            nix::sys::stat::Mode::from_bits_truncate(0o600),
        )
        .expect("fifo");

        let inside = Inside::new(descriptor(&root));
        copy_up(
            &inside,
            Path::new("/covered"),
            descriptor(&copy).as_fd(),
            false,
        )
        .expect("copies");
        assert_eq!(
            fs::read_to_string(copy.join("sub/file")).expect("reads"),
            "text"
        );
        let mode = fs::metadata(copy.join("sub")).expect("there").mode();
        assert_eq!(mode & 0o7777, 0o2750);
        assert_eq!(
            fs::read_link(copy.join("link")).expect("a link"),
            Path::new("/etc/passwd")
        );
        copy_up(
            &inside,
            Path::new("/nothing"),
            descriptor(&copy).as_fd(),
            false,
        )
        .expect("is fine");
    }

    #[test]
    fn a_link_in_place_of_the_directory_stays_inside() {
        let directory = tempfile::tempdir().expect("directory");
        let (root, outside) = (
            directory.path().join("root"),
            directory.path().join("outside"),
        );
        let copy = directory.path().join("copy");
        for path in [&root, &outside, &copy] {
            fs::create_dir(path).expect("makes");
        }
        fs::write(outside.join("secret"), "x").expect("writes");
        symlink(&outside, root.join("covered")).expect("link");
        let inside = Inside::new(descriptor(&root));
        copy_up(
            &inside,
            Path::new("/covered"),
            descriptor(&copy).as_fd(),
            false,
        )
        .expect("nothing there");
        assert_eq!(fs::read_dir(&copy).expect("reads").count(), 0);
    }
}
