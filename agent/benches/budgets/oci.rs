//! OCI runtimes on one bundle: `podling-runtime` beside crun and runc, interleaved so that all see the same weather.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use crate::Effort;
use crate::machine::hide_hybrid_cgroup;
use crate::node::bin_dir;
use crate::table::{Budget, Samples, Table};

/// The pause before a start on an idle machine: long enough for the kernel's cgroup locks to leave their fast state.
const IDLE: Duration = Duration::from_millis(150);
/// The steps of a container's life that are timed.
const STEPS: [&str; 6] = ["create", "start", "state", "exec", "kill", "delete"];

struct Runtime {
    name: &'static str,
    program: PathBuf,
    root: PathBuf,
    bundle: PathBuf,
}

pub(crate) fn measure(effort: Effort, table: &mut Table) {
    let worker = thread::spawn(move || {
        let mut part = Table::default();
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("this needs root");
        let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
        if hide_hybrid_cgroup() {
            part.note(
                "OCI: the unified cgroup mount is hidden, since crun refuses hybrid machines",
            );
        }
        run(effort, &mut part);
        part
    });
    table.append(worker.join().unwrap());
}

fn run(effort: Effort, table: &mut Table) {
    let dir = tempfile::Builder::new()
        .prefix("podling-bench-")
        .tempdir()
        .unwrap();
    let mut runtimes = Vec::new();
    for (name, program) in [
        ("podling", bin_dir().join("podling-runtime")),
        ("crun", PathBuf::from("crun")),
        ("runc", PathBuf::from("runc")),
    ] {
        let runtime = Runtime::new(name, program, dir.path());
        match runtime.run_once() {
            Ok(_) => runtimes.push(runtime),
            Err(error) => table.note(&format!("OCI: {name} does not run here: {error}")),
        }
    }
    if !runtimes.iter().any(|runtime| runtime.name == "podling") {
        return;
    }
    let (warm, idle) = (Duration::ZERO, IDLE);
    for (what, pause, budget) in [
        ("run `true`, warm", warm, 0.5),
        ("run `true`, after 150 ms idle", idle, 0.25),
    ] {
        let mut samples: BTreeMap<&str, Samples> = BTreeMap::new();
        for _ in 0..effort.runs {
            for runtime in &runtimes {
                thread::sleep(pause);
                match runtime.run_once() {
                    Ok(duration) => samples.entry(runtime.name).or_default().push(duration),
                    Err(error) => table.note(&format!("OCI: {} failed: {error}", runtime.name)),
                }
            }
        }
        show(table, &format!("OCI {what}"), &samples, budget);
    }
    let mut steps: BTreeMap<&str, BTreeMap<&str, Samples>> = BTreeMap::new();
    for _ in 0..effort.runs {
        for runtime in &runtimes {
            match runtime.life() {
                Ok(durations) => {
                    for (step, duration) in STEPS.iter().zip(durations) {
                        steps
                            .entry(step)
                            .or_default()
                            .entry(runtime.name)
                            .or_default()
                            .push(duration);
                    }
                }
                Err(error) => table.note(&format!("OCI: {} failed: {error}", runtime.name)),
            }
        }
    }
    for step in STEPS {
        if let Some(samples) = steps.get(step) {
            show(table, &format!("OCI {step}"), samples, 0.5);
        }
    }
}

/// A row with all peers; the budget is against crun.
fn show(table: &mut Table, what: &str, samples: &BTreeMap<&str, Samples>, budget: f64) {
    let median = |name: &'static str| Some((name, samples.get(name)?.median_ms()?));
    let peers: Vec<(&str, f64)> = ["crun", "runc"].into_iter().filter_map(median).collect();
    if let Some((_, own)) = median("podling") {
        let budget = if samples.contains_key("crun") {
            Budget::Ratio(budget)
        } else {
            Budget::None
        };
        table.row(what, own, "ms", &peers, budget);
    }
}

impl Runtime {
    fn new(name: &'static str, program: PathBuf, dir: &Path) -> Runtime {
        let bundle = dir.join(name);
        let bin = bundle.join("rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        for mount_point in ["proc", "dev", "sys", "tmp", "etc"] {
            fs::create_dir_all(bundle.join("rootfs").join(mount_point)).unwrap();
        }
        fs::copy("/bin/busybox", bin.join("busybox")).expect("Debian's busybox-static");
        for applet in ["true", "sleep"] {
            symlink("busybox", bin.join(applet)).unwrap();
        }
        Runtime {
            name,
            program,
            root: dir.join(format!("{name}.state")),
            bundle,
        }
    }

    fn write_spec(&self, arguments: &[&str]) {
        let cgroup = format!("/podling-bench-{}/{}", std::process::id(), self.name);
        fs::write(
            self.bundle.join("config.json"),
            spec(arguments, &cgroup).to_string(),
        )
        .unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Result<Duration, String> {
        let log = self.bundle.join("stderr");
        let mut command = Command::new(&self.program);
        command
            .arg("--root")
            .arg(&self.root)
            .args(arguments)
            .current_dir(&self.bundle);
        // A file, since a pipe would stay open for as long as the container runs.
        let stderr = fs::File::create(&log).unwrap();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        let start = Instant::now();
        let status = command.status().map_err(|error| error.to_string())?;
        let duration = start.elapsed();
        if status.success() {
            return Ok(duration);
        }
        let text = fs::read_to_string(&log).unwrap_or_default();
        Err(format!(
            "{}: {status}: {}",
            arguments.join(" "),
            text.lines().next_back().unwrap_or_default()
        ))
    }

    /// A container that does nothing, from its making to its removal.
    fn run_once(&self) -> Result<Duration, String> {
        self.write_spec(&["/bin/true"]);
        self.command(&["run", "bench"])
            .inspect_err(|_| drop(self.command(&["delete", "-f", "bench"])))
    }

    /// A container's life, step by step.
    fn life(&self) -> Result<Vec<Duration>, String> {
        self.write_spec(&["/bin/sleep", "864000"]);
        let mut durations = Vec::new();
        for step in STEPS {
            let arguments: &[&str] = match step {
                "exec" => &["exec", "bench", "/bin/true"],
                "kill" => &["kill", "bench", "KILL"],
                "delete" => {
                    thread::sleep(Duration::from_millis(20));
                    &["delete", "bench"]
                }
                step => &[step, "bench"],
            };
            let done = self
                .command(arguments)
                .inspect_err(|_| drop(self.command(&["delete", "-f", "bench"])))?;
            durations.push(done);
        }
        Ok(durations)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let hierarchies = fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        for root in hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]) {
            let parent = root.join(format!("podling-bench-{}", std::process::id()));
            drop(fs::remove_dir(parent.join(self.name)));
            drop(fs::remove_dir(parent));
        }
    }
}

/// A container as Kubernetes would have it, without a seccomp profile.
fn spec(arguments: &[&str], cgroup: &str) -> Value {
    let capabilities = [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE",
    ];
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": arguments, "env": ["PATH=/bin"], "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "bench",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
             "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "resources": {
                "devices": [{"allow": false, "access": "rwm"}],
                "memory": {"limit": 134_217_728}, "cpu": {"shares": 204, "quota": 30_000, "period": 100_000},
                "pids": {"limit": 100},
            },
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
                "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
            ],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}
