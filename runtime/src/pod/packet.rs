//! One packet of the supervisor's socket: a JSON object, and the descriptors that came with it.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::protocol::MAX_PACKET_BYTES;

/// The most descriptors that one packet brings: stdin, stdout and stderr.
pub const MAX_DESCRIPTORS: usize = 3;

/// Why a packet could not be sent or received.
#[derive(Debug, Error)]
pub enum PacketError {
    /// The socket failed.
    #[error("the supervisor's socket failed")]
    Socket(#[source] io::Error),
    /// The other end has closed the connection.
    #[error("the other end closed the connection")]
    Closed,
    /// The packet is larger than [`MAX_PACKET_BYTES`].
    #[error("a packet is larger than {MAX_PACKET_BYTES} bytes")]
    TooLarge,
    /// The packet is not the JSON object that was expected.
    #[error("a packet is not understood")]
    Malformed(#[source] serde_json::Error),
}

/// The bytes of a packet.
pub(super) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, PacketError> {
    let bytes = serde_json::to_vec(message).map_err(PacketError::Malformed)?;
    if bytes.len() > MAX_PACKET_BYTES {
        return Err(PacketError::TooLarge);
    }
    Ok(bytes)
}

/// Sends one packet; false when the socket would block and `flags` ask not to.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> Result<bool, PacketError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(PacketError::TooLarge);
    }
    let flags = flags | SendFlags::NOSIGNAL;
    loop {
        return match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Ok(_) => Ok(true),
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => Ok(false),
            Err(Errno::PIPE | Errno::CONNRESET) => Err(PacketError::Closed),
            Err(Errno::MSGSIZE) => Err(PacketError::TooLarge),
            Err(e) => Err(PacketError::Socket(e.into())),
        };
    }
}

/// Receives one packet; none when the socket would block and `flags` ask not to.
pub(super) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
    buffer: &mut Vec<u8>,
    flags: RecvFlags,
) -> Result<Option<(T, Vec<OwnedFd>)>, PacketError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    buffer.resize(MAX_PACKET_BYTES, 0);
    let message = loop {
        let mut slices = [IoSliceMut::new(buffer)];
        match recvmsg(
            &socket,
            &mut slices,
            &mut control,
            flags | RecvFlags::CMSG_CLOEXEC,
        ) {
            Ok(message) => break message,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::CONNRESET) => return Err(PacketError::Closed),
            Err(e) => return Err(PacketError::Socket(e.into())),
        }
    };
    let descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if message.bytes == 0 {
        return Err(PacketError::Closed);
    }
    if message
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(PacketError::TooLarge);
    }
    let value = serde_json::from_slice(&buffer[..message.bytes]).map_err(PacketError::Malformed)?;
    Ok(Some((value, descriptors)))
}
