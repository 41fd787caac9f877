//! Cgroups of the running kernel, of whichever version it has. Needs root; every cgroup made here lies below one of
//! this test process's own and is removed.
#![cfg(feature = "privileged-tests")]
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use oci_spec::runtime::LinuxResources;
use podling_runtime::cgroup::{Cgroup, Error, Layout};

mod userland;

use userland::until;

/// A cgroup of its own for a test, removed at its end with all that is in it.
struct Scratch {
    layout: Layout,
    cgroup: Cgroup,
}

impl Scratch {
    fn new(name: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = format!("/podling-test-{}-{number}/{name}", std::process::id());
        let layout = Layout::detect().unwrap();
        let cgroup = Cgroup::create(&layout, Path::new(&path)).unwrap();
        Self { layout, cgroup }
    }

    fn apply(&self, json: &str) -> Result<(), Error> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        self.cgroup.apply(&resources)
    }

    /// The directory in the controller's hierarchy.
    fn dir(&self, controller: &str) -> PathBuf {
        let root = match &self.layout {
            Layout::V2 { root } => root,
            Layout::V1 { hierarchies } => {
                let mut hierarchies = hierarchies.iter();
                let found = hierarchies.find(|it| it.controllers.iter().any(|it| it == controller));
                &found.expect("the controller is mounted").root
            }
        };
        root.join(self.cgroup.path().strip_prefix("/").unwrap())
    }

    fn read(&self, controller: &str, file: &str) -> String {
        let path = self.dir(controller).join(file);
        fs::read_to_string(&path).unwrap().trim().to_owned()
    }

    /// Runs a shell command in the cgroup: it starts only once it is there.
    fn spawn(&self, script: &str) -> Child {
        let mut child = Command::new("/bin/sh")
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.cgroup.add(child.id() as i32).unwrap();
        child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        child
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let parent = self.cgroup.path().parent().unwrap();
        let parent = Cgroup::open(&self.layout, parent);
        parent.kill_all().unwrap();
        parent.delete().unwrap();
        assert!(!parent.exists(), "nothing is left behind");
    }
}

#[test]
fn limits_are_in_the_kernels_files() {
    let scratch = Scratch::new("limits");
    scratch
        .apply(
            r#"{"cpu":{"shares":512,"quota":30000,"period":100000},
                "memory":{"limit":67108864},"pids":{"limit":17}}"#,
        )
        .unwrap();
    if scratch.layout.is_v2() {
        assert_eq!(scratch.read("cpu", "cpu.weight"), "59");
        assert_eq!(scratch.read("cpu", "cpu.max"), "30000 100000");
        assert_eq!(scratch.read("memory", "memory.max"), "67108864");
    } else {
        assert_eq!(scratch.read("cpu", "cpu.shares"), "512");
        assert_eq!(scratch.read("cpu", "cpu.cfs_quota_us"), "30000");
        assert_eq!(scratch.read("memory", "memory.limit_in_bytes"), "67108864");
    }
    assert_eq!(scratch.read("pids", "pids.max"), "17");
    let stats = scratch.cgroup.stats().unwrap();
    assert_eq!(stats.memory.unwrap().limit_bytes, Some(67_108_864));
    assert_eq!(stats.pids.unwrap().limit, Some(17));
}

#[test]
fn limits_can_be_raised_lowered_and_taken_away() {
    let scratch = Scratch::new("change");
    for (quota, period, limit) in [
        (200_000, 100_000, 1 << 30),
        (1_000, 1_000, 1 << 26),
        (500_000, 500_000, 1 << 29),
    ] {
        scratch
            .apply(&format!(
                r#"{{"cpu":{{"quota":{quota},"period":{period}}},"memory":{{"limit":{limit},"swap":{limit}}}}}"#
            ))
            .unwrap();
        let memory = scratch.cgroup.stats().unwrap().memory.unwrap();
        assert_eq!(memory.limit_bytes, Some(limit));
    }
    scratch
        .apply(r#"{"cpu":{"quota":-1},"memory":{"limit":-1},"pids":{"limit":-1}}"#)
        .unwrap();
    let stats = scratch.cgroup.stats().unwrap();
    assert_eq!(stats.memory.unwrap().limit_bytes, None);
    assert_eq!(stats.pids.unwrap().limit, None);
}

#[test]
fn a_limit_that_cannot_be_given_is_refused() {
    let scratch = Scratch::new("refused");
    let error = scratch
        .apply(r#"{"memory":{"limit":67108864,"swap":1048576}}"#)
        .unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    let error = scratch
        .apply(r#"{"hugepageLimits":[{"pageSize":"3MB","limit":1}]}"#)
        .unwrap_err();
    assert!(matches!(error, Error::MissingController { .. }), "{error}");
}

#[test]
fn processes_are_found_below_too_and_all_are_killed() {
    let scratch = Scratch::new("kill");
    let below = scratch.cgroup.path().join("deep/er");
    let below = Cgroup::create(&scratch.layout, &below).unwrap();
    // On v2 a cgroup that gives controllers to its children holds no processes itself.
    let home = Cgroup::create(&scratch.layout, &scratch.cgroup.path().join("home")).unwrap();
    let mut children: Vec<Child> = [&home, &below]
        .into_iter()
        .map(|cgroup| {
            let child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
            cgroup.add(child.id() as i32).unwrap();
            child
        })
        .collect();
    let mut pids: Vec<i32> = children.iter().map(|child| child.id() as i32).collect();
    pids.sort_unstable();
    assert_eq!(scratch.cgroup.processes().unwrap(), pids);
    assert_eq!(scratch.cgroup.stats().unwrap().pids.unwrap().current, 2);
    scratch.cgroup.kill_all().unwrap();
    for child in &mut children {
        assert!(!child.wait().unwrap().success());
    }
    until("an empty cgroup", || {
        scratch.cgroup.processes().unwrap().is_empty()
    });
}

#[test]
fn a_fork_bomb_is_contained_and_killed() {
    let scratch = Scratch::new("bomb");
    scratch.apply(r#"{"pids":{"limit":20}}"#).unwrap();
    // A shell that cannot fork ends; what it has started stays.
    let mut bomb = scratch.spawn("while :; do sleep 1000 & done");
    until("the limit", || bomb.try_wait().unwrap().is_some());
    assert_eq!(scratch.cgroup.stats().unwrap().pids.unwrap().current, 19);
    until("all to be gone", || {
        scratch.cgroup.kill_all().unwrap();
        scratch.cgroup.processes().unwrap().is_empty()
    });
}

#[test]
fn a_memory_hog_is_ended_and_counted() {
    let scratch = Scratch::new("hog");
    scratch.apply(r#"{"memory":{"limit":33554432}}"#).unwrap();
    scratch.cgroup.kill_together_on_oom().unwrap();
    assert_eq!(scratch.cgroup.oom_kills().unwrap(), 0);
    let mut hog = scratch.spawn("exec tail /dev/zero");
    until("the OOM killer", || hog.try_wait().unwrap().is_some());
    assert!(!hog.wait().unwrap().success());
    assert!(scratch.cgroup.oom_kills().unwrap() >= 1);
    assert!(scratch.cgroup.stats().unwrap().memory.unwrap().limit_hits > 0);
}

#[test]
fn frozen_processes_stand_still_and_can_be_killed() {
    let scratch = Scratch::new("freeze");
    let mut busy = scratch.spawn("while :; do :; done");
    until("work", || {
        scratch.cgroup.stats().unwrap().cpu.unwrap().usage_ns > 1_000_000
    });
    scratch.cgroup.freeze().unwrap();
    let before = scratch.cgroup.stats().unwrap().cpu.unwrap().usage_ns;
    std::thread::sleep(Duration::from_millis(50));
    let after = scratch.cgroup.stats().unwrap().cpu.unwrap().usage_ns;
    // Statistics of the last moment before the freeze may still arrive.
    assert!(after - before < 20_000_000, "{before} {after}");
    scratch.cgroup.thaw().unwrap();
    until("more work", || {
        scratch.cgroup.stats().unwrap().cpu.unwrap().usage_ns > after + 20_000_000
    });
    scratch.cgroup.freeze().unwrap();
    scratch.cgroup.kill_all().unwrap();
    until("the end", || busy.try_wait().unwrap().is_some());
}

#[test]
fn only_allowed_devices_open() {
    let scratch = Scratch::new("devices");
    let nodes = tempfile::tempdir().unwrap();
    let node = nodes.path().join("kmsg");
    assert!(
        Command::new("mknod")
            .arg(&node)
            .args(["c", "1", "11"])
            .status()
            .unwrap()
            .success()
    );
    let try_open = |path: &Path| {
        let script = format!(": < {}", path.display());
        scratch.spawn(&script).wait().unwrap().success()
    };
    assert!(try_open(&node), "nothing is denied before");
    let strict = r#"{"devices":[{"allow":false,"access":"rwm"}]}"#;
    scratch.apply(strict).unwrap();
    assert!(!try_open(&node));
    assert!(try_open(Path::new("/dev/null")));
    // Applied again the rules are the same, and wider ones replace them.
    scratch.apply(strict).unwrap();
    assert!(!try_open(&node));
    let wider = r#"{"devices":[{"allow":false,"access":"rwm"},
        {"allow":true,"type":"c","major":1,"minor":11,"access":"r"}]}"#;
    scratch.apply(wider).unwrap();
    assert!(try_open(&node));
    scratch.apply(strict).unwrap();
    assert!(!try_open(&node));
}

#[test]
fn a_busy_cgroup_is_not_deleted_and_a_missing_one_is_no_error() {
    let scratch = Scratch::new("delete");
    let mut child = scratch.spawn("sleep 1000");
    let error = scratch.cgroup.delete().unwrap_err();
    assert!(matches!(error, Error::Delete { .. }), "{error}");
    scratch.cgroup.kill_all().unwrap();
    child.wait().unwrap();
    scratch.cgroup.delete().unwrap();
    assert!(!scratch.cgroup.exists());
    scratch.cgroup.delete().unwrap();
    scratch.cgroup.kill_all().unwrap();
    assert!(scratch.cgroup.processes().unwrap().is_empty());
}

#[test]
fn a_cgroup_that_is_there_is_taken_as_it_is() {
    let scratch = Scratch::new("again");
    scratch.apply(r#"{"pids":{"limit":7}}"#).unwrap();
    let again = Cgroup::create(&scratch.layout, scratch.cgroup.path()).unwrap();
    assert_eq!(again.stats().unwrap().pids.unwrap().limit, Some(7));
}

/// How a supervisor makes room in the scope that systemd put it into.
#[test]
fn a_process_moves_from_a_cgroup_to_a_new_one_below_and_makes_room_for_limits() {
    let scratch = Scratch::new("scope");
    // One process: a shell that waited for another would leave that one behind.
    let mut child = scratch.spawn("exec sleep 1000");
    let below = |name: &str| {
        let path = scratch.cgroup.path().join(name);
        Cgroup::create(&scratch.layout, &path).unwrap()
    };
    below("supervisor").add(child.id() as i32).unwrap();
    let limits = serde_json::from_str(
        r#"{"memory":{"limit":67108864},"cpu":{"quota":30000},"pids":{"limit":9}}"#,
    );
    below("pod").apply(&limits.unwrap()).unwrap();
    scratch.cgroup.kill_all().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_joiner_moves_its_thread() {
    let scratch = Scratch::new("join");
    let joiner = scratch.cgroup.joiner().unwrap();
    if scratch.layout.is_v2() {
        // It would move the whole test process; the runtime's tests start processes with it.
        assert!(scratch.cgroup.clone_target().unwrap().is_some());
        return;
    }
    assert!(scratch.cgroup.clone_target().unwrap().is_none());
    if let Layout::V1 { hierarchies } = &scratch.layout
        && hierarchies.iter().any(|hierarchy| hierarchy.is_v2())
    {
        // So it would in systemd's v2 hierarchy beside those of version 1.
        return;
    }
    let expected = scratch.cgroup.path().to_string_lossy().into_owned();
    std::thread::spawn(move || {
        joiner.join().unwrap();
        let own = fs::read_to_string("/proc/thread-self/cgroup").unwrap();
        assert!(own.contains(&expected), "{own}");
    })
    .join()
    .unwrap();
}
