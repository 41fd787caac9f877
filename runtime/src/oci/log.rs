//! Where errors, warnings and (with `--debug`) steps go: standard error, and the file of `--log`, which container
//! engines read.
//!
//! The library speaks through `tracing`; [`Log::install`] takes what it says from the calling process. A child made
//! by clone is another process: its descriptors are the container's, and nothing is written there.

use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use tracing::field::{Field, Visit};
use tracing::{Level, Metadata, span};

use super::error::{Result, file};

/// How the file's lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// `time="…" level=error msg="…"`
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Errors, warnings and steps. Clones write to the same file.
#[derive(Debug, Clone, Default)]
pub struct Log {
    file: Option<Arc<File>>,
    format: Format,
    debug: bool,
}

impl Log {
    /// Opens the file, if there is one, to append.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: Option<&PathBuf>, format: Format, debug: bool) -> Result<Self> {
        let file = path
            .map(|path| {
                File::options()
                    .append(true)
                    .create(true)
                    .open(path)
                    .map(Arc::new)
                    .map_err(file("open", path))
            })
            .transpose()?;
        Ok(Self {
            file,
            format,
            debug,
        })
    }

    /// The log that arguments name which cannot be parsed as a whole: callers look there for what is wrong with them. One
    /// that is not to be had has nothing written to it.
    pub fn of_arguments(arguments: &[OsString]) -> Self {
        let mut named: [Option<&OsStr>; 2] = [None, None];
        let mut arguments = arguments.iter().skip(1);
        while let Some(argument) = arguments.next() {
            for (name, value) in ["--log", "--log-format"].into_iter().zip(&mut named) {
                if argument == name {
                    *value = arguments.next().map(OsString::as_os_str);
                    break;
                }
                let text = argument.as_bytes().strip_prefix(name.as_bytes());
                if let Some(text) = text.and_then(|text| text.strip_prefix(b"=")) {
                    *value = Some(OsStr::from_bytes(text));
                }
            }
        }
        let [path, format] = named;
        let format = match format {
            Some(format) if format == "json" => Format::Json,
            _ => Format::Text,
        };
        Self::open(path.map(PathBuf::from).as_ref(), format, false).unwrap_or_default()
    }

    /// Arguments that cannot be parsed: the parser prints more.
    pub fn usage(&self, message: &str) {
        self.write("error", message);
    }

    /// Takes what the library says: warnings, and with `--debug` all.
    pub fn install(&self) {
        let taker = Taker {
            log: self.clone(),
            pid: std::process::id(),
        };
        if tracing::subscriber::set_global_default(taker).is_err() {
            self.warning("another log is in place already; the library's warnings go there");
        }
    }

    /// A command failed.
    pub fn error(&self, message: &str) {
        self.write("error", message);
        eprintln!("podling-runtime: error: {message}");
    }

    /// Something failed that the command does not depend on.
    pub fn warning(&self, message: &str) {
        self.write("warning", message);
        eprintln!("podling-runtime: warning: {message}");
    }

    /// A step, for who follows what happens.
    fn step(&self, message: &str) {
        self.write("debug", message);
        // Standard error is the container's too; with a file that one is enough.
        if self.file.is_none() {
            eprintln!("podling-runtime: debug: {message}");
        }
    }

    fn write(&self, level: &str, message: &str) {
        let Some(mut file) = self.file.as_deref() else {
            return;
        };
        let line = line(self.format, level, message, jiff::Timestamp::now());
        if let Err(error) = file.write_all(line.as_bytes()) {
            eprintln!("podling-runtime: cannot write the log: {error}");
        }
    }
}

fn line(format: Format, level: &str, message: &str, time: jiff::Timestamp) -> String {
    match format {
        Format::Text => format!("time=\"{time:.9}\" level={level} msg={message:?}\n"),
        Format::Json => {
            let line =
                serde_json::json!({"level": level, "msg": message, "time": time.to_string()});
            format!("{line}\n")
        }
    }
}

/// Hears the library.
struct Taker {
    log: Log,
    /// The process that the log belongs to.
    pid: u32,
}

impl tracing::Subscriber for Taker {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let limit = if self.log.debug {
            Level::DEBUG
        } else {
            Level::WARN
        };
        *metadata.level() <= limit && metadata.is_event()
    }

    fn event(&self, event: &tracing::Event<'_>) {
        if std::process::id() != self.pid {
            return;
        }
        let mut words = Words::default();
        event.record(&mut words);
        let message = words.message + &words.fields;
        if *event.metadata().level() <= Level::WARN {
            self.log.warning(&message);
        } else {
            self.log.step(&message);
        }
    }

    // Spans are not used by the command; events stand for themselves.
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// An event's message, and its fields as ` name=value`.
#[derive(Default)]
struct Words {
    message: String,
    fields: String,
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a string cannot fail.
        let written = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
        debug_assert!(written.is_ok());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let written = write!(self.fields, " {}={:?}", field.name(), crate::chain(value));
        debug_assert!(written.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_of_wrong_arguments_is_found() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("log");
        let path = path.to_str().expect("UTF-8");
        let lines = [
            format!("r --log {path} --log-format json create --what"),
            format!("r --log-format=json --log={path} kill"),
        ];
        for line in &lines {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            Log::of_arguments(&words).usage("no");
        }
        Log::of_arguments(&["r", "--log"].map(OsString::from)).usage("no");
        let text = std::fs::read_to_string(path).expect("a log");
        assert_eq!(text.matches(r#""level":"error","msg":"no""#).count(), 2);
    }

    #[test]
    fn a_line_is_one_object() {
        let line = line(
            Format::Json,
            "error",
            "a \"b\"\nc",
            jiff::Timestamp::UNIX_EPOCH,
        );
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(value["msg"], "a \"b\"\nc");
        assert_eq!(value["level"], "error");
    }

    #[test]
    fn what_the_library_says_is_in_the_file() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("log");
        let say = |debug| {
            let log = Log::open(Some(&path), Format::Json, debug).expect("opens");
            let taker = Taker {
                log,
                pid: std::process::id(),
            };
            tracing::subscriber::with_default(taker, || {
                tracing::warn!(pid = 7, "careful");
                tracing::debug!("a step");
                tracing::trace!("too much");
            });
            std::fs::read_to_string(&path).expect("a log")
        };
        let quiet = say(false);
        assert_eq!(quiet.lines().count(), 1, "{quiet}");
        assert!(quiet.contains("careful pid=7"), "{quiet}");
        let all = say(true);
        assert_eq!(all.lines().count(), 3, "{all}");
        assert!(all.contains(r#""level":"debug","msg":"a step""#), "{all}");
    }
}
