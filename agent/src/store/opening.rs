//! Notices a file whose opening ends the process.
//!
//! Some damage makes the database library panic instead of returning an error, and a release build aborts on a panic:
//! the agent would be started again by systemd, and end again, for ever. So a marker beside the file counts the
//! openings that were begun and not lived through; after [`LIVES`] of them the file is taken to be damaged. A power
//! cut in the milliseconds of an opening costs one life, which the next opening gives back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Openings that may end the process before the file is given up. More than one, for power cuts.
const LIVES: u32 = 3;

/// An opening under way.
#[derive(Debug)]
pub(super) struct Opening {
    marker: PathBuf,
    died_before: u32,
}

impl Opening {
    /// Marks that `path` is about to be opened. A marker that cannot be written is reported, no more: a full disk is
    /// no reason not to read.
    pub(super) fn begin(path: &Path) -> Self {
        let marker = path.with_extension("opening");
        let died_before = match fs::read_to_string(&marker) {
            Ok(text) => text.trim().parse().unwrap_or(1),
            Err(_) => 0,
        };
        if let Err(error) = fs::write(&marker, (died_before + 1).to_string()) {
            tracing::warn!(file = %marker.display(), %error, "cannot mark the opening of the object store");
        }
        Self {
            marker,
            died_before,
        }
    }

    /// True when the file has ended the process too often.
    pub(super) fn is_hopeless(&self) -> bool {
        self.died_before >= LIVES
    }

    /// The process lives: whatever came of the opening, it was an answer.
    pub(super) fn survived(self) {
        match fs::remove_file(&self.marker) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(file = %self.marker.display(), %error, "cannot unmark the opening of the object store");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opening_that_was_lived_through_leaves_no_mark() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        for _ in 0..10 {
            let opening = Opening::begin(&path);
            assert!(!opening.is_hopeless());
            opening.survived();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_ends_the_process_again_and_again_is_hopeless() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        for _ in 0..LIVES {
            assert!(!Opening::begin(&path).is_hopeless());
        }
        let opening = Opening::begin(&path);
        assert!(opening.is_hopeless());
        opening.survived();
        assert!(!Opening::begin(&path).is_hopeless());
    }
}
