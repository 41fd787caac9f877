//! The least that a container costs: the same namespaces, mounts and cgroups made with bare system calls, and nothing
//! else. No specification is read, nothing is masked, dropped, recorded or checked. For orientation only.
//!
//! The bench starts itself again for it (`FLOOR` in the environment), since a child made by clone3 needs a process with
//! one thread, and a start is part of what is measured.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use podling_runtime::sys;

/// Where the bundle is, for a process that is to be the floor.
pub(crate) const FLOOR: &str = "PODLING_BENCH_FLOOR";

/// The namespaces of the bench's specification.
const NAMESPACES: i32 = libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWNS;

/// Limits of the bench's specification: controller, v1 file, v2 file, value.
const LIMITS: [(&str, &str, &str, &str); 3] = [
    ("memory", "memory.limit_in_bytes", "memory.max", "134217728"),
    ("pids", "pids.max", "pids.max", "100"),
    ("cpu", "cpu.cfs_quota_us", "cpu.max", "30000"),
];

/// Makes the container, waits for its end and removes it.
pub(crate) fn run(bundle: &Path) {
    let cgroup = format!("podling-bench-{}/floor", std::process::id());
    let hierarchies = hierarchies();
    for root in &hierarchies {
        fs::create_dir_all(root.join(&cgroup)).unwrap();
        if root.ends_with("cpuset") {
            inherit_cpuset(root, Path::new(&cgroup));
        }
    }
    let is_v1 = hierarchies.len() > 1;
    for root in &hierarchies {
        for (controller, v1, v2, value) in LIMITS {
            let file = match is_v1 {
                true if root.ends_with(controller) => v1,
                true => continue,
                false => v2,
            };
            // On v2 a controller may be off for this directory.
            drop(fs::write(root.join(&cgroup).join(file), value));
        }
    }
    let join = if is_v1 { "tasks" } else { "cgroup.procs" };
    let rootfs = bundle.join("rootfs");
    let child = sys::clone::clone_child(NAMESPACES as u64, None, || {
        for root in &hierarchies {
            fs::write(root.join(&cgroup).join(join), "0").unwrap();
        }
        enter(&rootfs);
        let program = c"/bin/true";
        drop(sys::process::execve(program, &[program.to_owned()], &[]));
        127
    })
    .unwrap();
    sys::pidfd::wait(child.pidfd.as_fd()).unwrap();
    for root in &hierarchies {
        fs::remove_dir(root.join(&cgroup)).unwrap();
        drop(fs::remove_dir(
            root.join(Path::new(&cgroup).parent().unwrap()),
        ));
    }
}

/// v1's mounts with controllers, or v2's.
fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let of = |kind: &str| -> Vec<PathBuf> {
        mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .filter(|fields| fields[2] == kind && !fields[3].contains("name="))
            .map(|fields| PathBuf::from(fields[1]))
            .collect()
    };
    let v1 = of("cgroup");
    if v1.is_empty() { of("cgroup2") } else { v1 }
}

fn inherit_cpuset(root: &Path, cgroup: &Path) {
    for directory in [cgroup.parent().unwrap(), cgroup] {
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let value = fs::read_to_string(root.join(file)).unwrap();
            fs::write(root.join(directory).join(file), value.trim()).unwrap();
        }
    }
}

/// Mounts what the specification has, and makes `rootfs` the root.
fn enter(rootfs: &Path) {
    let none = None::<&str>;
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(rootfs), rootfs, none, bind, none).unwrap();
    let at = |name: &str, kind: &str, flags: MsFlags, data: Option<&str>| {
        let target = rootfs.join(name);
        drop(fs::create_dir(&target));
        mount(Some(kind), &target, Some(kind), flags, data).unwrap();
    };
    at("proc", "proc", safe, None);
    at("dev", "tmpfs", MsFlags::MS_NOSUID, Some("mode=755"));
    at(
        "dev/pts",
        "devpts",
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        Some("newinstance,ptmxmode=0666,mode=0620"),
    );
    at("dev/shm", "tmpfs", safe, Some("mode=1777"));
    at("dev/mqueue", "mqueue", safe, None);
    at("sys", "sysfs", safe | MsFlags::MS_RDONLY, None);
    std::env::set_current_dir(rootfs).unwrap();
    nix::unistd::pivot_root(".", ".").unwrap();
    umount2(".", MntFlags::MNT_DETACH).unwrap();
    std::env::set_current_dir("/").unwrap();
}
