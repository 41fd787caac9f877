//! A Podling node for tests: its own network and mount namespace, its own directories, its own cgroup below each
//! hierarchy. Dropping it ends every process it started and leaves nothing.
//!
//! ```text
//! test process ── holder (sleep)            owns the namespaces
//!              ├─ podling agent …           setns into them
//!              ├─ podling get, exec, …      the same
//!              └─ threads with setns        HTTP and TCP from "the host"
//! ```
#![allow(dead_code)]

pub mod image;
pub mod registry;
mod remains;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use serde_json::Value;

/// Long enough for a loaded machine of one slow core; a test that passes never waits for it.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// A node, with or without a running agent.
pub struct Node {
    dir: tempfile::TempDir,
    /// The run directory, where it is elsewhere.
    run: Option<tempfile::TempDir>,
    holder: Child,
    agent: Option<Child>,
    cgroup: String,
    /// More arguments for `podling agent`.
    pub agent_args: Vec<String>,
    /// More environment for every `podling` command.
    pub env: Vec<(String, String)>,
}

/// What a command printed and how it ended.
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// The standard output of a command that must succeed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(
            self.code, 0,
            "stdout: {}\nstderr: {}",
            self.stdout, self.stderr
        );
        self.stdout
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The directory of the built programs; `podling-pod` must be there too (`cargo build --workspace --bins`).
pub fn bin_dir() -> PathBuf {
    let dir = std::env::var_os("PODLING_BIN_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| {
            Path::new(env!("CARGO_BIN_EXE_podling"))
                .parent()
                .unwrap()
                .to_owned()
        });
    assert!(
        dir.join("podling-pod").exists(),
        "{} has no podling-pod: run `cargo build --workspace --bins` first, as `make test` does",
        dir.display()
    );
    dir
}

impl Node {
    /// Namespaces and directories, no agent yet.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(
            nix::unistd::geteuid().is_root(),
            "tests on real containers need root"
        );
        let mut holder = Command::new("sleep");
        holder
            .arg("infinity")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // SAFETY: between fork and exec only async-signal-safe calls are made (prctl, unshare, mount).
        #[allow(unsafe_code)]
        unsafe {
            holder.pre_exec(|| {
                nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
                unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
                nix::mount::mount(
                    None::<&str>,
                    "/",
                    None::<&str>,
                    nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE,
                    None::<&str>,
                )?;
                Ok(())
            });
        }
        let node = Self {
            dir: tempfile::Builder::new()
                .prefix("podling-test-")
                .tempdir()
                .unwrap(),
            holder: holder.spawn().expect("sleep"),
            run: None,
            agent: None,
            cgroup: format!(
                "/podling-test-{}-{}",
                std::process::id(),
                COUNT.fetch_add(1, Ordering::Relaxed)
            ),
            agent_args: Vec::new(),
            env: Vec::new(),
        };
        for name in ["manifests", "data", "run", "logs"] {
            fs::create_dir(node.path(name)).unwrap();
        }
        let up = node
            .command("ip")
            .args(["link", "set", "lo", "up"])
            .status()
            .unwrap();
        assert!(up.success());
        node
    }

    /// A node with an agent that watches an empty manifest directory.
    pub fn start() -> Self {
        let mut node = Self::new();
        node.start_agent();
        node
    }

    /// Namespaces and directories, with the run directory in memory, as `/run` is on a real machine.
    pub fn like_a_machine() -> Self {
        let mut node = Self::new();
        let run = tempfile::Builder::new()
            .prefix("podling-test-")
            .tempdir_in("/dev/shm");
        node.run = Some(run.expect("a tmpfs at /dev/shm"));
        node
    }

    /// A path below the node's own directory: `manifests`, `data`, `run`, `logs`.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        let name = name.as_ref();
        match (&self.run, name.strip_prefix("run")) {
            (Some(run), Ok(below)) => run.path().join(below),
            _ => self.dir.path().join(name),
        }
    }

    /// The node's cgroup below each hierarchy.
    pub fn cgroup(&self) -> &str {
        &self.cgroup
    }

    /// A command inside the node's namespaces.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let net = self.namespace("net");
        let mnt = self.namespace("mnt");
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).current_dir("/");
        // SAFETY: between fork and exec only async-signal-safe calls are made (setns).
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(move || {
                setns(net.as_fd(), CloneFlags::CLONE_NEWNET)?;
                setns(mnt.as_fd(), CloneFlags::CLONE_NEWNS)?;
                Ok(())
            });
        }
        command
    }

    /// `podling ARGS…` of this node.
    pub fn podling(&self, args: &[&str]) -> Run {
        self.podling_command(args).output().expect("podling").into()
    }

    /// `podling ARGS…` of this node, not yet started.
    pub fn podling_command(&self, args: &[&str]) -> Command {
        let mut command = self.command(bin_dir().join("podling"));
        command.envs(self.env.iter().map(|(k, v)| (k, v)));
        command.env("PODLING_RUN_DIR", self.path("run"));
        command.env("PODLING_DATA_DIR", self.path("data"));
        command.env("PODLING_LOG_DIR", self.path("logs"));
        command.args(args);
        command
    }

    /// Starts the agent and waits until it answers.
    pub fn start_agent(&mut self) {
        assert!(self.agent.is_none());
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path("agent.log"))
            .unwrap();
        let manifests = self.path("manifests");
        let mut command =
            self.podling_command(&["agent", "--manifests", manifests.to_str().unwrap()]);
        command.args(["--cgroup-parent", &self.cgroup]);
        command.args(&self.agent_args);
        if !self
            .agent_args
            .iter()
            .any(|argument| argument == "--config")
        {
            // How full the disk is, is this machine's matter.
            let config = self.path("default.yaml");
            fs::write(&config, "images: {gc: {highThresholdPercent: 100}}\n").unwrap();
            command.arg("--config").arg(config);
        }
        command.env("PODLING_LOG", "info,podling_agent=debug");
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.agent = Some(command.spawn().expect("podling agent"));
        self.wait("the agent answers", || {
            (self.podling(&["status"]).code == 0).then_some(())
        });
    }

    /// SIGKILL to the agent alone.
    pub fn kill_agent(&mut self) {
        let mut agent = self.agent.take().expect("a running agent");
        agent.kill().unwrap();
        agent.wait().unwrap();
    }

    /// SIGTERM to the agent, and its exit code.
    pub fn stop_agent(&mut self) -> i32 {
        let mut agent = self.agent.take().expect("a running agent");
        let pid = nix::unistd::Pid::from_raw(agent.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        agent.wait().unwrap().code().unwrap_or(-1)
    }

    /// The agent's process id.
    pub fn agent_pid(&self) -> u32 {
        self.agent.as_ref().expect("a running agent").id()
    }

    /// Puts a manifest file into the directory, atomically.
    pub fn apply(&self, file: &str, manifest: &str) {
        let hidden = self.path("manifests").join(format!(".{file}.new"));
        fs::write(&hidden, manifest).unwrap();
        fs::rename(&hidden, self.path("manifests").join(file)).unwrap();
    }

    /// Takes a manifest file away.
    pub fn remove(&self, file: &str) {
        fs::remove_file(self.path("manifests").join(file)).unwrap();
    }

    /// A pod of the default namespace as the API shows it.
    pub fn pod(&self, name: &str) -> Option<Value> {
        let pods: Value =
            serde_json::from_str(&self.podling(&["get", "pods", "-A", "-o", "json"]).stdout)
                .ok()?;
        pods["items"]
            .as_array()?
            .iter()
            .find(|p| p["metadata"]["name"] == name)
            .cloned()
    }

    /// Waits until a pod of the default namespace satisfies `condition`, and returns it.
    #[track_caller]
    pub fn wait_pod(&self, name: &str, what: &str, condition: impl Fn(&Value) -> bool) -> Value {
        self.wait(&format!("pod {name}: {what}"), || {
            self.pod(name).filter(|p| condition(p))
        })
    }

    /// Waits until a pod is ready.
    #[track_caller]
    pub fn wait_ready(&self, name: &str) -> Value {
        self.wait_pod(name, "is ready", is_ready)
    }

    /// Waits until a pod is gone.
    #[track_caller]
    pub fn wait_gone(&self, name: &str) {
        self.wait(&format!("pod {name} is gone"), || {
            self.pod(name).is_none().then_some(())
        });
    }

    /// Waits until `probe` yields a value; fails with all that is known when it does not in time.
    #[track_caller]
    pub fn wait<T>(&self, what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(value) = probe() {
                return value;
            }
            if Instant::now() > end {
                panic!("waited {DEADLINE:?} in vain: {what}\n{}", self.report());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Status, pods and the agent's log, for a failing test.
    pub fn report(&self) -> String {
        let mut log = String::new();
        if let Ok(mut file) = File::open(self.path("agent.log")) {
            let mut bytes = Vec::new();
            if file.read_to_end(&mut bytes).is_ok() {
                let from = bytes.len().saturating_sub(12_000);
                log = String::from_utf8_lossy(&bytes[from..]).into_owned();
            }
        }
        let status = self.podling(&["status"]);
        let pods = self.podling(&["get", "pods", "-A", "-o", "yaml"]);
        format!(
            "== status\n{}{}\n== pods\n{}{}\n== agent log\n{log}",
            status.stdout, status.stderr, pods.stdout, pods.stderr
        )
    }

    /// Runs `f` on a thread inside the node's network namespace.
    pub fn in_network<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let net = self.namespace("net");
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    setns(net.as_fd(), CloneFlags::CLONE_NEWNET).expect("setns");
                    f()
                })
                .join()
                .unwrap()
        })
    }

    /// Connects to ports of the node's loopback interface, also after the node was borrowed.
    pub fn connector(&self) -> impl Fn(u16) -> TcpStream + Send + 'static {
        let net = self.namespace("net");
        move |port| {
            std::thread::scope(|scope| {
                let connecting = scope.spawn(|| {
                    setns(net.as_fd(), CloneFlags::CLONE_NEWNET).expect("setns");
                    TcpStream::connect(("127.0.0.1", port)).expect("connected")
                });
                connecting.join().unwrap()
            })
        }
    }

    /// Puts a file or directory over another one, in the node's mount namespace alone.
    pub fn bind(&self, source: &Path, target: &str) {
        let mut command = self.command("mount");
        let bound = command.arg("--bind").arg(source).arg(target).status();
        assert!(bound.unwrap().success(), "{target}");
    }

    /// GET over HTTP/1.0 from the node: status code and body; None when nobody answers.
    pub fn http(&self, address: SocketAddr, path: &str) -> Option<(u16, String)> {
        self.in_network(|| {
            let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
            stream
                .set_read_timeout(Some(Duration::from_secs(10)))
                .ok()?;
            write!(
                stream,
                "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n"
            )
            .ok()?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).ok()?;
            let text = String::from_utf8_lossy(&answer).into_owned();
            let (head, body) = text.split_once("\r\n\r\n")?;
            Some((
                head.split_whitespace().nth(1)?.parse().ok()?,
                body.to_owned(),
            ))
        })
    }

    /// The address of a pod.
    #[track_caller]
    pub fn pod_address(&self, pod: &Value, port: u16) -> SocketAddr {
        let ip = pod["status"]["podIP"]
            .as_str()
            .unwrap_or_else(|| panic!("a pod IP in {pod:#}"));
        SocketAddr::new(ip.parse().unwrap(), port)
    }

    /// Loads the busybox image as `localhost/busybox:latest`.
    pub fn load_busybox(&self) {
        let archive = self.path("busybox.tar");
        image::busybox_archive(&archive, "localhost/busybox:latest");
        self.podling(&["images", "load", archive.to_str().unwrap()])
            .ok();
    }

    /// A cgroup file of a container, read from the hierarchy of `controller` (v1) or the unified one.
    pub fn cgroup_file(&self, controller: &str, below: &str, file: &str) -> Option<String> {
        let root = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            PathBuf::from("/sys/fs/cgroup")
        } else {
            Path::new("/sys/fs/cgroup").join(controller)
        };
        let path = root
            .join(self.cgroup.trim_start_matches('/'))
            .join(below)
            .join(file);
        fs::read_to_string(path).ok().map(|s| s.trim().to_owned())
    }

    fn namespace(&self, kind: &str) -> File {
        // The holder unshares before it becomes `sleep`, and `spawn` returns only after that.
        File::open(format!("/proc/{}/ns/{kind}", self.holder.id())).expect("the holder's namespace")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            drop(agent.kill());
            drop(agent.wait());
        }
        self.kill_everything();
        drop(self.holder.kill());
        drop(self.holder.wait());
    }
}

/// The pod's condition Ready is True.
pub fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready") == Some("True")
}

/// The status of a pod's condition.
pub fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a str> {
    pod["status"]["conditions"]
        .as_array()?
        .iter()
        .find(|c| c["type"] == kind)?["status"]
        .as_str()
}

/// A container's status by name.
pub fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    ["containerStatuses", "initContainerStatuses"]
        .iter()
        .filter_map(|field| pod["status"][field].as_array())
        .flatten()
        .find(|c| c["name"] == name)
        .unwrap_or(&Value::Null)
}

/// A container's restart count.
pub fn restarts(pod: &Value, name: &str) -> u64 {
    container(pod, name)["restartCount"].as_u64().unwrap_or(0)
}
