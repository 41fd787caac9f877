//! Images on a small disk: what nobody needs is removed, and a pull that finds no space leaves nothing.

use std::path::PathBuf;

use crate::node::registry::{Options, Registry, configure};
use crate::node::{Node, container, image};

const MIB: usize = 1 << 20;

/// The node's data directory becomes a file system of its own, in the node's mount namespace.
fn small_disk(node: &Node, mib: usize) {
    let data = node.path("data");
    let mut mount = node.command("mount");
    mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "podling-test"]);
    assert!(mount.arg(&data).status().unwrap().success());
}

/// An OCI archive with one layer that no compression makes smaller.
fn archive(node: &Node, name: &str, mib: usize) -> PathBuf {
    let mut state = 0x9e37_79b9_7f4a_7c15 ^ (name.len() as u64) << 32 ^ mib as u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        // xorshift64: noise enough for gzip.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .take(mib * MIB / 8)
    .flatten()
    .collect();
    let mut layer = tar::Builder::new(Vec::new());
    let kind = tar::EntryType::Regular;
    image::append(&mut layer, name, kind, 0o644, &noise, None);
    let file = node.path(format!("{name}.tar"));
    let reference = format!("localhost/{name}:latest");
    let layer = layer.into_inner().unwrap();
    image::write_archive(&file, &reference, &[layer], serde_json::json!({}));
    file
}

fn load(node: &Node, name: &str, mib: usize) {
    let file = archive(node, name, mib);
    let loaded = node.podling(&["images", "load", file.to_str().unwrap()]);
    loaded.ok();
    std::fs::remove_file(file).unwrap();
}

fn pod(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: main, image: '{image}', imagePullPolicy: IfNotPresent, command: [sleep, infinity]}}\n"
    )
}

fn images(node: &Node) -> String {
    node.podling(&["images", "list", "--json"]).ok()
}

/// Bytes that the data directory's file system has left.
fn available(node: &Node) -> usize {
    let data = node.path("data");
    let mut df = node.command("df");
    df.args(["--block-size=1", "--output=avail"]).arg(data);
    let text = String::from_utf8(df.output().unwrap().stdout).unwrap();
    text.lines().nth(1).unwrap().trim().parse().unwrap()
}

#[test]
fn p04_images_that_nobody_needs_go_when_the_disk_fills_and_the_others_stay() {
    let mut node = Node::new();
    small_disk(&node, 256);
    let config = configure(
        &node,
        "images: {gc: {highThresholdPercent: 10, lowThresholdPercent: 8, minimumAge: 0}, pinned: [localhost/pinned]}\n",
    );
    node.agent_args = vec!["--config".into(), config.display().to_string()];
    node.start_agent();
    node.load_busybox();
    node.apply("used.yaml", &pod("used", "localhost/busybox"));
    node.wait_ready("used");
    // Of no use as a container, but a manifest names it.
    node.apply("named.yaml", &pod("named", "localhost/named"));
    load(&node, "named", 24);
    load(&node, "pinned", 4);
    load(&node, "unneeded", 24);
    // A pod ends: the node looks around.
    node.apply("look.yaml", &pod("look", "localhost/busybox"));
    node.wait_ready("look");
    node.remove("look.yaml");
    node.wait("the unneeded image goes", || {
        (!images(&node).contains("localhost/unneeded")).then_some(())
    });
    let left = images(&node);
    for name in ["busybox", "named", "pinned"] {
        assert!(left.contains(&format!("localhost/{name}")), "{left}");
    }
    let status = node.wait("that is not enough, and the status says so", || {
        let status = node.podling(&["status"]).ok();
        status
            .contains("no more images can be removed")
            .then_some(status)
    });
    let data = node.path("data").display().to_string();
    assert!(
        status.contains(&format!("the file system at {data}")) && status.contains("1 are pinned"),
        "{status}"
    );

    // Nobody names it any more.
    node.remove("named.yaml");
    node.wait("the image goes, and with it the problem", || {
        let gone = !images(&node).contains("localhost/named");
        let status = node.podling(&["status"]).ok();
        (gone && status.contains("problems  none")).then_some(())
    });
    assert!(images(&node).contains("localhost/pinned"));
    let echo = node.podling(&["exec", "used", "--", "echo", "here"]);
    assert_eq!(echo.ok(), "here\n");
    let log = std::fs::read_to_string(node.path("agent.log")).unwrap();
    assert!(log.contains("removed an unneeded image"), "{log}");
}

#[test]
fn p04_a_pull_that_finds_the_disk_full_leaves_nothing_and_gets_space_made() {
    let mut node = Node::new();
    small_disk(&node, 160);
    let config = configure(
        &node,
        "registries: [{host: '127.0.0.1:5000', plainHttp: true}]\nimages: {gc: {minimumAge: 0}}\nbackOff: {imageInitialMs: 4000, imageMaxMs: 4000}\n",
    );
    node.agent_args = vec!["--config".into(), config.display().to_string()];
    let registry = Registry::start(&node, 5000, Options::default());
    for (name, mib) in [("fits", 30), ("never", 200)] {
        let file = archive(&node, name, mib);
        registry.push(&node, &file, &format!("demo/{name}:v1"));
        std::fs::remove_file(file).unwrap();
    }
    load(&node, "unneeded", 40);
    node.start_agent();
    // Less is left than the image needs, and more than the threshold.
    let ballast = available(&node) - 25 * MIB;
    let filled = node
        .command("fallocate")
        .args(["-l", &ballast.to_string()])
        .arg(node.path("data/ballast"))
        .status();
    assert!(filled.unwrap().success());
    node.apply("fits.yaml", &pod("fits", "127.0.0.1:5000/demo/fits:v1"));
    let seen = node.wait_pod("fits", "finds no space", |pod| {
        container(pod, "main")["state"]["waiting"]["reason"] == "ErrImageNoSpace"
    });
    let state = container(&seen, "main")["state"].to_string();
    let data = node.path("data").display().to_string();
    for part in ["No space left", &data, "podling images rm"] {
        assert!(state.contains(part), "{part}: {state}");
    }
    node.wait("an unneeded image has made space for it", || {
        let all = images(&node);
        (all.contains("demo/fits") && !all.contains("localhost/unneeded")).then_some(())
    });

    // One that can never fit is tried and leaves nothing.
    let before = available(&node);
    node.apply("never.yaml", &pod("never", "127.0.0.1:5000/demo/never:v1"));
    node.wait_pod("never", "finds no space", |pod| {
        container(pod, "main")["state"]["waiting"]["reason"] == "ErrImageNoSpace"
    });
    // Nothing more can go, and the disk is not as full as the threshold says: the node's status tells it all the same.
    node.wait("the status tells that there is no space", || {
        let status = node.podling(&["status"]).ok();
        let parts = [
            "Pod default/never",
            "not enough space",
            "no image is removed by itself",
        ];
        parts.iter().all(|part| status.contains(part)).then_some(())
    });
    assert_eq!(node.stop_agent(), 0);
    node.podling(&["images", "verify"]).ok();
    assert!(images(&node).contains("demo/fits"), "what is needed stays");
    let lost = before.saturating_sub(available(&node));
    assert!(
        lost < 2 * MIB,
        "{lost} bytes are left of a pull that failed"
    );
}

/// An agent did not start then, and one that ran stored nothing more until it was started again.
#[test]
fn p04_a_full_disk_keeps_no_agent_from_starting_and_manifests_come_in_when_it_has_space_again() {
    let mut node = Node::new();
    small_disk(&node, 120);
    node.start_agent();
    node.load_busybox();
    node.apply("first.yaml", &pod("first", "localhost/busybox"));
    let first = node.wait_ready("first");
    let ballast = node.path("data/ballast");
    let mut fill = node.command("dd");
    fill.args(["if=/dev/zero", "bs=4k", "status=none"]);
    fill.arg(format!("of={}", ballast.display()));
    assert!(!fill.status().unwrap().success(), "it is full");
    // Each makes the store reserve versions.
    for _ in 0..2 {
        assert_eq!(node.stop_agent(), 0);
        node.start_agent();
    }
    assert_eq!(
        node.wait_ready("first")["metadata"]["uid"],
        first["metadata"]["uid"]
    );
    node.apply("second.yaml", &pod("second", "localhost/busybox"));
    node.wait("status tells that manifests are not stored", || {
        let status = node.podling(&["status"]).ok();
        status
            .contains("cannot store what the manifests say")
            .then_some(())
    });
    let removed = node.command("rm").arg(&ballast).status();
    assert!(removed.unwrap().success());
    node.wait_ready("second");
    let status = node.podling(&["status"]).ok();
    assert!(!status.contains("cannot store"), "{status}");
}
