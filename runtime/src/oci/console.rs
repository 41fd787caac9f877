//! Terminals of containers: handed to whoever listens at `--console-socket`, or connected to this process's own.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags};
use rustix::termios::{OptionalActions, Termios};

use super::descriptor_socket;
use super::error::{Error, Result};
use crate::container::TerminalSize;

/// Bytes copied at a time.
const COPY_BYTES: usize = 16 * 1024;

/// Sends a terminal's controlling side to a stream socket, as runc does: the receiver gets one descriptor, and the
/// terminal's name as the bytes.
///
/// # Errors
/// When nobody listens.
pub fn send(socket: &Path, terminal: BorrowedFd<'_>) -> Result<()> {
    descriptor_socket::send(socket, b"/dev/ptmx", terminal).map_err(|source| Error::Terminal {
        attempt: "send the terminal to the console socket",
        source,
    })
}

/// This process's terminal in raw mode, until it is dropped.
#[derive(Debug)]
pub struct Raw {
    before: Option<Termios>,
}

impl Raw {
    /// Puts standard input into raw mode if it is a terminal.
    ///
    /// # Errors
    /// When the terminal refuses.
    pub fn enter() -> Result<Self> {
        let stdin = rustix::stdio::stdin();
        if !rustix::termios::isatty(stdin) {
            return Ok(Self { before: None });
        }
        let failed = |e: rustix::io::Errno| Error::Terminal {
            attempt: "put the terminal into raw mode",
            source: e.into(),
        };
        let before = rustix::termios::tcgetattr(stdin).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(stdin, OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Self {
            before: Some(before),
        })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) =
                rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before)
        {
            tracing::warn!(%error, "cannot restore the terminal");
        }
    }
}

/// The size of this process's terminal, if it has one.
pub fn own_size() -> Option<TerminalSize> {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdin()).ok()?;
    Some(TerminalSize {
        columns: size.ws_col,
        rows: size.ws_row,
    })
}

/// Gives the container's terminal the size of this process's.
pub fn follow_size(terminal: &OwnedFd) {
    let stdin = rustix::stdio::stdin();
    let copied = rustix::termios::tcgetwinsize(stdin)
        .and_then(|size| rustix::termios::tcsetwinsize(terminal, size));
    if let Err(error) = copied {
        tracing::debug!(%error, "the terminal's size stays as it is");
    }
}

/// Copies between this process's standard streams and a container's terminal.
#[derive(Debug)]
pub struct Relay {
    terminal: OwnedFd,
    stdin_open: bool,
    output_open: bool,
}

impl Relay {
    /// Takes over the terminal's controlling side.
    pub fn new(terminal: OwnedFd) -> Self {
        Self {
            terminal,
            stdin_open: true,
            output_open: true,
        }
    }

    /// The terminal's controlling side.
    pub fn terminal(&self) -> &OwnedFd {
        &self.terminal
    }

    /// What to poll for: the terminal's output and standard input, while they are open.
    pub fn sources(&self) -> Vec<PollFd<'_>> {
        let mut sources = Vec::new();
        if self.output_open {
            sources.push(PollFd::new(&self.terminal, PollFlags::IN));
        }
        if self.stdin_open {
            sources.push(PollFd::from_borrowed_fd(
                rustix::stdio::stdin(),
                PollFlags::IN,
            ));
        }
        sources
    }

    /// Copies what is there; `ready` are the flags of [`Relay::sources`], in its order.
    pub fn copy(&mut self, ready: &[PollFlags]) {
        let mut ready = ready.iter();
        if self.output_open && ready.next().is_some_and(|f| !f.is_empty()) {
            // EIO: nobody has the terminal open any more.
            self.output_open = matches!(
                pump(self.terminal.as_fd(), rustix::stdio::stdout()),
                Ok(1..)
            );
        }
        if self.stdin_open && ready.next().is_some_and(|f| !f.is_empty()) {
            match pump(rustix::stdio::stdin(), self.terminal.as_fd()) {
                Ok(1..) => {}
                // End of file is typed as ^D, which a terminal takes for it.
                Ok(_) => {
                    self.stdin_open = false;
                    if rustix::io::write(&self.terminal, &[4]).is_err() {
                        tracing::debug!("the terminal is closed already");
                    }
                }
                Err(_) => self.stdin_open = false,
            }
        }
    }

    /// Copies what the terminal still holds once the process has ended.
    pub fn drain(&mut self) {
        while self.output_open {
            let mut source = [PollFd::new(&self.terminal, PollFlags::IN)];
            let ready = rustix::event::poll(&mut source, Some(&rustix::event::Timespec::default()));
            if !matches!(ready, Ok(1..)) {
                return;
            }
            self.output_open = matches!(
                pump(self.terminal.as_fd(), rustix::stdio::stdout()),
                Ok(1..)
            );
        }
    }
}

fn pump(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<usize> {
    let mut buffer = [0; COPY_BYTES];
    let count = rustix::io::retry_on_intr(|| rustix::io::read(from, &mut buffer))?;
    let mut rest = &buffer[..count];
    while !rest.is_empty() {
        let written = rustix::io::retry_on_intr(|| rustix::io::write(to, rest))?;
        rest = &rest[written..];
    }
    Ok(count)
}
