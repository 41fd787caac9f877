//! Images that were damaged, or of which not all is here: mended and completed by agent and command line.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::node::registry::{Options, Registry, configure};
use crate::node::{Node, image};

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000::/data:/bin/sh\n";

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// A file of an image's only layer, and the layer's compressed blob.
fn files(node: &Node, name: &str) -> (PathBuf, PathBuf) {
    let image = json(&node.podling(&["images", "inspect", name]).ok());
    let directory = Path::new(image["directories"][0].as_str().unwrap());
    let digest = image["layers"][0]["digest"].as_str().unwrap();
    let blob = node
        .path("data/images/blobs")
        .join(digest.replace(':', "/"));
    (directory.join("etc/passwd"), blob)
}

#[test]
fn p04_the_check_in_the_background_mends_a_damaged_layer_beside_a_running_pod() {
    let mut node = Node::new();
    let config = configure(
        &node,
        "images: {scrub: {interval: 1s, bytesPerSecond: 0, onBattery: true}}\n",
    );
    node.agent_args = vec!["--config".into(), config.display().to_string()];
    node.start_agent();
    node.load_busybox();
    node.apply(
        "pod.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: pod}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {name: main, image: localhost/busybox, command: [sleep, infinity]}\n",
    );
    node.wait_ready("pod");
    let (file, _) = files(&node, "localhost/busybox");
    assert_eq!(fs::read_to_string(&file).unwrap(), PASSWD);
    for damage in [Some("root::0:0::/:/bin/evil\n"), None] {
        match damage {
            Some(text) => fs::write(&file, text).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        node.wait("the layer is mended", || {
            let text = fs::read_to_string(&file).ok()?;
            (text == PASSWD).then_some(())
        });
    }
    let checked = node.podling(&["images", "verify", "--check"]);
    assert!(checked.ok().contains("whole"));
    // The pod that ran on it goes on.
    assert_eq!(
        node.podling(&["exec", "pod", "--", "echo", "here"]).ok(),
        "here\n"
    );
}

#[test]
fn p04_verify_fetches_damaged_blobs_again_and_save_those_that_never_came() {
    let node = Node::new();
    let config = configure(
        &node,
        "registries: [{host: '127.0.0.1:5000', plainHttp: true}]\n",
    );
    let registry = Registry::start(&node, 5000, Options::default());
    registry.push_busybox(&node, "demo/busybox:v1");
    let images = |arguments: &[&str]| {
        let config = config.to_str().unwrap();
        node.podling(&[&["images", "--config", config][..], arguments].concat())
    };
    let name = "127.0.0.1:5000/demo/busybox:v1";

    // The files come uncompressed from an archive; the registry has them compressed, with another digest.
    let archive = node.path("busybox.tar");
    image::busybox_archive(&archive, "localhost/busybox:v1");
    images(&["load", archive.to_str().unwrap()]).ok();
    let pulled = images(&["pull", name]);
    assert!(pulled.stderr.contains("0 of 1 layers"), "{}", pulled.stderr);
    images(&["rm", "localhost/busybox:v1"]).ok();
    let (file, blob) = files(&node, name);
    assert!(!blob.exists());
    assert!(images(&["verify"]).ok().contains("whole"));
    let saved = node.path("saved.tar");
    let saved = saved.to_str().unwrap();
    let refused = images(&["save", "--offline", name, "-o", saved]);
    assert_eq!(refused.code, 1);
    assert!(
        refused.stderr.contains("only unpacked"),
        "{}",
        refused.stderr
    );
    let done = images(&["save", name, "-o", saved]);
    assert!(
        done.stderr.contains("fetching 1 compressed layers"),
        "{}",
        done.stderr
    );
    done.ok();
    assert!(blob.exists());

    // Blob and files are damaged: only the registry has the whole.
    fs::write(&blob, "damaged").unwrap();
    fs::write(&file, "damaged").unwrap();
    let offline = images(&["verify", "--check", "-o", "json"]);
    assert_eq!(offline.code, 1);
    assert_eq!(json(&offline.stdout).as_array().unwrap().len(), 2);
    let mended = json(&images(&["verify", "-o", "json"]).ok());
    let how: Vec<_> = mended.as_array().unwrap().iter().collect();
    assert!(
        how.iter().any(|problem| problem["healed"] == "fetched"),
        "{mended}"
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), PASSWD);
    assert!(images(&["verify", "--check"]).ok().contains("whole"));

    // Nobody has it any more.
    fs::remove_file(&blob).unwrap();
    drop(registry);
    let failed = images(&["save", name, "-o", saved]);
    assert_eq!(failed.code, 1);
    assert!(
        failed.stderr.contains("cannot fetch the compressed layers"),
        "{}",
        failed.stderr
    );
}

#[test]
fn p04_an_image_that_a_waiting_pod_found_stays_when_its_tag_moves_and_all_else_is_pruned() {
    let node = Node::start();
    node.load_busybox();
    node.apply(
        "pod.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: waits}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {name: main, image: localhost/busybox, command: [sleep, infinity], volumeMounts: [{name: tardy, mountPath: /tardy}]}\n  volumes: [{name: tardy, configMap: {name: tardy}}]\n",
    );
    node.wait("the pod waits for its volume", || {
        let why = node.podling(&["why", "waits"]).stdout;
        why.contains("tardy").then_some(())
    });
    let (file, _) = files(&node, "localhost/busybox");

    // The name means something else now, and nobody has a name for what the pod found.
    let mut layer = tar::Builder::new(Vec::new());
    let kind = tar::EntryType::Regular;
    image::append(&mut layer, "other", kind, 0o644, b"other", None);
    let other = node.path("other.tar");
    let layers = [layer.into_inner().unwrap()];
    image::write_archive(
        &other,
        "localhost/busybox:latest",
        &layers,
        serde_json::json!({}),
    );
    node.podling(&["images", "load", other.to_str().unwrap()])
        .ok();
    node.podling(&["images", "prune"]).ok();
    assert!(file.exists());

    node.apply(
        "tardy.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: tardy}\ndata: {a: b}\n",
    );
    node.wait_ready("waits");
    node.podling(&["images", "prune"]).ok();
    assert_eq!(
        node.podling(&["exec", "waits", "--", "cat", "/tardy/a"])
            .ok(),
        "b"
    );
}
