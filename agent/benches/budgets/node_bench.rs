//! A node with many pods: how fast they are up, what it costs to keep them, how fast a new agent has them again.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::Effort;
use crate::machine::{Usage, pss_kib};
use crate::node::Node;
use crate::table::{Budget, Table};

/// Long enough for a loaded machine.
const DEADLINE: Duration = Duration::from_secs(120);
/// How finely an answer of the agent is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(1);

pub(crate) fn measure(effort: Effort, table: &mut Table) {
    let pods = effort.pods;
    let scale = pods as f64 / 100.0;
    let mut node = Node::like_a_machine();
    let ready = starting(&mut node, 0);
    table.row(
        "agent start -> ready, 0 pods",
        ready,
        "ms",
        &[],
        Budget::Absolute(30.0),
    );
    let empty = pss_kib(&[node.agent_pid() as i32]) / 1024.0;
    table.row(
        "memory of the agent (PSS), 0 pods",
        empty,
        "MiB",
        &[],
        Budget::Absolute(15.0),
    );

    node.load_busybox();
    let start = Instant::now();
    node.apply("many.yaml", &manifests(pods));
    let socket = node.path("run/agent.sock");
    assert!(wait(|| running(&socket) == Some(pods)), "{}", node.report());
    let what = format!("{pods} pods at once -> all running");
    // The budget is for 100 pods; what starts beside each other grows with their number.
    table.row(
        &what,
        start.elapsed().as_secs_f64(),
        "s",
        &[],
        Budget::Absolute(1.5 * scale),
    );

    thread::sleep(Duration::from_secs(2));
    let agent = [node.agent_pid() as i32];
    let supervisors = supervisors(&node);
    let everything = [&agent[..], &supervisors[..]].concat();
    let each = pss_kib(&supervisors) / 1024.0 / pods as f64;
    table.row(
        "memory per pod (supervisor, PSS)",
        each,
        "MiB",
        &[],
        Budget::Absolute(0.6),
    );
    let what = format!("memory of the agent (PSS), {pods} pods");
    table.row(&what, pss_kib(&agent) / 1024.0, "MiB", &[], Budget::None);
    let all = pss_kib(&everything) / 1024.0;
    let what = format!("memory of everything (PSS), {pods} pods");
    table.row(
        &what,
        all,
        "MiB",
        &[],
        Budget::Absolute(15.0 + 75.0 * scale),
    );

    let (cpu, written) = used_per_minute(&everything, effort);
    table.row(
        &format!("CPU per minute, {pods} idle pods"),
        cpu,
        "s",
        &[],
        Budget::Absolute(0.2 * scale.max(0.1)),
    );
    table.row(
        &format!("disk writes per minute, {pods} idle pods"),
        written,
        "B",
        &[],
        Budget::Absolute(0.0),
    );

    node.kill_agent();
    let again = starting(&mut node, pods);
    let what = format!("agent start -> re-attached, {pods} pods");
    table.row(
        &what,
        again,
        "ms",
        &[],
        Budget::Absolute(30.0 + 120.0 * scale),
    );
}

/// Seconds of processor time and bytes written to disk by processes that are left alone.
pub(crate) fn used_per_minute(pids: &[i32], effort: Effort) -> (f64, f64) {
    let before = Usage::of(pids);
    let start = Instant::now();
    thread::sleep(Duration::from_secs(effort.idle_secs));
    let (cpu, written) = Usage::of(pids).since(&before);
    let minutes = start.elapsed().as_secs_f64() / 60.0;
    (cpu / minutes, written / minutes)
}

/// Starts the agent and returns the milliseconds until it says that so many pods run.
fn starting(node: &mut Node, pods: usize) -> f64 {
    let socket = node.path("run/agent.sock");
    let start = Instant::now();
    thread::scope(|scope| {
        let looking = scope.spawn(move || {
            assert!(
                wait(|| running(&socket) == Some(pods)),
                "the agent does not show {pods} running pods"
            );
            start.elapsed()
        });
        node.start_agent();
        looking.join().unwrap().as_secs_f64() * 1000.0
    })
}

pub(crate) fn wait(condition: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < DEADLINE {
        if condition() {
            return true;
        }
        thread::sleep(LOOK_EVERY);
    }
    false
}

/// How many pods the agent says are running; None while it does not answer.
fn running(socket: &Path) -> Option<usize> {
    pods(socket).map(|pods| pods.matches("\"phase\":\"Running\"").count())
}

/// The agent's pods as JSON; None while it does not answer.
pub(crate) fn pods(socket: &Path) -> Option<String> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream
        .write_all(b"GET /api/v1/pods HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
        .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200").then(|| body.to_string())
}

/// By the name of their program: what `/proc/<pid>/exe` shows is a clone that hides the file from containers.
pub(crate) fn supervisors(node: &Node) -> Vec<i32> {
    let is_supervisor = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|name| name.trim() == "podling-pod")
    };
    node.own_processes()
        .into_iter()
        .filter(is_supervisor)
        .collect()
}

fn manifests(pods: usize) -> String {
    let one = |n| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: idle-{n}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
             containers:\n  - {{name: main, image: 'localhost/busybox:latest', imagePullPolicy: Never, \
             command: [sleep, '864000']}}\n"
        )
    };
    (0..pods).map(one).collect()
}
