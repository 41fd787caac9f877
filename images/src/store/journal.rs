//! Records what changes the store's directory, for the crash test.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A change, after it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    MakeDir(PathBuf),
    /// A new file with this content.
    Write(PathBuf, Vec<u8>),
    /// Adds to a file, which is made if it is not there.
    Append(PathBuf, Vec<u8>),
    Truncate(PathBuf, u64),
    SyncFile(PathBuf),
    SyncDir(PathBuf),
    /// A directory with all that was put into it, files with their content.
    Fill(PathBuf, Vec<(PathBuf, Vec<u8>)>),
    /// syncfs(2) of the file system that holds this path.
    SyncAll(PathBuf),
    Rename(PathBuf, PathBuf),
    Exchange(PathBuf, PathBuf),
    Remove(PathBuf),
}

/// Who records: the directory of a store, and its steps. Tests run side by side, each with a store of its own.
static RECORDINGS: Mutex<Vec<(PathBuf, Vec<Step>)>> = Mutex::new(Vec::new());

/// Begins to record what happens below `dir`.
pub(super) fn begin(dir: &Path) {
    let mut recordings = RECORDINGS.lock().unwrap_or_else(PoisonError::into_inner);
    recordings.push((dir.to_owned(), Vec::new()));
}

/// How many steps were recorded so far.
pub(super) fn len(dir: &Path) -> usize {
    let recordings = RECORDINGS.lock().unwrap_or_else(PoisonError::into_inner);
    recordings
        .iter()
        .find(|(of, _)| of == dir)
        .map_or(0, |(_, steps)| steps.len())
}

/// Ends the recording of `dir`.
pub(super) fn end(dir: &Path) -> Vec<Step> {
    let mut recordings = RECORDINGS.lock().unwrap_or_else(PoisonError::into_inner);
    match recordings.iter().position(|(of, _)| of == dir) {
        Some(i) => recordings.swap_remove(i).1,
        None => Vec::new(),
    }
}

pub(super) fn note(step: Step) {
    let path = match &step {
        Step::MakeDir(path)
        | Step::Write(path, _)
        | Step::Append(path, _)
        | Step::Truncate(path, _)
        | Step::SyncFile(path)
        | Step::SyncDir(path)
        | Step::Fill(path, _)
        | Step::SyncAll(path)
        | Step::Rename(path, _)
        | Step::Exchange(path, _)
        | Step::Remove(path) => path,
    };
    let mut recordings = RECORDINGS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, steps)) = recordings.iter_mut().find(|(dir, _)| path.starts_with(dir)) {
        steps.push(step);
    }
}

/// All files below a directory, by their paths in it. Only what is recorded is read.
pub(super) fn snapshot(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let recordings = RECORDINGS.lock().unwrap_or_else(PoisonError::into_inner);
    if !recordings.iter().any(|(of, _)| dir.starts_with(of)) {
        return Vec::new();
    }
    drop(recordings);
    let mut files = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        let Ok(entries) = std::fs::read_dir(&path) else {
            continue;
        };
        for entry in entries.flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => todo.push(path),
                Ok(kind) if kind.is_file() => {
                    if let (Ok(content), Ok(name)) = (std::fs::read(&path), path.strip_prefix(dir))
                    {
                        files.push((name.to_owned(), content));
                    }
                }
                _ => {}
            }
        }
    }
    files
}
