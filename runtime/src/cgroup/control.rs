//! Reading and writing one control file.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use crate::kernel_file;

/// Writes `value` to the control file with one write(2): the kernel takes each write as one command.
pub(super) fn write(dir: &Path, file: &str, value: &str) -> Result<()> {
    try_write(dir, file, value).map_err(|source| Error::Write {
        path: dir.join(file),
        value: value.to_owned(),
        source,
    })
}

/// Writes several values to the control file, each by a write(2) of its own.
pub(super) fn write_each<'a>(
    dir: &Path,
    file: &str,
    values: impl IntoIterator<Item = &'a str>,
) -> Result<()> {
    let path = dir.join(file);
    let failed = |value: &str| {
        let (path, value) = (path.clone(), value.to_owned());
        move |source| Error::Write {
            path,
            value,
            source,
        }
    };
    let mut opened: Option<File> = None;
    for value in values {
        let file = match &mut opened {
            Some(file) => file,
            None => opened.insert(kernel_file::open_for_writing(&path).map_err(failed(value))?),
        };
        file.write_all(value.as_bytes()).map_err(failed(value))?;
    }
    Ok(())
}

/// As [`write()`], with the bare error for callers that know what to do about it.
pub(super) fn try_write(dir: &Path, file: &str, value: &str) -> io::Result<()> {
    kernel_file::open_for_writing(&dir.join(file))?.write_all(value.as_bytes())
}

/// Reads a control file; `None` when it, or the cgroup, is not there.
pub(super) fn read(dir: &Path, file: &str) -> Result<Option<String>> {
    let path = dir.join(file);
    // Lists of processes come in pieces, all others in one (kernfs' seq_show).
    let bytes = match file {
        "cgroup.procs" | "cgroup.threads" | "tasks" => kernel_file::read(&path),
        _ => kernel_file::read_one(&path),
    };
    let text = bytes.and_then(|bytes| {
        String::from_utf8(bytes).map_err(|_| io::Error::from(ErrorKind::InvalidData))
    });
    match text {
        Ok(text) => Ok(Some(text)),
        Err(source) if is_gone(&source) => Ok(None),
        // A file that is there but whose feature is switched off, as pressure files with `psi=0`.
        Err(source) if source.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
        Err(source) => Err(Error::Read { path, source }),
    }
}

/// Reads a control file that holds one number; `max` is `None` inside.
pub(super) fn read_number(dir: &Path, file: &str) -> Result<Option<Option<u64>>> {
    let Some(text) = read(dir, file)? else {
        return Ok(None);
    };
    match text.trim() {
        "max" => Ok(Some(None)),
        number => number
            .parse()
            .map(|number| Some(Some(number)))
            .map_err(|_| parse_error(dir.join(file), &text)),
    }
}

/// The value of `key` in a file of `key value` lines.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.trim().parse().ok())
}

/// True when the file's cgroup was removed: before the open (ENOENT) or after it (ENODEV).
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// A file that holds something unexpected.
pub(super) fn parse_error(path: PathBuf, text: &str) -> Error {
    Error::Parse {
        path,
        text: text.trim().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs;

    #[test]
    fn keys_are_matched_whole() {
        let text = "oom 3\noom_kill 2\noom_group_kill 1\n";
        assert_eq!(keyed(text, "oom_kill"), Some(2));
        assert_eq!(keyed(text, "kill"), None);
    }

    #[test]
    fn a_missing_file_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path(), "memory.max").unwrap(), None);
        fs::write(dir.path().join("memory.max"), "max\n").unwrap();
        assert_eq!(read_number(dir.path(), "memory.max").unwrap(), Some(None));
        fs::write(dir.path().join("memory.max"), "many\n").unwrap();
        assert!(read_number(dir.path(), "memory.max").is_err());
    }
}
