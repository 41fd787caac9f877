//! Which namespaces a container makes, joins or shares with the caller.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::error::{At, Error, Failure, Result, Step};
use crate::sys;

/// Namespaces, opened.
#[derive(Debug)]
pub(super) struct Namespaces {
    /// `CLONE_NEW*` bits for clone3.
    pub(super) clone_flags: u64,
    /// To join in the child, in this order. The descriptors are the spec's paths, opened.
    joins: Vec<(&'static str, LinkNameSpaceType, OwnedFd)>,
    /// To join in the parent around clone3: a process never changes its own pid namespace, only its children's.
    pid: Option<OwnedFd>,
    /// To make in the child once it is in its cgroup, which becomes the root.
    new_cgroup: bool,
}

/// How a namespace is had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Had {
    /// The caller's.
    Shared,
    /// A new one, or another by path.
    Own,
}

/// How the spec wants the namespace of this type.
pub(super) fn how(spec: &Spec, typ: LinuxNamespaceType) -> Had {
    if namespaces(spec).iter().any(|n| n.typ() == typ) {
        Had::Own
    } else {
        Had::Shared
    }
}

fn namespaces(spec: &Spec) -> &[LinuxNamespace] {
    spec.linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_deref())
        .unwrap_or_default()
}

/// Refuses what is not supported.
pub(super) fn validate(spec: &Spec) -> Result<()> {
    let field = || "linux.namespaces".to_owned();
    let mut seen = HashSet::new();
    for namespace in namespaces(spec) {
        let typ = namespace.typ();
        if !seen.insert(typ.to_string()) {
            return Err(Error::Invalid {
                field: field(),
                reason: format!("{typ} is there twice"),
            });
        }
        let reason = match (typ, namespace.path()) {
            (LinuxNamespaceType::User, _) => "user namespaces are not supported",
            (LinuxNamespaceType::Time, _) => "time namespaces are not supported",
            (LinuxNamespaceType::Mount, Some(_)) => {
                "joining a mount namespace is not supported; leave the path out"
            }
            _ => continue,
        };
        return Err(Error::Unsupported {
            field: field(),
            reason: reason.to_owned(),
        });
    }
    if how(spec, LinuxNamespaceType::Mount) == Had::Shared {
        return Err(Error::Unsupported {
            field: field(),
            reason: "a container without a mount namespace of its own is not supported".to_owned(),
        });
    }
    Ok(())
}

impl Namespaces {
    /// Opens the namespaces that are to be joined.
    pub(super) fn open(spec: &Spec) -> Result<Self> {
        let mut opened = Self {
            clone_flags: 0,
            joins: Vec::new(),
            pid: None,
            new_cgroup: false,
        };
        for namespace in namespaces(spec) {
            let (kind, flag, link) = match namespace.typ() {
                LinuxNamespaceType::Mount => ("mount", libc::CLONE_NEWNS, None),
                LinuxNamespaceType::Pid => ("pid", libc::CLONE_NEWPID, None),
                LinuxNamespaceType::Cgroup => (
                    "cgroup",
                    libc::CLONE_NEWCGROUP,
                    Some(LinkNameSpaceType::ControlGroup),
                ),
                LinuxNamespaceType::Uts => (
                    "uts",
                    libc::CLONE_NEWUTS,
                    Some(LinkNameSpaceType::HostNameAndNISDomainName),
                ),
                LinuxNamespaceType::Ipc => (
                    "ipc",
                    libc::CLONE_NEWIPC,
                    Some(LinkNameSpaceType::InterProcessCommunication),
                ),
                LinuxNamespaceType::Network => (
                    "network",
                    libc::CLONE_NEWNET,
                    Some(LinkNameSpaceType::Network),
                ),
                other @ (LinuxNamespaceType::User | LinuxNamespaceType::Time) => {
                    return Err(Error::Unsupported {
                        field: "linux.namespaces".to_owned(),
                        reason: format!("{other} namespaces are not supported"),
                    });
                }
            };
            let Some(path) = namespace
                .path()
                .as_ref()
                .filter(|p| !p.as_os_str().is_empty())
            else {
                if flag == libc::CLONE_NEWCGROUP {
                    opened.new_cgroup = true;
                } else {
                    opened.clone_flags |= flag as u64;
                }
                continue;
            };
            let fd = File::open(path).map_err(|source| Error::OpenNamespace {
                kind,
                path: path.clone(),
                source,
            })?;
            match link {
                Some(link) => opened.joins.push((kind, link, fd.into())),
                None => opened.pid = Some(fd.into()),
            }
        }
        Ok(opened)
    }

    /// The pid namespace that the spec names by path: for [`with_pid_namespace`] around clone3.
    pub(super) fn take_pid_namespace(&mut self) -> Option<OwnedFd> {
        self.pid.take()
    }

    /// In the child: joins what is to be joined, and makes the cgroup namespace.
    pub(super) fn enter(&self) -> std::result::Result<(), Failure> {
        for (kind, link, fd) in &self.joins {
            move_into_link_name_space(fd.as_fd(), Some(*link)).at(Step::JoinNamespace, kind)?;
        }
        if self.new_cgroup {
            sys::process::new_cgroup_namespace().at(Step::NewCgroupNamespace, "")?;
        }
        Ok(())
    }
}

/// Runs `f`, whose children are in this pid namespace, if one is given.
pub(super) fn with_pid_namespace<T>(
    namespace: Option<&OwnedFd>,
    f: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let Some(namespace) = namespace else {
        return f();
    };
    let enter = || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::ProcessID))
            .map_err(io::Error::from)
    };
    in_pid_namespace(enter, f)
}

/// Lets `enter` set the pid namespace of this process's children, runs `f`, and sets it back.
pub(super) fn in_pid_namespace<T>(
    enter: impl FnOnce() -> io::Result<()>,
    f: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let own = File::open("/proc/self/ns/pid").map_err(Error::LeavePidNamespace)?;
    enter().map_err(Error::EnterPidNamespace)?;
    let result = f();
    move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::ProcessID))
        .map_err(|e| Error::LeavePidNamespace(e.into()))?;
    result
}
