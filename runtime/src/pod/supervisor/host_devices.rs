//! The host's device nodes, for containers that get them all (privileged ones), as containerd gives them
//! (`oci.WithHostDevices`): looked at when a container starts, since devices come and go.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::OciSpecError;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};

const DEV: &str = "/dev";
/// Mounts and views of a process's own, which a container has its own of.
const SKIPPED: [&str; 9] = [
    "pts",
    "ptmx",
    "shm",
    "fd",
    "mqueue",
    "console",
    ".lxc",
    ".lxd-mounts",
    ".udev",
];
/// Deeper than udev makes any.
const DEPTH_MAX: usize = 8;

/// The character and block devices in the host's `/dev`.
///
/// # Errors
/// When `/dev` cannot be read. What vanishes meanwhile is left out.
pub(super) fn list() -> io::Result<Vec<LinuxDevice>> {
    let mut found = Vec::new();
    walk(Path::new(DEV), 0, &mut found)?;
    Ok(found)
}

fn walk(dir: &Path, depth: usize, found: &mut Vec<LinuxDevice>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if depth == 0 && SKIPPED.iter().any(|skipped| name == *skipped) {
            continue;
        }
        let path = entry.path();
        // Of the entry itself: links are made by the image, or not at all.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if metadata.is_dir() && depth < DEPTH_MAX {
            walk(&path, depth + 1, found)?;
        } else if let Some(device) = device(path, &metadata).map_err(io::Error::other)? {
            found.push(device);
        }
    }
    Ok(())
}

fn device(path: PathBuf, metadata: &fs::Metadata) -> Result<Option<LinuxDevice>, OciSpecError> {
    let kind = metadata.file_type();
    let typ = if kind.is_char_device() {
        LinuxDeviceType::C
    } else if kind.is_block_device() {
        LinuxDeviceType::B
    } else {
        return Ok(None);
    };
    let number = metadata.rdev();
    LinuxDeviceBuilder::default()
        .path(path)
        .typ(typ)
        .major(i64::from(rustix::fs::major(number)))
        .minor(i64::from(rustix::fs::minor(number)))
        .file_mode(metadata.mode() & 0o7777)
        .uid(metadata.uid())
        .gid(metadata.gid())
        .build()
        .map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_null_device_is_found_and_terminals_of_others_are_not() {
        let devices = list().expect("/dev is readable");
        let null = devices
            .iter()
            .find(|device| device.path() == Path::new("/dev/null"))
            .expect("every machine has one");
        assert_eq!((null.major(), null.minor()), (1, 3));
        assert_eq!(null.typ(), LinuxDeviceType::C);
        assert!(devices.iter().all(|d| !d.path().starts_with("/dev/pts")));
    }
}
