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

/// A request to the agent's socket, as clients of Kubernetes make them: the answer's first line and its body.
fn ask(node: &Node, head: &str, accept: &str, body: &str) -> (String, String) {
    let mut stream = request(node, head, accept, body);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

fn request(node: &Node, head: &str, accept: &str, body: &str) -> std::os::unix::net::UnixStream {
    let socket = node.path("run/agent.sock");
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    write!(
        stream,
        "{head} HTTP/1.0\r\nHost: x\r\nAccept: {accept}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    stream
}

/// `kubectl get` sends this.
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

fn labelled(name: &str, app: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {app}, of: test}}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - {{name: main, image: localhost/busybox, command: [sleep, infinity]}}\n"
    )
}

#[test]
fn pods_are_chosen_by_labels_and_fields() {
    let mut node = Node::start();
    node.load_busybox();
    node.apply("web.yaml", &labelled("web", "web"));
    node.apply("db.yaml", &labelled("db", "db"));
    let before = node.wait_ready("web");
    let db = node.wait_ready("db");
    let chosen = |node: &Node, selector: &str| {
        let names = node.podling(&["get", "pods", "-o", "name", "-l", selector]);
        names.ok().lines().collect::<Vec<_>>().join(" ")
    };
    let both = "pod/db pod/web";
    for (selector, names) in [
        ("of=test", both),
        ("app=web", "pod/web"),
        ("app!=web,of", "pod/db"),
        ("app in (web, db)", both),
        ("app notin (web)", "pod/db"),
        ("!app", ""),
    ] {
        assert_eq!(chosen(&node, selector), names, "{selector}");
    }
    let wrong = node.podling(&["get", "pods", "-l", "app in web"]);
    assert_eq!(wrong.code, 2);
    assert!(
        wrong.stderr.contains("key notin (a, b)"),
        "{}",
        wrong.stderr
    );

    // A pod that no longer has the label is gone for whoever watches those that have it.
    let watch = "GET /api/v1/pods?watch=1&labelSelector=app%3Dweb";
    let mut events = std::io::BufReader::new(request(&node, watch, "application/json", ""));
    let mut until = |kind: &str| {
        use std::io::BufRead;
        let mut line = String::new();
        while !line.contains(&format!("\"type\":\"{kind}\"")) {
            line.clear();
            assert!(events.read_line(&mut line).unwrap() > 0, "{kind}");
        }
        assert!(line.contains("\"name\":\"web\""), "{line}");
    };
    until("ADDED");
    node.apply("web.yaml", &labelled("web", "none"));
    until("DELETED");
    node.apply("web.yaml", &labelled("web", "web"));
    until("ADDED");

    let fields = "GET /api/v1/namespaces/default/pods?timeout=8s&fieldSelector=metadata.name%3Dweb,status.phase%3DRunning";
    let (_, body) = ask(&node, fields, TABLE, "");
    let table: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(table["kind"], "Table");
    let rows = table["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 1, "{body}");
    assert_eq!(rows[0]["cells"][0], "web");
    let (status, body) = ask(&node, "GET /api/v1/pods?fieldSelector=a%3Db", TABLE, "");
    assert!(
        status.contains("400") && body.contains("status.phase"),
        "{body}"
    );

    let deleted = node.podling(&["delete", "pods", "-l", "app=web", "--restart"]);
    assert!(deleted.ok().contains("web"));
    node.wait_pod("web", "is another one", |pod| {
        crate::node::is_ready(pod) && pod["metadata"]["uid"] != before["metadata"]["uid"]
    });
    assert_eq!(
        node.wait_ready("db")["metadata"]["uid"],
        db["metadata"]["uid"]
    );
    node.kill_agent();
    let away = node.podling(&["get", "pods", "-l", "app=db"]);
    assert!(
        away.code == 1 && away.stderr.contains("by labels"),
        "without an agent nobody knows labels: {}",
        away.stderr
    );
}

#[test]
fn clients_of_kubernetes_learn_what_the_api_has_and_delete_with_options() {
    let node = node();
    let get = |path: &str| -> serde_json::Value {
        let (_, body) = ask(&node, &format!("GET {path}"), "application/json", "");
        serde_json::from_str(&body).unwrap()
    };
    assert_eq!(get("/version")["major"], "1");
    assert_eq!(get("/api")["versions"][0], "v1");
    assert_eq!(get("/apis")["kind"], "APIGroupList");
    assert_eq!(get("/api/v1")["resources"][0]["name"], "pods");
    let delete = "DELETE /api/v1/namespaces/default/pods/pod?restart=true";
    for (options, answer) in [
        ("{\"preconditions\": {\"uid\": \"another\"}}", "409"),
        ("{\"dryRun\": [\"All\"]}", "400"),
        ("{\"gracePeriodSeconds\": \"x\"}", "400"),
    ] {
        let (status, body) = ask(&node, delete, "application/json", options);
        assert!(status.contains(answer), "{options}: {status} {body}");
    }
    let options = "{\"kind\":\"DeleteOptions\",\"apiVersion\":\"v1\",\"gracePeriodSeconds\":7,\"propagationPolicy\":\"Background\"}";
    let (status, body) = ask(&node, delete, "application/json", options);
    assert!(status.contains("200"), "{status} {body}");
    assert!(body.contains("\"deletionGracePeriodSeconds\":7"), "{body}");
}
