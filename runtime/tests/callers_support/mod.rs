//! A machine of its own for a container engine that calls the runtime: fresh namespaces, cgroups below one of the
//! test's own, an empty `/run`, and storage in a temporary directory.
//!
//! ```text
//! test ── unshare ── sh (pid 1) mounts /proc, /sys, cgroups, /run, then becomes catatonit, which reaps
//!   └──── sh ── nsenter ── sh -c SCRIPT        each script joins the cgroup and the namespaces
//! ```
//!
//! Nothing that an engine leaves behind outlives the machine: its processes end with its pid namespace, its mounts
//! with its mount namespace, and the cgroups are removed.
#![allow(dead_code, reason = "each test program uses a part of this")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

#[path = "../program/mod.rs"]
mod program;
#[path = "../userland/mod.rs"]
mod userland;

#[allow(unused_imports, reason = "each test program uses a part of this")]
pub use program::RUNTIME;
use userland::{install_busybox, wait_for};
pub use userland::{stderr, stdout, until};

/// Where the machine's cgroup file systems are mounted.
const CGROUPS: &str = "/sys/fs/cgroup";

/// Writes the shell into the cgroups that are its arguments, up to `--`, and becomes what follows.
const JOIN: &str =
    r#"while [ "$1" != -- ]; do echo 0 > "$1/cgroup.procs"; shift; done; shift; exec "$@""#;

/// What pid 1 does. `$1`: where to tell its pid in the test's namespace; then the version 1 hierarchies, none on a
/// machine of version 2.
const BOOT: &str = r#"
set -e
read -r pid rest < /proc/self/stat
told=$1; shift
mount -t proc proc /proc
umount -R -l /sys
mount -t sysfs sysfs /sys
if [ $# -gt 0 ]; then
    mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
    for names; do
        mkdir "/sys/fs/cgroup/$names"
        case $names in
            systemd) mount -t cgroup -o none,name=systemd cgroup "/sys/fs/cgroup/$names";;
            *) mount -t cgroup -o "$names" cgroup "/sys/fs/cgroup/$names";;
        esac
    done
else
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
mount -t tmpfs -o mode=755 tmpfs /run
ip link set lo up
echo "$pid" > "$told.new"
mv "$told.new" "$told"
exec catatonit -P
"#;

/// Namespaces and cgroups for one engine.
pub struct Machine {
    directory: tempfile::TempDir,
    unshare: Child,
    init: String,
    cgroup: String,
}

impl Machine {
    /// Needs root, and Debian's packages busybox-static, catatonit, iproute2 and util-linux.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let cgroup = format!(
            "podling-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let directory = tempfile::tempdir().expect("a directory");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("mode");
        for root in cgroup_roots() {
            make_cgroup(&root, &cgroup);
        }
        let told = directory.path().join("init.pid");
        let names = cgroup_roots()
            .into_iter()
            .filter(|root| root != Path::new(CGROUPS))
            .filter_map(|root| Some(root.file_name()?.to_owned()));
        let unshare = joined(&cgroup)
            .args(["unshare", "--net", "--mount", "--cgroup", "--uts", "--ipc"])
            .args([
                "--pid",
                "--fork",
                "--kill-child",
                "--propagation",
                "private",
            ])
            .args(["sh", "-c", BOOT, "sh"])
            .arg(&told)
            .args(names)
            .stdin(Stdio::null())
            .spawn()
            .expect("sh");
        until("the machine is up", || told.exists());
        let init = fs::read_to_string(&told).expect("a pid").trim().to_owned();
        let machine = Self {
            directory,
            unshare,
            init,
            cgroup,
        };
        machine.leave_root_cgroup();
        machine
    }

    /// A cgroup of version 2 that gives controllers to others holds no processes itself: they go to a leaf.
    fn leave_root_cgroup(&self) {
        let cgroup = Path::new(CGROUPS).join(&self.cgroup);
        if cgroup.join("cgroup.controllers").exists() {
            fs::create_dir(cgroup.join("callers")).expect("a leaf");
            fs::write(cgroup.join("callers/cgroup.procs"), &self.init).expect("moves");
        }
    }

    /// Where files for the machine go; the path is the same inside.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Runs a shell script in the machine.
    pub fn run(&self, script: &str) -> Output {
        self.command(&["sh", "-c", script]).output().expect("sh")
    }

    /// A program of the machine, to be started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut cgroup = self.cgroup.clone();
        if Path::new(CGROUPS).join(&cgroup).join("callers").exists() {
            cgroup.push_str("/callers");
        }
        let mut command = joined(&cgroup);
        command
            .args(["nsenter", "--target", &self.init])
            .args(["--net", "--mount", "--cgroup", "--uts", "--ipc", "--pid"])
            .arg(format!("--wdns={}", self.path().display()))
            .args(args)
            .env("HOME", self.path())
            .env("RUNTIME", RUNTIME)
            .stdin(Stdio::null());
        command
    }

    /// As [`Self::run`], and it must work; gives what it printed.
    pub fn ok(&self, script: &str) -> String {
        let output = self.run(script);
        assert!(
            output.status.success(),
            "{script}: {}\n{}{}",
            output.status,
            stdout(&output),
            stderr(&output)
        );
        stdout(&output)
    }

    /// Makes a root file system for an image: busybox and its links, and the files of a user database.
    pub fn image_rootfs(&self) -> PathBuf {
        let root = self.path().join("image");
        install_busybox(&root.join("bin"));
        fs::create_dir(root.join("etc")).expect("etc");
        fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\n").expect("passwd");
        fs::write(root.join("etc/group"), "root:x:0:\n").expect("group");
        root
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let ours = |root: PathBuf| Some(root.join(&self.cgroup)).filter(|path| path.exists());
        let cgroups: Vec<PathBuf> = cgroup_roots().into_iter().filter_map(ours).collect();
        // A frozen process does not die.
        for directory in cgroups.iter().flat_map(|cgroup| deepest_first(cgroup)) {
            let thawed = fs::exists(directory.join("freezer.state")).and_then(|there| {
                if there {
                    fs::write(directory.join("freezer.state"), "THAWED")
                } else {
                    Ok(())
                }
            });
            if let Err(error) = thawed {
                eprintln!("{}: {error}", directory.display());
            }
        }
        self.unshare.kill().expect("kills pid 1 along with unshare");
        self.unshare.wait().expect("unshare ends");
        // Its processes are gone when the kernel says so, a moment later.
        let mut left = cgroups;
        let are_gone = wait_for(|| {
            left.retain(|cgroup| {
                deepest_first(cgroup)
                    .iter()
                    .any(|path| fs::remove_dir(path).is_err())
            });
            left.is_empty().then_some(())
        });
        assert!(
            are_gone.is_some() || std::thread::panicking(),
            "cgroups are left: {left:?}"
        );
    }
}

/// Where cgroups are made: the root of each hierarchy of version 1, or that of version 2.
fn cgroup_roots() -> Vec<PathBuf> {
    if Path::new(CGROUPS).join("cgroup.controllers").exists() {
        return vec![PathBuf::from(CGROUPS)];
    }
    // Symlinks such as cpuacct name a hierarchy twice; engines refuse a mix with version 2.
    let mut roots: Vec<PathBuf> = fs::read_dir(CGROUPS)
        .expect("cgroups")
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .filter(|path| path.join("cgroup.procs").exists())
        .filter(|path| !path.join("cgroup.controllers").exists())
        .collect();
    roots.sort();
    roots
}

/// Makes a cgroup that can hold processes and give to its children what it may.
fn make_cgroup(root: &Path, name: &str) {
    let cgroup = root.join(name);
    fs::create_dir(&cgroup).expect("these tests need root");
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if cgroup.join(file).exists() && root.join(file).exists() {
            let value = fs::read(root.join(file)).expect("a set");
            fs::write(cgroup.join(file), value).expect("a set");
        }
    }
}

/// A shell that joins a cgroup and becomes what its further arguments say.
fn joined(cgroup: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", JOIN, "sh"])
        .args(cgroup_roots().iter().map(|root| root.join(cgroup)))
        .arg("--");
    command
}

/// A cgroup and those below it, in the order in which they can be removed.
fn deepest_first(cgroup: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let below = fs::read_dir(cgroup).into_iter().flatten().flatten();
    for entry in below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        found.extend(deepest_first(&entry.path()));
    }
    found.push(cgroup.to_owned());
    found
}
