//! What the network needs of the host: its own address, a free bridge name and pod CIDR, kernel parameters.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;

use nix::ifaddrs::getifaddrs;

use super::Error;
use super::cidr::Cidr;
use super::leases::Leases;
use super::link::{Link, Route, mac};
use super::{NetworkConfig, namespace};

/// Default bridges are `podling0` to `podling15`: more nodes than that on one machine name their own.
const DEFAULT_BRIDGES: u32 = 16;
/// Default pod CIDRs are `10.214.0.0/16` to `10.229.0.0/16`: what others take by default lies elsewhere (podman
/// 10.88 upwards, k3s 10.42, kubeadm and flannel 10.244, Docker 172.17 upwards, libvirt 192.168.122).
const FIRST_DEFAULT_CIDR: u8 = 214;
const DEFAULT_CIDRS: u8 = 16;
/// Routes wider than this are ways to the outside, as the default route is: VPNs lay 0.0.0.0/1 over it.
const NARROWEST_DEFAULT_ROUTE: u8 = 7;
/// The MTU of Ethernet, for a host without a default route.
const DEFAULT_MTU: u32 = 1500;
/// The longest interface name, without its final NUL.
const MAX_NAME_BYTES: usize = 15;
/// How an interface is marked as ours, before the node's run directory.
const OWNER_MARK: &str = "podling ";

/// The bridge that pods are connected to.
#[derive(Debug, Clone)]
pub(super) struct Bridge {
    pub(super) name: String,
    pub(super) index: u32,
    pub(super) mtu: u32,
}

/// The node's own address (`status.hostIP`): the source address towards the default route, else the first global
/// address, else loopback. IPv4 is preferred.
pub fn host_address() -> IpAddr {
    // Connecting a UDP socket sends nothing: it asks the routing table for the source address. The destinations are
    // ones that documentation may use, so nobody has a route for them but the default one.
    let towards = |from: IpAddr, to: IpAddr| {
        let socket = UdpSocket::bind(SocketAddr::new(from, 0)).ok()?;
        socket.connect(SocketAddr::new(to, 9)).ok()?;
        socket
            .local_addr()
            .ok()
            .map(|address| address.ip())
            .filter(is_global)
    };
    towards(
        Ipv4Addr::UNSPECIFIED.into(),
        Ipv4Addr::new(203, 0, 113, 1).into(),
    )
    .or_else(first_global_address)
    .or_else(|| {
        towards(
            Ipv6Addr::UNSPECIFIED.into(),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        )
    })
    .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

fn first_global_address() -> Option<IpAddr> {
    let mut addresses: Vec<IpAddr> = getifaddrs()
        .ok()?
        .filter(|interface| !interface.interface_name.starts_with("podling"))
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .filter(is_global)
        .collect();
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses.into_iter().next()
}

fn is_global(address: &IpAddr) -> bool {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !address.is_loopback() && !address.is_unspecified() && !link_local
}

/// Chooses the bridge and the pod CIDR, and makes the bridge or mends it.
pub(super) fn ensure_bridge(
    route: &mut Route,
    config: &NetworkConfig,
) -> Result<(Bridge, Cidr), Error> {
    let links = route
        .links()
        .map_err(Error::kernel("list network interfaces"))?;
    let owner = format!("{OWNER_MARK}{}", config.run_dir.display());
    let name = choose_name(config, &links, &owner)?;
    let existing = links
        .iter()
        .find(|link| link.name == name)
        .map(|link| link.index);
    let cidr = choose_cidr(route, config, &links, existing)?;
    let mtu = uplink_mtu(route, &links)?;
    if existing.is_none() {
        route
            .add_bridge(&name, mac(cidr.gateway()), mtu)
            .map_err(Error::kernel(format!("make bridge {name}")))?;
    }
    let index = route
        .link(&name)
        .and_then(|link| {
            link.map(|link| link.index)
                .ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
        })
        .map_err(Error::kernel(format!("find bridge {name}")))?;
    route
        .set_bridge(index, &owner, mtu)
        .map_err(Error::kernel(format!("configure bridge {name}")))?;
    route
        .add_address(index, cidr.gateway(), cidr.prefix())
        .and_then(|()| route.keep_only_address(index, cidr.gateway(), cidr.prefix()))
        .map_err(Error::kernel(format!("give bridge {name} its address")))?;
    Ok((Bridge { name, index, mtu }, cidr))
}

fn choose_name(config: &NetworkConfig, links: &[Link], owner: &str) -> Result<String, Error> {
    if let Some(name) = &config.bridge {
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty()
            || name.len() > MAX_NAME_BYTES
            || !name.chars().all(fits)
            || name.starts_with('.')
        {
            return Err(Error::BridgeName(name.clone()));
        }
        return match other_owner(name, links, owner) {
            Some(reason) => Err(Error::BridgeTaken {
                name: name.clone(),
                reason,
            }),
            None => Ok(name.clone()),
        };
    }
    let name = |n: u32| format!("podling{n}");
    // The node's own bridge of an earlier life counts before a free name.
    let own = links
        .iter()
        .find(|link| link.is_bridge && link.alias.as_deref() == Some(owner));
    own.map(|link| link.name.clone())
        .or_else(|| {
            (0..DEFAULT_BRIDGES)
                .map(name)
                .find(|name| other_owner(name, links, owner).is_none())
        })
        .ok_or_else(|| Error::NoFreeBridge {
            first: name(0),
            last: name(DEFAULT_BRIDGES - 1),
        })
}

/// Whose an interface is, if it is neither missing, nor ours, nor left behind by a node that is gone.
fn other_owner(name: &str, links: &[Link], owner: &str) -> Option<String> {
    let link = links.iter().find(|link| link.name == name)?;
    if !link.is_bridge {
        return Some("it is not a bridge".to_string());
    }
    match link
        .alias
        .as_deref()
        .and_then(|alias| alias.strip_prefix(OWNER_MARK))
    {
        None => Some("it was not made by Podling".to_string()),
        Some(_) if link.alias.as_deref() == Some(owner) => None,
        Some(run_dir) => Path::new(run_dir)
            .exists()
            .then(|| format!("it belongs to the node with --run-dir {run_dir}")),
    }
}

fn choose_cidr(
    route: &mut Route,
    config: &NetworkConfig,
    links: &[Link],
    bridge: Option<u32>,
) -> Result<Cidr, Error> {
    let stored = Leases::stored_cidr(&config.data_dir)?;
    let routes: Vec<(Cidr, Option<u32>)> = route
        .routes()
        .map_err(Error::kernel("list routes"))?
        .into_iter()
        .filter(|(to, device)| {
            to.prefix() > NARROWEST_DEFAULT_ROUTE && (device.is_none() || *device != bridge)
        })
        .collect();
    let overlap = |cidr: Cidr| {
        let (to, device) = routes.iter().find(|(to, _)| to.overlaps(cidr))?;
        let device = links.iter().find(|link| Some(link.index) == *device);
        Some(Error::CidrOverlaps {
            cidr: cidr.to_string(),
            route: to.to_string(),
            device: device.map_or_else(|| "no interface".to_string(), |link| link.name.clone()),
        })
    };
    let pods_run = pods_run(&namespace_dir(&config.run_dir));
    if let Some(text) = &config.pod_cidr {
        let cidr = Cidr::parse_for_pods(text)?;
        if let Some(old) = stored.filter(|old| pods_run && *old != cidr.to_string()) {
            return Err(Error::CidrChanged {
                old,
                new: cidr.to_string(),
            });
        }
        return overlap(cidr).map_or(Ok(cidr), Err);
    }
    if let Some(stored) = stored {
        let cidr = Cidr::parse_for_pods(&stored)?;
        match overlap(cidr) {
            None => return Ok(cidr),
            Some(error) if pods_run => return Err(error),
            Some(_) => {}
        }
    }
    let default = |n: u8| Cidr::new(Ipv4Addr::new(10, n, 0, 0), 16);
    let last = FIRST_DEFAULT_CIDR + DEFAULT_CIDRS - 1;
    (FIRST_DEFAULT_CIDR..=last)
        .filter_map(default)
        .find(|cidr| overlap(*cidr).is_none())
        .ok_or_else(|| Error::NoFreeCidr {
            first: format!("10.{FIRST_DEFAULT_CIDR}.0.0/16"),
            last: format!("10.{last}.0.0/16"),
        })
}

/// Where a node pins its pods' network namespaces.
pub(super) fn namespace_dir(run_dir: &Path) -> std::path::PathBuf {
    run_dir.join("netns")
}

fn pods_run(namespaces: &Path) -> bool {
    fs::read_dir(namespaces).is_ok_and(|mut entries| {
        entries.any(|entry| entry.is_ok_and(|entry| namespace::is_pinned(&entry.path())))
    })
}

fn uplink_mtu(route: &mut Route, links: &[Link]) -> Result<u32, Error> {
    let device = route
        .default_device()
        .map_err(Error::kernel("list routes"))?;
    let link = links.iter().find(|link| Some(link.index) == device);
    Ok(link.and_then(|link| link.mtu).unwrap_or(DEFAULT_MTU))
}

/// Lets the host forward packets between pods and the outside, and answer from pods to programs on its own loopback.
/// Returns what the user should know.
pub(super) fn ensure_parameters(bridge: &str) -> Result<Vec<String>, Error> {
    let mut notes = Vec::new();
    if ensure_parameter("net/ipv4/ip_forward", "1")? {
        notes.push(
            "IPv4 forwarding (net.ipv4.ip_forward) was off and has been turned on".to_string(),
        );
    }
    ensure_parameter(&format!("net/ipv4/conf/{bridge}/route_localnet"), "1")?;
    Ok(notes)
}

/// Returns whether it had to be changed.
fn ensure_parameter(name: &str, value: &str) -> Result<bool, Error> {
    let path = Path::new("/proc/sys").join(name);
    let current = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
    if current.trim() == value {
        return Ok(false);
    }
    fs::write(&path, value).map_err(Error::file("write", &path))?;
    Ok(true)
}
