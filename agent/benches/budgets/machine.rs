//! The machine that the figures are from, and what is read of its processes.

use std::collections::BTreeMap;
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

/// What processes have used since they began: seconds of processor time and bytes written to disk, by process.
pub(crate) struct Usage(BTreeMap<i32, (f64, f64)>);

impl Usage {
    /// What they have used by now. Processes that have ended are left out.
    pub(crate) fn of(pids: &[i32]) -> Usage {
        let used = |pid: &i32| Some((*pid, (cpu_secs(*pid)?, written_bytes(*pid)?)));
        Usage(pids.iter().filter_map(used).collect())
    }

    /// Seconds and bytes since `before`, of the processes that were there then and are now.
    pub(crate) fn since(&self, before: &Usage) -> (f64, f64) {
        self.0
            .iter()
            .filter_map(|(pid, now)| Some((now, before.0.get(pid)?)))
            .fold((0.0, 0.0), |sum, (now, then)| {
                (sum.0 + now.0 - then.0, sum.1 + now.1 - then.1)
            })
    }
}

/// The processor time of a process with all its threads, also of those that have ended (clock_getcpuclockid(3)).
#[allow(unsafe_code)]
fn cpu_secs(pid: i32) -> Option<f64> {
    let mut clock = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both calls write one value through a pointer to a local variable of its type.
    let done = unsafe {
        libc::clock_getcpuclockid(pid, &raw mut clock) == 0
            && libc::clock_gettime(clock, &raw mut time) == 0
    };
    done.then(|| time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}

fn written_bytes(pid: i32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok())
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
