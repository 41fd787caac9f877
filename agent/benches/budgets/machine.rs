//! The machine that the figures are from, and what is read of its processes.

use std::fs;
use std::process::Command;

/// One line about the machine.
pub(crate) fn describe() -> String {
    let first_line = |program: &str, arguments: &[&str]| {
        let done = Command::new(program).args(arguments).output().ok()?;
        String::from_utf8_lossy(&done.stdout)
            .lines()
            .next()
            .map(str::to_string)
    };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let cores = cpuinfo
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let versions: Vec<String> = ["crun", "runc", "podman"]
        .iter()
        .filter_map(|program| first_line(program, &["--version"]))
        .collect();
    format!(
        "{} x {}, Linux {}, cgroup {}; {}",
        cores,
        model.unwrap_or("unknown CPU"),
        kernel.trim(),
        if fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap_or(false) {
            "v2"
        } else {
            "v1"
        },
        versions.join(", ")
    )
}

/// The memory that processes use, each shared page divided among its users, in KiB.
pub(crate) fn pss_kib(pids: &[i32]) -> f64 {
    pids.iter()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok())
        .filter_map(|text| {
            text.lines().find_map(|line| {
                line.strip_prefix("Pss:")?
                    .split_whitespace()
                    .next()?
                    .parse::<f64>()
                    .ok()
            })
        })
        .sum()
}

/// The time that all threads of processes have run, in seconds.
pub(crate) fn cpu_secs(pids: &[i32]) -> f64 {
    let mut nanoseconds = 0.0;
    for pid in pids {
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
            continue;
        };
        for thread in threads.flatten() {
            let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
            nanoseconds += text
                .split_whitespace()
                .next()
                .and_then(|word| word.parse::<f64>().ok())
                .unwrap_or(0.0);
        }
    }
    nanoseconds / 1e9
}

/// What processes have had written to disk, in bytes.
pub(crate) fn written_bytes(pids: &[i32]) -> f64 {
    pids.iter()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/io")).ok())
        .filter_map(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("write_bytes: ")?.parse::<f64>().ok())
        })
        .sum()
}

/// The process whose command line is exactly this.
pub(crate) fn find_process(command: &[&str]) -> Option<i32> {
    let wanted: Vec<u8> = command
        .iter()
        .flat_map(|word| word.bytes().chain([0]))
        .collect();
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        (fs::read(entry.path().join("cmdline")).ok()? == wanted).then_some(pid)
    })
}

/// Makes a hybrid machine look like one of cgroup version 1 to the calling thread's mount namespace: crun and podman
/// refuse the mix.
pub(crate) fn hide_hybrid_cgroup() -> bool {
    let path = "/sys/fs/cgroup/unified";
    fs::exists(path).unwrap_or(false)
        && nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH).is_ok()
}
