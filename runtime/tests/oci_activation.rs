//! Sockets passed by systemd (sd_listen_fds(3)) and readiness told to it (sd_notify(3)), on real containers.
#![cfg(feature = "privileged-tests")]

mod oci_support;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use oci_support::{Bundle, stderr, stdout, until};

/// Runs the container from a shell, with variables and descriptors of its making.
fn run_from_shell(bundle: &Bundle, setting: &str, options: &str) -> String {
    bundle.write();
    fs::write(bundle.path().join("given"), "given\n").expect("file");
    let script = format!(
        "exec 3<{bundle}/given 4<{bundle}/given; {setting} exec {} --root {} run {options} -b {bundle} {}",
        bundle.runtime.display(),
        bundle.state_directory().display(),
        bundle.id,
        bundle = bundle.bundle_arg(),
    );
    let output = Command::new("/bin/sh")
        .args(["-c", &script])
        .output()
        .expect("runs");
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output)
}

const SAY: &str = "echo $LISTEN_FDS $LISTEN_PID $LISTEN_FDNAMES; cat <&3";

#[test]
fn passed_sockets_reach_the_program_with_its_own_pid() {
    let bundle = Bundle::sh(SAY);
    let said = run_from_shell(&bundle, "LISTEN_FDS=1 LISTEN_PID=$$ LISTEN_FDNAMES=web", "");
    assert_eq!(said, "1 1 web\ngiven");
}

#[test]
fn preserved_descriptors_come_after_the_passed_ones() {
    let bundle = Bundle::sh(&format!("{SAY}; cat <&4"));
    let said = run_from_shell(&bundle, "LISTEN_FDS=1 LISTEN_PID=$$", "--preserve-fds 1");
    assert_eq!(said, "1 1\ngiven\ngiven");
}

#[test]
fn what_was_passed_to_another_process_stays_out() {
    let bundle = Bundle::sh("echo [$LISTEN_FDS]; ls /proc/self/fd/3 2>/dev/null; true");
    // ls has its own directory open as 3.
    let said = run_from_shell(&bundle, "LISTEN_FDS=1 LISTEN_PID=1", "");
    assert!(said.starts_with("[]"), "{said}");
}

/// The bundle's container, where this test is the one who asked for readiness.
fn asked(bundle: &Bundle) -> UnixDatagram {
    UnixDatagram::bind(bundle.path().join("outside.sock")).expect("binds")
}

fn command(bundle: &Bundle) -> Command {
    let mut command = bundle.command();
    command
        .env("NOTIFY_SOCKET", bundle.path().join("outside.sock"))
        .stdout(Stdio::null());
    command
}

/// Says something to the socket that the container has at /run/notify.
fn say(bundle: &Bundle, message: &str) {
    let inside = bundle
        .state_directory()
        .join(&bundle.id)
        .join("notify/notify.sock");
    until("the socket is there", || inside.exists());
    let socket = UnixDatagram::unbound().expect("socket");
    until("it is heard", || {
        socket.send_to(message.as_bytes(), &inside).is_ok()
    });
}

fn heard(outside: &UnixDatagram) -> String {
    let mut text = [0; 4096];
    let length = outside.recv(&mut text).expect("hears");
    String::from_utf8_lossy(&text[..length]).into_owned()
}

#[test]
fn start_returns_when_the_program_is_ready() {
    let bundle =
        Bundle::sh("test -S $NOTIFY_SOCKET && touch /tmp/up; while true; do sleep 1000; done");
    let outside = asked(&bundle);
    bundle.write();
    let created = command(&bundle)
        .args(["create", "-b", &bundle.bundle_arg(), &bundle.id])
        .status()
        .expect("runs");
    assert!(created.success());
    let mut start = command(&bundle)
        .args(["start", &bundle.id])
        .spawn()
        .expect("spawns");
    until("the program sees its socket", || {
        bundle.rootfs().join("tmp/up").exists()
    });
    say(&bundle, "STATUS=nearly");
    assert_eq!(heard(&outside), "STATUS=nearly");
    assert!(start.try_wait().expect("looks").is_none(), "it waits");
    say(&bundle, "READY=1\nMAINPID=1");
    assert!(start.wait().expect("ends").success());
    assert_eq!(
        heard(&outside),
        format!("READY=1\nMAINPID={}", bundle.state()["pid"])
    );
}

#[test]
fn start_returns_when_the_program_ends_unready() {
    let bundle = Bundle::sh("exit 3");
    let _outside = asked(&bundle);
    bundle.write();
    for args in [&["create", "-b", &bundle.bundle_arg()][..], &["start"]] {
        let status = command(&bundle)
            .args(args)
            .arg(&bundle.id)
            .status()
            .expect("runs");
        assert!(status.success(), "{args:?}");
    }
}

#[test]
fn run_passes_on_what_the_program_says() {
    let bundle = Bundle::sh("while [ ! -e /tmp/done ]; do sleep 0.01; done");
    let outside = asked(&bundle);
    bundle.write();
    let mut run = command(&bundle)
        .args(["run", "-b", &bundle.bundle_arg(), &bundle.id])
        .spawn()
        .expect("spawns");
    say(&bundle, "READY=1");
    assert_eq!(heard(&outside), "READY=1");
    say(&bundle, "STOPPING=1\nFDSTORE=1");
    assert_eq!(heard(&outside), "STOPPING=1");
    fs::write(bundle.rootfs().join("tmp/done"), "").expect("file");
    assert!(run.wait().expect("ends").success());
}

#[test]
fn nobody_asked_and_nothing_is_there() {
    let bundle = Bundle::sh("echo [$NOTIFY_SOCKET]; ls /run/notify 2>&1");
    let said = bundle.run_with_any_exit();
    assert!(
        said.starts_with("[]") && said.contains("No such file"),
        "{said}"
    );
}
