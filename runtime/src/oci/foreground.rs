//! Waiting for a process in the foreground: signals go to it, its terminal is connected to ours.

use std::os::fd::{AsFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags};

use super::console::{Raw, Relay, follow_size};
use super::error::{Error, Result};
use super::notify::Notify;
use crate::container::Running;
use crate::sys::pidfd::{self, Exit};

/// Signals that are meant for the container when they reach us.
const FORWARDED: [Signal; 8] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGCONT,
    Signal::SIGWINCH,
];

/// Signals caught from its making on, so that none is lost between the container's start and [`wait`].
#[derive(Debug)]
pub struct Signals {
    descriptor: SignalFd,
}

impl Signals {
    /// Blocks the signals and opens a descriptor for them.
    ///
    /// # Errors
    /// When there is no descriptor to spare.
    pub fn catch() -> Result<Self> {
        let set: SigSet = FORWARDED.into_iter().collect();
        let failed = |e: nix::Error| Error::Terminal {
            attempt: "catch signals",
            source: e.into(),
        };
        set.thread_block().map_err(failed)?;
        let descriptor = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(failed)?;
        Ok(Self { descriptor })
    }
}

/// Waits for a child's end and reaps it; passes on what it says to `notify`.
///
/// # Errors
/// When it cannot be waited for.
pub fn wait(running: Running, signals: &Signals, notify: Option<&Notify>) -> Result<Exit> {
    let Running {
        pid,
        pidfd,
        terminal,
    } = running;
    let failed = |source| Error::Process {
        attempt: "wait for",
        pid,
        source,
    };
    let raw = terminal.as_ref().map(|_| Raw::enter()).transpose()?;
    let mut relay = terminal.map(Relay::new);
    loop {
        let mut ready = poll(&pidfd, signals, relay.as_ref(), notify).map_err(failed)?;
        if let Some(notify) = notify
            && ready.pop().is_some_and(|flags| !flags.is_empty())
        {
            notify.pass_on(None);
        }
        if let (Some(relay), Some(ready)) = (&mut relay, ready.get(2..)) {
            relay.copy(ready);
        }
        if ready.get(1).is_some_and(|flags| !flags.is_empty()) {
            forward(&pidfd, signals, relay.as_ref());
        }
        if ready.first().is_some_and(|flags| !flags.is_empty())
            && let Some(exit) = pidfd::try_wait(pidfd.as_fd()).map_err(failed)?
        {
            if let Some(relay) = &mut relay {
                relay.drain();
            }
            drop(raw);
            return Ok(exit);
        }
    }
}

/// What is ready of the process, the signals, the relay's sources and readiness, in this order.
fn poll(
    pidfd: &OwnedFd,
    signals: &Signals,
    relay: Option<&Relay>,
    notify: Option<&Notify>,
) -> std::io::Result<Vec<PollFlags>> {
    let mut sources = vec![
        PollFd::new(pidfd, PollFlags::IN),
        PollFd::new(&signals.descriptor, PollFlags::IN),
    ];
    sources.extend(relay.iter().flat_map(|relay| relay.sources()));
    sources.extend(notify.map(|n| PollFd::from_borrowed_fd(n.socket(), PollFlags::IN)));
    rustix::io::retry_on_intr(|| rustix::event::poll(&mut sources, None))?;
    Ok(sources.iter().map(PollFd::revents).collect())
}

fn forward(pidfd: &OwnedFd, signals: &Signals, relay: Option<&Relay>) {
    while let Ok(Some(info)) = signals.descriptor.read_signal() {
        let signal = info.ssi_signo.cast_signed();
        if signal == Signal::SIGWINCH as i32
            && let Some(relay) = relay
        {
            follow_size(relay.terminal());
            continue;
        }
        if let Err(error) = pidfd::send_signal(pidfd.as_fd(), signal) {
            tracing::debug!(%error, signal, "the container did not get a signal");
        }
    }
}
