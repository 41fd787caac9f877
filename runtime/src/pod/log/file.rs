//! The files of one container's log.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::record::{Splitter, Stream, time};
use crate::pod::plan::LogPlan;

/// Records are gathered up to this size before they are written.
const BATCH_BYTES: usize = 32 * 1024;

/// Writes the log of one run of a container.
#[derive(Debug)]
pub struct LogWriter {
    plan: LogPlan,
    run: u32,
    stdout: Splitter,
    stderr: Splitter,
    output: Output,
}

/// The file being written, and what is on its way into it.
#[derive(Debug)]
struct Output {
    path: PathBuf,
    max_bytes: u64,
    max_files: u32,
    file: Option<File>,
    /// Of the file, what is gathered not counted.
    size: u64,
    gathered: Vec<u8>,
    last_rotation: (String, u32),
    lost_records: u64,
    trouble: Option<io::Error>,
}

impl LogWriter {
    /// Opens the log of a run, to which an earlier supervisor may have written, and removes those of runs before the
    /// last one. A log that cannot be opened is tried again with each write.
    pub fn open(plan: &LogPlan, run: u32) -> Self {
        let mut output = Output {
            path: plan.dir.join(format!("{run}.log")),
            max_bytes: plan.max_bytes,
            max_files: plan.max_files,
            file: None,
            size: 0,
            gathered: Vec::new(),
            last_rotation: (String::new(), 0),
            lost_records: 0,
            trouble: None,
        };
        if let Err(e) = make_dir(&plan.dir)
            .and_then(|()| remove_old_runs(&plan.dir, run))
            .and_then(|()| output.open())
        {
            output.trouble = Some(e);
        }
        Self {
            plan: plan.clone(),
            run,
            stdout: Splitter::new(Stream::Stdout),
            stderr: Splitter::new(Stream::Stderr),
            output,
        }
    }

    /// The file being written.
    pub fn path(&self) -> &Path {
        &self.output.path
    }

    /// New limits, and perhaps a new place for the next run.
    pub fn set_limits(&mut self, plan: &LogPlan) {
        self.output.max_bytes = plan.max_bytes;
        self.output.max_files = plan.max_files;
        self.plan = plan.clone();
    }

    /// Which run this is.
    pub fn run(&self) -> u32 {
        self.run
    }

    /// Takes what a container wrote.
    pub fn write(&mut self, stream: Stream, bytes: &[u8], now: Timestamp) {
        let time = time(now);
        let splitter = match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        };
        let output = &mut self.output;
        splitter.feed(bytes, &time, &mut |record| output.add(record, now));
        output.flush();
    }

    /// The container has ended.
    pub fn end(&mut self, now: Timestamp) {
        let time = time(now);
        let output = &mut self.output;
        for splitter in [&mut self.stdout, &mut self.stderr] {
            splitter.end(&time, &mut |record| output.add(record, now));
        }
        output.flush();
    }

    /// Why records were lost since this was last asked, and how many.
    pub fn take_trouble(&mut self) -> Option<(io::Error, u64)> {
        let trouble = self.output.trouble.take()?;
        Some((trouble, std::mem::take(&mut self.output.lost_records)))
    }
}

impl Output {
    fn open(&mut self) -> io::Result<()> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o640)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&self.path)?;
        self.size = file.metadata()?.len();
        self.file = Some(file);
        Ok(())
    }

    fn add(&mut self, record: &[u8], now: Timestamp) {
        let gathered = self.gathered.len() as u64;
        let new = record.len() as u64;
        if self.size + gathered > 0 && self.size + gathered + new > self.max_bytes {
            self.flush();
            if self.size > 0
                && self.file.is_some()
                && let Err(e) = self.rotate(now)
            {
                self.trouble = Some(e);
            }
        } else if self.gathered.len() + record.len() > BATCH_BYTES {
            self.flush();
        }
        self.gathered.extend_from_slice(record);
    }

    /// Writes what is gathered, all or nothing.
    fn flush(&mut self) {
        if self.gathered.is_empty() {
            return;
        }
        let gathered = std::mem::take(&mut self.gathered);
        if self.file.is_none()
            && let Err(e) = self
                .path
                .parent()
                .map_or(Ok(()), make_dir)
                .and_then(|()| self.open())
        {
            self.lose(&gathered, e);
            return;
        }
        let Some(file) = &mut self.file else { return };
        match file.write_all(&gathered) {
            Ok(()) => self.size += gathered.len() as u64,
            Err(e) => {
                // Half a record would spoil the next one. If even this fails, only the log suffers.
                let cut = file.set_len(self.size);
                self.lose(&gathered, cut.err().unwrap_or(e));
            }
        }
    }

    fn lose(&mut self, gathered: &[u8], why: io::Error) {
        let records = gathered.iter().filter(|&&b| b == b'\n').count() as u64;
        self.lost_records = self.lost_records.saturating_add(records);
        self.trouble = Some(why);
    }

    /// Puts the full file aside, starts a new one, and removes the oldest beyond the number to keep.
    fn rotate(&mut self, now: Timestamp) -> io::Result<()> {
        if self.max_files == 1 {
            if let Some(file) = &self.file {
                file.set_len(0)?;
                self.size = 0;
            }
            return Ok(());
        }
        let rotated_path = self.rotated_path(now);
        fs::rename(&self.path, rotated_path)?;
        self.file = None;
        self.size = 0;
        self.open()?;
        let mut rotated = rotated_files(&self.path)?;
        rotated.sort();
        let keep = (self.max_files - 1) as usize;
        let surplus = rotated.len().saturating_sub(keep);
        for old in &rotated[..surplus] {
            fs::remove_file(old)?;
        }
        Ok(())
    }

    /// Later names sort after earlier ones, in one second too.
    fn rotated_path(&mut self, now: Timestamp) -> PathBuf {
        let second = now.strftime("%Y%m%d-%H%M%S").to_string();
        let mut number = if second <= self.last_rotation.0 {
            self.last_rotation.1 + 1
        } else {
            0
        };
        let second = second.max(std::mem::take(&mut self.last_rotation.0));
        let path = loop {
            let suffix = match number {
                0 => second.clone(),
                n => format!("{second}-{n:06}"),
            };
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{suffix}"));
            let path = PathBuf::from(name);
            if fs::symlink_metadata(&path).is_err() {
                break path;
            }
            number += 1;
        };
        self.last_rotation = (second, number);
        path
    }
}

fn make_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)
}

fn rotated_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name().and_then(|n| n.to_str())) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{name}.");
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// The logs of this run and of the one before stay.
fn remove_old_runs(dir: &Path, run: u32) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let old = name
            .to_str()
            .and_then(|name| name.split_once(".log"))
            .and_then(|(number, _)| number.parse::<u32>().ok())
            .is_some_and(|number| number.saturating_add(1) < run);
        if old {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(dir: &Path, max_bytes: u64, max_files: u32) -> LogPlan {
        LogPlan {
            dir: dir.join("logs/web"),
            max_bytes,
            max_files,
        }
    }

    fn names(plan: &LogPlan) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&plan.dir)
            .expect("a directory")
            .map(|e| {
                e.expect("an entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        names.sort();
        names
    }

    fn lines(path: &Path) -> Vec<String> {
        let text = fs::read_to_string(path).expect("a log");
        text.lines()
            .map(|l| l.splitn(4, ' ').nth(3).expect("a record").to_owned())
            .collect()
    }

    #[test]
    fn no_file_grows_past_its_limit_and_no_line_is_lost_at_a_rotation() {
        let dir = tempfile::tempdir().expect("a directory");
        let plan = plan(dir.path(), 1_000, 1_000);
        let mut log = LogWriter::open(&plan, 0);
        let now = Timestamp::now();
        for i in 0..500 {
            log.write(
                Stream::Stdout,
                format!("line {i}\nerror {i}\n").as_bytes(),
                now,
            );
        }
        assert!(log.take_trouble().is_none());
        let names = names(&plan);
        assert!(names.len() > 10);
        let mut all = Vec::new();
        for name in names[1..].iter().chain(&names[..1]) {
            let path = plan.dir.join(name);
            assert!(fs::metadata(&path).expect("a log").len() <= 1_000);
            all.extend(lines(&path));
        }
        let expected: Vec<_> = (0..500)
            .flat_map(|i| [format!("line {i}"), format!("error {i}")])
            .collect();
        assert_eq!(all, expected);
    }

    #[test]
    fn only_so_many_files_are_kept() {
        for max_files in [1, 2, 4] {
            let dir = tempfile::tempdir().expect("a directory");
            let plan = plan(dir.path(), 200, max_files);
            let mut log = LogWriter::open(&plan, 7);
            for i in 0..100 {
                log.write(
                    Stream::Stderr,
                    format!("line {i}\n").as_bytes(),
                    Timestamp::now(),
                );
            }
            assert_eq!(names(&plan).len(), max_files as usize);
            assert_eq!(
                lines(log.path()).last().map(String::as_str),
                Some("line 99")
            );
        }
    }

    #[test]
    fn the_logs_of_the_last_two_runs_stay() {
        let dir = tempfile::tempdir().expect("a directory");
        let plan = plan(dir.path(), 1_000, 5);
        for run in 0..12 {
            let mut log = LogWriter::open(&plan, run);
            log.write(Stream::Stdout, b"x\n", Timestamp::now());
        }
        assert_eq!(names(&plan), ["10.log", "11.log"]);
    }

    #[test]
    fn a_later_supervisor_goes_on_with_the_same_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let plan = plan(dir.path(), 100, 5);
        for _ in 0..2 {
            let mut log = LogWriter::open(&plan, 0);
            log.write(Stream::Stdout, b"hello\n", Timestamp::now());
        }
        assert_eq!(lines(&plan.dir.join("0.log")), ["hello", "hello"]);
    }

    #[test]
    fn a_line_without_its_end_is_partial_when_the_container_ends() {
        let dir = tempfile::tempdir().expect("a directory");
        let plan = plan(dir.path(), 1_000, 5);
        let mut log = LogWriter::open(&plan, 0);
        log.write(Stream::Stdout, b"half", Timestamp::now());
        assert_eq!(fs::read(log.path()).expect("a log"), b"");
        log.end(Timestamp::now());
        let text = fs::read_to_string(log.path()).expect("a log");
        assert!(text.ends_with(" stdout P half\n"), "{text}");
    }

    #[test]
    fn a_full_disk_loses_records_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a directory");
        let plan = plan(dir.path(), 1_000_000, 5);
        let mut log = LogWriter::open(&plan, 0);
        log.output.file = Some(
            OpenOptions::new()
                .write(true)
                .open("/dev/full")
                .expect("/dev/full"),
        );
        log.write(Stream::Stdout, b"one\ntwo\n", Timestamp::now());
        let (_, lost) = log.take_trouble().expect("trouble");
        assert_eq!(lost, 2);
        log.output.file = None;
        log.write(Stream::Stdout, b"three\n", Timestamp::now());
        assert!(log.take_trouble().is_none());
        assert_eq!(lines(log.path()), ["three"]);
    }
}
