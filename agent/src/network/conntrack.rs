//! Forgetting flows that a changed host port has overtaken.
//!
//! The packet filter rewrites only the first packet of a flow; connection tracking repeats that for all others. A TCP
//! connection ends with its pod, but a UDP flow lasts for as long as its sender goes on, to a pod that is gone, or to
//! the host's own closed port from before the pod. So when UDP host ports change, flows that lead elsewhere are
//! removed, and their next packet is looked at anew.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol as IpProtocol, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};

use super::netlink::Netfilter;
use super::{HostPort, Protocol};

/// Which pod each host port leads to.
pub(super) type Targets = HashMap<HostPort, Ipv4Addr>;

/// Removes the UDP flows to host ports that differ between `before` and `now`, unless they lead where they should.
pub(super) fn forget_overtaken(
    connection: &mut Netfilter,
    before: &Targets,
    now: &Targets,
) -> io::Result<()> {
    let changed = changed_udp_ports(before, now);
    if changed.is_empty() {
        return Ok(());
    }
    for answer in connection.dump(message(ConntrackMessage::Get(Vec::new())))? {
        let NetfilterMessageInner::Conntrack(ConntrackMessage::New(flow)) = answer.inner else {
            continue;
        };
        if !is_overtaken(&flow, &changed, now) {
            continue;
        }
        let original = flow
            .into_iter()
            .filter(|a| matches!(a, ConntrackAttribute::CtaTupleOrig(_)))
            .collect();
        match connection.request(message(ConntrackMessage::Delete(original)), 0) {
            // It has ended by itself meanwhile.
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn changed_udp_ports(before: &Targets, now: &Targets) -> Vec<HostPort> {
    let mut changed: Vec<HostPort> = before
        .keys()
        .chain(now.keys())
        .filter(|port| port.protocol == Protocol::Udp && before.get(port) != now.get(port))
        .copied()
        .collect();
    changed.sort();
    changed.dedup();
    changed
}

fn is_overtaken(flow: &[ConntrackAttribute], changed: &[HostPort], now: &Targets) -> bool {
    let (mut to, mut answered_by) = (None, None);
    for attribute in flow {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuple) => to = udp_destination(tuple),
            ConntrackAttribute::CtaTupleReply(tuple) => answered_by = source(tuple),
            _ => {}
        }
    }
    let Some((address, port)) = to else {
        return false;
    };
    changed.iter().any(|change| {
        change.host_port == port
            && change.host_ip.is_none_or(|ip| IpAddr::V4(ip) == address)
            && now.get(change).map(|pod| IpAddr::V4(*pod)) != answered_by
    })
}

fn udp_destination(tuple: &[Tuple]) -> Option<(IpAddr, u16)> {
    let (mut address, mut port, mut udp) = (None, None, false);
    for part in tuple {
        match part {
            Tuple::Ip(parts) => {
                address = parts.iter().find_map(|part| match part {
                    IPTuple::DestinationAddress(address) => Some(*address),
                    _ => None,
                });
            }
            Tuple::Proto(parts) => {
                udp = parts.contains(&ProtoTuple::Protocol(IpProtocol::Udp));
                port = parts.iter().find_map(|part| match part {
                    ProtoTuple::DestinationPort(port) => Some(*port),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    udp.then_some((address?, port?))
}

fn source(tuple: &[Tuple]) -> Option<IpAddr> {
    tuple.iter().find_map(|part| match part {
        Tuple::Ip(parts) => parts.iter().find_map(|part| match part {
            IPTuple::SourceAddress(address) => Some(*address),
            _ => None,
        }),
        _ => None,
    })
}

fn message(inner: ConntrackMessage) -> NetfilterMessage {
    NetfilterMessage::new(
        NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0),
        inner,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
    const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    fn udp(host_ip: Option<Ipv4Addr>, host_port: u16) -> HostPort {
        HostPort {
            host_ip,
            host_port,
            container_port: 53,
            protocol: Protocol::Udp,
        }
    }

    fn flow(protocol: IpProtocol, port: u16, answered_by: Ipv4Addr) -> Vec<ConntrackAttribute> {
        vec![
            ConntrackAttribute::CtaTupleOrig(vec![
                Tuple::Ip(vec![IPTuple::DestinationAddress(HOST.into())]),
                Tuple::Proto(vec![
                    ProtoTuple::Protocol(protocol),
                    ProtoTuple::DestinationPort(port),
                ]),
            ]),
            ConntrackAttribute::CtaTupleReply(vec![Tuple::Ip(vec![IPTuple::SourceAddress(
                answered_by.into(),
            )])]),
        ]
    }

    #[test]
    fn only_changed_udp_ports_count() {
        let tcp = HostPort {
            protocol: Protocol::Tcp,
            ..udp(None, 53)
        };
        let before = Targets::from([
            (udp(None, 1), POD),
            (udp(None, 2), POD),
            (udp(None, 3), POD),
            (tcp, POD),
        ]);
        let now = Targets::from([
            (udp(None, 1), POD),
            (udp(None, 2), OTHER),
            (udp(None, 4), POD),
        ]);
        assert_eq!(
            changed_udp_ports(&before, &now),
            [udp(None, 2), udp(None, 3), udp(None, 4)]
        );
    }

    #[test]
    fn a_flow_is_overtaken_when_it_leads_elsewhere() {
        let now = Targets::from([(udp(None, 53), POD)]);
        for (flow, change, expected) in [
            (flow(IpProtocol::Udp, 53, OTHER), udp(None, 53), true),
            (flow(IpProtocol::Udp, 53, HOST), udp(None, 53), true),
            (flow(IpProtocol::Udp, 53, POD), udp(None, 53), false),
            (flow(IpProtocol::Tcp, 53, OTHER), udp(None, 53), false),
            (flow(IpProtocol::Udp, 54, OTHER), udp(None, 53), false),
            (flow(IpProtocol::Udp, 55, POD), udp(Some(HOST), 55), true),
            (flow(IpProtocol::Udp, 55, POD), udp(Some(OTHER), 55), false),
        ] {
            assert_eq!(
                is_overtaken(&flow, &[change], &now),
                expected,
                "{flow:?} {change:?}"
            );
        }
    }
}
