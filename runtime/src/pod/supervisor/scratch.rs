//! The writable layer of a container: each run has a fresh one.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::container::{StartError, file_error};
use super::journal::say;
use crate::pod::plan::RootfsPlan;

/// An empty pair of directories for one start.
pub(super) fn fresh_scratch(
    rootfs: &RootfsPlan,
    name: &str,
) -> Result<(PathBuf, PathBuf), StartError> {
    let dir = rootfs.scratch.join(name);
    match fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(file_error(&dir)(e)),
        _ => {}
    }
    let (upper, work) = (dir.join("upper"), dir.join("work"));
    for path in [&upper, &work] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .map_err(file_error(path))?;
    }
    Ok((upper, work))
}

/// The runs before leave nothing.
pub(super) fn remove_other_scratch(scratch: &Path, keep: &str) {
    let removed = fs::read_dir(scratch).and_then(|entries| {
        for entry in entries {
            let entry = entry?;
            if entry.file_name() != keep {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    });
    if let Err(e) = removed {
        say(format_args!("cannot tidy up {}: {e}", scratch.display()));
    }
}
