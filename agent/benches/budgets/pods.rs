//! One pod's life from outside: its manifest appears, its container crashes, its manifest goes; beside
//! `podman kube play` and `podman kube down`.
//!
//! Both are timed by the same marks: the container appends a line to a file on the host whenever it starts, and a
//! pidfd of its process tells when it is gone.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::Effort;
use crate::machine::find_process;
use crate::node::Node;
use crate::podman::Podman;
use crate::table::{Budget, Samples, Table};

/// Long enough for a loaded machine.
const DEADLINE: Duration = Duration::from_secs(30);
/// How finely the start of a container is seen.
const LOOK_EVERY: Duration = Duration::from_micros(200);

/// What one tool took for each part of a pod's life.
#[derive(Default)]
struct Life {
    start: Samples,
    start_of_four: Samples,
    crash: Samples,
    removal: Samples,
}

pub(crate) fn measure(effort: Effort, table: &mut Table) {
    let peer = podman(effort).unwrap_or_else(|reason| {
        table.note(&format!("podman kube play does not work here: {reason}"));
        Life::default()
    });
    let own = podling(effort);
    let mut row = |what: &str, part: fn(&Life) -> &Samples, quantile: f64, budget: f64| {
        if let Some(figure) = part(&own).quantile_ms(quantile) {
            let peers: Vec<(&str, f64)> = part(&peer)
                .quantile_ms(quantile)
                .map(|figure| ("podman", figure))
                .into_iter()
                .collect();
            table.row(what, figure, "ms", &peers, Budget::Absolute(budget));
        }
    };
    row(
        "manifest -> container runs, p50",
        |life| &life.start,
        0.5,
        15.0,
    );
    row(
        "manifest -> container runs, p99",
        |life| &life.start,
        0.99,
        30.0,
    );
    row(
        "manifest -> 4 containers run, p50",
        |life| &life.start_of_four,
        0.5,
        30.0,
    );
    row(
        "container crash -> running again, p50",
        |life| &life.crash,
        0.5,
        10.0,
    );
    row(
        "manifest removed -> process gone, p50",
        |life| &life.removal,
        0.5,
        10.0,
    );
}

fn podling(effort: Effort) -> Life {
    let mut node = Node::like_a_machine();
    node.start_agent();
    node.load_busybox();
    let up = |manifest: &str| {
        node.apply("bench.yaml", manifest);
        Ok(())
    };
    let down = || {
        node.remove("bench.yaml");
        Ok(())
    };
    let gone = || node.wait_gone("bench");
    live(effort, &node.path("logs"), up, down, gone).unwrap()
}

fn podman(effort: Effort) -> Result<Life, String> {
    let podman = Podman::new()?;
    live(
        effort,
        &podman.dir(),
        |manifest| podman.up(manifest),
        || podman.down(),
        || (),
    )
}

/// Runs pods one after another; `up` and `down` may return when they are done or at once.
fn live(
    effort: Effort,
    dir: &Path,
    up: impl Fn(&str) -> Result<(), String> + Sync,
    down: impl Fn() -> Result<(), String> + Sync,
    gone: impl Fn(),
) -> Result<Life, String> {
    let marks = dir.join("starts");
    let mut life = Life::default();
    for run in 0..effort.runs {
        for containers in [1, 4] {
            fs::write(&marks, "").unwrap();
            let argument = format!("{}", 864_000 + run);
            let manifest = manifest(dir, containers, &argument);
            let started = timed(|| up(&manifest), || lines(&marks) >= containers)?;
            if containers == 4 {
                life.start_of_four.push(started);
                down()?;
                gone();
                continue;
            }
            life.start.push(started);
            let process = wait_process(&argument)?;
            let crashed = timed(
                || pidfd_send_signal(&process, Signal::KILL).map_err(|error| error.to_string()),
                || lines(&marks) > containers,
            )?;
            life.crash.push(crashed);
            let process = wait_process(&argument)?;
            life.removal.push(timed(&down, || has_ended(&process))?);
            gone();
        }
    }
    Ok(life)
}

/// The time from the beginning of `act`, which may go on, until `seen`.
fn timed(
    act: impl FnOnce() -> Result<(), String> + Send,
    seen: impl Fn() -> bool,
) -> Result<Duration, String> {
    thread::scope(|scope| {
        let start = Instant::now();
        let acting = scope.spawn(act);
        let mut failed = false;
        while !seen() && !failed {
            thread::sleep(LOOK_EVERY);
            failed = start.elapsed() > DEADLINE;
        }
        let duration = start.elapsed();
        acting.join().map_err(|_| "panicked".to_string())??;
        if failed {
            Err("nothing happened within 30 s".to_string())
        } else {
            Ok(duration)
        }
    })
}

fn lines(path: &Path) -> usize {
    fs::read(path).map_or(0, |bytes| {
        bytes.iter().filter(|byte| **byte == b'\n').count()
    })
}

fn wait_process(argument: &str) -> Result<OwnedFd, String> {
    let start = Instant::now();
    while start.elapsed() < DEADLINE {
        let pid = find_process(&["sleep", argument]).and_then(Pid::from_raw);
        if let Some(process) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) {
            return Ok(process);
        }
        thread::sleep(Duration::from_millis(1));
    }
    Err("the container's process is not to be found".to_string())
}

fn has_ended(process: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    poll(
        &mut fds,
        Some(&rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    )
    .is_ok_and(|ready| ready > 0)
}

fn manifest(dir: &Path, containers: usize, argument: &str) -> String {
    let mut text =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: bench}\nspec:\n  restartPolicy: Always\n  \
                    terminationGracePeriodSeconds: 0\n  containers:\n"
            .to_string();
    for n in 0..containers {
        text.push_str(&format!(
            "  - name: c{n}\n    image: localhost/busybox:latest\n    imagePullPolicy: Never\n    \
             command: [/bin/sh, -c, 'echo up >> /marks/starts; exec sleep {argument}']\n    \
             volumeMounts: [{{name: marks, mountPath: /marks}}]\n"
        ));
    }
    text.push_str(&format!(
        "  volumes:\n  - name: marks\n    hostPath: {{path: {}}}\n",
        dir.display()
    ));
    text
}
