//! Images from a real registry: TLS, credentials, policies, back-off, and what a person sees on the way.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::node::registry::{AUTH, Options, Registry, configure, stalling_proxy};
use crate::node::{Node, Run, container, image};

fn pod(name: &str, image: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n{more}  containers:\n  - {{name: main, image: '{image}', command: [sleep, infinity]}}\n"
    )
}

fn waiting_reason(pod: &Value) -> &str {
    container(pod, "main")["state"]["waiting"]["reason"]
        .as_str()
        .unwrap_or_default()
}

fn refused(run: Run) -> String {
    assert_eq!(run.code, 1, "{}{}", run.stdout, run.stderr);
    run.stderr
}

#[test]
fn p04_https_with_an_authority_of_ones_own_and_with_the_systems() {
    let mut node = Node::new();
    let registry = Registry::start(
        &node,
        5443,
        Options {
            tls: true,
            password: false,
        },
    );
    registry.push_busybox(&node, "demo/busybox:v1");
    let by_address = format!("{}/demo/busybox:v1", registry.host());

    let said = refused(node.podling(&["images", "pull", &by_address]));
    assert!(
        said.contains("UnknownIssuer") && said.contains("caFile"),
        "{said}"
    );

    // The authority of one registry is none for another.
    let ca = node.path("ca.pem");
    let entry = |host: &str| {
        format!(
            "registries: [{{host: '{host}', caFile: {}}}]\n",
            ca.display()
        )
    };
    let config = configure(&node, &entry("other.example"));
    let pull = [
        "images",
        "pull",
        "--config",
        config.to_str().unwrap(),
        &by_address,
    ];
    assert!(refused(node.podling(&pull)).contains("UnknownIssuer"));
    configure(&node, &entry(&registry.host()));
    assert!(node.podling(&pull).ok().contains("pulled"));

    // The machine trusts the authority: nothing to configure, for the agent neither. The name is in /etc/hosts only.
    let system = node.path("certs");
    fs::create_dir(&system).unwrap();
    fs::copy(&ca, system.join("ca-certificates.crt")).unwrap();
    let hosts = node.path("hosts");
    fs::write(&hosts, "127.0.0.1 localhost registry.test\n").unwrap();
    node.bind(&system, "/etc/ssl/certs");
    node.bind(&hosts, "/etc/hosts");
    node.start_agent();
    node.apply(
        "tls.yaml",
        &pod("tls", "registry.test:5443/demo/busybox:v1", ""),
    );
    node.wait_ready("tls");
    // No name server knows another name; the certificate is for no other address.
    let said = refused(node.podling(&["images", "pull", "other.test:5443/demo/busybox:v1"]));
    assert!(said.contains("cannot resolve `other.test`"), "{said}");
    let said = refused(node.podling(&["images", "pull", "localhost:5443/demo/busybox:v1"]));
    assert!(said.contains("must be made for the host"), "{said}");
}

#[test]
fn p04_a_registry_without_tls_is_named_as_such() {
    let node = Node::new();
    let registry = Registry::start(&node, 5000, Options::default());
    registry.push_busybox(&node, "demo/busybox:v1");
    let name = format!("{}/demo/busybox", registry.host());
    let said = refused(node.podling(&["images", "pull", &format!("{name}:v1")]));
    assert!(
        said.contains("does not speak TLS") && said.contains("plainHttp: true"),
        "{said}"
    );
    let config = configure(
        &node,
        "registries: [{host: '127.0.0.1:5000', plainHttp: true}]\n",
    );
    let pull =
        |name: &str| node.podling(&["images", "pull", "--config", config.to_str().unwrap(), name]);
    let said = refused(pull(&format!("{name}:v2")));
    assert!(
        said.contains("has no image") && said.contains("check name and tag"),
        "{said}"
    );
    let said = refused(pull("127.0.0.1:5999/x"));
    assert!(
        said.contains("refused") && said.contains("check host and port"),
        "{said}"
    );
    pull(&format!("{name}:v1")).ok();
}

/// A registry that asks for a password and has `team/app:v1`; the node's commands and agent know how to reach it, and have
/// a home without credentials.
fn private_registry(node: &mut Node) -> Registry {
    let options = Options {
        tls: false,
        password: true,
    };
    let registry = Registry::start(node, 5000, options);
    registry.push_busybox(node, "team/app:v1");
    let config = configure(
        node,
        "registries: [{host: '127.0.0.1:5000', plainHttp: true}]\n",
    );
    let home = node.path("home");
    fs::create_dir_all(home.join(".docker")).unwrap();
    node.agent_args = vec!["--config".into(), config.display().to_string()];
    for (name, value) in [("HOME", home), ("PODLING_CONFIG", config)] {
        node.env.push((name.into(), value.display().to_string()));
    }
    registry
}

#[test]
fn p04_credentials_from_the_docker_configuration() {
    let mut node = Node::new();
    let _registry = private_registry(&mut node);
    let pull = ["images", "pull", "127.0.0.1:5000/team/app:v1"];
    let said = refused(node.podling(&pull));
    assert!(
        said.contains("without credentials") && said.contains("imagePullSecrets"),
        "{said}"
    );
    // A path prefix, as podman and Kubernetes write it.
    let auths = |key: &str, auth: &str| json!({"auths": {key: {"auth": auth}}}).to_string();
    let file = node.path("home/.docker/config.json");
    fs::write(&file, auths("127.0.0.1:5000/other", AUTH)).unwrap();
    assert!(refused(node.podling(&pull)).contains("without credentials"));
    fs::write(&file, auths("127.0.0.1:5000", "bWU6d3Jvbmc=")).unwrap();
    assert!(refused(node.podling(&pull)).contains("with the credentials given"));
    fs::write(&file, auths("127.0.0.1:5000/team", AUTH)).unwrap();
    node.podling(&pull).ok();
    let other = node.path("auth.json");
    fs::write(&other, "{").unwrap();
    let said =
        refused(node.podling(&[&pull[..], &["--auth-file", other.to_str().unwrap()]].concat()));
    assert!(said.contains("auth.json"), "{said}");
}

#[test]
fn p04_image_pull_secrets_of_the_pod_are_used() {
    let mut node = Node::new();
    let registry = private_registry(&mut node);
    // With the default back-off: a new Secret is not waited for.
    node.start_agent();
    let secrets = "  imagePullSecrets: [{name: gone}, {name: registry}]\n";
    let image = "127.0.0.1:5000/team/app:v1";
    node.apply("private.yaml", &pod("private", image, secrets));
    node.apply("bare.yaml", &pod("bare", image, ""));
    for name in ["private", "bare"] {
        let seen = node.wait_pod(name, "is refused", |pod| {
            waiting_reason(pod) == "ErrImagePull"
        });
        let state = container(&seen, "main")["state"].to_string();
        assert!(state.contains("without credentials"), "{state}");
    }
    // Later the wait for the next try is what it shows.
    let seen = node.wait_pod("private", "backs off", |pod| {
        waiting_reason(pod) == "ImagePullBackOff"
    });
    let state = container(&seen, "main")["state"].to_string();
    assert!(state.contains("ErrImagePull: "), "{state}");
    let why = node.podling(&["why", "private"]).stdout;
    assert!(
        why.contains("FailedToRetrieveImagePullSecret") && why.contains("registry: there is no"),
        "{why}"
    );

    // A Secret of another namespace is none.
    let secret = |namespace: &str, key: &str| {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: registry, namespace: {namespace}}}\ntype: kubernetes.io/dockerconfigjson\nstringData:\n  .dockerconfigjson: '{}'\n",
            json!({"auths": {key: {"auth": AUTH}}})
        )
    };
    node.apply("other.yaml", &secret("other", "127.0.0.1:5000"));
    node.apply("secret.yaml", &secret("default", "*.0.0.1:5000/team"));
    node.wait_ready("private");
    // The image is here now, and yet nobody else may pull it.
    let bare = node.pod("bare").unwrap();
    assert!(container(&bare, "main")["state"]["waiting"].is_object());

    // The older form.
    let text = json!({"http://127.0.0.1:5000/v2/": {"username": "me", "password": "secret"}});
    node.apply("old.yaml", &format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: old}}\ntype: kubernetes.io/dockercfg\nstringData:\n  .dockercfg: '{text}'\n"
    ));
    registry.push_busybox(&node, "team/second:v1");
    let secrets = "  imagePullSecrets: [{name: old}]\n";
    node.apply(
        "second.yaml",
        &pod("second", "127.0.0.1:5000/team/second:v1", secrets),
    );
    node.wait_ready("second");

    // A Secret that is not what it says is refused, without its content.
    let broken = secret("default", "x").replace(AUTH, "c2VjcmV0d29yZA==");
    node.apply(
        "broken.yaml",
        &broken.replace("name: registry", "name: broken"),
    );
    node.wait("the broken Secret is named", || {
        let status = node.podling(&["status"]).stdout;
        assert!(!status.contains("secretword"));
        (status.contains("broken.yaml") && status.contains("not what its type says")).then_some(())
    });
}

#[test]
fn p04_policies_and_an_image_that_comes_later() {
    let mut node = Node::new();
    let registry = Registry::start(&node, 5000, Options::default());
    let config = configure(
        &node,
        "registries: [{host: '127.0.0.1:5000', plainHttp: true}]\nbackOff: {imageInitialMs: 100, imageMaxMs: 1000}\n",
    );
    node.agent_args = vec!["--config".into(), config.display().to_string()];
    node.start_agent();
    let archive = node.path("one.tar");
    image::busybox_archive_with(&archive, "latest", &["sh"]);
    registry.push(&node, &archive, "demo/app:v1");
    let name = "127.0.0.1:5000/demo/app:v1";
    let with = |pod_name: &str, policy: &str| {
        let manifest = pod(pod_name, name, "");
        let field = format!("imagePullPolicy: {policy}, command");
        node.apply(
            &format!("{pod_name}.yaml"),
            &manifest.replace("command", &field),
        );
        let ready = node.wait_ready(pod_name);
        container(&ready, "main")["imageID"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let first = with("first", "IfNotPresent");
    assert!(
        first.starts_with("127.0.0.1:5000/demo/app@sha256:"),
        "{first}"
    );
    // The tag moves.
    image::busybox_archive_with(&archive, "latest", &["sh", "-c", "true"]);
    registry.push(&node, &archive, "demo/app:v1");
    assert_eq!(with("second", "IfNotPresent"), first);
    let third = with("third", "Always");
    assert_ne!(third, first);
    // What runs is not touched, and keeps its image.
    let seen = node.pod("first").unwrap();
    assert_eq!(container(&seen, "main")["imageID"], first);

    // An image that is not there is asked for again, ever more seldom, until it is.
    node.apply("late.yaml", &pod("late", "127.0.0.1:5000/demo/late:v1", ""));
    let late = node.wait_pod("late", "waits for its image", |pod| {
        waiting_reason(pod) == "ImagePullBackOff"
    });
    let message = container(&late, "main")["state"]["waiting"]["message"].to_string();
    assert!(
        message.contains("ErrImagePull") && message.contains("has no image"),
        "{message}"
    );
    assert_eq!(late["status"]["phase"], "Pending");
    node.wait("a next try is announced", || {
        node.podling(&["why", "late"])
            .stdout
            .contains("tried again at")
            .then_some(())
    });
    registry.push(&node, &archive, "demo/late:v1");
    node.wait_ready("late");

    // Without its registry, what is here does.
    drop(registry);
    assert_eq!(with("fourth", "Always"), third);
}

#[test]
fn p04_a_pull_that_is_interrupted_leaves_nothing_and_goes_on_later() {
    let node = Node::new();
    let registry = Registry::start(&node, 5000, Options::default());
    let layer = |name: &str, bytes: usize| {
        let mut layer = tar::Builder::new(Vec::new());
        let content: Vec<u8> = (0..bytes as u32)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        image::append(
            &mut layer,
            name,
            tar::EntryType::Regular,
            0o644,
            &content,
            None,
        );
        layer.into_inner().unwrap()
    };
    let archive = node.path("big.tar");
    let layers = [layer("small", 1000), layer("big", 16 << 20)];
    image::write_archive(&archive, "latest", &layers, json!({}));
    registry.push(&node, &archive, "demo/big:v1");
    stalling_proxy(&node, 5001, 5000, 1 << 20);
    let config = configure(
        &node,
        "registries: [{host: '127.0.0.1:5000', plainHttp: true}, {host: '127.0.0.1:5001', plainHttp: true}]\n",
    );
    let config = config.to_str().unwrap();

    let mut pull = node.podling_command(&[
        "images",
        "pull",
        "--config",
        config,
        "127.0.0.1:5001/demo/big:v1",
    ]);
    let mut pull = pull.stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(pull.stderr.take().unwrap()).lines();
    let first = said.next().unwrap().unwrap();
    assert!(
        first.contains("pulling 127.0.0.1:5001/demo/big:v1: 2 of 2 layers"),
        "{first}"
    );
    let second = said.next().unwrap().unwrap();
    assert!(second.contains("is here"), "{second}");
    let pid = nix::unistd::Pid::from_raw(pull.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(pull.wait().unwrap().code(), Some(130));
    let said: Vec<String> = said.map(Result::unwrap).collect();
    assert!(said[0].contains("interrupted"), "{said:?}");
    assert_eq!(
        fs::read_dir(node.path("data/images/tmp")).unwrap().count(),
        0
    );
    assert!(!node.podling(&["images", "list"]).ok().contains("big"));
    assert!(node.podling(&["images", "verify"]).ok().contains("whole"));

    // Two at once, beside each other: each layer comes once, and the small one is here already.
    let name = "127.0.0.1:5000/demo/big:v1";
    let pulls = [(); 2].map(|()| {
        let mut pull = node.podling_command(&["images", "pull", "--config", config, name]);
        pull.stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    });
    for pull in pulls {
        let run = Run::from(pull.wait_with_output().unwrap());
        assert!(!run.stderr.contains("2 of 2 layers"), "{}", run.stderr);
        assert!(run.ok().contains(&format!("pulled {name}")));
    }
    assert!(node.podling(&["images", "verify"]).ok().contains("whole"));
    assert!(
        node.podling(&["images", "inspect", name])
            .ok()
            .contains("downloadSize")
    );
    let removed = node.podling(&["images", "rm", name]).ok();
    assert!(removed.contains("2 layers"), "{removed}");
}

#[test]
fn p04_a_terminal_shows_bars() {
    let node = Node::new();
    let registry = Registry::start(&node, 5000, Options::default());
    registry.push_busybox(&node, "demo/busybox:v1");
    let config = configure(
        &node,
        "registries: [{host: '127.0.0.1:5000', plainHttp: true}]\n",
    );
    let podling = crate::node::bin_dir().join("podling");
    let mut script = node.command("script");
    script.args(["-qec"]).arg(format!(
        "{} --data-dir {} images pull --config {} 127.0.0.1:5000/demo/busybox:v1",
        podling.display(),
        node.path("data").display(),
        config.display()
    ));
    let run = Run::from(
        script
            .arg("/dev/null")
            .env("TERM", "xterm")
            .output()
            .unwrap(),
    );
    let seen = run.ok();
    assert!(seen.contains("[===") && seen.contains("MiB"), "{seen}");
    assert!(
        seen.contains("pulled 127.0.0.1:5000/demo/busybox:v1"),
        "{seen}"
    );
}
