//! emptyDir: a directory, or a tmpfs, that lives as long as its pod.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::{fs, io};

use k8s_openapi::api::core::v1::EmptyDirVolumeSource;

use super::{VolumeError, create_dir, mounts, ownership};
use crate::manifest::quantity;

/// An emptyDir that holds more than it may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverLimit {
    /// The volume's name.
    pub volume: String,
    /// What it holds, in bytes of disk.
    pub used_bytes: u64,
    /// `sizeLimit` as it was written.
    pub limit: String,
}

pub(super) fn prepare(
    name: &str,
    source: &EmptyDirVolumeSource,
    dir: &Path,
    fs_group: Option<u32>,
    memory_limit_bytes: Option<u64>,
) -> Result<(), VolumeError> {
    let in_memory = match source.medium.as_deref() {
        None | Some("") => false,
        Some("Memory") => true,
        Some(other) => {
            return Err(VolumeError::Invalid {
                volume: name.to_owned(),
                reason: format!(
                    "emptyDir medium `{other}` is not supported: leave it out, or use Memory"
                ),
            });
        }
    };
    let limit_bytes = limit_bytes(name, source)?;
    let exists = dir.exists();
    if in_memory {
        create_dir(dir)?;
        if mounts::is_mount_point(dir)? {
            return Ok(());
        }
        let size_bytes = [limit_bytes, memory_limit_bytes]
            .into_iter()
            .flatten()
            .min();
        let size = size_bytes.map_or(String::new(), |bytes| format!(",size={bytes}"));
        mounts::mount_tmpfs(dir, &format!("mode=0777{size}"))?;
    } else if exists {
        return Ok(());
    } else {
        create_dir(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777))
            .map_err(VolumeError::io("set the mode of", dir))?;
    }
    match fs_group {
        Some(group) => ownership::give_to_group(dir, group, true),
        None => Ok(()),
    }
}

/// Compares what a volume on disk holds with its `sizeLimit`.
pub(super) fn over_limit(
    name: &str,
    source: &EmptyDirVolumeSource,
    dir: &Path,
) -> Result<Option<OverLimit>, VolumeError> {
    let Some(limit) = limit_bytes(name, source)? else {
        return Ok(None);
    };
    if source.medium.as_deref() == Some("Memory") {
        return Ok(None);
    }
    let used_bytes = disk_usage(dir).map_err(VolumeError::io("measure", dir))?;
    Ok((used_bytes > limit).then(|| OverLimit {
        volume: name.to_owned(),
        used_bytes,
        limit: source
            .size_limit
            .as_ref()
            .map(|q| q.0.clone())
            .unwrap_or_default(),
    }))
}

fn limit_bytes(name: &str, source: &EmptyDirVolumeSource) -> Result<Option<u64>, VolumeError> {
    let Some(limit) = &source.size_limit else {
        return Ok(None);
    };
    let bytes = quantity::units(&limit.0).map_err(|error| VolumeError::Invalid {
        volume: name.to_owned(),
        reason: format!("emptyDir sizeLimit: {error}"),
    })?;
    // Zero means no limit, as in Kubernetes.
    Ok(u64::try_from(bytes).ok().filter(|bytes| *bytes > 0))
}

/// The disk blocks below a directory, in bytes. Files that vanish meanwhile count nothing.
fn disk_usage(dir: &Path) -> io::Result<u64> {
    let mut total = 0;
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            total += metadata.blocks() * 512;
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    #[test]
    fn a_directory_over_its_limit_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let source = EmptyDirVolumeSource {
            size_limit: Some(Quantity("64Ki".into())),
            ..Default::default()
        };
        fs::write(dir.path().join("small"), [1; 1000]).unwrap();
        assert_eq!(over_limit("v", &source, dir.path()).unwrap(), None);
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("sub/large"), [1; 100_000]).unwrap();
        let over = over_limit("v", &source, dir.path()).unwrap().unwrap();
        assert!(over.used_bytes > 65_536);
        assert_eq!(over.limit, "64Ki");
    }

    #[test]
    fn an_unknown_medium_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let source = EmptyDirVolumeSource {
            medium: Some("HugePages".into()),
            ..Default::default()
        };
        let error = prepare("v", &source, &dir.path().join("v"), None, None).unwrap_err();
        assert!(error.to_string().contains("HugePages"));
    }
}
