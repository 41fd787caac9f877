//! runtime-spec config.md, section "Linux Process", with "Memory policy" and "Personality" of config-linux.md, on
//! real containers.
#![cfg(feature = "privileged-tests")]

mod oci_support;

use oci_support::{Bundle, stderr, stdout};
use serde_json::json;

/// Changes `process` by JSON, so that a test reads as its configuration.
fn with_process(script: &str, fields: serde_json::Value) -> Bundle {
    let mut bundle = Bundle::sh(script);
    let mut process = serde_json::to_value(bundle.process().clone()).expect("JSON");
    let object = process.as_object_mut().expect("an object");
    object.extend(fields.as_object().expect("an object").clone());
    *bundle.process() = serde_json::from_value(process).expect("a process");
    bundle
}

fn with_linux(script: &str, fields: serde_json::Value) -> Bundle {
    let mut bundle = Bundle::sh(script);
    let mut linux = serde_json::to_value(bundle.linux().clone()).expect("JSON");
    let object = linux.as_object_mut().expect("an object");
    object.extend(fields.as_object().expect("an object").clone());
    *bundle.linux() = serde_json::from_value(linux).expect("linux");
    bundle
}

/// Nice value, real-time priority and policy: fields 19, 40 and 41 of proc_pid_stat(5).
const SCHEDULING: &str = "cut -d' ' -f19,40,41 /proc/self/stat";

/// The nice value that these tests run with: a container inherits it where its spec says none.
fn own_nice_value() -> String {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").expect("stat");
    // Counted behind the name, which may have spaces: it ends field 2.
    let (_, behind_name) = stat.rsplit_once(')').expect("a name");
    let nice = behind_name.split_whitespace().nth(19 - 3);
    nice.expect("field 19").to_owned()
}

#[test]
fn the_scheduling_policy_is_the_specs() {
    for (scheduler, want) in [
        (json!({"policy": "SCHED_OTHER", "nice": -5}), "-5 0 0"),
        (json!({"policy": "SCHED_BATCH", "nice": 3}), "3 0 3"),
        (
            json!({"policy": "SCHED_IDLE"}),
            &format!("{} 0 5", own_nice_value()),
        ),
    ] {
        let bundle = with_process(SCHEDULING, json!({"scheduler": scheduler}));
        assert_eq!(bundle.run(), want);
    }
}

/// A v1 hierarchy with a cpu controller gives a new cgroup no real-time budget, and the kernel refuses then.
#[test]
fn a_real_time_policy_is_given_or_refused_by_name() {
    let bundle = with_process(
        SCHEDULING,
        json!({"scheduler": {"policy": "SCHED_FIFO", "priority": 7}}),
    );
    bundle.write();
    let output = bundle.runtime(&["run", "-b", &bundle.bundle_arg(), &bundle.id]);
    if output.status.success() {
        assert_eq!(stdout(&output), format!("{} 7 1", own_nice_value()));
    } else {
        let message = stderr(&output);
        assert!(message.contains("set the scheduling policy"), "{message}");
        assert!(message.contains("cpu.realtimeRuntime"), "{message}");
    }
}

/// sched(7), "Real-time group scheduling".
#[test]
fn a_real_time_policy_works_in_a_cgroup_with_real_time() {
    if !std::path::Path::new("/sys/fs/cgroup/cpu/cpu.rt_runtime_us").exists() {
        return;
    }
    let mut bundle = with_process(
        SCHEDULING,
        json!({"scheduler": {"policy": "SCHED_FIFO", "priority": 7}}),
    );
    let resources = json!({"cpu": {"realtimePeriod": 1_000_000, "realtimeRuntime": 1000}});
    let resources = serde_json::from_value(resources).expect("resources");
    bundle.linux().set_resources(Some(resources));
    assert_eq!(bundle.run(), format!("{} 7 1", own_nice_value()));
}

#[test]
fn children_of_a_process_with_reset_on_fork_start_anew() {
    let bundle = with_process(
        "read -r all </proc/$$/stat; set -- $all; echo ${19}; cut -d' ' -f19 /proc/self/stat; true",
        json!({"scheduler": {"policy": "SCHED_OTHER", "nice": -4, "flags": ["SCHED_RESET_ON_FORK"]}}),
    );
    assert_eq!(bundle.run(), "-4\n0");
}

#[test]
fn the_io_priority_is_the_specs() {
    let bundle = with_process(
        "busybox ionice -p $$",
        json!({"ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6}}),
    );
    assert_eq!(bundle.run(), "best-effort: prio 6");
    let bundle = with_process(
        "busybox ionice -p $$",
        json!({"ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 4}}),
    );
    assert!(bundle.run().starts_with("idle"));
}

#[test]
fn a_priority_out_of_range_is_refused_by_its_field() {
    let bundle = with_process(
        "true",
        json!({"ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 8}}),
    );
    let message = bundle.run_fails();
    assert!(message.contains("process.ioPriority.priority"), "{message}");
}

#[test]
fn the_memory_policy_is_the_specs_for_run_and_exec() {
    let script = "head -n 1 /proc/self/numa_maps; while true; do sleep 1000; done";
    let bundle = with_linux(
        script,
        json!({"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0"}}),
    );
    if !std::path::Path::new("/proc/self/numa_maps").exists() {
        let message = bundle.run_fails();
        assert!(message.contains("set the memory policy"), "{message}");
        return;
    }
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    let output = bundle.exec(&["head", "-n", "1", "/proc/self/numa_maps"]);
    assert!(stdout(&output).contains("bind:0"), "{}", stdout(&output));
}

#[test]
fn the_personality_is_the_specs_for_run_and_exec() {
    let bundle = with_linux(
        "busybox uname -m >/tmp/machine; while true; do sleep 1000; done",
        json!({"personality": {"domain": "LINUX32"}}),
    );
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    let output = bundle.exec(&["busybox", "uname", "-m"]);
    assert_eq!(stdout(&output), "i686", "{}", stderr(&output));
}

#[test]
fn exec_runs_on_the_specs_processors_and_the_first_process_does_not() {
    let bundle = with_process(
        "grep Cpus_allowed: /proc/self/status >/tmp/first; touch /tmp/up; while true; do sleep 1000; done",
        json!({"execCPUAffinity": {"initial": "0", "final": "0"}}),
    );
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    let output = bundle.exec(&["grep", "Cpus_allowed_list", "/proc/self/status"]);
    assert_eq!(stdout(&output), "Cpus_allowed_list:\t0");
    oci_support::until("the container is up", || {
        bundle.rootfs().join("tmp/up").exists()
    });
    let first = std::fs::read_to_string(bundle.rootfs().join("tmp/first")).expect("reads");
    let own = std::fs::read_to_string("/proc/thread-self/status").expect("reads");
    assert!(own.contains(first.trim()), "{first}");
    // What the process was made on can only be told: its final processors are others by the time that it runs.
    let output = bundle.runtime(&["--debug", "exec", &bundle.id, "true"]);
    let said = stderr(&output);
    assert!(said.ends_with("affinity: 0x1"), "{said}");
}

/// runc and crun do it too: a service's `CPUAffinity=` is for the engine, not for what it runs.
#[test]
fn the_callers_affinity_ends_at_the_container() {
    let allowed = "grep Cpus_allowed_list: /proc/self/status";
    let script = format!("{allowed} >/tmp/first; touch /tmp/up; while true; do sleep 1000; done");
    let bundle = Bundle::sh(&script);
    bundle.write();
    let said = bundle.path().join("said");
    let out = std::fs::File::create(&said).expect("a file");
    let on_the_first = |args: &[&str]| {
        let ours = bundle.command();
        let status = std::process::Command::new("taskset")
            .args(["-c", "0"])
            .arg(ours.get_program())
            .args(ours.get_args())
            .args(args)
            .stdin(std::process::Stdio::null())
            .stdout(out.try_clone().expect("clones"))
            .status()
            .expect("taskset, of util-linux");
        assert!(status.success(), "{args:?}");
    };
    on_the_first(&["create", "--bundle", &bundle.bundle_arg(), &bundle.id]);
    bundle.ok(&["start", &bundle.id]);
    on_the_first(&["exec", &bundle.id, "sh", "-c", allowed]);
    let second = std::fs::read_to_string(&said).expect("reads");
    oci_support::until("the container is up", || {
        bundle.rootfs().join("tmp/up").exists()
    });
    let first = std::fs::read_to_string(bundle.rootfs().join("tmp/first")).expect("reads");
    let own = std::fs::read_to_string("/proc/thread-self/status").expect("reads");
    assert!(own.contains(first.trim()), "{first}");
    assert!(own.contains(second.trim()), "{second}");
}

#[test]
fn a_security_label_that_this_kernel_cannot_give_stops_the_container() {
    let no_apparmor = !std::fs::read("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|said| said.starts_with(b"Y"));
    if no_apparmor {
        let bundle = with_process("true", json!({"apparmorProfile": "docker-default"}));
        let message = bundle.run_fails();
        assert!(message.contains("process.apparmorProfile"), "{message}");
        let bundle = with_process("echo fine", json!({"apparmorProfile": "unconfined"}));
        assert_eq!(bundle.run(), "fine");
    }
    if !std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        let bundle = with_process("true", json!({"selinuxLabel": "a:b:c:s0"}));
        let message = bundle.run_fails();
        assert!(message.contains("process.selinuxLabel"), "{message}");
        let bundle = with_linux("true", json!({"mountLabel": "a:b:c:s0"}));
        let message = bundle.run_fails();
        assert!(message.contains("linux.mountLabel"), "{message}");
    }
}

/// "Runtimes SHOULD NOT fail if the container configuration requests capabilities that cannot be granted."
#[test]
fn a_capability_that_cannot_be_given_is_left_out() {
    let all: Vec<String> = caps::all()
        .iter()
        .map(caps::Capability::to_string)
        .collect();
    let bundle = with_process(
        "grep CapEff /proc/self/status",
        json!({"capabilities": {"bounding": all, "permitted": all, "effective": all}}),
    );
    let own = caps::read(None, caps::CapSet::Permitted)
        .expect("reads")
        .iter()
        .fold(0, |bits, c| bits | c.bitmask());
    assert_eq!(bundle.run(), format!("CapEff:\t{own:016x}"));
}

/// "If no mounted resctrl pseudo-filesystem is available in the runtime mount namespace, the runtime MUST generate an
/// error."
#[test]
fn a_cache_class_without_resctrl_creates_nothing() {
    if std::path::Path::new("/sys/fs/resctrl/schemata").exists() {
        return;
    }
    let bundle = with_linux("true", json!({"intelRdt": {"closID": "gold"}}));
    let message = bundle.run_fails();
    assert!(message.contains("linux.intelRdt: no resctrl"), "{message}");
}
