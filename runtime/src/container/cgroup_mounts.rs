//! What a mount of type `cgroup` or `cgroup2` shows: the container's own cgroup only, by its cgroup namespace or by bind
//! mounts. A container that lives in the caller's cgroup sees that one, read-only.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{Mode, OFlags};
use rustix::mount::MountAttrFlags;

use super::detached::{attach, new_filesystem};
use super::error::{At, Error, Failure, Result, Step};
use super::inside::{Inside, Kind};
use super::mount_plan::MountPlan;
use super::namespaces::{Had, how};
use super::process::path_c_string;
use crate::cgroup::{Cgroup, Hierarchy, Layout};
use crate::sys::mount::{Attributes, set_attributes};

/// What the mount is made of.
#[derive(Debug)]
pub(super) enum Shown {
    /// The root of the container's cgroup namespace, in a v2 file system of its own.
    Own,
    /// A directory of the host's v2 hierarchy.
    V2(CString),
    /// A directory of each of the host's v1 hierarchies, and of systemd's v2 one beside them.
    V1(Vec<Directory>),
}

/// A directory of a v1 hierarchy.
#[derive(Debug)]
pub(super) struct Directory {
    /// As the hierarchy is called on the host.
    name: String,
    /// The host's path.
    pub(super) path: CString,
    /// Links to it: `cpu` and `cpuacct` of `cpu,cpuacct`.
    aliases: Vec<String>,
}

/// What the container is to see. `cgroup` is its own, if it has one.
pub(super) fn shown(field: &str, spec: &Spec, cgroup: Option<&Cgroup>) -> Result<Shown> {
    let callers = match cgroup {
        Some(_) => String::new(),
        None => read_callers()?,
    };
    let place = |root: &Path, controllers: &[String]| {
        let below = match cgroup {
            Some(cgroup) => cgroup.path().to_owned(),
            None => callers_path(&callers, controllers).unwrap_or_default(),
        };
        let place = root.join(below.strip_prefix("/").unwrap_or(&below));
        // What is mounted there may be a part of the hierarchy only, as in a container.
        match cgroup.is_some() || place.exists() {
            true => path_c_string(field, &place),
            false => path_c_string(field, root),
        }
    };
    match Layout::detect().map_err(Error::Cgroup)? {
        Layout::V2 { .. } if how(spec, LinuxNamespaceType::Cgroup) == Had::Own => Ok(Shown::Own),
        Layout::V2 { root } => place(&root, &[]).map(Shown::V2),
        Layout::V1 { hierarchies } => hierarchies
            .iter()
            .map(|hierarchy| {
                let path = place(&hierarchy.root, &hierarchy.controllers)?;
                Ok(directory(hierarchy, path))
            })
            .collect::<Result<_>>()
            .map(Shown::V1),
    }
}

fn directory(hierarchy: &Hierarchy, path: CString) -> Directory {
    let name = hierarchy.root.file_name().map_or_else(
        || hierarchy.controllers.join(","),
        |n| n.to_string_lossy().into_owned(),
    );
    let aliases = hierarchy.controllers.iter();
    Directory {
        path,
        aliases: aliases
            .filter(|c| !c.contains('=') && **c != name)
            .cloned()
            .collect(),
        name,
    }
}

fn read_callers() -> Result<String> {
    let path = PathBuf::from("/proc/self/cgroup");
    std::fs::read_to_string(&path)
        .map_err(|source| Error::Cgroup(crate::cgroup::Error::Read { path, source }))
}

/// The caller's cgroup in the hierarchy of these controllers; none for v2. `proc_pid_cgroup(5)`: `number:controllers:path`.
fn callers_path(text: &str, controllers: &[String]) -> Option<PathBuf> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (names, path) = (fields.next()?, fields.next()?);
        let mut names: Vec<&str> = names.split(',').filter(|name| !name.is_empty()).collect();
        let mut wanted: Vec<&str> = controllers.iter().map(String::as_str).collect();
        names.sort_unstable();
        wanted.sort_unstable();
        (names == wanted).then(|| PathBuf::from(path))
    })
}

/// Mounts a small file system with a directory for each v1 hierarchy, as hosts have it at `/sys/fs/cgroup`. `sources`
/// are the directories, opened.
pub(super) fn mount(
    inside: &Inside,
    plan: &MountPlan,
    directories: &[Directory],
    sources: &[OwnedFd],
) -> std::result::Result<(), Failure> {
    let name = plan.destination.to_string_lossy();
    let attributes = plan.options.top;
    let mut data = vec![("mode".to_owned(), Some("755".to_owned()))];
    if let Some(label) = &plan.root_label {
        data.push(("context".to_owned(), Some(label.clone())));
    }
    let none = MountAttrFlags::empty();
    let tmpfs = new_filesystem("tmpfs", Some("cgroup"), &data, none)
        .map_err(|(_, error)| Failure::new(Step::MakeFilesystem, name.as_ref(), &error))?;
    let target = inside
        .ensure(&plan.destination, Kind::Directory)
        .at(Step::OpenTarget, &name)?;
    attach(tmpfs.as_fd(), target.as_fd()).at(Step::AttachMount, &name)?;
    for (directory, source) in directories.iter().zip(sources) {
        mount_one(&tmpfs, directory, source.as_fd(), attributes)
            .at(Step::AttachMount, format!("{name}/{}", directory.name))?;
    }
    set_attributes(tmpfs.as_fd(), false, attributes).at(Step::SetMountAttributes, &name)
}

fn mount_one(
    tmpfs: &OwnedFd,
    directory: &Directory,
    source: BorrowedFd<'_>,
    attributes: Attributes,
) -> io::Result<()> {
    rustix::fs::mkdirat(tmpfs, &directory.name, Mode::from_raw_mode(0o755))?;
    let target = rustix::fs::openat(
        tmpfs,
        &directory.name,
        OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW,
        Mode::empty(),
    )?;
    let private = Attributes {
        propagation: libc::MS_PRIVATE,
        ..attributes
    };
    set_attributes(source, false, private)?;
    attach(source, target.as_fd())?;
    for alias in &directory.aliases {
        rustix::fs::symlinkat(&directory.name, tmpfs, alias)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_cgroup_is_found_by_its_controllers() {
        let text = "5:cpuacct,cpu:/a:b\n2:name=systemd:/s\n0::/v2\n";
        let path = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
            callers_path(text, &names)
        };
        assert_eq!(path(&["cpu", "cpuacct"]), Some("/a:b".into()));
        assert_eq!(path(&["name=systemd"]), Some("/s".into()));
        assert_eq!(path(&[]), Some("/v2".into()));
        assert_eq!(path(&["pids"]), None);
    }
}
