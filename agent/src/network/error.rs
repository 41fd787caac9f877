//! What can go wrong with the network.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use super::Protocol;

/// What can go wrong with the network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configured pod CIDR cannot be used.
    #[error("pod CIDR {text:?}: {reason}")]
    Cidr {
        /// As configured.
        text: String,
        /// Why not.
        reason: &'static str,
    },
    /// The pod CIDR is part of a network that this machine already knows.
    #[error(
        "pod CIDR {cidr} overlaps the route to {route} through {device}; choose another with --pod-cidr"
    )]
    CidrOverlaps {
        /// The pod CIDR.
        cidr: String,
        /// The existing route.
        route: String,
        /// Its interface.
        device: String,
    },
    /// None of the default pod CIDRs is free.
    #[error(
        "every default pod CIDR, {first} to {last}, overlaps a route of this machine; choose one with --pod-cidr"
    )]
    NoFreeCidr {
        /// The first tried.
        first: String,
        /// The last tried.
        last: String,
    },
    /// Pods that still run have addresses of another CIDR.
    #[error("the pod CIDR cannot change from {old} to {new} while pods run; stop them first")]
    CidrChanged {
        /// What the leases are in.
        old: String,
        /// What is configured.
        new: String,
    },
    /// The bridge's name cannot be one.
    #[error("bridge name {0:?} must be 1 to 15 letters, digits, dots, dashes or underscores")]
    BridgeName(String),
    /// Something else has the bridge's name.
    #[error(
        "network interface {name} exists and is not this node's: {reason}; choose another name with --bridge"
    )]
    BridgeTaken {
        /// The name.
        name: String,
        /// Whose it is.
        reason: String,
    },
    /// All default bridge names belong to other nodes.
    #[error(
        "the bridges {first} to {last} all belong to other nodes on this machine; choose a name with --bridge"
    )]
    NoFreeBridge {
        /// The first tried.
        first: String,
        /// The last tried.
        last: String,
    },
    /// The kernel refused a request.
    #[error("cannot {what}")]
    Kernel {
        /// What was asked for.
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused the packet filter rules.
    #[error(
        "cannot {what} nftables table {table}; the kernel needs nf_tables with NAT (CONFIG_NF_TABLES, CONFIG_NFT_NAT, CONFIG_NFT_MASQ, CONFIG_NFT_FIB_IPV4)"
    )]
    Filter {
        /// Write or remove.
        what: &'static str,
        /// Which table.
        table: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A file could not be read or written.
    #[error("cannot {what} {path}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The lease file does not say what it should.
    #[error("{path}, line {line}, is damaged; with no pod running it can be removed")]
    LeaseFile {
        /// The file.
        path: PathBuf,
        /// Which line.
        line: usize,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// No address is left.
    #[error("all {count} addresses of pod CIDR {cidr} are in use")]
    Exhausted {
        /// The pod CIDR.
        cidr: String,
        /// How many addresses it has for pods.
        count: u32,
    },
    /// Another pod has the host port.
    #[error("host port {port}/{protocol} is taken by pod {pod}")]
    HostPortConflict {
        /// The port.
        port: u16,
        /// The protocol.
        protocol: Protocol,
        /// `namespace/name` of the pod that has it.
        pod: String,
    },
    /// Another program has the host port.
    #[error(
        "host port {port}/{protocol} on {address} is in use by another program of this machine"
    )]
    HostPortInUse {
        /// The port.
        port: u16,
        /// The protocol.
        protocol: Protocol,
        /// The host's address, 0.0.0.0 for all.
        address: Ipv4Addr,
    },
    /// `hostIP` is not an address of this machine.
    #[error("hostIP {0} is not an address of this machine")]
    HostAddress(Ipv4Addr),
    /// A pod's uid cannot be a file name.
    #[error("pod uid {0:?} cannot be used as a file name")]
    Uid(String),
    /// A worker thread ended early.
    #[error("a thread of the network ended unexpectedly")]
    Thread,
}

impl Error {
    /// For `map_err`: the kernel refused what was asked for.
    pub(super) fn kernel(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |source| Error::Kernel { what, source }
    }

    /// For `map_err`: a file operation failed.
    pub(super) fn file(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::File { what, path, source }
    }
}
