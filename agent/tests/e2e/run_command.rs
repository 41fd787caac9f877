//! `podling run`: no daemon, everything in the foreground, nothing left.

use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::node::Node;

fn example(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(name)
        .canonicalize()
        .unwrap()
        .display()
        .to_string()
}

#[test]
fn run_starts_the_examples_with_the_embedded_image_and_ctrl_c_leaves_nothing() {
    let node = Node::new();
    let log = std::fs::File::create(node.path("agent.log")).unwrap();
    let mut run = node.podling_command(&["run", &example("hello.yaml")]);
    run.env_remove("PODLING_RUN_DIR")
        .env("TMPDIR", node.path(""));
    run.stdout(log.try_clone().unwrap()).stderr(log);
    let mut run = run.spawn().unwrap();
    let addresses = node.wait("hello has an address", || {
        let text = std::fs::read_to_string(node.path("agent.log")).unwrap_or_default();
        text.contains("hello")
            .then(|| {
                text.split(|c: char| !(c.is_ascii_digit() || c == '.'))
                    .filter_map(|w| w.parse::<std::net::Ipv4Addr>().ok())
                    .filter(|ip| ip.is_private())
                    .collect::<Vec<_>>()
            })
            .filter(|found| !found.is_empty())
    });
    node.wait("hello answers", || {
        addresses.iter().find_map(|ip| {
            node.http((*ip, 8080).into(), "/healthz")
                .filter(|(code, _)| *code == 200)
        })
    });
    kill(Pid::from_raw(run.id() as i32), Signal::SIGINT).unwrap();
    assert!(run.wait().unwrap().code().is_some());
    let links = String::from_utf8(
        node.command("ip")
            .args(["-o", "link"])
            .output()
            .unwrap()
            .stdout,
    )
    .unwrap();
    assert_eq!(links.lines().count(), 1, "only loopback is left: {links}");
    let tables = node
        .command("nft")
        .args(["list", "tables"])
        .stderr(Stdio::null())
        .output()
        .map(|o| o.stdout);
    assert!(tables.is_err() || tables.unwrap().is_empty());
    assert_eq!(
        node.own_processes()
            .iter()
            .filter(|p| is_podling(**p))
            .count(),
        0
    );
    let mounts = String::from_utf8(
        node.command("cat")
            .arg("/proc/mounts")
            .output()
            .unwrap()
            .stdout,
    )
    .unwrap();
    assert!(!mounts.contains("podling"), "{mounts}");
}

/// A `podling run --plain` whose output is read as it comes.
struct Running {
    child: std::process::Child,
    log: std::path::PathBuf,
}

impl Running {
    fn start(node: &Node, name: &str, manifest: &str) -> Self {
        Self::start_with(node, name, &[manifest])
    }

    fn start_with(node: &Node, name: &str, args: &[&str]) -> Self {
        let log = node.path(format!("{name}.log"));
        let file = std::fs::File::create(&log).unwrap();
        let mut command = node.podling_command(&[&["run", "--plain"], args].concat());
        command
            .env_remove("PODLING_RUN_DIR")
            .env_remove("PODLING_LOG_DIR")
            .env("TMPDIR", node.path(""));
        command.stdout(file.try_clone().unwrap()).stderr(file);
        Self {
            child: command.spawn().unwrap(),
            log,
        }
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    #[track_caller]
    fn until(&self, node: &Node, wanted: &str) {
        let end = std::time::Instant::now() + crate::node::DEADLINE;
        while !self.text().contains(wanted) {
            assert!(
                std::time::Instant::now() < end,
                "never said {wanted:?}:\n{}\n{}",
                self.text(),
                node.report()
            );
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn end(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

fn nothing_is_left(node: &Node) {
    let output = |program: &str, args: &[&str]| {
        let output = node.command(program).args(args).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let links = output("ip", &["-o", "link"]);
    assert_eq!(links.lines().count(), 1, "only loopback is left: {links}");
    let mounts = output("cat", &["/proc/mounts"]);
    assert!(!mounts.contains("podling"), "{mounts}");
    let runs = std::fs::read_dir(node.path("data/runs")).unwrap().count();
    assert_eq!(runs, 0, "runs are left");
    let processes = node.own_processes();
    assert_eq!(processes.iter().filter(|p| is_podling(**p)).count(), 0);
}

/// A pod that is deaf to its stop signal, with a long time to end.
fn deaf(node: &Node) -> String {
    node.load_busybox();
    let manifest = node.path("deaf.yaml");
    std::fs::write(&manifest, "apiVersion: v1\nkind: Pod\nmetadata: {name: deaf}\nspec:\n  terminationGracePeriodSeconds: 3600\n  containers:\n  - {name: main, image: localhost/busybox, command: [sh, -c, 'trap \"echo I hear nothing\" TERM; echo up; while :; do sleep 0.1; done']}\n").unwrap();
    manifest.display().to_string()
}

#[test]
fn run_shows_pods_that_it_stops_as_terminating_and_a_second_ctrl_c_kills_them() {
    let node = Node::new();
    let run = Running::start(&node, "run", &deaf(&node));
    run.until(&node, "up");
    run.signal(Signal::SIGINT);
    run.until(&node, "I hear nothing");
    run.until(&node, "pod deaf: Terminating");
    // The same in another terminal.
    let mut get = node.podling_command(&["get", "pods"]);
    let seen = get.env_remove("PODLING_RUN_DIR").output().unwrap();
    let seen = String::from_utf8(seen.stdout).unwrap();
    assert!(seen.contains("Terminating"), "{seen}");
    run.signal(Signal::SIGINT);
    run.until(&node, "pod deaf: gone");
    assert_eq!(run.end(), Some(0));
    nothing_is_left(&node);
}

#[test]
fn a_run_that_was_killed_is_cleared_up_by_the_next() {
    let node = Node::new();
    let manifest = deaf(&node);
    let killed = Running::start(&node, "killed", &manifest);
    killed.until(&node, "up");
    killed.signal(Signal::SIGKILL);
    assert_eq!(killed.end(), None);
    let lives = || node.own_processes().into_iter().any(is_podling);
    assert!(lives(), "its pods go on");
    // Its pod has an hour to end, and does not: what clears up after a killed run does not wait so long.
    let good = node.path("good.yaml");
    std::fs::write(&good, "apiVersion: v1\nkind: Pod\nmetadata: {name: once}\nspec:\n  restartPolicy: Never\n  containers:\n  - {name: main, image: localhost/busybox, command: ['true']}\n").unwrap();
    let next = Running::start(&node, "next", good.to_str().unwrap());
    next.until(&node, "run that was killed");
    next.until(&node, "everything has been stopped");
    assert_eq!(next.end(), Some(0));
    nothing_is_left(&node);
}

#[test]
fn a_run_does_not_show_what_pods_of_earlier_runs_left_in_the_same_log_directory() {
    let node = Node::new();
    let logs = node.path("kept-logs").display().to_string();
    let manifest = node.path("once.yaml");
    for said in ["first", "second"] {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: once}}\nspec:\n  restartPolicy: Never\n  containers:\n  - {{name: main, image: localhost/busybox, command: [echo, 'the {said} says this']}}\n"
        );
        std::fs::write(&manifest, text).unwrap();
        node.load_busybox();
        let args = ["--log-dir", &logs, manifest.to_str().unwrap()];
        let run = Running::start_with(&node, said, &args);
        run.until(&node, "everything has been stopped");
        let log = run.log.clone();
        assert_eq!(run.end(), Some(0));
        let text = std::fs::read_to_string(log).unwrap();
        assert!(
            text.contains(&format!("once/main | the {said} says this")),
            "{text}"
        );
        assert_eq!(text.matches("says this").count(), 1, "{text}");
    }
    // Both are kept.
    assert_eq!(std::fs::read_dir(&logs).unwrap().count(), 2);
    nothing_is_left(&node);
}

#[test]
fn two_runs_of_the_same_file_do_not_know_of_each_other() {
    let node = Node::new();
    let runs = ["one", "two"].map(|name| Running::start(&node, name, &example("hello.yaml")));
    for run in &runs {
        run.until(&node, "pod hello: Running, 1/1 ready");
    }
    let address = |run: &Running| {
        let text = run.text();
        let line = text
            .lines()
            .find(|l| l.contains("1/1 ready"))
            .unwrap()
            .to_owned();
        line.rsplit(' ')
            .next()
            .unwrap()
            .parse::<std::net::Ipv4Addr>()
            .unwrap()
    };
    let addresses = [address(&runs[0]), address(&runs[1])];
    assert_ne!(addresses[0], addresses[1]);
    let [one, two] = runs;
    one.signal(Signal::SIGINT);
    assert_eq!(one.end(), Some(0));
    let answer = node.http((addresses[1], 8080).into(), "/healthz");
    assert_eq!(answer.map(|(code, _)| code), Some(200), "the other goes on");
    two.signal(Signal::SIGINT);
    assert_eq!(two.end(), Some(0));
    nothing_is_left(&node);
}

#[test]
fn run_ends_when_all_pods_have_ended_and_says_whether_they_failed() {
    let node = Node::new();
    for (file, code, expected) in [("good.yaml", 0, 0), ("bad.yaml", 3, 1)] {
        let manifest = node.path(file);
        std::fs::write(&manifest, format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: once}}\nspec:\n  restartPolicy: Never\n  containers:\n  - {{name: main, image: 'podling.local/demo:latest', args: [exit, '{code}']}}\n")).unwrap();
        let run = node.podling(&["run", manifest.to_str().unwrap()]);
        assert_eq!(run.code, expected, "{}\n{}", run.stdout, run.stderr);
    }
}

fn is_podling(pid: i32) -> bool {
    // Not by its file: a supervisor runs from a sealed copy.
    std::fs::read_to_string(format!("/proc/{pid}/comm"))
        .is_ok_and(|comm| ["podling", "podling-pod"].contains(&comm.trim()))
}
