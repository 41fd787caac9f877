//! Commands that need no agent: logs from CRI files, help, completions, manual pages, the demo applet.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn podling(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podling"));
    command.args(args);
    for (variable, below) in [("RUN", "run"), ("DATA", "data"), ("LOG", "logs")] {
        command.env(format!("PODLING_{variable}_DIR"), dir.join(below));
    }
    command.env_remove("PODLING_NAMESPACE");
    command
}

fn output(dir: &Path, args: &[&str]) -> Output {
    podling(dir, args).output().unwrap()
}

#[track_caller]
fn ok(dir: &Path, args: &[&str]) -> String {
    let output = output(dir, args);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn write_log(dir: &Path, file: &str, lines: &[(u32, &str)]) {
    let path = dir.join("logs/default_web_uid/main").join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut log = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .unwrap();
    for (second, text) in lines {
        writeln!(log, "2026-01-01T00:00:{second:02}Z stdout F {text}").unwrap();
    }
}

#[test]
fn logs_are_read_over_rotated_files_without_an_agent() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_log(dir, "0.log", &[(0, "run 0")]);
    write_log(dir, "1.log.20260101", &[(1, "a"), (2, "b")]);
    write_log(dir, "1.log", &[(3, "c")]);
    assert_eq!(ok(dir, &["logs", "web"]), "a\nb\nc\n");
    assert_eq!(ok(dir, &["logs", "web", "--tail", "2"]), "b\nc\n");
    assert_eq!(ok(dir, &["logs", "web", "--tail", "0"]), "");
    assert_eq!(ok(dir, &["logs", "-p", "web"]), "run 0\n");
    assert_eq!(
        ok(dir, &["logs", "web", "--timestamps", "--tail", "1"]),
        "2026-01-01T00:00:03Z c\n"
    );
    assert_eq!(ok(dir, &["logs", "web", "--since", "1s"]), "");
    assert_eq!(
        ok(dir, &["logs", "web", "--all-containers", "--tail", "1"]),
        "main: c\n"
    );
    let wrong = output(dir, &["logs", "web", "-c", "none"]);
    assert!(
        String::from_utf8_lossy(&wrong.stderr).contains("it has main"),
        "{wrong:?}"
    );
    assert_eq!(output(dir, &["logs", "other"]).status.code(), Some(1));
}

#[test]
fn a_container_that_has_not_started_has_no_log_and_says_who_knows_why() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::create_dir_all(dir.join("logs/default_web_uid/main")).unwrap();
    for args in [&["logs", "web"][..], &["logs", "web", "--all-containers"]] {
        let waits = output(dir, args);
        assert_eq!(waits.status.code(), Some(1));
        let error = String::from_utf8_lossy(&waits.stderr);
        assert!(
            error.contains("it has not been started yet") && error.contains("podling why web"),
            "{error}"
        );
    }
    // One that has started and is silent is no error.
    write_log(dir, "0.log", &[]);
    assert_eq!(ok(dir, &["logs", "web"]), "");
}

#[test]
fn a_log_that_cannot_be_read_is_not_taken_for_an_output_that_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_log(dir, "0.log", &[(0, "secret")]);
    let log = dir.join("logs/default_web_uid/main/0.log");
    fs::set_permissions(&log, fs::Permissions::from_mode(0o000)).unwrap();
    let wrong = output(dir, &["logs", "web"]);
    if fs::File::open(&log).is_ok() {
        // Nothing is forbidden to root.
        assert_eq!(String::from_utf8_lossy(&wrong.stdout), "secret\n");
        return;
    }
    let error = String::from_utf8_lossy(&wrong.stderr);
    assert!(
        error.contains("cannot show the log of container main") && error.contains("be root"),
        "{error}"
    );
}

#[test]
fn following_goes_over_a_rotation_and_a_restart_and_ends_with_the_pod() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_log(dir, "0.log", &[(0, "first")]);
    let mut child = podling(dir, &["logs", "-f", "web"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || lines.next().map(Result::unwrap);
    assert_eq!(next().as_deref(), Some("first"));
    let container = dir.join("logs/default_web_uid/main");
    fs::rename(container.join("0.log"), container.join("0.log.1")).unwrap();
    write_log(dir, "0.log", &[(1, "rotated")]);
    assert_eq!(next().as_deref(), Some("rotated"));
    write_log(dir, "1.log", &[(2, "restarted")]);
    assert_eq!(next().as_deref(), Some("restarted"));
    fs::remove_dir_all(dir.join("logs/default_web_uid")).unwrap();
    assert_eq!(next(), None);
    assert!(child.wait().unwrap().success());
}

#[test]
fn help_teaches() {
    let dir = tempfile::tempdir().unwrap();
    let mut all = ok(dir.path(), &["--help"]);
    let commands = [
        "run",
        "get",
        "describe",
        "logs",
        "exec",
        "why",
        "delete",
        "images",
        "images list",
        "images pull",
        "images push",
        "images load",
        "images save",
        "images tag",
        "images inspect",
        "images history",
        "images diff",
        "images du",
        "images verify",
        "images rm",
        "images prune",
        "status",
        "check",
        "agent",
        "completion",
        "man",
    ];
    for command in commands {
        let words: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        all.push_str(&format!(
            "\n=== podling {command}\n\n{}",
            ok(dir.path(), &words)
        ));
    }
    insta::assert_snapshot!("help", all);
}

#[test]
fn completions_and_manual_pages_are_made() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        assert!(ok(dir.path(), &["completion", shell]).contains("podling"));
    }
    let pages = dir.path().join("man");
    ok(dir.path(), &["man", pages.to_str().unwrap()]);
    assert!(pages.join("podling-exec.1").is_file());
}

#[test]
fn a_wrong_command_line_exits_with_2() {
    let dir = tempfile::tempdir().unwrap();
    for args in [
        &["nonsense"][..],
        &["logs"],
        &["exec", "web"],
        &["logs", "Not_A_Name"],
        &["delete", "web"],
    ] {
        let output = output(dir.path(), args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
    }
}

#[test]
fn the_demo_applet_serves_crashes_and_ends_on_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let start = || {
        let mut child = podling(dir.path(), &["demo", "serve", "--port", "0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        let port: u16 = line.trim().rsplit(' ').next().unwrap().parse().unwrap();
        (child, format!("http://127.0.0.1:{port}"))
    };
    let (mut child, url) = start();
    assert_eq!(
        ok(dir.path(), &["demo", "get", &format!("{url}/healthz")]),
        "healthy\n"
    );
    ok(dir.path(), &["demo", "get", &format!("{url}/ready/off")]);
    assert_eq!(
        output(dir.path(), &["demo", "get", &format!("{url}/readyz")])
            .status
            .code(),
        Some(1)
    );
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));

    let (mut child, url) = start();
    ok(dir.path(), &["demo", "get", &format!("{url}/crash")]);
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(
        output(dir.path(), &["demo", "exit", "7"]).status.code(),
        Some(7)
    );
}

#[test]
fn a_command_that_lacks_its_subcommand_teaches() {
    let dir = tempfile::tempdir().unwrap();
    for (args, part) in [
        (&[][..], "podling run examples/hello.yaml"),
        (&["images"], "podling images load app.tar"),
    ] {
        let output = output(dir.path(), args);
        assert_eq!(output.status.code(), Some(2));
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn images_that_are_not_there_and_files_that_hold_none() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let said = |args: &[&str], code: i32| {
        let output = output(dir, args);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(said(&["images", "list"], 0).contains("No images"));
    assert_eq!(ok(dir, &["images", "list", "--json"]).trim(), "[]");
    for command in ["inspect", "rm"] {
        let text = said(&["images", command, "nginx:1.27"], 1);
        assert!(
            text.contains("there is no image docker.io/library/nginx:1.27"),
            "{text}"
        );
        assert!(text.contains("podling images pull nginx:1.27"), "{text}");
    }
    assert!(said(&["images", "pull", "no image"], 2).contains("does not name an image"));
    assert!(said(&["images", "pull", "--platform", "arm64", "nginx"], 2).contains("linux/arm64"));
    let text = dir.join("text");
    fs::write(&text, "root:x:0:0:root:/root:/bin/bash\n".repeat(100)).unwrap();
    assert!(said(&["images", "load", text.to_str().unwrap()], 1).contains("not a tar archive"));
    let nothing = said(&["images", "load", dir.to_str().unwrap()], 1);
    assert!(nothing.contains("neither an OCI layout"), "{nothing}");
}
