//! Probes and hooks under way.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::sys::epoll::EpollFlags;
use rustix::fs::OFlags;
use rustix::pipe::{PipeFlags, pipe_with};

use super::container::Run;
use super::output;
use super::process;
use super::reactor::{Key, Reactor, Source};
use super::sandbox::Sandbox;
use crate::chain;
use crate::container::Stdio;
use crate::pod::lifecycle::{ExitStatus, HookKind, Input, ProbeKind, Process};
use crate::pod::plan::Handler;
use crate::pod::probe::socket::{Outcome, Progress, SocketTry};
use crate::sys::pidfd;

/// As much of a command's output as is kept for the message, in bytes; the kubelet's limit too.
const OUTPUT_MAX_BYTES: usize = 10 * 1024;

/// What it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Probe(ProbeKind),
    Hook(HookKind),
}

/// One try of a probe, or one hook.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) container: String,
    /// The run's id.
    pub(super) id: String,
    pub(super) purpose: Purpose,
    pub(super) deadline_ms: Option<u64>,
    /// It has succeeded, in a way that deserves a word.
    pub(super) warning: Option<String>,
    work: Work,
}

#[derive(Debug)]
enum Work {
    Command {
        process: Process,
        handle: OwnedFd,
        key: Key,
        output: Option<(OwnedFd, Key)>,
        text: Vec<u8>,
    },
    Socket {
        attempt: Box<SocketTry>,
        key: Key,
    },
    /// Until the deadline; `rest_ms` is what is left to sleep after an earlier one.
    Sleep {
        until_ms: u64,
    },
}

/// Where it happens.
pub(super) struct Place<'a> {
    pub(super) dir: &'a Path,
    pub(super) container: &'a str,
    pub(super) run: &'a Run,
    pub(super) sandbox: &'a Sandbox,
}

impl Attempt {
    /// Begins; an error is the outcome already.
    pub(super) fn begin(
        number: u64,
        purpose: Purpose,
        handler: &Handler,
        timeout_ms: Option<u64>,
        now_ms: u64,
        place: &Place<'_>,
        reactor: &mut Reactor,
    ) -> Result<Self, String> {
        let work = match handler {
            Handler::Exec { command } => command_work(number, command, place, reactor)?,
            Handler::Http { .. } | Handler::Tcp { .. } | Handler::Grpc { .. } => {
                let address = place.sandbox.probe_address();
                let begin = || SocketTry::begin(handler, address);
                socket_work(number, begin, place.sandbox, reactor)?
            }
            Handler::Sleep { seconds } => Work::Sleep {
                until_ms: now_ms.saturating_add(seconds.saturating_mul(1_000)),
            },
        };
        Ok(Self {
            container: place.container.to_owned(),
            id: place.run.id.clone(),
            purpose,
            deadline_ms: timeout_ms.map(|ms| now_ms.saturating_add(ms)),
            warning: None,
            work,
        })
    }

    /// When it must be looked at although nothing happens.
    pub(super) fn wake_ms(&self) -> Option<u64> {
        match self.work {
            Work::Sleep { until_ms } => Some(
                self.deadline_ms
                    .map_or(until_ms, |deadline| deadline.min(until_ms)),
            ),
            Work::Command { .. } | Work::Socket { .. } => self.deadline_ms,
        }
    }

    /// The process of a command, which is waited for here.
    pub(super) fn pid(&self) -> Option<i32> {
        match &self.work {
            Work::Command { process, .. } => Some(process.pid),
            Work::Socket { .. } | Work::Sleep { .. } => None,
        }
    }

    /// Something happened to its process or socket, or time passed.
    pub(super) fn advance(
        &mut self,
        number: u64,
        now_ms: u64,
        sandbox: &Sandbox,
        reactor: &mut Reactor,
    ) -> Option<Outcome> {
        let outcome = match &mut self.work {
            Work::Command {
                process,
                handle,
                output,
                text,
                ..
            } => process::exit_status(handle.as_fd(), *process).map(|status| {
                if let Some((pipe, _)) = output {
                    while read_output(pipe, text).is_some_and(|n| n > 0) {}
                }
                judge(status, text)
            }),
            Work::Socket { .. } => self.advance_socket(number, sandbox, reactor),
            Work::Sleep { until_ms } => (now_ms >= *until_ms).then_some(Ok(())),
        };
        outcome.or_else(|| {
            let late = self.deadline_ms.is_some_and(|deadline| now_ms >= deadline);
            late.then(|| Err(self.too_late()))
        })
    }

    /// A try that is sent on goes on at once: its time limit is for all of it.
    fn advance_socket(
        &mut self,
        number: u64,
        sandbox: &Sandbox,
        reactor: &mut Reactor,
    ) -> Option<Outcome> {
        loop {
            let Work::Socket { attempt, key } = &mut self.work else {
                return None;
            };
            match attempt.advance()? {
                Progress::Over(outcome) => return Some(outcome),
                Progress::Warning(text) => {
                    self.warning = Some(text);
                    return Some(Ok(()));
                }
                Progress::Refused(status) => return Some(self.refused(status)),
                Progress::Redirected(to) => {
                    let next = socket_work(number, || attempt.follow(&to), sandbox, reactor);
                    reactor.remove(&**attempt, *key);
                    match next {
                        Ok(work) => self.work = work,
                        Err(message) => {
                            // Its socket is out of the event queue: nothing is left to be ended.
                            self.work = Work::Sleep { until_ms: 0 };
                            return Some(Err(message));
                        }
                    }
                }
            }
        }
    }

    /// A status that says no. A hook has done what it was for once the server has been told: the kubelet does not look
    /// at the status (`pkg/kubelet/lifecycle/handlers.go`, `runHTTPHandler`).
    fn refused(&mut self, status: u16) -> Outcome {
        match self.purpose {
            Purpose::Probe(_) => Err(format!("HTTP probe failed with statuscode: {status}")),
            Purpose::Hook(_) => {
                self.warning = Some(format!("the server answers with status {status}"));
                Ok(())
            }
        }
    }

    fn too_late(&self) -> String {
        match &self.work {
            Work::Command { .. } => "the command did not end in time".to_owned(),
            Work::Socket { attempt, .. } => {
                format!("no answer from {} in time", attempt.target())
            }
            Work::Sleep { .. } => "it was cut short".to_owned(),
        }
    }

    /// The command's output is read.
    pub(super) fn take_output(&mut self, reactor: &mut Reactor) {
        if let Work::Command { output, text, .. } = &mut self.work
            && let Some((pipe, key)) = output
            && read_output(pipe, text).is_none_or(|n| n == 0)
        {
            reactor.remove(&*pipe, *key);
            *output = None;
        }
    }

    /// Ends it: a command that still runs is killed.
    pub(super) fn end(self, reactor: &mut Reactor) {
        match self.work {
            Work::Command {
                handle,
                key,
                output,
                ..
            } => {
                reactor.remove(&handle, key);
                if let Some((pipe, key)) = output {
                    reactor.remove(&pipe, key);
                }
                // It is reaped with the orphans. That it has ended already is fine.
                pidfd::send_signal(handle.as_fd(), libc::SIGKILL).unwrap_or_default();
            }
            Work::Socket { attempt, key } => reactor.remove(&*attempt, key),
            Work::Sleep { .. } => {}
        }
    }

    /// The lifecycle's input for an outcome.
    pub(super) fn input(
        container: String,
        id: String,
        purpose: Purpose,
        outcome: Outcome,
    ) -> Input {
        match purpose {
            Purpose::Probe(kind) => Input::Probed {
                container,
                id,
                kind,
                outcome,
            },
            Purpose::Hook(hook) => Input::HookOver {
                container,
                id,
                hook,
                outcome,
            },
        }
    }
}

/// A socket made in the network that probes are tried from.
fn socket_work(
    number: u64,
    open: impl FnOnce() -> Result<SocketTry, String>,
    sandbox: &Sandbox,
    reactor: &mut Reactor,
) -> Result<Work, String> {
    let attempt = sandbox.in_probe_network(open).map_err(|e| chain(&e))??;
    let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
    let key = reactor
        .add(&attempt, Source::Attempt(number), interest)
        .map_err(|e| e.to_string())?;
    Ok(Work::Socket {
        attempt: Box::new(attempt),
        key,
    })
}

fn command_work(
    number: u64,
    command: &[String],
    place: &Place<'_>,
    reactor: &mut Reactor,
) -> Result<Work, String> {
    let text = |e: io::Error| e.to_string();
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| text(e.into()))?;
    rustix::io::ioctl_fionbio(&ours, true).map_err(|e| text(e.into()))?;
    let stdio = Stdio::Fds {
        stdin: output::null(OFlags::RDONLY).map_err(text)?,
        stdout: theirs.try_clone().map_err(text)?,
        stderr: theirs,
    };
    let running = place
        .run
        .exec(place.dir, place.container, command, stdio)
        .map_err(|e| chain(&e))?;
    let process = process::look(running.pid).map_err(text)?;
    let key = reactor
        .add(&running.pidfd, Source::Attempt(number), EpollFlags::EPOLLIN)
        .map_err(text)?;
    let output_key = reactor
        .add(&ours, Source::AttemptOutput(number), EpollFlags::EPOLLIN)
        .map_err(text)?;
    Ok(Work::Command {
        process,
        handle: running.pidfd,
        key,
        output: Some((ours, output_key)),
        text: Vec::new(),
    })
}

/// How much came; none when there is nothing now. What is beyond the limit is dropped.
fn read_output(pipe: &OwnedFd, text: &mut Vec<u8>) -> Option<usize> {
    let mut chunk = [0; 4096];
    let n = rustix::io::retry_on_intr(|| rustix::io::read(pipe, &mut chunk[..])).ok()?;
    let room = OUTPUT_MAX_BYTES.saturating_sub(text.len());
    text.extend_from_slice(&chunk[..n.min(room)]);
    Some(n)
}

fn judge(status: ExitStatus, text: &[u8]) -> Outcome {
    let how = match status {
        ExitStatus::Code(0) => return Ok(()),
        ExitStatus::Code(code) => format!("the command exited with {code}"),
        ExitStatus::Signal(signal) => format!("signal {signal} ended the command"),
        ExitStatus::Unknown => "the command ended in an unknown way".to_owned(),
    };
    let text = String::from_utf8_lossy(text);
    let text = text.trim();
    Err(if text.is_empty() {
        how
    } else {
        format!("{how}: {text}")
    })
}
