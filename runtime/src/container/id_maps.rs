//! The id maps of user namespaces: checked, written, compared.
//!
//! A caller with CAP_SETUID and CAP_SETGID writes any map; another may map only itself, and has setuid helpers
//! (newuidmap(1), newgidmap(1)) write more, which know what `/etc/subuid` gives it. Without a helper groups cannot be
//! dropped: the kernel wants setgroups(2) denied then. Source: user_namespaces(7).

use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use oci_spec::runtime::{LinuxIdMapping, Spec};
use rustix::fs::FileType;
use rustix::process::Uid;

use super::error::{Error, Result};
use super::procfs;

/// The kernel's limit on lines in one map (`UID_GID_MAP_MAX_EXTENTS`).
const RANGES_MAX: usize = 340;

/// Which ids a user namespace has, and what they are outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct IdMaps {
    pub(super) uids: Vec<IdRange>,
    pub(super) gids: Vec<IdRange>,
    /// The caller may write any map; else only itself, or by the helpers.
    pub(super) privileged: bool,
}

/// One line of `uid_map` or `gid_map`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IdRange {
    inside: u32,
    outside: u32,
    count: u32,
}

impl IdMaps {
    /// The spec's. A root that asks for none gets all of the caller's ids, as with crun.
    pub(super) fn asked(
        uids: &[LinuxIdMapping],
        gids: &[LinuxIdMapping],
        privileged: bool,
    ) -> Result<Self> {
        match privileged && uids.is_empty() && gids.is_empty() {
            true => Self::same(),
            false => Self::new("linux", uids, gids, privileged),
        }
    }

    /// All ids of the caller, each as itself.
    fn same() -> Result<Self> {
        let own = |name: &str| -> Result<Vec<IdRange>> {
            let text = std::fs::read_to_string(format!("/proc/self/{name}_map")).map_err(|e| {
                let field = format!("linux.{name}Mappings");
                invalid(&field, &format!("cannot read the caller's: {e}"))
            })?;
            let itself = |range: IdRange| IdRange {
                outside: range.inside,
                ..range
            };
            Ok(parse_map(&text).into_iter().map(itself).collect())
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

    pub(super) fn first_uid(&self) -> u32 {
        first(&self.uids)
    }

    /// What a user and a group in the namespace are outside; none when one of them is not mapped.
    pub(super) fn outside(&self, uid: u32, gid: u32) -> Option<(u32, u32)> {
        let find = |ranges: &[IdRange], id| ranges.iter().find_map(|range| range.outside(id));
        find(&self.uids, uid).zip(find(&self.gids, gid))
    }

    pub(super) fn first_gid(&self) -> u32 {
        first(&self.gids)
    }

    /// Without the helper groups cannot be set.
    pub(super) fn check_groups(&self, spec: &Spec) -> Result<()> {
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
    pub(super) fn compare(&self, pid: i32) -> Result<()> {
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
        let Some(owner) = self.uids.iter().find_map(|range| range.outside(uid)) else {
            return Ok(());
        };
        let owner = Uid::from_raw(owner);
        for fd in fds {
            if FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Fifo {
                rustix::fs::fchown(fd, Some(owner), None)?;
            }
        }
        Ok(())
    }
}

impl IdRange {
    pub(super) fn holds(self, id: u32) -> bool {
        id >= self.inside && id - self.inside < self.count
    }

    /// What an id in the namespace is outside.
    fn outside(self, id: u32) -> Option<u32> {
        self.holds(id).then(|| self.outside + (id - self.inside))
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

pub(super) fn invalid(field: &str, reason: &str) -> Error {
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
