//! Printing to standard output.

use std::io::{self, Write};

use serde_json::Value;

use super::error::{Result, file};

/// Prints a JSON value for people.
///
/// # Errors
/// When standard output cannot be written.
pub(super) fn json(value: &Value) -> Result<()> {
    line(&format!("{value:#}"))
}

/// Prints a line, if there is anything on it. A reader that has gone away is fine.
///
/// # Errors
/// When standard output cannot be written.
pub(super) fn line(text: &str) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(file("write", "standard output")(error))
        }
        _ => Ok(()),
    }
}
