//! Runs a program, and tells how long it took or how much memory it and its children had at once.

use std::collections::BTreeSet;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Names the part of this program that a child process shall run.
pub(crate) const PART: &str = "PODLING_BENCH_PART";

/// How often memory is looked at.
const LOOKS: Duration = Duration::from_millis(20);

/// What a turn is looked at for: either or, because looking at memory takes a tenth from who uses all cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    Memory,
    Time,
}

/// What was measured.
pub(crate) enum Measured {
    PeakMib(f64),
    Took(Duration),
}

/// The same program again, for one part of it.
pub(crate) fn part(name: &str, words: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(PART, name).args(words);
    command
}

/// Runs the commands one after the other. `others` are daemons that work for them.
pub(crate) fn run(look: Look, commands: &mut [Command], others: &[u32]) -> Measured {
    let before = Instant::now();
    let mut peak_kib = 0;
    for command in commands {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        if look == Look::Memory {
            peak_kib = peak_kib.max(watch(&mut child, others));
        }
        let status = child.wait().unwrap();
        assert!(status.success(), "{command:?}: {status}");
    }
    match look {
        Look::Memory => Measured::PeakMib(peak_kib as f64 / 1024.0),
        Look::Time => Measured::Took(before.elapsed()),
    }
}

/// Looks at the memory of the process, its children and the others until the process ends, and tells the most.
fn watch(child: &mut Child, others: &[u32]) -> u64 {
    let mut peak_kib = 0;
    while child.try_wait().unwrap().is_none() {
        let roots = others.iter().copied().chain([child.id()]);
        let all: BTreeSet<u32> = roots.flat_map(with_children).collect();
        peak_kib = peak_kib.max(all.iter().map(|pid| resident_kib(*pid)).sum());
        std::thread::sleep(LOOKS);
    }
    peak_kib
}

fn with_children(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(pid) = all.get(next) {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
        for thread in threads.into_iter().flatten().flatten() {
            let children = std::fs::read_to_string(thread.path().join("children"));
            let children = children.unwrap_or_default();
            all.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
        next += 1;
    }
    all
}

/// Memory that is the process's own: pages of program files are shared and can be dropped.
fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.unwrap_or(0)
    };
    field("RssAnon:") + field("RssShmem:")
}

/// Figures of several turns.
#[derive(Default)]
pub(crate) struct Turns {
    pub(crate) samples: crate::table::Samples,
    pub(crate) peak_mib: f64,
}

impl Turns {
    pub(crate) fn push(&mut self, measured: &Measured) {
        match *measured {
            Measured::PeakMib(mib) => self.peak_mib = self.peak_mib.max(mib),
            Measured::Took(duration) => self.samples.push(duration),
        }
    }

    pub(crate) fn secs(&self) -> f64 {
        self.samples.median_ms().unwrap_or(0.0) / 1000.0
    }
}
