//! runtime-spec config-linux.md, section "Seccomp", on real containers; this test is the agent.
#![cfg(feature = "privileged-tests")]

mod oci_support;

use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use libseccomp::{ScmpNotifReq, ScmpNotifResp, ScmpNotifRespFlags};
use oci_spec::runtime::{ContainerProcessState, LinuxSeccomp};
use oci_support::{Bundle, stderr, stdout, until};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
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

/// What the runtime sends on one connection.
fn receive(mut connection: UnixStream) -> (ContainerProcessState, OwnedFd) {
    let mut text = vec![0; 64 * 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let message = rustix::net::recvmsg(
        &connection,
        &mut [IoSliceMut::new(&mut text)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .expect("receives");
    text.truncate(message.bytes);
    let fd = ancillary
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .expect("a descriptor");
    connection.read_to_end(&mut text).expect("reads to the end");
    (serde_json::from_slice(&text).expect("JSON"), fd)
}

/// Answers calls that notify with an error number, until the filter has no process any more.
fn answer(listener: &OwnedFd, errno: i32) {
    // Before Linux 6.11 receiving does not end with the last process; waiting for something to receive does.
    while has_request(listener) {
        let Ok(request) = ScmpNotifReq::receive(listener.as_raw_fd()) else {
            continue; // The process that asked is gone.
        };
        let response = ScmpNotifResp::new_error(request.id, -errno, ScmpNotifRespFlags::empty());
        // The process may be gone by now.
        response.respond(listener.as_raw_fd()).ok();
    }
}

/// Waits for a call to answer; false when no process has the filter any more.
fn has_request(listener: &OwnedFd) -> bool {
    let mut wanted = [PollFd::new(listener, PollFlags::IN)];
    loop {
        match poll(&mut wanted, None) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(error) => panic!("cannot wait for calls: {error}"),
        }
    }
    wanted[0].revents().contains(PollFlags::IN)
}

/// One connection for each process: answers all its calls.
fn serve(agent: UnixListener, times: usize) -> std::thread::JoinHandle<Vec<ContainerProcessState>> {
    std::thread::spawn(move || {
        let mut told = Vec::new();
        let mut answering = Vec::new();
        for _ in 0..times {
            let (connection, _) = agent.accept().expect("accepts");
            let (state, listener) = receive(connection);
            told.push(state);
            answering.push(std::thread::spawn(move || answer(&listener, libc::ENOTNAM)));
        }
        for thread in answering {
            thread.join().expect("answers");
        }
        told
    })
}

/// What ENOTNAM reads as.
const ANSWER: &str = "XENIX";

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
    bundle.create();
    let message = bundle.fails(&["start", &bundle.id]);
    assert!(
        message.contains("cannot connect to the seccomp agent"),
        "{message}"
    );
    until("the process has ended", || bundle.status() == "stopped");
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
