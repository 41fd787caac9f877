//! One epoll descriptor and what each event belongs to. Keys are never given twice, so that an event for something
//! that was closed in the same round finds nothing.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::pod::log::Stream;

/// Whose descriptor it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    Listener,
    Signals,
    Container(String),
    Output(String, Stream),
    Connection(u64),
    /// The process or socket of a try or hook.
    Attempt(u64),
    AttemptOutput(u64),
    Exec(u64),
}

/// Names a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key(u64);

#[derive(Debug)]
pub(super) struct Reactor {
    epoll: Epoll,
    sources: BTreeMap<Key, Source>,
    next: u64,
}

/// Events of one round.
const ROUND: usize = 64;

impl Reactor {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            sources: BTreeMap::new(),
            next: 0,
        })
    }

    /// A number that was never given before, for a key in one of the supervisor's tables.
    pub(super) fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(super) fn add(
        &mut self,
        fd: impl AsFd,
        source: Source,
        interest: EpollFlags,
    ) -> io::Result<Key> {
        let key = Key(self.fresh());
        self.epoll.add(fd, EpollEvent::new(interest, key.0))?;
        self.sources.insert(key, source);
        Ok(key)
    }

    pub(super) fn change(&self, fd: impl AsFd, key: Key, interest: EpollFlags) -> io::Result<()> {
        self.epoll
            .modify(fd, &mut EpollEvent::new(interest, key.0))?;
        Ok(())
    }

    /// Must come before the descriptor is closed: a copy of it in a child would keep it registered.
    pub(super) fn remove(&mut self, fd: impl AsFd, key: Key) {
        if self.sources.remove(&key).is_some()
            && let Err(e) = self.epoll.delete(fd)
        {
            super::journal::say(format_args!("cannot leave an event source: {e}"));
        }
    }

    /// Waits until something happens, at most `timeout_ms`.
    pub(super) fn wait(&self, timeout_ms: Option<u64>) -> io::Result<Vec<Key>> {
        let timeout = match timeout_ms {
            None => EpollTimeout::NONE,
            Some(ms) => i32::try_from(ms)
                .ok()
                .and_then(|ms| EpollTimeout::try_from(ms).ok())
                .unwrap_or(EpollTimeout::MAX),
        };
        let mut events = [EpollEvent::empty(); ROUND];
        match self.epoll.wait(&mut events, timeout) {
            Ok(n) => Ok(events[..n].iter().map(|e| Key(e.data())).collect()),
            Err(nix::errno::Errno::EINTR) => Ok(Vec::new()),
            Err(e) => Err(e.into()),
        }
    }

    pub(super) fn source(&self, key: Key) -> Option<Source> {
        self.sources.get(&key).cloned()
    }
}
