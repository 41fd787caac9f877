//! runtime-spec config-linux.md, section "Seccomp", on real containers; this test is the agent.
#![cfg(feature = "privileged-tests")]

mod oci_support;
mod seccomp_agent;

use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use oci_spec::runtime::{ContainerState, LinuxSeccomp};
use oci_support::{Bundle, stderr, stdout, until};
use seccomp_agent::{ANSWER, serve};
use serde_json::json;

/// A profile whose agent decides about mkdir, with the socket that it listens on.
fn with_agent(bundle: &mut Bundle) -> UnixListener {
    let socket = socket_of(bundle);
    let listener = UnixListener::bind(&socket).expect("binds");
    set_profile(bundle, &socket);
    listener
}

fn socket_of(bundle: &Bundle) -> PathBuf {
    bundle.path().join("agent.sock")
}

fn set_profile(bundle: &mut Bundle, socket: &std::path::Path) {
    let profile: LinuxSeccomp = serde_json::from_value(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": socket,
        "listenerMetadata": "told as it is",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
    }))
    .expect("a profile");
    bundle.linux().set_seccomp(Some(profile));
}

#[test]
fn an_agent_decides_with_and_without_no_new_privs() {
    for no_new_privileges in [true, false] {
        let mut bundle = Bundle::sh("mkdir /tmp/x 2>&1; true");
        bundle
            .process()
            .set_no_new_privileges(Some(no_new_privileges));
        bundle
            .spec
            .set_annotations(Some([("a".to_owned(), "b".to_owned())].into()));
        let agent = serve(with_agent(&mut bundle), 1);
        let said = bundle.run();
        assert!(said.contains(ANSWER), "{said}");
        let told = agent.join().expect("serves");
        assert_eq!(told[0].fds(), &["seccompFd"]);
        assert_eq!(told[0].metadata().as_deref(), Some("told as it is"));
        let state = told[0].state();
        assert_eq!(state.id(), &bundle.id);
        assert_eq!(state.bundle(), bundle.path());
        assert_eq!(*state.pid(), Some(*told[0].pid()));
        assert_eq!(
            state.annotations().as_ref().map(|a| a["a"].as_str()),
            Some("b")
        );
    }
}

#[test]
fn an_agent_decides_about_start_and_exec_too() {
    let mut bundle =
        Bundle::sh("mkdir /tmp/x 2>/tmp/said; touch /tmp/up; while true; do sleep 1000; done");
    let agent = serve(with_agent(&mut bundle), 2);
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    until("the container is up", || {
        bundle.rootfs().join("tmp/up").exists()
    });
    let said = std::fs::read_to_string(bundle.rootfs().join("tmp/said")).expect("reads");
    assert!(said.contains(ANSWER), "{said}");
    let output = bundle.exec(&["mkdir", "/tmp/y"]);
    assert!(stderr(&output).contains(ANSWER), "{}", stderr(&output));
    let first = bundle.state()["pid"].as_i64().expect("a pid");
    bundle.ok(&["delete", "--force", &bundle.id]);
    let told = agent.join().expect("serves");
    assert_eq!(i64::from(*told[0].pid()), first);
    assert_ne!(
        i64::from(*told[1].pid()),
        first,
        "of the process that exec made"
    );
    assert_eq!(told[1].state().pid().map(i64::from), Some(first));
}

#[test]
fn without_its_agent_nothing_starts() {
    let mut bundle = Bundle::sh("echo started");
    let socket = socket_of(&bundle);
    set_profile(&mut bundle, &socket);
    let message = bundle.run_fails();
    assert!(
        message.contains("cannot connect to the seccomp agent"),
        "{message}"
    );
    let bundle_arg = bundle.bundle_arg();
    let message = bundle.fails(&["create", "-b", &bundle_arg, &bundle.id]);
    assert!(
        message.contains("cannot connect to the seccomp agent"),
        "{message}"
    );
    bundle.fails(&["state", &bundle.id]);

    forbid_to_wait(&mut bundle);
    bundle.create();
    let message = bundle.fails(&["start", &bundle.id]);
    assert!(
        message.contains("cannot connect to the seccomp agent"),
        "{message}"
    );
    until("the process has ended", || bundle.status() == "stopped");
}

/// By accept the process hears of its start.
fn forbid_to_wait(bundle: &mut Bundle) {
    let mut profile = bundle.linux().seccomp().clone().expect("a profile");
    let rule = json!({"names": ["accept4"], "action": "SCMP_ACT_KILL_PROCESS"});
    let rule = serde_json::from_value(rule).expect("a rule");
    let mut rules = profile.syscalls().clone().unwrap_or_default();
    rules.push(rule);
    profile.set_syscalls(Some(rules));
    bundle.linux().set_seccomp(Some(profile));
}

#[test]
fn an_agent_is_told_at_create_unless_something_must_come_before() {
    let is_late = |what: &str| what != "nothing";
    for (before, no_new_privileges) in [
        ("nothing", true),
        ("nothing", false),
        ("a filter that forbids to wait", true),
        ("a tight limit", true),
    ] {
        let mut bundle = Bundle::sh("mkdir /tmp/x; touch /tmp/up");
        bundle
            .process()
            .set_no_new_privileges(Some(no_new_privileges));
        let agent = with_agent(&mut bundle);
        agent.set_nonblocking(true).expect("sets");
        match before {
            "a filter that forbids to wait" => forbid_to_wait(&mut bundle),
            "a tight limit" => {
                let limit = json!([{"type": "RLIMIT_NOFILE", "soft": 8, "hard": 8}]);
                let limit = serde_json::from_value(limit).expect("a limit");
                bundle.process().set_rlimits(Some(limit));
            }
            _ => {}
        }
        bundle.create();
        let early = agent.accept().is_ok();
        assert_eq!(early, !is_late(before), "{before}");
        bundle.ok(&["delete", "--force", &bundle.id]);

        agent.set_nonblocking(false).expect("sets");
        let agent = serve(agent, 1);
        bundle.create();
        bundle.ok(&["start", &bundle.id]);
        until("the program has run", || {
            bundle.rootfs().join("tmp/up").exists()
        });
        assert!(!bundle.rootfs().join("tmp/x").exists(), "{before}");
        until("it has ended", || bundle.status() == "stopped");
        let told = agent.join().expect("serves");
        let expected = match is_late(before) {
            true => ContainerState::Running,
            false => ContainerState::Creating,
        };
        assert_eq!(*told[0].state().status(), expected);
    }
}

#[test]
fn a_path_is_ignored_when_nothing_notifies() {
    let mut bundle = Bundle::sh("echo started");
    let profile: LinuxSeccomp = serde_json::from_value(json!({
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/nowhere.sock"}))
    .expect("a profile");
    bundle.linux().set_seccomp(Some(profile));
    assert_eq!(bundle.run(), "started");
}

#[test]
fn a_profile_that_contradicts_itself_creates_nothing() {
    for (profile, field) in [
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]}),
            "listenerPath",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 5}),
            "defaultErrnoRet",
        ),
    ] {
        let mut bundle = Bundle::sh("true");
        let profile: LinuxSeccomp = serde_json::from_value(profile).expect("a profile");
        bundle.linux().set_seccomp(Some(profile));
        let message = bundle.run_fails();
        assert!(message.contains(field), "{message}");
    }
}

/// On a machine of two architectures the other one's calls are filtered by the same rules.
#[test]
fn a_trap_kills_and_an_errno_is_told() {
    let mut bundle = Bundle::sh("mkdir /tmp/a; echo $?; sh -c 'rmdir /tmp/a'; echo $?");
    let profile: LinuxSeccomp = serde_json::from_value(json!({
    "defaultAction": "SCMP_ACT_ALLOW",
    "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
    "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
        {"names": ["rmdir", "unlinkat"], "action": "SCMP_ACT_KILL_PROCESS"},
    ]}))
    .expect("a profile");
    bundle.linux().set_seccomp(Some(profile));
    bundle.write();
    let output = bundle.runtime(&["run", "-b", &bundle.bundle_arg(), &bundle.id]);
    // 128 + SIGSYS
    assert_eq!(
        stdout(&output).lines().last(),
        Some("159"),
        "{}",
        stderr(&output)
    );
    assert!(
        stderr(&output).contains("Operation not supported"),
        "{}",
        stderr(&output)
    );
}
