//! The agent may go; the pods stay, are probed and restarted.

use std::fs;

use serde_json::{Value, json};

use crate::node::{Node, container, image, restarts};

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: localhost/busybox
    command: [sh, -c, 'mkdir -p /w; touch /w/alive; httpd -f -p 8080 -h /w']
    livenessProbe: {httpGet: {port: 8080, path: /alive}, periodSeconds: 1, failureThreshold: 1, initialDelaySeconds: 2}
  - {name: other, image: localhost/busybox, command: [sleep, infinity]}
";

#[test]
fn p11_agents_killed_and_stopped_leave_containers_running() {
    let mut node = Node::start();
    node.load_busybox();
    node.apply("pod.yaml", POD);
    let before = node.wait_ready("pod");
    node.kill_agent();
    node.start_agent();
    let killed = node.wait_ready("pod");
    assert_eq!(node.stop_agent(), 0);
    assert!(
        node.http(node.pod_address(&before, 8080), "/alive")
            .is_some(),
        "the pod serves without an agent"
    );
    node.start_agent();
    let stopped = node.wait_ready("pod");
    for after in [killed, stopped] {
        for name in ["main", "other"] {
            assert_eq!(
                container(&after, name)["containerID"],
                container(&before, name)["containerID"]
            );
            assert_eq!(restarts(&after, name), 0);
        }
        assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    }
}

/// A tag is moved, by a pull of another pod or by hand: what runs goes on with the image that it was started with, also
/// when a new agent looks for the name again.
#[test]
fn p11_a_container_keeps_its_image_when_its_name_comes_to_mean_another() {
    let mut node = Node::start();
    node.load_busybox();
    node.apply("pod.yaml", POD);
    let before = node.wait_ready("pod");
    let archive = node.path("other.tar");
    let name = "localhost/busybox:latest";
    let native = || {
        let empty = tar::Builder::new(Vec::new()).into_inner().unwrap();
        image::write_archive(&archive, name, &[empty], json!({"Cmd": ["/none"]}));
    };
    let foreign = || image::foreign_archive(&archive, name);
    let moves: [(&dyn Fn(), &str, &str); 2] = [
        (&native, "linux/amd64", "using the image that is here"),
        (
            &foreign,
            "linux/s390x",
            "the image that is here is for linux/s390x",
        ),
    ];
    for (make, platform, sign) in moves {
        make();
        let archive = archive.to_str().unwrap();
        node.podling(&["images", "load", "--platform", platform, archive])
            .ok();
        node.kill_agent();
        node.start_agent();
        node.wait("the agent has looked for the image", || {
            let log = fs::read_to_string(node.path("agent.log")).unwrap();
            log.contains(sign).then_some(())
        });
        // Whatever it does about it, it does before it begins with another pod.
        node.apply("next.yaml", &POD.replace("name: pod", "name: next"));
        node.wait_pod("next", "is seen", |_| true);
        let after = node.wait_ready("pod");
        for name in ["main", "other"] {
            for field in ["containerID", "image", "imageID"] {
                let of = |pod: &Value| container(pod, name)[field].clone();
                assert_eq!(of(&after), of(&before), "{}", node.report());
            }
            assert_eq!(restarts(&after, name), 0);
        }
        node.remove("next.yaml");
        node.wait_gone("next");
    }
}

#[test]
fn p11_probes_and_restarts_work_without_an_agent() {
    let mut node = Node::start();
    node.load_busybox();
    node.apply("pod.yaml", POD);
    let before = node.wait_ready("pod");
    node.kill_agent();
    // `exec` needs no agent.
    node.podling(&["exec", "pod", "-c", "main", "--", "rm", "/w/alive"])
        .ok();
    let address = node.pod_address(&before, 8080);
    node.wait("the supervisor restarted it", || {
        (node.http(address, "/alive")?.0 == 200).then_some(())
    });
    node.start_agent();
    let after = node.wait_pod("pod", "one restart is known", |p| restarts(p, "main") == 1);
    assert_eq!(
        container(&after, "other")["containerID"],
        container(&before, "other")["containerID"]
    );
}

/// Refused by its supervisor; the same holds of a plan that was written by an agent which ended before it said so.
#[test]
fn p11_a_plan_that_the_supervisor_has_not_taken_is_told_again_by_a_new_agent() {
    let mut node = Node::start();
    node.load_busybox();
    node.apply("pod.yaml", POD);
    node.wait_ready("pod");
    fn refused(node: &Node) -> bool {
        let why = node.podling(&["why", "pod"]).stdout;
        why.contains("PlanRefused")
    }
    let probe = "httpGet: {port: 8080, host: no-such-name, path";
    node.apply(
        "pod.yaml",
        &POD.replace("httpGet: {port: 8080, path", probe),
    );
    node.wait(
        "the supervisor refuses a name that it cannot look up",
        || refused(&node).then_some(()),
    );
    node.kill_agent();
    node.start_agent();
    node.wait("a new agent knows that, too", || {
        refused(&node).then_some(())
    });
    node.apply("pod.yaml", POD);
    node.wait("the next plan is taken", || (!refused(&node)).then_some(()));
}

#[test]
fn p11_a_plan_that_the_supervisor_has_not_taken_is_told_to_the_next_supervisor() {
    let node = Node::start();
    node.load_busybox();
    node.apply("pod.yaml", POD);
    node.wait_ready("pod");
    let refusals = || {
        let log = std::fs::read_to_string(node.path("agent.log")).unwrap();
        log.lines().filter(|l| l.contains("PlanRefused")).count()
    };
    let probe = "httpGet: {port: 8080, host: no-such-name, path";
    let refused = POD.replace("httpGet: {port: 8080, path", probe);
    node.apply("pod.yaml", &refused);
    node.wait("it is refused", || (refusals() == 1).then_some(()));
    for others in 1..=2 {
        kill_supervisor(&node);
        node.wait("its successor refuses it too, and says so once", || {
            (refusals() == 1 + others).then_some(())
        });
        let why = node.podling(&["why", "pod"]).stdout;
        assert!(why.contains("PlanRefused"), "{why}");
    }
    node.apply("pod.yaml", POD);
    node.wait("the next plan is taken", || {
        let why = node.podling(&["why", "pod"]).stdout;
        (!why.contains("PlanRefused")).then_some(())
    });
}

#[test]
fn p11_a_pod_removed_while_the_agent_was_away_is_terminated() {
    let mut node = Node::start();
    node.load_busybox();
    node.apply("pod.yaml", POD);
    node.wait_ready("pod");
    node.kill_agent();
    node.remove("pod.yaml");
    node.start_agent();
    node.wait_gone("pod");
}

/// SIGKILL to the supervisor of the node's one pod.
fn kill_supervisor(node: &Node) {
    let supervisors: Vec<i32> = node
        .own_processes()
        .into_iter()
        .filter(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|c| c.trim() == "podling-pod")
        })
        .filter(|pid| {
            // The supervisor, not a helper it forked: its parent is not another one.
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let parent = stat
                .rsplit_once(')')
                .and_then(|(_, s)| s.split_whitespace().nth(1)?.parse::<i32>().ok())
                .unwrap_or(0);
            std::fs::read_to_string(format!("/proc/{parent}/comm"))
                .is_ok_and(|c| c.trim() != "podling-pod")
        })
        .collect();
    assert_eq!(supervisors.len(), 1, "one supervisor for one pod");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(supervisors[0]),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
}

#[test]
fn p11_a_killed_supervisor_is_started_again_and_adopts_its_containers() {
    let node = Node::start();
    node.load_busybox();
    node.apply("pod.yaml", POD);
    let before = node.wait_ready("pod");
    kill_supervisor(&node);
    node.wait("another supervisor answers", || {
        (node
            .podling(&["exec", "pod", "-c", "other", "--", "true"])
            .code
            == 0)
            .then_some(())
    });
    let after = node.wait_ready("pod");
    for name in ["main", "other"] {
        assert_eq!(
            container(&after, name)["containerID"],
            container(&before, name)["containerID"]
        );
        assert_eq!(restarts(&after, name), 0);
    }
    // It is watched as before: a crash is seen and mended.
    node.podling(&["exec", "pod", "-c", "main", "--", "rm", "/w/alive"])
        .ok();
    node.wait_pod("pod", "restarted", |p| {
        restarts(p, "main") == 1 && crate::node::is_ready(p)
    });
}

/// Pods that say each start in a file of the host.
fn once(name: &str, policy: &str, script: &str, host: &std::path::Path) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: {policy}\n  terminationGracePeriodSeconds: 0\n  volumes: [{{name: h, hostPath: {{path: {}}}}}]\n  containers:\n  - {{name: main, image: localhost/busybox, command: [sh, -c, 'echo {name} >> /h/starts; {script}'], volumeMounts: [{{name: h, mountPath: /h}}]}}\n",
        host.display()
    )
}

#[test]
fn p11_after_a_reboot_pods_run_again_unless_they_had_come_to_their_end() {
    let mut node = Node::start();
    node.load_busybox();
    let host = node.path("host");
    std::fs::create_dir(&host).unwrap();
    node.apply(
        "bad.yaml",
        &once("bad", "Never", "echo last words; exit 3", &host),
    );
    node.apply("good.yaml", &once("good", "OnFailure", "exit 0", &host));
    node.apply(
        "server.yaml",
        &once("server", "Always", "exec sleep 1000", &host),
    );
    let phase = |wanted: &'static str| move |p: &serde_json::Value| p["status"]["phase"] == wanted;
    let bad = node.wait_pod("bad", "has failed", phase("Failed"));
    node.wait_pod("good", "has succeeded", phase("Succeeded"));
    node.wait_ready("server");
    for name in ["bad", "good"] {
        let uid = node.pod(name).unwrap()["metadata"]["uid"]
            .as_str()
            .unwrap()
            .to_owned();
        node.wait("the end is on disk", || {
            node.path("data/pods")
                .join(&uid)
                .join("status.json")
                .exists()
                .then_some(())
        });
    }
    node.lose_power();
    node.start_agent();
    node.wait("the server is started again", || {
        let starts = std::fs::read_to_string(host.join("starts")).unwrap();
        (starts.lines().filter(|l| *l == "server").count() == 2).then_some(())
    });
    node.wait_ready("server");
    let after = node.wait_pod("bad", "has still failed", phase("Failed"));
    node.wait_pod("good", "has still succeeded", phase("Succeeded"));
    let starts = std::fs::read_to_string(host.join("starts")).unwrap();
    for name in ["bad", "good"] {
        assert_eq!(starts.lines().filter(|l| *l == name).count(), 1, "{starts}");
    }
    assert_eq!(after["metadata"]["uid"], bad["metadata"]["uid"]);
    assert_eq!(container(&after, "main"), container(&bad, "main"));
    assert_eq!(
        container(&after, "main")["state"]["terminated"]["exitCode"],
        3
    );
    assert_eq!(node.podling(&["logs", "bad"]).ok(), "last words\n");
    node.remove("bad.yaml");
    node.wait_gone("bad");
}

#[test]
fn p11_supervisors_that_die_again_and_again_are_not_started_without_a_pause() {
    use std::os::unix::fs::PermissionsExt;

    let mut node = Node::new();
    // The real one, killed soon after its start.
    let script = node.path("supervisor");
    let real = crate::node::bin_dir().join("podling-pod");
    let text = format!(
        "#!/bin/sh\n(sleep 0.3; kill -9 $$) >/dev/null 2>&1 &\nexec {} \"$@\"\n",
        real.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config =
        crate::node::registry::configure(&node, &format!("supervisor: {}\n", script.display()));
    node.agent_args = vec!["--config".into(), config.display().to_string()];
    node.start_agent();
    node.load_busybox();
    node.apply(
        "dies.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: dies}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {name: main, image: localhost/busybox, command: [sleep, infinity]}\n",
    );
    node.wait("the pause is announced", || {
        let why = node.podling(&["why", "dies"]).stdout;
        (why.contains("SupervisorFailed") && why.contains("tried again at")).then_some(())
    });
}

#[test]
fn p11_a_second_agent_below_the_same_cgroup_is_refused_while_the_first_lives() {
    let mut node = Node::start();
    let other = |node: &Node| {
        let dir = |name: &str| node.path(name).display().to_string();
        let mut command = node.podling_command(&[
            "agent",
            "--run-dir",
            &dir("other-run"),
            "--data-dir",
            &dir("other-data"),
            "--manifests",
            &dir("other-manifests"),
            "--cgroup-parent",
            node.cgroup(),
        ]);
        command.stderr(std::process::Stdio::piped());
        command.spawn().unwrap()
    };
    let refused: crate::node::Run = other(&node).wait_with_output().unwrap().into();
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(
        refused.stderr.contains(node.cgroup()) && refused.stderr.contains("--cgroup-parent"),
        "{}",
        refused.stderr
    );
    node.kill_agent();
    let mut second = other(&node);
    node.wait("the lock has gone with the first", || {
        node.path("other-run/agent.sock").exists().then_some(())
    });
    second.kill().unwrap();
    second.wait().unwrap();
}
