//! Debian's podman with `--runtime podling-runtime`: what people do with it, each in a machine of its own.
#![cfg(feature = "privileged-tests")]

mod callers_support;

use std::fs;

use callers_support::{Machine, RUNTIME, stderr, stdout, until};

/// Podman with everything of its own in one directory, and an image called `busybox`.
struct Podman {
    machine: Machine,
}

impl Podman {
    fn new() -> Self {
        let machine = Machine::new();
        let path = machine.path().display();
        let containers = format!(
            "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"podling\"\n\
             [engine.runtimes]\npodling = [\"{}\"]\n",
            RUNTIME
        );
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\nrunroot = \"{path}/run\"\ngraphroot = \"{path}/graph\"\n"
        );
        fs::write(machine.path().join("containers.conf"), containers).expect("containers.conf");
        fs::write(machine.path().join("storage.conf"), storage).expect("storage.conf");
        let podman = Self { machine };
        let root = podman.machine.image_rootfs();
        podman.ok(&format!(
            "tar -C {} -c . | podman import -q - busybox",
            root.display()
        ));
        let runtime = podman.ok("podman info --format '{{.Host.OCIRuntime.Path}}'");
        assert_eq!(runtime, RUNTIME);
        podman
    }

    /// Runs a script that calls podman, which must work; gives what it printed.
    fn ok(&self, script: &str) -> String {
        self.machine.ok(&self.with_settings(script))
    }

    /// Runs a script that calls podman; gives its exit code, standard output and standard error.
    fn run(&self, script: &str) -> (i32, String, String) {
        let output = self.machine.run(&self.with_settings(script));
        let code = output.status.code().expect("an exit code");
        (code, stdout(&output), stderr(&output))
    }

    fn with_settings(&self, script: &str) -> String {
        let path = self.machine.path().display();
        format!(
            "export CONTAINERS_CONF={path}/containers.conf CONTAINERS_STORAGE_CONF={path}/storage.conf\n{script}"
        )
    }
}

#[test]
fn podman_runs_a_container_and_takes_its_output_and_exit_code() {
    let podman = Podman::new();
    let output = podman.ok("podman run --rm --network none busybox echo hello");
    assert_eq!(output, "hello");
    let (code, output, errors) =
        podman.run("podman run --rm --network none busybox sh -c 'echo out; echo err >&2; exit 7'");
    assert_eq!((code, output.as_str(), errors.as_str()), (7, "out", "err"));
    let input = podman.ok("echo in | podman run --rm -i --network none busybox cat");
    assert_eq!(input, "in");
    assert_eq!(podman.ok("podman ps --all --quiet"), "");
}

#[test]
fn podman_tells_a_program_that_is_missing_by_its_exit_code() {
    let podman = Podman::new();
    let (code, _, errors) = podman.run("podman run --rm --network none busybox missing");
    assert_eq!(code, 127, "{errors}");
    let (code, _, errors) = podman.run("podman run --rm --network none busybox /etc/passwd");
    assert_eq!(code, 126, "{errors}");
    podman.ok("podman run --detach --name c --network none busybox sleep 1000");
    let (code, _, errors) = podman.run("podman exec c missing");
    assert_eq!(code, 127, "{errors}");
}

#[test]
fn podman_shares_the_hosts_namespaces_where_asked() {
    let podman = Podman::new();
    let links = podman.ok(
        "podman run --rm --network host --pid host --ipc host --uts host busybox \
         sh -c 'for n in net pid ipc uts; do stat -L -c %i /proc/self/ns/$n; done'
         for n in net pid ipc uts; do stat -L -c %i /proc/self/ns/$n; done",
    );
    let inodes: Vec<&str> = links.lines().collect();
    let (inside, outside) = inodes.split_at(inodes.len() / 2);
    assert_eq!(inside, outside);
}

#[test]
fn podman_execs_with_a_terminal_and_without() {
    let podman = Podman::new();
    podman.ok("podman run --detach --name c --network none --env A=1 busybox sleep 1000");
    assert_eq!(podman.ok("podman exec c sh -c 'echo $A $B'"), "1");
    assert_eq!(
        podman.ok("podman exec --env B=2 c sh -c 'echo $A $B'"),
        "1 2"
    );
    assert_eq!(podman.ok("echo in | podman exec -i c cat"), "in");
    assert_eq!(podman.ok("podman exec --user 5:6 c id -u"), "5");
    let (code, _, _) = podman.run("podman exec c sh -c 'exit 9'");
    assert_eq!(code, 9);
    // `script` gives podman a terminal of its own.
    let terminal = podman.ok(
        "script --quiet --command 'stty rows 33 cols 77; podman exec -it c sh -c \"tty; test -t 0 && echo terminal\"' /dev/null",
    );
    assert!(terminal.contains("/dev/pts/0"), "{terminal}");
    assert!(terminal.contains("terminal"), "{terminal}");
    assert_eq!(podman.ok("podman top c pid args | grep -c sleep"), "1");
}

#[test]
fn podman_runs_pods_whose_containers_share_namespaces() {
    let podman = Podman::new();
    podman.ok("podman pod create --name pod --network none --hostname together");
    podman.ok("podman run --detach --pod pod --name first busybox sleep 1000");
    let host_name = podman.ok("podman run --rm --pod pod busybox hostname");
    assert_eq!(host_name, "together");
    let same = podman.ok(
        "podman exec first stat -L -c %i /proc/self/ns/net /proc/self/ns/ipc /proc/self/ns/uts
         podman run --rm --pod pod busybox stat -L -c %i /proc/self/ns/net /proc/self/ns/ipc /proc/self/ns/uts",
    );
    let inodes: Vec<&str> = same.lines().collect();
    assert_eq!(inodes[..3], inodes[3..]);
    podman.ok("podman pod pause pod");
    assert_eq!(
        podman.ok("podman pod inspect pod --format '{{.State}}'"),
        "Paused"
    );
    podman.ok("podman pod unpause pod");
    podman.ok("podman pod stop --time 0 pod");
    podman.ok("podman pod start pod");
    podman.ok("podman pod rm --force --time 0 pod");
    assert_eq!(podman.ok("podman ps --all --quiet"), "");
}

#[test]
fn podman_checks_health_by_exec() {
    let podman = Podman::new();
    podman.ok(
        "podman run --detach --name c --network none --health-cmd 'test -e /ok' --health-interval disable \
         busybox sleep 1000",
    );
    let (code, said, _) = podman.run("podman healthcheck run c");
    assert_ne!(code, 0);
    assert!(said.contains("unhealthy"), "{said}");
    podman.ok("podman exec c touch /ok");
    podman.ok("podman healthcheck run c");
    let status = podman.ok("podman inspect c --format '{{.State.Health.Status}}'");
    assert_eq!(status, "healthy");
}

#[test]
fn podman_limits_memory_cpu_and_processes() {
    let podman = Podman::new();
    let limits = podman.ok(
        "podman run --rm --network none --memory 64m --cpus 0.5 --pids-limit 20 busybox sh -c '
         cd /sys/fs/cgroup
         if [ -e memory.max ]; then cat memory.max pids.max; read quota period < cpu.max; echo $quota
         else cat memory/memory.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us; fi'",
    );
    assert_eq!(
        limits.lines().collect::<Vec<_>>(),
        ["67108864", "20", "50000"]
    );
    // A container that needs more memory than it has is killed.
    let (code, _, errors) = podman.run(
        "podman run --rm --network none --memory 8m --memory-swap 8m --tmpfs /t:size=64m,notmpcopyup busybox \
         sh -c 'cat /dev/zero > /t/file'",
    );
    assert_eq!(code, 137, "{errors}");
}

#[test]
fn podman_keeps_volumes_and_binds() {
    let podman = Podman::new();
    podman.ok("podman volume create data");
    podman
        .ok("podman run --rm --network none -v data:/data busybox sh -c 'echo kept > /data/file'");
    let kept = podman.ok("podman run --rm --network none -v data:/data:ro busybox cat /data/file");
    assert_eq!(kept, "kept");
    let (code, _, _) =
        podman.run("podman run --rm --network none -v data:/data:ro busybox touch /data/file");
    assert_ne!(code, 0, "a read-only volume was written");
    let bound = podman.ok("mkdir host; echo of the host > host/file
         podman run --rm --network none -v $PWD/host:/mnt:rslave busybox cat /mnt/file");
    assert_eq!(bound, "of the host");
    let inherited = podman.ok(
        "podman run --name holder --network none -v data:/data busybox true
         podman run --rm --network none --volumes-from holder busybox cat /data/file",
    );
    assert_eq!(inherited, "kept");
}

#[test]
fn podman_stops_kills_pauses_and_starts_again() {
    let podman = Podman::new();
    podman.ok("podman run --detach --name c --network none busybox sh -c 'trap \"exit 3\" TERM; sleep 1000 & wait'");
    podman.ok("podman pause c");
    assert_eq!(
        podman.ok("podman inspect c --format '{{.State.Status}}'"),
        "paused"
    );
    podman.ok("podman unpause c");
    podman.ok("podman stop --time 60 c");
    assert_eq!(
        podman.ok("podman inspect c --format '{{.State.ExitCode}}'"),
        "3"
    );
    podman.ok("podman start c");
    podman.ok("podman kill --signal KILL c");
    assert_eq!(podman.ok("podman wait c"), "137");
    podman.ok("podman restart --time 0 c");
    assert_eq!(podman.ok("podman ps --format '{{.Names}}'"), "c");
    podman.ok("podman rm --force --time 0 c");
}

#[test]
fn podman_gets_logs_events_and_statistics() {
    let podman = Podman::new();
    podman.ok("podman run --detach --name c --network none busybox sh -c 'echo line; sleep 1000'");
    until("the line is logged", || {
        podman.ok("podman logs c") == "line"
    });
    let usage = podman.ok("podman stats --no-stream --format '{{.PIDs}}' c");
    assert_eq!(usage, "1");
    assert!(
        podman
            .ok("podman events --stream=false")
            .contains("container start")
    );
    podman.ok("echo copied > file; podman cp file c:/file");
    assert_eq!(podman.ok("podman exec c cat /file"), "copied");
}

#[test]
fn podman_reduces_privileges() {
    let podman = Podman::new();
    let status = podman.ok(
        "podman run --rm --network none --user 1000:1000 --cap-drop all --security-opt no-new-privileges busybox \
         grep -E '^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status",
    );
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        let words = line.expect(name).split_whitespace();
        words.last().expect("a value").to_owned()
    };
    assert_eq!(field("Uid:"), "1000");
    assert_eq!(field("CapEff:"), "0000000000000000");
    assert_eq!(field("CapBnd:"), "0000000000000000");
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2");
}

#[test]
fn podman_makes_a_privileged_container() {
    let podman = Podman::new();
    let said = podman.ok(
        "podman run --rm --network none --privileged busybox sh -c 'mkdir /m; mount -t tmpfs none /m && echo mounted'",
    );
    assert_eq!(said, "mounted");
}
