//! Debian's podman as an ordinary user, with `--runtime podling-runtime`: podman makes itself root of a user namespace
//! that has the user's id and ranges of `/etc/subuid`, and calls the runtime there. That root has no rights in what
//! belongs to the host: its pid namespace, network and cgroups.
#![cfg(feature = "privileged-tests")]

mod callers_support;

use callers_support::{Machine, stderr, stdout};

/// Makes a user called alice, in the machine's mount namespace only, with a home for podman's settings. The runtime is
/// copied to where alice can execute it.
const ALICE: &str = r#"
set -e
mkdir home alice
{ echo "alice:x:1000:1000::$PWD/home:/bin/sh"; cat /etc/passwd; } > alice/passwd
{ echo alice:x:1000:; cat /etc/group; } > alice/group
echo alice:100000:65536 > alice/subuid
cp alice/subuid alice/subgid
for file in passwd group subuid subgid; do mount --bind "alice/$file" "/etc/$file"; done
mkdir -p /run/user/1000
cp "$RUNTIME" podling-runtime
chmod 755 podling-runtime
cat > containers.conf <<.
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "podling"
[engine.runtimes]
podling = ["$PWD/podling-runtime"]
.
printf '[storage]\ndriver = "vfs"\n' > storage.conf
chown -R 1000:1000 home /run/user/1000
"#;

/// Podman of an ordinary user, with an image called `busybox`.
struct Podman {
    machine: Machine,
}

impl Podman {
    /// Needs Debian's package uidmap beside those of the other callers.
    fn new() -> Self {
        let podman = Self {
            machine: Machine::new(),
        };
        let root = podman.machine.image_rootfs();
        podman.machine.ok(ALICE);
        podman.ok(&format!(
            "tar -C {} --owner 0 --group 0 -c . | podman import -q - busybox",
            root.display()
        ));
        podman
    }

    /// Runs a script as alice, which must work; gives what it printed.
    fn ok(&self, script: &str) -> String {
        let (code, said, errors) = self.run(script);
        assert_eq!(code, 0, "{script}: {errors}");
        said
    }

    /// Runs a script as alice; gives its exit code, standard output and standard error.
    fn run(&self, script: &str) -> (i32, String, String) {
        let path = self.machine.path().display();
        let output = self
            .machine
            .command(&["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"])
            .args(["--inh-caps=-all", "sh", "-c"])
            .arg(format!(
                "export HOME={path}/home XDG_RUNTIME_DIR=/run/user/1000 CONTAINERS_CONF={path}/containers.conf \
                 CONTAINERS_STORAGE_CONF={path}/storage.conf; cd; {script}"
            ))
            .output()
            .expect("sh");
        let code = output.status.code().expect("an exit code");
        (code, stdout(&output), stderr(&output))
    }
}

#[test]
fn an_ordinary_users_podman_runs_enters_stops_and_removes() {
    let podman = Podman::new();
    let (code, said, errors) =
        podman.run("podman run --rm --network none busybox sh -c 'id -u; exit 7'");
    assert_eq!((code, said.as_str()), (7, "0"), "{errors}");
    podman.ok(
        "podman run --detach --name c --network none --env A=1 busybox \
         sh -c 'trap \"exit 3\" TERM; sleep 1000 & wait'",
    );
    let map = podman.ok("podman exec c cat /proc/self/uid_map");
    let ids: Vec<&str> = map.split_whitespace().collect();
    assert_eq!(ids, ["0", "1000", "1", "1", "100000", "65536"]);
    assert_eq!(
        podman.ok("podman exec --env B=2 c sh -c 'echo $A $B'"),
        "1 2"
    );
    assert_eq!(podman.ok("podman exec --user 5:6 c id -u"), "5");
    let (code, _, _) = podman.run("podman exec c sh -c 'exit 9'");
    assert_eq!(code, 9);
    let (code, _, errors) = podman.run("podman exec c missing");
    assert_eq!(code, 127, "{errors}");
    let terminal = podman.ok("script --quiet --command 'podman exec -it c tty' /dev/null");
    assert!(terminal.contains("/dev/pts/0"), "{terminal}");
    podman.ok("podman stop --time 60 c");
    assert_eq!(
        podman.ok("podman inspect c --format '{{.State.ExitCode}}'"),
        "3"
    );
    podman.ok("podman start c");
    podman.ok("podman rm --force --time 0 c");
    assert_eq!(podman.ok("podman ps --all --quiet"), "");
}

#[test]
fn an_ordinary_users_containers_share_the_hosts_namespaces_and_are_entered() {
    let podman = Podman::new();
    for (namespace, options) in [
        ("net", "--network host"),
        ("pid", "--network none --pid host"),
    ] {
        podman.ok(&format!(
            "podman run --detach --name c {options} busybox sleep 1000"
        ));
        let said = podman.ok(&format!(
            "podman exec c stat -L -c %i /proc/self/ns/{namespace}; stat -L -c %i /proc/self/ns/{namespace}"
        ));
        let (inside, outside) = said.split_once('\n').expect("two lines");
        assert_eq!(inside, outside, "{options}");
        podman.ok("podman rm --force --time 0 c");
    }
}

#[test]
fn an_ordinary_user_keeps_its_id() {
    let podman = Podman::new();
    podman.ok(
        "mkdir shared; podman run --detach --name c --network none --userns keep-id -v $PWD/shared:/shared \
         busybox sleep 1000",
    );
    assert_eq!(podman.ok("podman exec c id -u"), "1000");
    assert_eq!(podman.ok("podman exec --user 0 c id -u"), "0");
    podman.ok("podman exec c touch /shared/file");
    assert_eq!(podman.ok("stat -c %u shared/file"), "1000");
    podman.ok("podman rm --force --time 0 c");
}

#[test]
fn an_ordinary_users_pods_share_their_namespaces() {
    let podman = Podman::new();
    podman.ok("podman pod create --name pod --network none --hostname together");
    podman.ok("podman run --detach --pod pod --name first busybox sleep 1000");
    assert_eq!(podman.ok("podman exec first hostname"), "together");
    // The runtime joins a pid namespace that it could not come back from.
    let processes = podman.ok("podman run --rm --pod pod --pid container:first busybox ps");
    assert!(processes.contains("sleep 1000"), "{processes}");
    podman.ok("podman pod rm --force --time 0 pod");
    assert_eq!(podman.ok("podman ps --all --quiet"), "");
}

#[test]
fn an_ordinary_users_containers_are_confined_and_have_devices() {
    let podman = Podman::new();
    let status = podman.ok(
        "podman run --rm --network none --read-only --cap-drop all --security-opt no-new-privileges busybox \
         grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status",
    );
    let words: Vec<&str> = status.split_whitespace().collect();
    assert_eq!(words[1], "0000000000000000");
    assert_eq!((words[3], words[5]), ("1", "2"));
    let number = podman.ok(
        "podman run --rm --network none --device /dev/zero:/dev/other busybox stat -c %t:%T /dev/other",
    );
    assert_eq!(number, "1:5");
    let mounted = podman.ok(
        "podman run --rm --network none --privileged busybox sh -c 'mkdir /m; mount -t tmpfs none /m && echo mounted'",
    );
    assert_eq!(mounted, "mounted");
}
