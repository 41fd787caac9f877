//! Published escapes by way of processes: the runtime's own program, its descriptors, its capabilities, and the moment
//! in which its child is already in the container but not yet the container's. Each test tries the attack on real
//! containers and sees it fail.
#![cfg(feature = "privileged-tests")]

mod oci_support;

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use oci_spec::runtime::{LinuxNamespaceBuilder, LinuxNamespaceType};
use oci_support::{Bundle, RUNTIME, stderr, stdout, until};
use rustix::thread::CapabilitySets;

/// Waits for a process named `exe` or `copy`, opens its program, and once told writes to that file through the
/// descriptor: by then nobody executes it, so that nothing but the mount can be in the way.
const OVERWRITER: &str = r#"
    touch /tmp/up
    while [ ! -e /tmp/opened ]; do
        for p in /proc/[0-9]*; do
            read name <$p/comm && case $name in
                exe|copy) exec 3<$p/exe && echo $name >/tmp/opened;;
            esac
        done 2>/dev/null
    done
    while [ ! -e /tmp/go ]; do sleep 0.01; done
    sh -c 'echo overwritten >/proc/self/fd/3' 2>/tmp/said.new
    mv /tmp/said.new /tmp/said
    while true; do sleep 1000; done
"#;

/// A container whose first process waits for a program to overwrite, and whose runtime is a copy that nobody else
/// executes.
struct Attack {
    bundle: Bundle,
}

impl Attack {
    fn start() -> Self {
        let mut bundle = Bundle::sh(OVERWRITER);
        let own = bundle.path().join("podling-runtime");
        copy(&bundle.runtime, &own);
        bundle.runtime = own;
        copy(Path::new("/bin/busybox"), &bundle.rootfs().join("bin/mv"));
        make_victim(&bundle.rootfs());
        bundle.create();
        bundle.ok(&["start", &bundle.id]);
        until("the attacker is up", || {
            bundle.rootfs().join("tmp/up").exists()
        });
        Self { bundle }
    }

    /// What the write said, once the victim was let go.
    fn finish(&self, victim: &Path) -> String {
        let tmp = self.bundle.rootfs().join("tmp");
        until("the attacker has opened the program", || {
            tmp.join("opened").exists()
        });
        // The victim has been waiting for this, and ends.
        fs::write(victim, "no JSON").expect("lets it go");
        until("the victim has ended", || !self.sees_a_victim());
        fs::write(tmp.join("go"), "").expect("told");
        until("the attacker has written", || tmp.join("said").exists());
        fs::read_to_string(tmp.join("said")).expect("reads")
    }

    /// Whether a process that it looks for runs in its pid namespace, in whatever container.
    fn sees_a_victim(&self) -> bool {
        let namespace =
            |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).map_err(|e| e.kind());
        let own = namespace(&self.bundle.state()["pid"].to_string()).expect("the attacker runs");
        fs::read_dir("/proc")
            .expect("processes")
            .filter_map(|process| process.ok()?.file_name().into_string().ok())
            // One that has ended is in no namespace.
            .filter(|pid| namespace(pid).as_ref() == Ok(&own))
            .any(|pid| {
                fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|name| matches!(name.trim_end(), "exe" | "copy"))
            })
    }
}

/// Copies a program to be executed at once, by a process of its own: what this one holds open for writing, a child of
/// another test's may hold for a moment longer, and nobody may execute it then (ETXTBSY).
fn copy(from: &Path, to: &Path) {
    let status = std::process::Command::new("cp").arg(from).arg(to).status();
    assert!(status.expect("runs").success());
}

/// Arguments with which the runtime's program waits inside a container: `state` reads a FIFO.
const VICTIM: [&str; 4] = ["--root", "/tmp", "state", "victim"];

fn make_victim(rootfs: &Path) {
    fs::create_dir(rootfs.join("tmp/victim")).expect("victim");
    nix::unistd::mkfifo(
        &rootfs.join("tmp/victim/state.json"),
        Mode::from_bits_truncate(0o600),
    )
    .expect("FIFO");
}

/// Tries all ways to name the runtime's program; `control` is an ordinary program of the image.
fn exec_and_overwrite(program: &str, prepare: impl FnOnce(&Path)) -> (String, bool) {
    let attack = Attack::start();
    let bundle = &attack.bundle;
    prepare(&bundle.rootfs());
    let before = fs::read(&bundle.runtime).expect("reads");
    let mut args = vec!["exec", "--detach", bundle.id.as_str(), program];
    args.extend(VICTIM);
    bundle.ok(&args);
    let said = attack.finish(&bundle.rootfs().join("tmp/victim/state.json"));
    let untouched = fs::read(&bundle.runtime).expect("reads") == before;
    (said, untouched)
}

#[test]
fn cve_2019_5736_a_program_of_the_image_can_be_overwritten() {
    // The control: the same attack on a copy of the runtime in the image succeeds.
    let runtime = Path::new(RUNTIME);
    let (said, _) = exec_and_overwrite("/bin/copy", |rootfs| {
        copy(runtime, &rootfs.join("bin/copy"));
    });
    assert_eq!(said, "");
}

#[test]
fn cve_2019_5736_exec_of_the_runtime_cannot_overwrite_it() {
    let (said, untouched) = exec_and_overwrite("/proc/self/exe", |_| {});
    assert!(said.contains("Read-only file system"), "{said}");
    assert!(untouched, "the runtime was overwritten");
}

/// The image's program is a script whose interpreter is the runtime.
#[test]
fn cve_2019_5736_exec_of_a_script_cannot_overwrite_the_runtime() {
    let (said, untouched) = exec_and_overwrite("/bin/exe", |rootfs| {
        let script = rootfs.join("bin/exe");
        let text = rootfs.join("text");
        fs::write(&text, "#!/proc/self/exe --log\n").expect("script");
        fs::set_permissions(&text, fs::Permissions::from_mode(0o755)).expect("mode");
        copy(&text, &script);
    });
    assert!(said.contains("Read-only file system"), "{said}");
    assert!(untouched, "the runtime was overwritten");
}

/// The container's entry point is a link to `/proc/self/exe`; the attacker shares its pid namespace.
#[test]
fn cve_2019_5736_an_entry_point_cannot_overwrite_the_runtime() {
    let attack = Attack::start();
    let mut victim = Bundle::new();
    victim.runtime = attack.bundle.runtime.clone();
    let pid = attack.bundle.state()["pid"].as_i64().expect("a pid");
    let joined = LinuxNamespaceBuilder::default()
        .typ(LinuxNamespaceType::Pid)
        .path(format!("/proc/{pid}/ns/pid"))
        .build()
        .expect("a namespace");
    let namespaces = victim.linux().namespaces_mut().get_or_insert_default();
    namespaces.retain(|n| n.typ() != LinuxNamespaceType::Pid);
    namespaces.push(joined);
    make_victim(&victim.rootfs());
    symlink("/proc/self/exe", victim.rootfs().join("bin/exe")).expect("link");
    let args: Vec<&str> = std::iter::once("/bin/exe").chain(VICTIM).collect();
    victim.args(&args);
    victim.create();
    victim.ok(&["start", &victim.id]);
    let before = fs::read(&victim.runtime).expect("reads");
    let said = attack.finish(&victim.rootfs().join("tmp/victim/state.json"));
    assert!(said.contains("Read-only file system"), "{said}");
    assert!(
        fs::read(&victim.runtime).expect("reads") == before,
        "the runtime was overwritten"
    );
}

/// A directory of the host that the caller holds open and lets its children inherit, as runc did with `/sys/fs/cgroup`.
fn leak(directory: &Path) -> OwnedFd {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
    nix::fcntl::open(directory, flags, Mode::empty()).expect("opens without close-on-exec")
}

/// The numbers below `/proc/self/fd` that are worth trying.
fn numbers(leaked: &OwnedFd) -> impl Iterator<Item = i32> + use<> {
    (3..16).chain([leaked.as_raw_fd()])
}

#[test]
fn cve_2024_21626_run_does_not_start_in_a_leaked_directory() {
    let mut bundle = Bundle::sh("pwd; cat /proc/self/cwd/secret");
    fs::write(bundle.path().join("secret"), "of the host").expect("secret");
    let leaked = leak(bundle.path());
    // The control: a child that only inherits it is led there.
    let number = leaked.as_raw_fd();
    let control = std::process::Command::new("cat")
        .arg(format!("/proc/self/fd/{number}/secret"))
        .output()
        .expect("runs");
    assert_eq!(stdout(&control), "of the host");

    for number in numbers(&leaked) {
        for cwd in [
            format!("/proc/self/fd/{number}"),
            format!("/proc/self/fd/{number}/rootfs/.."),
            "/link".to_owned(),
        ] {
            let link = bundle.rootfs().join("link");
            fs::remove_file(&link).unwrap_or_default();
            symlink(format!("/proc/self/fd/{number}"), &link).expect("link");
            bundle.process().set_cwd(cwd.into());
            let message = bundle.run_fails();
            assert!(message.contains("working directory"), "{message}");
        }
    }
}

#[test]
fn cve_2024_21626_exec_does_not_start_in_a_leaked_directory() {
    let bundle = Bundle::running();
    fs::write(bundle.path().join("secret"), "of the host").expect("secret");
    let leaked = leak(bundle.path());
    for number in numbers(&leaked) {
        let link = bundle.rootfs().join("link");
        fs::remove_file(&link).unwrap_or_default();
        symlink(format!("/proc/self/fd/{number}"), &link).expect("link");
        for cwd in [format!("/proc/self/fd/{number}"), "/link".to_owned()] {
            let output = bundle.runtime(&["exec", "--cwd", &cwd, &bundle.id, "cat", "secret"]);
            assert!(!output.status.success(), "{cwd}: {}", stdout(&output));
            let message = stderr(&output);
            assert!(message.contains("working directory"), "{message}");
        }
    }
}

/// The program itself could be named by a leaked descriptor.
#[test]
fn cve_2024_21626_no_program_is_found_in_a_leaked_directory() {
    let bundle = Bundle::running();
    let leaked = leak(Path::new("/bin"));
    for number in numbers(&leaked) {
        let program = format!("/proc/self/fd/{number}/true");
        let output = bundle.exec(&[&program]);
        assert!(!output.status.success(), "{program}");
    }
}

#[test]
fn no_descriptor_of_the_caller_reaches_the_container() {
    let script = "for fd in /proc/$$/fd/*; do readlink $fd; done; true";
    let leaked = [leak(Path::new("/")), leak(Path::new("/sys"))];
    let seen_by_a_child = std::process::Command::new("sh")
        .args(["-c", script])
        .output()
        .expect("runs");
    assert!(stdout(&seen_by_a_child).contains("/sys"), "no control");

    let first = Bundle::sh(script).run();
    assert_eq!(first.lines().count(), 3, "{first}");
    let bundle = Bundle::running();
    let second = stdout(&bundle.exec(&["sh", "-c", script]));
    assert_eq!(second.lines().count(), 3, "{second}");
    drop(leaked);
}

/// A process of the container stops the runtime's child as soon as that is in the pid namespace, long before it
/// executes its program, and looks for what it has open. The child cannot be traced, so its descriptors, working
/// directory, root directory and memory are closed to the container.
#[test]
fn cve_2016_9962_a_child_stopped_on_its_way_gives_nothing_away() {
    // No process is made in the loop, so that the next number is the runtime's child's.
    let bundle = Bundle::sh(
        r#"
        touch /tmp/up
        next=2
        # `touch` was 2.
        while [ ! -e /tmp/report ]; do
            next=$((next + 1))
            until kill -STOP $next 2>/dev/null; do :; done
            # Stopped only when it next goes to user space, which may be that of the program it is about to execute.
            state=
            while [ "$state" != T ]; do read pid name state rest </proc/$next/stat || break; done
            read name </proc/$next/comm
            if [ "$name" = podling-runtime ]; then
                ls /proc/$next/fd | wc -l >/tmp/open
                for link in cwd root exe fd/0 fd/3 fd/4 fd/5 fd/6 fd/7 fd/8 fd/9 fd/10 fd/11 fd/12; do
                    readlink /proc/$next/$link; ls /proc/$next/$link/; cat </proc/$next/$link
                    readlink /proc/$$/$link >>/tmp/control
                done >/tmp/found 2>/tmp/errors
                cat /proc/$next/environ /proc/$next/maps /proc/$next/mem >>/tmp/found 2>>/tmp/errors
                echo >/tmp/report
            fi
            kill -CONT $next
        done
        while true; do sleep 1000; done
    "#,
    );
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    let tmp = bundle.rootfs().join("tmp");
    until("the attacker is up", || tmp.join("up").exists());
    until("a child was caught", || {
        // Long enough that the attacker finds it even when it came too late, and goes on to the next.
        let output = bundle.exec(&["sleep", "1"]);
        assert!(output.status.success(), "{}", stderr(&output));
        tmp.join("report").exists()
    });
    let read = |name| {
        let bytes = fs::read(tmp.join(name)).expect("reads");
        String::from_utf8_lossy(&bytes).into_owned()
    };
    assert_eq!(read("found"), "", "{}", read("errors"));
    assert!(read("errors").contains("Permission denied"));
    assert!(read("control").contains("/bin/busybox"));
    // There was something to be had.
    assert!(read("open").trim().parse::<u32>().expect("a number") > 3);
}

/// The capability sets of a process, by name, from `/proc/<pid>/status`.
fn sets(status: &str) -> Vec<(String, u64)> {
    status
        .lines()
        .filter_map(|line| line.strip_prefix("Cap")?.split_once(":\t"))
        .map(|(name, bits)| (name.to_owned(), u64::from_str_radix(bits, 16).expect("hex")))
        .collect()
}

/// The caller's inheritable set, and capabilities added to a command, give a container's program no inheritable or
/// ambient ones. crun's CVE-2022-27650 and youki's CVE-2025-27612 are the same.
#[test]
fn cve_2022_29162_exec_gives_no_inheritable_capabilities() {
    let plain_sets = |bundle: &mut Bundle| {
        let mut sets = bundle.process().capabilities().clone().expect("some");
        sets.set_inheritable(None).set_ambient(None);
        bundle.process().set_capabilities(Some(sets));
    };
    let mut bundle = Bundle::sh("touch /tmp/up; while true; do sleep 1000; done");
    plain_sets(&mut bundle);
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    until("it is up", || bundle.rootfs().join("tmp/up").exists());
    let own = rustix::thread::capabilities(None).expect("capabilities");
    let raised = CapabilitySets {
        inheritable: own.permitted,
        ..own
    };
    rustix::thread::set_capabilities(None, raised).expect("raises");
    let grep = ["grep", "^Cap", "/proc/self/status"];
    let control = std::process::Command::new(grep[0])
        .args(&grep[1..])
        .output()
        .expect("runs");
    let inheritable = |sets: &[(String, u64)]| {
        let of = |name: &str| {
            let found = sets.iter().find(|(n, _)| n == name);
            found.map(|(_, bits)| *bits).expect("the set")
        };
        (of("Inh"), of("Amb"), of("Eff"))
    };
    assert_ne!(inheritable(&sets(&stdout(&control))).0, 0, "no control");

    let plain = inheritable(&sets(&stdout(&bundle.exec(&grep))));
    assert_eq!((plain.0, plain.1), (0, 0));
    let mut args = vec!["exec", "--cap", "CAP_NET_RAW", bundle.id.as_str()];
    args.extend(grep);
    let added = inheritable(&sets(&bundle.ok(&args)));
    assert_eq!((added.0, added.1), (0, 0));
    assert_eq!(added.2 & !plain.2, 1 << 13, "CAP_NET_RAW was added");

    let mut first = Bundle::new();
    plain_sets(&mut first);
    first.args(&grep);
    let first = inheritable(&sets(&first.run()));
    assert_eq!((first.0, first.1), (0, 0));
}

/// A user without a group is that user, not root; what is no number is nobody's name in the image's `/etc/passwd`
/// (CVE-2016-3697).
#[test]
fn cve_2026_30892_exec_takes_a_user_by_its_number_only() {
    let bundle = Bundle::running();
    fs::create_dir_all(bundle.rootfs().join("etc")).expect("etc");
    let passwd = "1:x:0:0::/:/bin/sh\nweb:x:0:0::/:/bin/sh\n4294967296:x:0:0::/:/bin/sh\n";
    fs::write(bundle.rootfs().join("etc/passwd"), passwd).expect("passwd");
    let ids = |user: &str| {
        let script = "grep -E '^[UG]id' /proc/self/status";
        let args = ["exec", "--user", user, &bundle.id, "sh", "-c", script];
        let said = bundle.ok(&args);
        said.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(ids("1"), "Uid: 1 1 1 1 Gid: 0 0 0 0");
    assert_eq!(ids("1:2"), "Uid: 1 1 1 1 Gid: 2 2 2 2");
    for user in [
        "web",
        "4294967296",
        "4294967295",
        "-1",
        "1:",
        ":1",
        "1:2:3",
        "",
    ] {
        let user = format!("--user={user}");
        let message = bundle.fails(&["exec", &user, &bundle.id, "id"]);
        assert!(message.contains("user"), "{message}");
    }
}

/// Neither by inheritance nor by `/proc/<pid>/environ`.
#[test]
fn no_environment_of_the_caller_reaches_the_container() {
    let mut bundle = Bundle::sh("env; cat /proc/1/environ; cat /proc/self/environ");
    bundle.process().set_env(Some(vec!["PATH=/bin".to_owned()]));
    let said = bundle.run();
    assert!(!said.contains("SECRET_OF_THE_CALLER"), "{said}");
    let bundle = Bundle::running();
    let said = stdout(&bundle.exec(&["sh", "-c", "env; cat /proc/self/environ"]));
    assert!(!said.contains("SECRET_OF_THE_CALLER"), "{said}");
}

/// A process may name itself as it likes; the runtime reads that name in `/proc/<pid>/stat`.
#[test]
fn a_process_with_a_false_name_can_still_be_killed() {
    let bundle = Bundle::sh(
        r"echo -ne 'a) Z 1 \xff' >/proc/self/comm; touch /tmp/up; while true; do sleep 1000; done",
    );
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    until("it is up", || bundle.rootfs().join("tmp/up").exists());
    let pid = bundle.state()["pid"].as_i64().expect("a pid");
    let comm = fs::read(format!("/proc/{pid}/comm")).expect("reads");
    assert!(comm.contains(&0xff));
    assert_eq!(bundle.status(), "running");
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    until("it has stopped", || bundle.status() == "stopped");
}

/// Whatever is done to the standard streams: descriptors 0, 1 and 2 are never another file of the runtime's.
#[test]
fn closed_standard_streams_are_not_filled_with_the_runtimes_files() {
    let bundle = Bundle::sh("for fd in 0 1 2; do readlink /proc/$$/fd/$fd; done >/tmp/seen");
    bundle.write();
    let script = r#"exec "$0" "$@" <&- >&- 2>&-"#;
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", script])
        .arg(&bundle.runtime)
        .arg("--root")
        .arg(bundle.state_directory())
        .args(["run", "-b", &bundle.bundle_arg(), &bundle.id]);
    assert!(command.status().expect("runs").success());
    let mut seen = String::new();
    let mut file = File::open(bundle.rootfs().join("tmp/seen")).expect("opens");
    std::io::Read::read_to_string(&mut file, &mut seen).expect("reads");
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines, ["/dev/null", "/tmp/seen", "/dev/null"]);
}
