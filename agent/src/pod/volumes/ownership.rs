//! fsGroup: a volume's files belong to a group that every process of the pod is in.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use super::VolumeError;

const READ: u32 = 0o440;
const READ_WRITE: u32 = 0o660;
const SEARCH: u32 = 0o110;
const SET_GROUP_ID: u32 = 0o2000;

/// Gives one file or directory to a group, which may then read it, and write it when `writable`; new files in a
/// directory inherit the group. The masks are those of Kubernetes' `SetVolumeOwnership` (`pkg/volume/volume_linux.go`).
pub(super) fn give_to_group(path: &Path, group: u32, writable: bool) -> Result<(), VolumeError> {
    let metadata = fs::symlink_metadata(path).map_err(VolumeError::io("look at", path))?;
    if metadata.is_symlink() {
        return Ok(());
    }
    chown(path, None, Some(group)).map_err(VolumeError::io("change the group of", path))?;
    let mut mode = metadata.mode() & 0o7777 | if writable { READ_WRITE } else { READ };
    if metadata.is_dir() {
        mode |= SEARCH | SET_GROUP_ID;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(VolumeError::io("set the mode of", path))
}
