//! Probes, restarts, back-off, phases.

use crate::node::{Node, condition, container, restarts};

fn pod(name: &str, rest: &str, container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n{rest}  containers:\n  - name: main\n    image: localhost/busybox\n{container}"
    )
}

#[test]
fn p07_a_failed_liveness_probe_restarts_and_readiness_follows_its_probe() {
    let node = Node::start();
    node.load_busybox();
    node.apply("pod.yaml", &pod("pod", "", "    command: [sh, -c, 'mkdir -p /w; touch /w/alive /w/ready; httpd -p 8080 -h /w; sleep infinity']
    startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, failureThreshold: 30}
    livenessProbe: {exec: {command: [test, -e, /w/alive]}, periodSeconds: 1, failureThreshold: 1}
    readinessProbe: {httpGet: {port: 8080, path: /ready}, periodSeconds: 1, failureThreshold: 1}
"));
    let first = node.wait_ready("pod");
    assert_eq!(restarts(&first, "main"), 0);
    let sh = |script: &str| node.podling(&["exec", "pod", "--", "sh", "-c", script]);
    sh("rm /w/ready").ok();
    let unready = node.wait_pod("pod", "is not ready", |p| {
        condition(p, "Ready") == Some("False")
    });
    assert_eq!(restarts(&unready, "main"), 0, "readiness never restarts");
    sh("touch /w/ready").ok();
    node.wait_ready("pod");
    sh("rm /w/alive").ok();
    let again = node.wait_pod("pod", "restarted and ready", |p| {
        restarts(p, "main") == 1 && crate::node::is_ready(p)
    });
    let last = &container(&again, "main")["lastState"]["terminated"];
    assert_ne!(last["exitCode"], 0);
    assert_eq!(again["status"]["podIP"], first["status"]["podIP"]);
    assert_eq!(again["metadata"]["uid"], first["metadata"]["uid"]);
}

/// A gRPC server of few words: whatever it is asked, it gives the status of a file; 1 is SERVING, 2 NOT_SERVING.
/// It serves one client at a time, so that two probes at once would be in each other's way.
const GRPC_SERVER: &str = r"    command:
    - sh
    - -c
    - |
      echo 1 > /status
      cat > /answer <<'END'
      head -c 100 > /dev/null
      printf '\000\000\000\004\000\000\000\000\000'
      printf '\000\000\001\001\004\000\000\000\001\210'
      printf '\000\000\007\000\000\000\000\000\001\000\000\000\000\002\010\00'$(cat /status)
      printf '\000\000\017\001\005\000\000\000\001\000\013grpc-status\0010'
      cat > /dev/null
      END
      while :; do nc -l -p 5000 -e sh /answer; done
";

#[test]
fn p07_what_a_grpc_probe_finds_not_serving_is_restarted() {
    let node = Node::start();
    node.load_busybox();
    let probes = "    startupProbe: {grpc: {port: 5000}, periodSeconds: 1, failureThreshold: 30}
    livenessProbe: {grpc: {port: 5000, service: shop.Cart}, periodSeconds: 1}
";
    node.apply(
        "pod.yaml",
        &pod("pod", "", &format!("{GRPC_SERVER}{probes}")),
    );
    let first = node.wait_ready("pod");
    assert_eq!(restarts(&first, "main"), 0);
    node.podling(&["exec", "pod", "--", "sh", "-c", "echo 2 > /status"])
        .ok();
    node.wait_pod("pod", "restarted and ready", |p| {
        restarts(p, "main") > 0 && crate::node::is_ready(p)
    });
}

#[test]
fn p07_restart_policies_decide_phases() {
    let node = Node::start();
    node.load_busybox();
    let run = |policy: &str, script: &str| {
        pod(
            &format!(
                "{}-{}",
                policy.to_lowercase(),
                if script.contains("exit 0") {
                    "good"
                } else {
                    "bad"
                }
            ),
            &format!("  restartPolicy: {policy}\n"),
            &format!("    command: [sh, -c, '{script}']\n"),
        )
    };
    node.apply("a.yaml", &run("Never", "exit 0"));
    node.apply(
        "b.yaml",
        &run("Never", "echo last words > /dev/termination-log; exit 7"),
    );
    node.apply("c.yaml", &run("OnFailure", "exit 0"));
    node.apply("d.yaml", &run("OnFailure", "exit 3"));
    node.apply("e.yaml", &run("Always", "exit 0"));
    let phase = |name: &str, phase: &'static str| {
        node.wait_pod(name, phase, move |p| p["status"]["phase"] == phase)
    };
    phase("never-good", "Succeeded");
    let failed = phase("never-bad", "Failed");
    let end = &container(&failed, "main")["state"]["terminated"];
    assert_eq!(
        (end["exitCode"].as_i64(), end["reason"].as_str()),
        (Some(7), Some("Error"))
    );
    assert_eq!(end["message"].as_str().map(str::trim), Some("last words"));
    phase("onfailure-good", "Succeeded");
    for name in ["onfailure-bad", "always-good"] {
        // First restart at once, then the back-off.
        let pod = node.wait_pod(name, "backs off after one restart", |p| {
            container(p, "main")["state"]["waiting"]["reason"] == "CrashLoopBackOff"
                && restarts(p, "main") >= 1
        });
        assert_eq!(pod["status"]["phase"], "Running");
        assert!(node.podling(&["why", name]).ok().contains("back-off"));
    }
}

#[test]
fn p07_a_memory_hog_is_killed_alone_and_named() {
    let node = Node::start();
    node.load_busybox();
    node.apply("pod.yaml", &format!("{}  - {{name: bystander, image: localhost/busybox, command: [sleep, infinity]}}\n", pod("pod", "", "    command: [sh, -c, 'sleep 1; exec dd if=/dev/zero of=/dev/null bs=256M count=4']\n    resources: {limits: {memory: 32Mi}}\n")));
    let pod = node.wait_pod("pod", "OOMKilled", |p| {
        container(p, "main")["lastState"]["terminated"]["reason"] == "OOMKilled"
            || container(p, "main")["state"]["terminated"]["reason"] == "OOMKilled"
    });
    assert_eq!(restarts(&pod, "bystander"), 0);
}

#[test]
fn p07_a_command_that_does_not_exist_is_a_start_error() {
    let node = Node::start();
    node.load_busybox();
    node.apply(
        "pod.yaml",
        &pod(
            "pod",
            "  restartPolicy: Never\n",
            "    command: [/no/such/program]\n",
        ),
    );
    let pod = node.wait_pod("pod", "failed", |p| p["status"]["phase"] == "Failed");
    let end = &container(&pod, "main")["state"]["terminated"];
    assert_eq!(
        (end["exitCode"].as_i64(), end["reason"].as_str()),
        (Some(128), Some("StartError"))
    );
    assert!(
        end["message"]
            .as_str()
            .unwrap()
            .contains("/no/such/program")
    );
}

#[test]
fn p07_a_fork_bomb_stays_in_its_cgroup() {
    let mut node = Node::new();
    let config = node.path("config.yaml");
    std::fs::write(&config, "pidsPerPod: 64\n").unwrap();
    node.agent_args = vec!["--config".into(), config.display().to_string()];
    node.start_agent();
    node.load_busybox();
    node.apply(
        "bomb.yaml",
        &pod(
            "bomb",
            "",
            "    command: [sh, -c, 'b() { b | b & }; b; while :; do sleep 1; done']\n",
        ),
    );
    node.apply(
        "calm.yaml",
        &pod("calm", "", "    command: [sleep, infinity]\n"),
    );
    let calm = node.wait_ready("calm");
    let bomb = node.wait_pod("bomb", "started", |p| {
        container(p, "main")["containerID"].is_string()
    });
    let uid = bomb["metadata"]["uid"].as_str().unwrap();
    let path = format!("besteffort/pod{uid}");
    if let Some(limit) = node.cgroup_file("pids", &path, "pids.max") {
        assert_eq!(limit, "64");
    }
    let current: u64 = node
        .cgroup_file("pids", &path, "pids.current")
        .unwrap()
        .parse()
        .unwrap();
    assert!(current <= 64);
    assert_eq!(restarts(&calm, "main"), 0);
    node.remove("bomb.yaml");
    node.wait_gone("bomb");
}
