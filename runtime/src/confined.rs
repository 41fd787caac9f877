//! Opening paths that the kernel resolves within bounds: openat2(2), and nowhere else in this crate or the agent.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::path::Arg;

/// How often a path is tried. Each try that a rename or mount elsewhere on the machine spoils takes microseconds; a
/// thread that does nothing but rename spoils a few in a row, so this many are never all unlucky.
const TRIES_MAX: u32 = 1000;

/// Opens what exists at `path`, resolved from `root` as `bounds` say; closed on exec.
///
/// Under `RESOLVE_IN_ROOT` (`..` and links, absolute ones too, lead to a place below `root`) and `RESOLVE_BENEATH` (they
/// may not lead out) the kernel says `EAGAIN` when a rename or mount anywhere raced with a `..`; it is tried again then,
/// as openat2(2) advises.
///
/// # Errors
/// Those of openat2(2): `EXDEV` where the bounds forbid to go on, `ELOOP` for a link that they forbid, `EAGAIN` when each
/// of many tries lost the race.
pub fn open<P: Arg + Copy>(
    root: impl AsFd,
    path: P,
    flags: OFlags,
    bounds: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    let mut tries = 1;
    loop {
        match rustix::fs::openat2(&root, path, flags, Mode::empty(), bounds) {
            Err(Errno::AGAIN) if tries < TRIES_MAX => tries += 1,
            opened => return opened,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    /// Other programs rename files all the time.
    #[test]
    fn renames_elsewhere_do_not_make_it_fail() {
        let dir = tempfile::tempdir().expect("directory");
        let root = std::fs::File::open(dir.path()).expect("opens");
        std::os::unix::fs::symlink("../../..", dir.path().join("up")).expect("link");
        let elsewhere = tempfile::tempdir().expect("directory");
        let (one, other) = (elsewhere.path().join("one"), elsewhere.path().join("other"));
        std::fs::create_dir(&one).expect("makes");
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::fs::rename(&one, &other).expect("renames");
                    std::fs::rename(&other, &one).expect("renames");
                }
            });
            let open = || open(&root, "up", OFlags::DIRECTORY, ResolveFlags::IN_ROOT);
            let failed = (0..20_000).find_map(|_| open().err());
            stop.store(true, Ordering::Relaxed);
            assert_eq!(failed, None);
        });
    }

    #[test]
    fn bounds_are_kept() {
        let dir = tempfile::tempdir().expect("directory");
        let root = std::fs::File::open(dir.path()).expect("opens");
        std::os::unix::fs::symlink("/", dir.path().join("out")).expect("link");
        let open = |path, bounds| open(&root, path, OFlags::PATH, bounds);
        assert_eq!(open("out", ResolveFlags::BENEATH).err(), Some(Errno::XDEV));
        assert_eq!(
            open("out", ResolveFlags::NO_SYMLINKS).err(),
            Some(Errno::LOOP)
        );
        let itself = open("out", ResolveFlags::IN_ROOT).expect("opens");
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).expect("stat").st_ino;
        assert_eq!(inode(&itself), inode(&root.into()));
    }
}
