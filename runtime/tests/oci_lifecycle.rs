//! The OCI command's life of a container: create, start, state, kill, delete, exec, hooks, terminals.
#![cfg(feature = "privileged-tests")]

mod oci_support;

use std::fs;
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;

use oci_spec::runtime::{BoxBuilder, Hook, HookBuilder, Hooks, LinuxNamespaceType};
use oci_support::{Bundle, mounts, stderr, stdout, until};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

#[test]
fn a_container_lives_from_create_to_delete() {
    let bundle = Bundle::sh("touch /tmp/ran; while true; do sleep 1000; done");
    bundle.create();
    let state = bundle.state();
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], bundle.id.as_str());
    assert!(state["pid"].as_i64().expect("a pid") > 1);
    assert!(
        !bundle.rootfs().join("tmp/ran").exists(),
        "the program ran before start"
    );

    bundle.ok(&["start", &bundle.id]);
    assert_eq!(bundle.status(), "running");
    until("the program runs", || {
        bundle.rootfs().join("tmp/ran").exists()
    });
    assert!(bundle.fails(&["start", &bundle.id]).contains("is running"));
    assert!(bundle.fails(&["delete", &bundle.id]).contains("is running"));

    bundle.ok(&["kill", &bundle.id, "KILL"]);
    until("the container has ended", || bundle.status() == "stopped");
    assert_eq!(bundle.state()["pid"], 0);
    assert!(bundle.fails(&["kill", &bundle.id]).contains("is stopped"));
    bundle.ok(&["delete", &bundle.id]);
    assert!(!bundle.cgroup_exists());
    assert!(
        bundle
            .fails(&["state", &bundle.id])
            .contains("does not exist")
    );
    assert!(
        bundle
            .fails(&["delete", &bundle.id])
            .contains("does not exist")
    );
}

#[test]
fn a_container_that_was_never_started_can_be_deleted() {
    let bundle = Bundle::sh("true");
    bundle.create();
    bundle.ok(&["delete", &bundle.id]);
    assert!(!bundle.cgroup_exists());
}

#[test]
fn a_name_is_taken_once() {
    let bundle = Bundle::running();
    let message = bundle.fails(&["create", "-b", &bundle.bundle_arg(), &bundle.id]);
    assert!(message.contains("exists already"), "{message}");
    assert_eq!(bundle.status(), "running");
}

#[test]
fn a_cgroup_with_processes_is_not_taken() {
    let first = Bundle::running();
    let mut second = Bundle::sh("true");
    let taken = first.cgroup();
    second.linux().set_cgroups_path(Some(taken));
    second.write();
    let message = second.fails(&["run", "-b", &second.bundle_arg(), &second.id]);
    assert!(message.contains("has processes already"), "{message}");
    assert_eq!(first.status(), "running");
}

/// What enters it would stand still, and `create` would wait for it.
#[test]
fn a_frozen_cgroup_is_not_taken() {
    let mut bundle = Bundle::sh("true");
    let path = bundle.cgroup();
    bundle.linux().set_cgroups_path(Some(path.clone()));
    bundle.write();
    let in_hierarchy = |root: &str| Path::new(root).join(path.strip_prefix("/").expect("absolute"));
    let unified = in_hierarchy("/sys/fs/cgroup");
    let (directory, file, frozen, thawed) =
        if fs::exists("/sys/fs/cgroup/cgroup.controllers").expect("looks") {
            (unified, "cgroup.freeze", "1", "0")
        } else {
            let v1 = in_hierarchy("/sys/fs/cgroup/freezer");
            (v1, "freezer.state", "FROZEN", "THAWED")
        };
    fs::create_dir(&directory).expect("a cgroup");
    fs::write(directory.join(file), frozen).expect("freezes");
    for command in ["run", "create"] {
        let message = bundle.fails(&[command, "-b", &bundle.bundle_arg(), &bundle.id]);
        assert!(message.contains("is frozen"), "{message}");
    }
    fs::write(directory.join(file), thawed).expect("thaws");
    bundle.run();
}

#[test]
fn a_spec_that_is_not_supported_creates_nothing() {
    let mut bundle = Bundle::sh("true");
    bundle.spec.set_version("2.0.0".to_owned());
    let message = bundle.run_fails();
    assert!(message.contains("ociVersion"), "{message}");
}

/// The process that would have become the container may be there already.
#[test]
fn a_limit_that_the_kernel_refuses_leaves_nothing() {
    let mut bundle = Bundle::sh("touch /ran");
    let resources = r#"{"cpu":{"quota":1,"period":100000}}"#;
    let resources = serde_json::from_str(resources).expect("resources");
    bundle.linux().set_resources(Some(resources));
    bundle.write();
    for command in ["run", "create"] {
        let message = bundle.fails(&[command, "-b", &bundle.bundle_arg(), &bundle.id]);
        assert!(message.contains("cannot limit"), "{message}");
        assert!(message.contains("cpu"), "{message}");
        assert!(!bundle.cgroup_exists());
        assert_eq!(bundle.ok(&["list", "-q"]), "");
    }
    assert!(!bundle.rootfs().join("ran").exists(), "the program ran");
}

#[test]
fn the_first_process_and_its_children_are_in_the_cgroup() {
    let bundle = Bundle::running();
    let pid = bundle.state()["pid"].to_string();
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroups");
    assert!(cgroups.contains(&bundle.id), "{cgroups}");
    let pids = bundle.ok(&["ps", &bundle.id]);
    assert!(pids.lines().any(|line| line == pid), "{pids}");
    assert!(pids.lines().count() >= 2, "{pids}");
}

#[test]
fn a_paused_container_stands_still() {
    let bundle = Bundle::running();
    bundle.ok(&["pause", &bundle.id]);
    bundle.ok(&["resume", &bundle.id]);
    assert_eq!(stdout(&bundle.exec(&["echo", "on"])), "on");
}

#[test]
fn exec_gives_the_exit_code() {
    let bundle = Bundle::running();
    for (script, want) in [
        ("exit 0", 0),
        ("exit 7", 7),
        ("kill -9 $$", 137),
        ("kill $$", 143),
    ] {
        let output = bundle.exec(&["sh", "-c", script]);
        assert_eq!(
            output.status.code(),
            Some(want),
            "{script}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn exec_names_a_program_that_is_missing() {
    let bundle = Bundle::running();
    let output = bundle.exec(&["no-such-program"]);
    assert_eq!(output.status.code(), Some(127));
    assert!(
        stderr(&output).contains("\"no-such-program\" in $PATH"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn exec_is_in_the_containers_namespaces_and_cgroup() {
    let bundle = Bundle::running();
    let namespaces = "for n in cgroup ipc mnt net pid uts; do
        [ $(readlink /proc/self/ns/$n) = $(readlink /proc/1/ns/$n) ] || echo $n; done";
    assert_eq!(stdout(&bundle.exec(&["sh", "-c", namespaces])), "");
    let cgroups = "cat /proc/self/cgroup /proc/1/cgroup | sort -u | grep -vc ':/$'";
    assert_eq!(stdout(&bundle.exec(&["sh", "-c", cgroups])), "0");
    let beyond = "for i in 3 4 5 6 7 8 9; do [ -e /proc/$$/fd/$i ] && echo $i; done";
    assert_eq!(stdout(&bundle.exec(&["sh", "-c", beyond])), "");
}

#[test]
fn exec_has_the_containers_privileges() {
    let bundle = Bundle::running();
    let look = "grep -E 'Cap|NoNewPrivs' /proc/$0/status";
    let first = stdout(&bundle.exec(&["sh", "-c", look, "1"]));
    let own = stdout(&bundle.exec(&["sh", "-c", look, "self"]));
    assert_eq!(first, own);
    assert!(own.contains("NoNewPrivs:\t1"), "{own}");
}

#[test]
fn exec_takes_options() {
    let bundle = Bundle::running();
    let output = bundle.runtime(&[
        "exec",
        "--user",
        "12:34",
        "--cwd",
        "/tmp",
        "--env",
        "A=b",
        &bundle.id,
        "sh",
        "-c",
        "id -u; id -g; pwd; echo $A $SECRET_OF_THE_CALLER",
    ]);
    assert_eq!(stdout(&output), "12\n34\n/tmp\nb", "{}", stderr(&output));
}

#[test]
fn exec_takes_a_process_from_a_file() {
    let bundle = Bundle::running();
    let file = bundle.path().join("process.json");
    let process = r#"{"args": ["sh", "-c", "id -u; pwd"], "cwd": "/bin", "user": {"uid": 5, "gid": 6}, "env": ["PATH=/bin"]}"#;
    fs::write(&file, process).expect("file");
    let output = bundle.runtime(&[
        "exec",
        "--process",
        file.to_str().expect("UTF-8"),
        &bundle.id,
    ]);
    assert_eq!(stdout(&output), "5\n/bin", "{}", stderr(&output));
}

#[test]
fn exec_needs_a_running_container() {
    let bundle = Bundle::sh("true");
    bundle.create();
    let message = bundle.fails(&["exec", &bundle.id, "true"]);
    assert!(
        message.contains("is created; to exec it must be running"),
        "{message}"
    );
}

#[test]
fn start_tells_why_the_program_cannot_be_executed() {
    let mut bundle = Bundle::new();
    fs::write(bundle.rootfs().join("bin/odd"), "#!/no/interpreter\n").expect("file");
    fs::set_permissions(
        bundle.rootfs().join("bin/odd"),
        fs::Permissions::from_mode(0o755),
    )
    .expect("mode");
    bundle.args(&["/bin/odd"]);
    bundle.create();
    let message = bundle.fails(&["start", &bundle.id]);
    assert!(message.contains("cannot execute \"/bin/odd\""), "{message}");
    until("the container has ended", || bundle.status() == "stopped");
}

#[test]
fn a_missing_program_is_told_by_create() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/none"]);
    bundle.write();
    let before = mounts();
    let message = bundle.fails(&["create", "-b", &bundle.bundle_arg(), &bundle.id]);
    assert!(message.contains("\"/bin/none\""), "{message}");
    assert_eq!(mounts(), before);
    assert!(!bundle.cgroup_exists());
    assert!(!bundle.state_directory().join(&bundle.id).exists());
}

#[test]
fn the_pid_file_and_the_log_are_written() {
    let bundle = Bundle::sh("while true; do sleep 1000; done");
    bundle.write();
    let pid_file = bundle.path().join("pid");
    let pid_arg = pid_file.to_str().expect("UTF-8").to_owned();
    bundle.ok(&[
        "create",
        "-b",
        &bundle.bundle_arg(),
        "--pid-file",
        &pid_arg,
        &bundle.id,
    ]);
    let pid = fs::read_to_string(&pid_file).expect("the pid file");
    assert_eq!(pid, bundle.state()["pid"].to_string());

    let log = bundle.path().join("log");
    let log_arg = log.to_str().expect("UTF-8").to_owned();
    bundle.fails(&["--log", &log_arg, "--log-format", "json", "state", "nobody"]);
    let line: serde_json::Value =
        serde_json::from_str(fs::read_to_string(&log).expect("the log").trim()).expect("JSON");
    assert_eq!(line["level"], "error");
    assert_eq!(line["msg"], "container nobody does not exist");
    bundle.fails(&[
        "--log",
        &log_arg,
        "--log-format",
        "json",
        "start",
        "--what",
        "a",
    ]);
    let text = fs::read_to_string(&log).expect("the log");
    let last = text.lines().last().expect("a line");
    let line: serde_json::Value = serde_json::from_str(last).expect("JSON");
    assert_eq!(line["msg"], "unexpected argument '--what' found");
}

/// A pid file that cannot be written leaves no part of it, and no container.
#[test]
fn a_pid_file_that_cannot_be_written_stops_the_creation() {
    let bundle = Bundle::sh("true");
    bundle.write();
    let place = bundle.path().join("place");
    fs::create_dir(&place).expect("directory");
    let taken = place.join("taken");
    fs::create_dir(&taken).expect("directory");
    let pid_file = taken.to_str().expect("UTF-8");
    for command in ["create", "run"] {
        let bundle_arg = bundle.bundle_arg();
        let message = bundle.fails(&[
            command,
            "-b",
            &bundle_arg,
            "--pid-file",
            pid_file,
            &bundle.id,
        ]);
        assert!(
            message.contains(&format!("cannot write {pid_file}: ")),
            "{message}"
        );
        assert_eq!(fs::read_dir(&place).expect("reads").count(), 1);
        assert!(!bundle.cgroup_exists());
        assert!(!bundle.state_directory().join(&bundle.id).exists());
    }
}

#[test]
fn containers_are_listed() {
    let bundle = Bundle::running();
    assert_eq!(bundle.ok(&["list", "-q"]), bundle.id);
    let list: serde_json::Value =
        serde_json::from_str(&bundle.ok(&["list", "-f", "json"])).expect("JSON");
    assert_eq!(list[0]["id"], bundle.id.as_str());
    assert_eq!(list[0]["status"], "running");
    assert!(bundle.ok(&["list"]).contains(&bundle.id));
}

fn hook(script: &str) -> Vec<Hook> {
    vec![
        HookBuilder::default()
            .path("/bin/sh")
            .args(["sh", "-c", script].map(str::to_owned))
            .env(["PATH=/usr/bin:/bin".to_owned()])
            .build()
            .expect("a hook"),
    ]
}

#[test]
fn hooks_run_in_order_and_place_with_the_state() {
    let mut bundle = Bundle::sh("echo program >>/tmp/order");
    let rootfs = bundle.rootfs();
    let outside = rootfs.join("tmp/order");
    let say = |name: &str| {
        hook(&format!(
            "echo {name} $(grep -o '\"status\":\"[a-z]*\"' | cut -d'\"' -f4) >>{}",
            outside.display()
        ))
    };
    let mut hooks = Hooks::default();
    hooks
        .set_create_runtime(Some(say("createRuntime")))
        .set_create_container(Some(say("createContainer")))
        .set_start_container(Some(hook(
            "read state; echo startContainer $$ >>/tmp/order",
        )))
        .set_poststart(Some(say("poststart")))
        .set_poststop(Some(say("poststop")));
    bundle.spec.set_hooks(Some(hooks));
    bundle.create();
    assert_eq!(
        fs::read_to_string(&outside).expect("order"),
        "createRuntime creating\ncreateContainer creating\n"
    );
    bundle.ok(&["start", &bundle.id]);
    until("it has ended", || bundle.status() == "stopped");
    bundle.ok(&["delete", &bundle.id]);
    let said = fs::read_to_string(&outside).expect("order");
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[2].starts_with("startContainer"), "{said}");
    // The program and poststart run at the same time.
    assert!(
        lines[3..5].contains(&"program") && lines[3..5].contains(&"poststart running"),
        "{said}"
    );
    assert_eq!(lines[5..], ["poststop stopped"], "{said}");
}

#[test]
fn a_hook_that_fails_stops_the_creation() {
    let set: [fn(&mut Hooks, Vec<Hook>); 2] = [
        |hooks, list| {
            hooks.set_create_runtime(Some(list));
        },
        |hooks, list| {
            hooks.set_create_container(Some(list));
        },
    ];
    for set in set {
        let mut bundle = Bundle::sh("true");
        let mut hooks = Hooks::default();
        set(&mut hooks, hook("echo no luck >&2; exit 9"));
        bundle.spec.set_hooks(Some(hooks));
        let message = bundle.run_fails();
        assert!(message.contains("exit code 9: no luck"), "{message}");
    }
}

/// Takes one descriptor from whoever connects.
fn receive(listener: &UnixListener) -> OwnedFd {
    let (socket, _) = listener.accept().expect("a connection");
    let mut bytes = [0; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(
        &socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .expect("a message");
    ancillary
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .expect("a descriptor")
}

fn read_terminal(terminal: OwnedFd) -> String {
    let mut text = Vec::new();
    // EIO: the other side is closed.
    if let Err(error) = fs::File::from(terminal).read_to_end(&mut text) {
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }
    String::from_utf8_lossy(&text)
        .replace('\r', "")
        .trim()
        .to_owned()
}

#[test]
fn a_terminal_goes_to_the_console_socket() {
    let mut bundle = Bundle::sh(
        "readlink /proc/self/fd/0; stty size; echo x >/dev/console; [ -t 2 ] && echo tty; stat -c %u /dev/pts/0",
    );
    let size = BoxBuilder::default()
        .height(33_u64)
        .width(99_u64)
        .build()
        .expect("a size");
    bundle
        .process()
        .set_terminal(Some(true))
        .set_console_size(Some(size));
    bundle.write();
    let socket = bundle.path().join("console");
    let listener = UnixListener::bind(&socket).expect("binds");
    let socket = socket.to_str().expect("UTF-8").to_owned();
    bundle.ok(&[
        "create",
        "-b",
        &bundle.bundle_arg(),
        "--console-socket",
        &socket,
        &bundle.id,
    ]);
    let terminal = receive(&listener);
    bundle.ok(&["start", &bundle.id]);
    assert_eq!(read_terminal(terminal), "/dev/pts/0\n33 99\nx\ntty\n0");
}

/// The process that a descriptor is of (`/proc/PID/fdinfo`, proc_pid_fdinfo(5)).
fn process_of(pidfd: &OwnedFd) -> String {
    let info = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let info = fs::read_to_string(info).expect("reads");
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    pid.expect("a pidfd").trim().to_owned()
}

#[test]
fn a_descriptor_of_the_process_goes_to_the_pidfd_socket() {
    let bundle = Bundle::sh("while true; do sleep 1000; done");
    bundle.write();
    let socket = bundle.path().join("pidfd");
    let listener = UnixListener::bind(&socket).expect("binds");
    let socket = socket.to_str().expect("UTF-8");
    let nobody = bundle.path().join("nobody").display().to_string();
    let here = bundle.bundle_arg();
    let message = bundle.fails(&["create", "-b", &here, "--pidfd-socket", &nobody, &bundle.id]);
    assert!(message.contains(&nobody), "{message}");
    bundle.ok(&["create", "-b", &here, "--pidfd-socket", socket, &bundle.id]);
    let first = bundle.state()["pid"].to_string();
    assert_eq!(process_of(&receive(&listener)), first);
    bundle.ok(&["start", &bundle.id]);
    let file = bundle.path().join("pid");
    bundle.ok(&[
        "exec",
        "--detach",
        "--pid-file",
        file.to_str().expect("UTF-8"),
        "--pidfd-socket",
        socket,
        &bundle.id,
        "sleep",
        "1000",
    ]);
    let second = fs::read_to_string(file).expect("reads");
    assert_eq!(process_of(&receive(&listener)), second);
}

#[test]
fn exec_gets_a_terminal_of_its_own() {
    let bundle = Bundle::running();
    let socket = bundle.path().join("console");
    let listener = UnixListener::bind(&socket).expect("binds");
    let socket = socket.to_str().expect("UTF-8").to_owned();
    bundle.ok(&[
        "exec",
        "-t",
        "-d",
        "--console-socket",
        &socket,
        &bundle.id,
        "sh",
        "-c",
        "readlink /proc/self/fd/1; [ -t 0 ] && echo tty",
    ]);
    assert_eq!(read_terminal(receive(&listener)), "/dev/pts/0\ntty");
}

#[test]
fn a_terminal_without_a_socket_is_refused() {
    let mut bundle = Bundle::sh("true");
    bundle.process().set_terminal(Some(true));
    bundle.write();
    let message = bundle.fails(&["create", "-b", &bundle.bundle_arg(), &bundle.id]);
    assert!(message.contains("--console-socket"), "{message}");
}

#[test]
fn run_passes_signals_on() {
    let bundle = Bundle::sh("trap 'exit 5' TERM; touch /tmp/up; while true; do sleep 0.05; done");
    bundle.write();
    let mut run = bundle
        .command()
        .args(["run", "-b", &bundle.bundle_arg(), &bundle.id])
        .stdout(Stdio::null())
        .spawn()
        .expect("spawns");
    until("the container is up", || {
        bundle.rootfs().join("tmp/up").exists()
    });
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(run.id().cast_signed()),
        nix::sys::signal::Signal::SIGTERM,
    )
    .expect("signals");
    assert_eq!(run.wait().expect("ends").code(), Some(5));
    assert!(!bundle.cgroup_exists());
}

#[test]
fn spec_writes_a_config_that_runs_and_never_replaces_one() {
    let bundle = Bundle::new();
    let bundle_arg = bundle.bundle_arg();
    bundle.ok(&["spec", "-b", &bundle_arg]);
    let config = bundle.path().join("config.json");
    let text = fs::read(&config).expect("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    // Its program, a shell, ends at once without a terminal and input.
    spec["process"]["terminal"] = false.into();
    fs::write(&config, spec.to_string()).expect("writes");
    bundle.ok(&["run", "-b", &bundle_arg, &bundle.id]);
    assert!(
        bundle
            .fails(&["spec", "-b", &bundle_arg])
            .contains("exists")
    );
}

#[test]
fn features_are_told() {
    let bundle = Bundle::new();
    let features: serde_json::Value =
        serde_json::from_str(&bundle.ok(&["features"])).expect("JSON");
    assert_eq!(features["linux"]["seccomp"]["enabled"], true);
}

/// The creator is killed when its child is ready, or while it runs a hook: the child ends with it, and `delete --force`
/// finds the cgroup that nobody has recorded.
#[test]
fn a_creator_that_is_killed_leaves_nothing_behind() {
    let kill = "kill -9 $PPID";
    // The creator is the hook's parent's parent. It is stopped, so that it cannot record what its child becomes.
    let stop =
        "read -r _ _ _ creator _ </proc/$PPID/stat; echo $PPID $creator >$0; kill -STOP $creator";
    for (kind, script) in [("createRuntime", kill), ("createContainer", stop)] {
        let mut bundle = Bundle::sh("sleep 1000");
        let said = bundle.path().join("said");
        let hook = serde_json::json!({kind: [{
            "path": "/bin/sh", "args": ["sh", "-c", script, said], "env": ["PATH=/usr/bin:/bin"],
        }]});
        bundle
            .spec
            .set_hooks(Some(serde_json::from_value(hook).expect("hooks")));
        // Its pids are then the host's.
        let mut namespaces = bundle.linux().namespaces().clone().unwrap_or_default();
        namespaces.retain(|it| it.typ() != LinuxNamespaceType::Pid);
        bundle.linux().set_namespaces(Some(namespaces));
        bundle.write();
        let mut creator = bundle
            .command()
            .args(["create", "-b", &bundle.bundle_arg(), &bundle.id])
            .spawn()
            .expect("starts");
        if kind == "createContainer" {
            let pids = || fs::read_to_string(&said).unwrap_or_default();
            until("the hook has run", || pids().ends_with('\n'));
            let child = pids().split(' ').next().expect("a pid").to_owned();
            // recvmsg(2) or accept4(2): it waits for its start, or to be told that it may.
            until("the child is ready", || {
                let call = fs::read_to_string(format!("/proc/{child}/syscall"));
                let call = call.expect("a process");
                call.starts_with("47 ") || call.starts_with("288 ")
            });
            creator.kill().expect("kills");
        }
        assert!(!creator.wait().expect("waits").success());
        assert!(bundle.cgroup_exists(), "no control");
        assert!(
            bundle
                .fails(&["state", &bundle.id])
                .contains("does not exist")
        );
        bundle.ok(&["delete", "--force", &bundle.id]);
        assert!(!bundle.cgroup_exists(), "{kind}");
        assert!(!bundle.state_directory().join(&bundle.id).exists());
    }
}
