//! A machine of another make: SELinux instead of AppArmor, in force, and what systemd calls the hybrid layout of cgroups,
//! version 1 with a v2 hierarchy of systemd's own beside it. One boot shows both: they do not touch each other.
//!
//! Of the runtime's own tests those run here that labels or the layout make a difference to. All others run on the host,
//! also in a hybrid layout where the host has one, and in the guest of `platform`: the lives of containers
//! (`oci_lifecycle`) among them, of which `check_pods` shows here what labels and cgroups could spoil.

use std::path::Path;
use std::time::Duration;

use podling_vm_tests::image::Image;
use podling_vm_tests::machine::Machine;
use podling_vm_tests::payload::Payload;
use podling_vm_tests::say;
use podling_vm_tests::suite::Suite;

use crate::installation;

const PARAMETERS: &str = "security=selinux enforcing=0 systemd.unified_cgroup_hierarchy=0";

/// For what takes seconds on real hardware; the guest is emulated, and its host is busy.
const SOON: Duration = Duration::from_secs(240);

/// Tests of the runtime that such a machine makes a difference to.
const TESTS: [&str; 3] = ["cgroup", "oci_labels", "oci_systemd"];

/// Puts the tests' policy in force. Until then SELinux knows no labels, and the runtime says so.
const LOAD_POLICY: &str = "set -e
cd /tmp
tr -d '\\0' </proc/self/attr/current | grep -qx kernel
secilc --output policy --filecontext /dev/null /payload/policy.cil
cat policy > /sys/fs/selinux/load
echo 1 > /sys/fs/selinux/enforce
cat /proc/self/attr/current";

/// What pods are doing, for the message of a failed test.
const REPORT: &str = "podling get pods -A -o wide; podling why hello; journalctl -u podling --no-pager -o cat | tail -40
tail -n 20 /run/podling/pods/*/supervisor.log; systemd-cgls --no-pager; dmesg | tail -15";

#[test]
fn the_product_works_with_selinux_and_with_the_hybrid_layout() {
    let suite =
        Suite::build(|it| it.directory == "runtime" && TESTS.contains(&it.name.as_str())).unwrap();
    let payload = Payload::new().unwrap();
    suite.add_to(&payload).unwrap();
    installation::add_to(&payload);
    let policy = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/policy.cil");
    payload.add_file(&policy, "policy.cil").unwrap();
    let image = Image::build().unwrap();
    let mut machine = Machine::boot_with_parameters(&image, payload, PARAMETERS).unwrap();

    let mounts = machine.check("cat /proc/mounts").unwrap();
    assert!(
        mounts.contains("/sys/fs/cgroup/unified cgroup2"),
        "{mounts}"
    );
    assert!(mounts.contains("/sys/fs/cgroup/memory cgroup "), "{mounts}");
    check_without_policy(&mut machine);
    let label = machine.check(LOAD_POLICY).unwrap();
    assert!(label.contains("system_u:system_r:kernel_t:s0"), "{label}");
    assert_eq!(suite.run(&mut machine).unwrap(), [""; 0]);
    check_pods(&mut machine);
}

/// The kernel takes any label while it has no policy, and means nothing by it: the runtime refuses one.
fn check_without_policy(machine: &mut Machine) {
    let refused = machine
        .run(
            r#"mkdir -p /tmp/bundle/rootfs && cd /tmp/bundle && /payload/podling-runtime spec
sed -i 's|"terminal": true|"terminal": false|
s|"process": {|"process": {"selinuxLabel": "system_u:system_r:podling_test_t:s0",|' config.json
/payload/podling-runtime run labelled"#,
        )
        .unwrap();
    assert_ne!(refused.code, 0);
    let said = refused.text;
    assert!(said.contains("process.selinuxLabel"), "{said}");
    assert!(said.contains("without a policy"), "{said}");
}

/// With `cgroupDriver: auto` pods are directories here, in all hierarchies and in systemd's two.
const DIRECTORIES: &str = "set -e
cd /sys/fs/cgroup
pod=$(cd memory && ls -d podling/burstable/pod*)
test $(cat memory/$pod/web/memory.limit_in_bytes) = 209715200
test $(cat cpu,cpuacct/$pod/web/cpu.cfs_quota_us) = 30000
pid=$(head -n 1 memory/$pod/web/cgroup.procs)
grep -qx 0::/$pod/web /proc/$pid/cgroup
grep -q :name=systemd:/$pod/web /proc/$pid/cgroup";

/// The same pod in a scope.
const WITH_SCOPES: &str = "set -e
echo 'cgroupDriver: systemd' >/etc/podling/config.yaml
systemctl start podling.service";

/// A pod's scope is known to systemd, and the limits are in the hierarchies of version 1.
const SCOPE: &str = "set -e
scope=$(systemctl list-units --plain --no-legend --state=active 'podling-pod*.scope' | cut -d ' ' -f 1)
test -n \"$scope\"
systemctl daemon-reload
systemctl -q is-active $scope
cd /sys/fs/cgroup
test $(cat memory/podling.slice/$scope/pod/web/memory.limit_in_bytes) = 209715200
test $(cat cpu,cpuacct/podling.slice/$scope/pod/web/cpu.cfs_quota_us) = 30000
pid=$(head -n 1 memory/podling.slice/$scope/pod/web/cgroup.procs)
grep -qx 0::/podling.slice/$scope/pod/web /proc/$pid/cgroup";

/// No process and no scope of pods is left, and no cgroup of a container. Empty ones of scopes stay in the hierarchies that
/// systemd does not use, until the agent takes the pod away.
const NOTHING_LEFT: &str = "set -e
if pgrep -x podling-pod; then exit 1; fi
test -z \"$(systemctl list-units --no-legend --state=active 'podling-pod*.scope')\"
test -z \"$(find /sys/fs/cgroup -type d -name web)\"";

/// The agent takes the pod away, with all cgroups that its scope had.
const TAKEN_AWAY: &str = "set -e
rm -f /etc/podling/manifests/*
systemctl start podling.service
test -z \"$(find /sys/fs/cgroup -type d -name 'podling-pod*.scope')\"";

/// Pods have their limits with either driver, go on without the agent, and leave nothing.
fn check_pods(machine: &mut Machine) {
    let install = installation::script(&["hello"]);
    let is_ready = "podling get pods -o json 2>/dev/null | grep -q '\"ready\": *true'";
    let stop = "systemctl stop podling.service && pgrep -x podling-pod";
    let end = "systemctl stop podling-pods.service";
    for (what, script) in [
        ("the installation", install.as_str()),
        ("the pod is ready", is_ready),
        ("its directories and limits", DIRECTORIES),
        ("it goes on without the agent", stop),
        ("its end", end),
        ("nothing is left", NOTHING_LEFT),
        ("an agent with scopes", WITH_SCOPES),
        ("the pod is ready in a scope", is_ready),
        ("its scope and limits", SCOPE),
        ("it goes on without the agent", stop),
        ("its end", end),
        ("nothing is left", NOTHING_LEFT),
        ("its cgroups are gone", TAKEN_AWAY),
    ] {
        say(what);
        if let Err(error) = machine.wait_for(what, SOON, script) {
            let report = machine.run(REPORT).unwrap();
            panic!("{error}\n--- the node\n{}", report.text);
        }
    }
}
