//! A container's standard streams: FIFOs in the pod directory, which outlive a supervisor, or a terminal.
//!
//! ```text
//! container ── <container>.out, .err (opened for reading and writing there: no SIGPIPE) ──► supervisor ──► log
//! container ◄─ <container>.in ── attach
//! ```
//!
//! A terminal's controlling side is held by a [`keeper`](super::keeper) too, so that it outlives a supervisor.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::epoll::EpollFlags;
use rustix::fs::{CWD, FileType, Mode, OFlags};

use super::reactor::{Key, Reactor, Source};
use crate::container::Stdio;
use crate::pod::log::{LogWriter, Stream};

/// How much is read at once: as much as a pipe holds. Others get their turn in between.
const CHUNK_BYTES: usize = 64 * 1024;
/// How much is still read after the container's end, when nobody can write any more: two full pipes, and a margin.
const DRAIN_CHUNKS: usize = 8;

/// The supervisor's side.
#[derive(Debug, Default)]
pub(super) struct Output {
    streams: Vec<(Stream, OwnedFd, Option<Key>)>,
    is_terminal: bool,
    /// The writing end of standard input, held until somebody attaches.
    stdin: Option<OwnedFd>,
    stdin_path: Option<PathBuf>,
}

fn fifo(dir: &Path, container: &str, what: &str) -> PathBuf {
    dir.join(format!("{container}.{what}"))
}

fn make_fifo(path: &Path) -> io::Result<()> {
    remove(path)?;
    rustix::fs::mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn open(path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(
        path,
        flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NOFOLLOW,
        Mode::empty(),
    )?)
}

/// Standard input of a process without one.
pub(super) fn null(flags: OFlags) -> io::Result<OwnedFd> {
    open(Path::new("/dev/null"), flags)
}

impl Output {
    /// New FIFOs for a run: both sides.
    pub(super) fn make(
        dir: &Path,
        container: &str,
        stdin: bool,
        stdin_once: bool,
    ) -> io::Result<(Self, Stdio)> {
        let mut output = Self::default();
        let mut theirs = Vec::new();
        for (what, stream) in [("out", Stream::Stdout), ("err", Stream::Stderr)] {
            let path = fifo(dir, container, what);
            make_fifo(&path)?;
            let ours = open(&path, OFlags::RDONLY | OFlags::NONBLOCK)?;
            output.streams.push((stream, ours, None));
            theirs.push(open(&path, OFlags::RDWR)?);
        }
        let stdin = if stdin {
            let path = fifo(dir, container, "in");
            make_fifo(&path)?;
            // While the container itself could write, it never sees an end: so it is without stdinOnce.
            let both = open(&path, OFlags::RDWR)?;
            output.stdin_path = Some(path.clone());
            if stdin_once {
                let theirs = open(&path, OFlags::RDONLY)?;
                output.stdin = Some(open(&path, OFlags::WRONLY)?);
                theirs
            } else {
                both
            }
        } else {
            null(OFlags::RDONLY)?
        };
        let (Some(stderr), Some(stdout)) = (theirs.pop(), theirs.pop()) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let stdio = Stdio::Fds {
            stdin,
            stdout,
            stderr,
        };
        Ok((output, stdio))
    }

    /// The FIFOs of a run that an earlier supervisor started.
    pub(super) fn find(
        dir: &Path,
        container: &str,
        stdin: bool,
        stdin_once: bool,
    ) -> io::Result<Self> {
        let mut output = Self::default();
        for (what, stream) in [("out", Stream::Stdout), ("err", Stream::Stderr)] {
            let path = fifo(dir, container, what);
            let ours = open(&path, OFlags::RDONLY | OFlags::NONBLOCK)?;
            output.streams.push((stream, ours, None));
        }
        if stdin && !stdin_once {
            output.stdin_path = Some(fifo(dir, container, "in"));
        }
        Ok(output)
    }

    /// A terminal's controlling side.
    pub(super) fn terminal(control: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&control, true)?;
        Ok(Self {
            streams: vec![(Stream::Stdout, control, None)],
            is_terminal: true,
            ..Self::default()
        })
    }

    pub(super) fn listen(&mut self, container: &str, reactor: &mut Reactor) -> io::Result<()> {
        for (stream, fd, key) in &mut self.streams {
            let source = Source::Output(container.to_owned(), *stream);
            *key = Some(reactor.add(&*fd, source, EpollFlags::EPOLLIN)?);
        }
        Ok(())
    }

    /// Moves what one stream has into the log, one chunk at most.
    pub(super) fn forward(
        &mut self,
        stream: Stream,
        log: &mut LogWriter,
        buffer: &mut Vec<u8>,
        reactor: &mut Reactor,
    ) {
        // An attached client has the same open file, and may have made it wait for both.
        if self.is_terminal
            && self
                .streams
                .iter()
                .any(|(_, fd, _)| rustix::io::ioctl_fionbio(fd, true).is_err())
        {
            return;
        }
        for (of, fd, key) in &mut self.streams {
            if *of == stream
                && !copy(fd.as_fd(), stream, log, buffer)
                && let Some(key) = key.take()
            {
                reactor.remove(&*fd, key);
            }
        }
    }

    /// The container has ended: takes what is left.
    pub(super) fn close(
        mut self,
        dir: &Path,
        container: &str,
        log: &mut LogWriter,
        buffer: &mut Vec<u8>,
        reactor: &mut Reactor,
    ) -> io::Result<()> {
        for (stream, fd, key) in &mut self.streams {
            for _ in 0..DRAIN_CHUNKS {
                if !copy(fd.as_fd(), *stream, log, buffer) || buffer.is_empty() {
                    break;
                }
            }
            if let Some(key) = key.take() {
                reactor.remove(&*fd, key);
            }
        }
        for what in ["out", "err", "in"] {
            remove(&fifo(dir, container, what))?;
        }
        Ok(())
    }

    /// What an attached client writes to: the terminal, or standard input.
    pub(super) fn attach(&mut self, tty: bool) -> io::Result<Option<OwnedFd>> {
        if tty {
            return match self.streams.first() {
                Some((_, control, _)) => control.try_clone().map(Some),
                None => Ok(None),
            };
        }
        if let Some(stdin) = self.stdin.take() {
            return Ok(Some(stdin));
        }
        match &self.stdin_path {
            // Not waiting for a reader: it may have closed its end.
            Some(path) => {
                let end = open(path, OFlags::WRONLY | OFlags::NONBLOCK)?;
                rustix::io::ioctl_fionbio(&end, false)?;
                Ok(Some(end))
            }
            None => Ok(None),
        }
    }
}

/// False when nothing will ever come again. Leaves what was read in `buffer`.
fn copy(fd: BorrowedFd<'_>, stream: Stream, log: &mut LogWriter, buffer: &mut Vec<u8>) -> bool {
    buffer.resize(CHUNK_BYTES, 0);
    let read = rustix::io::retry_on_intr(|| rustix::io::read(fd, &mut buffer[..]));
    buffer.truncate(*read.as_ref().unwrap_or(&0));
    match read {
        Ok(0) => false,
        Ok(_) => {
            log.write(stream, buffer, jiff::Timestamp::now());
            true
        }
        Err(rustix::io::Errno::AGAIN) => true,
        // EIO: nobody has the terminal open any more.
        Err(_) => false,
    }
}
