//! Debian's containerd with its own roots, and its shim with `--runc-binary podling-runtime`.
#![cfg(feature = "privileged-tests")]

mod callers_support;

use std::fs;
use std::process::Child;

use callers_support::{Machine, stderr, stdout, until};

const IMAGE: &str = "docker.io/library/busybox:latest";

/// A containerd of the machine's own, with one image.
struct Containerd {
    machine: Machine,
    daemon: Child,
}

impl Containerd {
    fn new() -> Self {
        let machine = Machine::new();
        let root = machine.image_rootfs();
        machine.ok(&format!(
            "umoci init --layout layout && umoci new --image layout:busybox &&
             umoci insert --image layout:busybox {} / && umoci config --image layout:busybox --config.cmd sh &&
             skopeo copy --quiet oci:layout:busybox oci-archive:busybox.tar:{IMAGE}",
            root.display()
        ));
        let path = machine.path().display();
        let config = format!(
            "version = 2\nroot = \"{path}/root\"\nstate = \"{path}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\naddress = \"{path}/grpc.sock\"\n[ttrpc]\naddress = \"{path}/ttrpc.sock\"\n"
        );
        fs::write(machine.path().join("config.toml"), config).expect("config.toml");
        let log = fs::File::create(machine.path().join("containerd.log")).expect("a log");
        let daemon = machine
            .command(&["containerd", "--config", "config.toml"])
            .stderr(log)
            .spawn()
            .expect("Debian's package containerd");
        let containerd = Self { machine, daemon };
        until("containerd answers", || {
            containerd.run("ctr version").0 == 0
        });
        containerd.ok("ctr image import busybox.tar");
        containerd
    }

    /// Runs a script; gives its exit code, standard output and standard error. `run NAME COMMAND` runs a container.
    fn run(&self, script: &str) -> (i32, String, String) {
        let output = self.machine.run(&format!(
            "export CONTAINERD_ADDRESS=$PWD/grpc.sock
             run() {{ ctr run --runc-binary $RUNTIME $OPTIONS {IMAGE} \"$@\"; }}
             {script}"
        ));
        let code = output.status.code().expect("an exit code");
        (code, stdout(&output), stderr(&output))
    }

    /// As [`Self::run`], and it must work; gives what it printed.
    fn ok(&self, script: &str) -> String {
        let (code, said, errors) = self.run(script);
        assert_eq!(code, 0, "{script}: {said}\n{errors}");
        said
    }

    fn status(&self, name: &str) -> String {
        self.ok(&format!(
            "ctr task list | awk '$1 == \"{name}\" {{ print $3 }}'"
        ))
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // The machine ends what it runs; this reaps what the test started.
        self.daemon.kill().expect("kills nsenter");
        self.daemon.wait().expect("nsenter ends");
    }
}

#[test]
fn containerd_runs_a_container_and_takes_its_output_and_exit_code() {
    let containerd = Containerd::new();
    assert_eq!(containerd.ok("OPTIONS=--rm run c echo hello"), "hello");
    let (code, said, errors) =
        containerd.run("OPTIONS=--rm run c sh -c 'echo out; echo err >&2; exit 7'");
    assert_eq!((code, said.as_str(), errors.as_str()), (7, "out", "err"));
    let (code, _, errors) = containerd.run("OPTIONS=--rm run c missing");
    assert_eq!(code, 1, "{errors}");
    assert!(errors.contains("missing"), "{errors}");
}

#[test]
fn containerd_gives_terminals() {
    let containerd = Containerd::new();
    let terminal = containerd.ok(&format!(
        "script --quiet --command 'ctr run --rm --tty --runc-binary '$RUNTIME' {IMAGE} c tty' /dev/null"
    ));
    assert!(terminal.contains("/dev/pts/0"), "{terminal}");
}

#[test]
fn containerd_execs_pauses_lists_and_kills() {
    let containerd = Containerd::new();
    containerd.ok("OPTIONS=--detach run c sleep 1000");
    assert_eq!(containerd.status("c"), "RUNNING");
    assert_eq!(
        containerd.ok("ctr task exec --exec-id e c echo inside"),
        "inside"
    );
    let (code, _, _) = containerd.run("ctr task exec --exec-id e c sh -c 'exit 9'");
    assert_eq!(code, 9);
    let processes = containerd.ok("ctr task ps c");
    assert_eq!(processes.lines().count(), 2, "{processes}");
    containerd.ok("ctr task pause c");
    assert_eq!(containerd.status("c"), "PAUSED");
    containerd.ok("ctr task resume c");
    assert_eq!(containerd.status("c"), "RUNNING");
    containerd.ok("ctr task kill --signal KILL c");
    until("the task has ended", || containerd.status("c") == "STOPPED");
    let (_, _, errors) = containerd.run("ctr task delete c");
    assert!(errors.contains("137"), "{errors}");
    containerd.ok("ctr container delete c");
}

#[test]
fn containerd_limits_and_measures() {
    let containerd = Containerd::new();
    containerd.ok("OPTIONS='--detach --memory-limit 67108864 --cpus 0.5' run c sleep 1000");
    let limits = containerd.ok(
        "cd /sys/fs/cgroup
         if [ -e cgroup.controllers ]; then cat default/c/memory.max; cut -d' ' -f1 default/c/cpu.max
         else cat memory/default/c/memory.limit_in_bytes cpu/default/c/cpu.cfs_quota_us; fi",
    );
    assert_eq!(limits.lines().collect::<Vec<_>>(), ["67108864", "50000"]);
    let metrics = containerd.ok("ctr task metrics c");
    assert!(metrics.contains("pids.current"), "{metrics}");
}

#[test]
fn containerd_reduces_privileges() {
    let containerd = Containerd::new();
    let status = containerd.ok("OPTIONS='--rm --seccomp --read-only' run c sh -c '
         grep -E \"^(NoNewPrivs|Seccomp):\" /proc/self/status; touch /file || echo read-only'");
    let words: Vec<&str> = status.split_whitespace().collect();
    assert_eq!(words, ["NoNewPrivs:", "1", "Seccomp:", "2", "read-only"]);
}

#[test]
fn containerd_shares_namespaces_and_binds() {
    let containerd = Containerd::new();
    let same = containerd.ok(
        "mkdir host; echo of the host > host/file
         OPTIONS=\"--rm --net-host --with-ns uts:/proc/1/ns/uts --mount type=bind,src=$PWD/host,dst=/mnt,options=rbind:ro\"
         run c sh -c 'stat -L -c %i /proc/self/ns/net /proc/self/ns/uts; cat /mnt/file'
         stat -L -c %i /proc/self/ns/net /proc/self/ns/uts",
    );
    let lines: Vec<&str> = same.lines().collect();
    assert_eq!(lines[..2], lines[3..]);
    assert_eq!(lines[2], "of the host");
}
