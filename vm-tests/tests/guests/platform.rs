//! What the parts below the agent do on a machine with systemd, cgroup v2 and AppArmor: their own privileged tests, and
//! the unit files.

use std::path::Path;

use podling_vm_tests::image::Image;
use podling_vm_tests::machine::Machine;
use podling_vm_tests::payload::Payload;
use podling_vm_tests::suite::Suite;
use podling_vm_tests::workspace;

/// Tests that are not for the guest: those of engines that call the runtime, which want cgroup roots of their own, and
/// those of the documents.
const ELSEWHERE: [&str; 5] = [
    "callers_buildah",
    "callers_containerd",
    "callers_podman",
    "callers_podman_rootless",
    "conformance_table",
];

#[test]
fn the_parts_work_with_systemd_and_cgroup_v2() {
    // While another test has cargo build.
    let image = Image::build().unwrap();
    let suite = Suite::build(|it| {
        ["runtime", "systemd"].contains(&it.directory.as_str())
            && !ELSEWHERE.contains(&it.name.as_str())
    })
    .unwrap();
    let payload = Payload::new().unwrap();
    suite.add_to(&payload).unwrap();
    let units = workspace().join("systemd/units");
    payload.add_directory(&units, "units").unwrap();
    let mut machine = Machine::boot(&image, payload).unwrap();

    let mounts = machine.check("cat /proc/mounts").unwrap();
    assert!(mounts.contains("cgroup2 /sys/fs/cgroup"), "{mounts}");
    let modules = machine.check("cat /sys/kernel/security/lsm").unwrap();
    assert!(modules.contains("apparmor"), "{modules}");
    assert_eq!(suite.run(&mut machine).unwrap(), [""; 0]);
    machine
        .check("! ls -d /sys/fs/cgroup/podling-test-*")
        .unwrap();
    check_podman(&mut machine);
    check_unit_files(&mut machine, &units);
}

/// An image, a user, and podman's settings for both.
const PODMAN: &str = r#"set -e
mkdir -p /root/image/bin /etc/containers
cp /bin/busybox /root/image/bin
for applet in cat id sh sleep; do ln -s busybox /root/image/bin/$applet; done
tar -C /root/image --owner 0 --group 0 -c . > /var/tmp/image.tar
useradd --create-home alice
loginctl enable-linger alice
cat > /etc/containers/containers.conf <<.
[engine]
cgroup_manager = "systemd"
events_logger = "file"
runtime = "podling"
[engine.runtimes]
podling = ["/payload/podling-runtime"]
.
"#;

/// What a caller sees of a container in a scope of systemd's. `$manager` is `--system` or `--user`.
const CONTAINER: &str = r#"set -e
podman import -q /var/tmp/image.tar busybox > /dev/null
podman run --detach --name c --network none --memory 64m --pids-limit 20 busybox sleep 1000 > /dev/null
scope=libpod-$(podman inspect c --format '{{.Id}}').scope
systemctl $manager show -P MemoryMax $scope
systemctl $manager show -P TasksMax $scope
podman exec c cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max
podman exec c cat /proc/self/attr/current | sed 's/default-[0-9.]*/default/'
podman update --memory 96m c > /dev/null
systemctl $manager show -P MemoryMax $scope
podman exec c cat /sys/fs/cgroup/memory.max
podman pause c > /dev/null
podman inspect c --format '{{.State.Status}}'
podman unpause c > /dev/null
podman stats --no-stream --format '{{.PIDs}}' c
podman rm --force --time 0 c > /dev/null
systemctl $manager is-active $scope || true
"#;

/// Debian's podman has its containers' cgroups made by systemd, as root and as an ordinary user. The host's callers_podman
/// tests cannot try that.
fn check_podman(machine: &mut Machine) {
    machine.check(PODMAN).unwrap();
    let user = r#"alice=$(id -u alice)
until [ -S /run/user/$alice/bus ]; do sleep 0.2; done
export HOME=/home/alice XDG_RUNTIME_DIR=/run/user/$alice DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/$alice/bus
cd
exec setpriv --reuid=alice --regid=alice --init-groups --inh-caps=-all \
    systemd-run --user --scope --quiet sh -c "$script""#;
    // root's podman loads a profile for its containers; only root can.
    let root = (
        "--system",
        "sh -c \"$script\"",
        "containers-default (enforce)",
    );
    for (manager, run, profile) in [root, ("--user", user, "unconfined")] {
        let said = machine
            .check(&format!(
                "export manager={manager}\nscript=$(cat <<'END'\n{CONTAINER}END\n)\n{run}"
            ))
            .unwrap();
        let lines: Vec<&str> = said.lines().collect();
        let before = ["67108864", "20", "67108864", "20"];
        let after = ["100663296", "100663296", "paused", "1", "inactive"];
        assert_eq!(
            lines,
            [&before[..], &[profile], &after[..]].concat(),
            "{manager}: {said}"
        );
    }
}

/// systemd's own tools, and AppArmor's, find nothing to say about the files.
fn check_unit_files(machine: &mut Machine, units: &Path) {
    // The programs that the units name must be there; what they do is not tried here.
    machine
        .check("ln -s /bin/true /usr/bin/podling && cp /payload/units/*.service /payload/units/*.slice /etc/systemd/system")
        .unwrap();
    for unit in std::fs::read_dir(units).unwrap().flatten() {
        let name = unit.file_name().to_string_lossy().into_owned();
        let said = match unit.path().extension().and_then(|it| it.to_str()) {
            Some("service" | "slice") => {
                machine.check(&format!("systemd-analyze verify --man=no /etc/systemd/system/{name} 2>&1"))
            }
            Some("tmpfiles") => machine.check(
                "systemd-sysusers /payload/units/podling.sysusers >/dev/null 2>&1 && \
                 systemd-tmpfiles --create /payload/units/podling.tmpfiles 2>&1",
            ),
            Some("apparmor") => machine.check(&format!(
                "apparmor_parser --skip-kernel-load --skip-cache /payload/units/{name} 2>&1"
            )),
            Some("sysusers") => machine.check(
                "systemd-sysusers /payload/units/podling.sysusers >/dev/null 2>&1 && getent group podling >/dev/null",
            ),
            _ => panic!("{name} is tried by nothing"),
        };
        assert_eq!(said.unwrap().trim(), "", "{name}");
    }
    let owner = machine.check("stat -c %U:%G:%a /run/podling").unwrap();
    assert_eq!(owner.trim(), "root:podling:750");
}
