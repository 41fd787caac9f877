//! What can go wrong with a command.

use std::io;
use std::path::PathBuf;

use crate::{cgroup, container, seccomp};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A name that could leave the state directory, or confuse people.
    #[error("container ID {id:?} {reason}")]
    Id {
        /// What was given.
        id: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// There is one of that name.
    #[error("container {id} exists already")]
    Exists {
        /// Its name.
        id: String,
    },
    /// One of that name is being made, or was when its `create` was killed: nobody can tell which.
    #[error(
        "container {id} exists already, but is not made yet; if its create was killed, remove it: delete --force {id}"
    )]
    Unfinished {
        /// Its name.
        id: String,
    },
    /// There is none of that name.
    #[error("container {id} does not exist")]
    Missing {
        /// The name.
        id: String,
    },
    /// The container's status does not allow the command.
    #[error("container {id} is {status}; to {command} it must be {wanted}")]
    Status {
        /// Its name.
        id: String,
        /// What it is.
        status: &'static str,
        /// What was asked.
        command: &'static str,
        /// What it must be.
        wanted: &'static str,
    },
    /// The container has ended. Engines look for the first words.
    #[error("container not running: {id} is stopped; cannot {attempt} it")]
    NotRunning {
        /// Its name.
        id: String,
        /// `kill`, …
        attempt: &'static str,
    },
    /// The container has no cgroup of its own.
    #[error(
        "container {id} has no cgroup of its own, since its creator might not make one: its processes can only be signalled one by one"
    )]
    NoCgroup {
        /// Its name.
        id: String,
    },
    /// The command failed for some of the containers that it was for.
    #[error("failed for: {}", ids.join(", "))]
    Some {
        /// Their names.
        ids: Vec<String>,
    },
    /// A file or directory.
    #[error("cannot {attempt} {}", path.display())]
    File {
        /// `read`, `write`, …
        attempt: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A container's or process's configuration.
    #[error("{} cannot be used", path.display())]
    Config {
        /// Which file.
        path: PathBuf,
        /// Why, with the field.
        source: container::config::Error,
    },
    /// A JSON file.
    #[error("{} is not what it should be", path.display())]
    Json {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// An argument.
    #[error("{argument}: {reason}")]
    Argument {
        /// Its name.
        argument: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The cgroup.
    #[error("cannot {attempt} the cgroup of container {id}")]
    Cgroup {
        /// `make`, …
        attempt: &'static str,
        /// The container.
        id: String,
        /// Why.
        source: cgroup::Error,
    },
    /// The cgroup is in use by others, who would be limited and killed with the container.
    #[error("cgroup {} has processes already", path.display())]
    CgroupInUse {
        /// Which.
        path: PathBuf,
    },
    /// Nothing that enters the cgroup runs, and its creation would wait for ever.
    #[error("cgroup {} is frozen; thaw or remove it first", path.display())]
    CgroupFrozen {
        /// Which.
        path: PathBuf,
    },
    /// systemd, asked for a scope.
    #[error("cannot make, change or remove the systemd unit {unit}")]
    Systemd {
        /// The unit.
        unit: String,
        /// Why.
        source: Box<podling_systemd::Error>,
    },
    /// The seccomp profile.
    #[error("cannot compile linux.seccomp")]
    Seccomp(#[source] seccomp::Error),
    /// criu.
    #[error(transparent)]
    Criu(#[from] super::criu::Error),
    /// The container.
    #[error(transparent)]
    Container(#[from] container::Error),
    /// A process.
    #[error("cannot {attempt} process {pid}")]
    Process {
        /// `signal`, `wait for`, …
        attempt: &'static str,
        /// Which.
        pid: i32,
        /// Why.
        source: io::Error,
    },
    /// A terminal.
    #[error("cannot {attempt}")]
    Terminal {
        /// What was tried.
        attempt: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A killed container does not end.
    #[error("container {id} has not ended {secs} s after SIGKILL")]
    DoesNotEnd {
        /// Its name.
        id: String,
        /// How long was waited.
        secs: u64,
    },
}

/// This module's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Names the attempt and the file.
pub(super) fn file(
    attempt: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::File {
        attempt,
        path,
        source,
    }
}
