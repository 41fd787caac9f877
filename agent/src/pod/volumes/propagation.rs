//! Whether mounts that are made below a volume are seen on its other side (`mountPropagation`; mount_namespaces(7),
//! "Shared subtrees").

use std::fs;
use std::io;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::VolumeError;

/// Who sees mounts that are made below a volume later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Nobody else.
    None,
    /// The container sees the host's.
    HostToContainer,
    /// Both see the other's.
    Bidirectional,
}

impl Propagation {
    /// As a mount option of OCI.
    #[must_use]
    pub fn option(self) -> &'static str {
        match self {
            Self::None => "rprivate",
            Self::HostToContainer => "rslave",
            Self::Bidirectional => "rshared",
        }
    }

    /// Refuses what would have no effect: the mount that the volume lies on must take part, as containerd asks too.
    ///
    /// # Errors
    /// When it does not, or cannot be looked at.
    pub fn check(self, volume: &str, source: &Path) -> Result<(), VolumeError> {
        if self == Self::None {
            return Ok(());
        }
        let host = of_path(source).map_err(VolumeError::io("look at the mount of", source))?;
        let enough = match self {
            Self::None => true,
            Self::HostToContainer => host.shared || host.slave,
            Self::Bidirectional => host.shared,
        };
        if enough {
            return Ok(());
        }
        Err(VolumeError::Invalid {
            volume: volume.to_owned(),
            reason: format!(
                "{} is not on a shared mount, so nothing would propagate; `mount --make-rshared` makes it one",
                source.display()
            ),
        })
    }
}

/// What a mount is to others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Peers {
    /// Mounts made below it appear in its peers, and theirs here.
    shared: bool,
    /// Mounts made below its master appear here.
    slave: bool,
}

/// Of the mount that a path is on.
fn of_path(path: &Path) -> io::Result<Peers> {
    let stat = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?;
    let table = fs::read(Path::new("/proc/self/mountinfo"))?;
    find(&String::from_utf8_lossy(&table), stat.stx_mnt_id)
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// The line of a mount's id in proc_pid_mountinfo(5): the optional fields are between the sixth and a single dash.
fn find(table: &str, id: u64) -> Option<Peers> {
    let id = id.to_string();
    let line = table
        .lines()
        .find(|line| line.split(' ').next() == Some(id.as_str()))?;
    let mut peers = Peers::default();
    for field in line.split(' ').skip(6).take_while(|field| *field != "-") {
        peers.shared |= field.starts_with("shared:");
        peers.slave |= field.starts_with("master:");
    }
    Some(peers)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
21 1 0:20 / / rw,relatime shared:1 - ext4 /dev/vda rw
36 21 0:31 / /mnt/a\\040b rw master:7 shared:9 - tmpfs tmpfs rw
37 21 0:32 / /mnt/c rw,nosuid master:7 - tmpfs shared:3 rw
38 21 0:33 / /mnt/d rw - tmpfs tmpfs rw
";

    #[test]
    fn the_optional_fields_of_a_mount_are_found() {
        let of = |shared, slave| Some(Peers { shared, slave });
        assert_eq!(find(TABLE, 21), of(true, false));
        assert_eq!(find(TABLE, 36), of(true, true));
        assert_eq!(find(TABLE, 37), of(false, true));
        assert_eq!(find(TABLE, 38), of(false, false));
        assert_eq!(find(TABLE, 3), None);
    }

    #[test]
    fn every_path_is_on_a_mount() {
        assert!(of_path(Path::new("/")).is_ok());
        assert!(Propagation::None.check("v", Path::new("/nowhere")).is_ok());
        assert!(
            Propagation::HostToContainer
                .check("v", Path::new("/nowhere"))
                .is_err()
        );
    }
}
