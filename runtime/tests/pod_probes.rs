//! Probes and hooks against real containers and servers.
#![cfg(feature = "privileged-tests")]

use podling_runtime::pod::snapshot::{ContainerSnapshot, ContainerState, Stage};
use serde_json::{Value, json};

mod pod_support;
use pod_support::{Pod, of, pid};

fn probe(handler: &Value) -> Value {
    json!({ "handler": handler, "initial_delay_ms": 0, "period_ms": 100, "timeout_ms": 10_000,
            "success_threshold": 1, "failure_threshold": 1 })
}

fn http(port: u16, path: &str) -> Value {
    json!({ "kind": "http", "tls": false, "host": null, "port": port, "path": path, "headers": [] })
}

fn failure(c: &ContainerSnapshot) -> &str {
    c.probe_failure.as_ref().map_or("", |f| f.message.as_str())
}

#[test]
fn an_http_readiness_probe_follows_the_server() {
    let mut pod = Pod::new(vec![json!({ "name": "main",
        "run": "mkdir -p /www; httpd -f -p 8080 -h /www & sleep 0.3; echo ok > /www/ready; wait",
        "readiness_probe": probe(&http(8080, "/ready")) })]);
    pod.start();
    let main = pod.until_container("main", "is ready", |c| c.ready);
    assert!(main.probe_failure.is_none());
    let main = pid(&main).expect("a pid");
    std::fs::remove_file(format!("/proc/{main}/root/www/ready")).expect("a file");
    let main = pod.until_container("main", "is not ready", |c| !c.ready);
    assert_eq!(failure(&main), "HTTP probe failed with statuscode: 404");
    assert_eq!(main.restart_count, 0);
}

#[test]
fn a_liveness_probe_that_fails_restarts_the_container() {
    let mut pod = Pod::new(vec![json!({ "name": "main",
        "run": "touch /alive; sleep 0.5; rm -f /alive; exec sleep 1000",
        "liveness_probe": probe(&json!({ "kind": "exec", "command": ["/bin/ls", "/alive"] })) })]);
    pod.plan["containers"][0]["liveness_probe"]["termination_grace_secs"] = json!(0);
    pod.plan["containers"][0]["liveness_probe"]["initial_delay_ms"] = json!(200);
    pod.start();
    let main = pod.until_container("main", "has restarted", |c| c.restart_count >= 1);
    let last = main.last_termination.expect("a termination");
    assert_eq!((last.exit_code, last.signal), (137, Some(9)));
    assert!(pod.journal().contains("its liveness probe failed"));
}

#[test]
fn an_exec_probe_is_killed_at_its_time_limit() {
    let mut pod = Pod::new(vec![json!({ "name": "main",
        "readiness_probe": probe(&json!({ "kind": "exec", "command": ["sleep", "1234"] })) })]);
    pod.plan["containers"][0]["readiness_probe"]["timeout_ms"] = json!(200);
    pod.start();
    let main = pod.until_container("main", "has a failed probe", |c| c.probe_failure.is_some());
    assert_eq!(failure(&main), "the command did not end in time");
    let main = pid(&main).expect("a pid");
    // At most the try under way: those before were killed.
    pod.until_container("main", "has failed often", |c| {
        c.probe_failure.as_ref().is_some_and(|f| f.failures > 5)
    });
    pod.wait_for("tries do not pile up", || {
        let processes = pod.cgroup().processes().expect("processes");
        (processes.len() <= 2 && processes.contains(&main)).then_some(())
    });
}

#[test]
fn what_an_exec_probe_says_is_told() {
    let mut pod = Pod::new(vec![json!({ "name": "main",
        "readiness_probe": probe(&json!({ "kind": "exec",
            "command": ["sh", "-c", "echo not yet; head -c 100000 /dev/zero; exit 4"] })) })]);
    pod.start();
    let main = pod.until_container("main", "has a failed probe", |c| c.probe_failure.is_some());
    assert!(failure(&main).starts_with("the command exited with 4: not yet"));
    assert!(failure(&main).len() < 40_000);
}

#[test]
fn tcp_probes_connect_and_a_refused_connection_fails() {
    let mut pod = Pod::new(vec![
        json!({ "name": "good", "run": "exec httpd -f -p 7000",
                "readiness_probe": probe(&json!({ "kind": "tcp", "host": null, "port": 7000 })) }),
        json!({ "name": "bad",
                "readiness_probe": probe(&json!({ "kind": "tcp", "host": "localhost", "port": 7001 })) }),
    ]);
    pod.start();
    pod.until_container("good", "is ready", |c| c.ready);
    let bad = pod.until_container("bad", "has failed", |c| c.probe_failure.is_some());
    assert!(failure(&bad).contains("refused"), "{}", failure(&bad));
}

#[test]
fn a_server_that_never_answers_and_one_that_babbles_fail() {
    let mut pod = Pod::new(vec![
        json!({ "name": "mute", "run": "while :; do sleep 1000 | nc -l -p 7000; done",
                "readiness_probe": probe(&http(7000, "/")) }),
        json!({ "name": "babbler", "run": "while :; do cat /dev/zero | nc -l -p 7001; done",
                "readiness_probe": probe(&http(7001, "/")) }),
    ]);
    pod.plan["containers"][0]["readiness_probe"]["timeout_ms"] = json!(200);
    pod.start();
    let mute = pod.until_container("mute", "has failed", |c| failure(c).contains("in time"));
    assert!(!mute.ready);
    pod.until_container("babbler", "has failed", |c| failure(c).contains("not HTTP"));
}

#[test]
fn a_startup_probe_holds_readiness_back_and_kills_in_the_end() {
    let mut pod = Pod::new(vec![json!({ "name": "main",
        "startup_probe": probe(&json!({ "kind": "exec", "command": ["false"] })),
        "readiness_probe": probe(&json!({ "kind": "exec", "command": ["true"] })) })]);
    pod.plan["containers"][0]["startup_probe"]["failure_threshold"] = json!(3);
    pod.plan["termination_grace_secs"] = json!(0);
    pod.start();
    let main = pod.until_container("main", "has restarted", |c| c.restart_count > 0);
    assert!(!main.started && !main.ready);
}

#[test]
fn hooks_run_and_a_failed_post_start_kills() {
    let mut pod = Pod::new(vec![
        json!({ "name": "good",
                "post_start": { "kind": "exec", "command": ["touch", "/hooked"] },
                "readiness_probe": probe(&json!({ "kind": "exec", "command": ["ls", "/hooked"] })) }),
        json!({ "name": "bad",
                "post_start": { "kind": "exec", "command": ["sh", "-c", "echo no; exit 1"] } }),
    ]);
    pod.plan["termination_grace_secs"] = json!(0);
    pod.start();
    let good = pod.until_container("good", "is ready", |c| c.ready);
    assert!(good.probe_failure.is_none());
    pod.until_container("bad", "has restarted", |c| c.restart_count > 1);
    assert!(
        pod.journal()
            .contains("hook failed: the command exited with 1: no")
    );
}

#[test]
fn a_pre_stop_hook_that_hangs_is_cut_short() {
    let mut pod = Pod::new(vec![json!({ "name": "main",
        "run": "trap 'exit 7' TERM; while :; do sleep 0.05; done",
        "pre_stop": { "kind": "exec", "command": ["sleep", "1000"] } })]);
    pod.start();
    pod.until_running("main");
    let snapshot = pod.terminate(1);
    assert!(matches!(
        snapshot.stage,
        Stage::Ended {
            terminated: true,
            ..
        }
    ));
    let ContainerState::Terminated(t) = &of(&snapshot, "main").state else {
        panic!("{snapshot:?}")
    };
    assert_eq!(t.exit_code, 7);
}
