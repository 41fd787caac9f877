//! What the tests' containers are made of, Debian's static busybox, and how tests look at programs and wait for them.
#![allow(dead_code, reason = "each test program uses a part of this")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Longer than anything should take on a loaded machine.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// How long to sleep before looking again.
const NAP: Duration = Duration::from_millis(5);

/// The programs that tests' scripts use.
const APPLETS: [&str; 36] = [
    "cat", "chmod", "cut", "dd", "echo", "env", "false", "find", "grep", "head", "hostname",
    "httpd", "id", "kill", "ln", "ls", "mkdir", "mount", "nc", "printf", "ps", "pwd", "readlink",
    "sh", "sleep", "sort", "stat", "stty", "test", "touch", "tr", "true", "tty", "umount", "wc",
    "wget",
];

/// Fills a directory with busybox and the names of its programs.
pub fn install_busybox(bin: &Path) {
    fs::create_dir_all(bin).expect("bin");
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .expect("Debian's package busybox-static");
    // By another process: a child that another thread of this one starts meanwhile would have the copy open for writing
    // until it executes its program, and what is open for writing cannot be executed (execve(2), ETXTBSY).
    let copied = Command::new("cp")
        .arg(busybox)
        .arg(bin.join("busybox"))
        .status();
    assert!(copied.expect("cp").success(), "a file");
    for applet in APPLETS {
        symlink("busybox", bin.join(applet)).expect("a link");
    }
}

/// What a program printed.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// What a program complained about.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

/// Waits until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let look = || is_so().then_some(());
    if wait_for(look).is_none() {
        panic!("not in time: {what}");
    }
}

/// Waits until there is something to see; None when it takes too long.
pub fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if start.elapsed() >= DEADLINE {
            return None;
        }
        std::thread::sleep(NAP);
    }
}
