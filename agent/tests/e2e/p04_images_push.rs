//! Images to a registry and back, several at once, by the command line.

use std::path::Path;

use serde_json::Value;

use crate::node::registry::{Options, Registry, configure};
use crate::node::{Node, image};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

#[test]
fn p04_images_are_pushed_and_pulled_several_at_once_with_their_digests() {
    let node = Node::new();
    let config = configure(
        &node,
        "registries: [{host: '127.0.0.1:5000', plainHttp: true}]\n",
    );
    let _registry = Registry::start(&node, 5000, Options::default());
    let images = |arguments: &[&str]| {
        let config = config.to_str().unwrap();
        node.podling(&[&["images", "--config", config][..], arguments].concat())
    };
    let archive = node.path("busybox.tar");
    image::busybox_archive(&archive, "localhost/busybox:v1");
    images(&["load", archive.to_str().unwrap()]).ok();
    let digest = json(&images(&["list", "-o", "json"]).ok())[0]["digest"].clone();

    let (first, second) = (
        "127.0.0.1:5000/demo/busybox:v1",
        "127.0.0.1:5000/other/busybox:v2",
    );
    let pushed = images(&["push", "--json", "localhost/busybox:v1", "--to", first]);
    assert!(pushed.stderr.contains("sent"), "{}", pushed.stderr);
    let pushed = json(&pushed.ok());
    let reference = pushed[0]["reference"].as_str().unwrap();
    assert!(
        reference.ends_with(&format!("@{}", digest.as_str().unwrap())),
        "{reference}"
    );
    images(&["tag", "localhost/busybox:v1", first, second]).ok();
    let again = images(&["push", first, second]);
    assert!(again.stderr.contains("already there"), "{}", again.stderr);
    assert!(
        again
            .ok()
            .contains("pushed 127.0.0.1:5000/other/busybox@sha256:")
    );
    let refused = images(&["push", "--to", first, first, second]);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    let missing = images(&["push", "127.0.0.1:5000/demo/none:v1"]);
    assert_eq!(missing.code, 1);
    assert!(
        missing.stderr.contains("there is no image"),
        "{}",
        missing.stderr
    );

    images(&["rm", "localhost/busybox:v1", first, second]).ok();
    // One that is not there does not stop the others.
    let absent = "127.0.0.1:5000/demo/absent:v1";
    let pulled = images(&["pull", "--json", first, absent, second]);
    assert_eq!(pulled.code, 1);
    assert!(
        pulled.stderr.contains(&format!("cannot pull {absent}")),
        "{}",
        pulled.stderr
    );
    let pulled = json(&pulled.stdout);
    let digests: Vec<_> = pulled
        .as_array()
        .unwrap()
        .iter()
        .map(|i| &i["digest"])
        .collect();
    assert_eq!(digests, [&digest, &digest]);
    assert!(images(&["verify"]).ok().contains("whole"));

    // What other tools see in the registry and in the store is the same.
    let raw = |image: &str| {
        let mut skopeo = node.command("skopeo");
        skopeo.args(["inspect", "--raw", "--tls-verify=false", image]);
        let output = skopeo.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    let store = node.path("data/images");
    let in_place = format!("oci:{}:{first}", Path::new(&store).display());
    assert!(raw(&format!("docker://{first}")) == raw(&in_place));
}
