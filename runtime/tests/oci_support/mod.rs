//! Bundles for tests of the OCI command: a root file system made from Debian's static busybox, in a mount and network
//! namespace of the test's own thread.
#![allow(dead_code, reason = "each test program uses a part of this")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use oci_spec::runtime::{Linux, Mount, MountBuilder, Process, Spec};

#[path = "../program/mod.rs"]
mod program;
#[path = "../userland/mod.rs"]
mod userland;

#[allow(unused_imports, reason = "each test program uses a part of this")]
pub use program::RUNTIME;
use userland::install_busybox;
pub use userland::{stderr, stdout, until};

/// A bundle, its container's name and the state directory.
pub struct Bundle {
    directory: tempfile::TempDir,
    pub spec: Spec,
    pub id: String,
    pub runtime: PathBuf,
    /// Who calls the runtime; none: the test's own user, root.
    pub user: Option<u32>,
}

/// Leaves the machine's mount and network namespaces, for this thread and what it starts.
pub fn isolate() {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET)
        .expect("these tests need root");
    nix::mount::mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .expect("makes mounts private");
}

/// A program as an ordinary user without groups (util-linux' setpriv).
pub fn as_user(user: u32, program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={user}"))
        .arg(format!("--regid={user}"))
        .args(["--clear-groups", "--inh-caps=-all"])
        .arg(program);
    command
}

/// The mounts that this thread sees.
pub fn mounts() -> String {
    fs::read_to_string("/proc/thread-self/mountinfo").expect("mountinfo")
}

/// Fills a directory with a small userland.
pub fn make_rootfs(root: &Path) {
    install_busybox(&root.join("bin"));
    fs::create_dir(root.join("tmp")).expect("tmp");
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("mode");
}

impl Bundle {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        isolate();
        let directory = tempfile::tempdir().expect("directory");
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).expect("mode");
        make_rootfs(&directory.path().join("rootfs"));
        let id = format!(
            "podling-test-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let mut bundle = Self {
            directory,
            spec: Spec::default(),
            id,
            runtime: RUNTIME.into(),
            user: None,
        };
        let cgroup = bundle.cgroup();
        bundle.linux().set_cgroups_path(Some(cgroup));
        if let Some(root) = bundle.spec.root_mut() {
            root.set_readonly(Some(false));
        }
        bundle
    }

    /// One whose first process runs a script.
    pub fn sh(script: &str) -> Self {
        let mut bundle = Self::new();
        bundle.args(&["/bin/sh", "-c", script]);
        bundle
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn rootfs(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    pub fn state_directory(&self) -> PathBuf {
        self.path().join("state")
    }

    pub fn cgroup(&self) -> PathBuf {
        Path::new("/").join(&self.id)
    }

    /// True when there is a cgroup of this container's in any hierarchy.
    pub fn cgroup_exists(&self) -> bool {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").expect("cgroups");
        hierarchies
            .flatten()
            .any(|h| h.path().join(&self.id).exists())
            || Path::new("/sys/fs/cgroup").join(&self.id).exists()
    }

    pub fn linux(&mut self) -> &mut Linux {
        self.spec.linux_mut().as_mut().expect("linux")
    }

    pub fn process(&mut self) -> &mut Process {
        self.spec.process_mut().as_mut().expect("process")
    }

    pub fn args(&mut self, args: &[&str]) {
        let args = args.iter().map(|&a| a.to_owned()).collect();
        self.process().set_args(Some(args));
    }

    pub fn mount(&mut self, mount: Mount) {
        self.spec.mounts_mut().get_or_insert_default().push(mount);
    }

    pub fn bind(&mut self, source: &Path, destination: &str, options: &[&str]) {
        let options: Vec<String> = options.iter().map(|&o| o.to_owned()).collect();
        self.mount(
            MountBuilder::default()
                .typ("bind")
                .source(source)
                .destination(destination)
                .options(options)
                .build()
                .expect("a mount"),
        );
    }

    /// Writes config.json.
    pub fn write(&self) {
        self.spec
            .save(self.path().join("config.json"))
            .expect("config.json");
    }

    /// The runtime with the state directory given.
    pub fn command(&self) -> Command {
        let mut command = match self.user {
            None => Command::new(&self.runtime),
            Some(user) => as_user(user, &self.runtime),
        };
        command
            .arg("--root")
            .arg(self.state_directory())
            .stdin(Stdio::null())
            .env("SECRET_OF_THE_CALLER", "must not be seen");
        command
    }

    /// Runs a command of the runtime and takes what it prints.
    pub fn runtime(&self, args: &[&str]) -> Output {
        let out = tempfile::tempfile().expect("file");
        let err = tempfile::tempfile().expect("file");
        // Files, not pipes: a container that stays keeps a pipe open.
        let status = self
            .command()
            .args(args)
            .stdout(out.try_clone().expect("clone"))
            .stderr(err.try_clone().expect("clone"))
            .status()
            .expect("runs");
        Output {
            status,
            stdout: read_again(out),
            stderr: read_again(err),
        }
    }

    /// As [`Self::runtime`], and it must work; gives what it prints.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.runtime(args);
        assert!(
            output.status.success(),
            "{args:?}: {}: {}",
            output.status,
            stderr(&output)
        );
        stdout(&output)
    }

    /// As [`Self::runtime`], and it must fail; gives its message.
    pub fn fails(&self, args: &[&str]) -> String {
        let output = self.runtime(args);
        assert!(
            !output.status.success(),
            "{args:?} worked: {}",
            stdout(&output)
        );
        stderr(&output)
    }

    pub fn bundle_arg(&self) -> String {
        self.path().to_str().expect("UTF-8").to_owned()
    }

    /// `run`, which must work.
    pub fn run(&self) -> String {
        self.write();
        self.ok(&["run", "-b", &self.bundle_arg(), &self.id])
    }

    /// `run`, whatever the script's last command gave; what it printed.
    pub fn run_with_any_exit(&self) -> String {
        self.write();
        stdout(&self.runtime(&["run", "-b", &self.bundle_arg(), &self.id]))
    }

    /// `run`, which must fail, and leave nothing.
    pub fn run_fails(&self) -> String {
        self.write();
        let before = mounts();
        let message = self.fails(&["run", "-b", &self.bundle_arg(), &self.id]);
        assert_eq!(mounts(), before, "mounts are left");
        assert!(!self.cgroup_exists(), "a cgroup is left");
        assert!(
            !self.state_directory().join(&self.id).exists(),
            "state is left"
        );
        message
    }

    pub fn create(&self) {
        self.write();
        self.ok(&["create", "-b", &self.bundle_arg(), &self.id]);
    }

    /// A container that runs until it is killed.
    pub fn running() -> Self {
        let bundle = Self::sh("touch /tmp/up; while true; do sleep 1000; done");
        bundle.create();
        bundle.ok(&["start", &bundle.id]);
        until("the container is up", || {
            bundle.rootfs().join("tmp/up").exists()
        });
        bundle
    }

    pub fn exec(&self, command: &[&str]) -> Output {
        let mut args = vec!["exec", self.id.as_str()];
        args.extend_from_slice(command);
        self.runtime(&args)
    }

    pub fn state(&self) -> serde_json::Value {
        serde_json::from_str(&self.ok(&["state", &self.id])).expect("JSON")
    }

    pub fn status(&self) -> String {
        self.state()["status"]
            .as_str()
            .expect("a status")
            .to_owned()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let output = self.runtime(&["delete", "--force", &self.id]);
        if !output.status.success() && !std::thread::panicking() {
            panic!("cannot delete: {}", stderr(&output));
        }
    }
}

fn read_again(mut file: fs::File) -> Vec<u8> {
    use std::io::{Read, Seek};
    let mut text = Vec::new();
    file.rewind().expect("rewinds");
    file.read_to_end(&mut text).expect("reads");
    text
}
