//! Directories that a layer fills without saying what they are.
//!
//! A layer may hold `usr/share/doc/x` and no entry for `usr`: umoci writes such layers, and so do many build systems. A
//! tool that unpacks one layer over the other leaves `usr` as the layers below have it. Here each layer is a directory of
//! its own, whose `usr` would hide owner, mode, time and attributes of the one below. So unpacking lists what was
//! implied in the file `implied` beside the layer, and the first image that is committed with the layer gives these
//! directories what the highest of its lower layers says; then the list is removed. A directory that hides what is in those
//! below (`.wh..wh..opq`) is still the same directory, and takes this from them, too; one that was removed (`.wh.usr`) and
//! made again is another one, and takes nothing.
//!
//! Where a lower layer has a symbolic link in that place, the directory hides the link, and what the layer has below it
//! does not come where the link leads. So it is with Docker's overlay2 and podman's overlay storage, which unpack layer
//! by layer as well; umoci, which unpacks one layer over the other, follows the link. It stays so here: a layer is unpacked
//! once for all images that have it, on whatever layers it stands there. Builders that copy files as a container would
//! (Docker, BuildKit, buildah) write no such layers.
//!
//! A second image may stand the layer on other ones. Then the directories keep what the first gave them: a layer that
//! running containers use does not change.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::disk::{self, failed};
use super::record::Record;
use super::{ImageStore, StoreError};
use crate::unpack::{is_left_out, is_opaque};

const LIST: &str = "implied";

/// Lists the implied directories of the layer that is being made in `temporary`.
pub(super) fn write_list(
    temporary: &Path,
    directories: &BTreeSet<Vec<u8>>,
) -> Result<(), StoreError> {
    if directories.is_empty() {
        return Ok(());
    }
    let path = temporary.join(LIST);
    let text: Vec<u8> = directories
        .iter()
        .flat_map(|name| name.iter().copied().chain([0]))
        .collect();
    std::fs::write(&path, text).map_err(failed("write", &path))
}

impl ImageStore {
    /// Gives the implied directories of the image's layers what the layers below say.
    pub(super) fn inherit(&self, record: &Record) -> Result<(), StoreError> {
        let layers: Vec<_> = record
            .layers
            .iter()
            .map(|layer| disk::layer_path(self.dir(), &layer.diff_id))
            .collect();
        for (i, layer) in layers.iter().enumerate() {
            let list = layer.join(LIST);
            let names = match std::fs::read(&list) {
                Ok(names) => names,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(failed("read", &list)(e)),
            };
            let lowest = (0..i)
                .rev()
                .find(|j| is_opaque_at_root(self.dir(), record, *j))
                .unwrap_or(0);
            let own = open_root(&layer.join("fs"))?;
            let mut below = Vec::new();
            for lower in layers[lowest..i].iter().rev() {
                below.push(open_root(&lower.join("fs"))?);
            }
            let hides = is_opaque_at_root(self.dir(), record, i);
            for name in names.split_inclusive(|b| *b == 0) {
                let name = &name[..name.len() - 1];
                // Below a root that hides, nothing of the layers below is there.
                if !hides || name.is_empty() {
                    inherit_one(&own, &below, name).map_err(|e| {
                        failed("set owner, mode and time of directories in", layer)(e.into())
                    })?;
                }
            }
            if !below.is_empty() {
                // Before the list is gone for good, what it led to is on the disk.
                File::open(layer)
                    .and_then(|directory| Ok(rustix::fs::syncfs(directory)?))
                    .map_err(failed("sync", layer))?;
            }
            std::fs::remove_file(&list).map_err(failed("remove", &list))?;
        }
        Ok(())
    }
}

fn is_opaque_at_root(dir: &Path, record: &Record, layer: usize) -> bool {
    disk::read_layer(dir, &record.layers[layer].diff_id).is_ok_and(|info| info.root_is_opaque)
}

fn open_root(path: &Path) -> Result<OwnedFd, StoreError> {
    rustix::fs::open(path, directory_flags(), Mode::empty())
        .map_err(|e| failed("open", path)(e.into()))
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// What a layer has at a path.
enum Found {
    /// A directory, in one that hides those of the layers below or not.
    Directory { fd: OwnedFd, in_hiding: bool },
    /// Nothing, but what is above hides the layers below; or no directory.
    Hidden,
    /// The layers below show.
    Nothing,
}

fn inherit_one(own: &OwnedFd, below: &[OwnedFd], path: &[u8]) -> Result<(), Errno> {
    let Found::Directory {
        fd,
        in_hiding: false,
    } = find(own, path)?
    else {
        return Ok(());
    };
    for layer in below {
        match find(layer, path)? {
            Found::Directory { fd: lower, .. } => return copy_metadata(&lower, &fd),
            Found::Hidden => return Ok(()),
            Found::Nothing => {}
        }
    }
    Ok(())
}

fn find(root: &OwnedFd, path: &[u8]) -> Result<Found, Errno> {
    let mut fd = rustix::fs::openat(root, ".", directory_flags(), Mode::empty())?;
    let (mut hides, mut in_hiding) = (false, false);
    for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
        fd = match rustix::fs::openat(&fd, name, directory_flags(), Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) if hides => return Ok(Found::Hidden),
            Err(Errno::NOENT) => return Ok(Found::Nothing),
            // A file, a whiteout or a link.
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Found::Hidden),
            Err(e) => return Err(e),
        };
        in_hiding = hides;
        hides |= is_opaque(&fd);
    }
    Ok(Found::Directory { fd, in_hiding })
}

fn copy_metadata(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    let stat = rustix::fs::fstat(from)?;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    rustix::fs::fchown(to, Some(uid), Some(gid))?;
    copy_xattrs(from, to)?;
    rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let time = |secs, nanos: u64| Timespec {
        tv_sec: secs,
        tv_nsec: nanos as i64,
    };
    rustix::fs::futimens(
        to,
        &Timestamps {
            last_access: time(stat.st_atime, stat.st_atime_nsec),
            last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
        },
    )
}

fn copy_xattrs(from: &OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    let mut names = vec![0_u8; 64 * 1024];
    let len = match rustix::fs::flistxattr(from.as_fd(), &mut names) {
        Ok(len) => len,
        Err(Errno::NOTSUP) => return Ok(()),
        Err(e) => return Err(e),
    };
    let mut value = vec![0_u8; 64 * 1024];
    for name in names[..len].split(|b| *b == 0) {
        if name.is_empty() || is_left_out(name) {
            continue;
        }
        let name = OsStr::from_bytes(name);
        let len = rustix::fs::fgetxattr(from, name, &mut value)?;
        rustix::fs::fsetxattr(to, name, &value[..len], XattrFlags::empty())?;
    }
    Ok(())
}
