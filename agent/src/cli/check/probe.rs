//! What is tried. Each probe runs in a thread of its own: namespaces that it makes, and filters that it loads, end
//! with that thread, and nothing of the machine changes but for an empty cgroup that is removed at once.

use std::fs;
use std::io;
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use podling_runtime::cgroup::{Cgroup, Layout};
use podling_runtime::seccomp;
use rustix::fs::{CWD, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, OpenTreeFlags,
    fsconfig_create, fsconfig_set_string, fsmount, fsopen, mount_change, open_tree,
};

use super::{Finding, Need};
use crate::network::{Network, NetworkConfig};

type Probe = fn(&Path) -> Result<String, String>;

/// What is tried, in the order in which it is shown: name, whether it is needed, how it is tried, what to do if it
/// is missing.
const PROBES: [(&str, Need, Probe, &str); 14] = [
    ("user", Need::Required, user, "run podling as root (sudo)"),
    (
        "capabilities",
        Need::Required,
        capabilities,
        "in a container, start it with --privileged; in a service, do not bound its capabilities",
    ),
    (
        "namespaces",
        Need::Required,
        namespaces,
        "use a kernel with CONFIG_NAMESPACES, and no outer sandbox that forbids them",
    ),
    ("pidfd", Need::Required, pidfd, "use Linux 5.3 or newer"),
    ("openat2", Need::Required, openat2, "use Linux 5.6 or newer"),
    (
        "mount API",
        Need::Required,
        mount_api,
        "use Linux 5.12 or newer",
    ),
    (
        "overlayfs",
        Need::Required,
        overlay,
        "load the module (modprobe overlay), and keep --data-dir on ext4, xfs or btrfs rather than on an overlay or NFS",
    ),
    (
        "cgroups",
        Need::Required,
        cgroups,
        "mount cgroups (mount -t cgroup2 none /sys/fs/cgroup), writable, with the controllers cpu, memory and pids",
    ),
    (
        "seccomp",
        Need::Required,
        seccomp_filter,
        "use a kernel with CONFIG_SECCOMP_FILTER",
    ),
    (
        "pod network",
        Need::Required,
        network,
        "use a kernel with bridge, veth and nf_tables (modprobe bridge veth nf_tables nft_masq)",
    ),
    (
        "supervisor",
        Need::Required,
        supervisor,
        "install podling-pod beside podling, or say where it is with `supervisor:` in the configuration",
    ),
    (
        "inotify",
        Need::Wanted,
        inotify,
        "raise it: sysctl fs.inotify.max_user_instances=512",
    ),
    (
        "priorities",
        Need::Wanted,
        priorities,
        "without CAP_SYS_RESOURCE a Guaranteed pod is not protected from the kernel's OOM killer, nor can limits (ulimits) be raised",
    ),
    (
        "systemd",
        Need::Wanted,
        systemd,
        "without systemd pods are kept by `podling agent` alone: have your init start it",
    ),
];

/// Tries everything.
pub(super) fn all(data_dir: &Path) -> Vec<Finding> {
    let run = |probe: Probe| {
        thread::scope(|scope| {
            scope
                .spawn(move || probe(data_dir))
                .join()
                .unwrap_or_else(|_| Err("the probe failed".to_owned()))
        })
    };
    PROBES
        .into_iter()
        .map(|(name, need, probe, remedy)| Finding::new(name, need, run(probe), remedy))
        .collect()
}

fn text(e: impl std::error::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(e) = cause {
        text.push_str(&format!(": {e}"));
        cause = e.source();
    }
    text
}

fn user(_: &Path) -> Result<String, String> {
    let uid = rustix::process::geteuid();
    let uname = rustix::system::uname();
    let kernel = format!("Linux {}", uname.release().to_string_lossy());
    if uid.is_root() {
        Ok(format!("root, on {kernel}"))
    } else {
        Err(format!(
            "user {}, on {kernel}; containers need root",
            uid.as_raw()
        ))
    }
}

/// Bits of capabilities(7) that containers and their network cannot do without.
const NEEDED: [(u32, &str); 10] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (3, "CAP_FOWNER"),
    (5, "CAP_KILL"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (8, "CAP_SETPCAP"),
    (12, "CAP_NET_ADMIN"),
    (18, "CAP_SYS_CHROOT"),
    (21, "CAP_SYS_ADMIN"),
];

fn effective_capabilities() -> Result<u64, String> {
    let status = fs::read_to_string("/proc/self/status").map_err(text)?;
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    u64::from_str_radix(line.unwrap_or_default().trim(), 16).map_err(text)
}

fn capabilities(_: &Path) -> Result<String, String> {
    let have = effective_capabilities()?;
    let missing: Vec<&str> = NEEDED
        .iter()
        .filter(|(bit, _)| have >> bit & 1 == 0)
        .map(|(_, name)| *name)
        .collect();
    if missing.is_empty() {
        Ok("all that containers need".to_owned())
    } else {
        Err(format!("missing {}", missing.join(", ")))
    }
}

fn namespaces(_: &Path) -> Result<String, String> {
    let all = [
        ("mount", CloneFlags::CLONE_NEWNS),
        ("pid", CloneFlags::CLONE_NEWPID),
        ("network", CloneFlags::CLONE_NEWNET),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ];
    let mut made = Vec::new();
    for (name, flag) in all {
        unshare(flag).map_err(|e| format!("cannot make a {name} namespace: {e}"))?;
        made.push(name);
    }
    Ok(made.join(", "))
}

fn pidfd(_: &Path) -> Result<String, String> {
    let me = rustix::process::getpid();
    rustix::process::pidfd_open(me, rustix::process::PidfdFlags::empty())
        .map(|_| "works".to_owned())
        .map_err(text)
}

fn openat2(_: &Path) -> Result<String, String> {
    podling_runtime::confined::open(CWD, "/", OFlags::PATH, ResolveFlags::IN_ROOT)
        .map(|_| "works".to_owned())
        .map_err(text)
}

fn mount_api(_: &Path) -> Result<String, String> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(CWD, "/", flags).map_err(|e| format!("open_tree: {e}"))?;
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| format!("fsopen: {e}"))?;
    fsconfig_create(&fs).map_err(|e| format!("fsconfig: {e}"))?;
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
        .map_err(|e| format!("fsmount: {e}"))?;
    Ok("open_tree, fsopen, fsmount".to_owned())
}

/// A directory for a trial that is removed afterwards: in the data directory, whose file system is what matters.
fn trial_dir(data_dir: &Path) -> io::Result<Trial> {
    let base = if data_dir.is_dir() {
        data_dir.to_owned()
    } else {
        std::env::temp_dir()
    };
    let path = base.join(format!(".podling-check-{}", std::process::id()));
    fs::create_dir(&path)?;
    Ok(Trial { path })
}

struct Trial {
    path: std::path::PathBuf,
}

impl Drop for Trial {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_dir_all(&self.path) {
            eprintln!("note: cannot remove {}: {e}", self.path.display());
        }
    }
}

fn overlay(data_dir: &Path) -> Result<String, String> {
    let trial = trial_dir(data_dir).map_err(text)?;
    let dir = |name: &str| -> Result<String, String> {
        let path = trial.path.join(name);
        fs::create_dir(&path).map_err(text)?;
        path.to_str()
            .map(str::to_owned)
            .ok_or_else(|| "the data directory's name is not UTF-8".to_owned())
    };
    let failed =
        |e: rustix::io::Errno| format!("cannot mount an overlay on {}: {e}", trial.path.display());
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed)?;
    for (key, name) in [
        ("lowerdir", "lower"),
        ("upperdir", "upper"),
        ("workdir", "work"),
    ] {
        fsconfig_set_string(&fs, key, dir(name)?).map_err(failed)?;
    }
    fsconfig_create(&fs).map_err(failed)?;
    // Mounted nowhere: it goes with its descriptor.
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).map_err(failed)?;
    Ok(format!(
        "works on {}",
        trial.path.parent().unwrap_or(data_dir).display()
    ))
}

fn cgroups(_: &Path) -> Result<String, String> {
    let layout = Layout::detect().map_err(text)?;
    let path = format!("/podling-check-{}", std::process::id());
    let cgroup = Cgroup::create(&layout, Path::new(&path)).map_err(text)?;
    cgroup.delete().map_err(text)?;
    let (version, controllers) = match &layout {
        Layout::V2 { root } => {
            let text = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
            (
                "version 2",
                text.split_whitespace()
                    .map(str::to_owned)
                    .collect::<Vec<_>>(),
            )
        }
        Layout::V1 { hierarchies } => {
            let all = hierarchies
                .iter()
                .flat_map(|h| h.controllers.iter().cloned());
            (
                "version 1",
                all.filter(|c| !c.starts_with("name=")).collect(),
            )
        }
    };
    let missing: Vec<&str> = ["cpu", "memory", "pids"]
        .into_iter()
        .filter(|needed| !controllers.iter().any(|c| c == needed))
        .collect();
    if missing.is_empty() {
        Ok(format!("{version}, with {}", controllers.join(", ")))
    } else {
        Err(format!(
            "{version}, without the controllers {}",
            missing.join(", ")
        ))
    }
}

fn seccomp_filter(_: &Path) -> Result<String, String> {
    let profile = seccomp::default_profile(&std::collections::HashSet::new());
    let filter = seccomp::compile(&profile).map_err(text)?;
    filter.load().map_err(text)?;
    Ok(format!(
        "the default profile, {} instructions",
        filter.instructions()
    ))
}

/// The whole of it, in a network of this thread's own.
fn network(data_dir: &Path) -> Result<String, String> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).map_err(text)?;
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(text)?;
    let trial = trial_dir(data_dir).map_err(text)?;
    // All of the runtime's threads are made by this one, and so are in its namespaces.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(text)?;
    runtime.block_on(async {
        let config = NetworkConfig {
            bridge: None,
            pod_cidr: Some("10.214.0.0/24".to_owned()),
            data_dir: trial.path.join("data"),
            run_dir: trial.path.join("run"),
        };
        for dir in [&config.data_dir, &config.run_dir] {
            fs::create_dir_all(dir).map_err(text)?;
        }
        let network = Network::open(config).await.map_err(text)?;
        let spec = crate::network::AttachSpec {
            pod: "podling/check".to_owned(),
            host_ports: Vec::new(),
        };
        network.attach("podling-check", spec).await.map_err(text)?;
        network.detach("podling-check").await.map_err(text)?;
        network.close().await.map_err(text)?;
        Ok("bridge, veth, addresses, source NAT".to_owned())
    })
}

fn supervisor(_: &Path) -> Result<String, String> {
    let path = crate::node::Config::default()
        .supervisor_path()
        .map_err(text)?;
    Ok(path.display().to_string())
}

fn inotify(_: &Path) -> Result<String, String> {
    let read = |name: &str| -> Result<u64, String> {
        let value = fs::read_to_string(format!("/proc/sys/fs/inotify/{name}")).map_err(text)?;
        value.trim().parse().map_err(text)
    };
    let instances = read("max_user_instances")?;
    let found = format!("{instances} instances for each user");
    if instances >= 128 {
        Ok(found)
    } else {
        Err(found)
    }
}

/// The bit of CAP_SYS_RESOURCE in capabilities(7).
const CAP_SYS_RESOURCE: u32 = 24;

fn priorities(_: &Path) -> Result<String, String> {
    if effective_capabilities()? >> CAP_SYS_RESOURCE & 1 == 1 {
        Ok("may be set below the default".to_owned())
    } else {
        Err("CAP_SYS_RESOURCE is missing".to_owned())
    }
}

fn systemd(_: &Path) -> Result<String, String> {
    if podling_systemd::runs_the_machine() {
        Ok("runs the machine".to_owned())
    } else {
        Err("does not run the machine".to_owned())
    }
}
