//! What a container costs in system calls: a number that does not hang on the machine's load, as times do.
#![cfg(feature = "privileged-tests")]

mod oci_support;

use std::fs;
use std::process::Command;

use oci_support::{Bundle, stderr};

/// The most system calls of `run true` with cgroup v2, those of the program in the container among them.
const RUN_MAX: usize = 373;
/// The most of `exec true`.
const EXEC_MAX: usize = 170;
/// The most that each v1 hierarchy adds to `run`: it is looked for at create and at the end, its directory is made and
/// removed, the process is put there by a file, and it is bound to where the container looks for it.
const RUN_HIERARCHY_MAX: usize = 12;
/// The most that each v1 hierarchy adds to `exec`: the process is put there by a file.
const EXEC_HIERARCHY_MAX: usize = 3;

/// The v1 hierarchies that take part.
fn hierarchies() -> usize {
    let mounts = fs::read_to_string("/proc/mounts").expect("mounts");
    let controllers = |line: &&str| line.split(' ').nth(2) == Some("cgroup");
    mounts
        .lines()
        .filter(controllers)
        .filter(|line| !line.contains("name="))
        .count()
}

/// How many system calls a command of the runtime makes, with all processes that it starts. Without fcntl(2), by which
/// a build with debug assertions looks at each descriptor before it closes it.
fn system_calls(bundle: &Bundle, args: &[&str]) -> usize {
    let summary = bundle.path().join("strace");
    let output = Command::new("strace")
        .args(["-f", "-c", "-e", "trace=!fcntl", "-o"])
        .arg(&summary)
        .arg(&bundle.runtime)
        .arg("--root")
        .arg(bundle.state_directory())
        .args(args)
        .output()
        .expect("Debian's package strace");
    assert!(output.status.success(), "{}", stderr(&output));
    let summary = fs::read_to_string(summary).expect("reads");
    let total = summary.lines().last().expect("a line");
    assert!(total.ends_with("total"), "{summary}");
    println!("{args:?}\n{summary}");
    // Share, seconds, microseconds per call, calls.
    let calls = total.split_whitespace().nth(3).expect("a number");
    calls.parse().expect("a number")
}

#[test]
fn run_takes_few_system_calls() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/true"]);
    // Makes the state directory.
    bundle.run();
    let calls = system_calls(&bundle, &["run", "-b", &bundle.bundle_arg(), &bundle.id]);
    let most = RUN_MAX + RUN_HIERARCHY_MAX * hierarchies();
    assert!(calls < most, "{calls} system calls, not below {most}");
}

#[test]
fn exec_takes_few_system_calls() {
    let bundle = Bundle::running();
    let calls = system_calls(&bundle, &["exec", &bundle.id, "/bin/true"]);
    let most = EXEC_MAX + EXEC_HIERARCHY_MAX * hierarchies();
    assert!(calls < most, "{calls} system calls, not below {most}");
}
