//! Files that the kernel makes up: in `/proc`, `/sys` and cgroups.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Where the kernel tells this process's mounts (proc_pid_mountinfo(5)).
pub(crate) const MOUNTINFO: &str = "/proc/self/mountinfo";

/// More than most such files hold, in bytes.
const USUAL_BYTES: usize = 4096;

/// Opens the file for reading, by one system call: musl's `open` takes two where descriptors are to be closed on exec.
///
/// # Errors
/// When it cannot be opened.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    open_for(OFlags::RDONLY, path)
}

/// Opens the file for writing, as [`open`] does for reading.
///
/// # Errors
/// When it cannot be opened.
pub(crate) fn open_for_writing(path: &Path) -> io::Result<File> {
    open_for(OFlags::WRONLY, path)
}

fn open_for(access: OFlags, path: &Path) -> io::Result<File> {
    let flags = access | OFlags::CLOEXEC;
    let file = rustix::io::retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))?;
    Ok(file.into())
}

/// The whole of a file that the kernel makes up in one piece, as most files in cgroups and `/proc` that tell one thing:
/// a read that leaves room is the last (seq_file(9), `single_open`). Not for lists, as of processes or mounts.
///
/// # Errors
/// When it cannot be opened or read.
pub(crate) fn read_one(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = open(path)?;
    let mut text = vec![0; USUAL_BYTES];
    let length = file.read(&mut text)?;
    text.truncate(length);
    if length == USUAL_BYTES {
        file.read_to_end(&mut text)?;
    }
    Ok(text)
}

/// The whole file. It tells no size of its own, by which [`std::fs::read`] would ask for it in many small pieces.
///
/// # Errors
/// When it cannot be opened or read.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(USUAL_BYTES);
    // Through an adapter that has no size to ask for either.
    open(path)?.take(u64::MAX).read_to_end(&mut text)?;
    Ok(text)
}

/// The whole file, which must be UTF-8.
///
/// # Errors
/// As [`read`]; `InvalidData` when it is not UTF-8.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// A path in a list of mounts, where the kernel writes space, tab, newline and backslash as `\` and three octal digits.
pub(crate) fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .filter(|_| byte == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(value) => {
                bytes.push(value);
                rest = &tail[3..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_one_piece_is_read_whole() {
        let path = Path::new("/proc/self/limits");
        assert_eq!(
            read_one(path).expect("reads"),
            std::fs::read(path).expect("reads")
        );
        let file = tempfile::NamedTempFile::new().expect("file");
        for length in [0, 1, USUAL_BYTES, 3 * USUAL_BYTES + 1] {
            let text = "x".repeat(length);
            std::fs::write(file.path(), &text).expect("writes");
            assert_eq!(read_one(file.path()).expect("reads"), text.as_bytes());
        }
    }

    #[test]
    fn all_of_a_file_is_read() {
        let path = Path::new("/proc/self/mountinfo");
        assert_eq!(
            read(path).expect("reads"),
            std::fs::read(path).expect("reads")
        );
        let file = tempfile::NamedTempFile::new().expect("file");
        let long = "x".repeat(3 * USUAL_BYTES);
        std::fs::write(file.path(), &long).expect("writes");
        assert_eq!(read_text(file.path()).expect("reads"), long);
        std::fs::write(file.path(), [0xff]).expect("writes");
        assert!(read_text(file.path()).is_err());
    }

    #[test]
    fn mount_points_with_spaces_are_read() {
        assert_eq!(unescape(br"/a\040b\134c"), PathBuf::from(r"/a b\c"));
        assert_eq!(unescape(br"/a\04"), PathBuf::from(r"/a\04"));
    }
}
