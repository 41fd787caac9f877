//! One client of the supervisor's socket. A client that does not read is dropped when its queue is full; snapshots
//! do not queue, the newest one counts.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::sys::epoll::EpollFlags;
use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, listen,
    socket_with,
};

use super::reactor::{Key, Reactor, Source};
use crate::pod::packet::{self, PacketError};
use crate::pod::protocol::{Reply, Request, SOCKET_FILE};
use crate::pod::snapshot::{ContainerState, Snapshot};

/// Replies that wait for a client to read.
const QUEUE_MAX: usize = 64;
const BACKLOG: i32 = 64;

/// A client.
#[derive(Debug)]
pub(super) struct Connection {
    socket: OwnedFd,
    key: Key,
    subscribed: bool,
    snapshot_due: bool,
    queue: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    waits_to_send: bool,
}

/// The socket at which the supervisor is asked.
pub(super) fn listener(dir: &Path) -> io::Result<OwnedFd> {
    let dir = rustix::fs::open(
        dir,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // Through the descriptor the path is short enough for a socket's address.
    let path = format!("/proc/self/fd/{}/{SOCKET_FILE}", dir.as_raw_fd());
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    let mask = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = bind(&socket, &SocketAddrUnix::new(path)?);
    rustix::process::umask(mask);
    bound?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

impl Connection {
    pub(super) fn new(socket: OwnedFd, number: u64, reactor: &mut Reactor) -> io::Result<Self> {
        let key = reactor.add(&socket, Source::Connection(number), EpollFlags::EPOLLIN)?;
        Ok(Self {
            socket,
            key,
            subscribed: false,
            snapshot_due: false,
            queue: VecDeque::new(),
            waits_to_send: false,
        })
    }

    /// The next request; none when there is none now.
    pub(super) fn receive(&self, buffer: &mut Vec<u8>) -> Result<Option<Request>, PacketError> {
        let received = packet::receive(&self.socket, buffer, RecvFlags::DONTWAIT)?;
        Ok(received.map(|(request, _)| request))
    }

    pub(super) fn subscribe(&mut self) {
        self.subscribed = true;
        self.snapshot_due = true;
    }

    /// The snapshot has changed.
    pub(super) fn notice_change(&mut self) {
        self.snapshot_due |= self.subscribed;
    }

    /// Descriptors that wait for the client to read.
    pub(super) fn queued_descriptors(&self) -> usize {
        self.queue.iter().map(|(_, fds)| fds.len()).sum()
    }

    pub(super) fn has_work(&self) -> bool {
        (self.snapshot_due || !self.queue.is_empty()) && !self.waits_to_send
    }

    /// Queues a reply; false when the client must be dropped.
    pub(super) fn reply(&mut self, reply: &Reply, descriptors: Vec<OwnedFd>) -> bool {
        match packet::encode(reply) {
            Ok(bytes) if self.queue.len() < QUEUE_MAX => {
                self.queue.push_back((bytes, descriptors));
                true
            }
            _ => false,
        }
    }

    /// Sends what can be sent without waiting; an error drops the client.
    pub(super) fn flush(
        &mut self,
        snapshot: &Snapshot,
        reactor: &Reactor,
    ) -> Result<(), PacketError> {
        let blocked = loop {
            if let Some((bytes, descriptors)) = self.queue.front() {
                let fds: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
                if !packet::send(self.socket.as_fd(), bytes, &fds, SendFlags::DONTWAIT)? {
                    break true;
                }
                self.queue.pop_front();
            } else if self.snapshot_due {
                let bytes = encode_snapshot(snapshot)?;
                if !packet::send(self.socket.as_fd(), &bytes, &[], SendFlags::DONTWAIT)? {
                    break true;
                }
                self.snapshot_due = false;
            } else {
                break false;
            }
        };
        if blocked != self.waits_to_send {
            self.waits_to_send = blocked;
            let mut interest = EpollFlags::EPOLLIN;
            if blocked {
                interest |= EpollFlags::EPOLLOUT;
            }
            reactor
                .change(&self.socket, self.key, interest)
                .map_err(PacketError::Socket)?;
        }
        Ok(())
    }

    pub(super) fn close(self, reactor: &mut Reactor) {
        reactor.remove(&self.socket, self.key);
    }
}

/// A snapshot's packet. One that is too large for a packet, as it can be with many containers that all had much to
/// say last, has its messages shortened.
fn encode_snapshot(snapshot: &Snapshot) -> Result<Vec<u8>, PacketError> {
    let mut reply = Reply::Snapshot(Box::new(snapshot.clone()));
    for max_bytes in [2_048, 512, 64, 0] {
        match packet::encode(&reply) {
            Err(PacketError::TooLarge) => {}
            other => return other,
        }
        if let Reply::Snapshot(snapshot) = &mut reply {
            shorten(snapshot, max_bytes);
        }
    }
    packet::encode(&reply)
}

fn shorten(snapshot: &mut Snapshot, max_bytes: usize) {
    let cut = |text: &mut String| {
        let mut end = text.len().min(max_bytes);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    };
    for container in &mut snapshot.containers {
        match &mut container.state {
            ContainerState::Waiting { message, .. } => cut(message),
            ContainerState::Terminated(t) => t.message.iter_mut().for_each(cut),
            ContainerState::Running { .. } => {}
        }
        if let Some(t) = &mut container.last_termination {
            t.message.iter_mut().for_each(cut);
        }
        for failure in &mut container.probe_failures {
            cut(&mut failure.message);
        }
    }
}
