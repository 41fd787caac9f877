//! The end of a pod: hooks, signals, grace, and nothing left.

use crate::node::Node;

fn pod(name: &str, grace: u32, script: &str, lifecycle: &str, host: &std::path::Path) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: {grace}\n  volumes: [{{name: h, hostPath: {{path: {}}}}}]\n  containers:\n  - name: main\n    image: localhost/busybox\n    command: [sh, -c, '{script}']\n    volumeMounts: [{{name: h, mountPath: /h}}]\n{lifecycle}",
        host.display()
    )
}

#[test]
fn p10_pre_stop_then_the_stop_signal_then_nothing_is_left() {
    let node = Node::start();
    node.load_busybox();
    let host = node.path("host");
    std::fs::create_dir(&host).unwrap();
    node.apply("pod.yaml", &pod("pod", 30, "trap \"echo term >> /h/order; exit 0\" TERM; echo up > /h/up; while :; do sleep 1; done", "    lifecycle: {preStop: {exec: {command: [sh, -c, \"echo prestop >> /h/order\"]}}}\n", &host));
    let pod = node.wait_ready("pod");
    node.wait("the container is up", || {
        host.join("up").exists().then_some(())
    });
    let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
    node.remove("pod.yaml");
    node.wait_gone("pod");
    assert_eq!(
        std::fs::read_to_string(host.join("order")).unwrap(),
        "prestop\nterm\n"
    );
    node.wait(
        "no cgroup, directory, namespace or link of the pod is left",
        || {
            let cgroups = node
                .leftover_cgroups()
                .iter()
                .any(|p| p.to_string_lossy().contains(&uid));
            let dirs = ["run/pods", "run/netns", "data/pods"]
                .iter()
                .any(|d| node.path(d).join(&uid).exists());
            let links = String::from_utf8(
                node.command("ip")
                    .args(["-o", "link", "show", "type", "veth"])
                    .output()
                    .unwrap()
                    .stdout,
            )
            .unwrap();
            (!cgroups && !dirs && links.trim().is_empty()).then_some(())
        },
    );
}

#[test]
fn p10_a_container_deaf_to_its_stop_signal_is_killed_after_the_grace_period() {
    let node = Node::start();
    node.load_busybox();
    let host = node.path("host");
    std::fs::create_dir(&host).unwrap();
    node.apply(
        "deaf.yaml",
        &pod(
            "deaf",
            1,
            "trap \"\" TERM; echo up > /h/up; while :; do sleep 1; done",
            "",
            &host,
        ),
    );
    node.wait_ready("deaf");
    node.wait("the container is up", || {
        host.join("up").exists().then_some(())
    });
    node.remove("deaf.yaml");
    node.wait_gone("deaf");
}

#[test]
fn p10_termination_goes_on_when_the_agent_is_killed_in_the_middle() {
    let mut node = Node::start();
    node.load_busybox();
    let host = node.path("host");
    std::fs::create_dir(&host).unwrap();
    node.apply("slow.yaml", &pod("slow", 60, "trap \"echo term > /h/term; sleep 2; echo end > /h/end; exit 0\" TERM; echo up > /h/up; while :; do sleep 0.1; done", "", &host));
    node.wait_ready("slow");
    node.wait("the container is up", || {
        host.join("up").exists().then_some(())
    });
    node.remove("slow.yaml");
    node.wait("the stop signal arrived", || {
        host.join("term").exists().then_some(())
    });
    node.kill_agent();
    node.wait("the container ended by itself", || {
        host.join("end").exists().then_some(())
    });
    node.start_agent();
    node.wait_gone("slow");
}
