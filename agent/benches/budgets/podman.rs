//! Debian's podman as a peer: `podman kube play` with storage, network configuration and locks of its own.

use std::fs;
use std::path::{Path, PathBuf};

use crate::node::{Node, Run, image};

/// A podman that knows nothing of the machine's own.
pub(crate) struct Podman {
    node: Node,
    manifest: PathBuf,
}

impl Podman {
    /// None with a reason when podman cannot run pods here.
    pub(crate) fn new() -> Result<Podman, String> {
        let node = Node::new();
        let unified = Path::new("/sys/fs/cgroup/unified");
        if unified.exists() {
            // crun, which it uses, refuses hybrid machines.
            drop(node.command("umount").arg(unified).status());
        }
        let archive = node.path("pause.tar");
        // Its pause container runs what the image says.
        image::busybox_archive_with(
            &archive,
            "localhost/busybox:latest",
            &["/bin/sleep", "infinity"],
        );
        fs::write(node.path("containers.conf"), configuration(&node)).unwrap();
        let podman = Podman {
            manifest: node.path("pod.yaml"),
            node,
        };
        let loaded = podman.run(&["load", "-i", archive.to_str().unwrap()])?;
        if loaded.code != 0 {
            Err(last_line(&loaded))
        } else {
            Ok(podman)
        }
    }

    /// A directory for the pod to write to.
    pub(crate) fn dir(&self) -> PathBuf {
        self.node.path("data")
    }

    /// Starts a pod.
    pub(crate) fn up(&self, manifest: &str) -> Result<(), String> {
        fs::write(&self.manifest, manifest).unwrap();
        let done = self.run(&["kube", "play", self.manifest.to_str().unwrap()])?;
        if done.code != 0 {
            Err(last_line(&done))
        } else {
            Ok(())
        }
    }

    /// Ends it.
    pub(crate) fn down(&self) -> Result<(), String> {
        let done = self.run(&["kube", "down", self.manifest.to_str().unwrap()])?;
        if done.code != 0 {
            Err(last_line(&done))
        } else {
            Ok(())
        }
    }

    fn run(&self, arguments: &[&str]) -> Result<Run, String> {
        let mut command = self.node.command("podman");
        command.env("CONTAINERS_CONF", self.node.path("containers.conf"));
        for (option, dir) in [
            ("--root", "data/storage"),
            ("--runroot", "run/storage"),
            ("--tmpdir", "run/tmp"),
        ] {
            command.arg(option).arg(self.node.path(dir));
        }
        command.args([
            "--storage-driver",
            "overlay",
            "--runtime",
            "crun",
            "--cgroup-manager",
            "cgroupfs",
        ]);
        // The containers outlive the command and would keep a pipe open.
        let (out, err) = (self.node.path("out"), self.node.path("err"));
        command
            .stdout(fs::File::create(&out).unwrap())
            .stderr(fs::File::create(&err).unwrap());
        let status = command
            .args(arguments)
            .status()
            .map_err(|error| error.to_string())?;
        Ok(Run {
            code: status.code().unwrap_or(-1),
            stdout: fs::read_to_string(out).unwrap_or_default(),
            stderr: fs::read_to_string(err).unwrap_or_default(),
        })
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        drop(self.run(&["pod", "rm", "-f", "-t", "0", "-a"]));
        for root in fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            remove_cgroups(&root.path().join("libpod_parent"));
        }
    }
}

/// Removes a cgroup and those below it that are empty: podman leaves its own.
fn remove_cgroups(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    drop(fs::remove_dir(dir));
}

fn configuration(node: &Node) -> String {
    // Its default limits are above what this process may set where it lacks CAP_SYS_RESOURCE.
    let files = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .unwrap()
        .1;
    let network = node.path("data/networks");
    format!(
        "[containers]\ndefault_ulimits = [\"nofile={files}:{files}\", \"nproc=1024:1024\"]\nlog_driver = \"k8s-file\"\n\
         [engine]\ninfra_image = \"localhost/busybox:latest\"\nevents_logger = \"none\"\nlock_type = \"file\"\n\
         [network]\nnetwork_backend = \"netavark\"\nnetwork_config_dir = \"{}\"\n",
        network.display()
    )
}

fn last_line(run: &Run) -> String {
    run.stderr
        .lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or("no message")
        .to_string()
}
