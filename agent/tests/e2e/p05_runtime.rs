//! What a process sees of its container: namespaces, protections, limits.

use crate::node::Node;

#[test]
fn p05_a_container_has_its_own_namespaces_limits_and_protections() {
    let node = Node::start();
    node.load_busybox();
    node.apply("box.yaml", "
apiVersion: v1
kind: Pod
metadata: {name: box}
spec:
  hostname: boxy
  containers:
  - name: main
    image: localhost/busybox
    command: [sleep, infinity]
    resources:
      requests: {cpu: 200m, memory: 100Mi}
      limits: {cpu: 300m, memory: 200Mi}
  - name: user
    image: localhost/busybox
    command: [sleep, infinity]
    workingDir: /data
    securityContext: {runAsUser: 1000, runAsGroup: 1000, readOnlyRootFilesystem: true, allowPrivilegeEscalation: false}
");
    let pod = node.wait_ready("box");
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let sh = |container: &str, script: &str| {
        node.podling(&["exec", "box", "-c", container, "--", "sh", "-c", script])
            .ok()
            .trim()
            .to_owned()
    };

    assert_eq!(sh("main", "hostname"), "boxy");
    assert_eq!(
        sh("main", "cat /proc/1/cmdline | tr '\\0' ' '"),
        "sleep infinity"
    );
    assert_eq!(sh("user", "id -u; id -g; pwd"), "1000\n1000\n/data");
    assert_eq!(
        sh("user", "touch /x 2>/dev/null || echo refused"),
        "refused"
    );
    assert_eq!(
        sh("user", "grep NoNewPrivs /proc/self/status | tr -d '\\t '"),
        "NoNewPrivs:1"
    );
    assert_eq!(
        sh("main", "grep Seccomp: /proc/self/status | tr -d '\\t '"),
        "Seccomp:2"
    );
    assert_eq!(
        sh("main", "grep CapEff /proc/self/status | tr -d '\\t '"),
        "CapEff:00000000a80425fb"
    );
    assert_eq!(
        sh(
            "main",
            "echo x 2>/dev/null >/proc/sys/kernel/hostname || echo refused"
        ),
        "refused"
    );
    assert_eq!(
        sh("main", "cat /proc/kcore 2>/dev/null | head -c 1 | wc -c"),
        "0"
    );
    assert_eq!(
        sh("main", "mount -t tmpfs t /tmp 2>/dev/null || echo refused"),
        "refused"
    );
    assert_eq!(
        sh("main", "ls /proc/self/fd | wc -l"),
        "4",
        "0, 1, 2 and the one of ls itself"
    );

    let below = format!("burstable/pod{uid}/main");
    let read = |controller: &str, file: &str| node.cgroup_file(controller, &below, file);
    if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        assert_eq!(read("", "memory.max").as_deref(), Some("209715200"));
        assert_eq!(read("", "cpu.max").as_deref(), Some("30000 100000"));
    } else {
        assert_eq!(
            read("memory", "memory.limit_in_bytes").as_deref(),
            Some("209715200")
        );
        assert_eq!(read("cpu", "cpu.cfs_quota_us").as_deref(), Some("30000"));
        assert_eq!(read("cpu", "cpu.shares").as_deref(), Some("204"));
    }
}

#[test]
fn p05_no_mount_of_a_container_shows_on_the_host() {
    let node = Node::start();
    node.load_busybox();
    node.apply("box.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: box}\nspec:\n  containers:\n  - {name: main, image: localhost/busybox, command: [sleep, infinity]}\n");
    node.wait_ready("box");
    let mounts = String::from_utf8(
        node.command("cat")
            .arg("/proc/self/mountinfo")
            .output()
            .unwrap()
            .stdout,
    )
    .unwrap();
    assert!(
        !mounts
            .lines()
            .any(|l| l.contains(" overlay ") && l.contains("containers/")),
        "{mounts}"
    );
}

#[test]
fn p05_the_classes_of_pods_share_the_cpu_by_their_requests() {
    let node = Node::start();
    node.load_busybox();
    let pod = |name: &str, resources: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  restartPolicy: Never\n  containers:\n  - {{name: main, image: localhost/busybox, command: [sh, -c, 'until [ -e /end ]; do sleep 0.1; done'], resources: {resources}}}\n"
        )
    };
    // cpu.shares on v1; on v2 the weights that runc and crun make of the same shares.
    let v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let weighs = |class: &str, shares: &str, weight: &str| {
        let (file, expected) = if v2 {
            ("cpu.weight", weight)
        } else {
            ("cpu.shares", shares)
        };
        node.wait(&format!("{class} has {expected} in {file}"), || {
            (node.cgroup_file("cpu", class, file)? == expected).then_some(())
        });
    };
    node.apply("a.yaml", &pod("a", "{requests: {cpu: 250m}}"));
    node.wait_ready("a");
    weighs("burstable", "256", "35");
    assert_eq!(node.cgroup_file("cpu", "besteffort", "tasks"), None);
    node.apply(
        "b.yaml",
        &pod("b", "{requests: {cpu: 250m}, limits: {cpu: 1}}"),
    );
    node.apply("best.yaml", &pod("best", "{}"));
    node.wait_ready("b");
    node.wait_ready("best");
    weighs("burstable", "512", "59");
    weighs("besteffort", "2", "1");
    // One that has come to its end asks for nothing.
    node.podling(&["exec", "b", "--", "touch", "/end"]).ok();
    weighs("burstable", "256", "35");
    node.remove("a.yaml");
    weighs("burstable", "2", "1");
}
