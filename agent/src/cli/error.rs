//! How a command ends: an exit code, or an error that is printed once, with its causes and a hint.
//!
//! ```text
//! error: cannot load /tmp/x.tar
//!   because: neither an OCI layout nor a docker-archive
//! hint: `podling images load --help` names the formats
//! ```

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};

/// How a command that did its work ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Code 0.
    Done,
    /// The command did its work and the answer is no: code 1.
    Negative,
    /// The code of a program that was run.
    Code(u8),
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Done => Self::SUCCESS,
            Exit::Negative => Self::FAILURE,
            Exit::Code(code) => Self::from(code),
        }
    }
}

/// Why a command could not do its work.
#[derive(Debug)]
pub struct CommandError {
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
    hints: Vec<String>,
    code: u8,
}

impl CommandError {
    /// What was attempted and could not be done.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            source: None,
            hints: Vec::new(),
            code: 1,
        }
    }

    /// The command line asks for something that does not go together.
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            code: 2,
            ..Self::new(message)
        }
    }

    /// Adds why.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Adds what the user can do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Replaces the exit code.
    #[must_use]
    pub fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// The text as a user sees it, with or without colours.
    #[must_use]
    pub fn render(&self, colour: bool) -> String {
        let paint = |style: Style, word: &str| {
            if colour {
                format!("{}{word}{}", style.render(), style.render_reset())
            } else {
                word.to_owned()
            }
        };
        let error = paint(AnsiColor::Red.on_default().bold(), "error:");
        let mut text = format!("{error} {}\n", self.message);
        let mut said = self.message.clone();
        let mut cause: Option<&dyn Error> = self.source.as_deref().map(|e| e as &dyn Error);
        while let Some(e) = cause {
            let line = e.to_string();
            // Some libraries repeat their source in their own text.
            if !said.ends_with(&line) {
                text.push_str(&format!("  because: {}\n", indent(&line, "           ")));
                said = line;
            }
            cause = e.source();
        }
        let hint = paint(AnsiColor::Cyan.on_default().bold(), "hint:");
        for h in &self.hints {
            text.push_str(&format!("{hint} {}\n", indent(h, "      ")));
        }
        text
    }

    /// Prints the error on standard error and gives the exit code.
    pub fn report(&self) -> ExitCode {
        let stderr = anstream::stderr();
        if stderr
            .lock()
            .write_all(self.render(true).as_bytes())
            .is_err()
        {
            // Standard error is closed: the exit code is all that is left to say it with.
            return ExitCode::from(self.code);
        }
        ExitCode::from(self.code)
    }
}

/// Continuation lines start below the first.
fn indent(text: &str, by: &str) -> String {
    text.trim_end().replace('\n', &format!("\n{by}"))
}

/// Turns a failure to write to standard output into an end: quietly when the reader has gone (`| head`).
pub(super) fn written(result: io::Result<()>) -> Result<Exit, CommandError> {
    match result {
        Ok(()) => Ok(Exit::Done),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Done),
        Err(e) => Err(CommandError::new("cannot write to standard output").because(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot read /x/y")]
    struct Outer(#[source] io::Error);

    #[test]
    fn renders_the_chain_once_with_hints() {
        let inner = io::Error::from_raw_os_error(libc::ENOENT);
        let error = CommandError::new("cannot load x.tar")
            .because(Outer(inner))
            .hint("give it a file\nthat exists");
        assert_eq!(
            error.render(false),
            "error: cannot load x.tar\n  because: cannot read /x/y\n  because: No such file or directory (os error 2)\n\
             hint: give it a file\n      that exists\n"
        );
    }

    #[test]
    fn does_not_repeat_a_cause_that_its_parent_quotes() {
        let error = CommandError::new("cannot connect: refused").because("refused");
        assert_eq!(error.render(false), "error: cannot connect: refused\n");
    }
}
