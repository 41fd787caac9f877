//! Device nodes and links in the container's `/dev`, and the cgroup rules that belong to them.
//!
//! Source: runtime-spec `config-linux.md#default-devices` and `runtime-linux.md#dev-symbolic-links`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxResources, Spec};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::error::{At, Error, Failure, Result, Step};
use super::given_nodes::Given;
use super::id_maps::IdMaps;
use super::inside::{Inside, Kind};
use crate::sys::mount::{Attributes, set_attributes};

/// A device node to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) path: PathBuf,
    pub(super) kind: FileType,
    pub(super) device: u64,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// The largest numbers of a device: 12 and 20 bits (`MINORBITS` of linux/kdev_t.h).
const MAJOR_MAX: u32 = (1 << 12) - 1;
const MINOR_MAX: u32 = (1 << 20) - 1;

/// Name, major and minor number of the default devices.
const DEFAULT_NODES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// Links in `/dev` and where they lead.
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// The nodes that a container gets.
#[derive(Debug, Default)]
pub(super) struct Devices {
    /// To make, the default ones first.
    made: Vec<Node>,
    /// How many of these are default ones.
    defaults: usize,
    /// Those that the caller has made, for a user namespace.
    given: Given,
    /// In a `/dev` that is a bind mount, and somebody else's: they must be there.
    found: Vec<Node>,
    dev_is_bound: bool,
}

/// The default nodes and the spec's.
pub(super) fn plan(spec: &Spec) -> Result<Devices> {
    let dev_is_bound = spec.mounts().iter().flatten().any(|mount| {
        super::mount_plan::lexical(mount.destination()) == Path::new("/dev")
            && super::mount_plan::is_bind(mount)
    });
    let asked = asked(spec)?;
    if dev_is_bound {
        let (found, made) = asked
            .into_iter()
            .partition(|node| node.path.starts_with("/dev"));
        return Ok(Devices {
            made,
            found,
            dev_is_bound,
            ..Devices::default()
        });
    }
    let mut made: Vec<Node> = DEFAULT_NODES
        .iter()
        .map(|&(name, major, minor)| Node {
            path: Path::new("/dev").join(name),
            kind: FileType::CharacterDevice,
            device: rustix::fs::makedev(major, minor),
            mode: 0o666,
            uid: 0,
            gid: 0,
        })
        .collect();
    made.retain(|default| asked.iter().all(|node| node.path != default.path));
    let defaults = made.len();
    made.extend(asked);
    Ok(Devices {
        made,
        defaults,
        ..Devices::default()
    })
}

/// The spec's nodes. One that is there twice is made once; two that are at one place are refused.
fn asked(spec: &Spec) -> Result<Vec<Node>> {
    let devices = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.devices().as_deref())
        .unwrap_or_default();
    let mut nodes: Vec<Node> = Vec::new();
    for (index, device) in devices.iter().enumerate() {
        let node = node(index, device)?;
        match nodes.iter().find(|other| other.path == node.path) {
            None => nodes.push(node),
            Some(same) if *same == node => {}
            Some(_) => {
                return Err(invalid(index, device, "another device is at this path"));
            }
        }
    }
    Ok(nodes)
}

fn invalid(index: usize, device: &LinuxDevice, reason: &str) -> Error {
    Error::Invalid {
        field: format!("linux.devices[{index}] ({})", device.path().display()),
        reason: reason.to_owned(),
    }
}

fn node(index: usize, device: &LinuxDevice) -> Result<Node> {
    let invalid = |reason: &str| invalid(index, device, reason);
    let is_path = device.path().is_absolute() && !device.path().as_os_str().as_bytes().contains(&0);
    if !is_path || device.path().file_name().is_none() {
        return Err(invalid("must be an absolute path"));
    }
    let kind = match device.typ() {
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::A => return Err(invalid("a node cannot be of type a")),
    };
    // mknod(2) would cut off what is above.
    let number = |n: i64, max: u32| match u32::try_from(n) {
        Ok(n) if n <= max => Ok(n),
        _ => Err(invalid("a device number is out of range")),
    };
    let device_number = match kind {
        FileType::Fifo => 0,
        _ => rustix::fs::makedev(
            number(device.major(), MAJOR_MAX)?,
            number(device.minor(), MINOR_MAX)?,
        ),
    };
    // For chown(2) it would be no change.
    if [device.uid(), device.gid()].contains(&Some(u32::MAX)) {
        return Err(invalid("4294967295 (-1) is no id"));
    }
    Ok(Node {
        path: super::mount_plan::lexical(device.path()),
        kind,
        device: device_number,
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

impl Devices {
    /// The container's `/dev` is its own: a terminal can be put there.
    pub(super) fn own_dev(&self) -> bool {
        !self.dev_is_bound
    }

    /// In the parent, with its rights: makes the spec's nodes for a user namespace with these maps.
    pub(super) fn give(&mut self, maps: &IdMaps) -> std::result::Result<(), Failure> {
        let asked = self.made.iter().skip(self.defaults);
        self.given = Given::make(asked.filter(|node| node.kind != FileType::Fifo), maps)?;
        Ok(())
    }

    /// In the child, before the root file system is attached: takes the nodes that the parent has made.
    pub(super) fn take_given(&mut self) -> std::result::Result<(), Failure> {
        self.given.take()
    }

    /// Makes the nodes and links. The umask is 0. With `bind`, in a user namespace, where nobody makes nodes, those of
    /// the parent are attached; for others the host's are bound, which keep their owner and mode.
    pub(super) fn make(&self, inside: &Inside, bind: bool) -> std::result::Result<(), Failure> {
        for node in &self.found {
            find_node(inside, node).at(Step::FindDevice, node.path.to_string_lossy())?;
        }
        if self.dev_is_bound && self.made.is_empty() {
            return Ok(());
        }
        let dev = inside
            .ensure(Path::new("/dev"), Kind::Directory)
            .at(Step::MakeLink, "/dev")?;
        for node in &self.made {
            let made = match self.given.get(node) {
                Some(mount) => attach_node(inside, node, mount),
                None if bind && node.kind != FileType::Fifo => bind_node(inside, node),
                None => make_node(inside, &dev, node),
            };
            match made {
                // The caller itself is in a user namespace.
                Err(error) if error.raw_os_error() == Some(libc::EPERM) && !bind => {
                    bind_node(inside, node)
                }
                made => made,
            }
            .at(Step::MakeDevice, node.path.to_string_lossy())?;
        }
        if self.dev_is_bound {
            return Ok(());
        }
        make_links(&dev)
    }
}

fn make_links(dev: &OwnedFd) -> std::result::Result<(), Failure> {
    for (name, target) in LINKS {
        match rustix::fs::symlinkat(target, dev, name) {
            // The image has its own.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => {
                let subject = format!("/dev/{name}");
                return Err(Failure::new(Step::MakeLink, subject, &error.into()));
            }
        }
    }
    Ok(())
}

/// A node that is somebody else's must be the one that was asked for.
fn find_node(inside: &Inside, node: &Node) -> io::Result<()> {
    let there = super::inside::stat(inside.open(&node.path, OFlags::PATH)?.as_fd())?;
    if FileType::from_raw_mode(there.st_mode) == node.kind && there.st_rdev == node.device {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::ENODEV))
    }
}

/// `dev` is the directory of most nodes.
fn make_node(inside: &Inside, dev: &OwnedFd, node: &Node) -> io::Result<()> {
    let (Some(parent), Some(name)) = (node.path.parent(), node.path.file_name()) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    let other;
    let directory = if parent == Path::new("/dev") {
        dev
    } else {
        other = inside.ensure(parent, Kind::Directory)?;
        &other
    };
    match rustix::fs::mknodat(
        directory,
        name,
        node.kind,
        Mode::from_raw_mode(node.mode),
        node.device,
    ) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            // The image has one; it must be the right one, not a file that looks like it.
            let there = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(there.st_mode) != node.kind || there.st_rdev != node.device {
                return Err(Errno::EXIST.into());
            }
        }
        Err(error) => return Err(error.into()),
    }
    if (node.uid, node.gid) != (0, 0) {
        rustix::fs::chownat(
            directory,
            name,
            Some(Uid::from_raw(node.uid)),
            Some(Gid::from_raw(node.gid)),
            AtFlags::SYMLINK_NOFOLLOW,
        )?;
    }
    Ok(())
}

/// Binds the host's node of that path, which must be the one that was asked for.
fn bind_node(inside: &Inside, node: &Node) -> io::Result<()> {
    let host = rustix::fs::open(
        &node.path,
        OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
    )?;
    let there = super::inside::stat(host.as_fd())?;
    if FileType::from_raw_mode(there.st_mode) != node.kind || there.st_rdev != node.device {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    let mount = super::detached::clone_of(host.as_fd(), false)?;
    attach_node(inside, node, mount.as_fd())
}

fn attach_node(inside: &Inside, node: &Node, mount: BorrowedFd<'_>) -> io::Result<()> {
    // A node, and nothing else: as crun has it.
    let bare = Attributes {
        set: libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC,
        ..Default::default()
    };
    set_attributes(mount, false, bare)?;
    let target = inside.ensure(&node.path, Kind::File)?;
    super::detached::attach(mount, target.as_fd())
}

/// Binds the terminal onto `/dev/console`.
pub(super) fn make_console(
    inside: &Inside,
    terminal: &OwnedFd,
) -> std::result::Result<(), Failure> {
    let path = Path::new("/dev/console");
    let target = inside
        .ensure(path, Kind::File)
        .at(Step::MakeDevice, "/dev/console")?;
    let mount =
        super::detached::clone_of(terminal.as_fd(), false).at(Step::MakeDevice, "/dev/console")?;
    super::detached::attach(mount.as_fd(), target.as_fd()).at(Step::MakeDevice, "/dev/console")
}

/// Opens the host's `/dev/null` and makes sure that it is that.
pub(super) fn open_null() -> io::Result<OwnedFd> {
    let null = rustix::fs::open(
        "/dev/null",
        OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
    )?;
    let stat = super::inside::stat(null.as_fd())?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(1, 3)
    {
        Ok(null)
    } else {
        Err(io::Error::from_raw_os_error(libc::ENODEV))
    }
}

/// The spec's resources with the device rules that every container needs: without any rule of the spec all devices
/// are forbidden; the default devices, terminals, and the making of nodes, which gives no access, are allowed last.
/// Give this to [`crate::cgroup::Cgroup::apply`].
pub fn with_device_rules(spec: &Spec) -> LinuxResources {
    let given = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.resources().clone());
    let mut resources = given.unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    if rules.is_empty() {
        rules.push(rule(false, LinuxDeviceType::A, None, None, "rwm"));
    }
    let mut allow = |typ, major, minor, access| rules.push(rule(true, typ, major, minor, access));
    allow(LinuxDeviceType::C, None, None, "m");
    allow(LinuxDeviceType::B, None, None, "m");
    for (_, major, minor) in DEFAULT_NODES {
        allow(LinuxDeviceType::C, Some(major), Some(minor), "rwm");
    }
    // /dev/console, /dev/ptmx and the terminals of devpts.
    allow(LinuxDeviceType::C, Some(5), Some(1), "rwm");
    allow(LinuxDeviceType::C, Some(5), Some(2), "rwm");
    allow(LinuxDeviceType::C, Some(136), None, "rwm");
    resources.set_devices(Some(rules));
    resources
}

fn rule(
    allow: bool,
    typ: LinuxDeviceType,
    major: Option<u32>,
    minor: Option<u32>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow)
        .set_typ(Some(typ))
        .set_major(major.map(i64::from))
        .set_minor(minor.map(i64::from))
        .set_access(Some(access.to_owned()));
    rule
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::{Linux, LinuxDeviceBuilder, MountBuilder};

    #[test]
    fn the_default_devices_are_there() {
        let nodes = plan(&Spec::default()).expect("plans").made;
        assert_eq!(nodes.len(), 6);
        assert_eq!(nodes[0].path, Path::new("/dev/null"));
        assert_eq!(nodes[0].device, rustix::fs::makedev(1, 3));
    }

    fn device(path: &str, minor: i64) -> LinuxDevice {
        LinuxDeviceBuilder::default()
            .path(path)
            .typ(LinuxDeviceType::U)
            .major(10)
            .minor(minor)
            .build()
            .expect("builds")
    }

    fn with(devices: &[LinuxDevice]) -> Result<Devices> {
        let mut spec = Spec::default();
        spec.linux_mut()
            .as_mut()
            .expect("linux")
            .set_devices(Some(devices.to_vec()));
        plan(&spec)
    }

    #[test]
    fn one_place_has_one_device() {
        let planned = with(&[device("/dev/a", 1), device("/dev/../dev/a", 1)]).expect("plans");
        assert_eq!(planned.made.len(), 7);
        let error = with(&[device("/dev/a", 1), device("/dev/a", 2)]).expect_err("refused");
        assert_eq!(
            error.to_string(),
            "linux.devices[1] (/dev/a): another device is at this path"
        );
    }

    #[test]
    fn a_device_needs_a_place_and_numbers() {
        for path in ["dev/a", "", "/", "/dev/.."] {
            assert!(with(&[device(path, 1)]).is_err(), "{path}");
        }
        assert!(with(&[device("/dev/a", -1)]).is_err());
    }

    #[test]
    fn a_bound_dev_is_left_alone() {
        let mut spec = Spec::default();
        spec.set_mounts(Some(vec![
            MountBuilder::default()
                .destination("/dev/")
                .typ("bind")
                .source("/dev")
                .options(["rbind".to_owned()])
                .build()
                .expect("builds"),
        ]));
        let planned = plan(&spec).expect("plans");
        assert!(planned.made.is_empty() && planned.found.is_empty() && !planned.own_dev());
        // What is asked for must be there, or is made elsewhere.
        let devices = [device("/dev/fuse", 229), device("/run/fuse", 229)];
        spec.linux_mut()
            .as_mut()
            .expect("linux")
            .set_devices(Some(devices.to_vec()));
        let planned = plan(&spec).expect("plans");
        assert_eq!(planned.found[0].path, Path::new("/dev/fuse"));
        assert_eq!(planned.made[0].path, Path::new("/run/fuse"));
    }

    #[test]
    fn a_device_of_the_spec_replaces_a_default_one() {
        let mut linux = Linux::default();
        linux.set_devices(Some(vec![
            LinuxDeviceBuilder::default()
                .path("/dev/null")
                .typ(LinuxDeviceType::C)
                .major(1)
                .minor(3)
                .file_mode(0o600_u32)
                .build()
                .expect("builds"),
        ]));
        let mut spec = Spec::default();
        spec.set_linux(Some(linux));
        let nodes = plan(&spec).expect("plans").made;
        assert_eq!(nodes.len(), 6);
        assert_eq!(nodes.last().map(|n| n.mode), Some(0o600));
    }
}
