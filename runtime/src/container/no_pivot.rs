//! The root file system over the host's root directory, for hosts whose root is the initial RAM disk: pivot_root(2)
//! cannot put that anywhere else (`--no-pivot` of the OCI command).
//!
//! The host's root directory stays below the container's, where who may unmount uncovers it. A container with
//! CAP_SYS_ADMIN is not confined by mounts anyway; with a user namespace of its own its root would get that right by it,
//! which is refused. Nothing else of the host stays: were its procfs still there, out of sight, the kernel would let a
//! user namespace that is made in the container mount one without the container's masks.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::mount::UnmountFlags;

use super::error::{At, Error, Failure, Result, Step};
use super::inside::Inside;
use super::namespaces::{Had, how};
use crate::kernel_file::{self, MOUNTINFO};

/// Refuses what cannot be had without pivot_root(2).
pub(super) fn validate(spec: &Spec) -> Result<()> {
    match how(spec, LinuxNamespaceType::User) {
        Had::Shared => Ok(()),
        Had::Own => Err(Error::Invalid {
            field: "linux.namespaces".to_owned(),
            reason: "has a user namespace, whose root could uncover the host's root directory: that needs pivot_root, so leave out --no-pivot"
                .to_owned(),
        }),
    }
}

/// Makes the root file system `/`, and lets go of all the host's mounts but its root directory.
pub(super) fn cover_root(inside: &Inside) -> std::result::Result<(), Failure> {
    let mountinfo = kernel_file::read(Path::new(MOUNTINFO)).at(Step::DetachHost, MOUNTINFO)?;
    let own = mount_id(inside.root()).at(Step::PivotRoot, "")?;
    let others = mounts_on_root(&mountinfo, own).at(Step::DetachHost, MOUNTINFO)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let host = rustix::fs::open(c"/", flags, Mode::empty()).at(Step::DetachHost, "/")?;
    rustix::process::fchdir(inside.root()).at(Step::PivotRoot, "")?;
    rustix::mount::mount_move(c".", c"/").at(Step::PivotRoot, "")?;
    // From the host's root directory the names do not lead through what covers it.
    rustix::process::fchdir(&host).at(Step::DetachHost, "")?;
    for point in others.iter().rev() {
        let name = point.strip_prefix("/").unwrap_or(point);
        rustix::mount::unmount(name, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
            .at(Step::DetachHost, point.to_string_lossy())?;
    }
    rustix::process::fchdir(inside.root()).at(Step::PivotRoot, "")?;
    rustix::process::chroot(c".").at(Step::PivotRoot, "")?;
    rustix::process::chdir(c"/").at(Step::PivotRoot, "")
}

fn mount_id(mount: BorrowedFd<'_>) -> io::Result<u64> {
    let found = rustix::fs::statx(mount, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    match found.stx_mask & StatxFlags::MNT_ID.bits() {
        0 => Err(io::ErrorKind::Unsupported.into()),
        _ => Ok(found.stx_mnt_id),
    }
}

/// Where mounts lie on the root directory's own, without `own`, in the order in which they were made; those below them
/// go with them. A place has its name as often as mounts lie over each other there: each time the uppermost goes.
///
/// # Errors
/// `InvalidData` when the root directory is no mount, as by chroot(2): what lies below it cannot be told then.
fn mounts_on_root(mountinfo: &[u8], own: u64) -> io::Result<Vec<PathBuf>> {
    let mounts: Vec<_> = mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(parse)
        .collect();
    let (root, ..) = mounts
        .iter()
        .rfind(|(.., point)| point == Path::new("/"))
        .ok_or(io::ErrorKind::InvalidData)?;
    let on_root = mounts
        .iter()
        .filter(|(id, parent, point)| parent == root && *id != own && point != Path::new("/"));
    let stacks = on_root.map(|(id, _, point)| {
        let over = |under: &u64| {
            let found = mounts
                .iter()
                .find(|(_, parent, at)| parent == under && at == point);
            found.map(|(id, ..)| *id)
        };
        let height = std::iter::successors(Some(*id), over).count();
        std::iter::repeat_n(point.clone(), height)
    });
    Ok(stacks.flatten().collect())
}

/// A line's mount, its parent's, and where it is: `36 35 98:0 /root /point …` (proc_pid_mountinfo(5)).
fn parse(line: &[u8]) -> Option<(u64, u64, PathBuf)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
    let (id, parent) = (number()?, number()?);
    Some((id, parent, kernel_file::unescape(fields.nth(2)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_on_the_root_itself_is_let_go() {
        let mountinfo = b"1 1 0:2 / / rw - rootfs none rw\n\
            20 1 0:18 / /sys rw - sysfs sysfs rw\n\
            21 1 0:19 / /proc rw - proc proc rw\n\
            22 20 0:20 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            23 1 0:21 / /a\\040b rw - tmpfs tmpfs rw\n\
            24 1 0:2 /bundle /bundle rw - rootfs none rw\n\
            25 21 0:19 / /proc/bus rw - proc proc rw\n";
        let found = mounts_on_root(mountinfo, 24).expect("a root");
        assert_eq!(found, ["/sys", "/proc", "/a b"].map(PathBuf::from));
        let on_it = b"1 1 0:2 / / rw - rootfs none rw\n\
            2 1 8:1 / / rw - ext4 /dev/sda rw\n\
            3 2 0:19 / /proc rw - proc proc rw\n";
        let found = mounts_on_root(on_it, 9).expect("a root");
        assert_eq!(found, ["/proc"].map(PathBuf::from));
    }

    #[test]
    fn mounts_over_each_other_are_let_go_one_by_one() {
        let mountinfo = b"1 1 0:2 / / rw - rootfs none rw\n\
            21 1 0:19 / /proc rw - proc proc rw\n\
            22 1 0:20 / /sys rw - sysfs sysfs rw\n\
            25 21 0:30 / /proc rw - proc proc rw\n\
            26 25 0:31 / /proc rw - proc proc rw\n";
        let found = mounts_on_root(mountinfo, 9).expect("a root");
        assert_eq!(
            found,
            ["/proc", "/proc", "/proc", "/sys"].map(PathBuf::from)
        );
    }

    #[test]
    fn a_root_that_is_no_mount_is_an_error() {
        let mountinfo = b"21 1 0:19 / /proc rw - proc proc rw\n";
        assert!(mounts_on_root(mountinfo, 1).is_err());
    }
}
