//! A container's last words, from the end of its log.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// `MaxContainerTerminationMessageLogLines` of the kubelet.
const MAX_LINES: usize = 80;
/// `MaxContainerTerminationMessageLogLength` of the kubelet.
const MAX_BYTES: usize = 2_048;
/// Enough of the file for 80 records of short lines, and for one of the longest.
const LOOK_BYTES: u64 = 48 * 1024;

/// The last 80 lines of a log file, at most 2,048 bytes of them, without times and streams.
pub fn last_words(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(LOOK_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(LOOK_BYTES).read_to_end(&mut bytes)?;
    Ok(words(&bytes, size > LOOK_BYTES))
}

fn words(bytes: &[u8], cut: bool) -> String {
    let mut records = bytes.split_inclusive(|&b| b == b'\n');
    if cut {
        records.next();
    }
    let mut lines: VecDeque<Vec<u8>> = VecDeque::new();
    let mut goes_on = false;
    for record in records {
        let mut parts = record.splitn(4, |&b| b == b' ');
        let (Some(tag), Some(text)) = (parts.nth(2), parts.next()) else {
            continue;
        };
        let partial = tag == b"P";
        let text = if partial {
            text.strip_suffix(b"\n").unwrap_or(text)
        } else {
            text
        };
        match lines.back_mut() {
            Some(line) if goes_on => line.extend_from_slice(text),
            _ => lines.push_back(text.to_vec()),
        }
        goes_on = partial;
        if lines.len() > MAX_LINES {
            lines.pop_front();
        }
    }
    let all: Vec<u8> = lines.into_iter().flatten().collect();
    let end = &all[all.len().saturating_sub(MAX_BYTES)..];
    String::from_utf8_lossy(end).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: &str = "2026-11-21T05:00:00.000000001Z stdout P ";
    const F: &str = "2026-11-21T05:00:00.000000001Z stderr F ";

    #[test]
    fn lines_lose_their_prefix_and_parts_are_joined() {
        let log = format!("{F}one two\n{P}thr\n{F}ee\n{P}end");
        assert_eq!(words(log.as_bytes(), false), "one two\nthree\nend");
    }

    #[test]
    fn only_the_last_lines_and_bytes_count() {
        let log: String = (0..200).map(|i| format!("{F}{i}\n")).collect();
        let found = words(log.as_bytes(), true);
        assert_eq!(found.lines().count(), 80);
        assert!(found.starts_with("120\n") && found.ends_with("199\n"));
        let log = format!("{F}{}\n", "x".repeat(9_000));
        assert_eq!(words(log.as_bytes(), false).len(), MAX_BYTES);
    }
}
