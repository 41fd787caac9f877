//! runtime-spec `runtime.md`, section by section: what each says that no other test of this directory shows.
#![cfg(feature = "privileged-tests")]

mod oci_support;

use std::fs;
use std::path::Path;

use oci_spec::runtime::{Hook, HookBuilder, Hooks};
use oci_support::{Bundle, stderr, stdout, until};

/// A hook that runs a script on the host's side.
fn hook(script: &str, environment: Option<&[&str]>) -> Hook {
    let mut hook = HookBuilder::default()
        .path("/bin/sh")
        .args(["sh", "-c", script].map(str::to_owned))
        .timeout(60)
        .build()
        .expect("builds");
    if let Some(environment) = environment {
        hook.set_env(Some(environment.iter().map(|&e| e.to_owned()).collect()));
    }
    hook
}

/// A script that adds a line to a file.
fn note(path: &Path, line: &str) -> String {
    format!("echo {line} >> {}", path.display())
}

/// `#state`: all that must be there is there, at each status.
#[test]
fn state_has_all_required_members() {
    let mut bundle = Bundle::sh("sleep 1000");
    bundle
        .spec
        .set_annotations(Some([("a.b".to_owned(), "c".to_owned())].into()));
    bundle.create();
    let state = bundle.state();
    for member in ["ociVersion", "id", "status", "pid", "bundle", "annotations"] {
        assert!(!state[member].is_null(), "{member}: {state}");
    }
    assert_eq!(state["status"], "created");
    assert_eq!(state["annotations"]["a.b"], "c");
    let bundle_path = fs::canonicalize(bundle.path()).expect("the bundle");
    assert_eq!(state["bundle"].as_str(), bundle_path.to_str());
    bundle.ok(&["start", &bundle.id]);
    assert_eq!(bundle.status(), "running");
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    until("it has ended", || bundle.status() == "stopped");
}

/// `#lifecycle`, step 2: changes of config.json after create mean nothing.
#[test]
fn a_change_of_the_configuration_after_create_has_no_effect() {
    let mut bundle = Bundle::sh("echo first > /tmp/said");
    bundle.create();
    bundle.args(&["/bin/sh", "-c", "echo second > /tmp/said"]);
    bundle.write();
    bundle.ok(&["start", &bundle.id]);
    until("it has ended", || bundle.status() == "stopped");
    let said = fs::read_to_string(bundle.rootfs().join("tmp/said")).expect("said");
    assert_eq!(said, "first\n");
}

/// `#lifecycle`, steps 3 and 4: a hook that fails is an error, and nothing is left.
#[test]
fn a_prestart_hook_that_fails_stops_the_creation() {
    let mut bundle = Bundle::sh("true");
    let mut hooks = Hooks::default();
    #[allow(
        deprecated,
        reason = "engines still use it, and the specification keeps it"
    )]
    hooks.set_prestart(Some(vec![hook("exit 1", None)]));
    bundle.spec.set_hooks(Some(hooks));
    assert!(
        bundle
            .run_fails()
            .contains("prestart hook failed with exit code 1")
    );
}

/// `config.md#posix-platform-hooks`: a hook without an environment has the caller's on the host's side, as with runc and
/// crun, and the process's inside.
#[test]
fn only_a_hook_on_the_hosts_side_sees_the_callers_environment() {
    let mut bundle = Bundle::sh("true");
    let notes = bundle.path().join("notes");
    let say = |kind: &str| {
        note(
            &notes,
            &format!("{kind} ${{SECRET_OF_THE_CALLER:-nothing}}"),
        )
    };
    let mut hooks = Hooks::default();
    hooks
        .set_create_runtime(Some(vec![
            hook(&say("inherited"), None),
            hook(&say("own"), Some(&["A=1"])),
        ]))
        .set_create_container(Some(vec![
            hook(&say("inside"), None),
            hook(&say("$P"), None),
        ]));
    bundle.process().set_env(Some(vec!["P=process".to_owned()]));
    bundle.spec.set_hooks(Some(hooks));
    bundle.run();
    assert_eq!(
        fs::read_to_string(&notes).expect("notes"),
        "inherited must not be seen\nown nothing\ninside nothing\nprocess nothing\n"
    );
}

/// `#errors`: one message, with the program's name, the level and what is wrong, and nothing half done.
#[test]
fn an_error_is_told_once() {
    let bundle = Bundle::running();
    let output = bundle.exec(&["/none"]);
    assert_eq!(output.status.code(), Some(127));
    assert_eq!(stdout(&output), "");
    let message = stderr(&output);
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.starts_with("podling-runtime: error: "), "{message}");

    let mut second = Bundle::new();
    second.args(&["/none"]);
    let message = second.run_fails();
    assert_eq!(message.lines().count(), 1, "{message}");
}

/// `#start`, `#kill`, `#delete`: each is an error at a status that it is not for, and changes nothing.
#[test]
fn an_operation_at_the_wrong_status_is_an_error() {
    let bundle = Bundle::running();
    assert!(bundle.fails(&["start", &bundle.id]).contains("is running"));
    assert!(bundle.fails(&["delete", &bundle.id]).contains("is running"));
    assert_eq!(bundle.status(), "running");
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    until("it has ended", || bundle.status() == "stopped");
    assert!(bundle.fails(&["start", &bundle.id]).contains("is stopped"));
    assert!(bundle.fails(&["kill", &bundle.id]).contains("is stopped"));
    bundle.ok(&["delete", &bundle.id]);
    for command in ["state", "start", "kill", "delete"] {
        let message = bundle.fails(&[command, &bundle.id]);
        assert!(message.contains("does not exist"), "{command}: {message}");
    }
}
