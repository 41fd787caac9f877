//! criu, which saves processes to files and makes them again: one `criu swrk` for one request, over a socket.
//!
//! ```text
//! request (DUMP, RESTORE) ──► criu swrk FD
//!      NOTIFY script, pid ◄── … ──► NOTIFY, success
//!                 answer  ◄──
//! ```
//!
//! Source: criu's `images/rpc.proto` and criu.org/RPC. criu is another program: it is asked for only by `checkpoint` and
//! `restore`, and where it is not installed these say so.

use std::ffi::OsStr;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::io::FdFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags,
    SocketType,
};

mod message;
mod options;

pub(super) use message::Message;
use message::{Value, fields};
pub(super) use options::{Common, Images, Opts, external_namespaces, text};

/// Longer than any message of criu's.
const MESSAGE_MAX_BYTES: usize = 40 * 1024;

/// How many lines of criu's log are told when it fails.
const LOG_LINES: usize = 5;

/// `criu_req_type`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Save processes and end them.
    Dump = 1,
    /// Make them again.
    Restore = 2,
    /// Save memory, and let them go on.
    PreDump = 4,
    /// Something happens while a request is done.
    Notify = 6,
}

/// Why criu did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not installed.
    #[error("{} is not installed; checkpoint and restore need criu (https://criu.org)", program.display())]
    Missing {
        /// What was looked for.
        program: PathBuf,
    },
    /// It could not be started.
    #[error("cannot start {}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket to it failed, or it ended without an answer.
    #[error("cannot speak with criu")]
    Speak(#[source] io::Error),
    /// It said something that is not understood.
    #[error("criu's answer is not understood")]
    Answer,
    /// It could not do it.
    #[error("criu failed (errno {errno}){}; see {}", said(log), path.display())]
    Failed {
        /// Its errno.
        errno: u64,
        /// The last errors of its log.
        log: Vec<String>,
        /// Its log.
        path: PathBuf,
    },
}

fn said(log: &[String]) -> String {
    if log.is_empty() {
        return String::new();
    }
    format!(": {}", log.join("; "))
}

type Result<T> = std::result::Result<T, Error>;

/// Something that criu says while it works.
#[derive(Debug)]
pub(super) struct Notice {
    /// As `setup-namespaces`, `post-dump`, `orphan-pts-master`.
    pub(super) script: String,
    /// The process that it is about, in our pid namespace.
    pub(super) pid: Option<i32>,
    /// The terminal's controlling side, with `orphan-pts-master`.
    pub(super) terminal: Option<OwnedFd>,
}

/// criu, started for one request.
#[derive(Debug)]
pub(super) struct Session {
    child: Child,
    socket: OwnedFd,
    /// criu opens directories by way of this process's descriptors, and inherits others.
    _descriptors: Vec<OwnedFd>,
}

impl Session {
    /// Starts it. It inherits the descriptors under the numbers that they have here; they stay open for it.
    ///
    /// # Errors
    /// [`Error::Missing`] when there is none.
    pub(super) fn start(program: &Path, descriptors: Vec<OwnedFd>) -> Result<Self> {
        let (socket, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|error| Error::Speak(error.into()))?;
        for fd in descriptors.iter().chain([&theirs]) {
            // This process has one thread: nothing else is started meanwhile.
            rustix::io::fcntl_setfd(fd, FdFlags::empty())
                .map_err(|error| Error::Speak(error.into()))?;
        }
        let number = theirs.as_raw_fd().to_string();
        let started = Command::new(program)
            .args([OsStr::new("swrk"), OsStr::new(&number)])
            .stdin(Stdio::inherit())
            .spawn();
        let child = started.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => Error::Missing {
                program: program.to_owned(),
            },
            _ => Error::Start {
                program: program.to_owned(),
                source,
            },
        })?;
        Ok(Self {
            child,
            socket,
            _descriptors: descriptors,
        })
    }

    /// Its pid.
    pub(super) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Sends the request, lets `notice` hear what happens, and gives the restored process's pid, if any. `log` is where
    /// criu writes its log.
    ///
    /// # Errors
    /// When criu fails or cannot be understood, and those of `notice`: criu undoes what it did then.
    pub(super) fn request<E: From<Error>>(
        mut self,
        kind: Kind,
        options: &Message,
        log: &Path,
        mut notice: impl FnMut(Notice) -> std::result::Result<(), E>,
    ) -> std::result::Result<Option<i32>, E> {
        let mut request = Message::default();
        request.number(1, kind as u64).message(2, options);
        self.send(&request)?;
        let answer = loop {
            let (answer, descriptor) = self.receive()?;
            if !answer.success {
                let failed = failure(answer.errno, log);
                self.end();
                return Err(failed.into());
            }
            if answer.kind != Kind::Notify as u64 {
                break answer;
            }
            let told = notice(Notice {
                script: answer.script,
                pid: answer.pid,
                terminal: descriptor,
            });
            let mut heard = Message::default();
            heard.number(1, Kind::Notify as u64);
            heard.number(3, u64::from(told.is_ok()));
            self.send(&heard)?;
            told?;
        };
        if answer.kind != kind as u64 {
            return Err(Error::Answer.into());
        }
        self.end();
        Ok(answer.pid)
    }

    /// Waits for its end. Before a final dump it would wait for more: it is told that there is none.
    fn end(&mut self) {
        let closed = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        if closed.is_err() {
            tracing::debug!("criu has closed the socket already");
        }
        if let Err(error) = self.child.wait() {
            tracing::debug!(%error, "criu was waited for already");
        }
    }

    fn send(&self, message: &Message) -> Result<()> {
        rustix::net::send(&self.socket, message.as_bytes(), SendFlags::NOSIGNAL)
            .map(drop)
            .map_err(|error| Error::Speak(error.into()))
    }

    fn receive(&self) -> Result<(Answer, Option<OwnedFd>)> {
        let mut bytes = vec![0; MESSAGE_MAX_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(
                &self.socket,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            )
        })
        .map_err(|error| Error::Speak(error.into()))?;
        if received.bytes == 0 {
            return Err(Error::Speak(io::ErrorKind::UnexpectedEof.into()));
        }
        let descriptor = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let answer = bytes
            .get(..received.bytes)
            .and_then(Answer::parse)
            .ok_or(Error::Answer)?;
        Ok((answer, descriptor))
    }
}

/// `criu_resp`
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    kind: u64,
    success: bool,
    errno: u64,
    script: String,
    pid: Option<i32>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let pid = |value: Value<'_>| i32::try_from(value.number()).ok();
        let mut answer = Self::default();
        for (field, value) in fields(bytes)? {
            match field {
                1 => answer.kind = value.number(),
                2 => answer.success = value.number() == 1,
                // criu_restore_resp
                4 => {
                    let inner = fields(value.bytes())?;
                    answer.pid = inner
                        .iter()
                        .find(|(field, _)| *field == 1)
                        .and_then(|it| pid(it.1));
                }
                // criu_notify
                5 => {
                    for (field, value) in fields(value.bytes())? {
                        match field {
                            1 => {
                                answer.script = String::from_utf8_lossy(value.bytes()).into_owned();
                            }
                            2 => answer.pid = pid(value),
                            _ => {}
                        }
                    }
                }
                7 => answer.errno = value.number(),
                _ => {}
            }
        }
        Some(answer)
    }
}

fn failure(errno: u64, log: &Path) -> Error {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let errors: Vec<String> = text
        .lines()
        .filter(|line| line.contains("Error"))
        .map(|line| line.trim().to_owned())
        .collect();
    Error::Failed {
        errno,
        log: errors[errors.len().saturating_sub(LOG_LINES)..].to_vec(),
        path: log.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_understood() {
        let mut notice = Message::default();
        notice.text(1, "setup-namespaces").number(2, 77);
        let mut message = Message::default();
        message.number(1, 6).flag(2, true).message(5, &notice);
        let answer = Answer::parse(message.as_bytes()).expect("understood");
        assert_eq!(answer.script, "setup-namespaces");
        assert_eq!((answer.kind, answer.pid), (6, Some(77)));

        let mut message = Message::default();
        message.number(1, 1).number(2, 0).number(7, 13);
        let answer = Answer::parse(message.as_bytes()).expect("understood");
        assert!(!answer.success);
        assert_eq!(answer.errno, 13);
        assert_eq!(Answer::parse(&[0xff]), None);
    }

    #[test]
    fn a_missing_criu_is_named() {
        let error = Session::start(Path::new("/no/such/criu"), Vec::new()).expect_err("missing");
        assert!(error.to_string().contains("/no/such/criu is not installed"));
    }
}
