//! How cgroups are mounted on this machine.
//!
//! Nearly every machine has them below `/sys/fs/cgroup` (file-hierarchy(7)), where a question or two to the kernel tell
//! it. Elsewhere they are looked for in `/proc/self/mountinfo` (proc_pid_mountinfo(5)), which takes the longer the more
//! is mounted, and on a machine full of containers that is much: 1 ms for 500 mounts.

use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use crate::kernel_file::{self, MOUNTINFO, unescape};

/// Where cgroup version 2 is mounted, or a directory with a mount for each hierarchy of version 1.
const USUAL_ROOT: &str = "/sys/fs/cgroup";

/// The hierarchies of version 1 that the kernel has, and this process's cgroups (proc_pid_cgroup(5)).
const OWN_CGROUPS: &str = "/proc/self/cgroup";

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
        let systemd_runs = || Path::new(SYSTEMD_RUNS).exists();
        let own_cgroups = || kernel_file::read(Path::new(OWN_CGROUPS)).ok();
        if let Some(layout) = at_usual_places(own_cgroups, FileSystem::of, systemd_runs) {
            return Ok(layout);
        }
        let mountinfo =
            kernel_file::read(Path::new(MOUNTINFO)).map_err(|source| Error::ReadMounts {
                path: PathBuf::from(MOUNTINFO),
                source,
            })?;
        parse_mountinfo(&mountinfo, systemd_runs).ok_or(Error::NotMounted)
    }

    /// True for a v2 hierarchy alone.
    pub fn is_v2(&self) -> bool {
        matches!(self, Self::V2 { .. })
    }
}

/// What a directory is in, as far as it is of interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FileSystem {
    Cgroup,
    Cgroup2,
    Other,
}

impl FileSystem {
    fn of(path: &Path) -> Self {
        match rustix::fs::statfs(path).map(|found| found.f_type) {
            Ok(libc::CGROUP_SUPER_MAGIC) => Self::Cgroup,
            Ok(libc::CGROUP2_SUPER_MAGIC) => Self::Cgroup2,
            Ok(_) | Err(_) => Self::Other,
        }
    }
}

/// The layout of a machine that mounts cgroups where it is usual: none if one hierarchy is not there. Where that place
/// is version 2, a hierarchy of version 1 which somebody has mounted elsewhere for himself plays no part.
fn at_usual_places(
    own_cgroups: impl FnOnce() -> Option<Vec<u8>>,
    file_system: impl Fn(&Path) -> FileSystem,
    systemd_runs: impl Fn() -> bool,
) -> Option<Layout> {
    let usual = Path::new(USUAL_ROOT);
    if file_system(usual) == FileSystem::Cgroup2 {
        return Some(Layout::V2 {
            root: usual.to_owned(),
        });
    }
    let own_cgroups = String::from_utf8(own_cgroups()?).ok()?;
    let mut hierarchies = Vec::new();
    // `number:controllers:path`, the newest hierarchy first.
    let lines = own_cgroups.lines().rev();
    for names in lines.filter_map(|line| line.split(':').nth(1)) {
        let controllers = controllers(names, &systemd_runs);
        if controllers.is_empty() {
            continue;
        }
        let root = usual.join(names.strip_prefix("name=").unwrap_or(names));
        if file_system(&root) != FileSystem::Cgroup {
            return None;
        }
        hierarchies.push(Hierarchy { controllers, root });
    }
    if !has_controllers(&hierarchies) {
        return None;
    }
    if systemd_runs() {
        let root = usual.join("unified");
        if file_system(&root) != FileSystem::Cgroup2 {
            return None;
        }
        hierarchies.push(Hierarchy {
            controllers: Vec::new(),
            root,
        });
    }
    Some(Layout::V1 { hierarchies })
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
                let options = String::from_utf8_lossy(mount.options);
                let controllers = controllers(&options, &systemd_runs);
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
    match unified {
        Some(root) if !has_controllers(&hierarchies) => Some(Layout::V2 { root }),
        None if !has_controllers(&hierarchies) => None,
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

/// True if one of these version 1 hierarchies is of more use than to systemd.
fn has_controllers(hierarchies: &[Hierarchy]) -> bool {
    let mut all = hierarchies.iter().flat_map(|one| &one.controllers);
    all.any(|controller| controller != SYSTEMD_HIERARCHY)
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

/// The controllers among a hierarchy's super block options, or its names in [`OWN_CGROUPS`].
fn controllers(options: &str, systemd_runs: impl Fn() -> bool) -> Vec<String> {
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
    let mut found: Vec<String> = options
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

    /// The usual places where these paths are of cgroups.
    fn usual(
        own_cgroups: &str,
        mounts: &[(&str, FileSystem)],
        systemd_runs: bool,
    ) -> Option<Layout> {
        let file_system = |path: &Path| {
            let found = mounts.iter().find(|(mount, _)| Path::new(mount) == path);
            found.map_or(FileSystem::Other, |(_, kind)| *kind)
        };
        let own_cgroups = || Some(own_cgroups.as_bytes().to_vec());
        at_usual_places(own_cgroups, file_system, || systemd_runs)
    }

    #[test]
    fn a_unified_machine_is_v2_whatever_is_mounted_elsewhere() {
        let root = PathBuf::from(USUAL_ROOT);
        let mounts = [(USUAL_ROOT, FileSystem::Cgroup2)];
        let own_cgroups = "1:net_cls:/\n0::/user.slice\n";
        let expected = Some(Layout::V2 { root });
        assert_eq!(usual(own_cgroups, &mounts, true), expected);
    }

    #[test]
    fn hierarchies_are_below_the_usual_root() {
        const OWN_CGROUPS: &str =
            "9:name=systemd:/\n4:memory:/a:b\n3:misc:/\n2:cpu,cpuacct:/\n1:name=elogind:/1\n0::/\n";
        let memory = ("/sys/fs/cgroup/memory", FileSystem::Cgroup);
        let cpu = ("/sys/fs/cgroup/cpu,cpuacct", FileSystem::Cgroup);
        let systemd = ("/sys/fs/cgroup/systemd", FileSystem::Cgroup);
        let unified = ("/sys/fs/cgroup/unified", FileSystem::Cgroup2);
        let mut hierarchies = vec![
            hierarchy(&["cpu", "cpuacct"], cpu.0),
            hierarchy(&["memory"], memory.0),
        ];
        let found = usual(OWN_CGROUPS, &[memory, cpu], false);
        let expected = Layout::V1 {
            hierarchies: hierarchies.clone(),
        };
        assert_eq!(found, Some(expected));
        hierarchies.push(hierarchy(&["name=systemd"], systemd.0));
        hierarchies.push(hierarchy(&[], unified.0));
        let found = usual(OWN_CGROUPS, &[memory, cpu, systemd, unified], true);
        assert_eq!(found, Some(Layout::V1 { hierarchies }));
        // What is not there may be elsewhere.
        assert_eq!(usual(OWN_CGROUPS, &[memory], false), None);
        assert_eq!(usual(OWN_CGROUPS, &[memory, cpu, systemd], true), None);
        assert_eq!(usual(OWN_CGROUPS, &[memory, cpu, unified], true), None);
        assert_eq!(usual("0::/\n", &[], false), None);
    }

    #[test]
    fn the_list_of_mounts_tells_the_same_of_this_machine() {
        let own_cgroups = || kernel_file::read(Path::new(OWN_CGROUPS)).ok();
        let Some(mut usual) = at_usual_places(own_cgroups, FileSystem::of, || false) else {
            return;
        };
        let mountinfo = kernel_file::read(Path::new(MOUNTINFO)).unwrap();
        let mut listed = parse_mountinfo(&mountinfo, || false).unwrap();
        for layout in [&mut usual, &mut listed] {
            if let Layout::V1 { hierarchies } = layout {
                hierarchies.sort_by(|one, other| one.root.cmp(&other.root));
            }
        }
        assert_eq!(usual, listed);
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
