//! Pods: order, sharing, volumes, environment.

use crate::node::{Node, container};

#[test]
fn p06_init_containers_run_in_order_and_containers_share_volumes_and_localhost() {
    let node = Node::start();
    node.load_busybox();
    node.apply("pod.yaml", "
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
  volumes:
  - {name: shared, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
  initContainers:
  - {name: first, image: localhost/busybox, command: [sh, -c, 'echo first >> /s/order'], volumeMounts: [{name: shared, mountPath: /s}]}
  - {name: second, image: localhost/busybox, command: [sh, -c, 'echo second >> /s/order'], volumeMounts: [{name: shared, mountPath: /s}]}
  containers:
  - {name: web, image: localhost/busybox, command: [httpd, -f, -p, '8080', -h, /s], volumeMounts: [{name: shared, mountPath: /s}]}
  - name: client
    image: localhost/busybox
    command: [sleep, infinity]
    volumeMounts: [{name: shared, mountPath: /elsewhere, readOnly: true}, {name: memory, mountPath: /m}]
");
    let pod = node.wait_ready("pod");
    assert_eq!(
        container(&pod, "first")["state"]["terminated"]["reason"],
        "Completed"
    );
    let sh = |script: &str| {
        node.podling(&["exec", "pod", "-c", "client", "--", "sh", "-c", script])
            .ok()
            .trim()
            .to_owned()
    };
    assert_eq!(
        sh("wget -q -O - http://127.0.0.1:8080/order"),
        "first\nsecond"
    );
    assert_eq!(
        sh("touch /elsewhere/x 2>/dev/null || echo refused"),
        "refused"
    );
    assert_eq!(
        sh("dd if=/dev/zero of=/m/x bs=1M count=16 2>/dev/null || echo full"),
        "full"
    );
}

#[test]
fn p06_config_maps_and_secrets_are_environment_and_files_and_change_live() {
    let node = Node::start();
    node.load_busybox();
    let config = |value: &str| {
        format!(
            "
apiVersion: v1
kind: ConfigMap
metadata: {{name: settings}}
data: {{colour: {value}, 'file.txt': 'text {value}'}}
---
apiVersion: v1
kind: Secret
metadata: {{name: password}}
stringData: {{word: s3cret}}
"
        )
    };
    node.apply("config.yaml", &config("red"));
    node.apply("pod.yaml", "
apiVersion: v1
kind: Pod
metadata: {name: pod, labels: {app: demo}}
spec:
  volumes:
  - {name: c, configMap: {name: settings, items: [{key: file.txt, path: sub/renamed.txt, mode: 0600}]}}
  - {name: s, secret: {secretName: password, defaultMode: 0440}}
  - {name: o, configMap: {name: absent, optional: true}}
  containers:
  - name: main
    image: localhost/busybox
    command: [sh, -c, 'echo \"$0\" > /tmp/args; sleep infinity', '$(GREETING)']
    env:
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
    - {name: WORD, valueFrom: {secretKeyRef: {name: password, key: word}}}
    - {name: GREETING, value: 'I am $(NAME), $$(NAME)'}
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: LABEL, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['app']\"}}}
    - {name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    envFrom: [{prefix: ALL_, configMapRef: {name: settings}}]
    resources: {limits: {memory: 64Mi}}
    volumeMounts:
    - {name: c, mountPath: /c}
    - {name: s, mountPath: /s}
    - {name: o, mountPath: /o}
");
    let pod = node.wait_ready("pod");
    let sh = |script: &str| {
        node.podling(&["exec", "pod", "--", "sh", "-c", script])
            .ok()
            .trim()
            .to_owned()
    };
    assert_eq!(
        sh("echo $COLOUR $WORD $LABEL $LIMIT $ALL_colour"),
        "red s3cret demo 64 red"
    );
    assert_eq!(sh("echo $IP"), pod["status"]["podIP"].as_str().unwrap());
    // NAME is defined after GREETING, so the reference stays as it is; `$$` is one dollar.
    assert_eq!(sh("cat /tmp/args"), "I am $(NAME), $(NAME)");
    assert_eq!(
        sh("cat /c/sub/renamed.txt; echo; stat -L -c %a /c/sub/renamed.txt"),
        "text red\n600"
    );
    assert_eq!(
        sh("cat /s/word; echo; stat -L -c %a /s/word"),
        "s3cret\n440"
    );
    assert_eq!(sh("grep ' /s ' /proc/mounts | grep -c tmpfs"), "1");
    assert_eq!(sh("ls /o | wc -l"), "0");

    node.apply("config.yaml", &config("blue"));
    node.wait("the file follows the ConfigMap", || {
        (sh("cat /c/sub/renamed.txt") == "text blue").then_some(())
    });
    assert_eq!(
        sh("tr '\\0' '\\n' < /proc/1/environ | grep COLOUR="),
        "COLOUR=red",
        "a running process keeps its environment"
    );
    assert_eq!(
        sh("echo $COLOUR $ALL_colour"),
        "red red",
        "a command has the environment of the container that runs"
    );
    let after = node.pod("pod").unwrap();
    assert_eq!(after["metadata"]["uid"], pod["metadata"]["uid"]);
}

#[test]
fn p06_a_missing_config_map_is_waited_for_and_named() {
    let node = Node::start();
    node.load_busybox();
    node.apply("pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: pod}\nspec:\n  containers:\n  - {name: main, image: localhost/busybox, command: [sleep, infinity], env: [{name: A, valueFrom: {configMapKeyRef: {name: later, key: a}}}]}\n");
    node.wait("why names the ConfigMap", || {
        node.podling(&["why", "pod"])
            .stdout
            .contains("later")
            .then_some(())
    });
    let pod = node.pod("pod").unwrap();
    assert_eq!(
        container(&pod, "main")["state"]["waiting"]["reason"],
        "CreateContainerConfigError"
    );
    node.apply(
        "config.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: later}\ndata: {a: b}\n",
    );
    node.wait_ready("pod");
}

#[test]
fn p06_host_paths_are_checked_by_type() {
    let node = Node::start();
    node.load_busybox();
    let dir = node.path("host");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("file"), "from the host").unwrap();
    let pod = |name: &str, path: &str, kind: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  volumes: [{{name: h, hostPath: {{path: {}, type: {kind}}}}}]\n  containers:\n  - {{name: main, image: localhost/busybox, command: [sleep, infinity], volumeMounts: [{{name: h, mountPath: /h}}]}}\n",
            dir.join(path).display()
        )
    };
    node.apply("dir.yaml", &pod("dir", "", "Directory"));
    node.apply(
        "create.yaml",
        &pod("create", "made/here", "DirectoryOrCreate"),
    );
    node.apply("wrong.yaml", &pod("wrong", "file", "Directory"));
    node.wait_ready("dir");
    node.wait_ready("create");
    assert_eq!(
        node.podling(&["exec", "dir", "--", "cat", "/h/file"]).ok(),
        "from the host"
    );
    assert!(dir.join("made/here").is_dir());
    node.wait("why names the wrong type", || {
        node.podling(&["why", "wrong"])
            .stdout
            .contains("not a directory")
            .then_some(())
    });
}

#[test]
fn p06_a_shared_process_namespace_shows_the_other_containers() {
    let node = Node::start();
    node.load_busybox();
    node.apply("pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: pod}\nspec:\n  shareProcessNamespace: true\n  containers:\n  - {name: a, image: localhost/busybox, command: [sleep, '12345']}\n  - {name: b, image: localhost/busybox, command: [sleep, infinity]}\n");
    node.wait_ready("pod");
    assert!(
        node.podling(&["exec", "pod", "-c", "b", "--", "ps"])
            .ok()
            .contains("sleep 12345")
    );
}

#[test]
fn p06_an_empty_dir_that_grows_past_its_limit_costs_its_pod() {
    let node = Node::start();
    node.load_busybox();
    node.apply("hog.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: hog}\nspec:\n  terminationGracePeriodSeconds: 600\n  volumes: [{name: scratch, emptyDir: {sizeLimit: 1Mi}}]\n  containers:\n  - {name: main, image: localhost/busybox, command: [sh, -c, 'dd if=/dev/zero of=/s/x bs=1M count=4; exec sleep 1000'], volumeMounts: [{name: scratch, mountPath: /s}]}\n");
    let pod = node.wait_pod("hog", "is evicted, and its container has ended", |p| {
        p["status"]["reason"] == "Evicted"
            && container(p, "main")["state"]["terminated"].is_object()
    });
    assert_eq!(pod["status"]["phase"], "Failed");
    let message = pod["status"]["message"].as_str().unwrap();
    assert!(
        message.contains("\"scratch\"") && message.contains("limit of 1Mi"),
        "{message}"
    );
    // The bytes that were too many are given back, the pod's end is not forgotten.
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    node.wait("the volume is gone", || {
        (!node.path("data/pods").join(uid).join("volumes").exists()).then_some(())
    });
    let kept =
        std::fs::read_to_string(node.path("data/pods").join(uid).join("status.json")).unwrap();
    assert!(
        kept.contains("Evicted") && kept.contains("terminated"),
        "{kept}"
    );
}

#[test]
fn p06_mounts_propagate_as_asked_for_and_read_only_is_so_all_the_way_down() {
    let node = Node::start();
    node.load_busybox();
    let host = node.path("host");
    let on_host = |script: &str| {
        let output = node
            .command("sh")
            .args(["-ec", script, "sh", host.to_str().unwrap()])
            .output()
            .unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    std::fs::create_dir(&host).unwrap();
    on_host(
        "mount -t tmpfs shared $1; mount --make-shared $1; mkdir $1/below $1/later $1/up; mount -t tmpfs below $1/below",
    );
    let container = |name: &str, privileged: bool, mount: &str| {
        format!(
            "  - {{name: {name}, image: localhost/busybox, command: [sleep, infinity], securityContext: {{privileged: {privileged}}}, volumeMounts: [{{name: h, mountPath: /h, {mount}}}]}}\n"
        )
    };
    let pod = |name: &str, path: &std::path::Path, containers: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  volumes: [{{name: h, hostPath: {{path: {}}}}}]\n  containers:\n{containers}",
            path.display()
        )
    };
    let containers = [
        container("none", false, "readOnly: false"),
        container("down", false, "mountPropagation: HostToContainer"),
        container("both", true, "mountPropagation: Bidirectional"),
        container("top", false, "readOnly: true"),
        container("all", false, "readOnly: true, recursiveReadOnly: Enabled"),
    ];
    node.apply("pod.yaml", &pod("pod", &host, &containers.concat()));
    let status = node.wait_ready("pod");
    assert_eq!(
        crate::node::container(&status, "all")["volumeMounts"][0]["recursiveReadOnly"],
        "Enabled"
    );
    let sh = |container: &str, script: &str| {
        let run = node.podling(&["exec", "pod", "-c", container, "--", "sh", "-c", script]);
        run.stdout.trim().to_owned()
    };
    on_host("mount -t tmpfs later $1/later; touch $1/later/file");
    assert_eq!(sh("none", "ls /h/later"), "");
    assert_eq!(sh("down", "ls /h/later"), "file");
    assert_eq!(sh("both", "ls /h/later"), "file");
    assert_eq!(
        sh(
            "both",
            "mount -t tmpfs up /h/up && touch /h/up/file && echo done"
        ),
        "done"
    );
    assert_eq!(on_host("ls $1/up"), "file\n");
    assert_eq!(sh("down", "ls /h/up"), "file");
    let write = "(echo x > /h/below/file) 2>/dev/null && echo written || echo refused";
    assert_eq!(sh("top", write), "written");
    assert_eq!(sh("all", write), "refused");
    // What could have no effect is said, not ignored.
    let private = node.path("private");
    std::fs::create_dir(&private).unwrap();
    node.apply(
        "alone.yaml",
        &pod(
            "alone",
            &private,
            &container("down", false, "mountPropagation: HostToContainer"),
        ),
    );
    node.wait("why names the mount", || {
        let why = node.podling(&["why", "alone"]).stdout;
        (why.contains("not on a shared mount")).then_some(())
    });
    node.remove("pod.yaml");
    node.wait_gone("pod");
    on_host("umount $1/up $1/later $1/below; umount $1");
}

#[test]
fn p06_a_privileged_container_has_the_host_s_devices() {
    let node = Node::start();
    node.load_busybox();
    let pod = |name: &str, privileged: bool| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: main, image: localhost/busybox, command: [sleep, infinity], securityContext: {{privileged: {privileged}}}}}\n"
        )
    };
    node.apply("all.yaml", &pod("all", true));
    node.apply("few.yaml", &pod("few", false));
    let list = "find /dev -xdev \\( -type b -o -type c \\) ! -path '/dev/pts/*' ! -name ptmx ! -name console | sort";
    let host = node.command("sh").args(["-c", list]).output().unwrap();
    let host = String::from_utf8(host.stdout).unwrap();
    node.wait_ready("all");
    node.wait_ready("few");
    let devices = |pod: &str| node.podling(&["exec", pod, "--", "sh", "-c", list]).ok();
    let (all, few) = (devices("all"), devices("few"));
    for device in host.lines() {
        assert!(
            all.lines().any(|d| d == device),
            "{device} is missing in {all}"
        );
    }
    assert_eq!(few.lines().count(), 6, "{few}");
    let null = "echo x > /dev/null && cat /dev/null && echo fine";
    assert_eq!(
        node.podling(&["exec", "all", "--", "sh", "-c", null]).ok(),
        "fine\n"
    );
}
