//! The nftables expressions that our rules are made of: small machine instructions on registers.
//!
//! What the kernel reads is in `include/uapi/linux/netfilter/nf_tables.h`; `nft --debug=netlink list ruleset` shows
//! rules in this form. Expressions unknown to netlink-packet-netfilter (`ct`, `fib`, `nat`, `masq`) are written with
//! their attributes by number.

use std::net::Ipv4Addr;

use netlink_packet_core::DefaultNla;
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, ExpressionAttribute, Expressions, Immediate, ListAttribute,
    Lookup, Meta, MetaKey, Operator, Payload, Register, Verdict, VerdictAttribute,
};

use crate::network::cidr::Cidr;

/// One instruction of a rule.
pub(super) type Expression = ListAttribute<ExpressionAttribute>;

// enum nft_payload_bases
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
// The IPv4 header, RFC 791 section 3.1.
const SOURCE_ADDRESS: u32 = 12;
const DESTINATION_ADDRESS: u32 = 16;
// TCP and UDP have the destination port at the same place.
const DESTINATION_PORT: u32 = 2;

// enum nft_fib_attributes, nft_fib_result, nft_fib_flags; RTN_LOCAL of linux/rtnetlink.h
const FIB_DREG: u16 = 1;
const FIB_RESULT: u16 = 2;
const FIB_FLAGS: u16 = 3;
const FIB_RESULT_ADDRTYPE: u32 = 3;
const FIB_F_DADDR: u32 = 2;
const RTN_LOCAL: u32 = 2;

// enum nft_ct_attributes, nft_ct_keys; enum ip_conntrack_status
const CT_DREG: u16 = 1;
const CT_KEY: u16 = 2;
const CT_KEY_STATUS: u32 = 2;
const IPS_DST_NAT: u32 = 1 << 5;

// enum nft_nat_attributes, nft_nat_types
const NAT_TYPE: u16 = 1;
const NAT_FAMILY: u16 = 2;
const NAT_REG_ADDR_MIN: u16 = 3;
const NAT_REG_PROTO_MIN: u16 = 5;
const NAT_TYPE_DNAT: u32 = 1;
const NFPROTO_IPV4: u32 = 2;

/// The ICMP type of a redirect, RFC 792.
const ICMP_REDIRECT: u8 = 5;

const NF_DROP: u32 = 0;
/// The size of an interface name, with its final NUL.
const IFNAMSIZ: usize = 16;

/// Goes on if the packet comes from (or does not come from) these addresses.
pub(super) fn source_in(cidr: Cidr, inside: bool) -> Vec<Expression> {
    address_in(SOURCE_ADDRESS, cidr, inside)
}

/// Goes on if the packet goes to (or does not go to) these addresses.
pub(super) fn destination_in(cidr: Cidr, inside: bool) -> Vec<Expression> {
    address_in(DESTINATION_ADDRESS, cidr, inside)
}

fn address_in(offset: u32, cidr: Cidr, inside: bool) -> Vec<Expression> {
    let operator = if inside {
        Operator::Equal
    } else {
        Operator::NotEqual
    };
    vec![
        load(NETWORK_HEADER, offset, 4, Register::Reg1),
        and(Register::Reg1, cidr.mask().octets()),
        compare(Register::Reg1, operator, &cidr.network().octets()),
    ]
}

/// Goes on if the packet is to leave by this interface.
pub(super) fn leaves_by(device: &str) -> Vec<Expression> {
    device_is(MetaKey::Oifname, device)
}

/// Goes on if the packet came in by this interface.
pub(super) fn came_by(device: &str) -> Vec<Expression> {
    device_is(MetaKey::Iifname, device)
}

fn device_is(key: MetaKey, device: &str) -> Vec<Expression> {
    let mut name = device.as_bytes().to_vec();
    name.resize(IFNAMSIZ, 0);
    vec![
        meta(key, Register::Reg1),
        compare(Register::Reg1, Operator::Equal, &name),
    ]
}

/// Goes on if the packet goes to an address of this host.
pub(super) fn to_this_host() -> Vec<Expression> {
    let mut expressions = vec![other(
        "fib",
        &[
            (FIB_DREG, u32::from(Register::Reg1)),
            (FIB_RESULT, FIB_RESULT_ADDRTYPE),
            (FIB_FLAGS, FIB_F_DADDR),
        ],
    )];
    expressions.push(compare(
        Register::Reg1,
        Operator::Equal,
        &RTN_LOCAL.to_ne_bytes(),
    ));
    expressions
}

/// Goes on if the packet's destination has been rewritten.
pub(super) fn was_redirected() -> Vec<Expression> {
    vec![
        other(
            "ct",
            &[
                (CT_DREG, u32::from(Register::Reg1)),
                (CT_KEY, CT_KEY_STATUS),
            ],
        ),
        and(Register::Reg1, IPS_DST_NAT.to_ne_bytes()),
        compare(Register::Reg1, Operator::NotEqual, &0u32.to_ne_bytes()),
    ]
}

/// Goes on if the packet tells its receiver of a shorter way.
pub(super) fn is_icmp_redirect() -> Vec<Expression> {
    vec![
        meta(MetaKey::L4Proto, Register::Reg1),
        compare(Register::Reg1, Operator::Equal, &[libc::IPPROTO_ICMP as u8]),
        load(TRANSPORT_HEADER, 0, 1, Register::Reg1),
        compare(Register::Reg1, Operator::Equal, &[ICMP_REDIRECT]),
    ]
}

/// Rewrites the destination to what `map` says of protocol and port, if it says something. With `with_address`, the
/// map's keys begin with the destination address.
pub(super) fn redirect_by(map: &str, with_address: bool) -> Vec<Expression> {
    let mut registers = [Register::Reg32_00, Register::Reg32_01, Register::Reg32_02].into_iter();
    let mut next = || registers.next().unwrap_or(Register::Reg32_02);
    let mut expressions = Vec::new();
    if with_address {
        expressions.push(load(NETWORK_HEADER, DESTINATION_ADDRESS, 4, next()));
    }
    expressions.push(meta(MetaKey::L4Proto, next()));
    expressions.push(load(TRANSPORT_HEADER, DESTINATION_PORT, 2, next()));
    expressions.push(
        Expressions::Lookup(vec![
            Lookup::Set(map.to_string()),
            Lookup::SourceRegister(Register::Reg32_00),
            Lookup::DestinationRegister(Register::Reg32_00),
        ])
        .into(),
    );
    expressions.push(other(
        "nat",
        &[
            (NAT_TYPE, NAT_TYPE_DNAT),
            (NAT_FAMILY, NFPROTO_IPV4),
            (NAT_REG_ADDR_MIN, u32::from(Register::Reg32_00)),
            (NAT_REG_PROTO_MIN, u32::from(Register::Reg32_01)),
        ],
    ));
    expressions
}

/// Rewrites the source to the address of the interface that the packet leaves by.
pub(super) fn masquerade() -> Vec<Expression> {
    vec![other("masq", &[])]
}

/// Ends the packet.
pub(super) fn drop_packet() -> Vec<Expression> {
    vec![
        Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Verdict),
            Immediate::Data(DataAttribute::Verdict(vec![VerdictAttribute::Code(
                Verdict::Other(NF_DROP),
            )])),
        ])
        .into(),
    ]
}

/// The key or value of a map: fields one after another, each filled up to four bytes.
pub(super) fn concatenation(address: Option<Ipv4Addr>, protocol: Option<u8>, port: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(12);
    if let Some(address) = address {
        bytes.extend(address.octets());
    }
    if let Some(protocol) = protocol {
        bytes.extend([protocol, 0, 0, 0]);
    }
    bytes.extend(port.to_be_bytes());
    bytes.extend([0, 0]);
    bytes
}

fn load(base: u32, offset: u32, length: u32, into: Register) -> Expression {
    Expressions::Payload(vec![
        Payload::DestinationRegister(into),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
    .into()
}

fn meta(key: MetaKey, into: Register) -> Expression {
    Expressions::Meta(vec![Meta::DestinationRegister(into), Meta::Key(key)]).into()
}

fn and(register: Register, mask: [u8; 4]) -> Expression {
    Expressions::Bitwise(vec![
        Bitwise::SourceRegister(register),
        Bitwise::DestinationRegister(register),
        Bitwise::Length(4),
        Bitwise::Mask(DataAttribute::Value(mask.to_vec())),
        Bitwise::Xor(DataAttribute::Value(vec![0; 4])),
    ])
    .into()
}

fn compare(register: Register, operator: Operator, with: &[u8]) -> Expression {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(register),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(with.to_vec())),
    ])
    .into()
}

fn other(name: &str, attributes: &[(u16, u32)]) -> Expression {
    Expressions::Other {
        expression_type: name.to_string(),
        attributes: attributes
            .iter()
            .map(|(kind, value)| DefaultNla::new(*kind, value.to_be_bytes().to_vec()))
            .collect(),
    }
    .into()
}
