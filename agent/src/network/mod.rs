//! The node's network: a bridge, a network namespace and an address for each pod, and host ports.
//!
//! ```text
//!   outside ── uplink ── host ── podling0 (10.214.0.1/16) ──┬── pod0ad60002 ═ eth0 10.214.0.2  pod
//!                │                                          └── pod0ad60003 ═ eth0 10.214.0.3  pod
//!                └ table ip podling: source NAT, host ports
//! ```
//!
//! All by netlink: no other program is run. What is kept where:
//!
//! | what | where | made by | removed by |
//! |---|---|---|---|
//! | bridge, table, kernel parameters | kernel | [`Network::open`] | [`Network::close`] (not the parameters) |
//! | namespace, veth pair | kernel, pinned at `<run-dir>/netns/<uid>` | [`Network::attach`] | [`Network::detach`] |
//! | address, host ports | `<data-dir>/network/leases` | [`Network::attach`] | [`Network::detach`] |
//!
//! So pods keep their network while no agent runs, and the next one finds all of it: `open` mends the shared parts,
//! `attach` each pod's, `retain` removes what belongs to no pod. The bridge is marked with the node's run directory
//! (`ip -d link` shows it as an alias), which lets several nodes live on one machine.
//!
//! Deliberately absent: IPv6 for pods; a change of the bridge's MTU after the uplink's; a way around another table's
//! forward policy of drop, for which nftables has none ([`Network::warnings`] says so). `net.ipv4.ip_forward` stays
//! on after `close`, since others may rely on it by then.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, oneshot};

mod cidr;
mod conntrack;
mod error;
pub mod files;
mod filter;
mod host;
mod host_ports;
mod leases;
mod link;
mod namespace;
mod netlink;
pub mod resolv_conf;
mod turn;

pub use error::Error;
pub use host::host_address;

use cidr::Cidr;
use conntrack::Targets;
use filter::Filter;
use host::Bridge;
use leases::{Lease, Leases};
use link::Route;
use namespace::Wiring;
use netlink::Netfilter;

/// How many namespaces are made at once: the kernel makes and wires them under one lock (RTNL), so more only queue
/// there, each with a thread.
const WIRING_AT_ONCE: usize = 4;
/// The stack of a thread that makes a namespace, in bytes: it builds a few messages of a few hundred bytes.
const WIRING_STACK_BYTES: usize = 256 * 1024;
/// The bridge whose table is called `podling`; other bridges' tables carry their name.
const FIRST_BRIDGE: &str = "podling0";

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        })
    }
}

/// A port of the host that leads to a pod (`containers[].ports[].hostPort`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
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
pub struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    namespaces: PathBuf,
    bridge: Bridge,
    cidr: Cidr,
    filter: Filter,
    warnings: Vec<String>,
    state: Mutex<State>,
    /// What the packet filter shows. Held while it is written.
    shown: tokio::sync::Mutex<Shown>,
    wiring: Semaphore,
    /// Leases have been written and wait to be synced to disk.
    sync_waits: AtomicBool,
}

/// What the packet filter shows: the host ports of one [`State::version`].
#[derive(Debug, Default)]
struct Shown {
    version: u64,
    targets: Targets,
    /// What it was written by, kept for the next time.
    connection: Option<Netfilter>,
}

#[derive(Debug)]
struct State {
    leases: Leases,
    /// Keep other programs off the host ports, by pod uid.
    reserved: HashMap<String, Vec<(HostPort, OwnedFd)>>,
    /// Grows with each change of host ports.
    version: u64,
}

impl Network {
    /// Makes or finds the bridge, the packet filter table and the leases of earlier lives.
    pub async fn open(config: NetworkConfig) -> Result<Network, Error> {
        let inner = blocking(move || Inner::open(&config)).await?;
        let network = Network {
            inner: Arc::new(inner),
        };
        network.apply_filter().await?;
        Ok(network)
    }

    /// Gives a pod its namespace, address and host ports. Idempotent: asked again it repairs what is missing, applies
    /// changed host ports, and answers the same address.
    pub async fn attach(&self, uid: &str, spec: AttachSpec) -> Result<Attachment, Error> {
        let lease = self.inner.lease(uid, &spec)?;
        let pin = self.inner.namespaces.join(uid);
        let wiring = Wiring {
            pin: pin.clone(),
            address: lease.address,
            cidr: self.inner.cidr,
            bridge: self.inner.bridge.index,
            mtu: self.inner.bridge.mtu,
        };
        tokio::try_join!(self.wire(wiring), self.apply_filter())?;
        self.sync_leases();
        Ok(Attachment {
            netns: pin,
            addresses: vec![lease.address.into()],
            gateway: self.inner.cidr.gateway().into(),
        })
    }

    /// Takes it all back. Idempotent.
    pub async fn detach(&self, uid: &str) -> Result<(), Error> {
        let lease = self.inner.close_ports(uid)?;
        self.apply_filter().await?;
        let pin = self.inner.namespaces.join(check_uid(uid)?);
        blocking(move || {
            if let Some(lease) = lease {
                remove_device(lease.address)?;
            }
            namespace::unpin(&pin)
        })
        .await?;
        // Last, so that nobody else gets the address while something of this pod still has it.
        self.inner.state().leases.free(uid)?;
        Ok(())
    }

    /// Detaches all pods but these: leftovers of earlier lives.
    pub async fn retain(&self, uids: &HashSet<String>) -> Result<(), Error> {
        let inner = Arc::clone(&self.inner);
        let known = blocking(move || inner.known_uids()).await?;
        try_join_all(
            known
                .iter()
                .filter(|uid| !uids.contains(*uid))
                .map(|uid| self.detach(uid)),
        )
        .await?;
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.remove_stray_devices()).await
    }

    /// Detaches all pods and removes the bridge and the packet filter table, for a node that ends for good.
    pub async fn close(&self) -> Result<(), Error> {
        self.retain(&HashSet::new()).await?;
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            inner.filter.remove(&mut netfilter()?)?;
            let name = &inner.bridge.name;
            route()?
                .delete_link(name)
                .map_err(Error::kernel(format!("remove bridge {name}")))?;
            match fs::remove_dir(&inner.namespaces) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::file("remove", &inner.namespaces)(error))
                }
                _ => Ok(()),
            }
        })
        .await
    }

    /// The bridge's name.
    pub fn bridge(&self) -> &str {
        &self.inner.bridge.name
    }

    /// The pods' addresses, as `ADDRESS/PREFIX`.
    pub fn pod_cidr(&self) -> String {
        self.inner.cidr.to_string()
    }

    /// What the user should know of: a firewall that drops forwarded packets, and the like.
    pub fn warnings(&self) -> Vec<String> {
        self.inner.warnings.clone()
    }

    async fn wire(&self, wiring: Wiring) -> Result<(), Error> {
        let _permit = self
            .inner
            .wiring
            .acquire()
            .await
            .map_err(|_| Error::Thread)?;
        let (done, result) = oneshot::channel();
        thread::Builder::new()
            .name("podling-netns".to_string())
            .stack_size(WIRING_STACK_BYTES)
            .spawn(move || {
                // Nobody listens any more when the attach was cancelled; its pod will be detached.
                done.send(namespace::wire(&wiring)).ok();
            })
            .map_err(Error::kernel("start a thread"))?;
        result.await.map_err(|_| Error::Thread)?
    }

    /// Makes the leases durable, in the background: no pod waits for the disk. Until then a power cut costs no more
    /// than the memory of who had which address, and it ends the pods that had them.
    fn sync_leases(&self) {
        if self.inner.sync_waits.swap(true, Ordering::AcqRel) {
            return;
        }
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || {
            // From here on, what is written needs another round.
            inner.sync_waits.store(false, Ordering::Release);
            let file = inner.state().leases.sync_handle();
            if let Err(error) =
                file.and_then(|file| file.sync_data().map_err(Error::file("sync", "the leases")))
            {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "addresses may change with a power cut"
                );
            }
        });
    }

    /// Writes the packet filter if host ports have changed since it was written. Many that wait are served by one.
    async fn apply_filter(&self) -> Result<(), Error> {
        let mut shown = self.inner.shown.lock().await;
        let (version, targets) = self.inner.targets();
        if shown.version == version {
            return Ok(());
        }
        let filter = self.inner.filter.clone();
        let before = std::mem::take(&mut shown.targets);
        let connection = shown.connection.take();
        let (connection, targets) = blocking(move || {
            let mut connection = connection.map_or_else(netfilter, Ok)?;
            filter.apply(&mut connection, &targets)?;
            // The ports themselves work without it: a kernel may lack nf_conntrack_netlink.
            if let Err(error) = conntrack::forget_overtaken(&mut connection, &before, &targets) {
                tracing::warn!(%error, "UDP senders may still reach the pod that had their host port before");
            }
            Ok((connection, targets))
        })
        .await?;
        shown.connection = Some(connection);
        shown.targets = targets;
        shown.version = version;
        Ok(())
    }
}

impl Inner {
    fn open(config: &NetworkConfig) -> Result<Inner, Error> {
        let turn = turn::Turn::wait();
        let (bridge, cidr) = host::ensure_bridge(&mut route()?, config)?;
        drop(turn);
        let mut warnings = host::ensure_parameters(&bridge.name)?;
        let leases = Leases::open(&config.data_dir, cidr)?;
        let namespaces = host::namespace_dir(&config.run_dir);
        fs::create_dir_all(&namespaces).map_err(Error::file("create", &namespaces))?;
        let table = match bridge.name.as_str() {
            FIRST_BRIDGE => "podling".to_string(),
            other => format!("podling-{other}"),
        };
        let filter = Filter {
            table,
            bridge: bridge.name.clone(),
            cidr,
        };
        // Only a hint: a kernel that cannot list chains will say so when the table is written.
        let mut connection = netfilter()?;
        for chain in filter.forward_drops(&mut connection).unwrap_or_default() {
            warnings.push(format!(
                "nftables chain {chain} drops forwarded packets that it does not know: to let pods reach the outside \
                 and be reached, accept there what goes through interface {}",
                bridge.name
            ));
        }
        Ok(Inner {
            namespaces,
            bridge,
            cidr,
            filter,
            warnings,
            // The table of an earlier life is replaced by the first write.
            state: Mutex::new(State {
                leases,
                reserved: HashMap::new(),
                version: 1,
            }),
            shown: tokio::sync::Mutex::new(Shown {
                connection: Some(connection),
                ..Shown::default()
            }),
            wiring: Semaphore::new(WIRING_AT_ONCE),
            sync_waits: AtomicBool::new(false),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a pod an address and host ports, on paper.
    fn lease(&self, uid: &str, spec: &AttachSpec) -> Result<Lease, Error> {
        check_uid(uid)?;
        let ports: Vec<HostPort> = spec
            .host_ports
            .iter()
            .copied()
            .map(HostPort::normal)
            .collect();
        let mut state = self.state();
        host_ports::check(uid, &spec.pod, &ports, state.leases.iter())?;
        state.reserve(uid, &ports)?;
        let (lease, new) = state.leases.take(uid, &spec.pod, &ports)?;
        if new {
            state.version += 1;
        }
        Ok(lease)
    }

    /// Takes a pod's host ports back, and returns what it had.
    fn close_ports(&self, uid: &str) -> Result<Option<Lease>, Error> {
        let mut state = self.state();
        let Some(lease) = state.leases.get(uid).cloned() else {
            return Ok(None);
        };
        state.reserved.remove(uid);
        if !lease.host_ports.is_empty() {
            state.leases.take(uid, &lease.pod, &[])?;
            state.version += 1;
        }
        Ok(Some(lease))
    }

    fn targets(&self) -> (u64, Targets) {
        let state = self.state();
        let of = |lease: &Lease| {
            let address = lease.address;
            lease
                .host_ports
                .clone()
                .into_iter()
                .map(move |port| (port, address))
        };
        (state.version, state.leases.iter().flat_map(of).collect())
    }

    fn known_uids(&self) -> Result<HashSet<String>, Error> {
        let mut uids: HashSet<String> = self
            .state()
            .leases
            .iter()
            .map(|lease| lease.uid.clone())
            .collect();
        let entries = match fs::read_dir(&self.namespaces) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(uids),
            entries => entries.map_err(Error::file("list", &self.namespaces))?,
        };
        for entry in entries {
            let entry = entry.map_err(Error::file("list", &self.namespaces))?;
            uids.extend(entry.file_name().into_string().ok());
        }
        Ok(uids)
    }

    /// Removes the bridge's ports that no lease explains.
    fn remove_stray_devices(&self) -> Result<(), Error> {
        let mut route = route()?;
        let links = route
            .links()
            .map_err(Error::kernel("list network interfaces"))?;
        let known: HashSet<String> = self
            .state()
            .leases
            .iter()
            .map(|lease| namespace::host_device(lease.address))
            .collect();
        for link in links {
            if link.bridge == Some(self.bridge.index)
                && link.name.starts_with("pod")
                && !known.contains(&link.name)
            {
                route
                    .delete_link(&link.name)
                    .map_err(Error::kernel(format!("remove {}", link.name)))?;
            }
        }
        Ok(())
    }
}

impl State {
    /// Keeps other programs off a pod's host ports. A port that the pod had in an earlier life of the agent stays its
    /// own even if another program has taken it meanwhile.
    fn reserve(&mut self, uid: &str, ports: &[HostPort]) -> Result<(), Error> {
        let had = self
            .leases
            .get(uid)
            .map(|lease| lease.host_ports.clone())
            .unwrap_or_default();
        let held = self
            .reserved
            .get(uid)
            .map(Vec::as_slice)
            .unwrap_or_default();
        let mut fresh = Vec::new();
        for port in ports
            .iter()
            .filter(|port| held.iter().all(|(held, _)| held != *port))
        {
            match host_ports::reserve(port) {
                Ok(socket) => fresh.push((*port, socket)),
                Err(error) if had.contains(port) => {
                    tracing::warn!(%error, uid, "host port not reserved")
                }
                Err(error) => return Err(error),
            }
        }
        let held = self.reserved.entry(uid.to_string()).or_default();
        held.retain(|(port, _)| ports.contains(port));
        held.extend(fresh);
        Ok(())
    }
}

fn route() -> Result<Route, Error> {
    Route::route().map_err(Error::kernel("open a netlink socket"))
}

fn netfilter() -> Result<Netfilter, Error> {
    Netfilter::netfilter().map_err(Error::kernel("open a netlink socket for the packet filter"))
}

fn remove_device(address: Ipv4Addr) -> Result<(), Error> {
    let device = namespace::host_device(address);
    route()?
        .delete_link(&device)
        .map_err(Error::kernel(format!("remove {device}")))
}

/// A uid names a file, so it must be one name.
fn check_uid(uid: &str) -> Result<&str, Error> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if uid.is_empty() || uid.starts_with('.') || uid.len() > 128 || !uid.chars().all(fits) {
        return Err(Error::Uid(uid.to_string()));
    }
    Ok(uid)
}

/// Runs what waits for the kernel or the disk on a thread for that.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| Error::Thread)?
}
