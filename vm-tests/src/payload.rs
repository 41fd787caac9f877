//! What is tried in the guest: files of the host on a second disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::image::make_disk;
use crate::{attempt, run_command, workspace};

/// A disk with files, mounted at `/payload` in the guest.
#[derive(Debug)]
pub struct Payload {
    directory: tempfile::TempDir,
}

impl Payload {
    /// An empty one.
    ///
    /// # Errors
    /// When no temporary directory can be made.
    pub fn new() -> io::Result<Self> {
        let parent = workspace().join("target/vm");
        fs::create_dir_all(&parent).map_err(attempt("create", &parent))?;
        let directory = tempfile::tempdir_in(parent)?;
        fs::create_dir(directory.path().join("files"))?;
        Ok(Self { directory })
    }

    /// Adds a file as `/payload/<name>`.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn add_file(&self, file: &Path, name: &str) -> io::Result<()> {
        let target = self.files().join(name);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(attempt("create", parent))?;
        }
        fs::copy(file, &target)
            .map(drop)
            .map_err(attempt("copy", file))
    }

    /// Adds a program as `/payload/<name>`, without its symbols: they are most of it, and the guest is slow, which
    /// makes an image of one of them, too.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn add_program(&self, program: &Path, name: &str) -> io::Result<()> {
        run_command(
            Command::new("strip")
                .arg("--strip-all")
                .arg("-o")
                .arg(self.files().join(name))
                .arg(program),
        )
    }

    /// Adds the files of a directory, those of directories below it too, as `/payload/<name>/…`.
    ///
    /// # Errors
    /// When one cannot be copied.
    pub fn add_directory(&self, directory: &Path, name: &str) -> io::Result<()> {
        for entry in fs::read_dir(directory).map_err(attempt("read", directory))? {
            let entry = entry?;
            let name = format!("{name}/{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                self.add_directory(&entry.path(), &name)?;
            } else {
                self.add_file(&entry.path(), &name)?;
            }
        }
        Ok(())
    }

    /// Makes the disk.
    pub(crate) fn disk(&self) -> io::Result<PathBuf> {
        let disk = self.directory.path().join("payload.ext4");
        make_disk(&self.files(), &disk, "2G")?;
        Ok(disk)
    }

    fn files(&self) -> PathBuf {
        self.directory.path().join("files")
    }
}
