//! Reads a container's log from its first file on, over rotations and restarts, as far as it goes now; asked again,
//! from there.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::files;

/// The longest record: 16 KiB of text after time, stream and tag. Longer lines are not of our making; they are cut.
const MAX_RECORD_BYTES: usize = 64 << 10;

/// Where the reading of a container's log stands.
#[derive(Debug)]
pub(in crate::cli) struct Reader {
    dir: PathBuf,
    run: u32,
    /// Go on with the next run when this one has ended.
    over_restarts: bool,
    open: Option<Open>,
    /// The beginning of a record whose end is not written yet.
    pending: Vec<u8>,
}

#[derive(Debug)]
struct Open {
    file: BufReader<File>,
    inode: u64,
}

/// What a reader finds.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cli) enum Found<'a> {
    /// A record without its newline.
    Line(&'a [u8]),
    /// The next run begins.
    Restart,
}

impl Reader {
    pub(in crate::cli) fn new(dir: PathBuf, run: u32, over_restarts: bool) -> Self {
        Self {
            dir,
            run,
            over_restarts,
            open: None,
            pending: Vec::new(),
        }
    }

    /// Gives all that is there now to `each`.
    pub(in crate::cli) fn read(
        &mut self,
        each: &mut impl FnMut(Found<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        loop {
            self.drain(each)?;
            let here = self.open.as_ref().map(|open| open.inode);
            let files = files::of_run(&self.dir, self.run)?;
            let at = files.iter().position(|f| Some(f.inode) == here);
            let next = match at {
                Some(at) => files.get(at + 1),
                // Nothing open yet, or what was open has been removed: what is left is newer.
                None => files.first(),
            };
            if let Some(next) = next {
                // What was written between the end that was seen and the rotation.
                self.drain(each)?;
                self.open(&next.path)?;
                continue;
            }
            let later = files::runs(&self.dir)?
                .into_iter()
                .find(|run| *run > self.run);
            match later {
                Some(run) if self.over_restarts => {
                    self.drain(each)?;
                    self.pending.clear();
                    self.open = None;
                    self.run = run;
                    each(Found::Restart)?;
                }
                _ => return Ok(()),
            }
        }
    }

    fn open(&mut self, path: &std::path::Path) -> io::Result<()> {
        let file = match File::open(path) {
            Ok(file) => file,
            // Rotated between the look and now: the next look finds it under its new name.
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        let inode = file.metadata()?.ino();
        self.open = Some(Open {
            file: BufReader::with_capacity(128 << 10, file),
            inode,
        });
        Ok(())
    }

    fn drain(&mut self, each: &mut impl FnMut(Found<'_>) -> io::Result<()>) -> io::Result<()> {
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        loop {
            let buffer = open.file.fill_buf()?;
            if buffer.is_empty() {
                return Ok(());
            }
            let end = buffer.iter().position(|b| *b == b'\n');
            let taken = end.map_or(buffer.len(), |end| end + 1);
            let text = &buffer[..end.unwrap_or(taken)];
            let room = MAX_RECORD_BYTES.saturating_sub(self.pending.len());
            self.pending
                .extend_from_slice(&text[..text.len().min(room)]);
            open.file.consume(taken);
            if end.is_some() {
                each(Found::Line(&self.pending))?;
                self.pending.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::path::Path;

    use super::*;

    fn append(dir: &Path, name: &str, second: u32, text: &str) {
        let mut file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.join(name))
            .expect("a log");
        writeln!(file, "2026-01-01T00:00:{second:02}Z stdout F {text}").expect("a line");
    }

    fn all(reader: &mut Reader) -> Vec<String> {
        let mut lines = Vec::new();
        reader
            .read(&mut |found| {
                lines.push(match found {
                    Found::Line(line) => String::from_utf8_lossy(line).into_owned().split_off(30),
                    Found::Restart => "--".to_owned(),
                });
                Ok(())
            })
            .expect("a readable log");
        lines
    }

    #[test]
    fn nothing_is_lost_or_doubled_over_rotations_and_restarts() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let dir = dir.path();
        let mut reader = Reader::new(dir.to_owned(), 0, true);
        assert!(all(&mut reader).is_empty());
        append(dir, "0.log", 1, "a");
        assert_eq!(all(&mut reader), ["a"]);
        append(dir, "0.log", 2, "b");
        fs::rename(dir.join("0.log"), dir.join("0.log.x")).expect("a rotation");
        append(dir, "0.log", 3, "c");
        assert_eq!(all(&mut reader), ["b", "c"]);
        // Two rotations between two looks, and a restart.
        fs::rename(dir.join("0.log"), dir.join("0.log.y")).expect("a rotation");
        append(dir, "0.log", 4, "d");
        fs::rename(dir.join("0.log"), dir.join("0.log.z")).expect("a rotation");
        append(dir, "0.log", 5, "e");
        append(dir, "1.log", 6, "f");
        assert_eq!(all(&mut reader), ["d", "e", "--", "f"]);
        assert!(all(&mut reader).is_empty());
    }

    #[test]
    fn a_record_is_given_when_its_end_is_there() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("0.log");
        fs::write(&path, "2026-01-01T00:00:00Z stdout F ha").expect("half a record");
        let mut reader = Reader::new(dir.path().to_owned(), 0, false);
        assert!(all(&mut reader).is_empty());
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .expect("the log");
        writeln!(file, "lf").expect("the other half");
        assert_eq!(all(&mut reader), ["half"]);
    }
}
