//! The container's user namespace: its id maps, who writes them, and becoming its root.
//!
//! ```text
//! parent                               child, born in the namespace or having made it
//!                 ◄────── U ──────     may be seen by its own user, if that one writes the maps
//!   setgroups, gid_map, uid_map
//!                 ─────── u ─────►     root of the namespace, invisible again
//! ```
//!
//! The maps themselves are [`id_maps`](super::id_maps)'. Source: user_namespaces(7).

use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Gid, Uid};
use rustix::thread::{CapabilitySet, LinkNameSpaceType, move_into_link_name_space};

use super::channel::Channel;
use super::error::{At, Error, Failure, Result, Step};
use super::id_maps::{IdMaps, IdRange, invalid};
use super::namespaces::{self, Had, how};

type Done = std::result::Result<(), Failure>;

/// The container's user namespace.
#[derive(Debug)]
pub(super) enum UserNamespace {
    /// The caller's.
    Shared,
    /// A new one with these ids.
    New(IdMaps),
    /// Another, opened, with the maps that the spec says it has.
    Joined(OwnedFd, Option<IdMaps>),
}

/// The parent's part in a user namespace.
#[derive(Debug)]
pub(super) enum Mapping {
    /// The namespace is new: give it these ids.
    Write(IdMaps),
    /// It was joined: make sure that it has these.
    Compare(IdMaps),
}

impl Mapping {
    /// `pid` is a process in the namespace.
    pub(super) fn settle(&self, pid: i32) -> Result<()> {
        match self {
            Self::Write(maps) => maps.write(pid),
            Self::Compare(maps) => maps.compare(pid),
        }
    }
}

/// True when the calling process may do to its user namespace what root may.
pub(super) fn is_privileged() -> Result<bool> {
    let needed = CapabilitySet::SYS_ADMIN | CapabilitySet::SETUID | CapabilitySet::SETGID;
    let own = rustix::thread::capabilities(None).map_err(|e| Error::Capabilities(e.into()))?;
    Ok(own.effective.contains(needed))
}

/// Checks the maps against each other, the namespaces and the process.
pub(super) fn validate(spec: &Spec) -> Result<()> {
    let (uids, gids) = mappings(spec);
    if how(spec, LinuxNamespaceType::User) == Had::Shared {
        return match (uids.is_empty(), gids.is_empty()) {
            (true, true) => Ok(()),
            (false, _) => Err(invalid("linux.uidMappings", "needs a user namespace")),
            (_, false) => Err(invalid("linux.gidMappings", "needs a user namespace")),
        };
    }
    if namespaces::path_of(spec, LinuxNamespaceType::User).is_some() {
        // Engines repeat the maps of the namespace that is joined.
        if uids.is_empty() && gids.is_empty() {
            return Ok(());
        }
        return IdMaps::new("linux", uids, gids, false).map(drop);
    }
    let maps = IdMaps::asked(uids, gids, is_privileged()?)?;
    let Some(user) = spec.process().as_ref().map(|process| process.user()) else {
        return Ok(());
    };
    let mapped = |field: &str, list: &str, ranges: &[IdRange], id: u32| {
        if ranges.iter().any(|range| range.holds(id)) {
            Ok(())
        } else {
            Err(invalid(field, &format!("{id} is not in {list}")))
        }
    };
    mapped(
        "process.user.uid",
        "linux.uidMappings",
        &maps.uids,
        user.uid(),
    )?;
    mapped(
        "process.user.gid",
        "linux.gidMappings",
        &maps.gids,
        user.gid(),
    )?;
    user.additional_gids()
        .iter()
        .flatten()
        .try_for_each(|&gid| {
            mapped(
                "process.user.additionalGids",
                "linux.gidMappings",
                &maps.gids,
                gid,
            )
        })
}

/// `linux.uidMappings` and `linux.gidMappings`
pub(super) fn mappings(spec: &Spec) -> (&[LinuxIdMapping], &[LinuxIdMapping]) {
    let Some(linux) = spec.linux() else {
        return (&[], &[]);
    };
    (
        linux.uid_mappings().as_deref().unwrap_or_default(),
        linux.gid_mappings().as_deref().unwrap_or_default(),
    )
}

impl UserNamespace {
    /// Opens the namespace to join, or parses the maps of the new one.
    pub(super) fn new(spec: &Spec) -> Result<Self> {
        if how(spec, LinuxNamespaceType::User) == Had::Shared {
            return Ok(Self::Shared);
        }
        if let Some(path) = namespaces::path_of(spec, LinuxNamespaceType::User) {
            let opened = namespaces::open(LinuxNamespaceType::User, path)?;
            // The kernel refuses to enter the namespace that one is in.
            if namespaces::is_own(&opened, "user")? {
                return Ok(Self::Shared);
            }
            let (uids, gids) = mappings(spec);
            let said = match uids.is_empty() && gids.is_empty() {
                true => None,
                false => Some(IdMaps::new("linux", uids, gids, false)?),
            };
            return Ok(Self::Joined(opened, said));
        }
        let (uids, gids) = mappings(spec);
        let maps = IdMaps::asked(uids, gids, is_privileged()?)?;
        maps.check_groups(spec)?;
        Ok(Self::New(maps))
    }

    /// What the parent does once the child, or its forerunner, is in the namespace; none when that is nothing.
    pub(super) fn mapping(&self) -> Option<Mapping> {
        match self {
            Self::New(maps) => Some(Mapping::Write(maps.clone())),
            Self::Joined(_, said) => said.clone().map(Mapping::Compare),
            Self::Shared => None,
        }
    }

    /// In the child: lets whoever writes the maps reach its files in `/proc`, until it is the namespace's root. What it
    /// writes there itself comes after.
    pub(super) fn open_to_mapping(&self) -> Done {
        match self {
            // Its files in /proc must be the caller's, for that one or its helper to write the maps. Nobody but that
            // user's own processes outside can look now.
            Self::New(maps) if !maps.privileged => {
                set_dumpable(DumpableBehavior::Dumpable).at(Step::MapIds, "")
            }
            _ => Ok(()),
        }
    }

    /// In the child: enters the namespace, or waits for its maps. Ids stay what they were.
    pub(super) fn enter(&self, parent: &Channel) -> Done {
        match self {
            Self::Shared => Ok(()),
            Self::New(_) => await_maps(parent),
            Self::Joined(namespace, said) => {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User))
                    .at(Step::JoinNamespace, "user")?;
                match said {
                    Some(_) => await_maps(parent),
                    None => Ok(()),
                }
            }
        }
    }

    /// In the child: becomes the namespace's root. True when the namespace denies setgroups(2).
    pub(super) fn become_root(&self) -> std::result::Result<bool, Failure> {
        match self {
            Self::Shared => Ok(false),
            Self::New(maps) => become_root(maps.first_uid(), maps.first_gid()),
            Self::Joined(..) => become_root(0, 0),
        }
    }
}

/// Has the parent write the maps, or compare them.
fn await_maps(parent: &Channel) -> Done {
    parent.send(b"U", None).at(Step::MapIds, "")?;
    parent.await_word(b'u').at(Step::MapIds, "")
}

/// Becomes the root of the namespace that was just entered, with all rights in it. True when it denies setgroups(2).
pub(super) fn become_root(uid: u32, gid: u32) -> std::result::Result<bool, Failure> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let groups_denied = match rustix::thread::set_thread_groups(&[]) {
        // With CAP_SETGID this has no other cause.
        Err(Errno::PERM) => true,
        result => result.at(Step::BecomeRoot, "(groups)").map(|()| false)?,
    };
    rustix::thread::set_thread_res_gid(gid, gid, gid).at(Step::BecomeRoot, "(group)")?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).at(Step::BecomeRoot, "(user)")?;
    set_dumpable(DumpableBehavior::NotDumpable).at(Step::BecomeRoot, "")?;
    Ok(groups_denied)
}

fn set_dumpable(behavior: DumpableBehavior) -> rustix::io::Result<()> {
    rustix::process::set_dumpable_behavior(behavior)
}
