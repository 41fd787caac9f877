//! Manifests in a directory: added, changed, removed, broken.

use crate::node::{Node, container, restarts};

fn sleeper(name: &str, env: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    image: localhost/busybox\n    command: [sleep, infinity]\n    env: [{{name: COLOUR, value: '{env}'}}]\n"
    )
}

#[test]
fn p02_added_changed_and_removed_files_converge() {
    let node = Node::start();
    node.load_busybox();
    node.apply("one.yaml", &sleeper("one", "red"));
    let first = node.wait_ready("one");
    assert_eq!(
        node.podling(&["exec", "one", "--", "sh", "-c", "echo $COLOUR"])
            .ok()
            .trim(),
        "red"
    );

    node.apply("one.yaml", &sleeper("one", "blue"));
    let second = node.wait_pod("one", "is replaced and ready", |p| {
        crate::node::is_ready(p) && p["metadata"]["uid"] != first["metadata"]["uid"]
    });
    assert_ne!(first["metadata"]["uid"], second["metadata"]["uid"]);
    assert_eq!(
        node.podling(&["exec", "one", "--", "sh", "-c", "echo $COLOUR"])
            .ok()
            .trim(),
        "blue"
    );

    node.remove("one.yaml");
    node.wait_gone("one");
}

#[test]
fn p02_many_documents_lists_and_json_are_read_and_editor_files_are_not() {
    let node = Node::start();
    node.load_busybox();
    let backup = sleeper("backup", "x");
    for ignored in [
        "two.yaml~",
        ".two.yaml.swp",
        "two.yaml.bak",
        "two.yaml.orig",
        "#two.yaml#",
        "notes.txt",
    ] {
        std::fs::write(node.path("manifests").join(ignored), &backup).unwrap();
    }
    let list = serde_json::json!({ "apiVersion": "v1", "kind": "List", "items": [
        { "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "from-list" }, "spec": {
            "containers": [{ "name": "main", "image": "localhost/busybox", "command": ["sleep", "infinity"] }] } },
    ]});
    node.apply("list.json", &list.to_string());
    node.apply(
        "two.yml",
        &format!("{}---\n{}", sleeper("two-a", "1"), sleeper("two-b", "2")),
    );
    for pod in ["from-list", "two-a", "two-b"] {
        node.wait_ready(pod);
    }
    assert!(node.pod("backup").is_none());
}

#[test]
fn p02_a_broken_file_is_named_with_line_and_field_while_others_go_on() {
    let node = Node::start();
    node.load_busybox();
    node.apply("good.yaml", &sleeper("good", "1"));
    let good = node.wait_ready("good");
    // The last good version goes on when its file breaks.
    node.apply(
        "good.yaml",
        &sleeper("good", "1").replace("command:", "comand:"),
    );
    let status = node.wait("status shows the mistake", || {
        let status = node.podling(&["status"]).stdout;
        (status.contains("good.yaml") && status.contains("comand")).then_some(status)
    });
    assert!(status.contains("spec.containers[0]"), "{status}");
    assert!(
        status.contains(":9") || status.contains("line 9"),
        "the line of the mistake: {status}"
    );
    node.apply("other.yaml", &sleeper("other", "1"));
    node.wait_ready("other");
    let still = node.pod("good").expect("the last good version");
    assert_eq!(still["metadata"]["uid"], good["metadata"]["uid"]);
    assert_eq!(restarts(&still, "main"), 0);
    assert_eq!(
        container(&still, "main")["containerID"],
        container(&good, "main")["containerID"]
    );

    node.apply("good.yaml", &sleeper("good", "1"));
    node.wait("the mistake is forgotten", || {
        (!node.podling(&["status"]).stdout.contains("comand")).then_some(())
    });
}

#[test]
fn p02_unsupported_and_mistyped_fields_are_refused() {
    let node = Node::start();
    let cases = [
        ("type.yaml", sleeper("a", "1").replace("terminationGracePeriodSeconds: 1", "terminationGracePeriodSeconds: soon"), "terminationGracePeriodSeconds"),
        ("kind.yaml", "apiVersion: v1\nkind: Pood\nmetadata: {name: x}\n".to_owned(), "Pood"),
        ("subpath.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: s}\nspec:\n  volumes: [{name: v, emptyDir: {}}]\n  containers:\n  - name: c\n    image: localhost/busybox\n    volumeMounts: [{name: v, mountPath: /v, subPath: /}]\n".to_owned(), "subPath"),
    ];
    for (file, text, _) in &cases {
        node.apply(file, text);
    }
    for (file, _, word) in &cases {
        node.wait(&format!("{file} is refused"), || {
            let status = node.podling(&["status"]).stdout;
            (status.contains(file) && status.contains(word)).then_some(())
        });
    }
}

#[test]
fn p02_a_yaml_alias_bomb_and_a_huge_manifest_are_refused_while_others_go_on() {
    let node = Node::start();
    node.load_busybox();
    let mut bomb = String::from(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bomb}\ndata:\n  a: &a [x,x,x,x,x,x,x,x,x]\n",
    );
    for (this, before) in ('b'..='j').zip('a'..) {
        let aliases = vec![format!("*{before}"); 9].join(",");
        bomb.push_str(&format!("  {this}: &{this} [{aliases}]\n"));
    }
    node.apply("bomb.yaml", &bomb);
    let huge = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: huge}}\ndata:\n  k: {}\n",
        "x".repeat(100 << 20)
    );
    node.apply("huge.yaml", &huge);
    node.apply("ok.yaml", &sleeper("ok", "1"));
    node.wait_ready("ok");
    for file in ["bomb.yaml", "huge.yaml"] {
        node.wait(&format!("{file} is refused"), || {
            node.podling(&["status"])
                .stdout
                .contains(file)
                .then_some(())
        });
    }
}

#[test]
fn p02_a_directory_that_is_taken_away_is_told_once_and_followed_again() {
    let node = Node::start();
    node.load_busybox();
    node.apply("one.yaml", &sleeper("one", "red"));
    let before = node.wait_ready("one");
    let lines = |text: &str| {
        let log = std::fs::read_to_string(node.path("agent.log")).unwrap();
        log.lines().filter(|line| line.contains(text)).count()
    };
    for times in 1..=2 {
        std::fs::rename(node.path("manifests"), node.path("away")).unwrap();
        node.wait("it is told", || {
            (lines("the directory is not there") == times).then_some(())
        });
        assert!(node.pod("one").is_some(), "what it said stays");
        std::fs::rename(node.path("away"), node.path("manifests")).unwrap();
        node.wait("so is its return", || {
            (lines("manifests are read again") == times).then_some(())
        });
        assert_eq!(lines("the directory is not there"), times);
    }
    node.apply("two.yaml", &sleeper("two", "red"));
    node.wait_ready("two");
    let after = node.wait_ready("one");
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert!(node.podling(&["status"]).ok().contains("problems  none"));
}
