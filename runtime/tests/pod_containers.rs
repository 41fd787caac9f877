//! Containers of a real pod: order, restarts, memory, termination, new plans.
#![cfg(feature = "privileged-tests")]

use podling_runtime::pod::protocol::{Reply, Request};
use podling_runtime::pod::snapshot::{ContainerState, Stage};
use serde_json::json;

mod pod_support;
use pod_support::{Pod, is_alive, of, pid, probe};

#[test]
fn containers_share_the_pods_host_name_and_network() {
    let mut pod = Pod::new(vec![
        json!({ "name": "server", "run": "hostname; exec nc -l -p 9000 -e echo hello" }),
        json!({ "name": "client", "restart_policy": "on_failure",
                "run": "test \"$(nc 127.0.0.1 9000)\" = hello" }),
    ]);
    pod.start();
    let client = pod.until_container(
        "client",
        "has ended",
        |c| matches!(&c.state, ContainerState::Terminated(t) if t.exit_code == 0),
    );
    assert!(client.last_termination.is_none_or(|t| t.exit_code != 0));
    assert_eq!(pod.log("server", 0), ["web"]);
}

#[test]
fn init_containers_and_sidecars_start_in_order() {
    let mut pod = Pod::new(vec![
        json!({ "name": "first", "kind": "init", "run": "echo first > /shared/order" }),
        json!({ "name": "side", "kind": "sidecar", "run": "echo side >> /shared/order; exec sleep 1000",
                "startup_probe": probe(&json!({ "kind": "exec",
                    "command": ["test", "-s", "/shared/order"] })) }),
        json!({ "name": "second", "kind": "init", "run": "sleep 0.2; echo second >> /shared/order" }),
        json!({ "name": "main", "run": "echo main >> /shared/order; exec sleep 1000" }),
    ]);
    share_directory(&mut pod);
    pod.start();
    pod.until_running("main");
    let order = pod.wait_for("main has written", || {
        let text = std::fs::read_to_string(pod.path("shared/order")).ok()?;
        text.contains("main").then_some(text)
    });
    assert_eq!(order, "first\nside\nsecond\nmain\n");
    let snapshot = pod.snapshot();
    assert_eq!(snapshot.stage, Stage::Active);
    assert!(of(&snapshot, "first").ready && of(&snapshot, "side").started);
}

#[test]
fn a_container_that_crashes_is_restarted_with_back_off_and_keeps_its_last_two_logs() {
    let mut pod = Pod::new(vec![json!({
        "name": "main", "run": "echo run; touch /fresh-$$; ls / | grep -c fresh; exit 3" })]);
    pod.start();
    let main = pod.until_container("main", "has crashed often", |c| c.restart_count >= 4);
    let last = main.last_termination.expect("a termination");
    assert_eq!((last.exit_code, last.reason.as_str()), (3, "Error"));
    pod.terminate(0);
    let mut logs: Vec<_> = std::fs::read_dir(pod.path("logs/main"))
        .expect("logs")
        .map(|e| e.expect("an entry").file_name())
        .collect();
    logs.sort();
    assert_eq!(logs.len(), 2, "{logs:?}");
    let scratch = std::fs::read_dir(pod.path("scratch/main")).expect("a directory");
    assert_eq!(scratch.count(), 1);
}

#[test]
fn a_program_that_is_not_there_is_a_start_error() {
    let mut pod = Pod::new(vec![json!({ "name": "main" })]);
    pod.plan["restart_policy"] = json!("never");
    pod.plan["containers"][0]["source"]["spec"]["process"]["args"] = json!(["/bin/nothing"]);
    pod.start();
    let snapshot = pod.until_ended();
    let ContainerState::Terminated(t) = &of(&snapshot, "main").state else {
        panic!("{snapshot:?}")
    };
    assert_eq!((t.reason.as_str(), t.exit_code), ("StartError", 128));
    assert!(
        t.message
            .as_deref()
            .is_some_and(|m| m.contains("/bin/nothing"))
    );
}

#[test]
fn one_of_several_that_start_together_and_cannot_does_not_keep_the_others() {
    let mut pod = Pod::new(vec![
        json!({ "name": "first" }),
        json!({ "name": "broken", "restart_policy": "never" }),
        json!({ "name": "unmountable", "restart_policy": "never" }),
        json!({ "name": "last" }),
    ]);
    pod.plan["containers"][1]["source"]["spec"]["process"]["args"] = json!(["/bin/nothing"]);
    pod.plan["containers"][2]["source"]["rootfs"]["layers"] = json!(["/nowhere"]);
    pod.start();
    let snapshot = pod.until("all are where they can be", |snapshot| {
        let is_running = |name| matches!(of(snapshot, name).state, ContainerState::Running { .. });
        let is_over = |name| matches!(of(snapshot, name).state, ContainerState::Terminated(_));
        is_running("first") && is_running("last") && is_over("broken") && is_over("unmountable")
    });
    for name in ["broken", "unmountable"] {
        let ContainerState::Terminated(t) = &of(&snapshot, name).state else {
            panic!("{snapshot:?}")
        };
        assert_eq!(t.reason, "StartError", "{t:?}");
    }
}

#[test]
fn a_memory_hog_is_killed_alone_and_named() {
    let mut pod = Pod::new(vec![
        json!({ "name": "hog", "restart_policy": "never",
                "run": "head -c 300000000 /dev/zero | tr '\\0' x | sh -c 'x=$(cat)'; sleep 1; exit 5",
                "resources": { "memory": { "limit": 33_554_432 } } }),
        json!({ "name": "other" }),
    ]);
    // The whole container is killed on v2, one process of it on v1: an exec'ed hog is the first process itself.
    pod.plan["containers"][0]["source"]["spec"]["process"]["args"] = json!([
        "/bin/dd",
        "if=/dev/zero",
        "of=/dev/null",
        "bs=200M",
        "count=1"
    ]);
    pod.start();
    let other = pod.until_running("other");
    let hog = pod.until_container("hog", "has ended", |c| {
        matches!(c.state, ContainerState::Terminated(_))
    });
    let ContainerState::Terminated(t) = hog.state else {
        panic!("it should have ended")
    };
    assert_eq!((t.reason.as_str(), t.exit_code), ("OOMKilled", 137));
    assert!(is_alive(other));
}

#[test]
fn last_words_come_from_the_file_or_the_log() {
    let mut pod = Pod::new(vec![
        json!({ "name": "file", "run": "printf bye > /dev/termination-log; exit 1" }),
        json!({ "name": "log", "run": "echo one; echo two; exit 1" }),
    ]);
    pod.plan["restart_policy"] = json!("never");
    for (i, name) in ["file", "log"].into_iter().enumerate() {
        pod.plan["containers"][i]["termination_message"] = json!({
            "path": "/dev/termination-log",
            "host_file": pod.path(&format!("messages/{name}")),
            "fallback_to_logs": true,
        });
    }
    pod.start();
    let snapshot = pod.until_ended();
    let message = |name: &str| match &of(&snapshot, name).state {
        ContainerState::Terminated(t) => t.message.clone().unwrap_or_default(),
        other => panic!("{other:?}"),
    };
    assert_eq!(message("file"), "bye");
    assert_eq!(message("log"), "one\ntwo\n");
}

#[test]
fn termination_is_graceful_and_ordered_and_leaves_nothing() {
    let trap = |name: &str| {
        format!("trap 'echo {name} >> /shared/order; exit 0' TERM; while :; do sleep 0.05; done")
    };
    let mut pod = Pod::new(vec![
        json!({ "name": "side", "kind": "sidecar", "run": trap("side") }),
        json!({ "name": "main", "run": trap("main"),
                "pre_stop": { "kind": "exec", "command": ["sh", "-c", "echo hook >> /shared/order"] } }),
    ]);
    share_directory(&mut pod);
    pod.start();
    pod.until_running("main");
    let snapshot = pod.terminate(30);
    assert!(matches!(
        snapshot.stage,
        Stage::Ended {
            terminated: true,
            ..
        }
    ));
    let order = std::fs::read_to_string(pod.path("shared/order")).expect("a file");
    assert_eq!(order, "hook\nmain\nside\n");
    assert_eq!(pod.ask(&Request::Release), Reply::Ok);
    assert!(pod.wait_for_supervisor().success());
    assert!(!pod.cgroup().exists());
    let mut left: Vec<_> = std::fs::read_dir(pod.pod_dir())
        .expect("a directory")
        .map(|e| e.expect("an entry").file_name())
        .collect();
    left.sort();
    assert_eq!(
        left,
        ["plan.json", "state.json", "supervisor.log", "taken.json"]
    );
}

#[test]
fn a_container_that_ignores_its_stop_signal_is_killed_after_the_grace_period() {
    let mut pod = Pod::new(vec![json!({ "name": "main",
        "run": "trap '' TERM; sleep 1000 & while :; do sleep 1; done" })]);
    pod.start();
    pod.until_running("main");
    let snapshot = pod.terminate(1);
    let ContainerState::Terminated(t) = &of(&snapshot, "main").state else {
        panic!("{snapshot:?}")
    };
    assert_eq!((t.exit_code, t.signal), (137, Some(9)));
}

#[test]
fn sigterm_to_the_supervisor_ends_the_pod_and_then_the_supervisor() {
    let mut pod = Pod::new(vec![json!({ "name": "main" })]);
    pod.plan["termination_grace_secs"] = json!(1);
    pod.start();
    let main = pod.until_running("main");
    let supervisor = rustix::process::Pid::from_raw(pod.supervisor_pid() as i32).expect("a pid");
    rustix::process::kill_process(supervisor, rustix::process::Signal::HUP).expect("a process");
    rustix::process::kill_process(supervisor, rustix::process::Signal::TERM).expect("a process");
    assert!(pod.wait_for_supervisor().success());
    assert!(!is_alive(main) && !pod.cgroup().exists());
}

#[test]
fn release_is_refused_while_the_pod_runs() {
    let mut pod = Pod::new(vec![json!({ "name": "main" })]);
    pod.start();
    pod.until_running("main");
    let error = pod
        .client()
        .request(&Request::Release)
        .expect_err("refused");
    assert!(error.to_string().contains("has not ended"));
}

#[test]
fn a_new_plan_restarts_what_changed_resizes_in_place_and_starts_what_waited() {
    let mut pod = Pod::new(vec![
        json!({ "name": "changed" }),
        json!({ "name": "resized", "resources": { "memory": { "limit": 33_554_432 } } }),
        json!({ "name": "removed" }),
        json!({ "name": "waiting" }),
    ]);
    let ready = pod.plan["containers"][3]["source"].clone();
    pod.plan["containers"][3]["source"] =
        json!({ "kind": "waiting", "reason": "ErrImagePull", "message": "no registry" });
    pod.plan["termination_grace_secs"] = json!(1);
    pod.start();
    let before: Vec<i32> = ["changed", "resized", "removed"]
        .into_iter()
        .map(|name| pod.until_running(name))
        .collect();
    let waiting = of(&pod.snapshot(), "waiting").state.clone();
    assert!(matches!(&waiting, ContainerState::Waiting { reason, .. } if reason == "ErrImagePull"));

    pod.plan["generation"] = json!(2);
    pod.plan["containers"][0]["spec_hash"] = json!("2");
    pod.plan["containers"][1]["source"]["spec"]["linux"]["resources"]["memory"]["limit"] =
        json!(67_108_864);
    pod.plan["containers"][3]["source"] = ready;
    let debug = pod.complete(json!({ "name": "debug", "kind": "ephemeral" }));
    let containers = pod.plan["containers"].as_array_mut().expect("containers");
    containers.remove(2);
    containers.push(debug);
    pod.reload();

    let changed = pod.until_container("changed", "runs again", |c| {
        c.restart_count == 1 && pid(c).is_some()
    });
    assert_ne!(pid(&changed), Some(before[0]));
    pod.until_running("waiting");
    pod.until_running("debug");
    pod.wait_for("the removed one has ended", || {
        (!is_alive(before[2])).then_some(())
    });
    let snapshot = pod.snapshot();
    assert_eq!(snapshot.plan_generation, 2);
    assert_eq!(pid(of(&snapshot, "resized")), Some(before[1]));
    assert!(snapshot.containers.iter().all(|c| c.name != "removed"));
    let layout = podling_runtime::cgroup::Layout::detect().expect("cgroups");
    let cgroup = podling_runtime::cgroup::Cgroup::open(&layout, &pod.cgroup_path().join("resized"));
    let memory = cgroup.stats().expect("statistics").memory.expect("memory");
    assert_eq!(memory.limit_bytes, Some(67_108_864));
}

#[test]
fn a_bad_plan_is_refused_and_changes_nothing() {
    let mut pod = Pod::new(vec![json!({ "name": "main" })]);
    pod.start();
    let main = pod.until_running("main");
    let good = pod.plan.clone();
    for bad in ["{", "{}"] {
        pod.replace_plan(bad.as_bytes());
        let error = pod.client().request(&Request::Reload).expect_err("refused");
        assert!(error.to_string().contains("plan.json"), "{error}");
    }
    pod.plan["sysctls"] = json!({ "kernel.panic": "1" });
    pod.write_plan();
    let error = pod.client().request(&Request::Reload).expect_err("refused");
    assert!(error.to_string().contains("kernel.panic"), "{error}");
    // Nor does it keep the next supervisor from looking after the containers.
    for _ in 0..2 {
        pod.kill_supervisor();
        pod.start_supervisor();
        assert_eq!(pod.until_running("main"), main);
        let error = pod.client().request(&Request::Reload).expect_err("refused");
        assert!(error.to_string().contains("kernel.panic"), "{error}");
    }
    pod.plan = good;
    pod.reload();
    assert_eq!(pod.until_running("main"), main);
}

#[test]
fn a_shared_pid_namespace_has_its_own_first_process() {
    let mut pod = Pod::new(vec![
        json!({ "name": "main", "run": "exec sleep 1234" }),
        json!({ "name": "other", "run": "while ! ps | grep -q 'sleep 123[4]'; do sleep 0.1; done; echo seen; exec sleep 1000" }),
    ]);
    pod.plan["share_pid"] = json!(true);
    pod.plan["restart_policy"] = json!("never");
    pod.start();
    pod.wait_for("one sees the other", || {
        (pod.log("other", 0) == ["seen"]).then_some(())
    });
    let main = pod.until_running("main");
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(main).expect("a pid"),
        rustix::process::Signal::KILL,
    )
    .expect("a process");
    pod.until_container("main", "has ended", |c| {
        matches!(c.state, ContainerState::Terminated(_))
    });
    assert!(pid(of(&pod.snapshot(), "other")).is_some());
    pod.terminate(0);
    assert_eq!(pod.ask(&Request::Release), Reply::Ok);
    assert!(pod.wait_for_supervisor().success());
    assert!(!pod.cgroup().exists());
}

#[test]
fn the_active_deadline_ends_the_pod() {
    let mut pod = Pod::new(vec![json!({ "name": "main" })]);
    pod.plan["active_deadline_secs"] = json!(1);
    pod.plan["termination_grace_secs"] = json!(1);
    pod.start();
    let snapshot = pod.until_ended();
    let Stage::Ended { reason, .. } = snapshot.stage else {
        panic!("it should have ended")
    };
    assert_eq!(reason.as_deref(), Some("DeadlineExceeded"));
}

/// What a command prints that is run in a container as a client asks.
fn exec(pod: &Pod, container: &str, command: &[&str]) -> String {
    use std::io::Read;
    let request = exec_request(container, command);
    // The command would end with it.
    let client = pod.client();
    let (reply, descriptors) = client.request(&request).expect("a reply");
    assert_eq!(reply, Reply::ExecStarted);
    let stdout = descriptors.into_iter().next().expect("its output");
    let mut text = String::new();
    std::fs::File::from(stdout)
        .read_to_string(&mut text)
        .expect("text");
    text
}

fn exec_request(container: &str, command: &[&str]) -> Request {
    Request::Exec {
        container: container.to_owned(),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        tty: false,
        stdin: false,
        size: None,
    }
}

#[test]
fn commands_have_the_environment_that_the_container_was_started_with() {
    let mut pod = Pod::new(vec![json!({ "name": "main" })]);
    let env = |colour: &str| json!(["PATH=/bin", format!("COLOUR={colour}")]);
    pod.plan["containers"][0]["source"]["spec"]["process"]["env"] = env("red");
    pod.start();
    let main = pod.until_running("main");
    let colour = |pod: &Pod| exec(pod, "main", &["sh", "-c", "echo $COLOUR"]);
    assert_eq!(colour(&pod), "red\n");

    pod.plan["generation"] = json!(2);
    pod.plan["containers"][0]["source"]["spec"]["process"]["env"] = env("blue");
    pod.reload();
    assert_eq!(colour(&pod), "red\n");

    // Nor does a plan without anything to run cost a container that runs.
    pod.plan["generation"] = json!(3);
    pod.plan["containers"][0]["source"] =
        json!({ "kind": "waiting", "reason": "CreateContainerConfigError", "message": "gone" });
    pod.reload();
    pod.kill_supervisor();
    pod.start_supervisor();
    assert_eq!(pod.until_running("main"), main);
    assert_eq!(colour(&pod), "red\n");
}

#[test]
fn a_container_s_terminal_outlives_a_killed_supervisor() {
    let mut pod = Pod::new(vec![json!({ "name": "main", "tty": true, "stdin": true,
        "run": "trap 'echo hung up' HUP; stty -echo; echo ready; while read -r line; do echo \"heard $line\"; done" })]);
    pod.start();
    let main = pod.until_running("main");
    let until_logged = |pod: &Pod, wanted: &str| {
        pod.wait_for(wanted, || {
            let found = pod.log("main", 0).iter().any(|line| line.trim() == wanted);
            found.then_some(())
        });
    };
    let say = |pod: &Pod, word: &str| {
        use std::io::Write;
        let container = "main".to_owned();
        let (reply, descriptors) = pod
            .client()
            .request(&Request::Attach { container })
            .expect("a reply");
        assert_eq!(reply, Reply::Attached);
        let terminal = descriptors.into_iter().next().expect("a terminal");
        writeln!(std::fs::File::from(terminal), "{word}").expect("a terminal");
    };
    until_logged(&pod, "ready");
    say(&pod, "one");
    until_logged(&pod, "heard one");
    for word in ["two", "three"] {
        pod.kill_supervisor();
        pod.start_supervisor();
        assert_eq!(pod.until_running("main"), main);
        say(&pod, word);
        until_logged(&pod, &format!("heard {word}"));
    }
    assert!(
        !pod.log("main", 0)
            .iter()
            .any(|line| line.contains("hung up"))
    );
    pod.terminate(0);
    assert_eq!(pod.ask(&Request::Release), Reply::Ok);
    assert!(pod.wait_for_supervisor().success());
    assert!(!pod.cgroup().exists());
}

#[test]
fn a_command_that_is_not_there_or_cannot_be_executed_has_a_shell_s_exit_code() {
    let mut pod = Pod::new(vec![json!({ "name": "main" })]);
    pod.start();
    pod.until_running("main");
    for (program, expected) in [("no-such-program", 127), ("/etc", 126), ("/dev/null", 126)] {
        match pod.ask(&exec_request("main", &[program])) {
            Reply::ExecRefused { exit_code, message } => {
                assert_eq!(exit_code, expected, "{message}");
                assert!(message.contains(program), "{message}");
            }
            other => panic!("{program}: {other:?}"),
        }
    }
}

#[test]
fn a_pod_ends_in_the_middle_of_a_post_start_hook() {
    let mut pod = Pod::new(vec![json!({ "name": "main",
        "run": "trap 'echo term; exit 0' TERM; while :; do sleep 0.1; done",
        "post_start": { "kind": "exec", "command": ["sh", "-c", "touch /tmp/hook; exec sleep 1000"] } })]);
    pod.start();
    pod.until_running("main");
    pod.wait_for("the hook runs", || {
        (exec(&pod, "main", &["sh", "-c", "ls /tmp"]) == "hook\n").then_some(())
    });
    let snapshot = pod.terminate(30);
    let ContainerState::Terminated(end) = &of(&snapshot, "main").state else {
        panic!("it should have ended")
    };
    assert_eq!(end.exit_code, 0);
    assert_eq!(pod.log("main", 0), ["term"]);
    assert_eq!(pod.ask(&Request::Release), Reply::Ok);
    assert!(pod.wait_for_supervisor().success());
    assert!(!pod.cgroup().exists());
}

/// A directory of the host in all containers.
fn share_directory(pod: &mut Pod) {
    let shared = pod.path("shared");
    std::fs::create_dir(&shared).expect("a directory");
    for container in pod.plan["containers"].as_array_mut().expect("containers") {
        container["source"]["spec"]["mounts"]
            .as_array_mut()
            .expect("mounts")
            .push(
                json!({ "destination": "/shared", "type": "bind", "source": shared,
                          "options": ["rbind", "rw"] }),
            );
    }
}
