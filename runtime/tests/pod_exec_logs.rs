//! Commands in containers, attached clients, and logs.
#![cfg(feature = "privileged-tests")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

use podling_runtime::pod::client::Client;
use podling_runtime::pod::protocol::{Reply, Request};
use podling_runtime::pod::snapshot::ContainerState;
use serde_json::json;

mod pod_support;
use pod_support::{Pod, of, pid};

fn exec(command: &[&str], tty: bool, stdin: bool) -> Request {
    Request::Exec {
        container: "main".to_owned(),
        command: command.iter().map(|&s| s.to_owned()).collect(),
        tty,
        stdin,
        size: Some((100, 40)),
    }
}

fn begin(client: &Client, request: &Request) -> Vec<File> {
    let (reply, descriptors) = client.request(request).expect("it runs");
    assert_eq!(reply, Reply::ExecStarted);
    descriptors.into_iter().map(File::from).collect()
}

fn read(mut file: File) -> String {
    let mut bytes = Vec::new();
    // A terminal's end is EIO.
    if let Err(e) = file.read_to_end(&mut bytes) {
        assert_eq!(e.raw_os_error(), Some(libc::EIO), "{e}");
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn exit_code(client: &Client) -> i32 {
    match client.recv().expect("a reply").0 {
        Reply::ExecExited { exit_code } => exit_code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_command_gets_its_own_streams_and_exit_code() {
    let mut pod = Pod::new(vec![json!({ "name": "main" })]);
    pod.start();
    pod.until_running("main");
    let client = pod.client();
    let script = "cat; echo err >&2; hostname; exit 9";
    let mut fds = begin(&client, &exec(&["sh", "-c", script], false, true));
    assert_eq!(fds.len(), 3);
    let stderr = fds.pop().expect("stderr");
    let stdout = fds.pop().expect("stdout");
    let mut stdin = fds.pop().expect("stdin");
    stdin.write_all(b"in\n").expect("a reader");
    drop(stdin);
    assert_eq!(read(stdout), "in\nweb\n");
    assert_eq!(read(stderr), "err\n");
    assert_eq!(exit_code(&client), 9);
    assert_eq!(
        begin(&client, &exec(&["sh", "-c", "kill -9 $$"], false, false)).len(),
        2
    );
    assert_eq!(exit_code(&client), 137);
}

#[test]
fn a_command_can_have_a_terminal_of_a_size() {
    let mut pod = Pod::new(vec![json!({ "name": "main" })]);
    pod.start();
    pod.until_running("main");
    let client = pod.client();
    let fds = begin(&client, &exec(&["stty", "size"], true, true));
    let [terminal]: [File; 1] = fds.try_into().expect("one descriptor");
    assert_eq!(read(terminal), "40 100\r\n");
    assert_eq!(exit_code(&client), 0);
}

#[test]
fn what_cannot_run_is_refused_with_the_reason() {
    let mut pod = Pod::new(vec![json!({ "name": "main" })]);
    pod.start();
    pod.until_running("main");
    let client = pod.client();
    let refused = |request| client.request(&request).expect_err("refused").to_string();
    assert!(refused(exec(&["/bin/nothing"], false, false)).contains("/bin/nothing"));
    assert!(refused(exec(&[], false, false)).contains("empty"));
    let container = "other".to_owned();
    assert!(refused(Request::Attach { container }).contains("other"));
    let container = "main".to_owned();
    assert!(refused(Request::Attach { container }).contains("stdin"));
}

#[test]
fn many_commands_at_once_and_a_client_that_hangs_up_or_never_reads() {
    let mut pod = Pod::new(vec![json!({ "name": "main" })]);
    pod.start();
    pod.until_running("main");
    let gone = pod.client();
    begin(&gone, &exec(&["true"], false, false));
    drop(gone);
    // Never reads: a subscriber and one that floods the supervisor with requests.
    let hung = pod.client();
    hung.send(&Request::Subscribe).expect("a supervisor");
    let flood = pod.client();
    let flooding = std::thread::spawn(move || {
        while flood
            .send(&Request::Attach {
                container: "x".repeat(1_000),
            })
            .is_ok()
        {}
    });
    flooding.join().expect("it was dropped");
    let clients: Vec<_> = (0..40)
        .map(|i| {
            let client = pod.client();
            let script = format!("sleep 0.1; exit {i}");
            let fds = begin(&client, &exec(&["sh", "-c", &script], false, false));
            (i, client, fds)
        })
        .collect();
    for (i, client, _fds) in clients {
        assert_eq!(exit_code(&client), i);
    }
}

#[test]
fn attach_writes_to_standard_input_and_to_a_terminal() {
    let mut pod = Pod::new(vec![
        json!({ "name": "main", "run": "cat; echo end; exec sleep 1000", "stdin": true, "stdin_once": true }),
        json!({ "name": "open", "run": "while read x; do echo got $x; done", "stdin": true }),
        json!({ "name": "tty", "run": "stty -echo; echo ready; read x; echo got $x; exec sleep 1000", "stdin": true, "tty": true }),
    ]);
    pod.start();
    let attach = |name: &str, text: &[u8]| {
        pod.until_running(name);
        let container = name.to_owned();
        let (reply, mut fds): (Reply, Vec<OwnedFd>) = pod
            .client()
            .request(&Request::Attach { container })
            .expect("attached");
        assert_eq!(reply, Reply::Attached);
        let mut file = File::from(fds.pop().expect("a descriptor"));
        file.write_all(text).expect("a reader");
    };
    attach("main", b"hello\n");
    pod.wait_for("the end is seen", || {
        (pod.log("main", 0) == ["hello", "end"]).then_some(())
    });
    attach("open", b"a\n");
    attach("open", b"b\n");
    pod.wait_for("both are seen", || {
        (pod.log("open", 0) == ["got a", "got b"]).then_some(())
    });
    pod.wait_for("the terminal is ready", || {
        pod.log("tty", 0)
            .iter()
            .any(|l| l.starts_with("ready"))
            .then_some(())
    });
    attach("tty", b"word\n");
    pod.wait_for("the terminal's line is seen", || {
        pod.log("tty", 0)
            .iter()
            .any(|l| l.starts_with("got word"))
            .then_some(())
    });
}

#[test]
fn logs_are_in_cri_format_with_binary_bytes_unchanged() {
    let mut pod = Pod::new(vec![json!({ "name": "main",
        "run": "printf 'one\\n\\377\\000\\n'; sleep 0.2; echo err >&2; sleep 0.2; printf rest" })]);
    pod.plan["restart_policy"] = json!("never");
    pod.start();
    pod.until_ended();
    let log = std::fs::read(pod.log_path("main", 0)).expect("a log");
    let records: Vec<_> = log
        .strip_suffix(b"\n")
        .expect("a newline")
        .split(|&b| b == b'\n')
        .map(|record| {
            let time = std::str::from_utf8(&record[..30]).expect("a time");
            time.parse::<jiff::Timestamp>().expect("RFC 3339");
            &record[30..]
        })
        .collect();
    let expected: [&[u8]; 4] = [
        b" stdout F one",
        b" stdout F \xff\x00",
        b" stderr F err",
        b" stdout P rest",
    ];
    assert_eq!(records, expected);
}

#[test]
fn a_gigabyte_without_a_newline_fills_its_files_and_nothing_else() {
    let mut pod = Pod::new(vec![json!({ "name": "main",
        "run": "dd if=/dev/zero bs=1M count=1000 2>/dev/null; echo; echo done",
        "log": { "dir": "", "max_bytes": 1_000_000, "max_files": 3 } })]);
    pod.plan["containers"][0]["log"]["dir"] = json!(pod.path("logs/main"));
    pod.plan["restart_policy"] = json!("never");
    pod.start();
    pod.until_running("main");
    let mut peak_kb = 0;
    let supervisor = pod.supervisor_pid();
    pod.wait_for("the pod has ended", || {
        let status = std::fs::read_to_string(format!("/proc/{supervisor}/status")).ok()?;
        let line = status.lines().find(|l| l.starts_with("VmHWM"))?;
        peak_kb = line.split_whitespace().nth(1)?.parse().ok()?;
        let main = of(&pod.snapshot(), "main").state.clone();
        matches!(main, ContainerState::Terminated(_)).then_some(())
    });
    assert!(peak_kb < 40_000, "{peak_kb} kB");
    let mut total = 0;
    let mut files = 0;
    for entry in std::fs::read_dir(pod.path("logs/main")).expect("logs") {
        let size = entry.expect("an entry").metadata().expect("a file").len();
        assert!(size <= 1_000_000, "{size}");
        total += size;
        files += 1;
    }
    assert_eq!(files, 3);
    assert!(total > 1_900_000, "{total}");
    assert_eq!(pod.log("main", 0).last().map(String::as_str), Some("done"));
}

#[test]
fn a_full_disk_stops_neither_container_nor_supervisor() {
    let mut pod = Pod::new(vec![json!({ "name": "main",
        "run": "i=0; while [ $i -lt 1000 ]; do echo line $i; i=$((i+1)); done; touch /done; exec sleep 1000" })]);
    // A file where the directory should be: every write fails.
    std::fs::write(pod.path("logs/main"), b"").expect("a file");
    pod.start();
    let main = pod.until_running("main");
    pod.wait_for("the container has written all", || {
        std::path::Path::new(&format!("/proc/{main}/root/done"))
            .exists()
            .then_some(())
    });
    pod.wait_for("the loss is told", || {
        pod.journal().contains("log records are lost").then_some(())
    });
    assert_eq!(pid(of(&pod.snapshot(), "main")), Some(main));
}
