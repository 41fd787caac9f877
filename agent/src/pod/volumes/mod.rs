//! The volumes of one pod, as directories on the host that containers get bound.
//!
//! ```text
//! <data-dir>/pods/<uid>/
//!     volumes/<name>/            emptyDir (a tmpfs when in memory), configMap, secret (always a tmpfs), projected
//!     shm/                       a tmpfs: /dev/shm of all containers
//!     subpaths/<container>/<n>   bind mounts that pin what a subPath resolved to
//! ```
//!
//! Everything here is blocking and idempotent: [`Volumes::prepare`] runs at first and whenever a ConfigMap or Secret of
//! the pod changes; it writes only what differs. [`Volumes::teardown`] works on whatever it finds, so a pod directory
//! from before a crash needs no record of what was mounted.
//!
//! A subPath is resolved inside the volume by descriptor and pinned by a mount before any container sees the path, so
//! that a container that swaps a directory for a symlink cannot redirect the next one (CVE-2017-1002101,
//! CVE-2021-25741).

mod atomic_writer;
mod empty_dir;
mod host_path;
mod mounts;
mod ownership;
mod projection;
mod propagation;
mod sub_path;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, PodSpec, Volume, VolumeMount};

use super::env::{EnvError, Objects, PodFacts};
pub use empty_dir::OverLimit;
pub use propagation::Propagation;

/// The size of `/dev/shm` in containers, as containerd's and Docker's default.
const SHM_BYTES: u64 = 64 << 20;

/// Why a volume is not ready, or could not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A ConfigMap or Secret is not there, or lacks a key.
    #[error("volume \"{volume}\": {reason}")]
    Missing {
        /// The volume's name.
        volume: String,
        /// What is missing.
        reason: String,
    },
    /// A hostPath is not what its type says.
    #[error("volume \"{volume}\": hostPath type check failed: {path} is not {expected}")]
    HostPathType {
        /// The volume's name.
        volume: String,
        /// The path on the host.
        path: PathBuf,
        /// `a directory`, …
        expected: &'static str,
    },
    /// A field of the downward API has no value here.
    #[error("volume \"{volume}\"")]
    Downward {
        /// The volume's name.
        volume: String,
        /// Which and why.
        #[source]
        source: EnvError,
    },
    /// A kind of volume that Podling does not have.
    #[error(
        "volume \"{volume}\" is of a kind that is not supported: use emptyDir, hostPath, configMap, secret, projected or downwardAPI"
    )]
    Unsupported {
        /// The volume's name.
        volume: String,
    },
    /// A quantity or a path in the manifest is wrong.
    #[error("volume \"{volume}\": {reason}")]
    Invalid {
        /// The volume's name.
        volume: String,
        /// What is wrong.
        reason: String,
    },
    /// A mount names a volume that the pod does not have.
    #[error("container \"{container}\" mounts volume \"{volume}\", which the pod does not have")]
    Unknown {
        /// The container.
        container: String,
        /// The volume's name.
        volume: String,
    },
    /// A subPath leaves its volume, or cannot be reached.
    #[error(
        "container \"{container}\": subPath \"{sub_path}\" of volume \"{volume}\" cannot be used"
    )]
    SubPath {
        /// The container.
        container: String,
        /// The volume's name.
        volume: String,
        /// The subPath.
        sub_path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file system said no.
    #[error("cannot {action} {path}")]
    Io {
        /// `create`, `mount a tmpfs on`, …
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl VolumeError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

/// What volumes depend on beside the pod's spec.
pub struct VolumeContext<'a> {
    /// The namespace's ConfigMaps and Secrets.
    pub objects: &'a dyn Objects,
    /// What the downward API can tell.
    pub facts: &'a PodFacts<'a>,
    /// The sum of the containers' memory limits, if all have one: a volume in memory is never larger.
    pub memory_limit_bytes: Option<u64>,
}

/// A volume that containers can be bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreparedVolume {
    /// The directory (or, for a hostPath, anything) on the host.
    pub path: PathBuf,
    /// Containers get it read-only, whatever they ask for: the node writes it.
    pub read_only: bool,
}

/// The volumes of one pod.
#[derive(Debug, Clone)]
pub struct Volumes {
    pod_dir: PathBuf,
}

impl Volumes {
    /// Those below `<data-dir>/pods/<uid>`. Nothing is read or made yet.
    pub fn new(pod_dir: impl Into<PathBuf>) -> Self {
        Self {
            pod_dir: pod_dir.into(),
        }
    }

    /// Makes every volume of the pod and brings its content up to date.
    ///
    /// # Errors
    /// At the first volume that cannot be made; those before it stay, and a later call goes on.
    pub fn prepare(
        &self,
        spec: &PodSpec,
        context: &VolumeContext<'_>,
    ) -> Result<BTreeMap<String, PreparedVolume>, VolumeError> {
        let fs_group = spec
            .security_context
            .as_ref()
            .and_then(|s| s.fs_group)
            .and_then(|group| u32::try_from(group).ok());
        spec.volumes
            .iter()
            .flatten()
            .map(|volume| {
                Ok((
                    volume.name.clone(),
                    self.prepare_one(volume, fs_group, context)?,
                ))
            })
            .collect()
    }

    fn prepare_one(
        &self,
        volume: &Volume,
        fs_group: Option<u32>,
        context: &VolumeContext<'_>,
    ) -> Result<PreparedVolume, VolumeError> {
        let dir = self.pod_dir.join("volumes").join(&volume.name);
        if let Some(empty) = &volume.empty_dir {
            empty_dir::prepare(
                &volume.name,
                empty,
                &dir,
                fs_group,
                context.memory_limit_bytes,
            )?;
            return Ok(PreparedVolume {
                path: dir,
                read_only: false,
            });
        }
        if let Some(host) = &volume.host_path {
            return Ok(PreparedVolume {
                path: host_path::prepare(&volume.name, host)?,
                read_only: false,
            });
        }
        let Some(projection) = projection::collect(volume, context)? else {
            return Err(VolumeError::Unsupported {
                volume: volume.name.clone(),
            });
        };
        create_dir(&dir)?;
        if projection.secret && !mounts::is_mount_point(&dir)? {
            mounts::mount_tmpfs(&dir, "mode=0755")?;
        }
        atomic_writer::write(&dir, &projection.files, fs_group)?;
        Ok(PreparedVolume {
            path: dir,
            read_only: true,
        })
    }

    /// The tmpfs that the pod's containers share as `/dev/shm`, made when it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn prepare_shm(&self) -> Result<PathBuf, VolumeError> {
        let dir = self.pod_dir.join("shm");
        create_dir(&dir)?;
        if !mounts::is_mount_point(&dir)? {
            mounts::mount_tmpfs(&dir, &format!("mode=1777,size={SHM_BYTES}"))?;
        }
        Ok(dir)
    }

    /// The host path to bind for one entry of `volumeMounts`; `sub_path` is its `subPath` or its expanded
    /// `subPathExpr`. `index` is the entry's place in the container.
    ///
    /// # Errors
    /// When the volume is unknown or the subPath leaves it.
    pub fn source_of(
        &self,
        prepared: &BTreeMap<String, PreparedVolume>,
        container: &Container,
        index: usize,
        mount: &VolumeMount,
        sub_path: Option<&str>,
    ) -> Result<PathBuf, VolumeError> {
        let volume = prepared
            .get(&mount.name)
            .ok_or_else(|| VolumeError::Unknown {
                container: container.name.clone(),
                volume: mount.name.clone(),
            })?;
        let Some(sub_path) = sub_path.filter(|s| !s.is_empty()) else {
            return Ok(volume.path.clone());
        };
        let pin = self
            .pod_dir
            .join("subpaths")
            .join(&container.name)
            .join(index.to_string());
        sub_path::pin(&volume.path, sub_path, &pin).map_err(|source| VolumeError::SubPath {
            container: container.name.clone(),
            volume: mount.name.clone(),
            sub_path: sub_path.to_owned(),
            source,
        })?;
        Ok(pin)
    }

    /// The first emptyDir on disk that holds more than its `sizeLimit`. Volumes in memory cannot.
    ///
    /// # Errors
    /// When a volume cannot be read.
    pub fn over_limit(&self, spec: &PodSpec) -> Result<Option<OverLimit>, VolumeError> {
        for volume in spec.volumes.iter().flatten() {
            let dir = self.pod_dir.join("volumes").join(&volume.name);
            if let Some(empty) = &volume.empty_dir
                && let Some(over) = empty_dir::over_limit(&volume.name, empty, &dir)?
            {
                return Ok(Some(over));
            }
        }
        Ok(None)
    }

    /// Takes away every mount and file below the pod's directory. What hostPath volumes name stays.
    ///
    /// # Errors
    /// When something cannot be unmounted or removed; a later call goes on.
    pub fn teardown(&self) -> Result<(), VolumeError> {
        mounts::unmount_below(&self.pod_dir)?;
        for part in ["subpaths", "volumes", "shm"] {
            let dir = self.pod_dir.join(part);
            match std::fs::remove_dir_all(&dir) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(VolumeError::io("remove", &dir)(error)),
            }
        }
        Ok(())
    }
}

fn create_dir(dir: &Path) -> Result<(), VolumeError> {
    std::fs::create_dir_all(dir).map_err(VolumeError::io("create", dir))
}
