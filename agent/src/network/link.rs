//! Interfaces, addresses and routes, each function one request or one dump.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{
    AddressMessageBuilder, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth,
    RouteMessageBuilder,
};

use super::cidr::Cidr;
use super::netlink::Connection;

/// A connection that speaks of interfaces.
pub(super) type Route = Connection<RouteNetlinkMessage>;

/// What is known of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mtu: Option<u32>,
    /// What a person or a program noted on it (`ip link … alias`).
    pub(super) alias: Option<String>,
    pub(super) is_bridge: bool,
    /// The index of the bridge that it is a port of.
    pub(super) bridge: Option<u32>,
}

impl Link {
    fn of(message: LinkMessage) -> Link {
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            mtu: None,
            alias: None,
            is_bridge: false,
            bridge: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = Some(mtu),
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::Controller(index) => link.bridge = Some(index),
                LinkAttribute::LinkInfo(infos) => {
                    link.is_bridge = infos.contains(&LinkInfo::Kind(InfoKind::Bridge));
                }
                _ => {}
            }
        }
        link
    }
}

/// A veth pair: one end in the host, a port of a bridge; the other, `eth0`, in a pod.
#[derive(Debug)]
pub(super) struct Veth<'a> {
    /// The host end's name.
    pub(super) name: &'a str,
    /// The bridge's index.
    pub(super) bridge: u32,
    /// The pod's network namespace.
    pub(super) netns: BorrowedFd<'a>,
    /// The pod end's name.
    pub(super) pod_name: &'a str,
    /// The pod end's hardware address.
    pub(super) pod_mac: [u8; 6],
    /// Of both ends.
    pub(super) mtu: u32,
}

/// A hardware address that follows from an IPv4 address: locally administered, and the same each time the address
/// is given, so that neighbours' caches stay right.
pub(super) fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

impl Route {
    /// The interface with this name.
    pub(super) fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().name(name).build();
        match self.request(RouteNetlinkMessage::GetLink(message), 0) {
            Ok(answers) => Ok(answers.into_iter().find_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Some(Link::of(message)),
                _ => None,
            })),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All interfaces.
    pub(super) fn links(&mut self) -> io::Result<Vec<Link>> {
        let answers = self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Some(Link::of(message)),
                _ => None,
            })
            .collect())
    }

    /// Makes a bridge.
    pub(super) fn add_bridge(&mut self, name: &str, mac: [u8; 6], mtu: u32) -> io::Result<()> {
        let message = LinkBridge::new(name).address(mac.to_vec()).mtu(mtu).build();
        self.request(
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .map(drop)
    }

    /// Changes what a bridge has: its note and its MTU; and turns it on.
    pub(super) fn set_bridge(&mut self, index: u32, alias: &str, mtu: u32) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index)
            .alias(alias)
            .mtu(mtu)
            .up()
            .build();
        self.request(RouteNetlinkMessage::SetLink(message), 0)
            .map(drop)
    }

    /// Makes a veth pair with its far end in another network namespace, by one request.
    pub(super) fn add_veth(&mut self, veth: &Veth<'_>) -> io::Result<()> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(veth.pod_name)
            .address(veth.pod_mac.to_vec())
            .mtu(veth.mtu)
            .setns_by_fd(veth.netns.as_raw_fd())
            .build();
        let message = LinkVeth::new(veth.name, veth.pod_name)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .mtu(veth.mtu)
            .controller(veth.bridge)
            .up()
            .build();
        self.request(
            RouteNetlinkMessage::NewLink(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .map(drop)
    }

    /// Lets a bridge send a frame back to the port that it came from. Where bridged packets pass the packet filter
    /// (`net.bridge.bridge-nf-call-iptables`, which Docker turns on), one that a pod sends to its own host port is
    /// turned around inside the bridge.
    pub(super) fn set_hairpin(&mut self, name: &str) -> io::Result<()> {
        // Index 0: the one with this name.
        let message = LinkBridgePort::new(0).name(name).hairpin(true).build();
        self.request(RouteNetlinkMessage::NewLink(message), 0)
            .map(drop)
    }

    /// Turns an interface on.
    pub(super) fn set_up(&mut self, index: u32) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(index).up().build();
        self.request(RouteNetlinkMessage::SetLink(message), 0)
            .map(drop)
    }

    /// Removes an interface; a missing one is fine.
    pub(super) fn delete_link(&mut self, name: &str) -> io::Result<()> {
        let message = LinkMessageBuilder::<LinkUnspec>::new().name(name).build();
        match self.request(RouteNetlinkMessage::DelLink(message), 0) {
            Err(error) if error.raw_os_error() != Some(libc::ENODEV) => Err(error),
            _ => Ok(()),
        }
    }

    /// Gives an interface an IPv4 address; one it has is fine.
    pub(super) fn add_address(
        &mut self,
        index: u32,
        address: Ipv4Addr,
        prefix: u8,
    ) -> io::Result<()> {
        let message = AddressMessageBuilder::<Ipv4Addr>::new()
            .index(index)
            .address(address, prefix)
            .build();
        self.request(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .map(drop)
    }

    /// Takes all IPv4 addresses but one from an interface.
    pub(super) fn keep_only_address(
        &mut self,
        index: u32,
        keep: Ipv4Addr,
        prefix: u8,
    ) -> io::Result<()> {
        let mut all = AddressMessage::default();
        all.header.family = AddressFamily::Inet;
        for answer in self.dump(RouteNetlinkMessage::GetAddress(all))? {
            let RouteNetlinkMessage::NewAddress(message) = answer else {
                continue;
            };
            let kept = message.header.prefix_len == prefix
                && message
                    .attributes
                    .contains(&AddressAttribute::Local(IpAddr::V4(keep)));
            if message.header.index == index
                && message.header.family == AddressFamily::Inet
                && !kept
            {
                self.request(RouteNetlinkMessage::DelAddress(message), 0)?;
            }
        }
        Ok(())
    }

    /// Sends all that has no better route to `gateway`.
    pub(super) fn add_default_route(&mut self, index: u32, gateway: Ipv4Addr) -> io::Result<()> {
        let message = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(gateway)
            .output_interface(index)
            .build();
        self.request(
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .map(drop)
    }

    /// All IPv4 routes to unicast destinations, of all tables, with the index of their interface.
    pub(super) fn routes(&mut self) -> io::Result<Vec<(Cidr, Option<u32>)>> {
        let mut all = RouteMessage::default();
        all.header.address_family = AddressFamily::Inet;
        let mut routes = Vec::new();
        for answer in self.dump(RouteNetlinkMessage::GetRoute(all))? {
            let RouteNetlinkMessage::NewRoute(message) = answer else {
                continue;
            };
            let unicast = matches!(message.header.kind, RouteType::Unicast | RouteType::Local);
            if message.header.address_family != AddressFamily::Inet || !unicast {
                continue;
            }
            let mut destination = Ipv4Addr::UNSPECIFIED;
            let mut device = None;
            for attribute in &message.attributes {
                match attribute {
                    RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                        destination = *address
                    }
                    RouteAttribute::Oif(index) => device = Some(*index),
                    _ => {}
                }
            }
            routes.extend(
                Cidr::new(destination, message.header.destination_prefix_length)
                    .map(|to| (to, device)),
            );
        }
        Ok(routes)
    }

    /// The interface of the default route in the main table.
    pub(super) fn default_device(&mut self) -> io::Result<Option<u32>> {
        let mut all = RouteMessage::default();
        all.header.address_family = AddressFamily::Inet;
        let mut best: Option<(u32, u32)> = None;
        for answer in self.dump(RouteNetlinkMessage::GetRoute(all))? {
            let RouteNetlinkMessage::NewRoute(message) = answer else {
                continue;
            };
            if message.header.destination_prefix_length != 0
                || message.header.kind != RouteType::Unicast
                || message.header.table != RouteHeader::RT_TABLE_MAIN
            {
                continue;
            }
            let metric = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RouteAttribute::Priority(metric) => Some(*metric),
                    _ => None,
                });
            let device = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                });
            let metric = metric.unwrap_or(0);
            if let Some(device) = device
                && best.is_none_or(|(least, _)| metric < least)
            {
                best = Some((metric, device));
            }
        }
        Ok(best.map(|(_, device)| device))
    }
}
