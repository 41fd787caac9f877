//! What a pod supervisor needs to know to run a pod: everything, resolved.
//!
//! The agent writes a plan as `plan.json` in the pod's run directory; the supervisor reads it at start and
//! again on [`Request::Reload`](super::protocol::Request::Reload). A plan holds paths, not images; OCI specs,
//! not manifests.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use oci_spec::runtime::{LinuxResources, Spec};
use serde::{Deserialize, Serialize};

/// The version of the plan format. A supervisor refuses a plan of another version.
pub const PLAN_VERSION: u32 = 1;

/// A pod, resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`PLAN_VERSION`] of the writer.
    pub version: u32,
    /// Grows with each plan of this pod; the snapshot says which one it reflects.
    pub generation: u64,
    /// Who the pod is.
    pub pod: PodIdentity,
    /// The host name inside the pod (`uname -n`).
    pub hostname: String,
    /// The pod's cgroup.
    pub cgroup: CgroupPlan,
    /// The pod's network namespace.
    pub network: NetworkPlan,
    /// All containers share one pid namespace, whose init reaps (`shareProcessNamespace`).
    #[serde(default)]
    pub share_pid: bool,
    /// Containers see the host's processes.
    #[serde(default)]
    pub host_pid: bool,
    /// Containers share the host's IPC namespace.
    #[serde(default)]
    pub host_ipc: bool,
    /// Kernel parameters of the pod's namespaces, `a.b.c` to value.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// What happens when a container ends.
    pub restart_policy: RestartPolicy,
    /// The time between the stop signal and SIGKILL, in seconds.
    pub termination_grace_secs: u64,
    /// Restart delays.
    #[serde(default)]
    pub back_off: BackOff,
    /// Kill the pod when it has been active this long (`activeDeadlineSeconds`).
    #[serde(default)]
    pub active_deadline_secs: Option<u64>,
    /// Init containers and sidecars in order, then the others in order.
    pub containers: Vec<ContainerPlan>,
}

/// Who a pod is, for logs and names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodIdentity {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
}

/// The pod's cgroup. Container cgroups are made below it, named as the containers are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CgroupPlan {
    /// The path below the root of each hierarchy, such as `/podling/burstable/pod1234`. With the systemd driver,
    /// the scope's cgroup, in which the supervisor makes `supervisor` for itself and `pod` for the containers.
    pub path: PathBuf,
    /// True when `path` is a delegated systemd scope that this supervisor was put into.
    #[serde(default)]
    pub scope: bool,
    /// The pod's own limits.
    #[serde(default)]
    pub resources: LinuxResources,
}

impl CgroupPlan {
    /// The cgroup that has the pod's limits and the containers' cgroups below it.
    pub fn containers_path(&self) -> PathBuf {
        if self.scope {
            self.path.join("pod")
        } else {
            self.path.clone()
        }
    }
}

/// Where the pod's network namespace is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum NetworkPlan {
    /// The host's.
    Host {
        /// The address that probes without a host use.
        probe_address: IpAddr,
    },
    /// One that the agent made and pinned at this path.
    Namespace {
        /// An nsfs bind mount.
        path: PathBuf,
        /// The pod's addresses; probes without a host use the first.
        addresses: Vec<IpAddr>,
    },
    /// A new one with only loopback, made by the supervisor.
    Isolated,
}

/// What happens when a container ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    /// Restart it, whatever its exit code.
    Always,
    /// Restart it unless it exited with 0.
    OnFailure,
    /// Leave it.
    Never,
}

/// Restart delays: the first restart is immediate, the next waits `initial_ms`, doubling to `max_ms`; a container
/// that ran for `reset_ms` starts again from none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackOff {
    /// The delay before the second restart, in milliseconds.
    pub initial_ms: u64,
    /// The longest delay, in milliseconds.
    pub max_ms: u64,
    /// A container that ran for this long is forgiven its past, in milliseconds.
    pub reset_ms: u64,
}

impl Default for BackOff {
    /// 10 s doubling to 300 s, forgiven after 10 minutes, as the kubelet does.
    fn default() -> Self {
        Self {
            initial_ms: 10_000,
            max_ms: 300_000,
            reset_ms: 600_000,
        }
    }
}

/// When in the pod's life a container runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerKind {
    /// Runs to completion before the next starts.
    Init,
    /// An init container with `restartPolicy: Always`: the next starts when it is started; it ends last.
    Sidecar,
    /// Starts once all init containers have ended and all sidecars have started.
    Main,
    /// Added to a running pod; never restarted, never probed.
    Ephemeral,
}

/// One container, resolved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerPlan {
    /// `containers[].name`, unique in the pod.
    pub name: String,
    /// When it runs.
    pub kind: ContainerKind,
    /// A hash over what a running container cannot change. A new value restarts the container.
    pub spec_hash: String,
    /// What it runs, or why it cannot yet.
    pub source: ContainerSource,
    /// Overrides the pod's policy.
    #[serde(default)]
    pub restart_policy: Option<RestartPolicy>,
    /// Until it has succeeded the other probes wait, and the container is not started.
    #[serde(default)]
    pub startup_probe: Option<Probe>,
    /// Restarts the container when it fails.
    #[serde(default)]
    pub liveness_probe: Option<Probe>,
    /// Decides whether the container is ready.
    #[serde(default)]
    pub readiness_probe: Option<Probe>,
    /// Run after the container's process has started; failing it kills the container.
    #[serde(default)]
    pub post_start: Option<Handler>,
    /// Run before the stop signal, within the grace period.
    #[serde(default)]
    pub pre_stop: Option<Handler>,
    /// The signal that asks the container to end, by number.
    pub stop_signal: i32,
    /// Where its output goes.
    pub log: LogPlan,
    /// Where its last words come from.
    #[serde(default)]
    pub termination_message: Option<TerminationMessage>,
    /// Keep standard input open, for attach.
    #[serde(default)]
    pub stdin: bool,
    /// Close standard input after the first attach ends.
    #[serde(default)]
    pub stdin_once: bool,
    /// Give it a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Give it all device nodes of the host that are there when it starts.
    #[serde(default)]
    pub host_devices: bool,
}

/// What a container runs, or why it cannot yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ContainerSource {
    /// Ready to run.
    Ready {
        /// The root file system.
        rootfs: RootfsPlan,
        /// The OCI spec: process, mounts, capabilities, resources, masked paths. The supervisor sets namespaces,
        /// `root.path` and `cgroupsPath`; `seccomp` is left out and chosen by `seccomp` below.
        spec: Box<Spec>,
        /// The system calls it may make.
        seccomp: SeccompPlan,
    },
    /// Waits, with the reason that its state shows (`ImagePullBackOff`, `CreateContainerConfigError`, …).
    Waiting {
        /// A CamelCase word.
        reason: String,
        /// For people.
        message: String,
    },
}

/// Which system calls a container may make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SeccompPlan {
    /// All that its capabilities allow.
    Unconfined,
    /// Podling's default profile.
    RuntimeDefault,
    /// An OCI `linux.seccomp` object in a JSON file on the host.
    Localhost {
        /// The file.
        path: PathBuf,
    },
}

/// An overlay of image layers under a writable directory. It is mounted in the container's mount namespace only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootfsPlan {
    /// Unpacked layers, the lowest first.
    pub layers: Vec<PathBuf>,
    /// Holds `upper` and `work`, one pair for each start: the supervisor makes a fresh one for every restart and
    /// removes the one before.
    pub scratch: PathBuf,
}

/// How to look at a container's health.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// What to try.
    pub handler: Handler,
    /// Wait this long after the container's start, in milliseconds.
    pub initial_delay_ms: u64,
    /// From one try to the next, in milliseconds.
    pub period_ms: u64,
    /// Give up a try after this long, in milliseconds.
    pub timeout_ms: u64,
    /// Tries in a row that must succeed.
    pub success_threshold: u32,
    /// Tries in a row that must fail.
    pub failure_threshold: u32,
    /// The grace period when this probe kills the container, in seconds; else the pod's.
    #[serde(default)]
    pub termination_grace_secs: Option<u64>,
}

/// An action for a probe or a lifecycle hook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Handler {
    /// Run a command in the container; exit code 0 is success.
    Exec {
        /// Program and arguments, no shell.
        command: Vec<String>,
    },
    /// GET; a status of 200 to 399 is success. Certificates are not verified, as with the kubelet.
    Http {
        /// `https` instead of `http`.
        tls: bool,
        /// None: the pod's address.
        host: Option<String>,
        /// The port, already resolved from its name.
        port: u16,
        /// Path and query, starting with `/`.
        path: String,
        /// Header names and values, in order.
        headers: Vec<(String, String)>,
    },
    /// Connect; an established connection is success.
    Tcp {
        /// None: the pod's address.
        host: Option<String>,
        /// The port, already resolved from its name.
        port: u16,
    },
    /// `grpc.health.v1.Health/Check` at the pod's address, without TLS; SERVING is success.
    Grpc {
        /// The port.
        port: u16,
        /// The service to ask for; empty for the server as a whole.
        service: String,
    },
    /// Wait, in seconds; always success.
    Sleep {
        /// How long.
        seconds: u64,
    },
}

/// Where a container's output goes: `dir/<restart count>.log` in CRI format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogPlan {
    /// `/var/log/pods/<namespace>_<name>_<uid>/<container>`.
    pub dir: PathBuf,
    /// Start a new file before one grows past this, in bytes.
    pub max_bytes: u64,
    /// Keep this many files of one run, the one being written included.
    pub max_files: u32,
}

/// Where a container's last words come from (`terminationMessagePath`, `terminationMessagePolicy`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminationMessage {
    /// The path in the container, absolute.
    pub path: PathBuf,
    /// The file on the host that the supervisor makes, and binds there.
    pub host_file: PathBuf,
    /// When the file is empty and the container failed, the end of its log is used.
    pub fallback_to_logs: bool,
}
