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

#[test]
fn p10_a_pod_that_has_come_to_its_end_holds_nothing_but_its_status_and_its_logs() {
    let mut node = Node::start();
    node.load_busybox();
    node.apply("done.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: done}\nspec:\n  restartPolicy: Never\n  volumes: [{name: m, emptyDir: {medium: Memory}}]\n  containers:\n  - {name: main, image: localhost/busybox, command: [sh, -c, 'echo hello > /m/x; cat /m/x'], ports: [{containerPort: 80, hostPort: 8099}], volumeMounts: [{name: m, mountPath: /m}]}\n");
    let pod = node.wait_pod("done", "has succeeded", |p| {
        p["status"]["phase"] == "Succeeded"
    });
    let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
    let output = |program: &str, args: &[&str]| {
        let output = node.command(program).args(args).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    node.wait(
        "supervisor, cgroup, network and mounts are released",
        || {
            let cgroups = node.leftover_cgroups();
            let held = cgroups.iter().any(|p| p.to_string_lossy().contains(&uid))
                || node.path("run/netns").join(&uid).exists()
                || node
                    .path("run/pods")
                    .join(&uid)
                    .join("supervisor.sock")
                    .exists()
                || !output("ip", &["-o", "link", "show", "type", "veth"]).is_empty()
                || output("cat", &["/proc/mounts"]).contains(&uid);
            (!held).then_some(())
        },
    );
    let supervisors = node.own_processes().into_iter().filter(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|c| c.trim() == "podling-pod")
    });
    assert_eq!(supervisors.count(), 0);
    let check = |node: &Node| {
        assert_eq!(node.podling(&["logs", "done"]).ok(), "hello\n");
        let now = node.pod("done").unwrap();
        assert_eq!(now["status"]["phase"], "Succeeded");
        assert_eq!(now["status"]["podIP"], pod["status"]["podIP"]);
        assert_eq!(
            now["status"]["containerStatuses"],
            pod["status"]["containerStatuses"]
        );
        let exec = node.podling(&["exec", "done", "--", "true"]);
        assert!(exec.stderr.contains("Succeeded"), "{}", exec.stderr);
    };
    check(&node);
    // Nor does it need an agent to be known.
    node.kill_agent();
    let offline = node.podling(&["get", "pods"]);
    assert!(
        offline.stdout.contains("Succeeded") || offline.stdout.contains("Completed"),
        "{}",
        offline.stdout
    );
    node.start_agent();
    check(&node);
    node.remove("done.yaml");
    node.wait_gone("done");
    node.wait("nothing is left", || {
        let left = ["run/pods", "data/pods"]
            .iter()
            .any(|dir| node.path(dir).join(&uid).exists());
        (!left).then_some(())
    });
}
