//! runtime-spec config.md, section "POSIX-platform Hooks", with the lifecycle of runtime.md, on real containers.
#![cfg(feature = "privileged-tests")]

mod oci_support;

use std::fs;
use std::process::{Child, Stdio};

use oci_support::{Bundle, stderr, until};
use serde_json::{Value, json};

/// Hooks as they stand in a configuration.
fn set_hooks(bundle: &mut Bundle, hooks: Value) {
    bundle
        .spec
        .set_hooks(Some(serde_json::from_value(hooks).expect("hooks")));
}

/// A hook that runs a shell script.
fn script(script: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"], "timeout": 50})
}

/// A file in the container's `/tmp`, by its path outside.
fn outside(bundle: &Bundle, name: &str) -> String {
    let path = bundle.rootfs().join("tmp").join(name);
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn each_kind_runs_in_its_own_namespaces_and_in_its_order() {
    let mut bundle = Bundle::sh("true");
    let out = outside(&bundle, "said");
    let here = |kind: &str| {
        script(&format!(
            "echo {kind} $(readlink /proc/self/ns/mnt) $(readlink /proc/self/ns/pid) >>{out}"
        ))
    };
    set_hooks(
        &mut bundle,
        json!({
            "createRuntime": [here("createRuntime")],
            "prestart": [here("prestart")],
            "createContainer": [here("createContainer")],
            "startContainer": [script("echo startContainer $(readlink /proc/self/ns/mnt) $(readlink /proc/self/ns/pid) >>/tmp/said")],
            "poststart": [here("poststart")],
            "poststop": [here("poststop")],
        }),
    );
    bundle.run();
    let said = fs::read_to_string(&out).expect("reads");
    let ours = ["mnt", "pid"].map(|kind| {
        let link = fs::read_link(format!("/proc/thread-self/ns/{kind}")).expect("a namespace");
        link.to_str().expect("UTF-8").to_owned()
    });
    let kinds = [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
        "poststop",
    ];
    assert_eq!(said.lines().count(), kinds.len(), "{said}");
    for (line, kind) in said.lines().zip(kinds) {
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!(words[0], kind, "{said}");
        let inside = ["createContainer", "startContainer"].contains(&kind);
        // /proc/self/ns is of the procfs that the hook sees: before the root is changed, the host's.
        assert_eq!(words[1] != ours[0], inside, "{line}");
        if kind == "startContainer" {
            assert_ne!(words[2], ours[1], "{line}");
        }
    }
}

#[test]
fn create_container_hooks_see_the_mounts_and_the_hosts_files() {
    let mut bundle = Bundle::sh("cat /tmp/mounted");
    let rootfs = bundle.rootfs().to_str().expect("UTF-8").to_owned();
    set_hooks(
        &mut bundle,
        json!({"createContainer": [script(&format!(
            "test -d {rootfs}/proc/1 && test -c {rootfs}/dev/null && test -e /etc/hostname && echo yes >{rootfs}/tmp/mounted"
        ))]}),
    );
    assert_eq!(bundle.run(), "yes");
}

#[test]
fn arguments_and_environment_are_the_hooks_own() {
    let mut bundle = Bundle::sh("true");
    let out = outside(&bundle, "said");
    set_hooks(
        &mut bundle,
        json!({"createRuntime": [{
            "path": "/bin/sh",
            "args": ["another-name", "-c", format!("{{ tr '\\0' ' ' </proc/$$/cmdline; tr '\\0' '\\n' </proc/$$/environ; }} >{out}")],
            "env": ["PATH=/usr/bin:/bin", "A=b c"],
        }]}),
    );
    bundle.run();
    let said = fs::read_to_string(&out).expect("reads");
    assert!(said.starts_with("another-name -c "), "{said}");
    assert!(said.ends_with("A=b c\nPATH=/usr/bin:/bin\n"), "{said}");
    assert!(!said.contains("SECRET"), "{said}");
}

#[test]
fn the_state_is_the_containers() {
    let mut bundle = Bundle::sh("true");
    let out = outside(&bundle, "state");
    bundle
        .spec
        .set_annotations(Some([("key".to_owned(), "value".to_owned())].into()));
    set_hooks(
        &mut bundle,
        json!({"createRuntime": [script(&format!("cat >{out}"))]}),
    );
    bundle.run();
    let state: Value = serde_json::from_slice(&fs::read(&out).expect("reads")).expect("JSON");
    assert_eq!(state["id"], bundle.id.as_str());
    assert_eq!(state["status"], "creating");
    assert_eq!(state["bundle"], bundle.bundle_arg().as_str());
    assert_eq!(state["annotations"]["key"], "value");
    assert!(state["pid"].as_i64().is_some_and(|pid| pid > 1), "{state}");
}

#[test]
fn a_hook_that_hangs_ends_the_creation() {
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let mut bundle = Bundle::sh("true");
        set_hooks(
            &mut bundle,
            json!({kind: [
            {"path": "/bin/sh", "args": ["sh", "-c", "sleep 1000 & sleep 1000"], "timeout": 1}]}),
        );
        let message = bundle.run_fails();
        assert!(message.contains("within 1 s"), "{kind}: {message}");
    }
}

#[test]
fn the_first_hook_that_fails_is_the_last() {
    let mut bundle = Bundle::sh("true");
    let out = outside(&bundle, "said");
    set_hooks(
        &mut bundle,
        json!({"createRuntime": [
            script(&format!("echo one >>{out}")),
            script(&format!("echo two >>{out}; exit 3")),
            script(&format!("echo three >>{out}")),
        ]}),
    );
    let message = bundle.run_fails();
    assert!(message.contains("exit code 3"), "{message}");
    assert_eq!(fs::read_to_string(&out).expect("reads"), "one\ntwo\n");
}

#[test]
fn a_start_container_hook_that_fails_executes_nothing() {
    let mut bundle = Bundle::sh("touch /tmp/executed");
    set_hooks(
        &mut bundle,
        json!({"startContainer": [script("echo no luck >&2; exit 4")]}),
    );
    bundle.create();
    let message = bundle.fails(&["start", &bundle.id]);
    assert!(message.contains("exit code 4: no luck"), "{message}");
    until("the process has ended", || bundle.status() == "stopped");
    assert!(!bundle.rootfs().join("tmp/executed").exists());
}

/// Since 1.3: "the runtime MUST generate an error, stop the container, and continue the lifecycle at step 12".
#[test]
fn a_poststart_hook_that_fails_destroys_the_container() {
    for command in ["run", "start"] {
        let mut bundle = Bundle::sh("while true; do sleep 1000; done");
        let out = outside(&bundle, "stopped");
        set_hooks(
            &mut bundle,
            json!({
                "poststart": [script("echo no luck >&2; exit 5")],
                "poststop": [script(&format!("touch {out}"))],
            }),
        );
        let message = if command == "run" {
            bundle.run_fails()
        } else {
            bundle.create();
            bundle.fails(&["start", &bundle.id])
        };
        assert!(message.contains("exit code 5: no luck"), "{message}");
        assert!(fs::exists(&out).expect("looks"), "{command}: poststop ran");
        assert!(!bundle.cgroup_exists());
        let gone = bundle.fails(&["state", &bundle.id]);
        assert!(gone.contains("does not exist"), "{gone}");
    }
}

/// A `run` that waits sees the container die, and several `delete --force` do what it is about to do: one of them
/// removes the container, the others find it done, and none fails.
#[test]
fn a_container_is_removed_once_by_whoever_comes_first() {
    for round in 0..8 {
        let mut bundle = Bundle::sh("touch /tmp/up; while true; do sleep 1000; done");
        let out = outside(&bundle, "said");
        set_hooks(
            &mut bundle,
            json!({"poststop": [script(&format!("echo poststop >>{out}"))]}),
        );
        bundle.write();
        let mut run = bundle
            .command()
            .args(["run", "-b", &bundle.bundle_arg(), &bundle.id])
            .spawn()
            .expect("runs");
        until("the container is up", || {
            bundle.rootfs().join("tmp/up").exists()
        });
        let mut deleters: Vec<Child> = (0..3)
            .map(|_| {
                let mut delete = bundle.command();
                delete.args(["delete", "--force", &bundle.id]);
                delete.stderr(Stdio::piped()).spawn().expect("runs")
            })
            .collect();
        for delete in deleters.drain(..) {
            let output = delete.wait_with_output().expect("ends");
            assert!(output.status.success(), "{round}: {}", stderr(&output));
        }
        assert_eq!(run.wait().expect("ends").code(), Some(137), "{round}");
        let said = || fs::read_to_string(&out).unwrap_or_default();
        until("the hook ran", || !said().is_empty());
        assert_eq!(said(), "poststop\n", "{round}");
        assert!(!bundle.cgroup_exists());
        assert!(!bundle.state_directory().join(&bundle.id).exists());
    }
}

#[test]
fn a_poststop_hook_that_fails_is_a_warning() {
    let mut bundle = Bundle::sh("true");
    let out = outside(&bundle, "second");
    set_hooks(
        &mut bundle,
        json!({"poststop": [
            script("echo no luck >&2; exit 6"),
            script(&format!("touch {out}")),
        ]}),
    );
    bundle.create();
    let output = bundle.runtime(&["delete", "--force", &bundle.id]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(
        stderr(&output).contains("exit code 6: no luck"),
        "{}",
        stderr(&output)
    );
    assert!(fs::exists(&out).expect("looks"), "the second one ran");
}

#[test]
fn a_hook_that_could_not_run_creates_nothing() {
    for (hook, field) in [
        (json!({"path": "bin/true"}), "hooks.poststop[0].path"),
        (
            json!({"path": "/bin/true", "timeout": 0}),
            "hooks.poststop[0].timeout",
        ),
    ] {
        let mut bundle = Bundle::sh("true");
        set_hooks(&mut bundle, json!({"poststop": [hook]}));
        let message = bundle.run_fails();
        assert!(message.contains(field), "{message}");
    }
}

#[test]
fn a_start_container_hook_has_the_processs_home() {
    let mut bundle = Bundle::sh("echo $HOME");
    bundle
        .process()
        .set_env(Some(vec!["PATH=/bin".to_owned(), "ONE=two".to_owned()]));
    let said = outside(&bundle, "said");
    set_hooks(
        &mut bundle,
        json!({"startContainer": [
            {"path": "/bin/sh", "args": ["sh", "-c", "echo $HOME $ONE >/tmp/said"]}
        ]}),
    );
    let home = bundle.run();
    let said = fs::read_to_string(said).expect("reads");
    assert_eq!(said.trim(), format!("{home} two"));
}

#[test]
fn hooks_on_the_hosts_side_start_in_the_bundle() {
    let mut bundle = Bundle::sh("true");
    let said = outside(&bundle, "said");
    let hook = script(&format!("pwd >>{said}"));
    let kinds = ["createRuntime", "createContainer", "poststart", "poststop"];
    let hooks = kinds.map(|kind| (kind.to_owned(), json!([hook])));
    set_hooks(&mut bundle, Value::Object(hooks.into_iter().collect()));
    bundle.run();
    let here = format!("{}\n", bundle.path().display());
    assert_eq!(fs::read_to_string(said).expect("reads"), here.repeat(4));
}

/// What it said is the message, whoever has run it.
#[test]
fn a_hook_that_fails_inside_is_told_as_one_outside() {
    for kind in ["createRuntime", "createContainer", "startContainer"] {
        let mut bundle = Bundle::sh("true");
        set_hooks(&mut bundle, json!({kind: [script("echo why >&2; exit 3")]}));
        let said = bundle.run_fails();
        assert_eq!(
            said.trim_end(),
            format!(
                "podling-runtime: error: /bin/sh: the {kind} hook failed with exit code 3: why"
            )
        );
    }
}
