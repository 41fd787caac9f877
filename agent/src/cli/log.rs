//! Where the node's own messages go: to the journal under systemd, to standard error otherwise, and to the live table
//! of `podling run`.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use super::CommandError;

/// `$RUST_LOG` wins, as in any Rust program.
fn filter(text: &str) -> Result<EnvFilter, CommandError> {
    let text = std::env::var("RUST_LOG").unwrap_or_else(|_| text.to_owned());
    EnvFilter::try_new(&text).map_err(|e| {
        CommandError::usage(format!("`{text}` is not a log filter"))
            .because(e)
            .hint("give a level (error, warn, info, debug, trace), or for example info,podling_agent::node=debug")
    })
}

fn init(
    layer: impl Layer<Registry> + Send + Sync + 'static,
    text: &str,
) -> Result<(), CommandError> {
    tracing_subscriber::registry()
        .with(layer.with_filter(filter(text)?))
        .try_init()
        .map_err(|e| CommandError::new("cannot start logging").because(e))
}

/// To the journal when systemd connected standard error to it, with all fields; else to standard error.
pub(super) fn to_journal_or_stderr(text: &str) -> Result<(), CommandError> {
    if std::env::var_os("JOURNAL_STREAM").is_some()
        && let Ok(journal) = tracing_journald::layer()
    {
        return init(journal, text);
    }
    to_stderr(text)
}

/// To standard error, coloured on a terminal.
pub(super) fn to_stderr(text: &str) -> Result<(), CommandError> {
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal());
    init(layer, text)
}

/// To the last lines that the live table shows.
pub(super) fn to_tail(text: &str, tail: &Tail) -> Result<(), CommandError> {
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(tail.clone())
        .with_target(false)
        .without_time()
        .with_ansi(false);
    init(layer, text)
}

/// The last lines of all that is said. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub(super) struct Tail {
    lines: Arc<Mutex<VecDeque<String>>>,
}

/// As many as a tall terminal shows.
const TAIL_LINES: usize = 200;

impl Tail {
    pub(super) fn push(&self, line: &str) {
        // Whoever panicked while pushing left whole lines.
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == TAIL_LINES {
            lines.pop_front();
        }
        lines.push_back(line.trim_end().to_owned());
    }

    /// The last `count` lines.
    pub(super) fn last(&self, count: usize) -> Vec<String> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines
            .iter()
            .skip(lines.len().saturating_sub(count))
            .cloned()
            .collect()
    }
}

impl Write for Tail {
    /// Called once for each message.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for line in String::from_utf8_lossy(bytes).lines() {
            self.push(line);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Tail {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_is_bounded() {
        let tail = Tail::default();
        for n in 0..TAIL_LINES + 5 {
            tail.push(&n.to_string());
        }
        assert_eq!(tail.last(2), ["203", "204"]);
        assert_eq!(tail.last(usize::MAX).len(), TAIL_LINES);
    }
}
