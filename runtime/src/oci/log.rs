//! Where errors and warnings go: standard error, and the file of `--log`, which container engines read.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

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

/// Errors and warnings.
#[derive(Debug, Default)]
pub struct Log {
    file: Option<File>,
    format: Format,
}

impl Log {
    /// Opens the file, if there is one, to append.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: Option<&PathBuf>, format: Format) -> Result<Self> {
        let file = path
            .map(|path| {
                File::options()
                    .append(true)
                    .create(true)
                    .open(path)
                    .map_err(file("open", path))
            })
            .transpose()?;
        Ok(Self { file, format })
    }

    /// A command failed.
    pub fn error(&self, message: &str) {
        self.write("error", message);
        eprintln!("podling-runtime: {message}");
    }

    /// Something failed that the command does not depend on.
    pub fn warning(&self, message: &str) {
        self.write("warning", message);
        eprintln!("podling-runtime: warning: {message}");
    }

    fn write(&self, level: &str, message: &str) {
        let Some(mut file) = self.file.as_ref() else {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
