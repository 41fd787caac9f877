//! A supervisor that was killed and is started again: nothing restarts that did not need it, nothing is forgotten.
#![cfg(feature = "privileged-tests")]

use podling_runtime::pod::client::Client;
use podling_runtime::pod::protocol::{Reply, Request};
use podling_runtime::pod::snapshot::{ContainerState, Stage};
use serde_json::{Value, json};

mod pod_support;
use pod_support::{Pod, is_alive, of, pid};

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("a process");
}

fn exec_probe(command: &Value) -> Value {
    json!({ "handler": { "kind": "exec", "command": command }, "initial_delay_ms": 0,
            "period_ms": 100, "timeout_ms": 10_000, "success_threshold": 1, "failure_threshold": 1 })
}

#[test]
fn living_containers_are_adopted_and_looked_after() {
    let mut pod = Pod::new(vec![
        json!({ "name": "init", "kind": "init", "run": "echo once" }),
        json!({ "name": "main", "run": "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done",
                "readiness_probe": exec_probe(&json!(["test", "!", "-e", "/unready"])) }),
    ]);
    pod.start();
    let before = pod.until_container("main", "is ready", |c| c.ready);
    let main = pid(&before).expect("a pid");
    let sequence = pod.snapshot().sequence;
    pod.kill_supervisor();
    assert!(is_alive(main));
    assert!(
        Client::connect(&pod.pod_dir())
            .expect_err("nobody answers")
            .is_gone()
    );
    pod.start_supervisor();

    let after = pod.snapshot();
    assert!(after.sequence >= sequence);
    let container = of(&after, "main");
    assert_eq!(container.state, before.state);
    assert!(container.ready && container.restart_count == 0);
    assert_eq!(after.stage, Stage::Active);
    // Probes go on.
    std::fs::write(format!("/proc/{main}/root/unready"), b"").expect("a file");
    pod.until_container("main", "is not ready", |c| !c.ready);
    std::fs::remove_file(format!("/proc/{main}/root/unready")).expect("a file");
    pod.until_container("main", "is ready", |c| c.ready);
    // The log goes on in the same file, and no line is lost while nobody reads: the FIFO keeps them.
    let seen = pod.log("main", 0).len();
    pod.wait_for("more lines", || {
        (pod.log("main", 0).len() > seen + 5).then_some(())
    });
    for (i, line) in pod.log("main", 0).iter().enumerate() {
        assert_eq!(*line, format!("line {}", i + 1));
    }
    // A command still finds the pod's namespaces.
    let request = Request::Exec {
        container: "main".to_owned(),
        command: vec!["true".to_owned()],
        tty: false,
        stdin: false,
        size: None,
    };
    let client = pod.client();
    client.request(&request).expect("it runs");
    let (reply, _) = client.recv().expect("a reply");
    assert_eq!(reply, Reply::ExecExited { exit_code: 0 });
    // Restarts go on.
    kill(main);
    let again = pod.until_container("main", "runs again", |c| {
        c.restart_count == 1 && pid(c).is_some()
    });
    let last = again.last_termination.expect("a termination");
    assert_eq!((last.exit_code, last.signal), (137, Some(9)));
    assert_eq!(pod.log("init", 0), ["once"]);
}

#[test]
fn the_exit_code_of_an_adopted_container_is_known_where_the_kernel_tells() {
    let mut pod = Pod::new(vec![json!({ "name": "main",
        "run": "while ! test -e /go; do sleep 0.05; done; exit 42" })]);
    pod.plan["restart_policy"] = json!("never");
    pod.start();
    let main = pod.until_running("main");
    pod.kill_supervisor();
    pod.start_supervisor();
    assert_eq!(pod.until_running("main"), main);
    std::fs::write(format!("/proc/{main}/root/go"), b"").expect("a file");
    let snapshot = pod.until_ended();
    let ContainerState::Terminated(t) = &of(&snapshot, "main").state else {
        panic!("{snapshot:?}")
    };
    assert!(
        (t.exit_code, t.reason.as_str()) == (42, "Error") || t.reason == "ContainerStatusUnknown",
        "{t:?}"
    );
}

#[test]
fn a_container_that_ended_while_nobody_looked_is_restarted() {
    let mut pod = Pod::new(vec![json!({ "name": "main" }), json!({ "name": "other" })]);
    pod.start();
    let main = pod.until_running("main");
    let other = pod.until_running("other");
    pod.kill_supervisor();
    kill(main);
    pod.wait_for("it is gone", || (!is_alive(main)).then_some(()));
    pod.start_supervisor();
    let again = pod.until_container("main", "runs again", |c| {
        c.restart_count == 1 && pid(c).is_some()
    });
    let last = again.last_termination.expect("a termination");
    // What SIGKILL makes of it if its new parent has not reaped it yet, else what stands for an unknown end.
    assert_eq!(last.exit_code, 137);
    assert_eq!(pod.until_running("other"), other);
}

#[test]
fn a_termination_goes_on() {
    let mut pod = Pod::new(vec![json!({ "name": "main",
        "run": "trap '' TERM; sleep 1000 & while :; do sleep 1; done" })]);
    pod.start();
    let main = pod.until_running("main");
    let reason = "a test".to_owned();
    let request = Request::Terminate {
        grace_secs: 2,
        reason,
    };
    assert_eq!(pod.ask(&request), Reply::Ok);
    pod.until("it ends", |s| matches!(s.stage, Stage::Terminating { .. }));
    pod.kill_supervisor();
    assert!(is_alive(main));
    pod.start_supervisor();
    let snapshot = pod.until_ended();
    assert!(matches!(
        snapshot.stage,
        Stage::Ended {
            terminated: true,
            ..
        }
    ));
    assert!(!is_alive(main));
    pod.kill_supervisor();
    pod.start_supervisor();
    assert!(matches!(
        pod.snapshot().stage,
        Stage::Ended {
            terminated: true,
            ..
        }
    ));
    assert_eq!(pod.ask(&Request::Release), Reply::Ok);
    assert!(pod.wait_for_supervisor().success());
    assert!(!pod.cgroup().exists());
}

#[test]
fn a_plan_that_changed_meanwhile_counts() {
    let mut pod = Pod::new(vec![
        json!({ "name": "main" }),
        json!({ "name": "removed" }),
    ]);
    pod.plan["termination_grace_secs"] = json!(1);
    pod.start();
    let main = pod.until_running("main");
    let removed = pod.until_running("removed");
    pod.kill_supervisor();
    pod.plan["containers"][0]["spec_hash"] = json!("2");
    pod.plan["containers"]
        .as_array_mut()
        .expect("containers")
        .remove(1);
    pod.plan["generation"] = json!(2);
    pod.start();
    pod.until_container("main", "runs anew", |c| {
        c.restart_count == 1 && pid(c).is_some_and(|p| p != main)
    });
    pod.wait_for("the removed one is gone", || {
        (!is_alive(removed)).then_some(())
    });
}

#[test]
fn killed_at_any_moment_a_pod_converges() {
    let mut pod = Pod::new(vec![
        json!({ "name": "init", "kind": "init", "run": "true" }),
        json!({ "name": "side", "kind": "sidecar" }),
        json!({ "name": "a" }),
        json!({ "name": "b" }),
    ]);
    pod.start();
    for delay_ms in 0..25 {
        std::thread::sleep(std::time::Duration::from_millis(delay_ms));
        pod.kill_supervisor();
        pod.start_supervisor();
    }
    for name in ["side", "a", "b"] {
        pod.until_running(name);
    }
    let processes = pod.wait_for("only the containers' processes", || {
        let processes = pod.cgroup().processes().expect("processes");
        (processes.len() == 3).then_some(processes)
    });
    let snapshot = pod.snapshot();
    for name in ["side", "a", "b"] {
        let pid = pid(of(&snapshot, name)).expect("it runs");
        assert!(processes.contains(&pid), "{snapshot:#?}");
    }
    pod.terminate(0);
}

#[test]
fn two_supervisors_of_one_pod_are_refused() {
    let mut pod = Pod::new(vec![json!({ "name": "main" })]);
    pod.start();
    let main = pod.until_running("main");
    let mut second = std::process::Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private", "--"])
        .arg(env!("CARGO_BIN_EXE_podling-pod"))
        .arg(pod.pod_dir())
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .expect("a process");
    std::io::Write::write_all(&mut second.stdin.take().expect("a pipe"), b"go\n")
        .expect("a reader");
    let output = second.wait_with_output().expect("a child");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("another supervisor"));
    assert_eq!(pod.until_running("main"), main);
}
