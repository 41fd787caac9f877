//! Files that the caller gives: configurations, processes, limits.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::error::{Error, Result, file};

/// The largest file that is read, in MiB: a hundred times what the largest of engines' configurations take.
const MAX_MIB: u64 = 16;

/// Reads a whole file.
///
/// # Errors
/// When it cannot be read, or has more than [`MAX_MIB`].
pub fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let size = file.metadata()?.len().min(MAX_MIB << 20);
    read(file, usize::try_from(size).unwrap_or_default())
}

/// Reads all that is there; `usual` bytes as a rule.
///
/// # Errors
/// As [`read_file`].
pub fn read(reader: impl Read, usual: usize) -> io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(usual);
    reader.take((MAX_MIB << 20) + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_MIB << 20 {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it is larger than {MAX_MIB} MiB, which no configuration is"),
        ));
    }
    Ok(text)
}

/// Reads a JSON file.
///
/// # Errors
/// When it cannot be read, or is something else.
pub fn parse_file<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = read_file(path).map_err(file("read", path))?;
    serde_json::from_slice(&text).map_err(|source| Error::Json {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_it_is() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("config.json");
        for size in [0, 1, 5000] {
            std::fs::write(&path, vec![b' '; size]).expect("writes");
            assert_eq!(read_file(&path).expect("reads"), vec![b' '; size]);
        }
        let missing = read_file(&directory.path().join("none")).expect_err("is not there");
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_has_no_end_is_refused() {
        let error = read_file(Path::new("/dev/zero")).expect_err("no end");
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(
            error.to_string(),
            "it is larger than 16 MiB, which no configuration is"
        );
        let largest = read(io::repeat(b' ').take(MAX_MIB << 20), 0).expect("reads");
        assert_eq!(largest.len(), 16 << 20);
    }
}
