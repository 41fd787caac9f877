//! The node's network: a bridge, a network namespace and an address for each pod, and host ports.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

mod error;
pub mod files;

pub use error::Error;

/// What [`Network::open`] needs to know.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// The bridge's name. None: `podling0`, or the next `podlingN` if another node on this machine has that.
    pub bridge: Option<String>,
    /// The addresses for pods, such as `10.214.0.0/16`; the first is the bridge's. None: `10.214.0.0/16`, or the
    /// next `10.N.0.0/16` that no route of this machine overlaps.
    pub pod_cidr: Option<String>,
    /// Leases are kept in `network/` of this directory.
    pub data_dir: PathBuf,
    /// Network namespaces are pinned in `netns/` of this directory.
    pub run_dir: PathBuf,
}

/// A transport protocol of a host port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port of the host that leads to a pod (`containers[].ports[].hostPort`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// `hostIP`: only this address of the host. None: all of them.
    pub host_ip: Option<Ipv4Addr>,
    /// `hostPort`.
    pub host_port: u16,
    /// `containerPort`.
    pub container_port: u16,
    /// `protocol`.
    pub protocol: Protocol,
}

/// What a pod wants of the network.
#[derive(Debug, Clone)]
pub struct AttachSpec {
    /// `namespace/name`, for error messages.
    pub pod: String,
    /// Ports of the host that lead to this pod.
    pub host_ports: Vec<HostPort>,
}

/// What a pod got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The pinned network namespace.
    pub netns: PathBuf,
    /// The pod's addresses, at least one.
    pub addresses: Vec<IpAddr>,
    /// The bridge's address: the pod's way out.
    pub gateway: IpAddr,
}

/// The node's network. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Network {}

impl Network {
    /// Makes or finds the bridge, the packet filter table and the leases of earlier lives.
    pub async fn open(config: NetworkConfig) -> Result<Network, Error> {
        Err(Error::NotReady(config.run_dir))
    }

    /// Gives a pod its namespace, address and host ports. Idempotent: asked again it repairs what is missing, applies
    /// changed host ports, and answers the same address.
    pub async fn attach(&self, uid: &str, spec: AttachSpec) -> Result<Attachment, Error> {
        Err(Error::NotReady(PathBuf::from(format!("{uid}{spec:?}"))))
    }

    /// Takes it all back. Idempotent.
    pub async fn detach(&self, uid: &str) -> Result<(), Error> {
        Err(Error::NotReady(PathBuf::from(uid)))
    }

    /// Detaches all pods but these: leftovers of earlier lives.
    pub async fn retain(&self, uids: &HashSet<String>) -> Result<(), Error> {
        Err(Error::NotReady(PathBuf::from(format!("{uids:?}"))))
    }

    /// Detaches all pods and removes the bridge and the packet filter table, for a node that ends for good.
    pub async fn close(&self) -> Result<(), Error> {
        Ok(())
    }

    /// What the user should know of: a firewall that drops forwarded packets, and the like.
    pub fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The node's own address (`status.hostIP`): the source address of the default route, else the first global
/// address, else loopback.
pub fn host_address() -> IpAddr {
    IpAddr::V4(Ipv4Addr::LOCALHOST)
}
