//! The container's user namespace: its id maps, who writes them, and becoming its root.
//!
//! ```text
//! parent                               child, born in the namespace or having made it
//!                 ◄────── U ──────     may be seen by its own user, if that one writes the maps
//!   setgroups, gid_map, uid_map
//!                 ─────── u ─────►     root of the namespace, invisible again
//! ```
//!
//! A caller with CAP_SETUID and CAP_SETGID writes any map; another may map only itself, and has setuid helpers
//! (newuidmap(1), newgidmap(1)) write more, which know what `/etc/subuid` gives it. Without a helper groups cannot be
//! dropped: the kernel wants setgroups(2) denied then. Source: user_namespaces(7).

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Gid, Uid};
use rustix::thread::{CapabilitySet, LinkNameSpaceType, move_into_link_name_space};

use super::channel::Channel;
use super::error::{At, Error, Failure, Result, Step};
use super::namespaces::{self, Had, how};
use super::procfs;

type Done = std::result::Result<(), Failure>;

/// The kernel's limit on lines in one map (`UID_GID_MAP_MAX_EXTENTS`).
const RANGES_MAX: usize = 340;

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

/// Which ids a user namespace has, and what they are outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IdMaps {
    uids: Vec<IdRange>,
    gids: Vec<IdRange>,
    /// The caller may write any map; else only itself, or by the helpers.
    privileged: bool,
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

/// One line of `uid_map` or `gid_map`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct IdRange {
    inside: u32,
    outside: u32,
    count: u32,
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

    /// In the child: what of its own files in `/proc` must be done before the namespace's root is there may follow.
    pub(super) fn begin(&self) -> Done {
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
            Self::New(_) => {
                parent.send(b"U", None).at(Step::MapIds, "")?;
                parent.await_word(b'u').at(Step::MapIds, "")
            }
            Self::Joined(namespace, said) => {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User))
                    .at(Step::JoinNamespace, "user")?;
                if said.is_none() {
                    return Ok(());
                }
                parent.send(b"U", None).at(Step::MapIds, "")?;
                parent.await_word(b'u').at(Step::MapIds, "")
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

impl IdMaps {
    /// The spec's. A root that asks for none gets all of the caller's ids, as with crun.
    fn asked(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping], privileged: bool) -> Result<Self> {
        match privileged && uids.is_empty() && gids.is_empty() {
            true => Self::same(),
            false => Self::new("linux", uids, gids, privileged),
        }
    }

    /// All ids of the caller, each as itself.
    fn same() -> Result<Self> {
        let own = |name: &str| -> Result<Vec<IdRange>> {
            let field = format!("linux.{name}Mappings");
            let text = std::fs::read_to_string(format!("/proc/self/{name}_map"))
                .map_err(|e| invalid(&field, &format!("cannot read the caller's: {e}")))?;
            let range = |line: &str| {
                let mut numbers = line.split_whitespace().map(str::parse::<u32>);
                let (inside, count) = (numbers.next()?.ok()?, numbers.nth(1)?.ok()?);
                Some(IdRange {
                    inside,
                    outside: inside,
                    count,
                })
            };
            Ok(text.lines().filter_map(range).collect())
        };
        Ok(Self {
            uids: own("uid")?,
            gids: own("gid")?,
            privileged: true,
        })
    }

    /// Parses `uidMappings` and `gidMappings` of `owner`.
    pub(super) fn new(
        owner: &str,
        uids: &[LinuxIdMapping],
        gids: &[LinuxIdMapping],
        privileged: bool,
    ) -> Result<Self> {
        let parse = |name: &str, list: &[LinuxIdMapping]| {
            let field = format!("{owner}.{name}");
            if list.is_empty() {
                return Err(invalid(&field, "is missing: the namespace would have none"));
            }
            ranges(&field, list)
        };
        Ok(Self {
            uids: parse("uidMappings", uids)?,
            gids: parse("gidMappings", gids)?,
            privileged,
        })
    }

    fn first_uid(&self) -> u32 {
        first(&self.uids)
    }

    fn first_gid(&self) -> u32 {
        first(&self.gids)
    }

    /// Without the helper groups cannot be set.
    fn check_groups(&self, spec: &Spec) -> Result<()> {
        let asked = spec
            .process()
            .as_ref()
            .and_then(|process| process.user().additional_gids().as_ref())
            .is_some_and(|gids| !gids.is_empty());
        if asked && !self.privileged && self.maps_only_own_group() {
            return Err(invalid(
                "process.user.additionalGids",
                "cannot be set by an ordinary user whose namespace has only its own group; map a range of \
                 /etc/subgid in linux.gidMappings",
            ));
        }
        Ok(())
    }

    fn maps_only_own_group(&self) -> bool {
        is_only(&self.gids, rustix::process::getegid().as_raw())
    }

    /// In the parent, for whom `/proc` translates the maps of another namespace: engines repeat those of the one to be
    /// joined, and to run with others would be another container than was asked for.
    fn compare(&self, pid: i32) -> Result<()> {
        for (field, name, said) in [
            ("linux.uidMappings", "uid_map", &self.uids),
            ("linux.gidMappings", "gid_map", &self.gids),
        ] {
            let path = PathBuf::from(format!("/proc/{pid}/{name}"));
            let text = std::fs::read_to_string(&path).map_err(|source| Error::OpenNamespace {
                kind: "user",
                path,
                source,
            })?;
            if merged(&parse_map(&text)) != merged(said) {
                return Err(invalid(
                    field,
                    "is not the map of the user namespace that is joined; leave it out",
                ));
            }
        }
        Ok(())
    }

    /// In the parent: gives the namespace of the process its ids.
    pub(super) fn write(&self, pid: i32) -> Result<()> {
        if self.privileged {
            write_map(pid, "uid_map", &text(&self.uids))?;
            return write_map(pid, "gid_map", &text(&self.gids));
        }
        if is_only(&self.uids, rustix::process::geteuid().as_raw()) {
            write_map(pid, "uid_map", &text(&self.uids))?;
        } else {
            run_helper("newuidmap", pid, &self.uids)?;
        }
        if self.maps_only_own_group() {
            write_map(pid, "setgroups", "deny")?;
            write_map(pid, "gid_map", &text(&self.gids))
        } else {
            run_helper("newgidmap", pid, &self.gids)
        }
    }
}

impl IdMaps {
    /// In the parent: gives pipes among the standard streams to the container's user, so that it can open
    /// `/dev/stdout` again, as programs that log there do. In the namespace nobody may: the pipes are the caller's.
    pub(super) fn give_pipes(&self, fds: [BorrowedFd<'_>; 3], uid: u32) -> io::Result<()> {
        let Some(range) = self.uids.iter().find(|range| range.holds(uid)) else {
            return Ok(());
        };
        let owner = Uid::from_raw(range.outside + (uid - range.inside));
        for fd in fds {
            if FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Fifo {
                rustix::fs::fchown(fd, Some(owner), None)?;
            }
        }
        Ok(())
    }
}

impl IdRange {
    fn holds(self, id: u32) -> bool {
        id >= self.inside && id - self.inside < self.count
    }
}

/// 0, or the lowest id there is.
fn first(ranges: &[IdRange]) -> u32 {
    ranges.iter().map(|range| range.inside).min().unwrap_or(0)
}

/// True for a map of one id to `own`.
fn is_only(ranges: &[IdRange], own: u32) -> bool {
    matches!(ranges, [range] if range.count == 1 && range.outside == own)
}

fn ranges(field: &str, list: &[LinuxIdMapping]) -> Result<Vec<IdRange>> {
    if list.len() > RANGES_MAX {
        return Err(invalid(
            field,
            &format!("has more than {RANGES_MAX} entries"),
        ));
    }
    let ranges: Vec<IdRange> = list
        .iter()
        .map(|mapping| {
            let range = IdRange {
                inside: mapping.container_id(),
                outside: mapping.host_id(),
                count: mapping.size(),
            };
            // The last id, 2^32 - 1, stands for "no id".
            let fits = |start: u32| start.checked_add(range.count).is_some();
            if range.count == 0 {
                Err(invalid(field, "an entry of size 0 maps nothing"))
            } else if !fits(range.inside) || !fits(range.outside) {
                Err(invalid(field, "an entry goes beyond the last id"))
            } else {
                Ok(range)
            }
        })
        .collect::<Result<_>>()?;
    let overlap = |start: fn(&IdRange) -> u32| {
        let mut sorted = ranges.clone();
        sorted.sort_by_key(start);
        sorted
            .windows(2)
            .any(|pair| start(&pair[0]) + pair[0].count > start(&pair[1]))
    };
    if overlap(|range| range.inside) || overlap(|range| range.outside) {
        return Err(invalid(field, "entries overlap"));
    }
    Ok(ranges)
}

fn text(ranges: &[IdRange]) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for range in ranges {
        // Writing to a string cannot fail.
        if writeln!(text, "{} {} {}", range.inside, range.outside, range.count).is_err() {
            return text;
        }
    }
    text
}

/// The kernel's text of a map; lines that are none are left out.
fn parse_map(text: &str) -> Vec<IdRange> {
    text.lines()
        .filter_map(|line| {
            let mut numbers = line.split_whitespace().map(|word| word.parse().ok());
            Some(IdRange {
                inside: numbers.next()??,
                outside: numbers.next()??,
                count: numbers.next()??,
            })
        })
        .collect()
}

/// The same map in as few ranges as can be, in order.
fn merged(ranges: &[IdRange]) -> Vec<IdRange> {
    let mut sorted = ranges.to_vec();
    sorted.sort_by_key(|range| range.inside);
    let mut merged: Vec<IdRange> = Vec::new();
    for range in sorted {
        match merged.last_mut() {
            Some(last)
                if last.inside + last.count == range.inside
                    && last.outside + last.count == range.outside =>
            {
                last.count += range.count;
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// The kernel takes a map in one write only.
fn write_map(pid: i32, name: &'static str, text: &str) -> Result<()> {
    procfs::write(&format!("{pid}/{name}"), text).map_err(|source| Error::WriteIdMap {
        name,
        text: text.trim_end().replace('\n', ", "),
        source,
    })
}

fn run_helper(program: &'static str, pid: i32, ranges: &[IdRange]) -> Result<()> {
    let numbers = ranges
        .iter()
        .flat_map(|range| [range.inside, range.outside, range.count]);
    let output = Command::new(program)
        .arg(pid.to_string())
        .args(numbers.map(|n| n.to_string()))
        .stdin(Stdio::null())
        .output();
    let reason = match output {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            "it is not installed (package uidmap)".to_owned()
        }
        Err(error) => error.to_string(),
    };
    Err(Error::IdMapHelper { program, reason })
}

fn invalid(field: &str, reason: &str) -> Error {
    Error::Invalid {
        field: field.to_owned(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxIdMappingBuilder;

    fn mapping(inside: u32, outside: u32, count: u32) -> LinuxIdMapping {
        LinuxIdMappingBuilder::default()
            .container_id(inside)
            .host_id(outside)
            .size(count)
            .build()
            .expect("builds")
    }

    fn reason(list: &[LinuxIdMapping]) -> String {
        ranges("linux.uidMappings", list)
            .expect_err("refused")
            .to_string()
    }

    #[test]
    fn maps_read_as_the_kernel_wants_them() {
        let list = [mapping(0, 1000, 1), mapping(1, 100_000, 65_535)];
        let ranges = ranges("x", &list).expect("fine");
        assert_eq!(text(&ranges), "0 1000 1\n1 100000 65535\n");
        assert!(ranges[1].holds(65_535) && !ranges[1].holds(65_536) && !ranges[1].holds(0));
        assert!(is_only(&ranges[..1], 1000) && !is_only(&ranges, 1000));
    }

    #[test]
    fn maps_that_the_kernel_would_refuse_are_named() {
        assert!(reason(&[mapping(0, 1, 0)]).contains("size 0"));
        assert!(reason(&[mapping(0, 5, 10), mapping(9, 100, 1)]).contains("overlap"));
        assert!(reason(&[mapping(0, 5, 10), mapping(20, 14, 1)]).contains("overlap"));
        assert!(reason(&[mapping(u32::MAX, 0, 1)]).contains("beyond"));
        assert!(reason(&vec![mapping(0, 0, 1); RANGES_MAX + 1]).contains("more than 340"));
    }

    #[test]
    fn a_map_is_the_same_in_more_ranges() {
        let whole = ranges("x", &[mapping(0, 100, 10)]).expect("fine");
        let parts = ranges("x", &[mapping(4, 104, 6), mapping(0, 100, 4)]).expect("fine");
        let other = ranges("x", &[mapping(4, 105, 6), mapping(0, 100, 4)]).expect("fine");
        assert_eq!(merged(&whole), merged(&parts));
        assert_ne!(merged(&whole), merged(&other));
        assert_eq!(
            parse_map("         0        100         10\nnonsense\n"),
            whole
        );
    }

    #[test]
    fn ids_beside_each_other_do_not_overlap() {
        let list = [mapping(10, 0, 10), mapping(0, 10, 10)];
        assert_eq!(ranges("x", &list).expect("fine").len(), 2);
        assert_eq!(first(&ranges("x", &list).expect("fine")), 0);
    }
}
