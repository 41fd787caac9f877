//! The supervisor's own log: lines on standard error, which the agent has pointed at a file. It is bounded: a file
//! that grew past [`MAX_BYTES`] starts again, as the run directory is in memory.

use std::fmt;
use std::io::{self, Write};

use jiff::Timestamp;
use rustix::fs::FileType;

const MAX_BYTES: i64 = 256 * 1024;

/// Writes a line. A log that cannot be written is nobody's problem but the reader's.
pub(super) fn say(what: fmt::Arguments<'_>) {
    let stderr = io::stderr();
    if let Ok(stat) = rustix::fs::fstat(&stderr)
        && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && stat.st_size > MAX_BYTES
        && rustix::fs::ftruncate(&stderr, 0).is_ok()
    {
        rustix::fs::seek(&stderr, rustix::fs::SeekFrom::Start(0)).unwrap_or_default();
    }
    let line = format!("{:.3} {what}\n", Timestamp::now());
    stderr.lock().write_all(line.as_bytes()).unwrap_or_default();
}
