//! Who has which port of the host.
//!
//! A host port is given to one pod, and kept from other programs of the machine by a socket bound to it: without that
//! a program that listens there, such as sshd on port 22, would silently lose its callers to the pod. No packet
//! reaches the socket, as the packet filter has rewritten its destination before; it ends with the agent, and is made
//! anew by the next one.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrIn, bind, listen, setsockopt,
    socket, sockopt,
};

use super::leases::Lease;
use super::{Error, HostPort, Protocol};

impl HostPort {
    /// Whether both cannot be had at once.
    pub(super) fn conflicts_with(&self, other: &HostPort) -> bool {
        self.protocol == other.protocol
            && self.host_port == other.host_port
            && match (self.host_ip, other.host_ip) {
                (Some(own), Some(its)) => own == its,
                _ => true,
            }
    }

    /// With `0.0.0.0` written as no address.
    pub(super) fn normal(self) -> HostPort {
        HostPort {
            host_ip: self.host_ip.filter(|address| !address.is_unspecified()),
            ..self
        }
    }
}

/// Refuses ports that a pod wants twice or that another has.
pub(super) fn check<'a>(
    uid: &str,
    pod: &str,
    wanted: &[HostPort],
    mut leases: impl Iterator<Item = &'a Lease>,
) -> Result<(), Error> {
    let taken = |port: &HostPort, pod: &str| Error::HostPortConflict {
        port: port.host_port,
        protocol: port.protocol,
        pod: pod.to_string(),
    };
    for (index, port) in wanted.iter().enumerate() {
        if wanted[..index]
            .iter()
            .any(|before| before.conflicts_with(port))
        {
            return Err(taken(port, pod));
        }
    }
    let conflict = leases.find_map(|lease| {
        let port = wanted.iter().find(|port| {
            lease
                .host_ports
                .iter()
                .any(|other| other.conflicts_with(port))
        })?;
        (lease.uid != uid).then(|| taken(port, &lease.pod))
    });
    conflict.map_or(Ok(()), Err)
}

/// Keeps other programs off a host port for as long as the descriptor lives.
pub(super) fn reserve(port: &HostPort) -> Result<OwnedFd, Error> {
    let address = port.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED);
    bound_socket(port.protocol, SocketAddrV4::new(address, port.host_port)).map_err(|errno| {
        match errno {
            Errno::EADDRINUSE => Error::HostPortInUse {
                port: port.host_port,
                protocol: port.protocol,
                address,
            },
            Errno::EADDRNOTAVAIL => Error::HostAddress(address),
            errno => Error::kernel(format!(
                "reserve host port {}/{}",
                port.host_port, port.protocol
            ))(errno.into()),
        }
    })
}

fn bound_socket(protocol: Protocol, address: SocketAddrV4) -> Result<OwnedFd, Errno> {
    let (kind, number) = match protocol {
        Protocol::Tcp => (SockType::Stream, SockProtocol::Tcp),
        Protocol::Udp => (SockType::Datagram, SockProtocol::Udp),
    };
    let socket = socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, number)?;
    if protocol == Protocol::Tcp {
        // Connections of an earlier listener that wait for their end do not count.
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    bind(
        std::os::fd::AsRawFd::as_raw_fd(&socket),
        &SockaddrIn::from(address),
    )?;
    if protocol == Protocol::Tcp {
        // Only a listening socket keeps out others that reuse addresses.
        listen(&socket, Backlog::new(1)?)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(host_ip: Option<[u8; 4]>, host_port: u16, protocol: Protocol) -> HostPort {
        HostPort {
            host_ip: host_ip.map(Ipv4Addr::from),
            host_port,
            container_port: 80,
            protocol,
        }
    }

    fn lease(uid: &str, ports: &[HostPort]) -> Lease {
        Lease {
            uid: uid.to_string(),
            pod: format!("default/{uid}"),
            address: Ipv4Addr::new(10, 0, 0, 2),
            host_ports: ports.to_vec(),
        }
    }

    #[test]
    fn ports_conflict_by_protocol_number_and_address() {
        use Protocol::{Tcp, Udp};
        let any = port(None, 80, Tcp);
        for (other, expected) in [
            (port(None, 80, Tcp), true),
            (port(None, 80, Udp), false),
            (port(None, 81, Tcp), false),
            (port(Some([10, 0, 0, 1]), 80, Tcp), true),
        ] {
            assert_eq!(any.conflicts_with(&other), expected, "{other:?}");
        }
        let one = port(Some([10, 0, 0, 1]), 80, Tcp);
        assert!(!one.conflicts_with(&port(Some([10, 0, 0, 2]), 80, Tcp)));
        assert_eq!(port(Some([0, 0, 0, 0]), 80, Tcp).normal(), any);
    }

    #[test]
    fn a_conflict_names_the_other_pod_and_a_pod_does_not_conflict_with_itself() {
        let wanted = [port(None, 80, Protocol::Tcp)];
        let leases = [lease("first", &wanted), lease("second", &[])];
        assert!(check("first", "default/first", &wanted, leases.iter()).is_ok());
        let error = check("second", "default/second", &wanted, leases.iter()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "host port 80/TCP is taken by pod default/first"
        );
        let twice = [wanted[0], wanted[0]];
        assert!(check("third", "default/third", &twice, [].iter()).is_err());
    }
}
