//! What a node has on the machine beside its directories: processes and cgroups; and their end.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Node;

impl Node {
    /// The processes whose command line names this node's directory: the agent and the supervisors.
    pub fn own_processes(&self) -> Vec<i32> {
        let dirs = [Some(&self.dir), self.run.as_ref()];
        let needles: Vec<Vec<u8>> = dirs
            .into_iter()
            .flatten()
            .map(|dir| dir.path().to_str().unwrap().as_bytes().to_vec())
            .collect();
        processes(|cmdline, environ| {
            let mut needles = needles.iter();
            needles.any(|needle| contains(cmdline, needle) || contains(environ, needle))
        })
    }

    /// The power fails: no process, cgroup, mount, link, rule or file of the run directory outlives it; the data
    /// directory does.
    pub fn lose_power(&mut self) {
        let mut agent = self.agent.take().expect("a running agent");
        drop(agent.kill());
        drop(agent.wait());
        self.kill_everything();
        let script = "
            grep -F \" $1/\" /proc/mounts | cut -d ' ' -f 2 | sort -r | while read -r at; do umount \"$at\"; done
            ip -o link | sed -n 's/^[0-9]*: \\([^:@]*\\).*/\\1/p' | grep -v '^lo$' | while read -r link; do ip link delete \"$link\"; done
            nft flush ruleset
            rm -rf \"$1/run\" && mkdir \"$1/run\"";
        let gone = self
            .command("sh")
            .args([
                "-c",
                script,
                "sh",
                self.path("").to_str().unwrap().trim_end_matches('/'),
            ])
            .output()
            .unwrap();
        assert!(gone.status.success(), "{gone:?}");
    }

    /// Ends all processes of this node and removes its cgroups.
    pub(super) fn kill_everything(&self) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let mut pids = self.own_processes();
            for dir in self.leftover_cgroups() {
                if let Ok(list) = fs::read_to_string(dir.join("cgroup.procs")) {
                    pids.extend(list.lines().filter_map(|l| l.parse::<i32>().ok()));
                }
            }
            pids.retain(|pid| *pid != self.holder.id() as i32 && *pid != std::process::id() as i32);
            for pid in &pids {
                nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(*pid),
                    nix::sys::signal::Signal::SIGKILL,
                )
                .ok();
            }
            for dir in self.leftover_cgroups().iter().rev() {
                drop(fs::remove_dir(dir));
            }
            if (pids.is_empty() && self.leftover_cgroups().is_empty()) || Instant::now() > end {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn cgroup_dirs(&self) -> Vec<PathBuf> {
        let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
        if let Ok(entries) = fs::read_dir("/sys/fs/cgroup") {
            roots.extend(entries.flatten().map(|e| e.path()).filter(|p| p.is_dir()));
        }
        roots
            .into_iter()
            .map(|r| r.join(&self.cgroup[1..]))
            .filter(|p| p.exists())
            .collect()
    }

    /// The cgroup directories of this node that still exist, for tests that nothing leaks.
    pub fn leftover_cgroups(&self) -> Vec<PathBuf> {
        let mut all = Vec::new();
        for dir in self.cgroup_dirs() {
            walk(&dir, &mut all);
        }
        all
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|w| w == needle)
}

fn processes(select: impl Fn(&[u8], &[u8]) -> bool) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<i32>().ok())
        else {
            continue;
        };
        if pid == std::process::id() as i32 {
            continue;
        }
        let cmdline = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let environ = fs::read(entry.path().join("environ")).unwrap_or_default();
        if select(&cmdline, &environ) {
            found.push(pid);
        }
    }
    found
}

fn walk(dir: &Path, all: &mut Vec<PathBuf>) {
    all.push(dir.to_owned());
    if let Ok(entries) = fs::read_dir(dir) {
        for entry in entries.flatten().filter(|e| e.path().is_dir()) {
            walk(&entry.path(), all);
        }
    }
}
