//! A node in ordinary use: it starts, runs a pod, is asked about it, and ends.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Result, trace};

/// Long enough for each step on a busy machine.
const STEP: Duration = Duration::from_secs(60);
/// The image is Podling's own program, so that none has to be brought.
const POD: &str = r#"apiVersion: v1
kind: Pod
metadata: {name: layout}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: podling.local/demo:latest
    args: [serve, --port, "8080"]
    resources: {limits: {cpu: 300m, memory: 200Mi}}
    readinessProbe: {httpGet: {path: /readyz, port: 8080}, periodSeconds: 1}
    livenessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
"#;

/// Which of `functions` the agent enters.
pub(crate) fn entered(
    program: &Path,
    dir: &Path,
    functions: &BTreeSet<u64>,
) -> Result<BTreeSet<u64>> {
    let node = Node {
        program: program.to_owned(),
        dir: dir.to_owned(),
    };
    fs::create_dir_all(dir.join("manifests"))?;
    let cgroup = format!("/podling-layout-{}", std::process::id());
    let mut words: Vec<OsString> = vec![program.into(), "agent".into()];
    words.extend(node.options(&["data", "run", "log"]));
    words.extend(node.options(&["manifests"]));
    let others = ["--cgroup-parent", &cgroup, "--bridge", "layout0"];
    words.extend(others.map(OsString::from));
    let words: Vec<&OsStr> = words.iter().map(OsString::as_os_str).collect();
    let mut user = None;
    let entered = trace::entered(&words, functions, |agent| {
        user = Some(thread::spawn(move || node.use_it(agent)));
    });
    remove_cgroups(&cgroup[1..]);
    let entered = entered?;
    let used = user.map(thread::JoinHandle::join);
    match used {
        Some(Ok(Ok(()))) => Ok(entered),
        Some(Ok(Err(error))) => Err(error.into()),
        Some(Err(_)) | None => Err("the node was not used".into()),
    }
}

/// Removes what the agent leaves for the next one. What is busy stays: then the node was not used as it should.
fn remove_cgroups(name: &str) {
    let root = Path::new("/sys/fs/cgroup");
    remove_tree(&root.join(name));
    for hierarchy in fs::read_dir(root).into_iter().flatten().flatten() {
        remove_tree(&hierarchy.path().join(name));
    }
}

fn remove_tree(cgroup: &Path) {
    for child in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&child.path());
        }
    }
    drop(fs::remove_dir(cgroup));
}

struct Node {
    program: PathBuf,
    dir: PathBuf,
}

impl Node {
    /// `--data-dir DIR/data` and so on.
    fn options(&self, names: &[&str]) -> Vec<OsString> {
        let options = names.iter().flat_map(|name| {
            let option = match *name {
                "manifests" => "--manifests".to_owned(),
                name => format!("--{name}-dir"),
            };
            [option.into(), self.dir.join(name).into()]
        });
        options.collect()
    }

    /// Has a pod run and removed again, and ends the agent in any case.
    fn use_it(&self, agent: Pid) -> std::result::Result<(), String> {
        let used = self.run_a_pod();
        kill(agent, Signal::SIGTERM).map_err(|e| e.to_string())?;
        used
    }

    fn run_a_pod(&self) -> std::result::Result<(), String> {
        self.until(&["status"], |answer| !answer.is_empty())?;
        let manifest = self.dir.join("manifests/pod.yaml");
        fs::write(&manifest, POD).map_err(|e| e.to_string())?;
        self.until(&["get", "pods"], |pods| pods.contains("1/1"))?;
        for words in [
            &["status"][..],
            &["get", "pods", "-o", "json"],
            &["logs", "layout"],
        ] {
            self.ask(words);
        }
        thread::sleep(Duration::from_secs(3));
        fs::remove_file(&manifest).map_err(|e| e.to_string())?;
        self.until(&["get", "pods"], |pods| !pods.contains("layout"))
    }

    fn until(
        &self,
        words: &[&str],
        is_so: impl Fn(&str) -> bool,
    ) -> std::result::Result<(), String> {
        let deadline = Instant::now() + STEP;
        while Instant::now() < deadline {
            match self.ask(words) {
                Some(answer) if is_so(&answer) => return Ok(()),
                _ => thread::sleep(Duration::from_millis(200)),
            }
        }
        Err(format!("`podling {}` does not come to it", words.join(" ")))
    }

    /// What a command answers, if it succeeds.
    fn ask(&self, words: &[&str]) -> Option<String> {
        let output = Command::new(&self.program)
            .args(words)
            .args(self.options(&["run"]))
            .output();
        let output = output.ok().filter(|output| output.status.success())?;
        String::from_utf8(output.stdout).ok()
    }
}
