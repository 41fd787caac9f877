//! A pod's network namespace: made, wired to the bridge, and pinned to a file.
//!
//! ```text
//!   a thread of its own              host                      pod
//!   ───────────────────              ────                      ───
//!   open a netlink socket  ───────►  (socket stays here)
//!   unshare(CLONE_NEWNET)  ─────────────────────────────────►  (the thread is here now)
//!   open another socket    ─────────────────────────────────►  lo up
//!   one request by the first socket: pod0ad60002 ◄───────────► eth0
//!                                    port of the bridge        address, up, default route
//!   bind-mount /proc/thread-self/ns/net to <run-dir>/netns/<uid>
//! ```
//!
//! The mount comes last, so a file that is a namespace is one that is whole: if the thread's process dies earlier the
//! namespace dies with it and takes the veth pair along. No other thread of the agent ever leaves its namespace.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use super::Error;
use super::cidr::Cidr;
use super::link::{Route, Veth, mac};

/// The pod end's name.
const POD_DEVICE: &str = "eth0";
/// The index of `lo` in every network namespace (LOOPBACK_IFINDEX of include/net/net_namespace.h).
const LOOPBACK_INDEX: u32 = 1;
/// The calling thread's network namespace.
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// What a pod's namespace is wired to.
#[derive(Debug, Clone)]
pub(super) struct Wiring {
    /// Where the namespace is pinned.
    pub(super) pin: PathBuf,
    /// The pod's address.
    pub(super) address: Ipv4Addr,
    /// The pod CIDR.
    pub(super) cidr: Cidr,
    /// The bridge's index.
    pub(super) bridge: u32,
    /// Of the pod's interface.
    pub(super) mtu: u32,
}

/// The host end's name for a pod's address, unique on a machine, since two nodes' pod CIDRs do not overlap.
pub(super) fn host_device(address: Ipv4Addr) -> String {
    format!("pod{:08x}", u32::from(address))
}

/// Whether `pin` is a network namespace that is still whole, apart from its link to the host.
pub(super) fn is_pinned(pin: &Path) -> bool {
    rustix::fs::statfs(pin).is_ok_and(|stat| stat.f_type == libc::NSFS_MAGIC)
}

/// Makes the namespace, or only its link to the host if that is what is missing. The calling thread is in another
/// network namespace afterwards and must end.
pub(super) fn wire(wiring: &Wiring) -> Result<(), Error> {
    let mut host = Route::route().map_err(Error::kernel("open a netlink socket"))?;
    let device = host_device(wiring.address);
    let pinned = is_pinned(&wiring.pin);
    if pinned {
        let link = host
            .link(&device)
            .map_err(Error::kernel(format!("look for {device}")))?;
        if link.is_some_and(|link| link.bridge == Some(wiring.bridge)) {
            return Ok(());
        }
        let namespace = File::open(&wiring.pin).map_err(Error::file("open", &wiring.pin))?;
        setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(|errno| {
            Error::kernel(format!("enter network namespace {}", wiring.pin.display()))(errno.into())
        })?;
    } else {
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|errno| Error::kernel("make a network namespace")(errno.into()))?;
    }
    connect(&mut host, wiring, &device)?;
    if pinned { Ok(()) } else { pin(&wiring.pin) }
}

fn connect(host: &mut Route, wiring: &Wiring, device: &str) -> Result<(), Error> {
    let namespace = File::open(OWN_NAMESPACE).map_err(Error::file("open", OWN_NAMESPACE))?;
    let mut pod = Route::route().map_err(Error::kernel("open a netlink socket in the pod"))?;
    pod.set_up(LOOPBACK_INDEX)
        .map_err(Error::kernel("turn the pod's lo on"))?;
    let veth = Veth {
        name: device,
        bridge: wiring.bridge,
        netns: namespace.as_fd(),
        pod_name: POD_DEVICE,
        pod_mac: mac(wiring.address),
        mtu: wiring.mtu,
    };
    match host.add_veth(&veth) {
        // A pair that a namespace of an earlier life has not yet taken along.
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
            host.delete_link(device).and_then(|()| host.add_veth(&veth))
        }
        done => done,
    }
    .map_err(Error::kernel(format!("make veth pair {device}")))?;
    host.set_hairpin(device)
        .map_err(Error::kernel(format!("configure bridge port {device}")))?;
    let eth0 = index(&mut pod, POD_DEVICE)?;
    pod.add_address(eth0, wiring.address, wiring.cidr.prefix())
        .map_err(Error::kernel(format!(
            "give the pod address {}",
            wiring.address
        )))?;
    pod.set_up(eth0)
        .map_err(Error::kernel("turn the pod's eth0 on"))?;
    pod.add_default_route(eth0, wiring.cidr.gateway())
        .map_err(Error::kernel("give the pod its default route"))
}

fn index(route: &mut Route, name: &str) -> Result<u32, Error> {
    let link = route
        .link(name)
        .map_err(Error::kernel(format!("look for {name}")))?;
    let missing =
        || Error::kernel(format!("find {name}"))(io::Error::from_raw_os_error(libc::ENODEV));
    link.map(|link| link.index).ok_or_else(missing)
}

fn pin(path: &Path) -> Result<(), Error> {
    let dir = path.parent().unwrap_or(path);
    fs::create_dir_all(dir).map_err(Error::file("create", dir))?;
    File::create(path).map_err(Error::file("create", path))?;
    mount(
        Some(OWN_NAMESPACE),
        path,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .map_err(|errno| Error::file("pin the network namespace to", path)(errno.into()))
}

/// Removes the pin, and with it the namespace once no process is in it; a missing one is fine.
pub(super) fn unpin(path: &Path) -> Result<(), Error> {
    // Again and again: a pin can have been mounted over.
    while is_pinned(path) {
        umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|errno| Error::file("unmount", path)(errno.into()))?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}
