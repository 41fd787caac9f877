//! How pulls and pushes are shown: a bar for each part on a terminal, else a line for each; on standard error.

use std::collections::HashMap;
use std::future::Future;
use std::io::IsTerminal;
use std::sync::{Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use podling_images::{Digest, Retry};
use tokio::signal::unix::{SignalKind, signal};

use super::super::{CommandError, Exit};

/// As shells report a program that a signal ended: 128 and its number.
const INTERRUPTED: u8 = 130;
const TERMINATED: u8 = 143;

/// Something that happened to an image on its way.
pub(super) enum Step {
    /// It is known what is to be moved: each part with its size, and whether it is there already.
    Begins {
        line: String,
        parts: Vec<(Digest, u64, bool)>,
    },
    /// A part is on its way.
    Moves {
        part: Digest,
        bytes: u64,
        total_bytes: u64,
    },
    /// Nothing comes for now, and it is tried again.
    Waits { line: String },
    /// Something else is done with a part.
    Note { part: Digest, note: &'static str },
    /// A part has arrived.
    Done {
        part: Digest,
        note: &'static str,
        line: String,
    },
}

/// How much is shown of all images of a command.
pub(super) enum Shown {
    Not,
    Lines,
    Bars(MultiProgress),
}

impl Shown {
    pub(super) fn new(quiet: bool) -> Self {
        match quiet {
            true => Self::Not,
            false if std::io::stderr().is_terminal() => Self::Bars(MultiProgress::new()),
            false => Self::Lines,
        }
    }

    /// What shows one image.
    pub(super) fn listener(&self) -> Listener {
        match self {
            Self::Not => Listener::Not,
            Self::Lines => Listener::Lines,
            Self::Bars(all) => Listener::Bars(Bars {
                all: all.clone(),
                parts: Mutex::default(),
            }),
        }
    }

    /// Prints something above the bars.
    pub(super) fn above(&self, print: impl FnOnce()) {
        match self {
            Self::Bars(all) => all.suspend(print),
            Self::Not | Self::Lines => print(),
        }
    }

    pub(super) fn end(&self) {
        if let Self::Bars(all) = self {
            // A terminal that cannot be cleared keeps the bars: no harm.
            drop(all.clear());
        }
    }
}

/// Shows one image.
pub(super) enum Listener {
    Not,
    Lines,
    Bars(Bars),
}

impl Listener {
    pub(super) fn show(&self, step: Step) {
        match (self, step) {
            (Self::Not, _) => {}
            (
                Self::Lines,
                Step::Begins { line, .. } | Step::Done { line, .. } | Step::Waits { line },
            ) => eprintln!("{line}"),
            (Self::Lines, Step::Moves { .. } | Step::Note { .. }) => {}
            (Self::Bars(bars), step) => bars.show(step),
        }
    }
}

/// One bar for each part of an image.
pub(super) struct Bars {
    all: MultiProgress,
    parts: Mutex<HashMap<Digest, ProgressBar>>,
}

impl Bars {
    fn show(&self, step: Step) {
        // A thread that panicked while it held the lock leaves bars that are right enough.
        let mut bars = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        match step {
            Step::Begins { parts, .. } => {
                for (digest, bytes, is_there) in parts {
                    let bar = self.all.add(ProgressBar::new(bytes));
                    bar.set_style(style());
                    bar.set_prefix(short(&digest));
                    if is_there {
                        bar.set_position(bytes);
                        bar.finish_with_message("already here");
                    }
                    bars.insert(digest, bar);
                }
            }
            Step::Moves {
                part,
                bytes,
                total_bytes,
            } => {
                if let Some(bar) = bars.get(&part) {
                    bar.set_length(total_bytes);
                    bar.set_position(bytes);
                }
            }
            // A terminal that cannot be written to shows nothing: no harm.
            Step::Waits { line } => drop(self.all.println(line)),
            Step::Note { part, note } => {
                if let Some(bar) = bars.get(&part) {
                    bar.set_message(note);
                }
            }
            Step::Done { part, note, .. } => {
                if let Some(bar) = bars.get(&part) {
                    bar.finish_with_message(note);
                }
            }
        }
    }
}

/// Shows that it is tried again; `doing` is what failed, such as `pulling nginx`.
pub(super) fn waits(doing: &str, retry: &Retry) -> Step {
    let line = format!(
        "{doing}: {}; try {} of {} in {:.1} s",
        retry.reason,
        retry.attempt,
        retry.attempts,
        retry.wait.as_secs_f64()
    );
    Step::Waits { line }
}

fn style() -> ProgressStyle {
    let template = "{prefix} [{bar:30}] {bytes:>10}/{total_bytes:<10} {msg}";
    ProgressStyle::with_template(template)
        .map(|style| style.progress_chars("=> "))
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

pub(super) fn short(digest: &Digest) -> String {
    digest.hex().chars().take(12).collect()
}

/// What the future gives; the error says that `what` did not come to its end if ctrl-C or SIGTERM comes first.
pub(super) async fn unless_interrupted<T>(
    what: &str,
    future: impl Future<Output = T>,
) -> Result<T, CommandError> {
    let listen =
        |kind| signal(kind).map_err(|e| CommandError::new("cannot listen to signals").because(e));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    // The future is not gone on with; both signals are cancel-safe.
    let code = tokio::select! {
        result = future => return Ok(result),
        _ = interrupt.recv() => INTERRUPTED,
        _ = terminate.recv() => TERMINATED,
    };
    Err(CommandError::new(format!("the {what} was interrupted")).code(code))
}

pub(super) fn tell_apart<T>(results: Vec<Result<T, CommandError>>) -> (Vec<T>, Vec<CommandError>) {
    let (mut done, mut errors) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(one) => done.push(one),
            Err(error) => errors.push(error),
        }
    }
    (done, errors)
}

/// Reports all errors, the last by returning it.
pub(super) fn last_of(mut errors: Vec<CommandError>) -> Result<Exit, CommandError> {
    let Some(last) = errors.pop() else {
        return Ok(Exit::Done);
    };
    for error in errors {
        error.report();
    }
    Err(last)
}
