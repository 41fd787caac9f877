//! Containers in scopes of the systemd that runs the machine (`--systemd-cgroup`). Elsewhere these tests say so and
//! pass: the virtual machine tests run them where one does.
#![cfg(feature = "privileged-tests")]

mod oci_support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use oci_spec::runtime::{LinuxIdMappingBuilder, LinuxNamespaceBuilder, LinuxNamespaceType};
use oci_support::{Bundle, stderr, stdout, until};

/// A slice of these tests' own.
const SLICE: &str = "podlingtest.slice";

fn no_systemd() -> bool {
    let none = !Path::new("/run/systemd/system").exists();
    if none {
        eprintln!("skipped: systemd does not run this machine");
    }
    none
}

/// True where each controller has a hierarchy of its own.
fn is_v1() -> bool {
    let v1 = Path::new("/sys/fs/cgroup/memory").exists();
    if v1 {
        eprintln!("cgroup version 1");
    }
    v1
}

/// A container in the slice, whose script runs until it is killed.
fn bundle() -> Bundle {
    bundle_in(SLICE)
}

fn bundle_in(slice: &str) -> Bundle {
    let mut bundle = Bundle::sh("touch /tmp/up; while true; do sleep 1000; done");
    let path = format!("{slice}:test:{}", bundle.id);
    bundle.linux().set_cgroups_path(Some(path.into()));
    bundle
}

/// Sets `linux.resources`.
fn limit(bundle: &mut Bundle, resources: &str) {
    let resources = serde_json::from_str(resources).expect("resources");
    bundle.linux().set_resources(Some(resources));
}

/// Returns when its script runs.
fn start_in_scope(bundle: &Bundle) {
    bundle.write();
    let bundle_arg = bundle.bundle_arg();
    bundle.ok(&["--systemd-cgroup", "create", "-b", &bundle_arg, &bundle.id]);
    bundle.ok(&["start", &bundle.id]);
    await_up(bundle);
}

fn await_up(bundle: &Bundle) {
    until("it is up", || bundle.rootfs().join("tmp/up").exists());
}

/// Gives the error's message.
fn creation_fails_without_scope(bundle: &Bundle) -> String {
    bundle.write();
    let bundle_arg = bundle.bundle_arg();
    let message = bundle.fails(&["--systemd-cgroup", "create", "-b", &bundle_arg, &bundle.id]);
    let unit = unit(bundle);
    until("the scope is gone", || {
        show(&unit, "LoadState") == "not-found"
    });
    message
}

/// Its scope is gone with it.
fn pause_kill_and_delete(bundle: &Bundle) {
    bundle.ok(&["pause", &bundle.id]);
    assert_eq!(bundle.status(), "paused");
    bundle.ok(&["resume", &bundle.id]);
    bundle.ok(&["kill", "--all", &bundle.id, "KILL"]);
    until("it has ended", || bundle.status() == "stopped");
    bundle.ok(&["delete", &bundle.id]);
    assert_eq!(show(&unit(bundle), "LoadState"), "not-found");
}

fn systemctl(arguments: &[&str]) {
    let status = Command::new("systemctl").args(arguments).status();
    assert!(status.expect("systemctl").success(), "{arguments:?}");
}

fn unit(bundle: &Bundle) -> String {
    format!("test-{}.scope", bundle.id)
}

/// One property of a unit as `systemctl show` prints it.
fn show(unit: &str, property: &str) -> String {
    let output = Command::new("systemctl")
        .args(["show", "--value", "-p", property, unit])
        .output()
        .expect("systemctl");
    stdout(&output)
}

/// A file of the container's cgroup.
fn control_file(bundle: &Bundle, name: &str) -> String {
    let path = show(&unit(bundle), "ControlGroup");
    let path = PathBuf::from("/sys/fs/cgroup")
        .join(path.trim_start_matches('/'))
        .join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.trim().to_owned()
}

#[test]
fn systemd_knows_the_containers_limits() {
    if no_systemd() || is_v1() {
        return;
    }
    let mut bundle = bundle();
    let resources = r#"{"memory":{"limit":67108864,"swap":67108864,"reservation":1048576},
        "cpu":{"shares":512,"quota":50000,"period":100000,"cpus":"0"},"pids":{"limit":99},
        "devices":[{"allow":false,"access":"rwm"},{"allow":true,"type":"c","major":10,"minor":229,"access":"rw"}]}"#;
    limit(&mut bundle, resources);
    let annotations = [(
        "org.systemd.property.TimeoutStopUSec".to_owned(),
        "uint64 7000000".to_owned(),
    )];
    bundle.spec.set_annotations(Some(annotations.into()));
    start_in_scope(&bundle);

    let unit = unit(&bundle);
    for (property, wanted) in [
        ("ActiveState", "active"),
        ("Slice", SLICE),
        ("Delegate", "yes"),
        ("MemoryMax", "67108864"),
        ("MemorySwapMax", "0"),
        ("MemoryLow", "1048576"),
        ("CPUQuotaPerSecUSec", "500ms"),
        ("CPUQuotaPeriodUSec", "100ms"),
        ("CPUWeight", "59"),
        ("TasksMax", "99"),
        ("AllowedCPUs", "0"),
        ("DevicePolicy", "strict"),
        ("TimeoutStopUSec", "7s"),
    ] {
        assert_eq!(show(&unit, property), wanted, "{property}");
    }
    let devices = show(&unit, "DeviceAllow");
    assert!(devices.contains("/dev/char/10:229 rw"), "{devices}");
    assert_eq!(control_file(&bundle, "memory.max"), "67108864");
    assert_eq!(control_file(&bundle, "cpu.max"), "50000 100000");
    // The first process is in it, and nothing that only stood in for it.
    let pid = bundle.state()["pid"].to_string();
    let processes = control_file(&bundle, "cgroup.procs");
    assert!(processes.lines().any(|line| line == pid), "{processes}");
    assert_eq!(processes.lines().count(), 2, "{processes}");

    bundle.ok(&[
        "update",
        "--memory",
        "128m",
        "--memory-swap",
        "256m",
        "--pids-limit",
        "77",
        &bundle.id,
    ]);
    assert_eq!(show(&unit, "MemoryMax"), (128 << 20).to_string());
    assert_eq!(show(&unit, "MemorySwapMax"), (128 << 20).to_string());
    assert_eq!(show(&unit, "TasksMax"), "77");
    // systemd writes its values again: they are ours.
    systemctl(&["daemon-reload"]);
    assert_eq!(control_file(&bundle, "memory.max"), (128 << 20).to_string());
    assert_eq!(control_file(&bundle, "pids.max"), "77");
    assert_eq!(control_file(&bundle, "cpu.max"), "50000 100000");
    assert_eq!(stdout(&bundle.exec(&["echo", "in"])), "in");

    pause_kill_and_delete(&bundle);
}

/// With what systemd calls the hybrid layout it knows processes by a v2 hierarchy beside those of version 1. A container
/// that is not in that one has lost its scope as soon as nothing stands in for it.
#[test]
fn systemd_keeps_a_containers_scope_and_knows_its_limits_on_cgroup_v1() {
    if no_systemd() || !is_v1() {
        return;
    }
    let mut bundle = bundle();
    let resources = r#"{"memory":{"limit":67108864},"cpu":{"shares":512,"quota":50000,"period":100000},
        "pids":{"limit":99},"devices":[{"allow":false,"access":"rwm"}]}"#;
    limit(&mut bundle, resources);
    start_in_scope(&bundle);

    let unit = unit(&bundle);
    let holds = |properties: &[(&str, &str)], files: &[(&str, &str)]| {
        for (property, wanted) in properties {
            assert_eq!(show(&unit, property), *wanted, "{property}");
        }
        for (file, wanted) in files {
            let (controller, name) = file.split_once('/').expect("a controller");
            let path = format!("/sys/fs/cgroup/{controller}/{SLICE}/{unit}/{name}");
            let found = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
            assert_eq!(found.trim(), *wanted, "{file}");
        }
    };
    let cpu = [
        ("cpu,cpuacct/cpu.shares", "512"),
        ("cpu,cpuacct/cpu.cfs_quota_us", "50000"),
        ("cpu,cpuacct/cpu.cfs_period_us", "100000"),
    ];
    let properties = [
        ("ActiveState", "active"),
        ("Slice", SLICE),
        ("Delegate", "yes"),
        ("MemoryLimit", "67108864"),
        ("CPUQuotaPerSecUSec", "500ms"),
        ("CPUShares", "512"),
        ("TasksMax", "99"),
        ("DevicePolicy", "strict"),
    ];
    holds(&properties, &cpu);
    holds(
        &[],
        &[
            ("memory/memory.limit_in_bytes", "67108864"),
            ("pids/pids.max", "99"),
        ],
    );

    bundle.ok(&[
        "update",
        "--memory",
        "128m",
        "--pids-limit",
        "77",
        &bundle.id,
    ]);
    // systemd writes its values again, and looks for units without processes: it finds ours.
    systemctl(&["daemon-reload"]);
    let limit = (128 << 20).to_string();
    holds(
        &[
            ("ActiveState", "active"),
            ("MemoryLimit", &limit),
            ("TasksMax", "77"),
        ],
        &[
            ("memory/memory.limit_in_bytes", &limit),
            ("pids/pids.max", "77"),
        ],
    );
    holds(&[], &cpu);

    // A process that is run in it is in it everywhere, in systemd's own hierarchies too.
    let cgroups = stdout(&bundle.exec(&["cat", "/proc/self/cgroup"]));
    let first = fs::read_to_string(format!("/proc/{}/cgroup", bundle.state()["pid"]));
    let first = first.expect("its cgroups");
    let place = format!("/{SLICE}/{unit}");
    for hierarchy in [":memory:", ":pids:", ":freezer:", ":name=systemd:", "0::"] {
        let line = first.lines().find(|line| line.contains(hierarchy));
        match line {
            Some(line) => assert!(line.ends_with(&place), "{line}"),
            None => assert_eq!(hierarchy, "0::", "{first}"),
        }
    }
    // It sees its own cgroup as the root.
    assert!(
        cgroups.lines().any(|line| line.ends_with(":memory:/")),
        "{cgroups}"
    );

    pause_kill_and_delete(&bundle);
    for hierarchy in fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten() {
        let left = hierarchy.path().join(SLICE).join(&unit);
        assert!(!left.exists(), "{}", left.display());
    }
}

#[test]
fn a_container_that_cannot_be_created_leaves_no_scope() {
    if no_systemd() {
        return;
    }
    let mut bundle = bundle();
    bundle.args(&["/bin/none"]);
    let message = creation_fails_without_scope(&bundle);
    assert!(message.contains("/bin/none"), "{message}");

    // A limit that the cgroup refuses.
    let resources = match is_v1() {
        true => r#"{"unified":{"memory.high":"1000000"}}"#,
        false => r#"{"memory":{"swappiness":7}}"#,
    };
    limit(&mut bundle, resources);
    creation_fails_without_scope(&bundle);
}

#[test]
fn a_scope_is_taken_once_and_needs_its_form_of_path() {
    if no_systemd() {
        return;
    }
    let first = bundle();
    first.write();
    let bundle_arg = first.bundle_arg();
    first.ok(&[
        "--cgroup-manager",
        "systemd",
        "create",
        "-b",
        &bundle_arg,
        &first.id,
    ]);
    let other = format!("{}-other", first.id);
    let message = first.fails(&["--systemd-cgroup", "create", "-b", &bundle_arg, &other]);
    assert!(message.contains("already"), "{message}");
    first.ok(&["start", &first.id]);

    let mut plain = Bundle::sh("true");
    plain.linux().set_cgroups_path(Some("/a/path".into()));
    plain.write();
    let message = plain.fails(&[
        "--systemd-cgroup",
        "run",
        "-b",
        &plain.bundle_arg(),
        &plain.id,
    ]);
    assert!(message.contains("slice:prefix:name"), "{message}");
}

/// In the foreground the scope goes with the container.
#[test]
fn run_leaves_no_scope() {
    if no_systemd() {
        return;
    }
    let mut bundle = bundle();
    bundle.args(&["/bin/sh", "-c", "cat /proc/self/cgroup; exit 7"]);
    bundle.write();
    let output = bundle.runtime(&[
        "--systemd-cgroup",
        "run",
        "-b",
        &bundle.bundle_arg(),
        &bundle.id,
    ]);
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
    assert_eq!(show(&unit(&bundle), "LoadState"), "not-found");
}

/// An ordinary user whom every Debian has.
const NOBODY: u32 = 65_534;

/// The user's own systemd; it ends with the test.
struct UserManager;

impl UserManager {
    fn start() -> Self {
        systemctl(&["start", &format!("user@{NOBODY}.service")]);
        until("the user's bus is there", || {
            Path::new(&format!("/run/user/{NOBODY}/bus")).exists()
        });
        Self
    }

    /// A command of the user's, in a scope of its own manager's, where it may move processes.
    fn command(command: &[&str]) -> Command {
        let mut all = Command::new("setpriv");
        all.args(["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"])
            .args(command)
            .env("XDG_RUNTIME_DIR", format!("/run/user/{NOBODY}"))
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .stdin(std::process::Stdio::null());
        all
    }
}

impl Drop for UserManager {
    fn drop(&mut self) {
        let unit = format!("user@{NOBODY}.service");
        let stopped = Command::new("systemctl").args(["stop", &unit]).status();
        assert!(stopped.is_ok());
    }
}

/// What an ordinary user may ask for: itself as the container's root.
fn rootless(bundle: &mut Bundle) {
    let user = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::User);
    let map = LinuxIdMappingBuilder::default()
        .container_id(0_u32)
        .host_id(NOBODY)
        .size(1_u32)
        .build()
        .expect("a map");
    let linux = bundle.linux();
    let namespaces = linux.namespaces_mut().get_or_insert_default();
    namespaces.push(user.build().expect("a namespace"));
    linux
        .set_uid_mappings(Some(vec![map]))
        .set_gid_mappings(Some(vec![map]));
    let mounts = bundle.spec.mounts_mut().get_or_insert_default();
    mounts.retain(|mount| mount.typ().as_deref() != Some("cgroup"));
    for mount in mounts {
        // The terminals' group is not mapped.
        if mount.typ().as_deref() == Some("devpts") {
            let options = mount.options_mut().get_or_insert_default();
            options.retain(|option| option != "gid=5");
        }
    }
    let owned = Command::new("chown")
        .args(["-R", "--no-dereference", "nobody:nogroup"])
        .arg(bundle.path())
        .status();
    assert!(owned.expect("chown").success());
}

#[test]
fn an_ordinary_users_container_is_in_a_scope_of_its_own_manager() {
    // Version 1 gives no controllers to ordinary users.
    if no_systemd() || is_v1() {
        return;
    }
    let _manager = UserManager::start();
    // Without a slice: the user's manager has one.
    let mut bundle = bundle_in("");
    limit(
        &mut bundle,
        r#"{"memory":{"limit":67108864},"pids":{"limit":99}}"#,
    );
    bundle.write();
    rootless(&mut bundle);
    bundle.write();
    let root = bundle.state_directory();
    let program = bundle.runtime.to_str().expect("UTF-8").to_owned();
    let runtime = |args: &[&str]| {
        let root = root.to_str().expect("UTF-8");
        let mut words = vec!["systemd-run", "--user", "--scope", "--quiet"];
        words.extend([program.as_str(), "--systemd-cgroup", "--root", root]);
        words.extend_from_slice(args);
        // Files, not pipes: a container that stays keeps a pipe open.
        let path = bundle.path().join("output");
        let file = fs::File::create(&path).expect("file");
        let status = UserManager::command(&words)
            .stdout(file.try_clone().expect("clone"))
            .stderr(file)
            .status()
            .expect("runs");
        let said = fs::read_to_string(&path).expect("output");
        assert!(status.success(), "{args:?}: {said}");
        said
    };
    runtime(&["create", "-b", &bundle.bundle_arg(), &bundle.id]);
    runtime(&["start", &bundle.id]);
    await_up(&bundle);
    let unit = unit(&bundle);
    let show = |property: &str| {
        let words = [
            "systemctl",
            "--user",
            "show",
            "--value",
            "-p",
            property,
            &unit,
        ];
        stdout(&UserManager::command(&words).output().expect("systemctl"))
    };
    assert_eq!(show("MemoryMax"), "67108864");
    assert_eq!(show("TasksMax"), "99");
    assert!(show("ControlGroup").contains(&format!("user@{NOBODY}.service")));
    let pid = runtime(&["state", &bundle.id]);
    let pid = serde_json::from_str::<serde_json::Value>(&pid).expect("JSON")["pid"].clone();
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its cgroup");
    assert!(own.contains(&unit), "{own}");
    runtime(&["update", "--memory", "128m", &bundle.id]);
    assert_eq!(show("MemoryMax"), (128 << 20).to_string());
    runtime(&["delete", "--force", &bundle.id]);
    assert_eq!(show("LoadState"), "not-found");
}
