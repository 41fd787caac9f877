//! Why a node cannot start.

use std::path::PathBuf;

use super::config::ConfigError;

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The thread that checks images cannot be started.
    #[error("start the thread that checks images")]
    Scrub(#[source] std::io::Error),
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A directory cannot be made.
    #[error("make directory {path}")]
    Directory {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The lock file cannot be opened.
    #[error("open lock {path}")]
    Lock {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another agent uses the run directory.
    #[error(
        "another agent runs with {run_dir}; end it, or give this one another --run-dir and --data-dir"
    )]
    Running {
        /// The run directory.
        run_dir: PathBuf,
    },
    /// Another agent keeps its pods below the same cgroup.
    #[error(
        "another agent keeps its pods below the cgroup {cgroup}, and each would set the other's CPU shares; give this \
         one a --cgroup-parent of its own, beside --run-dir and --data-dir"
    )]
    CgroupParent {
        /// The cgroup.
        cgroup: PathBuf,
    },
    /// The object store cannot be opened.
    #[error("open the object store")]
    Store(#[from] crate::store::StoreError),
    /// The image store cannot be opened.
    #[error("open the image store")]
    Images(#[from] podling_images::StoreError),
    /// The network cannot be opened.
    #[error("set up the pod network")]
    Network(#[from] crate::network::Error),
    /// The machine's cgroups are unusable.
    #[error("find the machine's cgroups")]
    Cgroups(#[from] podling_runtime::cgroup::Error),
    /// The pod supervisor's program is unusable.
    #[error(transparent)]
    Supervisor(#[from] crate::pod::supervisor::SupervisorError),
    /// systemd does not answer.
    #[error("connect to systemd")]
    Systemd(#[from] podling_systemd::Error),
    /// systemd was asked for and is not there.
    #[error("cgroupDriver is systemd, but systemd does not run this machine; use auto or cgroupfs")]
    NoSystemd,
    /// A source of manifests cannot be watched.
    #[error("watch manifests in {origin}")]
    Source {
        /// Which source.
        origin: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
