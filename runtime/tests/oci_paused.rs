//! Containers whose processes stand still, and what commands make of them.
#![cfg(feature = "privileged-tests")]

mod oci_support;

use oci_support::{Bundle, until};

#[test]
fn a_container_that_is_paused_before_its_start_is_not_started() {
    let bundle = Bundle::sh("echo started >/tmp/started");
    bundle.create();
    bundle.ok(&["pause", &bundle.id]);
    let said = bundle.fails(&["start", &bundle.id]);
    assert!(
        said.contains("is paused; to start it must be resumed"),
        "{said}"
    );
    assert_eq!(bundle.status(), "created");
    bundle.ok(&["resume", &bundle.id]);
    bundle.ok(&["start", &bundle.id]);
    until("it has run", || {
        bundle.rootfs().join("tmp/started").exists()
    });
}

#[test]
fn a_paused_container_ends_by_kill() {
    let bundle = Bundle::running();
    bundle.ok(&["pause", &bundle.id]);
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    until("it has ended", || bundle.status() == "stopped");
    bundle.ok(&["delete", &bundle.id]);
    assert!(!bundle.cgroup_exists());
}

#[test]
fn another_signal_leaves_a_container_paused() {
    let bundle = Bundle::running();
    bundle.ok(&["pause", &bundle.id]);
    bundle.ok(&["kill", &bundle.id, "USR1"]);
    assert_eq!(bundle.status(), "paused");
    bundle.ok(&["delete", "--force", &bundle.id]);
}
