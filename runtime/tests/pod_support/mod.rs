//! A pod of its own for a test: a real supervisor in fresh network and mount namespaces, and a rootfs from Debian's
//! `busybox-static`.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use podling_runtime::cgroup::{Cgroup, Layout};
use podling_runtime::pod::client::Client;
use podling_runtime::pod::plan::Plan;
use podling_runtime::pod::protocol::{PLAN_FILE, Reply, Request};
use podling_runtime::pod::snapshot::{ContainerSnapshot, ContainerState, Snapshot, Stage};
use serde_json::{Value, json};
use tempfile::TempDir;

#[path = "../userland/mod.rs"]
mod userland;

use userland::{DEADLINE, install_busybox, wait_for};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A pod.
pub struct Pod {
    dir: TempDir,
    pub plan: Value,
    supervisor: Option<Child>,
    cgroup: PathBuf,
}

impl Pod {
    /// A plan with these containers; nothing runs yet.
    pub fn new(containers: Vec<Value>) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let cgroup = PathBuf::from(format!("/podling-test-{}-{number}", std::process::id()));
        make_rootfs(&dir.path().join("layer"));
        for sub in ["run/pods/uid", "logs", "scratch"] {
            fs::create_dir_all(dir.path().join(sub)).expect("a directory");
        }
        let plan = json!({
            "version": 1,
            "generation": 1,
            "pod": { "namespace": "default", "name": "web", "uid": "uid" },
            "hostname": "web",
            "cgroup": { "path": cgroup },
            "network": { "kind": "isolated" },
            "restart_policy": "always",
            "termination_grace_secs": 30,
            "back_off": { "initial_ms": 50, "max_ms": 200, "reset_ms": 600_000 },
            "containers": [],
        });
        let mut pod = Self {
            dir,
            plan,
            supervisor: None,
            cgroup,
        };
        let containers = containers.into_iter().map(|c| pod.complete(c)).collect();
        pod.plan["containers"] = Value::Array(containers);
        pod
    }

    /// A test's short container with all that a plan needs.
    pub fn complete(&self, container: Value) -> Value {
        let name = container["name"].as_str().expect("a name").to_owned();
        let layer = self.dir.path().join("layer");
        let scratch = self.dir.path().join("scratch").join(&name);
        let logs = self.dir.path().join("logs").join(&name);
        let mut all = json!({
            "kind": "main",
            "spec_hash": "1",
            "source": {
                "kind": "ready",
                "rootfs": { "layers": [layer], "scratch": scratch },
                "spec": spec(&container["run"], &container["resources"]),
                "seccomp": { "kind": "runtime_default" },
            },
            "stop_signal": 15,
            "log": { "dir": logs, "max_bytes": 10_485_760, "max_files": 5 },
        });
        for (key, value) in container.as_object().expect("an object") {
            if key != "run" && key != "resources" {
                all[key] = value.clone();
            }
        }
        all
    }

    pub fn pod_dir(&self) -> PathBuf {
        self.dir.path().join("run/pods/uid")
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    /// Writes the plan and starts the supervisor, as the agent does.
    pub fn start(&mut self) -> &mut Self {
        self.write_plan();
        self.start_supervisor();
        self
    }

    pub fn write_plan(&self) {
        let plan: Plan = serde_json::from_value(self.plan.clone()).expect("a plan");
        let bytes = serde_json::to_vec(&plan).expect("a plan");
        self.replace_plan(&bytes);
    }

    /// As the agent does: never in place.
    pub fn replace_plan(&self, bytes: &[u8]) {
        let new = self.pod_dir().join("plan.json.new");
        fs::write(&new, bytes).expect("a file");
        fs::rename(new, self.pod_dir().join(PLAN_FILE)).expect("renamed");
    }

    pub fn start_supervisor(&mut self) {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.pod_dir().join("supervisor.log"))
            .expect("a log");
        let mut child = Command::new("unshare")
            .args(["--net", "--mount", "--propagation", "private", "--"])
            .arg(env!("CARGO_BIN_EXE_podling-pod"))
            .arg(self.pod_dir())
            .stdin(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("a supervisor");
        let mut stdin = child.stdin.take().expect("a pipe");
        stdin.write_all(b"go\n").expect("a reader");
        self.supervisor = Some(child);
    }

    pub fn supervisor_pid(&self) -> u32 {
        self.supervisor.as_ref().expect("a supervisor").id()
    }

    /// SIGKILL to the supervisor and nothing else.
    pub fn kill_supervisor(&mut self) {
        let mut child = self.supervisor.take().expect("a supervisor");
        child.kill().expect("a process");
        child.wait().expect("a child");
    }

    /// How the supervisor exits.
    pub fn wait_for_supervisor(&mut self) -> std::process::ExitStatus {
        let mut child = self.supervisor.take().expect("a supervisor");
        wait_for(|| child.try_wait().expect("a child"))
            .unwrap_or_else(|| panic!("the supervisor stays: {}", self.journal()))
    }

    pub fn client(&self) -> Client {
        let end = Instant::now() + DEADLINE;
        loop {
            match Client::connect(&self.pod_dir()) {
                Ok(client) => return client,
                Err(e) if Instant::now() > end => panic!("{e}: {}", self.journal()),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    pub fn ask(&self, request: &Request) -> Reply {
        self.client()
            .request(request)
            .unwrap_or_else(|e| panic!("{e}: {}", self.journal()))
            .0
    }

    pub fn reload(&mut self) {
        self.write_plan();
        assert_eq!(self.ask(&Request::Reload), Reply::Ok);
    }

    pub fn snapshot(&self) -> Snapshot {
        let (reply, _) = self.client().request(&Request::Subscribe).expect("a reply");
        match reply {
            Reply::Snapshot(snapshot) => *snapshot,
            other => panic!("no snapshot: {other:?}"),
        }
    }

    /// Waits until a snapshot is as it should be.
    pub fn until(&self, what: &str, good: impl Fn(&Snapshot) -> bool) -> Snapshot {
        let client = self.client();
        client.send(&Request::Subscribe).expect("a supervisor");
        let end = Instant::now() + DEADLINE;
        let mut last = None;
        while Instant::now() < end {
            match client.try_recv() {
                Ok(Some((Reply::Snapshot(snapshot), _))) => {
                    if good(&snapshot) {
                        return *snapshot;
                    }
                    last = Some(snapshot);
                }
                Ok(Some((other, _))) => panic!("{other:?}"),
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                Err(e) => panic!("{e} while waiting for: {what}: {}", self.journal()),
            }
        }
        panic!("not so: {what}: {last:#?}\n{}", self.journal());
    }

    pub fn until_container(
        &self,
        name: &str,
        what: &str,
        good: impl Fn(&ContainerSnapshot) -> bool,
    ) -> ContainerSnapshot {
        let snapshot = self.until(&format!("{name}: {what}"), |s| {
            s.containers.iter().any(|c| c.name == name && good(c))
        });
        of(&snapshot, name).clone()
    }

    pub fn until_running(&self, name: &str) -> i32 {
        let container = self.until_container(name, "runs", |c| pid(c).is_some());
        pid(&container).expect("a pid")
    }

    pub fn until_ended(&self) -> Snapshot {
        self.until("the pod has ended", |s| {
            matches!(s.stage, Stage::Ended { .. })
        })
    }

    /// Waits for something outside of snapshots.
    pub fn wait_for<T>(&self, what: &str, look: impl FnMut() -> Option<T>) -> T {
        wait_for(look).unwrap_or_else(|| panic!("not so: {what}: {}", self.journal()))
    }

    pub fn terminate(&self, grace_secs: u64) -> Snapshot {
        let reason = "a test".to_owned();
        assert_eq!(
            self.ask(&Request::Terminate { grace_secs, reason }),
            Reply::Ok
        );
        self.until_ended()
    }

    pub fn log_path(&self, name: &str, run: u32) -> PathBuf {
        self.dir.path().join(format!("logs/{name}/{run}.log"))
    }

    /// The lines of one run's log, without time and stream.
    pub fn log(&self, name: &str, run: u32) -> Vec<String> {
        let text = fs::read(self.log_path(name, run)).unwrap_or_default();
        String::from_utf8_lossy(&text)
            .lines()
            .map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned())
            .collect()
    }

    pub fn journal(&self) -> String {
        fs::read_to_string(self.pod_dir().join("supervisor.log")).unwrap_or_default()
    }

    pub fn cgroup(&self) -> Cgroup {
        Cgroup::open(&Layout::detect().expect("cgroups"), &self.cgroup)
    }

    pub fn cgroup_path(&self) -> &Path {
        &self.cgroup
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Some(mut child) = self.supervisor.take() {
            child.kill().expect("a process");
            child.wait().expect("a child");
        }
        let cgroup = self.cgroup();
        cgroup.kill_all().expect("a cgroup");
        cgroup.delete().expect("a cgroup");
    }
}

pub fn of<'a>(snapshot: &'a Snapshot, name: &str) -> &'a ContainerSnapshot {
    let found = snapshot.containers.iter().find(|c| c.name == name);
    found.expect("the container")
}

pub fn pid(container: &ContainerSnapshot) -> Option<i32> {
    match container.state {
        ContainerState::Running { pid, .. } => Some(pid),
        _ => None,
    }
}

pub fn is_alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        !stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .starts_with(" Z")
    })
}

/// A probe that begins at once and is tried often.
pub fn probe(handler: &Value) -> Value {
    json!({ "handler": handler, "initial_delay_ms": 0, "period_ms": 100, "timeout_ms": 10_000,
            "success_threshold": 1, "failure_threshold": 100 })
}

/// busybox and its names.
fn make_rootfs(layer: &Path) {
    install_busybox(&layer.join("bin"));
    for dir in ["tmp", "proc", "sys", "dev", "etc"] {
        fs::create_dir_all(layer.join(dir)).expect("a directory");
    }
}

/// An OCI spec that runs a shell script.
fn spec(script: &Value, resources: &Value) -> Value {
    let script = script.as_str().unwrap_or("exec sleep 1000");
    let mut linux = json!({ "namespaces": [] });
    if !resources.is_null() {
        linux["resources"] = resources.clone();
    }
    let capabilities = ["CAP_KILL", "CAP_CHOWN", "CAP_SETUID", "CAP_SETGID"];
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["/bin/sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
              "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
        ],
        "linux": linux,
    })
}
