//! The library as the pod supervisor uses it, on real containers: overlays, namespaces joined by descriptor, exec
//! through a pidfd. Creating containers takes a process with one thread, which a test harness is not: this program
//! brings its own small one.

mod oci_support;

use std::fs::{self, File};
use std::io::{PipeReader, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use oci_spec::runtime::{
    LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Process, Spec, User,
};
use oci_support::{isolate, make_rootfs, mounts, until};
use podling_runtime::container::{
    self, Create, Created, Error, Exec, Home, Rootfs, Running, Stdio, TerminalSize, protect,
};
use podling_runtime::sys::pidfd::{self, Exit};

const TESTS: [(&str, fn()); 12] = [
    (
        "an_overlay_leaves_no_mount_on_the_host",
        an_overlay_leaves_no_mount_on_the_host,
    ),
    ("an_overlay_has_many_layers", an_overlay_has_many_layers),
    (
        "an_overlay_of_nothing_is_refused",
        an_overlay_of_nothing_is_refused,
    ),
    (
        "namespaces_are_joined_by_descriptor",
        namespaces_are_joined_by_descriptor,
    ),
    (
        "a_command_runs_in_a_container",
        a_command_runs_in_a_container,
    ),
    (
        "a_command_that_is_missing_is_told",
        a_command_that_is_missing_is_told,
    ),
    (
        "a_command_in_a_dead_container_is_told",
        a_command_in_a_dead_container_is_told,
    ),
    (
        "a_container_that_is_dropped_is_killed",
        a_container_that_is_dropped_is_killed,
    ),
    (
        "a_container_whose_creator_dies_ends",
        a_container_whose_creator_dies_ends,
    ),
    (
        "a_terminal_comes_with_the_container",
        a_terminal_comes_with_the_container,
    ),
    (
        "a_user_can_open_its_own_pipes_again",
        a_user_can_open_its_own_pipes_again,
    ),
    (
        "a_process_with_threads_is_refused",
        a_process_with_threads_is_refused,
    ),
];

fn main() -> ExitCode {
    protect::seal(&std::env::args_os().collect::<Vec<_>>()).expect("seals");
    isolate();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|a| a == "--list") {
        for (name, _) in TESTS {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let filter = arguments.iter().find(|a| !a.starts_with('-'));
    let mut failed = 0;
    for (name, test) in TESTS {
        if filter.is_some_and(|f| !name.contains(f.as_str())) {
            continue;
        }
        let worked = catch_unwind(AssertUnwindSafe(test)).is_ok();
        println!("test {name} ... {}", if worked { "ok" } else { "FAILED" });
        failed += u32::from(!worked);
    }
    ExitCode::from(u8::from(failed > 0))
}

/// A directory with a layer that holds a userland, and what an overlay needs.
struct Image {
    directory: tempfile::TempDir,
    layers: Vec<PathBuf>,
}

impl Image {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let base = directory.path().join("base");
        make_rootfs(&base);
        for name in ["upper", "work"] {
            fs::create_dir(directory.path().join(name)).expect(name);
        }
        Self {
            directory,
            layers: vec![base],
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn add_layer(&mut self, name: &str, file: &str, text: &str) {
        let layer = self.path(name);
        fs::create_dir(&layer).expect("layer");
        fs::write(layer.join(file), text).expect("file");
        self.layers.push(layer);
    }

    fn create(&self, spec: &Spec, stdio: Stdio) -> container::Result<Created> {
        container::create(Create {
            id: "test",
            spec,
            bundle: None,
            rootfs: Rootfs::Overlay {
                layers: &self.layers,
                upper: &self.path("upper"),
                work: &self.path("work"),
            },
            stdio,
            home: Home::Callers,
            seccomp: None,
            preserve_fds: 0,
            listen_fds: None,
            new_keyring: true,
            no_pivot: false,
            gate: None,
        })
    }

    /// Runs a script to its end; what it printed.
    fn run(&self, script: &str) -> String {
        let (stdio, output) = piped();
        let running = self
            .create(&sh(script), stdio)
            .expect("creates")
            .start()
            .expect("starts");
        let text = read(output);
        pidfd::wait(running.pidfd.as_fd()).expect("ends");
        text
    }

    /// A container that runs until it is killed.
    fn running(&self, spec: &Spec) -> Running {
        self.create(spec, Stdio::Inherit)
            .expect("creates")
            .start()
            .expect("starts")
    }
}

/// A spec without a mount of cgroups, as these containers stay in the caller's.
fn sh(script: &str) -> Spec {
    let mut spec = Spec::default();
    let args = ["/bin/sh", "-c", script].map(str::to_owned).into();
    spec.process_mut()
        .as_mut()
        .expect("process")
        .set_args(Some(args));
    spec.root_mut()
        .as_mut()
        .expect("root")
        .set_readonly(Some(false));
    spec.mounts_mut()
        .get_or_insert_default()
        .retain(|m| m.typ().as_deref() != Some("cgroup"));
    spec
}

/// Standard streams with output to a pipe.
fn piped() -> (Stdio, PipeReader) {
    let (reader, writer) = std::io::pipe().expect("pipe");
    let null = File::open("/dev/null").expect("null");
    let stdio = Stdio::Fds {
        stdin: null.into(),
        stdout: writer.try_clone().expect("clone").into(),
        stderr: writer.into(),
    };
    (stdio, reader)
}

fn read(mut output: impl Read) -> String {
    let mut text = Vec::new();
    // EIO: a terminal whose other side is closed.
    if let Err(error) = output.read_to_end(&mut text) {
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
    }
    String::from_utf8_lossy(&text)
        .replace('\r', "")
        .trim()
        .to_owned()
}

fn end(running: &Running) -> Exit {
    pidfd::send_signal(running.pidfd.as_fd(), libc::SIGKILL).expect("kills");
    pidfd::wait(running.pidfd.as_fd()).expect("ends")
}

fn an_overlay_leaves_no_mount_on_the_host() {
    let mut image = Image::new();
    image.add_layer("first", "file", "first");
    image.add_layer("second", "file", "second");
    let before = mounts();
    let (stdio, output) = piped();
    let created = image
        .create(&sh("cat /file; echo mine >/file"), stdio)
        .expect("creates");
    assert_eq!(mounts(), before);
    let running = created.start().expect("starts");
    // The highest layer counts.
    assert_eq!(read(output), "second");
    assert_eq!(
        pidfd::wait(running.pidfd.as_fd()).expect("ends"),
        Exit::Code(0)
    );
    assert_eq!(mounts(), before);
    let upper = fs::read_to_string(image.path("upper/file")).expect("upper");
    let lower = fs::read_to_string(image.path("second/file")).expect("lower");
    assert_eq!((upper.as_str(), lower.as_str()), ("mine\n", "second"));
}

fn an_overlay_has_many_layers() {
    let mut image = Image::new();
    // Longer together than a page, and with the characters that mount options use.
    for n in 0..60 {
        let name = format!("{n}-{}:a,b\\c", "x".repeat(150));
        image.add_layer(&name, &format!("file-{n}"), "");
    }
    assert_eq!(image.run("set -- /file-*; echo $#"), "60");
}

fn an_overlay_of_nothing_is_refused() {
    let mut image = Image::new();
    image.layers.clear();
    assert!(matches!(
        image.create(&sh("true"), Stdio::Inherit),
        Err(Error::Invalid { .. })
    ));
    image.layers.push(image.path("not-there"));
    let error = image
        .create(&sh("true"), Stdio::Inherit)
        .expect_err("refused");
    assert!(error.to_string().contains("not-there"), "{error}");
}

/// Namespaces of another process, with the descriptors that the paths name.
fn joined(pid: i32, kinds: &[(LinuxNamespaceType, &str)]) -> (Vec<LinuxNamespace>, Vec<OwnedFd>) {
    kinds
        .iter()
        .map(|&(typ, name)| {
            let fd: OwnedFd = File::open(format!("/proc/{pid}/ns/{name}"))
                .expect("namespace")
                .into();
            let namespace = LinuxNamespaceBuilder::default()
                .typ(typ)
                .path(format!("/proc/self/fd/{}", fd.as_raw_fd()))
                .build()
                .expect("builds");
            (namespace, fd)
        })
        .unzip()
}

fn namespaces_are_joined_by_descriptor() {
    let image = Image::new();
    let mut first = sh("while true; do sleep 1000; done");
    first.set_hostname(Some("together".into()));
    let first = image.running(&first);

    let kinds = [
        (LinuxNamespaceType::Pid, "pid"),
        (LinuxNamespaceType::Network, "net"),
        (LinuxNamespaceType::Ipc, "ipc"),
        (LinuxNamespaceType::Uts, "uts"),
    ];
    let (mut namespaces, held) = joined(first.pid, &kinds);
    namespaces.push(
        LinuxNamespaceBuilder::default()
            .typ(LinuxNamespaceType::Mount)
            .build()
            .expect("builds"),
    );
    let mut second = sh(
        "hostname; for n in pid net ipc uts; do readlink /proc/self/ns/$n; done; [ -d /proc/1 ] && [ $$ != 1 ] && echo both",
    );
    second.set_hostname(None);
    second
        .linux_mut()
        .as_mut()
        .expect("linux")
        .set_namespaces(Some(namespaces));
    let other = Image::new();
    let (stdio, output) = piped();
    let running = other
        .create(&second, stdio)
        .expect("creates")
        .start()
        .expect("starts");
    let said = read(output);
    assert_eq!(
        pidfd::wait(running.pidfd.as_fd()).expect("ends"),
        Exit::Code(0),
        "{said}"
    );
    let mut want = vec!["together".to_owned()];
    for (_, name) in kinds {
        let namespace = fs::read_link(format!("/proc/{}/ns/{name}", first.pid)).expect("link");
        want.push(namespace.to_string_lossy().into_owned());
    }
    want.push("both".to_owned());
    assert_eq!(said.lines().collect::<Vec<_>>(), want);
    drop(held);
    assert_eq!(end(&first), Exit::Signal(libc::SIGKILL));
    // This process's children are in its own pid namespace again.
    assert_eq!(Image::new().run("echo $$"), "1");
}

fn process(args: &[&str]) -> Process {
    let mut process = Spec::default().process().clone().expect("a process");
    process.set_args(Some(args.iter().map(|&a| a.to_owned()).collect()));
    process
}

fn exec(target: &Running, process: &Process, stdio: Stdio) -> container::Result<Running> {
    container::exec(Exec {
        target: target.pidfd.as_fd(),
        process,
        container: None,
        stdio,
        cgroup: None,
        seccomp: None,
        preserve_fds: 0,
    })
}

fn a_command_runs_in_a_container() {
    let image = Image::new();
    let first = image.running(&sh("touch /tmp/here; while true; do sleep 1000; done"));
    until("it is up", || image.path("upper/tmp/here").exists());
    let (stdio, output) = piped();
    let command = exec(&first, &process(&["sh", "-c", "ls /tmp; exit 9"]), stdio).expect("runs");
    assert_eq!(read(output), "here");
    assert_eq!(
        pidfd::wait(command.pidfd.as_fd()).expect("a child of ours"),
        Exit::Code(9)
    );
    end(&first);
}

fn a_command_that_is_missing_is_told() {
    let image = Image::new();
    let first = image.running(&sh("while true; do sleep 1000; done"));
    let error = exec(&first, &process(&["none"]), Stdio::Inherit).expect_err("missing");
    assert_eq!(error.exit_code(), 127, "{error}");
    end(&first);
}

fn a_command_in_a_dead_container_is_told() {
    let image = Image::new();
    let first = image.running(&sh("true"));
    pidfd::wait(first.pidfd.as_fd()).expect("ends");
    let error = exec(&first, &process(&["true"]), Stdio::Inherit).expect_err("dead");
    assert_eq!(error.exit_code(), 128, "{error}");
}

fn is_alive(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

fn a_container_that_is_dropped_is_killed() {
    let image = Image::new();
    let created = image
        .create(&sh("touch /tmp/ran"), Stdio::Inherit)
        .expect("creates");
    let pid = created.pid();
    assert!(is_alive(pid));
    drop(created);
    assert!(!is_alive(pid));
    assert!(!image.path("upper/tmp/ran").exists());
}

/// The creator is a child of this program that dies without a destructor.
fn a_container_whose_creator_dies_ends() {
    let image = Image::new();
    let file = image.path("pid");
    let creator = podling_runtime::sys::clone::clone_child(0, None, || {
        let created = image
            .create(&sh("touch /tmp/ran"), Stdio::Inherit)
            .expect("creates");
        fs::write(&file, created.pid().to_string()).expect("writes");
        podling_runtime::sys::process::exit(0)
    })
    .expect("clones");
    assert_eq!(
        pidfd::wait(creator.pidfd.as_fd()).expect("ends"),
        Exit::Code(0)
    );
    let pid: i32 = fs::read_to_string(&file)
        .expect("reads")
        .parse()
        .expect("a pid");
    let ended = || match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat.contains(") Z "),
        Err(_) => true,
    };
    until("the container has noticed", ended);
    assert!(!image.path("upper/tmp/ran").exists());
}

fn a_terminal_comes_with_the_container() {
    let image = Image::new();
    let size = TerminalSize {
        columns: 111,
        rows: 22,
    };
    let stdio = Stdio::Terminal { size: Some(size) };
    let mut created = image.create(&sh("stty size"), stdio).expect("creates");
    let terminal = created.terminal().expect("a terminal");
    let running = created.start().expect("starts");
    assert_eq!(read(File::from(terminal)), "22 111");
    pidfd::wait(running.pidfd.as_fd()).expect("ends");
}

/// As web servers do with `/dev/stdout`.
fn a_user_can_open_its_own_pipes_again() {
    let image = Image::new();
    let mut spec = sh("echo out >/dev/stdout; echo err >/dev/stderr");
    let mut user = User::default();
    user.set_uid(1000).set_gid(1000);
    spec.process_mut().as_mut().expect("process").set_user(user);
    let (stdio, output) = piped();
    let running = image
        .create(&spec, stdio)
        .expect("creates")
        .start()
        .expect("starts");
    assert_eq!(read(output), "out\nerr");
    assert_eq!(
        pidfd::wait(running.pidfd.as_fd()).expect("ends"),
        Exit::Code(0)
    );
}

fn a_process_with_threads_is_refused() {
    let image = Image::new();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || wait.recv());
    let error = image
        .create(&sh("true"), Stdio::Inherit)
        .expect_err("refused");
    assert!(matches!(error, Error::Threads { threads: 2 }), "{error}");
    drop(go);
    thread.join().expect("joins").expect_err("nothing was sent");
}
