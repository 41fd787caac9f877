//! The few messages of rtnetlink(7) that move a network device: links and addresses of one network namespace.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::retry_on_intr;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// More than the kernel puts into one datagram of a dump.
const DATAGRAM_MAX_BYTES: usize = 65_536;

/// How often a dump is begun again that a change of the namespace made inconsistent.
const DUMPS_MAX: u32 = 8;

const HEADER_BYTES: usize = 16;
const LINK_BYTES: usize = 16;
const ADDRESS_BYTES: usize = 8;
/// Everything in a message begins at a multiple of this.
const ALIGNMENT: usize = 4;

/// A socket to the kernel's side of the network namespace in which it was made.
#[derive(Debug)]
pub(super) struct Netlink(OwnedFd);

/// A network device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) is_up: bool,
}

/// An address of a device, as the kernel tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    family: u8,
    prefix_length: u8,
    scope: u8,
    flags: u32,
    /// `IFA_ADDRESS`, `IFA_LOCAL` and `IFA_BROADCAST`.
    attributes: Vec<(u16, Vec<u8>)>,
}

impl Address {
    /// True for one that was given to stay and is valid everywhere.
    pub(super) fn is_permanent_and_global(&self) -> bool {
        self.flags & libc::IFA_F_PERMANENT != 0 && self.scope == libc::RT_SCOPE_UNIVERSE
    }
}

/// Makes a socket in the calling process's network namespace.
///
/// # Errors
/// What socket(2) says.
pub(in super::super) fn open() -> io::Result<OwnedFd> {
    Ok(socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // NETLINK_ROUTE is 0.
        None,
    )?)
}

impl Netlink {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The device of this name; none when there is none.
    pub(super) fn link(&self, name: &str) -> io::Result<Option<Link>> {
        let mut message = link_message(libc::RTM_GETLINK, 0, 0, 0, 0);
        put_attribute(&mut message, libc::IFLA_IFNAME, &c_name(name));
        let mut found = None;
        let answer = self.exchange(message, |typ, body| {
            if typ == libc::RTM_NEWLINK && body.len() >= LINK_BYTES {
                found = Some(Link {
                    index: u32_at(body, 4),
                    is_up: u32_at(body, 8) & libc::IFF_UP as u32 != 0,
                });
            }
        });
        match answer {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            result => result.map(|()| found),
        }
    }

    /// Takes a device down, gives it another name, and moves it to another network namespace.
    pub(super) fn send_away(
        &self,
        link: Link,
        name: &str,
        namespace: BorrowedFd<'_>,
    ) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        let up = libc::IFF_UP as u32;
        let mut message =
            link_message(libc::RTM_NEWLINK, libc::NLM_F_ACK as u16, link.index, 0, up);
        put_attribute(&mut message, libc::IFLA_IFNAME, &c_name(name));
        let number = namespace.as_raw_fd().to_ne_bytes();
        put_attribute(&mut message, libc::IFLA_NET_NS_FD, &number);
        self.exchange(message, |_, _| {})
    }

    /// Brings a device up.
    pub(super) fn bring_up(&self, link: Link) -> io::Result<()> {
        let up = libc::IFF_UP as u32;
        let ack = libc::NLM_F_ACK as u16;
        let message = link_message(libc::RTM_NEWLINK, ack, link.index, up, up);
        self.exchange(message, |_, _| {})
    }

    /// All addresses of a device.
    pub(super) fn addresses(&self, link: Link) -> io::Result<Vec<Address>> {
        for _ in 0..DUMPS_MAX {
            let mut message = header(libc::RTM_GETADDR, libc::NLM_F_DUMP as u16);
            message.extend_from_slice(&[0; ADDRESS_BYTES]);
            let mut addresses = Vec::new();
            let answer = self.exchange(message, |typ, body| {
                if typ == libc::RTM_NEWADDR
                    && body.len() >= ADDRESS_BYTES
                    && u32_at(body, 4) == link.index
                {
                    addresses.push(parse_address(body));
                }
            });
            match answer {
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                result => return result.map(|()| addresses),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    }

    /// Gives a device an address.
    pub(super) fn add_address(&self, link: Link, address: &Address) -> io::Result<()> {
        /// What somebody chose; all else is the kernel's own business.
        const CHOSEN: u32 = libc::IFA_F_PERMANENT
            | libc::IFA_F_NODAD
            | libc::IFA_F_HOMEADDRESS
            | libc::IFA_F_MANAGETEMPADDR
            | libc::IFA_F_NOPREFIXROUTE
            | libc::IFA_F_MCAUTOJOIN;
        let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
        let mut message = header(libc::RTM_NEWADDR, flags as u16);
        message.extend_from_slice(&[address.family, address.prefix_length, 0, address.scope]);
        message.extend_from_slice(&link.index.to_ne_bytes());
        for (typ, value) in &address.attributes {
            put_attribute(&mut message, *typ, value);
        }
        let chosen = (address.flags & CHOSEN).to_ne_bytes();
        put_attribute(&mut message, libc::IFA_FLAGS, &chosen);
        self.exchange(message, |_, _| {})
    }

    /// Sends one message and hears the answer out: an acknowledgement, one message, or all of a dump. `EINTR`: the
    /// dump is not of one moment.
    fn exchange(&self, mut message: Vec<u8>, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let length = message.len() as u32;
        message[..4].copy_from_slice(&length.to_ne_bytes());
        retry_on_intr(|| rustix::io::write(&self.0, &message))?;
        let mut datagram = vec![0; DATAGRAM_MAX_BYTES];
        let mut interrupted = false;
        loop {
            let length = retry_on_intr(|| rustix::io::read(&self.0, &mut datagram[..]))?;
            let mut rest = &datagram[..length];
            while let Some((typ, flags, body, after)) = split_message(rest) {
                rest = after;
                interrupted |= flags & libc::NLM_F_DUMP_INTR as u16 != 0;
                match i32::from(typ) {
                    libc::NLMSG_ERROR => return acknowledged(body),
                    libc::NLMSG_DONE if interrupted => {
                        return Err(io::Error::from_raw_os_error(libc::EINTR));
                    }
                    libc::NLMSG_DONE => return Ok(()),
                    _ => each(typ, body),
                }
                if flags & libc::NLM_F_MULTI as u16 == 0 {
                    return Ok(());
                }
            }
        }
    }
}

/// A message's header; the length is filled in when it is sent.
fn header(typ: u16, flags: u16) -> Vec<u8> {
    let mut message = vec![0; 4];
    message.extend_from_slice(&typ.to_ne_bytes());
    message.extend_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
    // Sequence number and port: there is one question at a time.
    message.extend_from_slice(&[0; 8]);
    message
}

fn link_message(typ: u16, flags: u16, index: u32, state: u32, change: u32) -> Vec<u8> {
    let mut message = header(typ, flags);
    message.extend_from_slice(&[0; 4]);
    for number in [index, state, change] {
        message.extend_from_slice(&number.to_ne_bytes());
    }
    message
}

fn put_attribute(message: &mut Vec<u8>, typ: u16, value: &[u8]) {
    let length = (value.len() + 4) as u16;
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&typ.to_ne_bytes());
    message.extend_from_slice(value);
    message.resize(message.len().next_multiple_of(ALIGNMENT), 0);
}

fn c_name(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Type, flags and body of the first message, and what follows it.
fn split_message(bytes: &[u8]) -> Option<(u16, u16, &[u8], &[u8])> {
    if bytes.len() < HEADER_BYTES {
        return None;
    }
    let length = u32_at(bytes, 0) as usize;
    if length < HEADER_BYTES || length > bytes.len() {
        return None;
    }
    let next = length.next_multiple_of(ALIGNMENT).min(bytes.len());
    Some((
        u16_at(bytes, 4),
        u16_at(bytes, 6),
        &bytes[HEADER_BYTES..length],
        &bytes[next..],
    ))
}

/// `struct nlmsgerr` begins with a negative errno, or 0.
fn acknowledged(body: &[u8]) -> io::Result<()> {
    let Some(errno) = body.first_chunk::<4>().map(|b| i32::from_ne_bytes(*b)) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    match errno {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(-errno)),
    }
}

/// The caller has checked the length of the fixed part.
fn parse_address(body: &[u8]) -> Address {
    let mut address = Address {
        family: body[0],
        prefix_length: body[1],
        flags: u32::from(body[2]),
        scope: body[3],
        attributes: Vec::new(),
    };
    let mut rest = &body[ADDRESS_BYTES..];
    while rest.len() >= 4 {
        let length = usize::from(u16_at(rest, 0));
        if length < 4 || length > rest.len() {
            break;
        }
        let (typ, value) = (u16_at(rest, 2), &rest[4..length]);
        match typ {
            // All 32 bits of what the header has 8 of.
            libc::IFA_FLAGS if value.len() == 4 => address.flags = u32_at(value, 0),
            libc::IFA_ADDRESS | libc::IFA_LOCAL | libc::IFA_BROADCAST => {
                address.attributes.push((typ, value.to_vec()));
            }
            _ => {}
        }
        rest = &rest[length.next_multiple_of(ALIGNMENT).min(rest.len())..];
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_split_at_their_lengths() {
        let mut message = header(libc::RTM_NEWADDR, 0);
        message.extend_from_slice(&[2, 24, 0x80, 0, 7, 0, 0, 0]);
        put_attribute(&mut message, libc::IFA_LOCAL, &[10, 0, 0, 1]);
        put_attribute(&mut message, libc::IFA_LABEL, b"eth0\0");
        put_attribute(&mut message, libc::IFA_FLAGS, &0x280_u32.to_ne_bytes());
        let length = message.len() as u32;
        message[..4].copy_from_slice(&length.to_ne_bytes());
        let (typ, _, body, rest) = split_message(&message).expect("a message");
        assert_eq!((typ, rest.len()), (libc::RTM_NEWADDR, 0));
        let address = parse_address(body);
        assert_eq!(address.prefix_length, 24);
        assert_eq!(address.flags, 0x280);
        assert!(address.is_permanent_and_global());
        assert_eq!(address.attributes, [(libc::IFA_LOCAL, vec![10, 0, 0, 1])]);
    }

    #[test]
    fn rubbish_is_no_message() {
        assert!(split_message(&[0; 15]).is_none());
        assert!(split_message(&[0; 16]).is_none());
        let mut long = header(1, 0);
        long[..4].copy_from_slice(&99_u32.to_ne_bytes());
        assert!(split_message(&long).is_none());
        assert!(acknowledged(&[1]).is_err());
        // An attribute that claims to be longer than what is there.
        assert!(
            parse_address(&[2, 8, 0, 0, 1, 0, 0, 0, 200, 0, 1, 0])
                .attributes
                .is_empty()
        );
    }
}
