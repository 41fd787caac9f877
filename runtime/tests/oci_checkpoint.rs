//! `checkpoint` and `restore` with criu. Where criu is not installed or does not work these tests say so: the virtual
//! machine tests run them where it does.
#![cfg(feature = "privileged-tests")]

mod oci_support;

use std::fs;
use std::process::Command;

use oci_support::{Bundle, until};

fn no_criu() -> bool {
    let works = Command::new("criu")
        .arg("check")
        .output()
        .is_ok_and(|output| output.status.success());
    if !works {
        eprintln!("skipped: criu check fails, or criu is not installed");
    }
    !works
}

/// A container that counts in its memory, and writes down how far it is.
fn counting() -> Bundle {
    let mut bundle = Bundle::sh(
        "exec </dev/null >/dev/null 2>&1
         n=0; while true; do n=$((n + 1)); echo $n >/tmp/new; mv /tmp/new /tmp/count; sleep 0.05; done",
    );
    std::os::unix::fs::symlink("busybox", bundle.rootfs().join("bin/mv")).expect("link");
    let resources = serde_json::from_str(r#"{"pids":{"limit":55}}"#).expect("resources");
    bundle.linux().set_resources(Some(resources));
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    until("it counts", || count(&bundle) > 3);
    bundle
}

fn count(bundle: &Bundle) -> u64 {
    let text = fs::read_to_string(bundle.rootfs().join("tmp/count")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// The runtime's arguments for an image in the bundle.
fn image(bundle: &Bundle) -> String {
    let path = bundle.path().join("image");
    path.to_str().expect("UTF-8").to_owned()
}

/// What the guest says when criu fails: its log.
fn with_log<T>(bundle: &Bundle, work: impl FnOnce() -> T) -> T {
    struct Tell(std::path::PathBuf);
    impl Drop for Tell {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                return;
            }
            for name in ["dump.log", "restore.log"] {
                let log = fs::read_to_string(self.0.join(name)).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let last = &lines[lines.len().saturating_sub(40)..];
                eprintln!("{name}:\n{}", last.join("\n"));
            }
        }
    }
    let _tell = Tell(bundle.path().join("image"));
    work()
}

#[test]
fn a_missing_criu_is_named() {
    let bundle = Bundle::running();
    let message = bundle.fails(&[
        "--criu",
        "/no/such/criu",
        "checkpoint",
        "--image-path",
        &image(&bundle),
        &bundle.id,
    ]);
    assert!(
        message.contains("/no/such/criu is not installed"),
        "{message}"
    );
    assert_eq!(bundle.status(), "running");
}

#[test]
fn only_what_runs_can_be_saved_and_only_an_image_restored() {
    let bundle = Bundle::sh("true");
    bundle.create();
    let message = bundle.fails(&["checkpoint", "--image-path", &image(&bundle), &bundle.id]);
    assert!(message.contains("is created"), "{message}");
    bundle.ok(&["delete", &bundle.id]);
    let bundle_arg = bundle.bundle_arg();
    let message = bundle.fails(&[
        "restore",
        "-b",
        &bundle_arg,
        "--image-path",
        &image(&bundle),
        &bundle.id,
    ]);
    assert!(message.contains("image"), "{message}");
    assert!(!bundle.state_directory().join(&bundle.id).exists());
    assert!(!bundle.cgroup_exists());
}

#[test]
fn a_container_goes_on_where_it_was_saved() {
    if no_criu() {
        return;
    }
    let bundle = counting();
    let image = image(&bundle);
    let bundle_arg = bundle.bundle_arg();
    with_log(&bundle, || {
        bundle.ok(&["checkpoint", "--image-path", &image, &bundle.id]);
        let saved = count(&bundle);
        assert!(saved > 3);
        assert!(
            bundle
                .fails(&["state", &bundle.id])
                .contains("does not exist")
        );
        assert!(!bundle.cgroup_exists());

        let pid_file = bundle.path().join("pid");
        let pid_arg = pid_file.to_str().expect("UTF-8");
        bundle.ok(&[
            "restore",
            "--detach",
            "--bundle",
            &bundle_arg,
            "--image-path",
            &image,
            "--pid-file",
            pid_arg,
            &bundle.id,
        ]);
        assert_eq!(bundle.status(), "running");
        let pid = fs::read_to_string(&pid_file).expect("a pid file");
        assert_eq!(pid, bundle.state()["pid"].to_string());
        // It counts on, and did not begin anew.
        until("it counts on", || count(&bundle) > saved + 2);
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        assert!(!mounts.contains("criu-root"), "{mounts}");
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroups");
        assert!(cgroups.contains(&bundle.id), "{cgroups}");
        assert!(bundle.exec(&["true"]).status.success());
        bundle.ok(&["delete", "--force", &bundle.id]);
        assert!(!bundle.cgroup_exists());
    });
}

#[test]
fn a_saved_container_may_run_on() {
    if no_criu() {
        return;
    }
    let bundle = counting();
    let image = image(&bundle);
    with_log(&bundle, || {
        bundle.ok(&[
            "checkpoint",
            "--leave-running",
            "--image-path",
            &image,
            &bundle.id,
        ]);
        assert_eq!(bundle.status(), "running");
        let saved = count(&bundle);
        until("it counts on", || count(&bundle) > saved + 2);
    });
}
