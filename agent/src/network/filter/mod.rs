//! The packet filter: one nftables table, written whole in one atomic batch.
//!
//! ```text
//! table ip podling {
//!     map host_ports    { type inet_proto . inet_service : ipv4_addr . inet_service }
//!     map host_ip_ports { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service }
//!     chain loopback_guard { type filter hook prerouting priority raw
//!         iifname "podling0" ip daddr 127.0.0.0/8 drop }
//!     chain redirect_guard { type filter hook output priority filter
//!         oifname "podling0" icmp type redirect drop }
//!     chain prerouting { type nat hook prerouting priority dstnat
//!         fib daddr type local dnat to ip daddr . meta l4proto . th dport map @host_ip_ports
//!         fib daddr type local dnat to meta l4proto . th dport map @host_ports }
//!     chain output { type nat hook output priority -100
//!         (the same two) }
//!     chain postrouting { type nat hook postrouting priority srcnat
//!         ip saddr <pods> ip daddr != <pods> masquerade
//!         ip saddr <pods> ct status dnat masquerade
//!         ip saddr 127.0.0.0/8 oifname "podling0" masquerade }
//! }
//! ```
//!
//! - A pod that connects to a host port comes back to the bridge, perhaps to itself. Its packets get the bridge's
//!   address as their source, so that the answer passes the host, which undoes both rewritings.
//! - A program on the host that connects to `127.0.0.1:<hostPort>` needs `route_localnet` on the bridge, which would
//!   let pods reach what listens on the host's loopback (CVE-2020-8558): `loopback_guard` drops that. It comes before
//!   connection tracking, where the answers to the host's own connections still carry the bridge's address.
//! - A pod's packets to another pod's host port leave by the interface that they came by, at which the host would tell
//!   the pod of a shorter way to the host's own address: past it. `redirect_guard` keeps that from the pods.
//! - Nothing here can overrule another table that drops forwarded packets, as a packet must pass all of them:
//!   [`Filter::forward_drops`] finds those, so that the user can be told.
//! - IPv4 only, as pods are.

mod expression;

use std::io;
use std::net::Ipv4Addr;

use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, Hook, HookNumber, InetHookNumber, ListAttribute,
    NfTablesMessage, RuleAttribute, RuleMessage, SetAttribute, SetElementAttribute, SetElementList,
    SetElementMessage, SetFlags, SetMessage, TableAttribute, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};

use self::expression::{
    Expression, came_by, concatenation, destination_in, drop_packet, is_icmp_redirect, leaves_by,
    masquerade, redirect_by, source_in, to_this_host, was_redirected,
};
use super::cidr::Cidr;
use super::conntrack::Targets;
use super::netlink::Netfilter;
use super::{Error, HostPort, Protocol};

/// Host ports of all addresses, and those of one.
const HOST_PORTS: &str = "host_ports";
const HOST_IP_PORTS: &str = "host_ip_ports";

// Priorities of hooks, linux/netfilter_ipv4.h.
const NF_IP_PRI_RAW: i32 = -300;
const NF_IP_PRI_NAT_DST: i32 = -100;
const NF_IP_PRI_FILTER: i32 = 0;
const NF_IP_PRI_NAT_SRC: i32 = 100;

/// The policy of a chain: enum nf_verdicts.
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;

/// nft's numbers for data types (`include/datatype.h` of nftables), for its listings only; six bits each in a
/// concatenation.
const TYPE_IPADDR: u32 = 7;
const TYPE_INET_PROTOCOL: u32 = 12;
const TYPE_INET_SERVICE: u32 = 13;

/// So many elements in one message keep its list below the 64 KiB that an attribute can hold.
const ELEMENTS_PER_MESSAGE: usize = 500;

/// The table of this node.
#[derive(Debug, Clone)]
pub(super) struct Filter {
    /// The table's name.
    pub(super) table: String,
    /// The bridge's name.
    pub(super) bridge: String,
    /// The pods' addresses.
    pub(super) cidr: Cidr,
}

impl Filter {
    /// Replaces the table's content; `targets` are the host ports and the pods that they lead to.
    pub(super) fn apply(&self, connection: &mut Netfilter, targets: &Targets) -> Result<(), Error> {
        let mut changes = vec![self.table(true), self.table(false), self.table(true)];
        changes.extend(self.map(HOST_PORTS, false, targets));
        changes.extend(self.map(HOST_IP_PORTS, true, targets));
        changes.extend(self.chains());
        send(connection, changes).map_err(|source| Error::Filter {
            what: "write",
            table: self.table.clone(),
            source,
        })
    }

    /// Removes the table; a missing one is fine.
    pub(super) fn remove(&self, connection: &mut Netfilter) -> Result<(), Error> {
        // Deleting what is not there would fail the batch.
        send(connection, vec![self.table(true), self.table(false)]).map_err(|source| {
            Error::Filter {
                what: "remove",
                table: self.table.clone(),
                source,
            }
        })
    }

    /// The chains of other tables that drop forwarded packets unless one of their rules accepts them.
    pub(super) fn forward_drops(&self, connection: &mut Netfilter) -> io::Result<Vec<String>> {
        let all = NfTablesMessage::GetChain(ChainMessage {
            attributes: Vec::new(),
        });
        let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
        let answers = connection.dump(NetfilterMessage::new(header, all))?;
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer.inner {
                NetfilterMessageInner::NfTables(NfTablesMessage::NewChain(chain)) => {
                    forward_drop(&chain)
                }
                _ => None,
            })
            .filter(|chain| chain.split(' ').next() != Some(self.table.as_str()))
            .collect())
    }

    fn table(&self, create: bool) -> NfTablesMessage {
        let message = TableMessage {
            attributes: vec![TableAttribute::Name(self.table.clone())],
        };
        if create {
            NfTablesMessage::NewTable(message)
        } else {
            NfTablesMessage::DeleteTable(message)
        }
    }

    fn chains(&self) -> Vec<NfTablesMessage> {
        let loopback = Cidr::new(Ipv4Addr::LOCALHOST, 8).unwrap_or(self.cidr);
        let mut messages = vec![
            self.chain(
                "loopback_guard",
                "filter",
                InetHookNumber::PreRouting,
                NF_IP_PRI_RAW,
            ),
            self.chain(
                "redirect_guard",
                "filter",
                InetHookNumber::LocalOut,
                NF_IP_PRI_FILTER,
            ),
            self.chain(
                "prerouting",
                "nat",
                InetHookNumber::PreRouting,
                NF_IP_PRI_NAT_DST,
            ),
            self.chain("output", "nat", InetHookNumber::LocalOut, NF_IP_PRI_NAT_DST),
            self.chain(
                "postrouting",
                "nat",
                InetHookNumber::PostRouting,
                NF_IP_PRI_NAT_SRC,
            ),
            self.rule(
                "loopback_guard",
                [
                    came_by(&self.bridge),
                    destination_in(loopback, true),
                    drop_packet(),
                ],
            ),
            self.rule(
                "redirect_guard",
                [leaves_by(&self.bridge), is_icmp_redirect(), drop_packet()],
            ),
        ];
        for chain in ["prerouting", "output"] {
            messages.push(self.rule(chain, [to_this_host(), redirect_by(HOST_IP_PORTS, true)]));
            messages.push(self.rule(chain, [to_this_host(), redirect_by(HOST_PORTS, false)]));
        }
        let pods = self.cidr;
        messages.extend([
            self.rule(
                "postrouting",
                [
                    source_in(pods, true),
                    destination_in(pods, false),
                    masquerade(),
                ],
            ),
            self.rule(
                "postrouting",
                [source_in(pods, true), was_redirected(), masquerade()],
            ),
            self.rule(
                "postrouting",
                [
                    source_in(loopback, true),
                    leaves_by(&self.bridge),
                    masquerade(),
                ],
            ),
        ]);
        messages
    }

    fn chain(
        &self,
        name: &str,
        kind: &str,
        hook: InetHookNumber,
        priority: i32,
    ) -> NfTablesMessage {
        NfTablesMessage::NewChain(ChainMessage {
            attributes: vec![
                ChainAttribute::Table(self.table.clone()),
                ChainAttribute::Name(name.to_string()),
                ChainAttribute::Hook(vec![
                    Hook::Number(HookNumber::Inet(hook)),
                    Hook::Priority(priority.cast_unsigned()),
                ]),
                ChainAttribute::Policy(NF_ACCEPT),
                ChainAttribute::Type(kind.to_string()),
            ],
        })
    }

    fn rule<const N: usize>(
        &self,
        chain: &str,
        expressions: [Vec<Expression>; N],
    ) -> NfTablesMessage {
        NfTablesMessage::NewRule(RuleMessage {
            attributes: vec![
                RuleAttribute::Table(self.table.clone()),
                RuleAttribute::Chain(chain.to_string()),
                RuleAttribute::Expressions(expressions.into_iter().flatten().collect()),
            ],
        })
    }

    /// A map and its elements: of the ports that are bound to one address, or of those that are not.
    fn map(&self, name: &str, with_address: bool, targets: &Targets) -> Vec<NfTablesMessage> {
        let mut key_type = (TYPE_INET_PROTOCOL << 6) | TYPE_INET_SERVICE;
        if with_address {
            key_type |= TYPE_IPADDR << 12;
        }
        let mut messages = vec![NfTablesMessage::NewSet(SetMessage {
            attributes: vec![
                SetAttribute::Table(self.table.clone()),
                SetAttribute::Name(name.to_string()),
                SetAttribute::Flags(SetFlags::Map),
                SetAttribute::KeyType(key_type),
                SetAttribute::KeyLen(if with_address { 12 } else { 8 }),
                SetAttribute::DataType((TYPE_IPADDR << 6) | TYPE_INET_SERVICE),
                SetAttribute::DataLen(8),
                SetAttribute::Id(if with_address { 2 } else { 1 }),
            ],
        })];
        let elements: Vec<_> = targets
            .iter()
            .filter(|(port, _)| port.host_ip.is_some() == with_address)
            .map(|(port, pod)| element(port, *pod))
            .collect();
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE) {
            messages.push(NfTablesMessage::NewSetElement(SetElementMessage {
                attributes: vec![
                    SetElementList::Table(self.table.clone()),
                    SetElementList::Set(name.to_string()),
                    SetElementList::Elements(chunk.to_vec()),
                ],
            }));
        }
        messages
    }
}

fn element(port: &HostPort, pod: Ipv4Addr) -> ListAttribute<SetElementAttribute> {
    let protocol = match port.protocol {
        Protocol::Tcp => libc::IPPROTO_TCP as u8,
        Protocol::Udp => libc::IPPROTO_UDP as u8,
    };
    ListAttribute::Element(vec![
        SetElementAttribute::Key(DataAttribute::Value(concatenation(
            port.host_ip,
            Some(protocol),
            port.host_port,
        ))),
        SetElementAttribute::Data(DataAttribute::Value(concatenation(
            Some(pod),
            None,
            port.container_port,
        ))),
    ])
}

fn forward_drop(chain: &ChainMessage) -> Option<String> {
    let (mut table, mut name, mut forward, mut drops) = ("", "", false, false);
    for attribute in &chain.attributes {
        match attribute {
            ChainAttribute::Table(text) => table = text,
            ChainAttribute::Name(text) => name = text,
            ChainAttribute::Hook(hooks) => {
                forward = hooks.contains(&Hook::Number(HookNumber::Inet(InetHookNumber::Forward)));
            }
            ChainAttribute::Policy(policy) => drops = *policy == NF_DROP,
            _ => {}
        }
    }
    (forward && drops).then(|| format!("{table} {name}"))
}

fn send(connection: &mut Netfilter, changes: Vec<NfTablesMessage>) -> io::Result<()> {
    let control = |message| {
        let header = NetfilterHeader::new(
            NetfilterProtoFamily::Unspec,
            0,
            libc::NFNL_SUBSYS_NFTABLES as u16,
        );
        NetfilterMessage::new(header, message)
    };
    let changes = changes
        .into_iter()
        .map(|change| {
            NetfilterMessage::new(
                NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0),
                change,
            )
        })
        .collect();
    connection.batch(
        control(ControlMessage::BatchBegin),
        changes,
        flags,
        control(ControlMessage::BatchEnd),
    )
}

fn flags(message: &NetfilterMessage) -> u16 {
    match &message.inner {
        NetfilterMessageInner::NfTables(NfTablesMessage::DeleteTable(_)) => 0,
        NetfilterMessageInner::NfTables(NfTablesMessage::NewRule(_)) => NLM_F_CREATE | NLM_F_APPEND,
        _ => NLM_F_CREATE,
    }
}
