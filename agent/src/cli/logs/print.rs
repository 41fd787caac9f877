//! What of a log is printed, and how.

use std::io::{self, Write};

use jiff::Timestamp;

use super::record::Record;

/// Prints the records of one container.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Printer {
    /// In front of each line, such as the container's name.
    pub(super) prefix: String,
    pub(super) timestamps: bool,
    /// Older lines are left out.
    pub(super) since: Option<Timestamp>,
    /// So many lines are left out at first.
    pub(super) skip: usize,
    /// Inside a line of stdout, of stderr.
    inside: [bool; 2],
    /// The last thing printed was not the end of a line.
    open: bool,
}

impl Printer {
    pub(in crate::cli) fn new(prefix: String, timestamps: bool, since: Option<Timestamp>) -> Self {
        Self {
            prefix,
            timestamps,
            since,
            skip: 0,
            inside: [false; 2],
            open: false,
        }
    }

    /// Prints a record. True: a line began with it.
    pub(in crate::cli) fn record(&mut self, line: &[u8], out: &mut impl Write) -> io::Result<bool> {
        let Some(record) = Record::parse(line) else {
            out.write_all(line)?;
            out.write_all(b"\n")?;
            return Ok(true);
        };
        if let Some(since) = self.since
            && record.timestamp().is_some_and(|t| t < since)
        {
            return Ok(false);
        }
        let stream = usize::from(record.stderr);
        let begins = !std::mem::replace(&mut self.inside[stream], !record.full);
        if self.skip > 0 {
            self.skip -= usize::from(record.full);
            return Ok(begins);
        }
        if begins {
            self.end_line(out)?;
            out.write_all(self.prefix.as_bytes())?;
            if self.timestamps {
                write!(out, "{} ", record.time)?;
            }
        }
        out.write_all(record.text)?;
        self.open = !record.full;
        if record.full {
            out.write_all(b"\n")?;
        }
        Ok(begins)
    }

    /// Begins a new line if the last one was not ended.
    pub(in crate::cli) fn end_line(&mut self, out: &mut impl Write) -> io::Result<()> {
        if std::mem::replace(&mut self.open, false) {
            out.write_all(b"\n")?;
        }
        Ok(())
    }

    /// The next record is the first of another run.
    pub(in crate::cli) fn restart(&mut self, out: &mut impl Write) -> io::Result<()> {
        self.inside = [false; 2];
        self.end_line(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(printer: &mut Printer, lines: &[&str]) -> String {
        let mut out = Vec::new();
        for line in lines {
            printer.record(line.as_bytes(), &mut out).expect("printed");
        }
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn parts_are_joined_and_prefixed_once() {
        let mut printer = Printer::new("web: ".into(), false, None);
        let lines = [
            "2026-01-01T00:00:00Z stdout P one ",
            "2026-01-01T00:00:00Z stdout F line",
            "2026-01-01T00:00:01Z stderr F two",
            "2026-01-01T00:00:02Z stdout P end",
        ];
        assert_eq!(
            printed(&mut printer, &lines),
            "web: one line\nweb: two\nweb: end"
        );
    }

    #[test]
    fn old_lines_are_left_out_and_times_are_shown() {
        let since = "2026-01-01T00:00:01Z".parse().ok();
        let mut printer = Printer::new(String::new(), true, since);
        let lines = [
            "2026-01-01T00:00:00Z stdout F old",
            "2026-01-01T00:00:01Z stdout F new",
        ];
        assert_eq!(printed(&mut printer, &lines), "2026-01-01T00:00:01Z new\n");
    }

    #[test]
    fn skipped_lines_are_whole_lines() {
        let mut printer = Printer::new(String::new(), false, None);
        printer.skip = 1;
        let lines = [
            "2026-01-01T00:00:00Z stdout P a",
            "2026-01-01T00:00:00Z stdout F b",
            "2026-01-01T00:00:00Z stdout F c",
        ];
        assert_eq!(printed(&mut printer, &lines), "c\n");
    }
}
