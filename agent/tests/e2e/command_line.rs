//! What a person at a terminal, and a program that knows Kubernetes, get from the command line.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Child;

use k8s_openapi::List;
use k8s_openapi::api::core::v1::Pod;
use nix::pty::{Winsize, openpty};

use crate::node::Node;

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: pod, labels: {app: it}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: localhost/busybox, command: [sleep, infinity]}
  - {name: fails, image: localhost/busybox, command: [sh, -c, 'echo first; exit 3']}
";

fn node() -> Node {
    let node = Node::start();
    node.load_busybox();
    node.apply("pod.yaml", POD);
    node.wait_pod("pod", "one container crashes", |pod| {
        pod["status"]["containerStatuses"]
            .as_array()
            .is_some_and(|all| {
                all.iter()
                    .any(|c| c["lastState"]["terminated"]["exitCode"] == 3)
            })
    });
    node
}

#[test]
fn pods_are_printed_as_kubernetes_has_them() {
    let node = node();
    let json = node.podling(&["get", "pods", "-o", "json"]).ok();
    let list: List<Pod> = serde_json::from_str(&json).expect("a PodList");
    let [pod] = &list.items[..] else {
        panic!("one pod: {json}");
    };
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!(spec.node_name.as_deref(), Some(hostname().as_str()));
    let status = pod.status.as_ref().unwrap();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert!(status.start_time.is_some() && status.qos_class.is_some() && status.pod_ips.is_some());
    for condition in status.conditions.iter().flatten() {
        assert!(condition.last_transition_time.is_some(), "{condition:?}");
    }
    for item in serde_json::from_str::<serde_json::Value>(&json).unwrap()["items"]
        .as_array()
        .unwrap()
    {
        assert_eq!(
            (&item["kind"], &item["apiVersion"]),
            (&"Pod".into(), &"v1".into())
        );
    }
    // One that is named comes by itself, as from kubectl; what is printed is a manifest again.
    let yaml = node.podling(&["get", "pod", "pod", "-o", "yaml"]).ok();
    assert!(yaml.starts_with("apiVersion: v1\nkind: Pod\n"), "{yaml}");
    node.apply("pod.yaml", &yaml.replace("app: it", "app: again"));
    let after = node.wait_pod("pod", "the printed pod is taken back", |pod| {
        pod["metadata"]["labels"]["app"] == "again"
    });
    assert!(node.podling(&["status"]).ok().contains("problems  none"));
    assert_eq!(after["metadata"]["uid"], pod.metadata.uid.clone().unwrap());
    assert_eq!(
        after["metadata"]["deletionTimestamp"],
        serde_json::Value::Null
    );
    let wide = node.podling(&["get", "pods", "-o", "wide"]).ok();
    assert!(
        wide.contains("IP") && wide.contains("localhost/busybox"),
        "{wide}"
    );
    let described = node.podling(&["describe", "pod", "pod"]).ok();
    for part in [
        "app=again",
        "with code 3",
        "CrashLoopBackOff",
        "Conditions:",
    ] {
        assert!(described.contains(part), "{part}: {described}");
    }
    let previous = node
        .podling(&["logs", "pod", "-c", "fails", "--previous"])
        .ok();
    assert_eq!(previous, "first\n");
}

fn hostname() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().to_ascii_lowercase()
}

/// A terminal with `podling exec -it` at its other end.
struct Terminal {
    master: File,
    exec: Child,
    seen: String,
}

impl Terminal {
    fn exec(node: &Node, size: Winsize) -> Self {
        let pty = openpty(Some(&size), None).unwrap();
        let slave = |fd: &OwnedFd| std::process::Stdio::from(fd.try_clone().unwrap());
        let mut command = node.podling_command(&["exec", "-it", "pod", "-c", "main", "--", "sh"]);
        command.stdin(slave(&pty.slave));
        command.stdout(slave(&pty.slave));
        command.stderr(slave(&pty.slave));
        // SAFETY: between fork and exec only async-signal-safe calls are made (setsid, ioctl).
        #[allow(unsafe_code)]
        unsafe {
            command.pre_exec(|| {
                rustix::process::setsid()?;
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
                Ok(())
            });
        }
        Self {
            exec: command.spawn().unwrap(),
            master: File::from(pty.master),
            seen: String::new(),
        }
    }

    /// Types a line, and reads until `expected` is there.
    #[track_caller]
    fn type_and_expect(&mut self, line: &str, expected: &str) {
        writeln!(self.master, "{line}").unwrap();
        self.seen.clear();
        let mut buffer = [0; 4096];
        while !self.seen.contains(expected) {
            let count = self.master.read(&mut buffer).unwrap_or(0);
            assert!(count > 0, "the terminal ended: {}", self.seen);
            self.seen
                .push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    }

    fn is_raw(&self) -> bool {
        let modes = rustix::termios::tcgetattr(self.master.as_fd()).unwrap();
        !modes
            .local_modes
            .contains(rustix::termios::LocalModes::ICANON)
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

#[test]
fn a_shell_on_a_terminal_follows_its_size_and_gives_it_back() {
    let node = node();
    let mut terminal = Terminal::exec(&node, size(24, 80));
    terminal.type_and_expect("busybox stty size", "24 80");
    assert!(
        terminal.is_raw(),
        "keys go to the container as they are typed"
    );
    let new = rustix::termios::Winsize {
        ws_row: 40,
        ws_col: 132,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(terminal.master.as_fd(), new).unwrap();
    // The signal takes its time: asked until it has come.
    terminal.type_and_expect(
        "until busybox stty size | busybox grep -q '40 132'; do sleep 0.05; done; echo re''sized",
        "resized",
    );
    terminal.type_and_expect("exit 7", "exit 7");
    assert_eq!(terminal.exec.wait().unwrap().code(), Some(7));
    assert!(!terminal.is_raw(), "the terminal is as it was");
}
