//! Logs in CRI format: whole, rotated, bounded.

use std::path::PathBuf;

use crate::node::{Node, restarts};

fn log_dir(node: &Node, pod: &serde_json::Value, container: &str) -> PathBuf {
    let meta = &pod["metadata"];
    node.path("logs")
        .join(format!(
            "default_{}_{}",
            meta["name"].as_str().unwrap(),
            meta["uid"].as_str().unwrap()
        ))
        .join(container)
}

fn pod(script: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: pod}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - name: main\n    image: localhost/busybox\n    command: [sh, -c, '{script}']\n"
    )
}

#[test]
fn p09_lines_are_cri_records_and_the_previous_run_is_kept() {
    let node = Node::start();
    node.load_busybox();
    node.apply(
        "pod.yaml",
        &pod("echo out; echo err >&2; printf no-newline; sleep 1; exit 1"),
    );
    let pod = node.wait_pod("pod", "restarted", |p| restarts(p, "main") >= 1);
    let text = std::fs::read_to_string(log_dir(&node, &pod, "main").join("0.log")).unwrap();
    let fields: Vec<Vec<&str>> = text.lines().map(|l| l.splitn(4, ' ').collect()).collect();
    assert!(
        fields.iter().any(|f| f[1..] == ["stdout", "F", "out"]),
        "{text}"
    );
    assert!(
        fields.iter().any(|f| f[1..] == ["stderr", "F", "err"]),
        "{text}"
    );
    assert!(
        fields
            .iter()
            .any(|f| f[1..] == ["stdout", "P", "no-newline"]),
        "{text}"
    );
    assert!(
        fields
            .iter()
            .all(|f| f[0].parse::<jiff::Timestamp>().is_ok()),
        "{text}"
    );
    assert!(
        node.podling(&["logs", "pod", "--previous"])
            .ok()
            .contains("out")
    );
}

#[test]
fn p09_nothing_is_lost_while_the_agent_restarts() {
    let mut node = Node::start();
    node.load_busybox();
    node.apply(
        "pod.yaml",
        &pod("i=0; while [ $i -lt 3000 ]; do echo line-$i; i=$((i+1)); done; sleep infinity"),
    );
    node.wait_pod("pod", "runs", |p| p["status"]["phase"] == "Running");
    node.kill_agent();
    node.start_agent();
    node.wait("the last line", || {
        node.podling(&["logs", "pod"])
            .stdout
            .contains("line-2999\n")
            .then_some(())
    });
    let lines: Vec<String> = node
        .podling(&["logs", "pod"])
        .ok()
        .lines()
        .map(str::to_owned)
        .collect();
    assert_eq!(
        lines,
        (0..3000).map(|i| format!("line-{i}")).collect::<Vec<_>>()
    );
}

#[test]
fn p09_a_gigabyte_without_a_newline_is_rotated_and_bounded() {
    let mut node = Node::new();
    let config = node.path("config.yaml");
    std::fs::write(&config, "logs: {maxBytes: 1048576, maxFiles: 3}\n").unwrap();
    node.agent_args = vec!["--config".into(), config.display().to_string()];
    node.start_agent();
    node.load_busybox();
    node.apply(
        "pod.yaml",
        &pod("dd if=/dev/zero bs=1M count=1024 2>/dev/null; echo done; sleep infinity"),
    );
    let pod = node.wait_pod("pod", "runs", |p| p["status"]["phase"] == "Running");
    let dir = log_dir(&node, &pod, "main");
    node.wait("all is written", || {
        node.podling(&["logs", "pod", "--tail", "1"])
            .stdout
            .trim_end()
            .ends_with("done")
            .then_some(())
    });
    let sizes: Vec<u64> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().len())
        .collect();
    assert!(
        sizes.len() <= 3 && sizes.iter().all(|s| *s <= 1 << 20),
        "{sizes:?}"
    );
}

/// It hung: the logs of such a pod stay until it is deleted.
#[test]
fn p09_following_the_log_of_a_pod_ends_with_the_pod() {
    let node = Node::start();
    node.load_busybox();
    let text =
        pod("echo begin; sleep 2; echo end").replace("spec:", "spec:\n  restartPolicy: Never");
    node.apply("pod.yaml", &text);
    node.wait_pod("pod", "running", |p| p["status"]["phase"] == "Running");
    assert_eq!(node.podling(&["logs", "-f", "pod"]).ok(), "begin\nend\n");
    node.wait_pod("pod", "ended", |p| p["status"]["phase"] == "Succeeded");
    assert_eq!(node.podling(&["logs", "-f", "pod"]).ok(), "begin\nend\n");
}
