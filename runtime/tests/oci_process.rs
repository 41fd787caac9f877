//! The process in a container: its isolation, privileges, limits and environment, on real containers.
#![cfg(feature = "privileged-tests")]

mod oci_support;

use std::collections::HashSet;
use std::fs;
use std::process::Stdio;

use oci_spec::runtime::{
    Capability, LinuxCapabilities, LinuxSeccomp, PosixRlimitBuilder, PosixRlimitType, User,
};
use oci_support::{Bundle, stderr, stdout, until};

/// Prints the numbers of the shell's open descriptors, without opening one.
const OPEN_DESCRIPTORS: &str = "i=0; open=; while [ $i -lt 50 ]; do
    [ -e /proc/$$/fd/$i ] && open=\"$open $i\"; i=$((i+1)); done; echo $open";

fn capabilities(all: &[Capability]) -> LinuxCapabilities {
    let set = Some(all.iter().copied().collect::<HashSet<_>>());
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(set.clone())
        .set_permitted(set.clone())
        .set_effective(set.clone())
        .set_inheritable(set.clone())
        .set_ambient(set);
    capabilities
}

fn user(uid: u32, gid: u32) -> User {
    let mut user = User::default();
    user.set_uid(uid).set_gid(gid);
    user
}

#[test]
fn all_namespaces_are_new() {
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];
    let bundle =
        Bundle::sh("for n in cgroup ipc mnt net pid uts; do readlink /proc/self/ns/$n; done");
    let inside = bundle.run();
    for (kind, inside) in kinds.iter().zip(inside.lines()) {
        let ours = fs::read_link(format!("/proc/thread-self/ns/{kind}")).expect("namespace");
        assert_ne!(ours.to_str(), Some(inside), "{kind}");
    }
    assert_eq!(inside.lines().count(), kinds.len());
}

#[test]
fn the_program_is_process_1_and_sees_no_other() {
    let bundle = Bundle::sh("echo $$; echo /proc/[0-9]*");
    assert_eq!(bundle.run(), "1\n/proc/1");
}

#[test]
fn the_environment_is_the_specs() {
    let mut bundle = Bundle::new();
    bundle.args(&["/bin/env"]);
    bundle
        .process()
        .set_env(Some(vec!["A=1".into(), "B=x y=z".into()]));
    assert_eq!(bundle.run(), "A=1\nB=x y=z\nHOME=/");
}

#[test]
fn home_comes_from_the_containers_passwd() {
    let mut bundle = Bundle::sh("echo $HOME");
    fs::create_dir(bundle.rootfs().join("etc")).expect("etc");
    fs::write(
        bundle.rootfs().join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n",
    )
    .expect("passwd");
    bundle.process().set_user(user(33, 33));
    assert_eq!(bundle.run(), "/srv");
}

#[test]
fn a_fifo_for_passwd_stops_nothing() {
    let bundle = Bundle::sh("echo $HOME");
    fs::create_dir(bundle.rootfs().join("etc")).expect("etc");
    nix::unistd::mkfifo(
        &bundle.rootfs().join("etc/passwd"),
        nix::sys::stat::Mode::from_bits_truncate(0o644),
    )
    .expect("fifo");
    assert_eq!(bundle.run(), "/");
}

#[test]
fn no_descriptor_of_the_caller_leaks() {
    let bundle = Bundle::sh(OPEN_DESCRIPTORS);
    bundle.write();
    let script = format!(
        "exec 7</etc/hostname 9</; exec {} --root {} run -b {} {}",
        bundle.runtime.display(),
        bundle.state_directory().display(),
        bundle.bundle_arg(),
        bundle.id
    );
    let output = std::process::Command::new("/bin/sh")
        .args(["-c", &script])
        .output()
        .expect("runs");
    assert_eq!(stdout(&output), "0 1 2", "{}", stderr(&output));
}

#[test]
fn preserved_descriptors_stay() {
    let bundle = Bundle::sh(&format!("cat <&3; {OPEN_DESCRIPTORS}"));
    bundle.write();
    fs::write(bundle.path().join("given"), "given\n").expect("file");
    let script = format!(
        "exec 3<{}/given 5</; exec {} --root {} run --preserve-fds 1 -b {} {}",
        bundle.bundle_arg(),
        bundle.runtime.display(),
        bundle.state_directory().display(),
        bundle.bundle_arg(),
        bundle.id
    );
    let output = std::process::Command::new("/bin/sh")
        .args(["-c", &script])
        .output()
        .expect("runs");
    assert_eq!(stdout(&output), "given\n0 1 2 3", "{}", stderr(&output));
}

#[test]
fn only_open_descriptors_are_preserved() {
    let bundle = Bundle::sh(OPEN_DESCRIPTORS);
    bundle.write();
    let script = format!(
        "exec 5<{}/config.json; exec {} --root {} run --preserve-fds 5 -b {} {}",
        bundle.bundle_arg(),
        bundle.runtime.display(),
        bundle.state_directory().display(),
        bundle.bundle_arg(),
        bundle.id
    );
    let output = std::process::Command::new("/bin/sh")
        .args(["-c", &script])
        .output()
        .expect("runs");
    assert_eq!(stdout(&output), "0 1 2 5", "{}", stderr(&output));
}

#[test]
fn capabilities_are_the_specs() {
    let mut bundle = Bundle::sh("grep Cap /proc/self/status");
    let set = capabilities(&[Capability::Chown, Capability::NetBindService]);
    bundle.process().set_capabilities(Some(set));
    let want = format!("{:016x}", 1 | 1 << 10);
    for line in bundle.run().lines() {
        assert!(line.ends_with(&want), "{line}");
    }
}

#[test]
fn ambient_capabilities_reach_a_user() {
    let mut bundle = Bundle::sh("grep Cap /proc/self/status");
    let set = capabilities(&[Capability::Chown]);
    bundle
        .process()
        .set_capabilities(Some(set))
        .set_user(user(1000, 1000));
    for line in bundle.run().lines() {
        assert!(line.ends_with("0000000000000001"), "{line}");
    }
}

#[test]
fn without_capabilities_root_has_none() {
    let mut bundle = Bundle::sh("grep Cap /proc/self/status");
    bundle.process().set_capabilities(None);
    for line in bundle.run().lines() {
        assert!(line.ends_with("0000000000000000"), "{line}");
    }
}

#[test]
fn no_new_privs_is_the_specs() {
    for (asked, want) in [(true, "1"), (false, "0")] {
        let mut bundle = Bundle::sh("grep NoNewPrivs /proc/self/status");
        bundle.process().set_no_new_privileges(Some(asked));
        assert!(bundle.run().ends_with(want));
    }
}

#[test]
fn user_groups_and_umask_are_the_specs() {
    let mut bundle =
        Bundle::sh("id -u; id -g; id -G; umask; touch /tmp/mine; stat -c %u:%g:%a /tmp/mine");
    let mut user = user(1234, 2345);
    user.set_additional_gids(Some(vec![7, 8]))
        .set_umask(Some(0o077));
    bundle.process().set_user(user);
    assert_eq!(bundle.run(), "1234\n2345\n2345 7 8\n0077\n1234:2345:600");
}

#[test]
fn limits_are_the_specs() {
    let mut bundle = Bundle::sh("ulimit -S -n; ulimit -H -n; ulimit -S -c");
    let limit = |typ, soft: u64, hard: u64| {
        PosixRlimitBuilder::default()
            .typ(typ)
            .soft(soft)
            .hard(hard)
            .build()
            .expect("a limit")
    };
    bundle.process().set_rlimits(Some(vec![
        limit(PosixRlimitType::RlimitNofile, 100, 200),
        limit(PosixRlimitType::RlimitCore, 0, 0),
    ]));
    assert_eq!(bundle.run(), "100\n200\n0");
}

#[test]
fn a_working_directory_is_made() {
    let mut bundle = Bundle::sh("pwd");
    bundle.process().set_cwd("/work/here".into());
    assert_eq!(bundle.run(), "/work/here");
}

/// CVE-2024-21626: a directory of the host by way of a descriptor that the runtime has open.
#[test]
fn a_working_directory_outside_is_refused() {
    for number in 3..12 {
        let mut bundle = Bundle::sh("pwd; ls");
        bundle
            .process()
            .set_cwd(format!("/proc/self/fd/{number}").into());
        bundle.write();
        let output = bundle.runtime(&["run", "-b", &bundle.bundle_arg(), &bundle.id]);
        assert!(!output.status.success(), "{number}: {}", stdout(&output));
    }
}

/// The program is not looked for by way of such a descriptor either.
#[test]
fn a_program_outside_is_not_found() {
    for number in 3..12 {
        let mut bundle = Bundle::new();
        bundle.args(&[&format!("/proc/self/fd/{number}/bin/sh"), "-c", "true"]);
        bundle.write();
        let output = bundle.runtime(&["run", "-b", &bundle.bundle_arg(), &bundle.id]);
        assert_eq!(
            output.status.code(),
            Some(127),
            "{number}: {}",
            stderr(&output)
        );
    }
}

#[test]
fn the_exit_code_is_the_processs() {
    for (script, want) in [("exit 0", 0), ("exit 42", 42), ("kill -9 $$; sleep 9", 137)] {
        // As process 1 it would ignore its own signal.
        let bundle = Bundle::sh(&format!("sh -c '{script}'; exit $?"));
        bundle.write();
        let output = bundle.runtime(&["run", "-b", &bundle.bundle_arg(), &bundle.id]);
        assert_eq!(output.status.code(), Some(want), "{script}");
    }
}

#[test]
fn a_program_that_is_missing_is_named() {
    let mut bundle = Bundle::new();
    bundle.args(&["no-such-program"]);
    let message = bundle.run_fails();
    assert!(
        message.contains("cannot find the program \"no-such-program\" in $PATH"),
        "{message}"
    );
    let output = bundle.runtime(&["run", "-b", &bundle.bundle_arg(), &bundle.id]);
    assert_eq!(output.status.code(), Some(127));
}

#[test]
fn a_program_that_cannot_be_executed_is_named() {
    let mut bundle = Bundle::new();
    fs::write(bundle.rootfs().join("bin/data"), "no program").expect("file");
    bundle.args(&["/bin/data"]);
    let message = bundle.run_fails();
    assert!(
        message.contains("\"/bin/data\": Permission denied"),
        "{message}"
    );
    let output = bundle.runtime(&["run", "-b", &bundle.bundle_arg(), &bundle.id]);
    assert_eq!(output.status.code(), Some(126));
}

#[test]
fn the_host_name_is_the_specs() {
    let mut bundle = Bundle::sh("hostname; cat /proc/sys/kernel/domainname");
    bundle.spec.set_hostname(Some("alice".into()));
    bundle.spec.set_domainname(Some("example.org".into()));
    assert_eq!(bundle.run(), "alice\nexample.org");
}

#[test]
fn kernel_parameters_are_the_specs() {
    let mut bundle = Bundle::sh("cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shmmni");
    let parameters = [("net.core.somaxconn", "77"), ("kernel.shmmni", "55")];
    bundle.linux().set_sysctl(Some(
        parameters.map(|(n, v)| (n.to_owned(), v.to_owned())).into(),
    ));
    assert_eq!(bundle.run(), "77\n55");
}

#[test]
fn the_oom_score_is_the_specs() {
    let mut bundle = Bundle::sh("cat /proc/self/oom_score_adj");
    bundle.process().set_oom_score_adj(Some(321));
    assert_eq!(bundle.run(), "321");
}

#[test]
fn an_oom_score_that_may_not_be_lowered_is_told() {
    let may = caps::has_cap(
        None,
        caps::CapSet::Effective,
        caps::Capability::CAP_SYS_RESOURCE,
    )
    .expect("capabilities");
    let mut bundle = Bundle::sh("cat /proc/self/oom_score_adj");
    bundle.process().set_oom_score_adj(Some(-900));
    if may {
        assert_eq!(bundle.run(), "-900");
    } else {
        let message = bundle.run_fails();
        assert!(message.contains("CAP_SYS_RESOURCE"), "{message}");
    }
}

/// A filter that lets everything pass but mkdir, with an error of its own.
fn filter() -> LinuxSeccomp {
    serde_json::from_str(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}]}"#,
    )
    .expect("a profile")
}

#[test]
fn a_filter_holds_with_and_without_no_new_privs() {
    for no_new_privileges in [true, false] {
        let mut bundle =
            Bundle::sh("mkdir /tmp/x 2>&1; grep -E 'Seccomp:|CapEff' /proc/self/status");
        bundle
            .process()
            .set_no_new_privileges(Some(no_new_privileges));
        let set = capabilities(&[Capability::Chown]);
        bundle.process().set_capabilities(Some(set));
        bundle.linux().set_seccomp(Some(filter()));
        let said = bundle.run();
        assert!(said.contains("Operation not supported"), "{said}");
        assert!(said.contains("Seccomp:\t2"), "{said}");
        // CAP_SYS_ADMIN, with which the filter was loaded, is gone.
        assert!(said.contains("CapEff:\t0000000000000001"), "{said}");
    }
}

#[test]
fn a_filter_holds_for_exec_too() {
    let mut bundle = Bundle::sh("while true; do sleep 1000; done");
    bundle.linux().set_seccomp(Some(filter()));
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    let output = bundle.exec(&["mkdir", "/tmp/x"]);
    assert!(
        stderr(&output).contains("Operation not supported"),
        "{}",
        stderr(&output)
    );
}

/// CVE-2019-5736: a container runs the runtime's own file and then writes to it.
#[test]
fn the_runtimes_file_cannot_be_overwritten() {
    let mut bundle = Bundle::sh(
        "while true; do
            for p in /proc/[0-9]*; do
                [ $p = /proc/1 ] && continue
                case $(head -c 4000 $p/cmdline 2>/dev/null) in *-runtime-was-here*) ;; *) continue;; esac
                # Before it has executed, it must not be open to us.
                (: <$p/exe) 2>/dev/null || continue
                exec 5<$p/exe
                kill -9 ${p#/proc/}
                touch /tmp/caught
                while [ ! -e /tmp/alone ]; do sleep 0.01; done
                until (echo overwritten >/proc/self/fd/5) 2>/tmp/said; do
                    grep -q busy /tmp/said || break
                    sleep 0.01
                done
                touch /tmp/tried
                while true; do sleep 1000; done
            done
         done",
    );
    // A copy, so that nobody else executes the file and hides the hole behind \"text file busy\".
    let copy = bundle.path().join("runtime");
    fs::copy(&bundle.runtime, &copy).expect("copy");
    bundle.runtime = copy.clone();
    let before = fs::read(&copy).expect("reads");
    nix::unistd::mkfifo(
        &bundle.rootfs().join("tmp/fifo"),
        nix::sys::stat::Mode::from_bits_truncate(0o644),
    )
    .expect("fifo");
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    // It stops at the FIFO, where it is caught.
    let mut exec = bundle
        .command()
        .args(["exec", &bundle.id, "/proc/self/exe", "--log", "/tmp/fifo"])
        .args(["state", "the-runtime-was-here-runtime-was-here"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("spawns");
    until("the container has caught the runtime", || {
        bundle.rootfs().join("tmp/caught").exists()
    });
    exec.wait().expect("ends");
    fs::write(bundle.rootfs().join("tmp/alone"), "").expect("file");
    until("the container has tried", || {
        bundle.rootfs().join("tmp/tried").exists()
    });
    let said = fs::read_to_string(bundle.rootfs().join("tmp/said")).expect("reads");
    assert!(said.contains("Read-only file system"), "{said}");
    assert_eq!(fs::read(&copy).expect("reads"), before);
}

#[test]
fn the_callers_keyring_is_out_of_reach() {
    let bundle = Bundle::sh("cat /proc/keys | head -c 1");
    // /proc/keys is masked, and the session keyring is new: nothing to read either way.
    assert_eq!(bundle.run(), "");
}

/// A signal that is ignored stays so across execve(2), and with SIGCHLD ignored nobody's exit code is kept.
#[test]
fn a_caller_that_ignores_sigchld_is_given_the_exit_code() {
    let bundle = Bundle::sh("exit 7");
    bundle.write();
    let status = std::process::Command::new("env")
        .arg("--ignore-signal=CHLD")
        .arg(&bundle.runtime)
        .arg("--root")
        .arg(bundle.state_directory())
        .args(["run", "-b", &bundle.bundle_arg(), &bundle.id])
        .status()
        .expect("runs");
    assert_eq!(status.code(), Some(7));
    assert!(!bundle.state_directory().join(&bundle.id).exists());
}
