//! A range of IPv4 addresses for pods.

use std::fmt;
use std::net::Ipv4Addr;

use super::Error;

/// An IPv4 network: address and prefix length, the host bits zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cidr {
    network: u32,
    prefix: u8,
}

impl Cidr {
    /// A network from any of its addresses; None if `prefix` is over 32.
    pub(super) fn new(address: Ipv4Addr, prefix: u8) -> Option<Cidr> {
        (prefix <= 32).then(|| Cidr {
            network: u32::from(address) & mask(prefix),
            prefix,
        })
    }

    /// Reads a pod CIDR: at least a /29, at most a /8, of unicast addresses, the host bits zero.
    pub(super) fn parse_for_pods(text: &str) -> Result<Cidr, Error> {
        let refuse = |reason| Error::Cidr {
            text: text.to_string(),
            reason,
        };
        let (address, prefix) = text
            .split_once('/')
            .ok_or_else(|| refuse("write it as ADDRESS/PREFIX, such as 10.214.0.0/16"))?;
        let address: Ipv4Addr = address
            .parse()
            .map_err(|_| refuse("the address is not IPv4"))?;
        let prefix: u8 = prefix
            .parse()
            .map_err(|_| refuse("the prefix is not a number"))?;
        if !(8..=29).contains(&prefix) {
            return Err(refuse("the prefix must be from 8 to 29"));
        }
        let cidr = Cidr {
            network: u32::from(address) & mask(prefix),
            prefix,
        };
        if cidr.network() != address {
            return Err(refuse("the address has bits set beyond the prefix"));
        }
        if address.is_loopback()
            || address.is_multicast()
            || address.octets()[0] == 0
            || address.octets()[0] >= 240
        {
            return Err(refuse("these are not unicast addresses"));
        }
        Ok(cidr)
    }

    /// The first address, which names the network.
    pub(super) fn network(self) -> Ipv4Addr {
        Ipv4Addr::from(self.network)
    }

    /// The prefix length.
    pub(super) fn prefix(self) -> u8 {
        self.prefix
    }

    /// The network mask.
    pub(super) fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from(mask(self.prefix))
    }

    /// The bridge's address: the first after the network's.
    pub(super) fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(self.network.wrapping_add(1))
    }

    /// How many addresses there are for pods: all but network, gateway and broadcast.
    pub(super) fn pod_count(self) -> u32 {
        (!mask(self.prefix)).saturating_sub(2)
    }

    /// The pod address with this index, counted modulo [`Cidr::pod_count`].
    pub(super) fn pod_address(self, index: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.network + 2 + index % self.pod_count().max(1))
    }

    /// The inverse of [`Cidr::pod_address`]; None for an address that no pod can have.
    pub(super) fn pod_index(self, address: Ipv4Addr) -> Option<u32> {
        let index = u32::from(address)
            .checked_sub(self.network)?
            .checked_sub(2)?;
        (index < self.pod_count()).then_some(index)
    }

    /// Whether some address is in both.
    pub(super) fn overlaps(self, other: Cidr) -> bool {
        let shorter = mask(self.prefix.min(other.prefix));
        self.network & shorter == other.network & shorter
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        Cidr::parse_for_pods(text).unwrap()
    }

    #[test]
    fn a_network_has_a_gateway_and_pod_addresses() {
        let net = cidr("10.214.0.0/16");
        assert_eq!(net.gateway(), Ipv4Addr::new(10, 214, 0, 1));
        assert_eq!(net.pod_address(0), Ipv4Addr::new(10, 214, 0, 2));
        assert_eq!(net.pod_count(), 65_533);
        assert_eq!(
            net.pod_address(net.pod_count() - 1),
            Ipv4Addr::new(10, 214, 255, 254)
        );
        assert_eq!(net.pod_address(net.pod_count()), net.pod_address(0));
        assert_eq!(cidr("192.168.7.8/29").pod_count(), 5);
    }

    #[test]
    fn only_pod_addresses_have_an_index() {
        let net = cidr("192.168.7.8/29");
        let index = |last: u8| net.pod_index(Ipv4Addr::new(192, 168, 7, last));
        assert_eq!(index(7), None);
        assert_eq!(index(8), None, "network");
        assert_eq!(index(9), None, "gateway");
        assert_eq!(index(10), Some(0));
        assert_eq!(index(14), Some(4));
        assert_eq!(index(15), None, "broadcast");
    }

    #[test]
    fn overlap_is_mutual() {
        for (a, b, expected) in [
            ("10.214.0.0/16", "10.214.7.0/24", true),
            ("10.214.0.0/16", "10.215.0.0/16", false),
            ("10.0.0.0/8", "10.215.0.0/16", true),
        ] {
            assert_eq!(cidr(a).overlaps(cidr(b)), expected, "{a} {b}");
            assert_eq!(cidr(b).overlaps(cidr(a)), expected, "{b} {a}");
        }
    }

    #[test]
    fn what_cannot_be_a_pod_cidr_is_refused_with_a_reason() {
        for (text, reason) in [
            ("10.0.0.0", "write it as"),
            ("fd00::/64", "not IPv4"),
            ("10.0.0.0/x", "not a number"),
            ("10.0.0.0/30", "from 8 to 29"),
            ("10.0.0.1/16", "bits set"),
            ("224.0.0.0/8", "not unicast"),
            ("127.0.0.0/8", "not unicast"),
        ] {
            let error = Cidr::parse_for_pods(text).unwrap_err().to_string();
            assert!(
                error.contains(reason) && error.contains(text),
                "{text}: {error}"
            );
        }
    }
}
