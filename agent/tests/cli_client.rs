//! The client commands against an API that serves an in-memory store: no node, no root, no containers.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use podling_agent::api::{NodeInfo, Server};
use podling_agent::store::{Body, Desired, Key, Origin, Problem, Store, Writer};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// An API in this process, and a run directory that leads to it.
struct Fixture {
    dir: tempfile::TempDir,
    store: Store,
    stop: CancellationToken,
    runtime: tokio::runtime::Runtime,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::in_memory("test-node");
        let writer = Writer::directory(Path::new("/manifests"));
        store
            .replace_writer(&writer, vec![pod("web"), pod("other")])
            .unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let stop = CancellationToken::new();
        let info = NodeInfo {
            node: "test-node".into(),
            version: "0.0.0".into(),
            started_at: jiff::Timestamp::now(),
            pid: 1,
            sources: vec!["/manifests".into()],
            run_dir: dir.path().into(),
            data_dir: dir.path().into(),
            log_dir: dir.path().join("logs"),
            pinned_images: vec!["localhost/pinned:1".into()],
        };
        let fixture = Self {
            dir,
            store,
            stop,
            runtime,
        };
        let _inside = fixture.runtime.enter();
        let server = Server::bind(
            fixture.dir.path(),
            fixture.store.clone(),
            info,
            Box::new(|_, _| Vec::new()),
        )
        .unwrap();
        fixture
            .runtime
            .spawn(server.serve(fixture.stop.clone().cancelled_owned()));
        drop(_inside);
        fixture.run_pod("web", true);
        fixture
    }

    /// Gives a pod the status of one that runs.
    fn run_pod(&self, name: &str, ready: bool) {
        let key = Key::pod("default", name);
        let uid = self.store.get(&key).unwrap().uid.clone();
        let word = if ready { "True" } else { "False" };
        let status = json!({
            "phase": "Running", "podIP": "10.0.0.7",
            "conditions": [{ "type": "Ready", "status": word }],
            "containerStatuses": [{ "name": "main", "image": "demo", "imageID": "", "ready": ready, "started": true,
                "restartCount": 0, "state": { "running": { "startedAt": "2026-01-01T00:00:00Z" } } }],
        });
        let status = serde_json::from_value(status).unwrap();
        assert!(self.store.set_status(&key, &uid, status));
    }

    fn command(&self, args: &[&str]) -> Command {
        podling(self.dir.path(), args)
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn fails(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn podling(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podling"));
    command.args(args);
    command.env("PODLING_RUN_DIR", dir);
    command.env("PODLING_DATA_DIR", dir);
    command.env("PODLING_LOG_DIR", dir.join("logs"));
    command.env_remove("PODLING_NAMESPACE");
    command
}

fn pod(name: &str) -> Desired {
    let body = json!({
        "metadata": { "name": name, "namespace": "default", "labels": { "app": name } },
        "spec": { "containers": [{ "name": "main", "image": "demo" }] },
    });
    Desired {
        key: Key::pod("default", name),
        origin: Origin::file("/manifests/pods.yaml").at(1, 3),
        hash: name.to_owned(),
        body: Body::Pod(Arc::new(serde_json::from_value(body).unwrap())),
    }
}

#[test]
fn get_prints_a_table_names_json_and_yaml() {
    let fixture = Fixture::new();
    let table = fixture.ok(&["get", "pods"]);
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines[0].starts_with("NAME    READY   STATUS    RESTARTS   AGE"),
        "{table}"
    );
    assert!(
        lines[1].starts_with("other   0/1     Pending   0 "),
        "{table}"
    );
    assert!(
        lines[2].starts_with("web     1/1     Running   0 "),
        "{table}"
    );
    let wide = fixture.ok(&["get", "pods", "-o", "wide", "--no-headers", "web"]);
    assert_eq!(
        fixture.ok(&["get", "po", "-o", "name"]),
        "pod/other\npod/web\n"
    );
    drop(wide);
    let list: Value = serde_json::from_str(&fixture.ok(&["get", "pods", "-o", "json"])).unwrap();
    assert_eq!(
        (&list["kind"], &list["apiVersion"]),
        (&json!("PodList"), &json!("v1"))
    );
    let web = &list["items"][1];
    assert_eq!(web["metadata"]["name"], "web");
    assert_eq!(web["status"]["podIP"], "10.0.0.7");
    assert_eq!(
        web["metadata"]["annotations"]["podling.io/origin"],
        "/manifests/pods.yaml:3"
    );
    assert!(web["metadata"]["uid"].is_string() && web["metadata"]["resourceVersion"].is_string());
    let one: Value =
        serde_json::from_str(&fixture.ok(&["get", "pod", "web", "-o", "json"])).unwrap();
    assert_eq!(one["kind"], "Pod");
    let yaml = fixture.ok(&["get", "pod", "web", "-o", "yaml"]);
    assert!(yaml.contains("podIP: \"10.0.0.7\""), "{yaml}");
}

#[test]
fn what_is_not_there_is_an_error_with_a_hint() {
    let fixture = Fixture::new();
    for args in [
        &["get", "pods", "none"][..],
        &["describe", "pod", "none"],
        &["why", "none"],
        &["delete", "pod", "none"],
    ] {
        let error = fixture.fails(args);
        assert!(
            error.starts_with("error: there is no pod none in namespace default\nhint: "),
            "{error}"
        );
    }
    assert!(
        fixture
            .run(&["get", "pods", "-n", "empty"])
            .stdout
            .is_empty()
    );
    let wrong = fixture.run(&["get", "deployments"]);
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn why_describe_and_status_explain() {
    let fixture = Fixture::new();
    assert_eq!(fixture.ok(&["why", "web"]), "web is running and ready\n");
    fixture.run_pod("web", false);
    let why = fixture.ok(&["why", "pod/web"]);
    assert!(
        why.contains("not ready") && why.contains("readiness probe"),
        "{why}"
    );
    let page = fixture.ok(&["describe", "pod", "web"]);
    assert!(
        page.contains("/manifests/pods.yaml:3") && page.contains("10.0.0.7"),
        "{page}"
    );
    let problem = Problem::new(
        Origin::file("/manifests/bad.yaml").at(1, 9),
        "there is no such field",
    )
    .object(Some(Key::pod("default", "web")))
    .field("spec.containers[0].comand");
    let never_good = Problem::new(Origin::file("/manifests/new.yaml").at(1, 4), "not a number")
        .object(Some(Key::pod("default", "new")));
    fixture
        .store
        .set_problems("test", vec![problem, never_good]);
    let status = fixture.ok(&["status"]);
    assert!(
        status.contains("/manifests/bad.yaml:9") && status.contains("comand"),
        "{status}"
    );
    assert!(
        fixture
            .ok(&["why", "web"])
            .contains("/manifests/bad.yaml:9")
    );
    // A pod that was never there because its only manifest is wrong.
    let why = fixture.ok(&["why", "new"]);
    assert!(
        why.contains("new does not run: its manifest is refused")
            && why.contains("/manifests/new.yaml:4: not a number")
            && !why.contains("the version before"),
        "{why}"
    );
    let status: Value = serde_json::from_str(&fixture.ok(&["status", "--json"])).unwrap();
    assert_eq!(status["pods"]["total"], 2);
}

#[test]
fn deleting_a_pod_of_a_file_is_refused_and_restart_ends_it() {
    let fixture = Fixture::new();
    let error = fixture.fails(&["delete", "pod", "web"]);
    assert!(
        error.contains("/manifests/pods.yaml:3") && error.contains("--restart"),
        "{error}"
    );
    let key = Key::pod("default", "web");
    assert!(fixture.store.get(&key).unwrap().deletion.is_none());

    let child = fixture
        .command(&["delete", "pod", "web", "--restart", "--grace-period", "3"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut watch = fixture.store.watch_from(0);
    let object = fixture.runtime.block_on(async {
        let ended = async {
            loop {
                let object = fixture.store.get(&key).unwrap();
                if object.deletion.is_some() {
                    return object;
                }
                watch.next().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), ended)
            .await
            .unwrap()
    });
    assert_eq!(object.grace_secs(), 3);
    assert!(fixture.store.finalize(&key, &object.uid).unwrap());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_ne!(
        fixture.store.get(&key).unwrap().uid,
        object.uid,
        "its manifest starts it again"
    );
}

#[test]
fn watching_prints_each_change() {
    use std::io::{BufRead, BufReader};

    let fixture = Fixture::new();
    let mut child = fixture
        .command(&["get", "pods", "-w", "web"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || lines.next().unwrap().unwrap();
    assert!(next().starts_with("NAME"));
    assert!(next().contains("1/1"));
    fixture.run_pod("web", false);
    assert!(next().contains("0/1"));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn without_an_agent_it_is_said_what_still_works() {
    let dir = tempfile::tempdir().unwrap();
    let output = podling(dir.path(), &["status"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("agent.sock") && error.contains("pods go on without the agent"),
        "{error}"
    );
    // With pods' directories, their supervisors are asked.
    std::fs::create_dir_all(dir.path().join("pods")).unwrap();
    let output = podling(dir.path(), &["get", "pods", "-o", "json"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("note: no agent answers"));
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list["items"], json!([]));
}

#[test]
fn a_very_long_run_directory_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    let long = dir.path().join("x".repeat(120)).join("y".repeat(120));
    std::fs::create_dir_all(&long).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let info = NodeInfo {
        node: "n".into(),
        version: "0".into(),
        started_at: jiff::Timestamp::now(),
        pid: 1,
        sources: Vec::new(),
        run_dir: long.clone(),
        data_dir: long.clone(),
        log_dir: long.clone(),
        pinned_images: vec!["localhost/pinned:1".into()],
    };
    let server = Server::bind(
        &long,
        Store::in_memory("n"),
        info,
        Box::new(|_, _| Vec::new()),
    )
    .unwrap();
    let stop = CancellationToken::new();
    let task = runtime.spawn(server.serve(stop.clone().cancelled_owned()));
    assert!(
        podling(&long, &["status"])
            .output()
            .unwrap()
            .status
            .success()
    );
    stop.cancel();
    runtime.block_on(task).unwrap();
    assert!(
        !long.join("agent.sock").exists(),
        "the socket goes with the server"
    );
}
