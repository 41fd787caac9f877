//! The socket between parent and child, or between `start` and a child that waits at its gate.
//!
//! One packet is one message; its first byte says which. `execve` closes the child's end: end of file is success.
//!
//! | byte | from | meaning |
//! |---|---|---|
//! | `U` | child, forerunner | a user namespace is there: write its id maps |
//! | `u` | parent | they are written |
//! | `P` | forerunner | the container's process is there: its pid and pidfd |
//! | `C` | parent | the cgroup is there: brings what to join it with, and how many descriptors that is |
//! | `N` | child | brings a netlink socket of its network namespace: move the devices |
//! | `n` | parent | they have moved |
//! | `H` | child | the namespaces are there: run the createRuntime hooks |
//! | `h` | parent | they have run |
//! | `R` | child | ready, waits for its start; brings the terminal, if any |
//! | `T` | child (exec) | brings the terminal; it goes on |
//! | `G` | parent | the container is recorded: wait at the gate |
//! | `S` | parent | start |
//! | `L` | child | its filter is loaded; brings the filter's listener |
//! | `E` | child | a step failed ([`Failure`]); it ends |

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::retry_on_intr;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use super::error::{Error, Failure, Result};
use crate::cgroup::Joiner;

/// The longest wait for the child, in seconds. Its steps take milliseconds; a mount of a dead network file system
/// or a machine that swaps may take long.
const CHILD_MAX_SECS: u64 = 120;

/// Longer than any message.
const PACKET_MAX_BYTES: usize = 8192;

/// More than a machine has hierarchies of cgroups.
const FDS_MAX: usize = 64;

/// One end.
#[derive(Debug)]
pub(super) struct Channel(OwnedFd);

/// What the child says, as the parent hears it.
#[derive(Debug)]
pub(super) enum Word {
    /// `U`
    IdMaps,
    /// `P`
    Born(i32, OwnedFd),
    /// `N`
    Devices(OwnedFd),
    /// `H`
    Hooks,
    /// `R`
    Ready(Option<OwnedFd>),
    /// `T`
    Terminal(OwnedFd),
    /// `L`
    Listener(OwnedFd),
    /// The child has executed its program, or has died.
    End,
}

impl Channel {
    /// Two connected ends: the parent's, which waits a bounded time unless `patient`, and the child's.
    pub(super) fn pair(patient: bool) -> Result<(Self, Self)> {
        let (parent, child) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(|e| Error::Channel(e.into()))?;
        let parent = Self(parent);
        if !patient {
            parent.limit_wait()?;
        }
        Ok((parent, Self(child)))
    }

    /// The parent's end of a connection to a child that waits at its gate.
    pub(super) fn connected(socket: OwnedFd) -> Result<Self> {
        let channel = Self(socket);
        channel.limit_wait()?;
        Ok(channel)
    }

    /// The child's end of one.
    pub(super) fn accept(gate: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self(retry_on_intr(|| {
            rustix::net::accept_with(gate, SocketFlags::CLOEXEC)
        })?))
    }

    fn limit_wait(&self) -> Result<()> {
        rustix::net::sockopt::set_socket_timeout(
            &self.0,
            rustix::net::sockopt::Timeout::Recv,
            Some(Duration::from_secs(CHILD_MAX_SECS)),
        )
        .map_err(|e| Error::Channel(e.into()))
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(super) fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }

    /// The same end once more.
    pub(super) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// The same end under another number.
    pub(super) fn from_fd(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Sends one message.
    pub(super) fn send(&self, packet: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.send_all(packet, fd.as_slice())
    }

    fn send_all(&self, packet: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fits = fds.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(fds));
        if !fits || fds.len() > FDS_MAX {
            return Err(io::Error::from_raw_os_error(libc::E2BIG));
        }
        retry_on_intr(|| {
            rustix::net::sendmsg(
                &self.0,
                &[IoSlice::new(packet)],
                &mut ancillary,
                SendFlags::NOSIGNAL,
            )
        })?;
        Ok(())
    }

    /// One message; empty at the end. Of its descriptors those are missing for which this process has no number left.
    fn receive(&self) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut packet = vec![0; PACKET_MAX_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let message = retry_on_intr(|| {
            rustix::net::recvmsg(
                self.0.as_fd(),
                &mut [IoSliceMut::new(&mut packet)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            )
        })?;
        packet.truncate(message.bytes);
        let mut received = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                received.extend(fds);
            }
        }
        Ok((packet, received))
    }

    /// The child waits for the byte `word`. End of file means that the parent is gone.
    pub(super) fn await_word(&self, word: u8) -> io::Result<()> {
        let (packet, _) = self.receive()?;
        if packet == [word] {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::ECONNRESET))
        }
    }

    /// The parent has made the cgroup.
    pub(super) fn send_joiner(&self, joiner: &Joiner) -> io::Result<()> {
        let fds: Vec<BorrowedFd<'_>> = joiner.descriptors().collect();
        let count = u8::try_from(fds.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.send_all(&[b'C', count], &fds)
    }

    /// The child waits for its cgroup, all of it.
    pub(super) fn await_joiner(&self) -> io::Result<Joiner> {
        match self.receive()? {
            (packet, fds) if matches!(*packet, [b'C', count] if usize::from(count) == fds.len()) => {
                Ok(Joiner::from(fds))
            }
            (packet, _) if matches!(*packet, [b'C', _]) => {
                Err(io::Error::from_raw_os_error(libc::EMFILE))
            }
            _ => Err(io::Error::from_raw_os_error(libc::ECONNRESET)),
        }
    }

    /// What the child says next; its failure is this function's.
    pub(super) fn hear(&self) -> Result<Word> {
        let heard = match self.receive() {
            // The child died with unread messages in its queue. What it said before comes after the error.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => self.receive(),
            heard => heard,
        };
        let (packet, mut fds) = match heard {
            Ok(message) => message,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(Error::Timeout {
                    secs: CHILD_MAX_SECS,
                });
            }
            Err(error) => return Err(Error::Channel(error)),
        };
        match (packet.as_slice(), fds.pop()) {
            ([], _) => Ok(Word::End),
            (b"U", _) => Ok(Word::IdMaps),
            ([b'P', p0, p1, p2, p3], Some(pidfd)) => {
                Ok(Word::Born(i32::from_le_bytes([*p0, *p1, *p2, *p3]), pidfd))
            }
            (b"N", Some(socket)) => Ok(Word::Devices(socket)),
            (b"H", _) => Ok(Word::Hooks),
            (b"R", terminal) => Ok(Word::Ready(terminal)),
            (b"T", Some(terminal)) => Ok(Word::Terminal(terminal)),
            (b"L", Some(listener)) => Ok(Word::Listener(listener)),
            _ => Err(Failure::decode(&packet)
                .unwrap_or_else(|| Error::Channel(io::Error::from_raw_os_error(libc::EBADMSG)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::error::Step;

    #[test]
    fn words_and_descriptors_arrive_in_order() {
        let (parent, child) = Channel::pair(false).expect("pair");
        let file = std::fs::File::open("/dev/null").expect("null");
        child.send(b"H", None).expect("send");
        child.send(b"R", Some(file.as_fd())).expect("send");
        assert!(matches!(parent.hear(), Ok(Word::Hooks)));
        assert!(matches!(parent.hear(), Ok(Word::Ready(Some(_)))));
        drop(child);
        assert!(matches!(parent.hear(), Ok(Word::End)));
    }

    #[test]
    fn a_failure_is_an_error() {
        let (parent, child) = Channel::pair(false).expect("pair");
        let failure = Failure::new(
            Step::PivotRoot,
            "",
            &io::Error::from_raw_os_error(libc::EINVAL),
        );
        child.send(&failure.encode(), None).expect("send");
        assert!(matches!(
            parent.hear(),
            Err(Error::Setup {
                step: Step::PivotRoot,
                ..
            })
        ));
    }

    /// It ended before it had read all that it was told.
    #[test]
    fn a_failure_is_heard_of_a_child_that_heard_no_more() {
        let (parent, child) = Channel::pair(false).expect("pair");
        parent.send(b"C", None).expect("send");
        let error = io::Error::from_raw_os_error(libc::EPERM);
        let failure = Failure::new(Step::NewNetworkNamespace, "", &error);
        child.send(&failure.encode(), None).expect("send");
        drop(child);
        assert!(matches!(
            parent.hear(),
            Err(Error::Setup {
                step: Step::NewNetworkNamespace,
                ..
            })
        ));
        assert!(matches!(parent.hear(), Ok(Word::End)));
    }

    #[test]
    fn what_joins_a_cgroup_arrives_whole() {
        let (parent, child) = Channel::pair(false).expect("pair");
        let file = || OwnedFd::from(std::fs::File::open("/dev/null").expect("null"));
        parent
            .send_joiner(&Joiner::from(vec![file(), file(), file()]))
            .expect("send");
        let joiner = child.await_joiner().expect("receive");
        assert_eq!(joiner.descriptors().count(), 3);
    }

    /// As where the child has no number left for the second.
    #[test]
    fn half_of_what_joins_a_cgroup_is_refused() {
        let (parent, child) = Channel::pair(false).expect("pair");
        let file = std::fs::File::open("/dev/null").expect("null");
        parent.send(&[b'C', 2], Some(file.as_fd())).expect("send");
        let error = child.await_joiner().expect_err("half");
        assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
        parent.send(b"S", None).expect("send");
        child.await_joiner().expect_err("another word");
    }

    #[test]
    fn more_descriptors_than_a_message_takes_are_refused() {
        let (parent, _child) = Channel::pair(false).expect("pair");
        let file = || OwnedFd::from(std::fs::File::open("/dev/null").expect("null"));
        let joiner = Joiner::from((0..=FDS_MAX).map(|_| file()).collect::<Vec<_>>());
        let error = parent.send_joiner(&joiner).expect_err("too many");
        assert_eq!(error.raw_os_error(), Some(libc::E2BIG));
    }

    #[test]
    fn a_child_whose_parent_is_gone_does_not_start() {
        let (parent, child) = Channel::pair(false).expect("pair");
        drop(parent);
        assert!(child.await_word(b'S').is_err());
    }
}
