//! A protection that was asked for and cannot be given stops the container: one test for each. The kernel is made to
//! refuse by a seccomp filter on the runtime itself, or is asked for what it does not have.
#![cfg(feature = "privileged-tests")]

mod oci_support;

use std::path::Path;

use libseccomp::{ScmpAction, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompBuilder, User};
use oci_support::{Bundle, stderr};

/// `PR_SET_NO_NEW_PRIVS`, `PR_CAPBSET_DROP` and `PR_CAP_AMBIENT` of linux/prctl.h.
const PR_SET_NO_NEW_PRIVS: u64 = 38;
const PR_CAPBSET_DROP: u64 = 24;
const PR_CAP_AMBIENT: u64 = 47;

/// A bundle whose program leaves a trace.
fn bundle() -> Bundle {
    Bundle::sh("touch /ran")
}

/// From now on this thread, and what it starts, is refused a system call, if `first` is given only with that as its
/// first argument.
fn refuse(call: &str, first: Option<u64>) {
    let mut filter = ScmpFilterContext::new(ScmpAction::Allow).expect("a filter");
    filter.set_ctl_nnp(false).expect("no no_new_privs");
    let call = ScmpSyscall::from_name(call).expect("a system call");
    let compare: Vec<ScmpArgCompare> = first
        .iter()
        .map(|&value| ScmpArgCompare::new(0, ScmpCompareOp::Equal, value))
        .collect();
    filter
        .add_rule_conditional(ScmpAction::Errno(libc::EPERM), call, &compare)
        .expect("a rule");
    filter.load().expect("loads");
}

/// Runs `f` in a thread that is refused the system call.
fn refused<T: Send>(call: &str, first: Option<u64>, f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            refuse(call, first);
            f()
        });
        thread.join().expect("the thread")
    })
}

/// The container works as it is, and without the system call it does not start, says `why` and leaves nothing.
fn stops(bundle: &Bundle, call: &str, first: Option<u64>, why: &str) {
    let ran = bundle.rootfs().join("ran");
    bundle.run();
    std::fs::remove_file(&ran).expect("it ran");
    let message = refused(call, first, || bundle.run_fails());
    assert!(message.contains(why), "{message}");
    assert!(!ran.exists(), "the program ran");
}

/// The spec is refused, or fails, with a message about `why`.
fn is_refused(bundle: &Bundle, why: &str) {
    let message = bundle.run_fails();
    assert!(
        message.to_lowercase().contains(&why.to_lowercase()),
        "{message}"
    );
    assert!(!bundle.rootfs().join("ran").exists(), "the program ran");
}

fn allow_all() -> LinuxSeccomp {
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActAllow)
        .architectures(vec![Arch::ScmpArchX86_64])
        .build()
        .expect("a profile")
}

#[test]
fn without_seccomp_nothing_starts() {
    for no_new_privileges in [true, false] {
        let mut bundle = bundle();
        bundle.linux().set_seccomp(Some(allow_all()));
        bundle
            .process()
            .set_no_new_privileges(Some(no_new_privileges));
        stops(&bundle, "seccomp", None, "load the seccomp filter");
    }
}

#[test]
fn a_seccomp_profile_that_cannot_be_compiled_stops_the_container() {
    let mut bundle = bundle();
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [
            {"index": 9, "value": 1, "op": "SCMP_CMP_EQ"}]}]}"#;
    bundle
        .linux()
        .set_seccomp(Some(serde_json::from_str(text).expect("a profile")));
    is_refused(&bundle, "seccomp");
}

#[test]
fn without_no_new_privs_nothing_starts() {
    let mut bundle = bundle();
    bundle.process().set_no_new_privileges(Some(true));
    stops(
        &bundle,
        "prctl",
        Some(PR_SET_NO_NEW_PRIVS),
        "set no_new_privs",
    );
}

#[test]
fn without_the_bounding_set_dropped_nothing_starts() {
    stops(&bundle(), "prctl", Some(PR_CAPBSET_DROP), "bounding set");
}

#[test]
fn without_ambient_capabilities_cleared_nothing_starts() {
    stops(&bundle(), "prctl", Some(PR_CAP_AMBIENT), "ambient");
}

#[test]
fn without_capabilities_dropped_nothing_starts() {
    stops(&bundle(), "capset", None, "set capabilities");
}

#[test]
fn without_a_change_of_user_nothing_starts() {
    for call in ["setresuid", "setresgid", "setgroups"] {
        let mut bundle = bundle();
        let mut user = User::default();
        // A group that is asked for: none at all may be there already.
        user.set_uid(1234_u32)
            .set_gid(1234_u32)
            .set_additional_gids(Some(vec![7]));
        bundle.process().set_user(user);
        bundle.args(&["/bin/sh", "-c", "true"]);
        bundle.run();
        let message = refused(call, None, || bundle.run_fails());
        assert!(message.contains("change user and groups"), "{message}");
    }
}

#[test]
fn without_a_keyring_of_its_own_nothing_starts() {
    stops(&bundle(), "keyctl", None, "keyring");
}

/// The child says so while its parent still makes the cgroup.
#[test]
fn without_a_network_of_its_own_nothing_starts() {
    let new_network = Some(libc::CLONE_NEWNET as u64);
    stops(
        &bundle(),
        "unshare",
        new_network,
        "make a network namespace",
    );
}

#[test]
fn without_a_new_root_nothing_starts() {
    stops(&bundle(), "pivot_root", None, "change the root directory");
    stops(&bundle(), "umount2", None, "detach the host's mounts");
}

#[test]
fn with_descriptors_that_do_not_close_nothing_starts() {
    stops(&bundle(), "close_range", None, "process ended");
}

/// Attributes of mounts make paths read-only, and cut the container's mounts off from the host's.
#[test]
fn without_mount_attributes_nothing_starts() {
    let bundle = bundle();
    let message = refused("mount_setattr", None, || bundle.run_fails());
    assert!(message.contains("make all mounts private"), "{message}");
}

#[test]
fn a_path_that_cannot_be_masked_stops_the_container() {
    let mut bundle = bundle();
    std::os::unix::fs::symlink("loop", bundle.rootfs().join("loop")).expect("link");
    bundle
        .linux()
        .set_masked_paths(Some(vec!["/loop/secret".to_owned()]));
    is_refused(&bundle, "cannot mask /loop/secret");
}

#[test]
fn a_path_that_cannot_be_made_read_only_stops_the_container() {
    let mut bundle = bundle();
    std::os::unix::fs::symlink("loop", bundle.rootfs().join("loop")).expect("link");
    bundle
        .linux()
        .set_readonly_paths(Some(vec!["/loop/secret".to_owned()]));
    is_refused(&bundle, "cannot make read-only /loop/secret");
}

#[test]
fn a_profile_of_apparmor_on_a_kernel_without_it_stops_the_container() {
    if Path::new("/sys/module/apparmor").exists() {
        println!("this kernel has AppArmor: nothing to try");
        return;
    }
    let mut bundle = bundle();
    bundle
        .process()
        .set_apparmor_profile(Some("a-profile".to_owned()));
    is_refused(&bundle, "apparmor");
}

#[test]
fn a_label_of_selinux_on_a_kernel_without_it_stops_the_container() {
    if Path::new("/sys/fs/selinux/enforce").exists() {
        println!("this kernel has SELinux: nothing to try");
        return;
    }
    let mut bundle = bundle();
    bundle
        .process()
        .set_selinux_label(Some("system_u:system_r:container_t:s0".to_owned()));
    is_refused(&bundle, "selinux");
}

/// The same for a command in a container that runs.
#[test]
fn without_its_protections_no_command_runs() {
    let mut bundle = Bundle::sh("touch /tmp/up; while true; do sleep 1000; done");
    bundle.linux().set_seccomp(Some(allow_all()));
    bundle.process().set_no_new_privileges(Some(true));
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    oci_support::until("it is up", || bundle.rootfs().join("tmp/up").exists());
    assert!(bundle.exec(&["true"]).status.success());
    for (call, first, why) in [
        ("seccomp", None, "load the seccomp filter"),
        ("prctl", Some(PR_SET_NO_NEW_PRIVS), "set no_new_privs"),
        ("prctl", Some(PR_CAPBSET_DROP), "bounding set"),
        ("capset", None, "set capabilities"),
        ("setresuid", None, "change user and groups"),
        ("setns", None, "namespace"),
        ("keyctl", None, "keyring"),
    ] {
        let output = refused(call, first, || bundle.exec(&["touch", "/ran"]));
        assert!(!output.status.success(), "{call}");
        let message = stderr(&output);
        assert!(message.contains(why), "{call}: {message}");
        assert!(!bundle.rootfs().join("ran").exists(), "{call}");
    }
}
