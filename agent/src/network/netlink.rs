//! A blocking netlink connection: send a request, read its answer.
//!
//! It belongs to the network namespace of the thread that opened it, for ever, which is what lets one thread speak
//! to the host and to a pod at the same time. See netlink(7).

use std::fmt::Display;
use std::io;
use std::marker::PhantomData;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_netfilter::NetfilterMessage;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols};

/// The kernel puts no more than 32 KiB into one answer (`netlink_dump` of net/netlink/af_netlink.c).
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// A connection that speaks messages of one protocol.
#[derive(Debug)]
pub(super) struct Connection<T> {
    socket: Socket,
    sequence: u32,
    protocol: PhantomData<T>,
}

/// A connection that speaks of the packet filter and connection tracking.
pub(super) type Netfilter = Connection<NetfilterMessage>;

impl Connection<RouteNetlinkMessage> {
    /// Links, addresses and routes: rtnetlink(7).
    pub(super) fn route() -> io::Result<Self> {
        Self::open(protocols::NETLINK_ROUTE)
    }
}

impl Netfilter {
    /// The packet filter and connection tracking. Keep it: closing one that has changed the packet filter waits for
    /// what the change has removed, 10 ms and more.
    pub(super) fn netfilter() -> io::Result<Self> {
        Self::open(protocols::NETLINK_NETFILTER)
    }
}

impl<T> Connection<T>
where
    T: NetlinkSerializable + NetlinkDeserializable + std::fmt::Debug,
{
    fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
            protocol: PhantomData,
        })
    }

    /// Asks for a change or for one object, with `flags` beyond the usual.
    pub(super) fn request(&mut self, payload: T, flags: u16) -> io::Result<Vec<T>> {
        self.exchange(payload, NLM_F_REQUEST | NLM_F_ACK | flags)
    }

    /// Asks for all objects of a kind.
    pub(super) fn dump(&mut self, payload: T) -> io::Result<Vec<T>> {
        self.exchange(payload, NLM_F_REQUEST | NLM_F_DUMP)
    }

    fn exchange(&mut self, payload: T, flags: u16) -> io::Result<Vec<T>> {
        let mut bytes = Vec::new();
        let sequence = self.push(&mut bytes, payload, flags);
        self.socket.send(&bytes, 0)?;
        let mut answers = Vec::new();
        loop {
            for message in self.receive()? {
                if message.header.sequence_number != sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(error.to_io());
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answers),
                    _ => {}
                }
            }
        }
    }

    /// Sends messages as one nfnetlink batch: `begin`, `changes`, `end`. The kernel applies all of them or none.
    pub(super) fn batch(
        &mut self,
        begin: T,
        changes: Vec<T>,
        flags: impl Fn(&T) -> u16,
        end: T,
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        let first = self.push(&mut bytes, begin, NLM_F_REQUEST);
        let last_change = first + changes.len() as u32;
        for change in changes {
            // Errors are always answered, success only where it is asked for.
            let acknowledge = if self.sequence + 1 == last_change {
                NLM_F_ACK
            } else {
                0
            };
            let flags = flags(&change);
            self.push(&mut bytes, change, NLM_F_REQUEST | acknowledge | flags);
        }
        let last = self.push(&mut bytes, end, NLM_F_REQUEST);
        self.socket.send(&bytes, 0)?;
        let mut failure = None;
        loop {
            for message in self.receive()? {
                let sequence = message.header.sequence_number;
                let NetlinkPayload::Error(answer) = message.payload else {
                    continue;
                };
                if !(first..=last).contains(&sequence) {
                    continue;
                }
                if answer.code.is_some() {
                    failure.get_or_insert(answer.to_io());
                }
                // Answers come in order. One with the first number is about the batch as a whole, and stands alone.
                if sequence >= last_change || sequence == first {
                    return failure.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Appends a message and returns its number.
    fn push(&mut self, bytes: &mut Vec<u8>, payload: T, flags: u16) -> u32 {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(payload));
        message.finalize();
        let start = bytes.len();
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..]);
        self.sequence
    }

    fn receive(&self) -> io::Result<Vec<NetlinkMessage<T>>> {
        let mut bytes = Vec::with_capacity(MAX_ANSWER_BYTES);
        // With MSG_TRUNC the answer's real length is returned, even if it is longer than what there is room for.
        let length = self.socket.recv(&mut bytes, libc::MSG_TRUNC)?;
        if length > bytes.len() {
            return Err(invalid(
                "the kernel's answer is longer than it should ever be",
            ));
        }
        let mut messages = Vec::new();
        let mut rest = bytes.as_slice();
        while let Some(length) = rest
            .first_chunk::<4>()
            .map(|bytes| u32::from_ne_bytes(*bytes) as usize)
        {
            // A message shorter than its own header would loop for ever.
            if length < 16 || length > rest.len() {
                return Err(invalid("the kernel's answer is cut short"));
            }
            messages.push(NetlinkMessage::deserialize(&rest[..length]).map_err(invalid)?);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(messages)
    }
}

fn invalid(why: impl Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_string())
}
