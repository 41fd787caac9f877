//! subPath: a part of a volume, resolved inside it and pinned by a mount.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use podling_runtime::confined;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, open};
use rustix::io::Errno;

use super::{VolumeError, mounts};

/// Binds `sub_path` of `volume` onto `pin`, which is made as a directory or file to match. A path that is not there
/// becomes a directory. Once pinned, it stays what it was.
///
/// # Errors
/// When the path leaves the volume, or cannot be reached or bound.
pub(super) fn pin(volume: &Path, sub_path: &str, pin: &Path) -> io::Result<()> {
    if mounts::is_mount_point(pin).map_err(into_io)? {
        return Ok(());
    }
    let target = resolve(volume, sub_path)?;
    let kind = FileType::from_raw_mode(fstat(&target)?.st_mode);
    if let Some(parent) = pin.parent() {
        std::fs::create_dir_all(parent)?;
    }
    if kind == FileType::Directory {
        std::fs::create_dir_all(pin)?;
    } else {
        std::fs::File::options()
            .create(true)
            .append(true)
            .open(pin)?;
    }
    mounts::bind(target.as_fd(), pin)
}

/// Opens `sub_path` with the volume as its root, so that no symlink in it leads out (`man 2 openat2`,
/// `RESOLVE_IN_ROOT`); directories that are missing are made, one by one, each below a descriptor of its parent.
fn resolve(volume: &Path, sub_path: &str) -> io::Result<OwnedFd> {
    let root = open(volume, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let mut walked = PathBuf::new();
    let mut current = open_inside(&root, Path::new("."))?;
    for component in Path::new(sub_path).components() {
        let name = match component {
            Component::Normal(name) => name,
            Component::CurDir => continue,
            Component::RootDir | Component::ParentDir | Component::Prefix(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "it must be relative and have no `..`",
                ));
            }
        };
        walked.push(name);
        current = match open_inside(&root, &walked) {
            Ok(next) => next,
            Err(Errno::NOENT) => {
                match mkdirat(&current, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                open_inside(&root, &walked)?
            }
            Err(error) => return Err(error.into()),
        };
    }
    Ok(current)
}

fn open_inside(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let bounds = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    confined::open(root, path, OFlags::PATH, bounds)
}

fn into_io(error: VolumeError) -> io::Error {
    match error {
        VolumeError::Io { source, .. } => source,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn target(fd: &OwnedFd) -> PathBuf {
        use std::os::fd::AsRawFd;
        std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
    }

    #[test]
    fn a_symlink_to_the_outside_stays_inside() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().canonicalize().unwrap().join("volume");
        std::fs::create_dir_all(volume.join("etc")).unwrap();
        symlink("/etc", volume.join("absolute")).unwrap();
        symlink("../../../../etc", volume.join("climbing")).unwrap();
        symlink("/proc/self/root", volume.join("magic")).unwrap();
        for name in ["absolute", "climbing"] {
            assert_eq!(target(&resolve(&volume, name).unwrap()), volume.join("etc"));
        }
        // `proc` is not in the volume: the link dangles, and no directory is made through it.
        assert!(resolve(&volume, "magic").is_err());
    }

    #[test]
    fn missing_directories_are_made_and_parents_refused() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().canonicalize().unwrap();
        assert_eq!(
            target(&resolve(&volume, "a/./b/c").unwrap()),
            volume.join("a/b/c")
        );
        for bad in ["..", "a/../..", "/etc"] {
            assert_eq!(
                resolve(&volume, bad).unwrap_err().kind(),
                io::ErrorKind::InvalidInput,
                "{bad}"
            );
        }
    }
}
