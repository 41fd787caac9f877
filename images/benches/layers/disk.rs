//! A new file system for each turn, in a file and in a mount namespace of its own.
//!
//! On one that is shared, ext4 looks at every inode that was removed in the last minutes before it takes a free one
//! (`recently_deleted` in fs/ext4/ialloc.c): whoever unpacks after others cleaned up would be measured many times slower.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::support;

/// Set once this program runs in a mount namespace of its own.
const MOUNTED: &str = "PODLING_BENCH_MOUNTS";
/// Sparse: only what is written takes space.
const MIB: u64 = 8 << 10;

/// Runs this program again where its mounts are nobody else's, and tells how that ended; none there.
pub(crate) fn enter_namespace() -> Option<i32> {
    if std::env::var_os(MOUNTED).is_some() {
        return None;
    }
    let mut again = Command::new("unshare");
    again.args(["--mount", "--propagation", "private"]);
    again.arg(std::env::current_exe().unwrap());
    again.args(std::env::args_os().skip(1)).env(MOUNTED, "1");
    Some(again.status().unwrap().code().unwrap_or(1))
}

/// An empty ext4.
pub(crate) struct Disk {
    dir: TempDir,
}

impl Disk {
    pub(crate) fn new() -> Self {
        let disk = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let image = disk.dir.path().join("image");
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(MIB << 20).unwrap();
        std::fs::create_dir(disk.path()).unwrap();
        let (image, path) = (image.display().to_string(), disk.path());
        let path = path.display().to_string();
        support::run("mkfs.ext4", &["-q", "-F", &image]).expect("mkfs.ext4 is needed");
        // The kernel would go on with making it meanwhile.
        support::run("mount", &["-o", "loop,noinit_itable", &image, &path]).unwrap();
        disk
    }

    /// Where it is mounted.
    fn path(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    /// A new directory on it.
    pub(crate) fn directory(&self, name: &str) -> String {
        let path = self.path().join(name);
        std::fs::create_dir(&path).unwrap();
        path.display().to_string()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Not a panic here, which could be the second one. The next use of the space would show it.
        drop(Command::new("umount").arg(self.path()).status());
    }
}
