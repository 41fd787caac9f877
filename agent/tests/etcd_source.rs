//! Point 3: manifests from Debian's real etcd, and statuses back to it. Each test starts an etcd of its own, on free
//! ports of the loopback interface, in a temporary directory.
#![cfg(feature = "privileged-tests")]

mod etcd;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::PodStatus;
use podling_agent::node::config::EtcdConfig;
use podling_agent::source::etcd as source;
use podling_agent::store::{Key, Kind, Store};
use tempfile::TempDir;

use etcd::{Etcd, PATIENCE, as_user, certificates, enable_authentication, free_port, grant};

fn map(name: &str, value: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{k: {value}}}\n")
}

fn value(store: &Store, name: &str) -> Option<String> {
    let object = store.get(&Key::new(Kind::ConfigMap, "default", name))?;
    object.config_map()?.data.as_ref()?.get("k").cloned()
}

async fn wait_for(store: &Store, what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(
            Instant::now() < deadline,
            "not in time: {what}; {:?}",
            store.problems()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn wait_for_value(store: &Store, name: &str, expected: Option<&str>) {
    let what = format!("{name} is {expected:?}");
    wait_for(store, &what, || value(store, name).as_deref() == expected).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn point_3_keys_become_objects_and_every_change_is_noticed() {
    let etcd = Etcd::start();
    // More than a page.
    for at in 0..40 {
        etcd.put(&format!("m/{at}"), &map(&format!("m{at}"), "one"));
    }
    etcd.run_ctl(&["put", "/test/manifestsother", "no manifest"]);
    let store = Store::in_memory("node");
    let _following = source::follow(&store, &etcd.config()).expect("followed");
    wait_for(&store, "40 objects", || {
        store.list(Kind::ConfigMap).len() == 40
    })
    .await;
    etcd.put("a", &map("a", "one"));
    wait_for_value(&store, "a", Some("one")).await;
    etcd.put("a", &map("a", "two"));
    wait_for_value(&store, "a", Some("two")).await;
    // A broken value keeps the last good one, is a problem, and others go on.
    etcd.put("a", "kind: ConfigMap\nnonsense: 1\n");
    etcd.put("b", &map("b", "one"));
    wait_for_value(&store, "b", Some("one")).await;
    assert_eq!(value(&store, "a").as_deref(), Some("two"));
    let problems = store.problems();
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0]
            .to_string()
            .starts_with("etcd:/test/manifests/a:1: apiVersion: ")
    );
    etcd.delete("a");
    wait_for_value(&store, "a", None).await;
    assert_eq!(store.problems(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn point_3_the_watch_resumes_after_etcd_was_away() {
    let mut etcd = Etcd::start();
    etcd.put("a", &map("a", "one"));
    etcd.put("b", &map("b", "one"));
    let store = Store::in_memory("node");
    let mut config = etcd.config();
    // Nobody listens at the first.
    config
        .endpoints
        .insert(0, format!("http://127.0.0.1:{}", free_port()));
    let _following = source::follow(&store, &config).expect("followed");
    wait_for_value(&store, "a", Some("one")).await;
    etcd.stop();
    wait_for(&store, "the problem", || !store.problems().is_empty()).await;
    assert_eq!(
        value(&store, "a").as_deref(),
        Some("one"),
        "the node goes on"
    );
    etcd.run();
    etcd.put("a", &map("a", "two"));
    etcd.delete("b");
    wait_for_value(&store, "a", Some("two")).await;
    wait_for_value(&store, "b", None).await;
    wait_for(&store, "no problem", || store.problems().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn point_3_a_node_that_restarts_without_etcd_goes_on_with_what_it_knew() {
    let mut etcd = Etcd::start();
    etcd.put("a", &map("a", "one"));
    let dir = TempDir::new().expect("a directory");
    let path = dir.path().join("store.redb");
    {
        let store = Store::open(&path, "node").expect("a store");
        let following = source::follow(&store, &etcd.config()).expect("followed");
        wait_for_value(&store, "a", Some("one")).await;
        etcd.put("a", "{");
        wait_for(&store, "the problem", || !store.problems().is_empty()).await;
        drop(following);
        etcd.stop();
        drop(store);
    }
    // The tasks of the first store end with their next breath, and let go of the file.
    let deadline = Instant::now() + PATIENCE;
    let store = loop {
        match Store::open(&path, "node") {
            Ok(store) => break store,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let _following = source::follow(&store, &etcd.config()).expect("followed");
    assert_eq!(value(&store, "a").as_deref(), Some("one"));
    wait_for(&store, "the problem", || !store.problems().is_empty()).await;
    assert_eq!(value(&store, "a").as_deref(), Some("one"));
    // Back, with a value that is still broken: the last good one stays.
    etcd.run();
    etcd.put("b", &map("b", "one"));
    wait_for_value(&store, "b", Some("one")).await;
    assert_eq!(value(&store, "a").as_deref(), Some("one"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn point_3_a_compaction_meanwhile_means_listing_again() {
    let mut etcd = Etcd::start();
    etcd.put("a", &map("a", "one"));
    etcd.put("gone", &map("gone", "one"));
    let store = Store::in_memory("node");
    // A way to etcd that can be cut while etcd goes on.
    let cut = Cut::new(etcd.url.trim_start_matches("http://").to_owned()).await;
    let mut config = etcd.config();
    config.endpoints = vec![format!("http://127.0.0.1:{}", cut.port)];
    let _following = source::follow(&store, &config).expect("followed");
    wait_for_value(&store, "gone", Some("one")).await;
    wait_for_value(&store, "a", Some("one")).await;
    cut.open.send_replace(false);
    wait_for(&store, "the problem", || !store.problems().is_empty()).await;
    etcd.delete("gone");
    for at in 0..5 {
        etcd.put("a", &map("a", &format!("v{at}")));
    }
    let status = etcd.run_ctl(&["endpoint", "status", "--write-out=json"]);
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let revision = status[0]["Status"]["header"]["revision"].to_string();
    etcd.run_ctl(&["compact", &revision]);
    assert_eq!(value(&store, "gone").as_deref(), Some("one"));
    cut.open.send_replace(true);
    wait_for_value(&store, "a", Some("v4")).await;
    wait_for_value(&store, "gone", None).await;
    etcd.put("a", &map("a", "after"));
    wait_for_value(&store, "a", Some("after")).await;
    etcd.stop();
}

/// Passes bytes on while it is open.
struct Cut {
    port: u16,
    open: tokio::sync::watch::Sender<bool>,
}

impl Cut {
    async fn new(target: String) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let (open, is_open) = tokio::sync::watch::channel(true);
        tokio::spawn(async move {
            loop {
                let Ok((mut client, _)) = listener.accept().await else {
                    return;
                };
                let (target, mut is_open) = (target.clone(), is_open.clone());
                tokio::spawn(async move {
                    if !*is_open.borrow() {
                        return;
                    }
                    let Ok(mut server) = tokio::net::TcpStream::connect(target).await else {
                        return;
                    };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        _ = is_open.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Self { port, open }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn point_3_statuses_and_a_heartbeat_are_written_back_under_a_lease() {
    let etcd = Etcd::start();
    etcd.put("p", "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: i:1}]}}");
    let store = Store::in_memory("node-1");
    let following = source::follow(&store, &etcd.config()).expect("followed");
    let key = Key::pod("default", "p");
    wait_for(&store, "the pod", || store.get(&key).is_some()).await;
    let uid = store.get(&key).expect("the pod").uid.clone();
    for phase in ["Pending", "Running"] {
        let status = PodStatus {
            phase: Some(phase.to_owned()),
            ..PodStatus::default()
        };
        assert!(store.set_status(&key, &uid, status));
        wait_for(&store, phase, || {
            etcd.get("/test/status/node-1/default/p").contains(phase)
        })
        .await;
    }
    let written = etcd.get("/test/status/node-1/default/p");
    assert!(written.contains(&uid), "{written}");
    wait_for(&store, "the heartbeat", || {
        etcd.get("/test/nodes/node-1").contains("version")
    })
    .await;

    // A lost lease is taken again, and all is written again.
    let leases = etcd.run_ctl(&["lease", "list"]);
    let lease = leases.lines().last().expect("a lease").to_owned();
    etcd.run_ctl(&["lease", "revoke", &lease]);
    assert_eq!(etcd.get("/test/nodes/node-1").trim(), "");
    wait_for(&store, "the heartbeat", || {
        etcd.get("/test/nodes/node-1").contains("version")
    })
    .await;
    wait_for(&store, "the status", || {
        etcd.get("/test/status/node-1/default/p")
            .contains("Running")
    })
    .await;

    // The status of a pod that is gone goes.
    etcd.delete("p");
    wait_for(&store, "the deletion", || {
        store.get(&key).is_some_and(|pod| pod.deletion.is_some())
    })
    .await;
    assert!(store.finalize(&key, &uid).expect("no disk"));
    wait_for(&store, "no status", || {
        etcd.get("/test/status/node-1/default/p").trim().is_empty()
    })
    .await;

    // A node that dies is gone when its lease ends.
    drop(following);
    wait_for(&store, "no heartbeat", || {
        etcd.get("/test/nodes/node-1").trim().is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn point_3_a_user_and_a_password() {
    let etcd = Etcd::start();
    etcd.put("a", &map("a", "one"));
    for args in [
        &["user", "add", "root:secret"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "node:pass word"],
        &["role", "add", "reader"],
        &[
            "role",
            "grant-permission",
            "reader",
            "--prefix=true",
            "read",
            "/test/manifests/",
        ],
        &["user", "grant-role", "node", "reader"],
        &["auth", "enable"],
    ] {
        // etcd grants the role of root only once it exists.
        if args[0] == "user" && args.contains(&"root") && args[1] == "grant-role" {
            etcd.try_ctl(&["role", "add", "root"]);
        }
        etcd.run_ctl(args);
    }
    let store = Store::in_memory("node");
    let refused = source::follow(&store, &etcd.config()).expect("followed");
    wait_for(&store, "the refusal", || !store.problems().is_empty()).await;
    drop(refused);

    let file: PathBuf = etcd.dir.path().join("password");
    std::fs::write(&file, "pass word\n").expect("written");
    let config = EtcdConfig {
        username: Some("node".to_owned()),
        password_file: Some(file),
        ..etcd.config()
    };
    let _following = source::follow(&store, &config).expect("followed");
    wait_for_value(&store, "a", Some("one")).await;
    etcd.run_ctl(&[
        "--user=root:secret",
        "put",
        "/test/manifests/a",
        &map("a", "two"),
    ]);
    wait_for_value(&store, "a", Some("two")).await;
}

const POD: &str =
    "{apiVersion: v1, kind: Pod, metadata: {name: p}, spec: {containers: [{name: c, image: i:1}]}}";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn point_3_a_user_who_may_only_read_gets_manifests_and_a_problem() {
    let etcd = Etcd::start();
    etcd.put("a", &map("a", "one"));
    enable_authentication(&etcd);
    let store = Store::in_memory("node-1");
    let _following = source::follow(&store, &as_user(&etcd)).expect("followed");
    wait_for_value(&store, "a", Some("one")).await;
    let says = |part: &str| {
        store
            .problems()
            .iter()
            .any(|p| p.to_string().contains(part))
    };
    wait_for(&store, "the problem", || says("the node cannot report")).await;
    assert!(
        says("permission denied") && says("grant-permission"),
        "{:?}",
        store.problems()
    );
    // Manifests go on; changed rights make old tokens invalid.
    grant(&etcd, "readwrite", "/test/nodes/");
    etcd.run_ctl(&[
        "--user=root:secret",
        "put",
        "/test/manifests/a",
        &map("a", "two"),
    ]);
    wait_for_value(&store, "a", Some("two")).await;
    grant(&etcd, "readwrite", "/test/status/");
    wait_for(&store, "no problem", || store.problems().is_empty()).await;
    let node = etcd.run_ctl(&["--user=root:secret", "get", "/test/nodes/node-1"]);
    assert!(node.contains("version"), "{node}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn point_3_a_token_that_has_expired_is_replaced_without_losing_the_lease() {
    let etcd = Etcd::start_with("http", |_| vec!["--auth-token-ttl=1".to_owned()]);
    etcd.put("p", POD);
    enable_authentication(&etcd);
    for prefix in ["/test/nodes/", "/test/status/"] {
        grant(&etcd, "readwrite", prefix);
    }
    let store = Store::in_memory("node-1");
    let _following = source::follow(&store, &as_user(&etcd)).expect("followed");
    let key = Key::pod("default", "p");
    wait_for(&store, "the pod", || store.get(&key).is_some()).await;
    let uid = store.get(&key).expect("the pod").uid.clone();
    let root = |args: &[&str]| etcd.run_ctl(&[&["--user=root:secret"], args].concat());
    let leases = || {
        let list = root(&["lease", "list"]);
        list.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    wait_for(&store, "the heartbeat", || {
        root(&["get", "/test/nodes/node-1"]).contains("version")
    })
    .await;
    let before = leases();
    assert_eq!(before.len(), 1);
    for phase in ["Pending", "Running"] {
        // Longer than a token lives without being used.
        tokio::time::sleep(Duration::from_secs(4)).await;
        let status = PodStatus {
            phase: Some(phase.to_owned()),
            ..PodStatus::default()
        };
        assert!(store.set_status(&key, &uid, status));
        wait_for(&store, phase, || {
            root(&["get", "/test/status/node-1/default/p"]).contains(phase)
        })
        .await;
    }
    assert_eq!(leases(), before);
    root(&["put", "/test/manifests/a", &map("a", "one")]);
    wait_for_value(&store, "a", Some("one")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn point_3_tls_with_client_certificates() {
    let etcd = Etcd::start_with("https", |dir| {
        certificates(dir);
        let file = |name: &str| dir.path().join(name).display().to_string();
        vec![
            "--client-cert-auth".to_owned(),
            format!("--trusted-ca-file={}", file("ca.pem")),
            format!("--cert-file={}", file("server.pem")),
            format!("--key-file={}", file("server.key")),
        ]
    });
    etcd.put("a", &map("a", "one"));
    let file = |name: &str| Some(etcd.dir.path().join(name));
    let store = Store::in_memory("node");
    // Without the authority the server is not trusted.
    let stranger = source::follow(&store, &etcd.config()).expect("followed");
    wait_for(&store, "the refusal", || !store.problems().is_empty()).await;
    assert_eq!(value(&store, "a"), None);
    drop(stranger);
    let config = EtcdConfig {
        ca_file: file("ca.pem"),
        cert_file: file("client.pem"),
        key_file: file("client.key"),
        ..etcd.config()
    };
    let _following = source::follow(&store, &config).expect("followed");
    wait_for_value(&store, "a", Some("one")).await;
}

#[tokio::test]
async fn point_3_a_configuration_that_cannot_work_is_refused_at_once() {
    let store = Store::in_memory("node");
    let config = |edit: fn(&mut EtcdConfig)| {
        let mut config = EtcdConfig {
            endpoints: vec!["http://127.0.0.1:1".to_owned()],
            prefix: EtcdConfig::default_prefix(),
            ca_file: None,
            cert_file: None,
            key_file: None,
            username: None,
            password_file: None,
        };
        edit(&mut config);
        config
    };
    for bad in [
        config(|config| config.endpoints.clear()),
        config(|config| config.endpoints[0] = "http://a b".to_owned()),
        config(|config| config.ca_file = Some("/nonexistent".into())),
        config(|config| config.username = Some("user".to_owned())),
        config(|config| config.cert_file = Some("/dev/null".into())),
    ] {
        assert!(source::follow(&store, &bad).is_err(), "{bad:?}");
    }
}
