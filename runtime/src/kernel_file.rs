//! Reading files that the kernel makes up when they are read: in `/proc`, `/sys` and cgroups.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// More than most such files hold, in bytes.
const USUAL_BYTES: usize = 4096;

/// The whole of a file that the kernel makes up in one piece, as most files in cgroups and `/proc` that tell one thing:
/// a read that leaves room is the last (seq_file(9), `single_open`). Not for lists, as of processes or mounts.
///
/// # Errors
/// When it cannot be opened or read.
pub(crate) fn read_one(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
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
    File::open(path)?.take(u64::MAX).read_to_end(&mut text)?;
    Ok(text)
}

/// The whole file, which must be UTF-8.
///
/// # Errors
/// As [`read`]; `InvalidData` when it is not UTF-8.
pub(crate) fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|_| io::ErrorKind::InvalidData.into())
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
}
