//! A process that works on a store until it is killed with SIGKILL, again and again.
//!
//! It is the test program itself, started again with a variable that tells it where to work.

use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const WORK_IN: &str = "PODLING_TEST_WORK_IN";
const ROUNDS: u64 = 100;

/// Where this process is to work; none in the test.
pub fn work_in() -> Option<PathBuf> {
    std::env::var_os(WORK_IN).map(PathBuf::from)
}

/// Works until it is killed, or the test is gone.
pub fn work_for_ever(mut work: impl FnMut()) {
    let test = parent_id();
    while parent_id() == test {
        work();
    }
}

/// A process to kill.
pub struct Worker<'a> {
    /// The test that is this process in another one.
    pub test: &'a str,
    /// Where it works.
    pub dir: &'a Path,
    /// A variable for it.
    pub variable: Option<(&'a str, &'a str)>,
    /// When it is killed, at the earliest and at the latest.
    pub killed_after: (Duration, Duration),
}

impl Worker<'_> {
    /// Has `check` look at what is left after each round.
    pub fn kill_again_and_again(&self, mut check: impl FnMut(u64)) {
        for round in 0..ROUNDS {
            let mut process = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", self.test])
                .env(WORK_IN, self.dir)
                .envs(self.variable)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            std::thread::sleep(self.instant(round));
            process.kill().unwrap();
            process.wait().unwrap();
            check(round);
        }
    }

    /// Most hit the beginning and the rest what comes after; spread by a golden ratio.
    fn instant(&self, round: u64) -> Duration {
        let (earliest, latest) = self.killed_after;
        let spread = ((round * 0x9e37_79b9) % 1000) as f64 / 1000.0;
        earliest + (latest - earliest).mul_f64(spread * spread)
    }
}

/// How many entries a directory of the store has.
pub fn count(store: &Path, directory: &str) -> usize {
    std::fs::read_dir(store.join(directory)).unwrap().count()
}

/// Nothing is in the store, and nothing was left behind.
pub fn assert_empty(store: &Path) {
    for directory in [
        "layers/sha256",
        "blobs/sha256",
        "references",
        "replaced",
        "ingest",
        "tmp",
        "locks",
    ] {
        assert_eq!(count(store, directory), 0, "{directory}");
    }
}
