//! Manifests in a real etcd: watched, written back, survived.

use std::process::{Child, Command, Stdio};

use crate::node::Node;

const URL: &str = "http://127.0.0.1:2379";

struct Etcd(Child);

impl Etcd {
    fn start(node: &Node) -> Self {
        let mut command = node.command("etcd");
        command
            .arg("--data-dir")
            .arg(node.path("etcd"))
            .args(["--listen-client-urls", URL, "--advertise-client-urls", URL])
            .args([
                "--listen-peer-urls",
                "http://127.0.0.1:2380",
                "--log-level",
                "error",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let etcd = Self(command.spawn().expect("Debian's etcd-server"));
        node.wait("etcd answers", || {
            (ctl(node, &["get", "x"]).status().unwrap().success()).then_some(())
        });
        etcd
    }

    fn stop(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn ctl(node: &Node, args: &[&str]) -> Command {
    let mut command = node.command("etcdctl");
    command
        .env("ETCDCTL_API", "3")
        .args(["--endpoints", URL, "--command-timeout", "2s"])
        .args(args);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn put(node: &Node, key: &str, value: &str) {
    assert!(ctl(node, &["put", key, value]).status().unwrap().success());
}

fn pod(name: &str, text: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: main, image: localhost/busybox, command: [sleep, infinity], env: [{{name: TEXT, value: {text}}}]}}\n"
    )
}

#[test]
fn p03_pods_from_etcd_run_report_back_and_outlive_etcd() {
    let mut node = Node::new();
    let etcd = Etcd::start(&node);
    node.agent_args = ["--etcd", URL, "--etcd-prefix", "/podling"]
        .map(String::from)
        .into();
    node.start_agent();
    node.load_busybox();

    put(&node, "/podling/manifests/one", &pod("one", "a"));
    put(&node, "/podling/manifests/broken", "kind: Pod\nspec: 7\n");
    let one = node.wait_ready("one");
    node.wait("the broken key is named", || {
        node.podling(&["status"])
            .stdout
            .contains("/podling/manifests/broken")
            .then_some(())
    });

    let status = node.wait("the status is written back", || {
        let mut command = ctl(&node, &["get", "--prefix", "/podling/status/"]);
        let out = command.stdout(Stdio::piped()).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        text.contains("\"Running\"").then_some(text)
    });
    assert!(status.contains("/one"), "{status}");
    node.wait("a heartbeat is written", || {
        let out = ctl(&node, &["get", "--prefix", "/podling/nodes/"])
            .stdout(Stdio::piped())
            .output()
            .unwrap();
        (!out.stdout.is_empty()).then_some(())
    });

    // etcd away: the node goes on, over a restart of its agent too.
    etcd.stop();
    node.kill_agent();
    node.start_agent();
    let same = node.wait_ready("one");
    assert_eq!(same["metadata"]["uid"], one["metadata"]["uid"]);
    assert_eq!(
        same["status"]["containerStatuses"][0]["containerID"],
        one["status"]["containerStatuses"][0]["containerID"]
    );

    // etcd back: changes are seen again.
    let _etcd = Etcd::start(&node);
    put(&node, "/podling/manifests/two", &pod("two", "b"));
    node.wait_ready("two");
    assert!(
        ctl(&node, &["del", "/podling/manifests/one"])
            .status()
            .unwrap()
            .success()
    );
    node.wait_gone("one");
}

#[test]
fn p03_an_endpoint_by_name_is_found_and_all_of_its_addresses_are_tried() {
    let mut node = Node::new();
    let _etcd = Etcd::start(&node);
    // Nobody listens at the first address.
    let hosts = node.path("hosts");
    std::fs::write(
        &hosts,
        "127.0.0.9 etcd.test\n127.0.0.1 etcd.test localhost\n",
    )
    .unwrap();
    node.bind(&hosts, "/etc/hosts");
    node.agent_args = [
        "--etcd",
        "http://etcd.test:2379",
        "--etcd-prefix",
        "/podling",
    ]
    .map(String::from)
    .into();
    node.start_agent();
    put(
        &node,
        "/podling/manifests/one",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: one}\nspec: {terminationGracePeriodSeconds: 0, containers: [{name: main, image: podling.local/demo, args: [sleep]}]}\n",
    );
    node.wait_ready("one");
    assert!(node.podling(&["status"]).ok().contains("problems  none"));
}

#[test]
fn p03_one_object_from_two_writers_is_refused_with_both_names() {
    let mut node = Node::new();
    let _etcd = Etcd::start(&node);
    node.agent_args = ["--etcd", URL, "--etcd-prefix", "/podling"]
        .map(String::from)
        .into();
    node.start_agent();
    node.load_busybox();
    node.apply("mine.yaml", &pod("same", "file"));
    node.wait_ready("same");
    put(&node, "/podling/manifests/theirs", &pod("same", "etcd"));
    node.wait("both writers are named", || {
        let status = node.podling(&["status"]).stdout;
        (status.contains("mine.yaml") && status.contains("/podling/manifests/theirs")).then_some(())
    });
    assert_eq!(
        node.podling(&["exec", "same", "--", "sh", "-c", "echo $TEXT"])
            .ok()
            .trim(),
        "file"
    );
}
