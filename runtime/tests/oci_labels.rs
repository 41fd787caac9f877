//! AppArmor profiles and SELinux labels on a kernel that gives them (runtime-spec config.md#linux-process,
//! config-linux.md#mount-label). Elsewhere these tests say so and pass: the virtual machine tests have such kernels, and
//! load the policy `vm-tests/guest/policy.cil`, in force.
#![cfg(feature = "privileged-tests")]

mod oci_support;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Once;

use oci_spec::runtime::MountBuilder;
use oci_support::{Bundle, stderr, stdout, until};

/// Two profiles: one may not write a file, the other may.
const PROFILES: &str = "
profile podling-test flags=(attach_disconnected,mediate_deleted) {
  file, capability, network, signal, unix, mount,
  deny /tmp/forbidden w,
}
profile podling-test-other flags=(attach_disconnected,mediate_deleted) {
  file, capability, network, signal, unix, mount,
}
";

/// Tells a process its label.
const CURRENT: &str = "cat /proc/self/attr/current";

const CONFINED: &str = "podling-test (enforce)";

/// What the policy has: it may write what has [`FILE`], and nothing else.
const LABEL: &str = "system_u:system_r:podling_test_t:s0:c1,c2";
/// One that may write everything.
const OTHER: &str = "system_u:system_r:podling_test_other_t:s0";
const FILE: &str = "system_u:object_r:podling_test_file_t:s0:c1,c2";

/// Loads the profiles where AppArmor is on.
fn no_apparmor() -> bool {
    static LOADED: Once = Once::new();
    let on =
        fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|it| it.starts_with(b"Y"));
    let parser = "/sbin/apparmor_parser";
    if !on || !Path::new(parser).exists() {
        eprintln!("skipped: this kernel runs without AppArmor, or there is no apparmor_parser");
        return true;
    }
    LOADED.call_once(|| {
        let mut load = Command::new(parser)
            .args(["--replace", "--skip-cache"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("apparmor_parser");
        let input = load.stdin.take().expect("its input");
        (&input).write_all(PROFILES.as_bytes()).expect("writes");
        drop(input);
        assert!(load.wait().expect("ends").success());
    });
    false
}

fn no_selinux() -> bool {
    let known = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/sys/fs/selinux/context")
        .and_then(|mut file| file.write_all(LABEL.as_bytes()));
    if known.is_err() {
        eprintln!("skipped: SELinux is off, or has another policy than that of these tests");
    }
    known.is_err()
}

/// Creates and starts it, and waits until it is up.
fn start(bundle: &Bundle) {
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    let is_up = || exec(bundle, &[], "[ -e /dev/shm/up ]").status.success();
    until("it is up", is_up);
}

/// Writes its label and goes on.
fn waiting() -> Bundle {
    Bundle::sh(
        "cat /proc/self/attr/current >/dev/shm/label; touch /dev/shm/up; while true; do sleep 1000; done",
    )
}

/// Runs the runtime with pipes, where [`Bundle::runtime`] has files: they have labels, and what is confined may not
/// write to those of the host.
fn call(bundle: &Bundle, args: &[&str]) -> Output {
    bundle.command().args(args).output().expect("runs")
}

fn exec(bundle: &Bundle, options: &[&str], script: &str) -> Output {
    let command = [bundle.id.as_str(), "sh", "-c", script];
    call(bundle, &[&["exec"], options, &command].concat())
}

/// What a script in the container says.
fn says(bundle: &Bundle, options: &[&str], script: &str) -> String {
    let output = exec(bundle, options, script);
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output).trim_end_matches('\0').to_owned()
}

/// True when a process of the container can write the file.
fn can_write(bundle: &Bundle, options: &[&str], path: &str) -> bool {
    exec(bundle, options, &format!("echo x >{path}"))
        .status
        .success()
}

/// A process for `exec --process`, which names neither profile nor label.
fn process_file(bundle: &Bundle) -> String {
    let path = bundle.path().join("process.json");
    let process = r#"{"args": ["cat", "/proc/self/attr/current"], "cwd": "/", "user": {"uid": 0, "gid": 0},
        "env": ["PATH=/bin"]}"#;
    fs::write(&path, process).expect("writes");
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn a_profile_of_apparmor_confines_the_container_and_what_is_run_in_it() {
    if no_apparmor() {
        return;
    }
    for no_new_privileges in [true, false] {
        let mut bundle = waiting();
        bundle
            .process()
            .set_apparmor_profile(Some("podling-test".to_owned()))
            .set_no_new_privileges(Some(no_new_privileges));
        start(&bundle);
        assert_eq!(says(&bundle, &[], "cat /dev/shm/label"), CONFINED);
        assert_eq!(says(&bundle, &[], CURRENT), CONFINED);
        let process = process_file(&bundle);
        let given = stdout(&call(&bundle, &["exec", "--process", &process, &bundle.id]));
        assert_eq!(given, CONFINED, "exec --process");
        assert!(can_write(&bundle, &[], "/tmp/allowed"));
        assert!(!can_write(&bundle, &[], "/tmp/forbidden"));

        let other = ["--apparmor", "podling-test-other"];
        assert_eq!(
            says(&bundle, &other, CURRENT),
            "podling-test-other (enforce)"
        );
        assert!(can_write(&bundle, &other, "/tmp/forbidden"));
        let unconfined = ["--apparmor", "unconfined"];
        assert_eq!(says(&bundle, &unconfined, CURRENT), "unconfined");
        let message = bundle.fails(&["exec", "--apparmor", "podling-none", &bundle.id, "true"]);
        assert!(message.contains("process.apparmorProfile"), "{message}");
    }
}

#[test]
fn a_profile_of_apparmor_that_is_not_loaded_stops_the_container() {
    if no_apparmor() {
        return;
    }
    // The kernel has the last word on a stack of profiles.
    for missing in ["podling-none", "podling-test//&podling-none"] {
        let mut bundle = Bundle::sh("true");
        bundle
            .process()
            .set_apparmor_profile(Some(missing.to_owned()));
        let message = bundle.run_fails();
        for word in [
            "process.apparmorProfile",
            missing,
            "not loaded",
            "apparmor_parser",
        ] {
            assert!(message.contains(word), "{word}: {message}");
        }
    }
}

/// Labelled, with a tmpfs beside the root file system.
fn labelled() -> Bundle {
    let mut bundle = waiting();
    bundle.process().set_selinux_label(Some(LABEL.to_owned()));
    bundle.linux().set_mount_label(Some(FILE.to_owned()));
    for (destination, filesystem) in [("/volume", "tmpfs"), ("/queues", "mqueue")] {
        let mount = MountBuilder::default()
            .destination(destination)
            .typ(filesystem)
            .source(filesystem);
        bundle.mount(mount.build().expect("a mount"));
    }
    bundle
}

#[test]
fn a_label_of_selinux_confines_the_container_and_what_is_run_in_it() {
    if no_selinux() {
        return;
    }
    for no_new_privileges in [true, false] {
        let mut bundle = labelled();
        bundle
            .process()
            .set_no_new_privileges(Some(no_new_privileges));
        start(&bundle);
        assert_eq!(says(&bundle, &[], "cat /dev/shm/label"), LABEL);
        assert_eq!(says(&bundle, &[], CURRENT), LABEL);
        let process = process_file(&bundle);
        let given = stdout(&call(&bundle, &["exec", "--process", &process, &bundle.id]));
        assert_eq!(given.trim_end_matches('\0'), LABEL, "exec --process");
        assert!(can_write(&bundle, &[], "/volume/allowed"));
        assert!(!can_write(&bundle, &[], "/tmp/forbidden"));
        let other = ["--process-label", OTHER];
        assert_eq!(says(&bundle, &other, CURRENT), OTHER);
        assert!(can_write(&bundle, &other, "/tmp/forbidden"));
        let message = bundle.fails(&["exec", "--process-label", "a:b:c:s0", &bundle.id, "true"]);
        assert!(message.contains("process.selinuxLabel"), "{message}");
    }
}

#[test]
fn new_file_systems_have_the_mount_label() {
    if no_selinux() {
        return;
    }
    let bundle = labelled();
    start(&bundle);
    let mounts = says(&bundle, &[], "cat /proc/mounts");
    let context = format!("context=\"{FILE}\"");
    for line in mounts.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [_, path, filesystem, options, ..] = words[..] else {
            panic!("{line}");
        };
        let is_labelled = ["tmpfs", "devpts"].contains(&filesystem);
        assert_eq!(options.contains(&context), is_labelled, "{path}: {line}");
    }
    assert!(mounts.contains(" /volume tmpfs "), "{mounts}");
    let pid = &bundle.state()["pid"];
    let queues = format!("/proc/{pid}/root/queues");
    let mut label = [0_u8; 100];
    let length = rustix::fs::getxattr(queues.as_str(), "security.selinux", &mut label[..]);
    let label = String::from_utf8_lossy(&label[..length.expect("a label")]).into_owned();
    assert_eq!(label.trim_end_matches('\0'), FILE);
}

#[test]
fn a_label_that_the_policy_does_not_know_stops_the_container() {
    if no_selinux() {
        return;
    }
    let wrong = "system_u:system_r:podling_none_t:s0";
    let mut bundle = Bundle::sh("true");
    bundle.process().set_selinux_label(Some(wrong.to_owned()));
    let message = bundle.run_fails();
    assert!(
        message.contains("process.selinuxLabel") && message.contains(wrong),
        "{message}"
    );
    let mut bundle = Bundle::sh("true");
    bundle.linux().set_mount_label(Some(wrong.to_owned()));
    let message = bundle.run_fails();
    assert!(
        message.contains("linux.mountLabel") && message.contains(wrong),
        "{message}"
    );
}
