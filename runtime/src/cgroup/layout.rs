//! How cgroups are mounted on this machine: read from `/proc/self/mountinfo` (proc_pid_mountinfo(5)).

use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use crate::kernel_file::{self, MOUNTINFO, unescape};

/// There while systemd runs the machine (sd_booted(3)).
const SYSTEMD_RUNS: &str = "/run/systemd/system";

/// systemd's own v1 hierarchy, by which it knows which process belongs to which unit.
const SYSTEMD_HIERARCHY: &str = "name=systemd";

/// How cgroups are mounted on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// One hierarchy.
    V2 {
        /// Where it is mounted.
        root: PathBuf,
    },
    /// One hierarchy for each controller or set of them; also what systemd calls hybrid, where a v2 hierarchy
    /// without controllers is mounted beside them. Where systemd runs that one takes part, as the last: systemd knows
    /// by it which process belongs to which unit, and ends a scope that has none there.
    V1 {
        /// The hierarchies, in the order in which they are mounted.
        hierarchies: Vec<Hierarchy>,
    },
}

/// One v1 hierarchy, or the v2 one beside them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its controllers, as `cpu` and `cpuacct`, or `name=systemd`; none for systemd's v2 hierarchy of a hybrid layout.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub root: PathBuf,
}

impl Hierarchy {
    /// True for the v2 hierarchy of a hybrid layout.
    pub fn is_v2(&self) -> bool {
        self.controllers.is_empty()
    }
}

impl Layout {
    /// Looks at the mounts of this process. The caller keeps the result: mounts of a running machine do not move.
    ///
    /// # Errors
    /// When they cannot be read, or no cgroup file system is mounted.
    pub fn detect() -> Result<Self> {
        let mountinfo =
            kernel_file::read(Path::new(MOUNTINFO)).map_err(|source| Error::ReadMounts {
                path: PathBuf::from(MOUNTINFO),
                source,
            })?;
        parse_mountinfo(&mountinfo, || Path::new(SYSTEMD_RUNS).exists()).ok_or(Error::NotMounted)
    }

    /// True for a v2 hierarchy alone.
    pub fn is_v2(&self) -> bool {
        matches!(self, Self::V2 { .. })
    }
}

/// Chooses the layout. systemd's own hierarchies take part only where systemd runs: elsewhere they are a directory and a
/// write per container for nobody.
fn parse_mountinfo(mountinfo: &[u8], systemd_runs: impl Fn() -> bool) -> Option<Layout> {
    let mut unified = None;
    let mut hierarchies: Vec<Hierarchy> = Vec::new();
    for mount in mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(parse_mount)
    {
        match mount.file_system {
            b"cgroup2" if unified.is_none() => unified = Some(mount.point),
            b"cgroup" => {
                let controllers = controllers(mount.options, &systemd_runs);
                // A second mount of a hierarchy shows the same cgroups.
                let known = hierarchies
                    .iter()
                    .any(|hierarchy| hierarchy.controllers == controllers);
                if !controllers.is_empty() && !known {
                    hierarchies.push(Hierarchy {
                        controllers,
                        root: mount.point,
                    });
                }
            }
            _ => {}
        }
    }
    let has_v1_controllers = hierarchies
        .iter()
        .flat_map(|hierarchy| &hierarchy.controllers)
        .any(|controller| controller != SYSTEMD_HIERARCHY);
    match unified {
        Some(root) if !has_v1_controllers => Some(Layout::V2 { root }),
        _ if !has_v1_controllers => None,
        unified => {
            let unified = unified.filter(|_| systemd_runs());
            hierarchies.extend(unified.map(|root| Hierarchy {
                controllers: Vec::new(),
                root,
            }));
            Some(Layout::V1 { hierarchies })
        }
    }
}

/// One line of mountinfo, as far as it is of interest.
struct Mount<'a> {
    point: PathBuf,
    file_system: &'a [u8],
    options: &'a [u8],
}

/// `36 35 98:0 /root /point options [optional…] - type source super-options`
fn parse_mount(line: &[u8]) -> Option<Mount<'_>> {
    let mut fields = line.split(|byte| *byte == b' ');
    let point = unescape(fields.nth(4)?);
    fields.find(|field| *field == b"-")?;
    let file_system = fields.next()?;
    let options = fields.nth(1)?;
    Some(Mount {
        point,
        file_system,
        options,
    })
}

/// The controllers among a hierarchy's super block options.
fn controllers(options: &[u8], systemd_runs: impl Fn() -> bool) -> Vec<String> {
    const KNOWN: [&str; 13] = [
        "cpu",
        "cpuacct",
        "cpuset",
        "memory",
        "devices",
        "freezer",
        "blkio",
        "pids",
        "hugetlb",
        "net_cls",
        "net_prio",
        "rdma",
        "perf_event",
    ];
    let mut found: Vec<String> = String::from_utf8_lossy(options)
        .split(',')
        .filter(|option| KNOWN.contains(option) || (*option == SYSTEMD_HIERARCHY && systemd_runs()))
        .map(str::to_owned)
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hierarchy(controllers: &[&str], root: &str) -> Hierarchy {
        Hierarchy {
            controllers: controllers.iter().map(|name| (*name).to_owned()).collect(),
            root: PathBuf::from(root),
        }
    }

    #[test]
    fn one_cgroup2_mount_is_v2() {
        let mounts = b"24 23 0:22 / /sys rw - sysfs sysfs rw\n\
            31 24 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(
            parse_mountinfo(mounts, || true),
            Some(Layout::V2 {
                root: PathBuf::from("/sys/fs/cgroup")
            })
        );
    }

    #[test]
    fn hybrid_is_v1_and_its_empty_v2_mount_is_systemds() {
        let mounts = b"31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpuacct,cpu\n\
            35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            36 31 0:32 / /srv/memory rw - cgroup cgroup rw,memory\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let cpu = hierarchy(&["cpu", "cpuacct"], "/sys/fs/cgroup/cpu,cpuacct");
        let memory = hierarchy(&["memory"], "/sys/fs/cgroup/memory");
        assert_eq!(
            parse_mountinfo(mounts, || false),
            Some(Layout::V1 {
                hierarchies: vec![cpu.clone(), memory.clone()]
            })
        );
        let systemd = hierarchy(&["name=systemd"], "/sys/fs/cgroup/systemd");
        let unified = hierarchy(&[], "/sys/fs/cgroup/unified");
        assert_eq!(
            parse_mountinfo(mounts, || true),
            Some(Layout::V1 {
                hierarchies: vec![cpu, memory, systemd, unified]
            })
        );
    }

    #[test]
    fn a_v1_hierarchy_without_controllers_does_not_hide_v2() {
        let mounts = b"40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert!(parse_mountinfo(mounts, || true).is_some_and(|layout| layout.is_v2()));
    }

    #[test]
    fn no_cgroup_mount_is_no_layout() {
        assert_eq!(
            parse_mountinfo(b"22 27 0:21 / /proc rw - proc proc rw\n", || false),
            None
        );
    }
}
