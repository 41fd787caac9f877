//! Device nodes for a container with a user namespace. Nobody makes nodes there; a caller with the rights makes them
//! before, with the owner and mode that the spec wants:
//!
//! ```text
//! parent                                      child, in its own mount namespace
//!   a detached tmpfs with all nodes ────────►   attached over the host's root, where no path leads
//!                                               a detached mount of each node, moved to its place
//!                                               pivot_root lets go of the host's root, and the tmpfs
//! ```
//!
//! The container reaches the nodes alone, never the directory. A caller without the rights gives nothing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::detached::{attach, clone_of, new_filesystem};
use super::devices::Node;
use super::error::{At, Failure, Step};
use super::id_maps::IdMaps;

type Done = Result<(), Failure>;

/// Nodes made by the caller.
#[derive(Debug, Default)]
pub(super) struct Given {
    /// The file system; a node's name in it is its number in `places`.
    filesystem: Option<OwnedFd>,
    /// Where the nodes belong.
    places: Vec<PathBuf>,
    /// A detached mount of each, once taken.
    mounts: Vec<OwnedFd>,
}

impl Given {
    /// In the parent: makes the nodes whose owner is one of the maps'.
    pub(super) fn make<'a>(
        nodes: impl Iterator<Item = &'a Node>,
        maps: &IdMaps,
    ) -> Result<Self, Failure> {
        let mut given = Self::default();
        for node in nodes {
            let Some((uid, gid)) = maps.outside(node.uid, node.gid) else {
                continue;
            };
            let filesystem = match &given.filesystem {
                Some(there) => there,
                None => {
                    let mode = [("mode".to_owned(), Some("0711".to_owned()))];
                    let none = MountAttrFlags::empty();
                    let new = new_filesystem("tmpfs", Some("tmpfs"), &mode, none);
                    let new = new.map_err(|(_, e)| e).at(Step::MakeDevice, "(tmpfs)")?;
                    given.filesystem.insert(new)
                }
            };
            let name = given.places.len().to_string();
            match make_node(filesystem, &name, node, uid, gid) {
                // The caller is in a user namespace itself.
                Err(Errno::PERM) => return Ok(Self::default()),
                made => made.at(Step::MakeDevice, node.path.to_string_lossy())?,
            }
            given.places.push(node.path.clone());
        }
        Ok(given)
    }

    /// In the child, while the host's root is its own.
    pub(super) fn take(&mut self) -> Done {
        let Some(filesystem) = self.filesystem.take() else {
            return Ok(());
        };
        let path = OFlags::PATH | OFlags::CLOEXEC;
        // Kernels before 6.15 copy no mount that is not attached somewhere.
        let attached = rustix::fs::open(c"/", path | OFlags::DIRECTORY, Mode::empty())
            .map_err(std::io::Error::from)
            .and_then(|root| attach(filesystem.as_fd(), root.as_fd()));
        attached.at(Step::MakeDevice, "(tmpfs)")?;
        for (number, place) in self.places.iter().enumerate() {
            let name = number.to_string();
            let mount =
                rustix::fs::openat(&filesystem, name, path | OFlags::NOFOLLOW, Mode::empty())
                    .map_err(std::io::Error::from)
                    .and_then(|node| clone_of(node.as_fd(), false));
            self.mounts
                .push(mount.at(Step::MakeDevice, place.to_string_lossy())?);
        }
        Ok(())
    }

    /// The mount of a node that was given and taken.
    pub(super) fn get(&self, node: &Node) -> Option<BorrowedFd<'_>> {
        let number = self.places.iter().position(|place| *place == node.path)?;
        self.mounts.get(number).map(AsFd::as_fd)
    }
}

fn make_node(
    filesystem: &OwnedFd,
    name: &str,
    node: &Node,
    uid: u32,
    gid: u32,
) -> rustix::io::Result<()> {
    let mode = Mode::from_raw_mode(node.mode);
    rustix::fs::mknodat(filesystem, name, node.kind, mode, node.device)?;
    let (owner, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let itself = AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::chownat(filesystem, name, Some(owner), Some(group), itself)?;
    // The caller's umask took its part.
    rustix::fs::chmodat(filesystem, name, mode, AtFlags::empty())
}
