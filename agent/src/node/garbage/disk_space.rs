//! How full a file system is, and whether an error says that it is.

use std::error::Error;
use std::fmt;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What sizes are told in.
const MIB: u64 = 1 << 20;

/// How full a file system is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskSpace {
    /// Where it is mounted.
    pub(crate) mount_point: PathBuf,
    /// What users other than root have in use or may still write, as df(1) counts: with ext4's reserve for root, which
    /// may be most of a disk, its size would say nothing about how full it is.
    pub(crate) total_bytes: u64,
    /// What may still be written by users other than root, who has a reserve on some (statvfs(3), `f_bavail`).
    pub(crate) available_bytes: u64,
}

impl DiskSpace {
    /// That of the file system that `path` is on.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let path = path.canonicalize()?;
        let found = rustix::fs::statvfs(&path)?;
        Ok(Self {
            mount_point: mount_point(&path)?,
            total_bytes: usable_blocks(&found).saturating_mul(found.f_frsize),
            available_bytes: found.f_bavail.saturating_mul(found.f_frsize),
        })
    }

    /// As the kubelet rounds it: what is not available is used. A file system that has no size is never full.
    pub(crate) fn used_percent(&self) -> u8 {
        if self.total_bytes == 0 {
            return 0;
        }
        let available = u128::from(self.available_bytes) * 100 / u128::from(self.total_bytes);
        100 - u8::try_from(available).unwrap_or(100).min(100)
    }
}

impl fmt::Display for DiskSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the file system at {} is {} % full ({} MiB of {} MiB are free)",
            self.mount_point.display(),
            self.used_percent(),
            self.available_bytes / MIB,
            self.total_bytes / MIB
        )
    }
}

/// All blocks but root's reserve.
fn usable_blocks(found: &rustix::fs::StatVfs) -> u64 {
    let used = found.f_blocks.saturating_sub(found.f_bfree);
    used.saturating_add(found.f_bavail)
}

/// The highest directory on the way up that is of the same file system.
fn mount_point(path: &Path) -> io::Result<PathBuf> {
    let device = path.metadata()?.dev();
    let mut top = path;
    while let Some(parent) = top.parent() {
        if parent.metadata()?.dev() != device {
            break;
        }
        top = parent;
    }
    Ok(top.to_owned())
}

/// True when the cause of an error is that a file system, or somebody's share of it, is full.
pub(crate) fn is_out_of_space(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            if matches!(
                io.kind(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
            ) {
                return true;
            }
            // Its source is that of the error it holds, which itself would be left out.
            if let Some(inner) = io.get_ref() {
                next = Some(inner);
                continue;
            }
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space(total_bytes: u64, available_bytes: u64) -> DiskSpace {
        DiskSpace {
            mount_point: PathBuf::from("/var"),
            total_bytes,
            available_bytes,
        }
    }

    #[test]
    fn fullness_is_what_is_not_available() {
        assert_eq!(space(1000, 150).used_percent(), 85);
        // The kubelet rounds what is available down.
        assert_eq!(space(1000, 159).used_percent(), 85);
        assert_eq!(space(1000, 0).used_percent(), 100);
        assert_eq!(space(0, 0).used_percent(), 0);
        assert_eq!(space(10, u64::MAX).used_percent(), 0);
    }

    /// A disk of 252 GiB of which 160 are root's.
    #[test]
    fn what_only_root_may_write_does_not_count() {
        let mut found = rustix::fs::statvfs("/").unwrap();
        (found.f_blocks, found.f_bfree, found.f_bavail) = (66_053_021, 52_646_950, 10_415_401);
        let total = usable_blocks(&found);
        assert_eq!(space(total, found.f_bavail).used_percent(), 57);
    }

    #[test]
    fn a_full_disk_is_recognised_in_any_depth() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        assert!(is_out_of_space(&full()));
        assert!(is_out_of_space(&io::Error::other(full())));
        assert!(is_out_of_space(&io::Error::other(io::Error::other(full()))));
        assert!(!is_out_of_space(&io::Error::other("full")));
        let store = podling_images::StoreError::Io {
            action: "write",
            path: PathBuf::from("/x"),
            source: full(),
        };
        assert!(is_out_of_space(&podling_images::PullError::Store(store)));
    }

    #[test]
    fn the_mount_point_is_on_the_way_up() {
        let dir = tempfile::tempdir().unwrap();
        let space = DiskSpace::of(dir.path()).unwrap();
        assert!(
            dir.path()
                .canonicalize()
                .unwrap()
                .starts_with(&space.mount_point)
        );
        assert!(space.total_bytes >= space.available_bytes && space.total_bytes > 0);
        let proc = DiskSpace::of(Path::new("/proc/self")).unwrap();
        assert_eq!(proc.mount_point, Path::new("/proc"));
    }
}
