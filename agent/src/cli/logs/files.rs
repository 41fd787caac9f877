//! The log files of one container.
//!
//! ```text
//! <log-dir>/<namespace>_<pod>_<uid>/<container>/<run>.log             being written
//!                                              /<run>.log.<anything>  rotated away
//! ```

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::record::Record;

/// A file of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LogFile {
    pub(super) path: PathBuf,
    /// Tells the file from a later one of the same name.
    pub(super) inode: u64,
}

/// The numbers of the runs that have files, ascending.
pub(super) fn runs(dir: &Path) -> io::Result<Vec<u32>> {
    let mut runs: Vec<u32> = names(dir)?.iter().filter_map(|name| run_of(name)).collect();
    runs.sort_unstable();
    runs.dedup();
    Ok(runs)
}

/// The files of a run, the oldest first; the one being written, without a suffix, is the last.
pub(super) fn of_run(dir: &Path, run: u32) -> io::Result<Vec<LogFile>> {
    let mut files = Vec::new();
    for name in names(dir)? {
        if run_of(&name) != Some(run) {
            continue;
        }
        let path = dir.join(&name);
        // Rotated away or removed since it was listed: the next look finds what is there then.
        let Ok(metadata) = fs::metadata(&path) else {
            continue;
        };
        let current = name.ends_with(".log");
        files.push((
            current,
            first_time(&path),
            name,
            LogFile {
                path,
                inode: metadata.ino(),
            },
        ));
    }
    files.sort_by(|a, b| (a.0, a.1, &a.2).cmp(&(b.0, b.1, &b.2)));
    Ok(files.into_iter().map(|(_, _, _, file)| file).collect())
}

fn names(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

/// `3` of `3.log` and of `3.log.20260101-000000`; None of compressed files, which cannot be read here.
fn run_of(name: &str) -> Option<u32> {
    let (run, rest) = name.split_once(".log")?;
    let plain = rest.is_empty()
        || (rest.starts_with('.') && !rest.ends_with(".gz") && !rest.ends_with(".tmp"));
    plain.then(|| run.parse().ok()).flatten()
}

/// When the first record was written: rotated files are in this order, whatever their suffixes.
fn first_time(path: &Path) -> Option<Timestamp> {
    let mut line = Vec::new();
    BufReader::new(File::open(path).ok()?)
        .read_until(b'\n', &mut line)
        .ok()?;
    Record::parse(line.strip_suffix(b"\n")?)?.timestamp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_run_are_in_the_order_of_their_first_records() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let write = |name: &str, second: u32| {
            let line = format!("2026-01-01T00:00:0{second}Z stdout F x\n");
            fs::write(dir.path().join(name), line).expect("a file");
        };
        write("0.log", 9);
        write("1.log", 5);
        write("1.log.1", 4);
        write("1.log.2", 3);
        fs::write(dir.path().join("1.log.gz"), "").expect("a file");
        fs::write(dir.path().join("notes"), "").expect("a file");
        assert_eq!(runs(dir.path()).expect("runs"), [0, 1]);
        let names: Vec<String> = of_run(dir.path(), 1)
            .expect("files")
            .iter()
            .filter_map(|f| f.path.file_name()?.to_str().map(str::to_owned))
            .collect();
        assert_eq!(names, ["1.log.2", "1.log.1", "1.log"]);
        assert!(runs(&dir.path().join("none")).expect("no runs").is_empty());
    }
}
