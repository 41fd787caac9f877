//! The OCI command's commands and options around a container's life: kill, pause, ps, update, events, spec, …
#![cfg(feature = "privileged-tests")]

mod oci_support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::Stdio;

use oci_support::{Bundle, stderr, stdout, until};
use serde_json::Value;

/// A control file of the container's cgroup: v1's name, and v2's.
fn control_file(bundle: &Bundle, v1: &str, v2: &str) -> String {
    let unified = PathBuf::from("/sys/fs/cgroup").join(&bundle.id).join(v2);
    let controller = v1.split('.').next().expect("a controller");
    let path = match fs::metadata(&unified) {
        Ok(_) => unified,
        Err(_) => v1_hierarchy(controller).join(&bundle.id).join(v1),
    };
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.trim().to_owned()
}

/// Where a v1 controller is mounted.
fn v1_hierarchy(controller: &str) -> PathBuf {
    let mounts = fs::read_to_string("/proc/mounts").expect("mounts");
    let line = mounts.lines().find(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        words[2] == "cgroup" && words[3].split(',').any(|option| option == controller)
    });
    let point = line.and_then(|line| line.split(' ').nth(1));
    point.expect("the controller is mounted").into()
}

fn is_v2() -> bool {
    std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn the_version_tells_the_specs_version_too() {
    let bundle = Bundle::new();
    for option in ["--version", "-v", "-V"] {
        let text = bundle.ok(&[option]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("podling-runtime version "), "{text}");
        assert!(lines[1].starts_with("commit: "), "{text}");
        assert!(lines[2].starts_with("spec: "), "{text}");
    }
}

#[test]
fn features_are_an_object() {
    let bundle = Bundle::new();
    let features = json(&bundle.ok(&["features"]));
    assert_eq!(features["linux"]["cgroup"]["v1"], true);
    assert!(
        features["mountOptions"]
            .as_array()
            .is_some_and(|it| it.len() > 40)
    );
}

#[test]
fn a_completion_script_knows_the_commands() {
    let bundle = Bundle::new();
    let script = bundle.ok(&["completion", "bash"]);
    for command in ["create", "checkpoint", "events"] {
        if command != "checkpoint" {
            assert!(script.contains(command), "{command}");
        }
    }
}

#[test]
fn spec_writes_a_bundle_that_runs() {
    let bundle = Bundle::new();
    bundle.ok(&["spec", "--bundle", &bundle.bundle_arg()]);
    let again = bundle.fails(&["spec", "--bundle", &bundle.bundle_arg()]);
    assert!(again.contains("config.json"), "{again}");
    let other = bundle.path().join("rootless.json");
    let other_arg = other.to_str().expect("UTF-8");
    bundle.ok(&["spec", "--rootless", "--file", other_arg]);
    let spec = json(&fs::read_to_string(&other).expect("written"));
    let kinds = spec["linux"]["namespaces"].to_string();
    assert!(kinds.contains("user"), "{kinds}");
    assert!(spec["linux"]["uidMappings"].is_array());
}

/// A program that changes its user keeps no capability of `inheritable` or `ambient`, and opens no device of the host's.
#[test]
fn spec_gives_a_terminal_and_few_rights() {
    let bundle = Bundle::new();
    bundle.ok(&["spec", "--bundle", &bundle.bundle_arg()]);
    let text = fs::read_to_string(bundle.path().join("config.json")).expect("written");
    let spec = json(&text);
    let process = &spec["process"];
    assert_eq!(process["terminal"], true);
    assert_eq!(process["noNewPrivileges"], true);
    let sets = process["capabilities"].as_object().expect("sets");
    let mut names: Vec<&str> = sets.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["bounding", "effective", "permitted"]);
    let rules = &spec["linux"]["resources"]["devices"];
    assert_eq!(
        *rules,
        serde_json::json!([{"allow": false, "access": "rwm"}])
    );
}

#[test]
fn another_configuration_can_be_named() {
    let bundle = Bundle::sh("echo from another file");
    bundle.write();
    fs::rename(
        bundle.path().join("config.json"),
        bundle.path().join("other.json"),
    )
    .expect("renames");
    let bundle_arg = bundle.bundle_arg();
    let said = bundle.ok(&["run", "-f", "other.json", "-b", &bundle_arg, &bundle.id]);
    assert_eq!(said, "from another file");
}

#[test]
fn a_container_without_pivot_root_has_its_own_root() {
    let bundle = Bundle::sh("cat /marker; touch /tmp/up; exec sleep 100");
    fs::write(bundle.rootfs().join("marker"), "own root").expect("marker");
    bundle.write();
    let bundle_arg = bundle.bundle_arg();
    bundle.ok(&[
        "run",
        "--detach",
        "--no-pivot",
        "-b",
        &bundle_arg,
        &bundle.id,
    ]);
    until("the program runs", || {
        bundle.rootfs().join("tmp/up").exists()
    });
    assert_eq!(
        bundle.ok(&["exec", &bundle.id, "cat", "/marker"]),
        "own root"
    );
    let seen = bundle.ok(&["exec", &bundle.id, "ls", "/../.."]);
    assert!(seen.contains("marker"), "{seen}");
    bundle.ok(&["delete", "--force", &bundle.id]);
}

/// Puts a key into a session keyring of this thread's own, which programs that it starts inherit. False without
/// keys in the kernel.
#[allow(unsafe_code, reason = "no crate that is used here has keyctl(2)")]
fn add_session_key(name: &std::ffi::CStr) -> bool {
    const JOIN_SESSION_KEYRING: libc::c_long = 1;
    const SET_PERMISSIONS: libc::c_long = 5;
    const POSSESSOR_ALL: libc::c_long = 0x3f00_0000;
    const SESSION_KEYRING: libc::c_long = -3;
    let payload = b"secret";
    // SAFETY: keyctl(2) with a null name or numbers passes no memory; add_key(2) reads two strings and a payload
    // that live on.
    unsafe {
        if libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, 0) < 0 {
            return false;
        }
        let key = libc::syscall(
            libc::SYS_add_key,
            c"user".as_ptr(),
            name.as_ptr(),
            payload.as_ptr(),
            payload.len(),
            SESSION_KEYRING,
        );
        // Only who has it in a keyring sees it.
        key >= 0 && libc::syscall(libc::SYS_keyctl, SET_PERMISSIONS, key, POSSESSOR_ALL) == 0
    }
}

#[test]
fn the_session_keyring_is_the_containers_own_unless_asked_otherwise() {
    let mut bundle = Bundle::sh("grep -c podling-test-key /proc/keys");
    bundle.linux().set_masked_paths(None);
    if !add_session_key(c"podling-test-key") {
        eprintln!("the kernel has no keys");
        return;
    }
    bundle.write();
    let bundle_arg = bundle.bundle_arg();
    let own = bundle.runtime(&["run", "-b", &bundle_arg, &bundle.id]);
    assert_eq!(stdout(&own), "0");
    let shared = bundle.runtime(&["run", "--no-new-keyring", "-b", &bundle_arg, &bundle.id]);
    assert_eq!(stdout(&shared), "1", "{}", stderr(&shared));
}

#[test]
fn a_pattern_names_several_containers() {
    let bundle = Bundle::running();
    let others = [format!("{}-b", bundle.id), format!("{}-c", bundle.id)];
    for other in &others {
        let mut spec = bundle.spec.clone();
        let linux = spec.linux_mut().as_mut().expect("linux");
        linux.set_cgroups_path(Some(bundle.cgroup().join(other)));
        spec.save(bundle.path().join("config.json")).expect("saves");
        // v2: a cgroup with processes has no children with controllers, so each beside the other.
        let linux = spec.linux_mut().as_mut().expect("linux");
        linux.set_cgroups_path(Some(PathBuf::from("/").join(other)));
        spec.save(bundle.path().join("config.json")).expect("saves");
        bundle.ok(&["create", "-b", &bundle.bundle_arg(), other]);
        bundle.ok(&["start", other]);
    }
    let pattern = format!("^{}-.$", bundle.id);
    bundle.ok(&["kill", "--regex", &pattern, "KILL"]);
    let status = |id: &str| json(&bundle.ok(&["state", id]))["status"].clone();
    for other in &others {
        until("it has ended", || status(other) == "stopped");
    }
    // A pattern asks for those that run: no error for those that do not.
    bundle.ok(&["kill", "--regex", &pattern, "KILL"]);
    assert_eq!(bundle.status(), "running");
    let all = format!("^{}", bundle.id);
    let message = bundle.fails(&["delete", "--regex", &all]);
    assert!(
        message.contains(&format!("failed for: {}", bundle.id)),
        "{message}"
    );
    assert_eq!(bundle.ok(&["list", "-q"]), bundle.id);
    let message = bundle.fails(&["kill", "--regex", "("]);
    assert!(message.contains("--regex"), "{message}");
}

#[test]
fn kill_tells_engines_that_a_container_has_ended() {
    let bundle = Bundle::sh("true");
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    until("it has ended", || bundle.status() == "stopped");
    let message = bundle.fails(&["kill", &bundle.id, "15"]);
    assert!(message.contains("container not running"), "{message}");
    // containerd does so after the first process has ended.
    bundle.ok(&["kill", "--all", &bundle.id, "KILL"]);
    for command in ["pause", "resume"] {
        let message = bundle.fails(&[command, &bundle.id]);
        assert!(message.contains("container not running"), "{message}");
    }
}

#[test]
fn a_signal_can_go_to_all_processes() {
    let bundle = Bundle::sh(
        "trap 'echo first >>/tmp/got; exit 0' USR1
         sh -c 'trap \"echo second >>/tmp/got; exit 0\" USR1; touch /tmp/up; while :; do sleep 0.05; done' &
         while :; do sleep 0.05; done",
    );
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    until("it is up", || bundle.rootfs().join("tmp/up").exists());
    bundle.ok(&["kill", "--all", &bundle.id, "SIGUSR1"]);
    until("the first has heard", || {
        fs::read_to_string(bundle.rootfs().join("tmp/got")).is_ok_and(|got| got.contains("first"))
    });
}

#[test]
fn a_paused_container_says_so_and_takes_no_exec() {
    let bundle = Bundle::running();
    bundle.ok(&["pause", &bundle.id]);
    assert_eq!(bundle.status(), "paused");
    assert!(bundle.ok(&["list"]).contains("paused"));
    let output = bundle.exec(&["true"]);
    assert!(!output.status.success());
    assert!(stderr(&output).contains("is paused"), "{}", stderr(&output));
    bundle.ok(&["resume", &bundle.id]);
    assert_eq!(bundle.status(), "running");
    assert_eq!(stdout(&bundle.exec(&["echo", "on"])), "on");
}

#[test]
fn a_paused_container_can_be_deleted_by_force() {
    let bundle = Bundle::running();
    bundle.ok(&["pause", &bundle.id]);
    bundle.ok(&["delete", "--force", &bundle.id]);
    assert!(!bundle.cgroup_exists());
}

#[test]
fn exec_takes_groups_and_a_cgroup_below() {
    let bundle = Bundle::running();
    let groups = bundle.runtime(&[
        "exec",
        "-g",
        "77",
        "--additional-gids",
        "78",
        &bundle.id,
        "id",
        "-G",
    ]);
    assert_eq!(stdout(&groups), "0 77 78", "{}", stderr(&groups));

    let none = bundle.fails(&["exec", "--cgroup", "none", &bundle.id, "true"]);
    assert!(none.contains("--cgroup"), "{none}");
    let out = bundle.fails(&["exec", "--cgroup", "../x", &bundle.id, "true"]);
    assert!(out.contains("must not hold .."), "{out}");
    if is_v2() {
        return;
    }
    let below = v1_hierarchy("pids").join(&bundle.id).join("below");
    fs::create_dir(&below).expect("a cgroup");
    let output = bundle.runtime(&[
        "exec",
        "--cgroup",
        "pids:below",
        &bundle.id,
        "grep",
        "pids",
        "/proc/self/cgroup",
    ]);
    assert!(
        stdout(&output).ends_with("/below"),
        "{} {}",
        stdout(&output),
        stderr(&output)
    );
    fs::remove_dir(&below).expect("empty again");
}

#[test]
fn ps_prints_numbers_and_what_ps_says() {
    let bundle = Bundle::running();
    let pid = bundle.state()["pid"].as_i64().expect("a pid");
    let pids = json(&bundle.ok(&["ps", "--format", "json", &bundle.id]));
    assert!(
        pids.as_array().expect("an array").contains(&pid.into()),
        "{pids}"
    );
    let table = bundle.ok(&["ps", &bundle.id]);
    assert!(table.starts_with("PID"), "{table}");
    let mut own = String::new();
    until("the second process is there", || {
        own = bundle.ok(&["ps", &bundle.id, "-ef"]);
        own.contains("sleep 1000")
    });
    let lines: Vec<&str> = own.lines().collect();
    assert!(
        lines[0].contains("PID") && lines[0].contains("CMD"),
        "{own}"
    );
    assert!(lines.len() >= 3 && lines.len() < 6, "{own}");
}

#[test]
fn the_table_of_containers_has_runcs_columns() {
    let bundle = Bundle::running();
    let table = bundle.ok(&["list"]);
    let heading: Vec<&str> = table
        .lines()
        .next()
        .expect("a heading")
        .split_whitespace()
        .collect();
    assert_eq!(
        heading,
        ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    );
    let state = bundle.state();
    assert_eq!(state["owner"], "root");
    assert_eq!(state["rootfs"], bundle.rootfs().to_str().expect("UTF-8"));
}

#[test]
fn limits_change_in_place() {
    let bundle = Bundle::running();
    bundle.ok(&[
        "update",
        "--memory=64m",
        "--cpu-quota",
        "30000",
        "--cpu-period",
        "100000",
        "--cpu-share",
        "512",
        "--pids-limit",
        "33",
        &bundle.id,
    ]);
    assert_eq!(
        control_file(&bundle, "memory.limit_in_bytes", "memory.max"),
        "67108864"
    );
    assert_eq!(control_file(&bundle, "pids.max", "pids.max"), "33");
    if is_v2() {
        assert_eq!(control_file(&bundle, "-", "cpu.max"), "30000 100000");
        assert_eq!(control_file(&bundle, "-", "cpu.weight"), "59");
    } else {
        assert_eq!(control_file(&bundle, "cpu.cfs_quota_us", "-"), "30000");
        assert_eq!(control_file(&bundle, "cpu.shares", "-"), "512");
    }
    // What is not given stays.
    bundle.ok(&["update", "--pids-limit", "-1", &bundle.id]);
    assert_eq!(control_file(&bundle, "pids.max", "pids.max"), "max");
    assert_eq!(
        control_file(&bundle, "memory.limit_in_bytes", "memory.max"),
        "67108864"
    );
}

/// v1's limit of memory and swap must not be below that of memory at any time.
#[test]
fn memory_and_swap_grow_and_shrink_together() {
    let bundle = Bundle::running();
    for (memory, swap) in [
        ("64m", "128m"),
        ("256m", "512m"),
        ("32m", "32m"),
        ("96m", "-1"),
    ] {
        let output = bundle.runtime(&[
            "update",
            "--memory",
            memory,
            "--memory-swap",
            swap,
            &bundle.id,
        ]);
        // A kernel without swap accounting has no file for it.
        if !output.status.success() {
            assert!(stderr(&output).contains("swap"), "{}", stderr(&output));
            return;
        }
    }
    assert_eq!(
        control_file(&bundle, "memory.limit_in_bytes", "memory.max"),
        (96 << 20).to_string()
    );
}

#[test]
fn limits_come_from_a_file_or_standard_input() {
    let bundle = Bundle::running();
    let file = bundle.path().join("resources.json");
    fs::write(&file, r#"{"pids":{"limit":44}}"#).expect("file");
    let file = file.to_str().expect("UTF-8");
    bundle.ok(&["update", "--resources", file, &bundle.id]);
    assert_eq!(control_file(&bundle, "pids.max", "pids.max"), "44");
    let mut update = bundle
        .command()
        .args(["update", "-r", "-", &bundle.id])
        .stdin(Stdio::piped())
        .spawn()
        .expect("spawns");
    let mut input = update.stdin.take().expect("a pipe");
    input
        .write_all(br#"{"pids":{"limit":45}}"#)
        .expect("writes");
    drop(input);
    assert!(update.wait().expect("ends").success());
    assert_eq!(control_file(&bundle, "pids.max", "pids.max"), "45");
    let message = bundle.fails(&["update", "--l3-cache-schema", "L3:0=f", &bundle.id]);
    assert!(message.contains("linux.intelRdt"), "{message}");
}

#[test]
fn statistics_have_runcs_names() {
    let bundle = Bundle::running();
    bundle.ok(&[
        "update",
        "--memory",
        "64m",
        "--pids-limit",
        "44",
        &bundle.id,
    ]);
    let event = json(&bundle.ok(&["events", "--stats", &bundle.id]));
    assert_eq!(event["type"], "stats");
    assert_eq!(event["id"], bundle.id.as_str());
    let data = &event["data"];
    assert!(
        data["cpu"]["usage"]["total"]
            .as_u64()
            .is_some_and(|it| it > 0),
        "{event}"
    );
    assert_eq!(data["memory"]["usage"]["limit"], 67_108_864);
    assert!(
        data["memory"]["usage"]["usage"]
            .as_u64()
            .is_some_and(|it| it > 0)
    );
    assert!(
        data["memory"]["raw"]
            .as_object()
            .is_some_and(|it| it.len() > 10)
    );
    assert_eq!(data["pids"]["limit"], 44);
    assert!(data["pids"]["current"].as_u64().is_some_and(|it| it >= 2));
}

#[test]
fn events_tell_when_memory_runs_out_and_end_with_the_container() {
    let mut bundle = Bundle::sh(
        "touch /tmp/up; while [ ! -e /tmp/go ]; do sleep 0.05; done; tail /dev/zero; sleep 0.2",
    );
    std::os::unix::fs::symlink("busybox", bundle.rootfs().join("bin/tail")).expect("link");
    let resources = serde_json::from_str(r#"{"memory":{"limit":33554432}}"#).expect("resources");
    bundle.linux().set_resources(Some(resources));
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    until("it is up", || bundle.rootfs().join("tmp/up").exists());
    let mut events = bundle
        .command()
        .args(["events", "--interval", "100ms", &bundle.id])
        .stdout(Stdio::piped())
        .spawn()
        .expect("spawns");
    let lines = BufReader::new(events.stdout.take().expect("a pipe")).lines();
    let mut kinds = Vec::new();
    for line in lines {
        let event = json(&line.expect("a line"));
        if kinds.is_empty() {
            fs::write(bundle.rootfs().join("tmp/go"), "").expect("go");
        }
        kinds.push(event["type"].as_str().expect("a type").to_owned());
    }
    assert!(events.wait().expect("ends").success());
    assert_eq!(kinds[0], "stats");
    assert!(kinds.iter().any(|kind| kind == "oom"), "{kinds:?}");
}

#[test]
fn a_container_without_a_cgroup_has_no_limits() {
    let mut bundle = Bundle::sh("echo ran");
    let mounts = bundle.spec.mounts_mut().as_mut().expect("mounts");
    mounts.retain(|mount| mount.typ().as_deref() != Some("cgroup"));
    bundle.write();
    let bundle_arg = bundle.bundle_arg();
    let id = bundle.id.clone();
    let run = [
        "--cgroup-manager",
        "disabled",
        "run",
        "-b",
        &bundle_arg,
        &id,
    ];
    assert_eq!(bundle.ok(&run), "ran");
    assert!(!bundle.cgroup_exists());
    let resources = serde_json::from_str(r#"{"pids":{"limit":7}}"#).expect("resources");
    bundle.linux().set_resources(Some(resources));
    bundle.write();
    let message = bundle.fails(&run);
    assert!(message.contains("linux.resources"), "{message}");
}

#[test]
fn steps_are_logged_when_asked_for() {
    let bundle = Bundle::sh("true");
    bundle.write();
    let log = bundle.path().join("log");
    let log_arg = log.to_str().expect("UTF-8").to_owned();
    let bundle_arg = bundle.bundle_arg();
    bundle.ok(&[
        "--debug",
        "--log",
        &log_arg,
        "run",
        "-b",
        &bundle_arg,
        &bundle.id,
    ]);
    let said = fs::read_to_string(&log).expect("a log");
    assert!(said.contains("level=debug"), "{said}");
}

#[test]
fn a_terminal_without_anybody_who_holds_it_is_refused() {
    let mut bundle = Bundle::sh("true");
    bundle.process().set_terminal(Some(true));
    bundle.write();
    let said = bundle.fails(&["run", "-d", "-b", &bundle.bundle_arg(), &bundle.id]);
    assert!(said.contains("--console-socket: "), "{said}");
    assert!(!bundle.state_directory().join(&bundle.id).exists());
}
