//! Places for mounts that somebody else makes: criu, which restores a container.

use std::io;
use std::path::Path;

use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{Mode, OFlags};

use super::inside::{Inside, Kind};
use super::mount_plan::is_bind;

/// Makes what is missing of the spec's mount targets in a root directory. Those on a tmpfs of the spec's are made with
/// its content.
///
/// # Errors
/// When the root cannot be opened or a target cannot be made. None is made outside the root.
pub fn make_mount_places(spec: &Spec, rootfs: &Path) -> io::Result<()> {
    let root = rustix::fs::open(
        rootfs,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let inside = Inside::new(root);
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let above: Vec<&Path> = mounts
        .iter()
        .filter(|mount| !is_bind(mount))
        .map(|mount| mount.destination().as_path())
        .collect();
    for mount in mounts {
        let place = mount.destination();
        if above.iter().any(|it| place.starts_with(it) && place != it) {
            continue;
        }
        inside.ensure(place, kind(mount))?;
    }
    Ok(())
}

fn kind(mount: &Mount) -> Kind {
    let is_file = is_bind(mount)
        && mount
            .source()
            .as_ref()
            .and_then(|source| std::fs::metadata(source).ok())
            .is_some_and(|found| !found.is_dir());
    if is_file { Kind::File } else { Kind::Directory }
}
