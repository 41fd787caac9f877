//! What can go wrong with a cgroup.

use std::io;
use std::path::PathBuf;

/// A result of this module.
pub type Result<T> = std::result::Result<T, Error>;

/// What was attempted, on what, and why it failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The mounts of this process could not be read.
    #[error("cannot read {path}")]
    ReadMounts {
        /// `/proc/self/mountinfo`.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No cgroup file system is mounted.
    #[error("no cgroup file system is mounted (mount cgroup2 at /sys/fs/cgroup)")]
    NotMounted,
    /// A cgroup directory could not be made.
    #[error("cannot create the cgroup {path}")]
    Create {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A control file could not be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A control file holds what this program does not understand.
    #[error("cannot understand {path}: {text:?}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What it holds, or the part of it.
        text: String,
    },
    /// A control file could not be written.
    #[error("cannot write {value:?} to {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What was to be written.
        value: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A limit was asked for whose controller this machine does not have or did not delegate.
    #[error(
        "{limit} needs the cgroup controller {controller:?}, which is not available in {cgroup}"
    )]
    MissingController {
        /// The OCI field.
        limit: &'static str,
        /// The controller's name.
        controller: String,
        /// The cgroup's path below the hierarchies' roots.
        cgroup: PathBuf,
    },
    /// A limit that cannot be given on this cgroup version, or that contradicts another.
    #[error("{limit}: {reason}")]
    Unsupported {
        /// The OCI field.
        limit: &'static str,
        /// Why.
        reason: String,
    },
    /// The device program could not be loaded or attached.
    #[error("cannot {attempt} the device rules of {path}")]
    Devices {
        /// `load`, `attach`, `list` or `detach`.
        attempt: &'static str,
        /// The cgroup directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Processes could not be signalled.
    #[error("cannot kill process {pid} of {path}")]
    Kill {
        /// The process.
        pid: i32,
        /// The cgroup directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A cgroup did not freeze or thaw in time.
    #[error("{path} did not become {wanted} within {waited_ms} ms")]
    Freeze {
        /// The cgroup directory.
        path: PathBuf,
        /// `frozen` or `thawed`.
        wanted: &'static str,
        /// How long it was waited for, in milliseconds.
        waited_ms: u128,
    },
    /// A cgroup directory could not be removed.
    #[error("cannot remove the cgroup {path}")]
    Delete {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// True when the caller may not do it, as an ordinary user in cgroups that were not delegated to it.
    pub fn is_denied(&self) -> bool {
        match self {
            Self::Create { source, .. } | Self::Write { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
            ),
            Self::NotMounted => true,
            _ => false,
        }
    }
}
