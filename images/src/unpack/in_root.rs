//! Opens paths as if a directory were the root: `..` and links lead at most to another place in it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// A rename or mount anywhere on the machine, while `..` is resolved, makes openat2(2) say EAGAIN; each try is a new
/// race.
const TRIES_MAX: usize = 1000;

/// Opens `path` below `root`, which is itself the empty path. `/proc`'s links to places elsewhere are refused.
pub(super) fn open_in_root(
    root: impl AsFd,
    path: &[u8],
    flags: OFlags,
    more: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = more | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 0;
    loop {
        let opened =
            rustix::fs::openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve);
        tries += 1;
        match opened {
            Err(Errno::AGAIN) if tries < TRIES_MAX => {}
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
        let dir = tempfile::tempdir().unwrap();
        let root = std::fs::File::open(dir.path()).unwrap();
        std::os::unix::fs::symlink("../../..", dir.path().join("up")).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let (one, other) = (elsewhere.path().join("one"), elsewhere.path().join("other"));
        std::fs::create_dir(&one).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    std::fs::rename(&one, &other).unwrap();
                    std::fs::rename(&other, &one).unwrap();
                }
            });
            let open = || open_in_root(&root, b"up", OFlags::DIRECTORY, ResolveFlags::empty());
            let failed = (0..20_000).find_map(|_| open().err());
            stop.store(true, Ordering::Relaxed);
            assert_eq!(failed, None);
        });
    }
}
