//! Files that are replaced as a whole.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::error::{Result, file};

/// A file that is written beside the one whose place it is to take. It goes with this unless it was [`Self::put`].
#[derive(Debug)]
pub struct Replacement {
    path: PathBuf,
    /// Empty when it is in its place.
    new: PathBuf,
}

impl Replacement {
    /// Writes it; what another program has put where it is written is replaced, never followed or written to.
    ///
    /// # Errors
    /// When it cannot be written. Nothing new is left then.
    pub fn write(path: &Path, text: &[u8]) -> Result<Self> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let new = path.with_file_name(name);
        let mut made = create_new(&new);
        if matches!(&made, Err(error) if error.kind() == io::ErrorKind::AlreadyExists) {
            made = fs::remove_file(&new).and_then(|()| create_new(&new));
        }
        let mut made = made.map_err(file("write", path))?;
        let replacement = Self {
            path: path.to_owned(),
            new,
        };
        made.write_all(text).map_err(file("write", path))?;
        Ok(replacement)
    }

    /// Moves it to its place: readers see the old file or this one.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub fn put(mut self) -> Result<()> {
        fs::rename(&self.new, &self.path).map_err(file("write", &self.path))?;
        self.new = PathBuf::new();
        Ok(())
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        if !self.new.as_os_str().is_empty()
            && let Err(error) = fs::remove_file(&self.new)
        {
            tracing::debug!(%error, path = %self.new.display(), "an unfinished file stays");
        }
    }
}

/// Replaces a file in one step.
///
/// # Errors
/// When it cannot be written. Nothing new is left then.
pub fn replace_file(path: &Path, text: &[u8]) -> Result<()> {
    Replacement::write(path, text)?.put()
}

fn create_new(path: &Path) -> io::Result<fs::File> {
    fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_through_no_link_and_leaves_none_beside_it() {
        let directory = tempfile::tempdir().expect("directory");
        let path = |name: &str| directory.path().join(name);
        fs::write(path("victim"), "untouched").expect("writes");
        std::os::unix::fs::symlink(path("victim"), path("pid.new")).expect("link");
        replace_file(&path("pid"), b"7").expect("replaces");
        assert_eq!(fs::read(path("pid")).expect("reads"), b"7");
        fs::create_dir(path("taken")).expect("directory");
        let refused = replace_file(&path("taken"), b"7").expect_err("a directory");
        assert!(refused.to_string().ends_with("/taken"), "{refused}");
        assert_eq!(fs::read(path("victim")).expect("reads"), b"untouched");
        let mut names: Vec<_> = fs::read_dir(directory.path())
            .expect("reads")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["pid", "taken", "victim"]);
    }

    #[test]
    fn until_it_is_put_the_old_file_is_there() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("state");
        fs::write(&path, "old").expect("writes");
        drop(Replacement::write(&path, b"first").expect("writes"));
        assert_eq!(fs::read(&path).expect("reads"), b"old");
        assert_eq!(fs::read_dir(directory.path()).expect("reads").count(), 1);
        let second = Replacement::write(&path, b"second").expect("writes");
        assert_eq!(fs::read(&path).expect("reads"), b"old");
        second.put().expect("moves");
        assert_eq!(fs::read(&path).expect("reads"), b"second");
    }
}
