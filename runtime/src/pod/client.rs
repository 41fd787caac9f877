//! The other end of a supervisor's socket, for the agent and the command line.
//!
//! Blocking; an event loop waits for the descriptor to become readable and then calls [`Client::try_recv`] until
//! it returns none. Requests are small and rare, and [`Client::send`] blocks only when a supervisor has not read
//! some two hundred kilobytes of them.
//!
//! ```no_run
//! # use std::path::Path;
//! # use podling_runtime::pod::{client::Client, protocol::{Reply, Request}};
//! let client = Client::connect(Path::new("/run/podling/pods/1234"))?;
//! client.send(&Request::Subscribe)?;
//! while let (Reply::Snapshot(snapshot), _) = client.recv()? {
//!     println!("{:?}", snapshot.stage);
//! }
//! # Ok::<(), podling_runtime::pod::client::ClientError>(())
//! ```

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect,
    socket_with,
};
use thiserror::Error;

use super::packet::{self, PacketError};
use super::protocol::{Reply, Request, SOCKET_FILE};

/// Why a supervisor could not be asked.
#[derive(Debug, Error)]
pub enum ClientError {
    /// There is no supervisor at that pod directory, or it does not accept.
    #[error("no supervisor answers in {dir}")]
    Connect {
        /// The pod directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The connection failed.
    #[error("the connection to the supervisor failed")]
    Packet(#[from] PacketError),
    /// The supervisor refused.
    #[error("{message}")]
    Refused {
        /// Its words.
        message: String,
    },
}

impl ClientError {
    /// True when no supervisor runs (any more).
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Connect { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ),
            Self::Packet(PacketError::Closed) => true,
            Self::Packet(_) | Self::Refused { .. } => false,
        }
    }
}

/// A connection to a supervisor.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
}

impl Client {
    /// Connects to the supervisor of the pod whose run directory this is.
    pub fn connect(pod_dir: &Path) -> Result<Self, ClientError> {
        Self::open(pod_dir).map_err(|source| ClientError::Connect {
            dir: pod_dir.to_owned(),
            source,
        })
    }

    fn open(pod_dir: &Path) -> io::Result<Self> {
        // A socket's path has at most 107 bytes; through the directory's descriptor it is always short.
        let dir = rustix::fs::open(
            pod_dir,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let address =
            SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET_FILE}", dir.as_raw_fd()))?;
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        connect(&socket, &address)?;
        Ok(Self { socket })
    }

    /// Sends a request, blocking while the socket's buffer is full.
    pub fn send(&self, request: &Request) -> Result<(), ClientError> {
        let bytes = packet::encode(request)?;
        packet::send(self.socket.as_fd(), &bytes, &[], SendFlags::empty())?;
        Ok(())
    }

    /// Waits for the next reply and the descriptors that come with it.
    pub fn recv(&self) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        let mut buffer = Vec::new();
        packet::receive(&self.socket, &mut buffer, RecvFlags::empty())?
            .ok_or(ClientError::Packet(PacketError::Closed))
    }

    /// The next reply if one is there: none means "wait until the descriptor is readable".
    pub fn try_recv(&self) -> Result<Option<(Reply, Vec<OwnedFd>)>, ClientError> {
        let mut buffer = Vec::new();
        Ok(packet::receive(
            &self.socket,
            &mut buffer,
            RecvFlags::DONTWAIT,
        )?)
    }

    /// Sends a request and waits for its reply; [`Reply::Error`] becomes [`ClientError::Refused`]. On a connection
    /// that has subscribed, snapshots arrive between: use another one.
    pub fn request(&self, request: &Request) -> Result<(Reply, Vec<OwnedFd>), ClientError> {
        self.send(request)?;
        match self.recv()? {
            (Reply::Error { message }, _) => Err(ClientError::Refused { message }),
            reply => Ok(reply),
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Client {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}
