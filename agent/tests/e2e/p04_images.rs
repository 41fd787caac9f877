//! Images from archives and from a registry.

use crate::node::registry::{Options, Registry, configure};
use crate::node::{Node, container, image};

#[test]
fn p04_a_pod_pulls_its_image_from_a_registry() {
    let mut node = Node::new();
    let config = configure(
        &node,
        "registries: [{host: '127.0.0.1:5000', plainHttp: true}]\n",
    );
    node.agent_args = vec!["--config".into(), config.display().to_string()];
    node.start_agent();
    let registry = Registry::start(&node, 5000, Options::default());
    registry.push_busybox(&node, "demo/busybox:v1");

    node.apply("pulled.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: pulled}\nspec:\n  containers:\n  - {name: main, image: '127.0.0.1:5000/demo/busybox:v1', command: [sleep, infinity]}\n  - {name: missing, image: '127.0.0.1:5000/demo/absent:v1'}\n  - {name: never, image: '127.0.0.1:5000/demo/other:v1', imagePullPolicy: Never}\n");
    let pod = node.wait_pod(
        "pulled",
        "one runs, one cannot be pulled, one must not be",
        |p| {
            let reason = |name| {
                container(p, name)["state"]["waiting"]["reason"]
                    .as_str()
                    .map(str::to_owned)
            };
            container(p, "main")["state"]["running"].is_object()
                && matches!(
                    reason("missing").as_deref(),
                    Some("ErrImagePull" | "ImagePullBackOff")
                )
                && reason("never").as_deref() == Some("ErrImageNeverPull")
        },
    );
    assert!(
        container(&pod, "main")["imageID"]
            .as_str()
            .unwrap()
            .contains("sha256:")
    );
    assert!(
        node.podling(&["images", "list"])
            .ok()
            .contains("127.0.0.1:5000/demo/busybox")
    );
    assert!(
        node.podling(&["why", "pulled"])
            .ok()
            .contains("demo/absent")
    );
}

#[test]
fn p04_an_archive_whose_layer_does_not_match_its_digest_is_refused() {
    let node = Node::new();
    let good = node.path("good.tar");
    image::busybox_archive(&good, "localhost/busybox:latest");
    let mut bytes = std::fs::read(&good).unwrap();
    let at = bytes
        .windows(8)
        .position(|w| w == b"web:x:10")
        .expect("the layer's /etc/passwd");
    bytes[at] = b'W';
    let bad = node.path("bad.tar");
    std::fs::write(&bad, bytes).unwrap();
    let refused = node.podling(&["images", "load", bad.to_str().unwrap()]);
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("sha256:"), "{}", refused.stderr);
    assert!(!node.podling(&["images", "list"]).ok().contains("busybox"));
}

#[test]
fn p04_images_are_named_loaded_and_removed_beside_a_running_pod() {
    let node = Node::start();
    node.load_busybox();
    node.apply(
        "pod.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: pod}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {name: main, image: localhost/busybox, command: [sleep, infinity]}\n",
    );
    node.wait_ready("pod");
    let archive = node.path("busybox.tar");
    let archive = archive.to_str().unwrap();
    let loaded = node
        .podling(&["images", "load", archive, "--name", "localhost/second:v1"])
        .ok();
    assert!(loaded.contains("loaded localhost/second:v1"), "{loaded}");
    assert!(!loaded.contains("busybox"), "{loaded}");
    // What a pod runs is not removed unasked, neither by its name nor with the last of its names.
    for names in [
        &["localhost/busybox"][..],
        &["localhost/second:v1", "localhost/busybox"],
    ] {
        let refused = node.podling(&[&["images", "rm"], names].concat());
        assert_eq!(refused.code, 1);
        for part in ["run by default/pod", "--force"] {
            assert!(refused.stderr.contains(part), "{}", refused.stderr);
        }
    }
    assert!(node.podling(&["images", "list"]).ok().contains("second"));
    // The first is removed although the second is not there, and the pod keeps its files.
    let forced = [
        "images",
        "rm",
        "--force",
        "localhost/busybox",
        "localhost/nothing",
    ];
    let removed = node.podling(&forced);
    assert_eq!(removed.code, 1);
    assert!(removed.stdout.contains("removed localhost/busybox:latest"));
    assert!(removed.stderr.contains("no image localhost/nothing:latest"));
    assert_eq!(
        node.podling(&["images", "rm", "localhost/second:v1"]).code,
        1
    );
    node.podling(&["images", "rm", "-f", "localhost/second:v1"])
        .ok();
    assert_eq!(
        node.podling(&["exec", "pod", "--", "echo", "here"]).ok(),
        "here\n"
    );
}

#[test]
fn p04_a_layer_that_climbs_out_is_refused_or_contained() {
    let node = Node::new();
    let mut layer = tar::Builder::new(Vec::new());
    image::append(
        &mut layer,
        "up",
        tar::EntryType::Symlink,
        0o777,
        &[],
        Some("../../../../../../../../../../../.."),
    );
    image::append(
        &mut layer,
        "up/podling-escaped",
        tar::EntryType::Regular,
        0o644,
        b"out",
        None,
    );
    let archive = node.path("climb.tar");
    image::write_archive(
        &archive,
        "localhost/climb:latest",
        &[layer.into_inner().unwrap()],
        serde_json::json!({}),
    );
    node.podling(&["images", "load", archive.to_str().unwrap()]);
    assert!(!std::path::Path::new("/podling-escaped").exists());
}

#[test]
fn p04_an_image_for_another_platform_is_not_run_and_the_nodes_own_is_pulled_in_its_place() {
    let mut node = Node::new();
    let config = configure(
        &node,
        "registries: [{host: '127.0.0.1:5000', plainHttp: true}]\n",
    );
    node.agent_args = vec!["--config".into(), config.display().to_string()];
    // Brought to be taken elsewhere, under the names that pods here have.
    let archive = node.path("foreign.tar");
    for name in ["here", "absent"] {
        let name = format!("127.0.0.1:5000/demo/{name}:v1");
        image::foreign_archive(&archive, &name);
        let file = archive.to_str().unwrap();
        node.podling(&["images", "load", "--platform", "linux/s390x", file])
            .ok();
    }
    let listed = node.podling(&["images", "list"]).ok();
    assert_eq!(listed.matches("linux/s390x").count(), 2, "{listed}");
    node.start_agent();
    let registry = Registry::start(&node, 5000, Options::default());
    registry.push_busybox(&node, "demo/here:v1");

    node.apply("pod.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: pod}\nspec:\n  containers:\n  - {name: here, image: '127.0.0.1:5000/demo/here:v1', command: [sleep, infinity]}\n  - {name: absent, image: '127.0.0.1:5000/demo/absent:v1'}\n");
    node.wait_pod("pod", "one runs, the other cannot", |pod| {
        let waits = &container(pod, "absent")["state"]["waiting"]["message"];
        let told = "the image that is here is for linux/s390x";
        container(pod, "here")["state"]["running"].is_object()
            && waits.as_str().is_some_and(|text| text.contains(told))
    });
    let listed = node.podling(&["images", "list"]).ok();
    assert_eq!(listed.matches("linux/s390x").count(), 1, "{listed}");
}

#[test]
fn p04_an_image_that_a_pod_names_again_is_looked_for_again() {
    let node = Node::start();
    let archive = node.path("busybox.tar");
    let load = |name: &str| {
        image::busybox_archive(&archive, &format!("localhost/{name}:v1"));
        node.podling(&["images", "load", archive.to_str().unwrap()])
            .ok();
    };
    let apply = |name: &str| {
        node.apply("pod.yaml", &format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: pod}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: main, image: 'localhost/{name}:v1', imagePullPolicy: Never, command: [sleep, infinity]}}\n"));
    };
    let wait_running = |name: &str| {
        node.wait_pod("pod", &format!("{name} runs"), |pod| {
            let main = container(pod, "main");
            let image = main["image"].as_str().unwrap_or_default();
            main["state"]["running"].is_object() && image.contains(name)
        });
    };
    load("first");
    load("second");
    apply("first");
    wait_running("first");
    apply("second");
    wait_running("second");
    node.podling(&["images", "rm", "localhost/first:v1"]).ok();
    // What the pod knew of the image when it named it before is forgotten.
    apply("first");
    node.wait("the pod waits for the image", || {
        let why = node.podling(&["why", "pod"]).stdout;
        why.contains("is not present with pull policy of Never")
            .then_some(())
    });
    load("first");
    wait_running("first");
}
