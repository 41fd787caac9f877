//! What a node is told: its directories, its network, its sources and its habits.
//!
//! Everything has a default, so that an empty file is a valid configuration. A file given with `--config` is YAML;
//! a field it does not know is an error, not a typo that goes unnoticed. Flags of the command line are laid over it
//! by the caller.

mod duration;
mod images;

use std::path::{Path, PathBuf};

pub use duration::{Length, parse_duration};
pub use images::{GcConfig, ImagesConfig, ScrubConfig};
use serde::{Deserialize, Serialize};

/// Where manifests are looked for when nothing else is said.
pub const DEFAULT_MANIFEST_DIR: &str = "/etc/podling/manifests";
/// The configuration file that is read if it is there and none is named.
pub const DEFAULT_CONFIG: &str = "/etc/podling/config.yaml";
/// What survives a reboot.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/podling";
/// What does not.
pub const DEFAULT_RUN_DIR: &str = "/run/podling";
/// Where logs go with the default data directory.
pub const DEFAULT_LOG_DIR: &str = "/var/log/pods";
/// Where the supervisor is looked for after the agent's own directory.
const SUPERVISOR_FALLBACK: &str = "/usr/libexec/podling/podling-pod";
/// The supervisor's file name.
const SUPERVISOR_NAME: &str = "podling-pod";

/// What a node is told. Times carry their unit in their name; paths are absolute once [`Config::resolve`] has run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// The node's name, a DNS name; by default the host's name. Pod UIDs depend on it, and on the run directory.
    pub node_name: Option<String>,
    /// Manifest files, or directories of them. All are watched.
    pub manifests: Vec<PathBuf>,
    /// An etcd to read manifests from and to write statuses to.
    pub etcd: Option<EtcdConfig>,
    /// The object store, images, volumes and address leases.
    pub data_dir: PathBuf,
    /// Sockets, plans and network namespaces: everything that a reboot may clear.
    pub run_dir: PathBuf,
    /// Container logs; by default `/var/log/pods`, or `<dataDir>/logs/pods` with another data directory.
    pub log_dir: Option<PathBuf>,
    /// The cgroup below which pods live, as a path below the root of each hierarchy; each agent needs its own.
    pub cgroup_parent: PathBuf,
    /// Who makes pod cgroups.
    pub cgroup_driver: CgroupDriver,
    /// The pod network.
    pub network: NetworkConfig,
    /// Name resolution in pods with the node's DNS policy.
    pub dns: DnsConfig,
    /// How single registries are spoken to.
    pub registries: Vec<RegistryConfig>,
    /// Which images may come, how they are kept, and which go when the disk fills.
    pub images: ImagesConfig,
    /// Platform of the images to take out of multi-platform indexes, such as `linux/arm64`; by default the machine's.
    pub platform: Option<String>,
    /// Container log files.
    pub logs: LogConfig,
    /// Container restart delays.
    pub back_off: BackOffConfig,
    /// The pod supervisor's program; by default `podling-pod` beside the agent, else below `/usr/libexec/podling`.
    pub supervisor: Option<PathBuf>,
    /// Processes that a pod may have when its manifest does not say; 0 is no limit.
    pub pids_per_pod: i64,
    /// Pulls that run at once, over all pods.
    pub parallel_pulls: usize,
}

/// Who makes pod cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// systemd when it runs the machine and cgroups are version 2, else the agent itself.
    #[default]
    Auto,
    /// One delegated transient scope for each pod.
    Systemd,
    /// Directories below the cgroup parent.
    Cgroupfs,
}

/// An etcd to read manifests from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct EtcdConfig {
    /// URLs of its members.
    pub endpoints: Vec<String>,
    /// Every key below this is a manifest.
    #[serde(default = "EtcdConfig::default_prefix")]
    pub prefix: String,
    /// Certificate authorities to trust, PEM; by default the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The client's certificate, PEM.
    #[serde(default)]
    pub cert_file: Option<PathBuf>,
    /// The client's key, PEM.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// A user of etcd's own authentication.
    #[serde(default)]
    pub username: Option<String>,
    /// A file that holds the user's password.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
}

impl EtcdConfig {
    /// `/podling/`.
    #[must_use]
    pub fn default_prefix() -> String {
        "/podling/".to_owned()
    }
}

/// The pod network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct NetworkConfig {
    /// The bridge's name, at most 15 bytes; by default `podling0`, or the next that no other node has.
    pub bridge: Option<String>,
    /// Pod addresses come from here; by default a private range that no route of the machine overlaps.
    pub pod_cidr: Option<String>,
}

/// Name resolution in pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct DnsConfig {
    /// The cluster's domain.
    pub cluster_domain: String,
    /// The host's resolver file, for `dnsPolicy: Default`.
    pub resolv_conf: PathBuf,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
        }
    }
}

/// How one registry is spoken to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RegistryConfig {
    /// Host and port, as written in image references.
    pub host: String,
    /// Speak HTTP without TLS to it.
    #[serde(default)]
    pub plain_http: bool,
    /// Certificate authorities to trust for it, PEM.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Tried first, in order, before the registry itself: hosts that mirror it.
    #[serde(default)]
    pub mirrors: Vec<String>,
}

/// Container log files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct LogConfig {
    /// A new file is begun before one grows past this, in bytes.
    pub max_bytes: u64,
    /// Files kept of one run of a container.
    pub max_files: u32,
    /// Keep the logs of pods that are gone; they are removed with their pod otherwise.
    pub keep_removed: bool,
}

impl Default for LogConfig {
    /// 10 MiB x 5, as the kubelet does.
    fn default() -> Self {
        Self {
            max_bytes: 10 * 1024 * 1024,
            max_files: 5,
            keep_removed: false,
        }
    }
}

/// Container restart delays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct BackOffConfig {
    /// The delay before the second restart, in milliseconds.
    pub initial_ms: u64,
    /// The longest delay, in milliseconds.
    pub max_ms: u64,
    /// A container that ran for this long is forgiven its past, in milliseconds.
    pub reset_ms: u64,
    /// The first delay after a failed image pull, in milliseconds.
    pub image_initial_ms: u64,
    /// The longest delay after failed image pulls, in milliseconds.
    pub image_max_ms: u64,
}

impl Default for BackOffConfig {
    /// 10 s doubling to 300 s, forgiven after 10 minutes, as the kubelet does.
    fn default() -> Self {
        Self {
            initial_ms: 10_000,
            max_ms: 300_000,
            reset_ms: 600_000,
            image_initial_ms: 10_000,
            image_max_ms: 300_000,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_name: None,
            manifests: Vec::new(),
            etcd: None,
            data_dir: PathBuf::from(DEFAULT_DATA_DIR),
            run_dir: PathBuf::from(DEFAULT_RUN_DIR),
            log_dir: None,
            cgroup_parent: PathBuf::from("/podling"),
            cgroup_driver: CgroupDriver::Auto,
            network: NetworkConfig::default(),
            dns: DnsConfig::default(),
            registries: Vec::new(),
            images: ImagesConfig::default(),
            platform: None,
            logs: LogConfig::default(),
            back_off: BackOffConfig::default(),
            supervisor: None,
            pids_per_pod: 0,
            parallel_pulls: 3,
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read configuration {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not a configuration.
    #[error("{path}: not a valid configuration: {message}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// What is wrong, with its place.
        message: String,
    },
    /// A value cannot be used.
    #[error("configuration: {field}: {message}")]
    Value {
        /// Which field.
        field: &'static str,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// The working directory is unknown, so relative paths mean nothing.
    #[error("find the working directory")]
    WorkingDirectory(#[source] std::io::Error),
    /// There is no supervisor program.
    #[error(
        "the pod supervisor {SUPERVISOR_NAME} is neither at {} nor at {SUPERVISOR_FALLBACK}; \
         install it beside podling, or say where it is with `supervisor:`",
        .beside.display()
    )]
    NoSupervisor {
        /// Where it was looked for first.
        beside: PathBuf,
    },
}

impl Config {
    /// Reads a YAML file.
    ///
    /// # Errors
    /// When the file cannot be read, is not YAML, or has a field that is unknown or of the wrong type.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|message| ConfigError::Parse {
            path: path.to_owned(),
            message,
        })
    }

    /// Reads YAML; a document without content is the default configuration.
    ///
    /// # Errors
    /// What is wrong, with line and column.
    pub fn parse(text: &str) -> Result<Self, String> {
        let blank = text
            .lines()
            .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
        if blank {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(text).map_err(|error| error.to_string())
    }

    /// Makes paths absolute and checks values; everything that takes a configuration expects this to have run.
    ///
    /// # Errors
    /// When a value cannot be used.
    pub fn resolve(mut self) -> Result<Self, ConfigError> {
        for path in [&mut self.data_dir, &mut self.run_dir]
            .into_iter()
            .chain(&mut self.manifests)
            .chain(&mut self.log_dir)
            .chain(&mut self.images.signature_policy)
            .chain(&mut self.images.hosts_directory)
            .chain(&mut self.supervisor)
        {
            if path.is_relative() {
                let here = std::env::current_dir().map_err(ConfigError::WorkingDirectory)?;
                *path = here.join(&path);
            }
        }
        if !self.cgroup_parent.is_absolute() || self.cgroup_parent.parent().is_none() {
            return Err(ConfigError::Value {
                field: "cgroupParent",
                message: "must be an absolute path other than `/`, such as /podling".to_owned(),
            });
        }
        if self.cgroup_parent.components().any(|part| {
            matches!(
                part,
                std::path::Component::ParentDir | std::path::Component::CurDir
            )
        }) {
            return Err(ConfigError::Value {
                field: "cgroupParent",
                message: "must not contain `.` or `..`".to_owned(),
            });
        }
        if let Some(bridge) = &self.network.bridge
            && (bridge.is_empty() || bridge.len() > 15)
        {
            return Err(ConfigError::Value {
                field: "network.bridge",
                message: "must have 1 to 15 bytes".to_owned(),
            });
        }
        if self.platform.is_some() && self.platform().is_none() {
            return Err(ConfigError::Value {
                field: "platform",
                message: "must be os/architecture or os/architecture/variant, such as linux/arm64"
                    .to_owned(),
            });
        }
        if let Some(name) = &self.node_name
            && let Err(message) = crate::manifest::check_dns_name(name)
        {
            return Err(ConfigError::Value {
                field: "nodeName",
                message,
            });
        }
        self.images.check()?;
        if self.parallel_pulls == 0 {
            return Err(ConfigError::Value {
                field: "parallelPulls",
                message: "must be at least 1".to_owned(),
            });
        }
        if self.logs.max_files < 2 {
            return Err(ConfigError::Value {
                field: "logs.maxFiles",
                message: "must be at least 2: one is written while another is kept".to_owned(),
            });
        }
        if self.logs.max_bytes < 4096 {
            return Err(ConfigError::Value {
                field: "logs.maxBytes",
                message: "must be at least 4096".to_owned(),
            });
        }
        Ok(self)
    }

    /// The node's name: configured, or the host's.
    #[must_use]
    pub fn node_name(&self) -> String {
        self.node_name
            .clone()
            .unwrap_or_else(|| name_of_host(&rustix::system::uname().nodename().to_string_lossy()))
    }

    /// What UIDs of pods are made of: the node's name, and the run directory if it is not the default one. Cgroups,
    /// scopes and interfaces are named after UIDs: two nodes of one machine must not give the same.
    #[must_use]
    pub fn uid_seed(&self) -> String {
        let name = self.node_name();
        if self.run_dir == Path::new(DEFAULT_RUN_DIR) {
            name
        } else {
            format!("{name} {}", self.run_dir.display())
        }
    }

    /// The platform of images, if it is not the machine's.
    #[must_use]
    pub fn platform(&self) -> Option<podling_images::Platform> {
        let mut parts = self.platform.as_deref()?.split('/');
        let platform = podling_images::Platform {
            os: parts.next().filter(|os| !os.is_empty())?.to_owned(),
            architecture: parts.next().filter(|arch| !arch.is_empty())?.to_owned(),
            variant: parts.next().map(str::to_owned),
        };
        parts.next().is_none().then_some(platform)
    }

    /// Where container logs go.
    #[must_use]
    pub fn log_dir(&self) -> PathBuf {
        match &self.log_dir {
            Some(dir) => dir.clone(),
            None if self.data_dir == Path::new(DEFAULT_DATA_DIR) => PathBuf::from(DEFAULT_LOG_DIR),
            None => self.data_dir.join("logs/pods"),
        }
    }

    /// The local API's socket.
    #[must_use]
    pub fn socket_path(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }

    /// Held by the one agent of this run directory.
    #[must_use]
    pub fn lock_path(&self) -> PathBuf {
        self.run_dir.join("agent.lock")
    }

    /// The object store's file.
    #[must_use]
    pub fn store_path(&self) -> PathBuf {
        self.data_dir.join("store.redb")
    }

    /// The image store's directory.
    #[must_use]
    pub fn images_dir(&self) -> PathBuf {
        self.data_dir.join("images")
    }

    /// The directory of the supervisors' directories, one for each pod.
    #[must_use]
    pub fn pods_run_dir(&self) -> PathBuf {
        self.run_dir.join("pods")
    }

    /// The directory of pod volumes and writable layers, one for each pod.
    #[must_use]
    pub fn pods_data_dir(&self) -> PathBuf {
        self.data_dir.join("pods")
    }

    /// Where the supervisor's program is.
    ///
    /// # Errors
    /// When it is nowhere.
    pub fn supervisor_path(&self) -> Result<PathBuf, ConfigError> {
        if let Some(path) = &self.supervisor {
            return Ok(path.clone());
        }
        let beside = std::fs::read_link("/proc/self/exe")
            .ok()
            .and_then(|exe| Some(exe.parent()?.join(SUPERVISOR_NAME)))
            .unwrap_or_else(|| PathBuf::from(SUPERVISOR_NAME));
        let fallback = PathBuf::from(SUPERVISOR_FALLBACK);
        // Tests run from `deps/`, one directory below the binaries.
        let above = beside
            .parent()
            .and_then(Path::parent)
            .map(|dir| dir.join(SUPERVISOR_NAME));
        [Some(beside.clone()), above, Some(fallback)]
            .into_iter()
            .flatten()
            .find(|path| path.is_file())
            .ok_or(ConfigError::NoSupervisor { beside })
    }
}

/// The DNS name that is nearest to a host's name, which may hold anything and be empty.
fn name_of_host(host: &str) -> String {
    let lower = host.to_ascii_lowercase();
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '.';
    let dashed: String = lower
        .chars()
        .map(|c| if plain(c) { c } else { '-' })
        .collect();
    let labels: Vec<&str> = dashed
        .split('.')
        .map(|label| label.trim_matches('-'))
        .filter(|label| !label.is_empty())
        .collect();
    if labels.is_empty() {
        "localhost".to_owned()
    } else {
        labels.join(".")
    }
}

#[cfg(test)]
mod tests;
