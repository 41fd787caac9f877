//! What the containers of a pod share: namespaces, held by descriptors. There is no pause process; only a shared pid
//! namespace needs a process of its own, since its first process must not end.
//!
//! The supervisor itself stays in the host's namespaces: it enters new ones only to make them and to open sockets.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType};
use thiserror::Error;

use super::process;
use crate::cgroup::Cgroup;
use crate::pod::lifecycle::Process;
use crate::pod::plan::{NetworkPlan, Plan};
use crate::sys;

/// Why the pod's sandbox could not be made.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// A namespace.
    #[error("cannot {attempt} the pod's {kind} namespace")]
    Namespace {
        /// `open`, `make`, `enter` or `leave`.
        attempt: &'static str,
        /// Which.
        kind: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The network namespace that the plan names.
    #[error("cannot open the network namespace {}", path.display())]
    Network {
        /// Where it should be.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host name.
    #[error("cannot set the host name to {hostname:?}")]
    Hostname {
        /// The name.
        hostname: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The loopback interface.
    #[error("cannot bring the pod's loopback interface up")]
    Loopback(#[source] io::Error),
    /// A kernel parameter.
    #[error("cannot set the kernel parameter {name} to {value:?}")]
    Sysctl {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A kernel parameter that is not the pod's to set.
    #[error("the kernel parameter {name} {problem}")]
    ForeignSysctl {
        /// Its name.
        name: String,
        /// Why not.
        problem: &'static str,
    },
    /// The first process of the shared pid namespace.
    #[error("cannot make the first process of the shared pid namespace")]
    PidInit(#[source] io::Error),
    /// Its cgroup.
    #[error("cannot prepare a cgroup for the first process of the shared pid namespace")]
    PidInitCgroup(#[source] crate::cgroup::Error),
}

/// A pod's namespaces.
#[derive(Debug)]
pub(super) struct Sandbox {
    uts: OwnedFd,
    ipc: Option<OwnedFd>,
    network: Option<OwnedFd>,
    /// Probes' sockets must be made inside: nobody reaches it from outside.
    isolated: bool,
    probe_address: IpAddr,
    pid_init: Option<PidInit>,
    host_pid: bool,
}

#[derive(Debug)]
struct PidInit {
    process: Process,
    handle: OwnedFd,
    namespace: OwnedFd,
}

/// The name of the cgroup of the shared pid namespace's first process. No container can be called so.
pub(super) const PID_INIT_CGROUP: &str = "_init";

impl Sandbox {
    /// Takes the namespaces of a living container, if there is one, and makes what is missing.
    pub(super) fn open(
        plan: &Plan,
        living: Option<i32>,
        pid_init: Option<Process>,
        pod_cgroup: &Cgroup,
        layout: &crate::cgroup::Layout,
    ) -> Result<Self, SandboxError> {
        let (uts, ipc) = match living {
            Some(pid) => {
                let ipc = if plan.host_ipc {
                    None
                } else {
                    Some(open_namespace(&format!("/proc/{pid}/ns/ipc"), "ipc")?)
                };
                (open_namespace(&format!("/proc/{pid}/ns/uts"), "uts")?, ipc)
            }
            None => make_uts_and_ipc(plan)?,
        };
        let (network, probe_address) = open_network(plan, living)?;
        let pid_init = if plan.share_pid && !plan.host_pid {
            Some(match pid_init.and_then(PidInit::adopt) {
                Some(init) => init,
                None => PidInit::start(pod_cgroup, layout)?,
            })
        } else {
            None
        };
        Ok(Self {
            uts,
            ipc,
            network,
            isolated: plan.network == NetworkPlan::Isolated,
            probe_address,
            pid_init,
            host_pid: plan.host_pid,
        })
    }

    /// The namespaces of a container of this pod. The paths hold as long as the sandbox does.
    pub(super) fn namespaces(&self) -> Result<Vec<LinuxNamespace>, oci_spec::OciSpecError> {
        let of = |typ, fd: Option<BorrowedFd<'_>>| {
            let builder = LinuxNamespaceBuilder::default().typ(typ);
            match fd {
                Some(fd) => builder
                    .path(format!("/proc/self/fd/{}", fd.as_raw_fd()))
                    .build(),
                None => builder.build(),
            }
        };
        let mut all = vec![
            of(LinuxNamespaceType::Mount, None)?,
            of(LinuxNamespaceType::Cgroup, None)?,
            of(LinuxNamespaceType::Uts, Some(self.uts.as_fd()))?,
        ];
        if let Some(ipc) = &self.ipc {
            all.push(of(LinuxNamespaceType::Ipc, Some(ipc.as_fd()))?);
        }
        if let Some(network) = &self.network {
            all.push(of(LinuxNamespaceType::Network, Some(network.as_fd()))?);
        }
        if !self.host_pid {
            let shared = self.pid_init.as_ref().map(|init| init.namespace.as_fd());
            all.push(of(LinuxNamespaceType::Pid, shared)?);
        }
        Ok(all)
    }

    /// A container's processes do not all end with its first one.
    pub(super) fn processes_outlive_the_first(&self) -> bool {
        self.host_pid || self.pid_init.is_some()
    }

    /// Where probes without a host go.
    pub(super) fn probe_address(&self) -> IpAddr {
        self.probe_address
    }

    /// Runs `open`, which opens sockets for probes, where those can reach the pod.
    pub(super) fn in_probe_network<T>(&self, open: impl FnOnce() -> T) -> Result<T, SandboxError> {
        match &self.network {
            Some(network) if self.isolated => {
                let at = |attempt| namespace_error(attempt, "network");
                let home = open_namespace("/proc/self/ns/net", "network")?;
                setns(network, CloneFlags::CLONE_NEWNET).map_err(at("enter"))?;
                let result = open();
                setns(&home, CloneFlags::CLONE_NEWNET).map_err(at("leave"))?;
                Ok(result)
            }
            _ => Ok(open()),
        }
    }

    /// The first process of the shared pid namespace.
    pub(super) fn pid_init(&self) -> Option<Process> {
        self.pid_init.as_ref().map(|init| init.process)
    }

    /// Ends the shared pid namespace.
    pub(super) fn close(&mut self) {
        if let Some(init) = self.pid_init.take()
            && let Err(e) = sys::pidfd::send_signal(init.handle.as_fd(), libc::SIGKILL)
        {
            super::journal::say(format_args!("cannot end the shared pid namespace: {e}"));
        }
    }
}

impl PidInit {
    fn adopt(process: Process) -> Option<Self> {
        let handle = process::find(process)?;
        let namespace = open_namespace(&format!("/proc/{}/ns/pid", process.pid), "pid").ok()?;
        Some(Self {
            process,
            handle,
            namespace,
        })
    }

    fn start(pod: &Cgroup, layout: &crate::cgroup::Layout) -> Result<Self, SandboxError> {
        let cgroup = Cgroup::create(layout, &pod.path().join(PID_INIT_CGROUP))
            .map_err(SandboxError::PidInitCgroup)?;
        let directory = cgroup.clone_target().map_err(SandboxError::PidInitCgroup)?;
        let joiner = match &directory {
            Some(_) => None,
            None => Some(cgroup.joiner().map_err(SandboxError::PidInitCgroup)?),
        };
        let child = sys::clone::clone_child(
            libc::CLONE_NEWPID as u64,
            directory.as_ref().map(AsFd::as_fd),
            || {
                if joiner.as_ref().is_some_and(|j| j.join().is_err()) {
                    return 1;
                }
                reap_for_ever()
            },
        )
        .map_err(SandboxError::PidInit)?;
        let process = process::look(child.pid).map_err(SandboxError::PidInit)?;
        let namespace = open_namespace(&format!("/proc/{}/ns/pid", child.pid), "pid")?;
        Ok(Self {
            process,
            handle: child.pidfd,
            namespace,
        })
    }
}

/// Process 1 of the shared pid namespace: it holds nothing open, and reaps. It ends by SIGKILL from outside only:
/// the kernel keeps all signals without a handler from process 1.
fn reap_for_ever() -> i32 {
    if sys::process::close_from(0).is_err() || rustix::thread::set_name(c"podling-init").is_err() {
        return 1;
    }
    let mut child_ended = SigSet::empty();
    child_ended.add(Signal::SIGCHLD);
    if child_ended.thread_block().is_err() {
        return 1;
    }
    loop {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
        if child_ended.wait().is_err() {
            return 1;
        }
    }
}

type Shared = (OwnedFd, Option<OwnedFd>);

fn make_uts_and_ipc(plan: &Plan) -> Result<Shared, SandboxError> {
    let home_uts = open_namespace("/proc/self/ns/uts", "uts")?;
    let home_ipc = open_namespace("/proc/self/ns/ipc", "ipc")?;
    let mut flags = CloneFlags::CLONE_NEWUTS;
    if !plan.host_ipc {
        flags |= CloneFlags::CLONE_NEWIPC;
    }
    unshare(flags).map_err(namespace_error("make", "uts and ipc"))?;
    let made = fill_uts_and_ipc(plan);
    setns(&home_uts, CloneFlags::CLONE_NEWUTS).map_err(namespace_error("leave", "uts"))?;
    setns(&home_ipc, CloneFlags::CLONE_NEWIPC).map_err(namespace_error("leave", "ipc"))?;
    made
}

fn fill_uts_and_ipc(plan: &Plan) -> Result<Shared, SandboxError> {
    nix::unistd::sethostname(&plan.hostname).map_err(|e| SandboxError::Hostname {
        hostname: plan.hostname.clone(),
        source: e.into(),
    })?;
    write_sysctls(plan, SysctlScope::Ipc)?;
    let ipc = if plan.host_ipc {
        None
    } else {
        Some(open_namespace("/proc/self/ns/ipc", "ipc")?)
    };
    Ok((open_namespace("/proc/self/ns/uts", "uts")?, ipc))
}

fn open_network(
    plan: &Plan,
    living: Option<i32>,
) -> Result<(Option<OwnedFd>, IpAddr), SandboxError> {
    let localhost = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let namespace = match &plan.network {
        NetworkPlan::Host { probe_address } => return Ok((None, *probe_address)),
        NetworkPlan::Namespace { path, addresses } => {
            let namespace = File::open(path).map_err(|source| SandboxError::Network {
                path: path.clone(),
                source,
            })?;
            let address = addresses.first().copied().unwrap_or(localhost);
            (OwnedFd::from(namespace), address)
        }
        NetworkPlan::Isolated => match living {
            Some(pid) => {
                let path = format!("/proc/{pid}/ns/net");
                return Ok((Some(open_namespace(&path, "network")?), localhost));
            }
            None => (make_network()?, localhost),
        },
    };
    let home = open_namespace("/proc/self/ns/net", "network")?;
    setns(&namespace.0, CloneFlags::CLONE_NEWNET).map_err(namespace_error("enter", "network"))?;
    let written = write_sysctls(plan, SysctlScope::Network);
    setns(&home, CloneFlags::CLONE_NEWNET).map_err(namespace_error("leave", "network"))?;
    written?;
    Ok((Some(namespace.0), namespace.1))
}

fn make_network() -> Result<OwnedFd, SandboxError> {
    let home = open_namespace("/proc/self/ns/net", "network")?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(namespace_error("make", "network"))?;
    let made = sys::network::bring_loopback_up()
        .map_err(SandboxError::Loopback)
        .and_then(|()| open_namespace("/proc/self/ns/net", "network"));
    setns(&home, CloneFlags::CLONE_NEWNET).map_err(namespace_error("leave", "network"))?;
    made
}

fn open_namespace(path: &str, kind: &'static str) -> Result<OwnedFd, SandboxError> {
    Ok(File::open(path)
        .map_err(|source| SandboxError::Namespace {
            attempt: "open",
            kind,
            source,
        })?
        .into())
}

fn namespace_error(
    attempt: &'static str,
    kind: &'static str,
) -> impl FnOnce(nix::errno::Errno) -> SandboxError {
    move |e| SandboxError::Namespace {
        attempt,
        kind,
        source: e.into(),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SysctlScope {
    Ipc,
    Network,
}

/// Which namespace a kernel parameter belongs to; none if it is the whole machine's. `namespaces(7)`.
fn sysctl_scope(path: &str) -> Option<SysctlScope> {
    const IPC: [&str; 8] = [
        "kernel/msgmax",
        "kernel/msgmnb",
        "kernel/msgmni",
        "kernel/sem",
        "kernel/shmall",
        "kernel/shmmax",
        "kernel/shmmni",
        "kernel/shm_rmid_forced",
    ];
    if path.starts_with("net/") {
        Some(SysctlScope::Network)
    } else if path.starts_with("fs/mqueue/") || IPC.contains(&path) {
        Some(SysctlScope::Ipc)
    } else {
        None
    }
}

fn sysctl_path(name: &str) -> String {
    if name.contains('/') {
        name.to_owned()
    } else {
        name.replace('.', "/")
    }
}

/// Refuses parameters that would change the machine.
pub(super) fn check_sysctls(plan: &Plan) -> Result<(), SandboxError> {
    for name in plan.sysctls.keys() {
        let path = sysctl_path(name);
        let refuse = |problem| {
            Err(SandboxError::ForeignSysctl {
                name: name.clone(),
                problem,
            })
        };
        if path.split('/').any(|p| matches!(p, "" | "." | "..")) {
            return refuse("is not a name");
        }
        match sysctl_scope(&path) {
            None => return refuse("is the whole machine's, not a pod's"),
            Some(SysctlScope::Ipc) if plan.host_ipc => {
                return refuse("would change the host: the pod shares its IPC namespace");
            }
            Some(SysctlScope::Network) if matches!(plan.network, NetworkPlan::Host { .. }) => {
                return refuse("would change the host: the pod shares its network");
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Writes those of one namespace, in which the caller is.
fn write_sysctls(plan: &Plan, scope: SysctlScope) -> Result<(), SandboxError> {
    let of_scope = |values: &BTreeMap<String, String>| {
        values
            .iter()
            .map(|(name, value)| (sysctl_path(name), name.clone(), value.clone()))
            .filter(|(path, ..)| sysctl_scope(path) == Some(scope))
            .collect::<Vec<_>>()
    };
    for (path, name, value) in of_scope(&plan.sysctls) {
        fs::write(Path::new("/proc/sys").join(path), &value).map_err(|source| {
            SandboxError::Sysctl {
                name,
                value,
                source,
            }
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_belong_to_a_namespace_or_to_the_machine() {
        let scope = |name: &str| sysctl_scope(&sysctl_path(name));
        assert_eq!(
            scope("net.ipv4.ip_unprivileged_port_start"),
            Some(SysctlScope::Network)
        );
        assert_eq!(scope("kernel.shmmax"), Some(SysctlScope::Ipc));
        assert_eq!(scope("fs.mqueue.msg_max"), Some(SysctlScope::Ipc));
        assert_eq!(scope("kernel.panic"), None);
        assert_eq!(scope("vm.swappiness"), None);
    }
}
