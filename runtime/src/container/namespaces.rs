//! Which namespaces a container makes, joins or shares with the caller.
//!
//! New ones are made by one clone3, but for that of the network where there is no user namespace: it takes longer than
//! all others, and the child makes it while its parent makes the cgroup. The kernel makes a user namespace first and
//! gives it the others, and a process born in a new user namespace has no rights in namespaces of the host; so where a
//! clone alone cannot do it, a [forerunner](super::forerunner) goes first:
//!
//! | the spec asks for | who joins and makes |
//! |---|---|
//! | new ones only | clone3; those of the network and the cgroup: the child |
//! | others by path | the child; the pid namespace: the parent, around clone3 |
//! | a user namespace, new or by path, and others by path | the forerunner |
//! | a user namespace by path, new ones owned by it | the forerunner |
//! | time offsets, which are written before any process is in | the forerunner |
//! | a pid namespace by path, of a caller who could not come back from it | the forerunner |

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType, Spec};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType, move_into_link_name_space};

use super::channel::Channel;
use super::error::{At, Error, Failure, Result, Step};
use super::time_offsets::TimeOffsets;
use super::user_namespace::UserNamespace;
use crate::sys;
use crate::sys::namespace::{NEW_NETWORK, NEW_TIME, NEW_USER};

type Done = std::result::Result<(), Failure>;

/// Namespaces, opened.
#[derive(Debug)]
pub(super) struct Namespaces {
    /// `CLONE_NEW*` bits for the clone that makes the container's process.
    pub(super) clone_flags: u64,
    pub(super) user: UserNamespace,
    /// To join, in this order. The descriptors are the spec's paths, opened.
    joins: Vec<Join>,
    /// To join in the parent around clone3: a process never changes its own pid namespace, only its children's.
    pid: Option<(OwnedFd, OwnPidNamespace)>,
    /// There is a pid namespace to join, and the parent could not come back from it.
    one_way: bool,
    /// To make in the child, and not by clone3.
    new_network: bool,
    /// To make in the child once it is in its cgroup, which becomes the root.
    new_cgroup: bool,
    time_offsets: Option<TimeOffsets>,
}

#[derive(Debug)]
struct Join {
    kind: &'static str,
    link: LinkNameSpaceType,
    namespace: OwnedFd,
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

/// The path by which the spec joins a namespace of this type.
pub(super) fn path_of(spec: &Spec, typ: LinuxNamespaceType) -> Option<&Path> {
    namespaces(spec)
        .iter()
        .find(|n| n.typ() == typ)
        .and_then(path)
}

/// An empty path is none.
fn path(namespace: &LinuxNamespace) -> Option<&Path> {
    namespace
        .path()
        .as_deref()
        .filter(|path| !path.as_os_str().is_empty())
}

fn namespaces(spec: &Spec) -> &[LinuxNamespace] {
    spec.linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_deref())
        .unwrap_or_default()
}

/// Refuses what cannot be.
pub(super) fn validate(spec: &Spec) -> Result<()> {
    let mut seen = HashSet::new();
    for namespace in namespaces(spec) {
        let typ = namespace.typ();
        if !seen.insert(typ.to_string()) {
            return Err(invalid(format!("{typ} is there twice")));
        }
        if let Some(path) = path(namespace)
            && !path.is_absolute()
        {
            return Err(invalid(format!(
                "the path of {typ}, {}, is not absolute",
                path.display()
            )));
        }
    }
    Ok(())
}

fn invalid(reason: String) -> Error {
    Error::Invalid {
        field: "linux.namespaces".to_owned(),
        reason,
    }
}

/// Opens a namespace, and makes sure that it is of the right type.
pub(super) fn open(typ: LinuxNamespaceType, path: &Path) -> Result<OwnedFd> {
    let (kind, flag, _) = facts(typ);
    let failed = |source| Error::OpenNamespace {
        kind,
        path: path.to_owned(),
        source,
    };
    let opened: OwnedFd = File::open(path).map_err(failed)?.into();
    match sys::namespace::type_of(opened.as_fd()) {
        Ok(found) if found == flag => Ok(opened),
        Ok(_) => Err(invalid(format!(
            "{} is no {kind} namespace",
            path.display()
        ))),
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
            Err(invalid(format!("{} is no namespace", path.display())))
        }
        Err(error) => Err(failed(error)),
    }
}

/// True when a namespace is the caller's own, of the kind `/proc/self/ns` calls `name`.
pub(super) fn is_own(namespace: &OwnedFd, name: &str) -> Result<bool> {
    let path = Path::new("/proc/self/ns").join(name);
    let compare = || {
        let own = std::fs::metadata(&path)?;
        let other = rustix::fs::fstat(namespace)?;
        Ok((own.dev(), own.ino()) == (other.st_dev, other.st_ino))
    };
    compare().map_err(|source| Error::OpenNamespace {
        kind: "user",
        path,
        source,
    })
}

/// What the spec calls it, its `CLONE_NEW*` bit, and how setns(2) names it.
fn facts(typ: LinuxNamespaceType) -> (&'static str, u64, LinkNameSpaceType) {
    use LinkNameSpaceType as Link;
    match typ {
        LinuxNamespaceType::Mount => ("mount", libc::CLONE_NEWNS as u64, Link::Mount),
        LinuxNamespaceType::Pid => ("pid", libc::CLONE_NEWPID as u64, Link::ProcessID),
        LinuxNamespaceType::Cgroup => ("cgroup", libc::CLONE_NEWCGROUP as u64, Link::ControlGroup),
        LinuxNamespaceType::Uts => (
            "uts",
            libc::CLONE_NEWUTS as u64,
            Link::HostNameAndNISDomainName,
        ),
        LinuxNamespaceType::Ipc => (
            "ipc",
            libc::CLONE_NEWIPC as u64,
            Link::InterProcessCommunication,
        ),
        LinuxNamespaceType::Network => ("network", NEW_NETWORK, Link::Network),
        LinuxNamespaceType::User => ("user", NEW_USER, Link::User),
        LinuxNamespaceType::Time => ("time", NEW_TIME, Link::Time),
    }
}

impl Namespaces {
    /// Opens the namespaces that are to be joined.
    pub(super) fn open(spec: &Spec) -> Result<Self> {
        let user = UserNamespace::new(spec)?;
        let mut opened = Self {
            clone_flags: match &user {
                UserNamespace::New(_) => NEW_USER,
                UserNamespace::Shared | UserNamespace::Joined(..) => 0,
            },
            user,
            joins: Vec::new(),
            pid: None,
            one_way: false,
            new_network: false,
            new_cgroup: false,
            time_offsets: TimeOffsets::new(spec)?,
        };
        for namespace in namespaces(spec) {
            let typ = namespace.typ();
            let (kind, flag, link) = facts(typ);
            match (typ, path(namespace)) {
                (LinuxNamespaceType::User, _) => {}
                (LinuxNamespaceType::Cgroup, None) => opened.new_cgroup = true,
                (_, None) => opened.clone_flags |= flag,
                (_, Some(path)) => opened.joins.push(Join {
                    kind,
                    link,
                    namespace: open(typ, path)?,
                }),
            }
        }
        if opened.time_offsets.is_some() {
            opened.clone_flags &= !NEW_TIME;
        }
        if !opened.has_user_namespace() && opened.has_new_network() {
            opened.new_network = true;
            opened.clone_flags &= !NEW_NETWORK;
        }
        if !opened.needs_forerunner() {
            opened.settle_pid_join()?;
        } else if matches!(opened.user, UserNamespace::New(_)) {
            opened.clone_flags &= !NEW_USER;
        }
        Ok(opened)
    }

    /// True when one clone and the child itself cannot do it.
    pub(super) fn needs_forerunner(&self) -> bool {
        match self.user {
            UserNamespace::Shared => self.time_offsets.is_some() || self.one_way,
            UserNamespace::New(_) => self.time_offsets.is_some() || !self.joins.is_empty(),
            UserNamespace::Joined(..) => true,
        }
    }

    /// True when the child cannot do on the host what root may.
    pub(super) fn has_user_namespace(&self) -> bool {
        !matches!(self.user, UserNamespace::Shared)
    }

    /// True when the network namespace is made for this container, and not joined.
    pub(super) fn has_new_network(&self) -> bool {
        self.new_network || self.clone_flags & NEW_NETWORK != 0
    }

    /// In the child or the forerunner, first of all: makes the network namespace, unless clone3 has.
    pub(super) fn make_network(&self) -> Done {
        if self.new_network {
            sys::namespace::unshare(NEW_NETWORK).at(Step::NewNetworkNamespace, "")?;
        }
        Ok(())
    }

    /// The pid namespace to join becomes the parent's to enter, unless that could not come back.
    fn settle_pid_join(&mut self) -> Result<()> {
        let is_pid = |join: &Join| join.link == LinkNameSpaceType::ProcessID;
        let Some(at) = self.joins.iter().position(is_pid) else {
            return Ok(());
        };
        match OwnPidNamespace::hold()? {
            Some(own) => self.pid = Some((self.joins.remove(at).namespace, own)),
            None => self.one_way = true,
        }
        Ok(())
    }

    /// The pid namespace that the spec names by path: for [`with_pid_namespace`] around clone3.
    pub(super) fn take_pid_namespace(&mut self) -> Option<(OwnedFd, OwnPidNamespace)> {
        self.pid.take()
    }

    /// In the child: joins what is to be joined. `as_caller` runs while the process is still the caller's user. True
    /// when the namespaces deny setgroups(2).
    ///
    /// Namespaces are joined before the user namespace, as the host's root, and those to which only the user
    /// namespace gives rights after it.
    pub(super) fn enter(
        &self,
        parent: &Channel,
        as_caller: impl FnOnce() -> Done,
    ) -> std::result::Result<bool, Failure> {
        let mut later = Vec::new();
        let is_mount = |join: &&Join| join.link == LinkNameSpaceType::Mount;
        for join in self.joins.iter().filter(|join| !is_mount(join)) {
            self.join(join, &mut later)?;
        }
        let mut as_caller = Some(as_caller);
        if let UserNamespace::Shared = self.user
            && let Some(as_caller) = as_caller.take()
        {
            // While the host's /proc is there.
            as_caller()?;
        }
        for join in self.joins.iter().filter(is_mount) {
            self.join(join, &mut later)?;
        }
        if self.needs_forerunner() && matches!(self.user, UserNamespace::New(_)) {
            sys::namespace::unshare(NEW_USER).at(Step::NewUserNamespace, "")?;
        }
        self.user.open_to_mapping()?;
        as_caller.map_or(Ok(()), |as_caller| as_caller())?;
        self.user.enter(parent)?;
        if let Some(offsets) = &self.time_offsets {
            sys::namespace::unshare(NEW_TIME).at(Step::NewTimeNamespace, "")?;
            offsets.write()?;
        }
        let groups_denied = self.user.become_root()?;
        for join in later {
            move_into_link_name_space(join.namespace.as_fd(), Some(join.link))
                .at(Step::JoinNamespace, join.kind)?;
        }
        Ok(groups_denied)
    }

    /// One that only the user namespace to join gives rights to is for later.
    fn join<'a>(&self, join: &'a Join, later: &mut Vec<&'a Join>) -> Done {
        match move_into_link_name_space(join.namespace.as_fd(), Some(join.link)) {
            Err(Errno::PERM) if matches!(self.user, UserNamespace::Joined(..)) => later.push(join),
            result => result.at(Step::JoinNamespace, join.kind)?,
        }
        Ok(())
    }

    /// In the child, in its cgroup: makes the cgroup namespace.
    pub(super) fn make_cgroup(&self) -> Done {
        if self.new_cgroup {
            sys::namespace::unshare(libc::CLONE_NEWCGROUP as u64)
                .at(Step::NewCgroupNamespace, "")?;
        }
        Ok(())
    }
}

/// Runs `f`, whose children are in this pid namespace, if one is given.
pub(super) fn with_pid_namespace<T>(
    namespace: Option<&(OwnedFd, OwnPidNamespace)>,
    f: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let Some((namespace, own)) = namespace else {
        return f();
    };
    let enter = || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::ProcessID))
            .map_err(io::Error::from)
    };
    own.outside(enter, f)
}

/// The caller's pid namespace, to come back to.
#[derive(Debug)]
pub(super) struct OwnPidNamespace(File);

impl OwnPidNamespace {
    /// None where this process could not come back: whoever has no rights in it, as an ordinary user, or the root of a
    /// user namespace that does not own it.
    pub(super) fn hold() -> Result<Option<Self>> {
        let own = Self(File::open("/proc/self/ns/pid").map_err(Error::LeavePidNamespace)?);
        match own.enter() {
            Ok(()) => Ok(Some(own)),
            Err(Errno::PERM) => Ok(None),
            Err(error) => Err(Error::LeavePidNamespace(error.into())),
        }
    }

    fn enter(&self) -> rustix::io::Result<()> {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::ProcessID))
    }

    /// Lets `enter` set the pid namespace of this process's children, runs `f`, and sets it back.
    pub(super) fn outside<T>(
        &self,
        enter: impl FnOnce() -> io::Result<()>,
        f: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        enter().map_err(Error::EnterPidNamespace)?;
        let result = f();
        self.enter()
            .map_err(|e| Error::LeavePidNamespace(e.into()))?;
        result
    }
}

/// The namespaces that a process has in common with this one.
pub(super) fn shared_with(pid: i32) -> io::Result<ThreadNameSpaceType> {
    use ThreadNameSpaceType as Type;
    let all = [
        ("mnt", Type::MOUNT),
        ("uts", Type::HOST_NAME_AND_NIS_DOMAIN_NAME),
        ("ipc", Type::INTER_PROCESS_COMMUNICATION),
        ("net", Type::NETWORK),
        ("cgroup", Type::CONTROL_GROUP),
        ("pid", Type::PROCESS_ID),
        ("time", Type::TIME),
    ];
    let mut shared = Type::empty();
    for (name, flag) in all {
        let own = std::fs::metadata(format!("/proc/self/ns/{name}"))?;
        let other = std::fs::metadata(format!("/proc/{pid}/ns/{name}"))?;
        if (own.dev(), own.ino()) == (other.dev(), other.ino()) {
            shared |= flag;
        }
    }
    Ok(shared)
}
