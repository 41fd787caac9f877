//! Commands that people and scripts run in containers, and what becomes of them when their client goes.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::node::Node;

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: localhost/busybox, command: [sleep, infinity]}
";

fn node() -> Node {
    let node = Node::start();
    node.load_busybox();
    node.apply("pod.yaml", POD);
    node.wait_ready("pod");
    node
}

/// A command under way in the pod, which has said `ready`.
struct Client {
    process: Child,
    output: BufReader<ChildStdout>,
}

impl Client {
    fn start(node: &Node, script: &str) -> Self {
        let podling = node.podling_command(&["exec", "pod", "--", "sh", "-c", script]);
        // Whoever started the tests may have had ctrl-C ignored, as shells do for what runs in the background.
        let mut command = node.command("env");
        command.arg("--default-signal=INT,QUIT");
        command.arg(podling.get_program()).args(podling.get_args());
        command.envs(
            podling
                .get_envs()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        let mut client = Self { process, output };
        assert_eq!(client.line(), "ready");
        client
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn send(&self, signal: Signal) {
        kill(Pid::from_raw(self.process.id() as i32), signal).unwrap();
    }

    fn code(&mut self) -> Option<i32> {
        self.process.wait().unwrap().code()
    }
}

/// Seconds to sleep for that no other process of the machine sleeps for.
fn seconds(number: u32) -> String {
    (1_000_000 + std::process::id() * 10 + number).to_string()
}

/// Whether a process has these seconds among its arguments.
fn sleeps(number: u32) -> bool {
    let seconds = seconds(number);
    let processes = std::fs::read_dir("/proc").unwrap();
    processes.filter_map(Result::ok).any(|process| {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        line.split(|b| *b == 0).any(|arg| arg == seconds.as_bytes())
    })
}

#[test]
fn signals_of_the_client_are_the_command_s() {
    let node = node();
    for (signal, code) in [
        (Signal::SIGINT, 3),
        (Signal::SIGTERM, 4),
        (Signal::SIGHUP, 5),
    ] {
        let script = "trap 'echo int; exit 3' INT; trap 'echo term; exit 4' TERM; trap 'echo hup; exit 5' HUP; \
                      echo ready; while :; do sleep 0.05; done";
        let mut client = Client::start(&node, script);
        client.send(signal);
        assert_eq!(
            client.line(),
            signal.as_str()[3..].to_lowercase(),
            "what it says last is heard"
        );
        assert_eq!(client.code(), Some(code));
    }
    // One that does nothing about it, and has a child that would outlive it: all of its process group is told.
    let script = format!("sleep {} & echo ready; wait", seconds(1));
    let mut client = Client::start(&node, &script);
    node.wait("its child runs", || sleeps(1).then_some(()));
    client.send(Signal::SIGTERM);
    assert_eq!(client.code(), Some(128 + Signal::SIGTERM as i32));
    node.wait("its child has ended", || (!sleeps(1)).then_some(()));
}

#[test]
fn a_command_whose_client_is_killed_ends_unless_it_says_otherwise() {
    let node = node();
    let script = format!("sleep {} & echo ready; wait", seconds(2));
    let mut client = Client::start(&node, &script);
    node.wait("its child runs", || sleeps(2).then_some(()));
    client.send(Signal::SIGKILL);
    client.process.wait().unwrap();
    node.wait("both have ended", || (!sleeps(2)).then_some(()));

    let script = format!(
        "trap '' HUP; sleep {} & echo ready; wait; touch /went-on",
        seconds(3)
    );
    let mut client = Client::start(&node, &script);
    node.wait("its child runs", || sleeps(3).then_some(()));
    client.send(Signal::SIGKILL);
    client.process.wait().unwrap();
    // The supervisor has seen that client's end when it answers a later one.
    node.podling(&["exec", "pod", "--", "true"]).ok();
    assert!(sleeps(3));
    let end = ["exec", "pod", "--", "busybox", "killall", "sleep"];
    node.podling(&end).ok();
    node.wait("what ignores SIGHUP goes on", || {
        let run = node.podling(&["exec", "pod", "--", "test", "-e", "/went-on"]);
        (run.code == 0).then_some(())
    });
}

#[test]
fn a_command_ends_when_nobody_reads_its_output() {
    let node = node();
    let mut client = Client::start(&node, "echo ready; exec yes");
    drop(client.output);
    let code = client.process.wait().unwrap().code();
    assert_eq!(code, Some(128 + Signal::SIGPIPE as i32));
}
