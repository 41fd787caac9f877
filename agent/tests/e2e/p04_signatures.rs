//! The signature policy of a node: what may come, and what may still run.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::node::registry::{Options, Registry, configure};
use crate::node::{Node, container, image};

const NAME: &str = "127.0.0.1:5000/demo/signed:v1";
const OTHER: &str = "127.0.0.1:5000/demo/other:v1";

/// Signs what a tag means as cosign does: a payload, its signature, and an image of both with a tag beside it.
const SIGN: &str = r#"set -e
repository=$1 tag=$2 key=$3
cd "$4"
base=http://127.0.0.1:5000/v2/$repository
type=application/vnd.oci.image.manifest.v1+json
digest=sha256:$(curl -sf -H "Accept: $type" "$base/manifests/$tag" | sha256sum | cut -d' ' -f1)
printf '{"critical":{"identity":{"docker-reference":"127.0.0.1:5000/%s"},"image":{"docker-manifest-digest":"%s"},"type":"cosign container image signature"},"optional":null}' \
    "$repository" "$digest" > payload.json
openssl dgst -sha256 -sign "$key" payload.json | base64 -w0 > signature
printf '{"architecture":"","config":{},"os":"","rootfs":{"type":"layers","diff_ids":[]}}' > config.json
push() {
    sum=sha256:$(sha256sum "$1" | cut -d' ' -f1)
    location=$(curl -sfi -X POST "$base/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
    curl -sf -X PUT -H 'Content-Type: application/octet-stream' --data-binary "@$1" "$location&digest=$sum"
    printf '"digest":"%s","size":%s' "$sum" "$(stat -c %s "$1")"
}
config=$(push config.json)
payload=$(push payload.json)
printf '{"schemaVersion":2,"mediaType":"%s","config":{"mediaType":"application/vnd.oci.image.config.v1+json",%s},"layers":[{"mediaType":"application/vnd.dev.cosign.simplesigning.v1+json",%s,"annotations":{"dev.cosignproject.cosign/signature":"%s"}}]}' \
    "$type" "$config" "$payload" "$(cat signature)" > manifest.json
curl -sf -X PUT -H "Content-Type: $type" --data-binary @manifest.json "$base/manifests/$(echo "$digest" | tr : -).sig"
"#;

/// Signs what a tag means as cosign 3 does where there is no referrers API: a bundle, an artifact of it that refers to the
/// image, and a list of such with a tag beside the image.
const SIGN_BUNDLE: &str = r#"set -e
repository=$1 tag=$2 key=$3
cd "$4"
base=http://127.0.0.1:5000/v2/$repository
type=application/vnd.oci.image.manifest.v1+json
bundle=application/vnd.dev.sigstore.bundle.v0.3+json
curl -sf -H "Accept: $type" "$base/manifests/$tag" > image.json
hex=$(sha256sum image.json | cut -d' ' -f1)
statement='{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"'$hex'"},"annotations":{}}],"predicateType":"https://sigstore.dev/cosign/sign/v1","predicate":{}}'
printf 'DSSEv1 28 application/vnd.in-toto+json %d %s' "${#statement}" "$statement" > message
signature=$(openssl dgst -sha256 -sign "$key" message | base64 -w0)
printf '{"mediaType":"%s","verificationMaterial":{"publicKey":{"hint":""}},"dsseEnvelope":{"payload":"%s","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"%s"}]}}' \
    "$bundle" "$(printf %s "$statement" | base64 -w0)" "$signature" > bundle.json
printf '{}' > config.json
describe() {
    printf '"digest":"sha256:%s","size":%s' "$(sha256sum "$1" | cut -d' ' -f1)" "$(stat -c %s "$1")"
}
for blob in bundle.json config.json; do
    location=$(curl -sfi -X POST "$base/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
    curl -sf -X PUT -H 'Content-Type: application/octet-stream' --data-binary "@$blob" \
        "$location&digest=sha256:$(sha256sum $blob | cut -d' ' -f1)"
done
printf '{"schemaVersion":2,"mediaType":"%s","artifactType":"%s","config":{"mediaType":"application/vnd.oci.empty.v1+json",%s},"layers":[{"mediaType":"%s",%s}],"subject":{"mediaType":"%s",%s}}' \
    "$type" "$bundle" "$(describe config.json)" "$bundle" "$(describe bundle.json)" "$type" "$(describe image.json)" > manifest.json
curl -sf -X PUT -H "Content-Type: $type" --data-binary @manifest.json \
    "$base/manifests/sha256:$(sha256sum manifest.json | cut -d' ' -f1)"
index=application/vnd.oci.image.index.v1+json
printf '{"schemaVersion":2,"mediaType":"%s","manifests":[{"mediaType":"%s",%s,"artifactType":"%s"}]}' \
    "$index" "$type" "$(describe manifest.json)" "$bundle" > list.json
curl -sf -X PUT -H "Content-Type: $index" --data-binary @list.json "$base/manifests/sha256-$hex"
"#;

fn shell(node: &Node, script: &str, arguments: &[&str]) {
    let mut command = node.command("sh");
    command.args(["-c", script, "sh"]).args(arguments);
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
}

/// Makes a key; gives the path of the public one beside it.
fn key(node: &Node, name: &str) -> PathBuf {
    let make = "openssl ecparam -name prime256v1 -genkey -noout -out $1 && openssl pkey -in $1 -pubout -out $1.pub";
    let path = node.path(name);
    shell(node, make, &[path.to_str().unwrap()]);
    node.path(format!("{name}.pub"))
}

fn sign(node: &Node, repository: &str, key: &str) {
    sign_by(node, SIGN, repository, key);
}

fn sign_by(node: &Node, script: &str, repository: &str, key: &str) {
    let dir = node.path("signing");
    fs::create_dir_all(&dir).unwrap();
    let key = node.path(key);
    shell(
        node,
        script,
        &[
            repository,
            "v1",
            key.to_str().unwrap(),
            dir.to_str().unwrap(),
        ],
    );
}

/// All of the registry must be signed by the key.
fn policy(node: &Node, key: &Path) {
    write_policy(node, key, false);
}

fn write_policy(node: &Node, key: &Path, accept_unnamed: bool) {
    let policy = json!({
        "default": [{"type": "insecureAcceptAnything"}],
        "transports": {"docker": {"127.0.0.1:5000": [{
            "type": "sigstoreSigned",
            "keyPath": key,
            "signedIdentity": {"type": "matchRepository"},
            "acceptUnnamed": accept_unnamed,
        }]}},
    });
    fs::write(node.path("policy.json"), policy.to_string()).unwrap();
}

/// Starts an agent that asks the policy, and soon tries again what it refused; gives its configuration.
fn start_agent_with_policy(node: &mut Node) -> PathBuf {
    let policy = node.path("policy.json");
    let text = format!(
        "registries: [{{host: '127.0.0.1:5000', plainHttp: true}}]\nimages: {{signaturePolicy: {}}}\nbackOff: {{imageInitialMs: 100, imageMaxMs: 1000}}\n",
        policy.display()
    );
    let config = configure(node, &text);
    node.agent_args = vec!["--config".into(), config.display().to_string()];
    node.start_agent();
    config
}

/// Waits until the policy has refused the pod's image; gives why.
fn wait_refused(node: &Node, name: &str) -> String {
    node.wait_pod(name, "is refused", is_refused);
    node.podling(&["why", name]).stdout
}

fn pod(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: main, image: '{image}', imagePullPolicy: IfNotPresent, command: [sleep, infinity]}}\n"
    )
}

fn is_refused(pod: &Value) -> bool {
    container(pod, "main")["state"]["waiting"]["reason"] == "SignatureValidationFailed"
}

#[test]
fn p04_only_signed_images_come_and_run() {
    let mut node = Node::new();
    let registry = Registry::start(&node, 5000, Options::default());
    registry.push_busybox(&node, "demo/signed:v1");
    registry.push_busybox(&node, "demo/unsigned:v1");
    let other = node.path("other.tar");
    image::busybox_archive_with(&other, "latest", &["true"]);
    registry.push(&node, &other, "demo/other:v1");
    let (ours, theirs) = (key(&node, "ours"), key(&node, "theirs"));
    sign(&node, "demo/signed", "ours");
    sign(&node, "demo/other", "ours");
    policy(&node, &ours);
    let config = start_agent_with_policy(&mut node);
    let config = config.to_str().unwrap();
    node.apply("good.yaml", &pod("good", NAME));
    node.apply("bad.yaml", &pod("bad", "127.0.0.1:5000/demo/unsigned:v1"));
    node.wait_ready("good");
    let why = wait_refused(&node, "bad");
    assert!(
        why.contains("no signature was found") && why.contains("policy.json"),
        "{why}"
    );
    let list = node.podling(&["images", "list"]).ok();
    assert!(!list.contains("unsigned"), "{list}");
    let shown: Value =
        serde_json::from_str(&node.podling(&["images", "inspect", NAME]).ok()).unwrap();
    assert_eq!(shown["trust"]["verdict"], "signed", "{shown}");
    assert_eq!(shown["trust"]["signedBy"][0]["keyFile"], json!(ours));

    // A signature that comes later counts; so does, without a network, a policy that changes.
    sign(&node, "demo/unsigned", "ours");
    node.wait_ready("bad");
    node.podling(&["images", "pull", "--config", config, OTHER])
        .ok();
    drop(registry);
    policy(&node, &theirs);
    node.apply("again.yaml", &pod("again", NAME));
    // Though the image is here.
    let why = wait_refused(&node, "again");
    assert!(why.contains("not made with the key"), "{why}");
    assert!(node.podling(&["why", "good"]).ok().contains("good"));
    // It stays so, however often it is tried again.
    let tries = || {
        let log = fs::read_to_string(node.path("agent.log")).unwrap();
        log.matches("image not pulled").count()
    };
    let before = tries();
    node.wait("it was tried again and again", || {
        (tries() > before + 3).then_some(())
    });
    assert!(is_refused(&node.pod("again").unwrap()), "{}", node.report());
    let started = container(&node.pod("again").unwrap(), "main")["started"].clone();
    assert_ne!(started, json!(true));
    // Nor does a container that runs take another image that is not allowed, though it is here.
    node.apply("good.yaml", &pod("good", OTHER));
    node.wait_pod("good", "is refused its new image", is_refused);
    let before = tries();
    node.wait("it was tried again and again", || {
        (tries() > before + 6).then_some(())
    });
    assert!(is_refused(&node.pod("good").unwrap()), "{}", node.report());
    node.apply("good.yaml", &pod("good", NAME));
    policy(&node, &ours);
    node.wait_ready("again");

    // A policy that is broken stops what would come, and nothing that was allowed before.
    fs::write(node.path("policy.json"), "{").unwrap();
    node.apply("third.yaml", &pod("third", NAME));
    node.wait_ready("third");
    let pull = node.podling(&["images", "pull", "--config", config, "busybox"]);
    assert!(
        pull.code == 1 && pull.stderr.contains("policy.json"),
        "{}",
        pull.stderr
    );
}

/// Signed with a bundle that names no image: it runs where the policy says that such count, also from a mirror that the
/// image was pushed to with its signature.
#[test]
fn p04_an_image_signed_by_cosign_3_runs_where_the_policy_says_so() {
    let mut node = Node::new();
    let registry = Registry::start(&node, 5000, Options::default());
    registry.push_busybox(&node, "demo/signed:v1");
    let ours = key(&node, "ours");
    sign_by(&node, SIGN_BUNDLE, "demo/signed", "ours");
    policy(&node, &ours);
    start_agent_with_policy(&mut node);
    node.apply("app.yaml", &pod("app", NAME));
    let why = wait_refused(&node, "app");
    assert!(
        why.contains("it names no image") && why.contains("acceptUnnamed"),
        "{why}"
    );
    write_policy(&node, &ours, true);
    node.wait_ready("app");
    let inspect = node.podling(&["images", "inspect", NAME]).ok();
    let shown: Value = serde_json::from_str(&inspect).unwrap();
    let signed_by = &shown["trust"]["signedBy"][0];
    assert_eq!(signed_by["keyFile"], json!(ours), "{shown}");
    assert!(signed_by["digest"].is_string() && signed_by["identity"].is_null());

    // Pushed by another store without a policy, which was asked to bring the signatures.
    let store = node.path("mirrors");
    let elsewhere = |more: &[&str]| {
        let store = ["images", "--data-dir", store.to_str().unwrap()];
        node.podling(&[&store[..], more].concat()).ok()
    };
    let config = node.path("mirrors.yaml");
    let text = "registries: [{host: '127.0.0.1:5000', plainHttp: true}]\n";
    fs::write(&config, text).unwrap();
    let config = config.to_str().unwrap();
    let pulled = elsewhere(&["pull", "--config", config, "--signatures", NAME]);
    assert!(pulled.contains("signatures: 1"), "{pulled}");
    let mirrored = "127.0.0.1:5000/mirror/signed:v1";
    let push = ["push", "--config", config, NAME, "--to", mirrored];
    let pushed = elsewhere(&[&push[..], &["--remove-signatures"]].concat());
    assert!(!pushed.contains("signatures"), "{pushed}");
    node.apply("mirrored.yaml", &pod("mirrored", mirrored));
    node.wait_pod("mirrored", "is refused", is_refused);
    let pushed = elsewhere(&push);
    assert!(pushed.ends_with(", signatures: 1\n"), "{pushed}");
    node.wait_ready("mirrored");
}

#[test]
fn p04_a_bundle_from_a_stick_needs_its_signature() {
    let node = Node::new();
    let ours = key(&node, "ours");
    let archive = node.path("app.tar");
    image::busybox_archive(&archive, "h.example/team/app:v1");
    let load = |more: &[&str]| {
        let required = ["images", "load", "--require-signature"];
        let path = [archive.to_str().unwrap()];
        node.podling(&[&required[..], more, &path].concat())
    };
    let key = ["--key", ours.to_str().unwrap()];
    let run = load(&key);
    assert!(
        run.code == 1 && run.stderr.contains("no signature was found"),
        "{}",
        run.stderr
    );
    let run = load(&[]);
    assert!(
        run.code == 1 && run.stderr.contains("--key FILE"),
        "{}",
        run.stderr
    );
    let sign = r#"set -e
cd "$1"
digest=$(tar xOf app.tar index.json | grep -o 'sha256:[0-9a-f]*' | head -n1)
printf '{"critical":{"identity":{"docker-reference":"h.example/team/app"},"image":{"docker-manifest-digest":"%s"},"type":"cosign container image signature"},"optional":null}' "$digest" > app.tar.payload
openssl dgst -sha256 -sign ours app.tar.payload | base64 > app.tar.sig
"#;
    let dir = archive.parent().unwrap().to_str().unwrap();
    shell(&node, sign, &[dir]);
    assert!(load(&key).ok().contains("loaded h.example/team/app:v1"));

    // As cosign 3 makes it.
    let sign = r#"set -e
cd "$1"
rm app.tar.payload app.tar.sig
hex=$(tar xOf app.tar index.json | grep -o 'sha256:[0-9a-f]*' | head -n1 | cut -d: -f2)
statement='{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"'$hex'"}}],"predicateType":"https://sigstore.dev/cosign/sign/v1","predicate":{}}'
printf 'DSSEv1 28 application/vnd.in-toto+json %d %s' "${#statement}" "$statement" > message
printf '{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","dsseEnvelope":{"payload":"%s","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"%s"}]}}' \
    "$(printf %s "$statement" | base64 -w0)" "$(openssl dgst -sha256 -sign ours message | base64 -w0)" > app.tar.sigstore.json
"#;
    shell(&node, sign, &[dir]);
    let run = load(&key);
    assert!(
        run.code == 1 && run.stderr.contains("--accept-unnamed"),
        "{}",
        run.stderr
    );
    let run = load(&[&key[..], &["--accept-unnamed"]].concat());
    assert!(run.ok().contains("loaded h.example/team/app:v1"));
}
