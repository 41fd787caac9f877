//! The whole product on a machine with systemd, cgroup v2 and AppArmor, seen from outside: installed as a package would,
//! driven by its unit files, its manifests and its command line.

use std::time::Duration;

use podling_vm_tests::image::Image;
use podling_vm_tests::machine::Machine;
use podling_vm_tests::payload::Payload;
use podling_vm_tests::say;
use serde_json::Value;

use crate::installation;

/// For what takes seconds on real hardware; the guest is emulated, and its host is busy.
const SOON: Duration = Duration::from_secs(240);

/// A guest with Podling in it.
struct Node {
    machine: Machine,
}

/// One container's status, as `podling get pods -o json` tells it.
#[derive(Debug, Clone, PartialEq)]
struct Seen {
    uid: String,
    address: String,
    restarts: u64,
    started_at: String,
    last_reason: String,
    ready: bool,
}

impl Node {
    fn check(&mut self, script: &str) -> String {
        match self.machine.check(script) {
            Ok(text) => text.trim().to_owned(),
            Err(error) => self.give_up(&error.to_string()),
        }
    }

    fn wait_for(&mut self, what: &str, script: &str) {
        if let Err(error) = self.machine.wait_for(what, SOON, script) {
            self.give_up(&error.to_string());
        }
    }

    /// Fails the test with what the node can tell about it.
    fn give_up(&mut self, error: &str) -> ! {
        let report = self.machine.run(
            "podling get pods -A -o wide; podling status; podling why hello; systemctl status podling --no-pager
             journalctl -u podling --no-pager -o cat | tail -60; tail -n 20 /run/podling/pods/*/supervisor.log
             systemd-cgls --no-pager /podling.slice; dmesg | tail -15",
        );
        let report = report.map_or_else(|error| error.to_string(), |report| report.text);
        panic!("{error}\n--- the node\n{report}");
    }

    fn pods(&mut self) -> Vec<Value> {
        // Without the agent it says so on standard error.
        let json = self.check("podling get pods -A -o json 2>/dev/null");
        let list: Value = serde_json::from_str(&json).unwrap();
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// A pod's first container.
    fn seen(&mut self, pod: &str) -> Option<Seen> {
        let pods = self.pods();
        let pod = pods.iter().find(|it| it["metadata"]["name"] == pod)?;
        let container = &pod["status"]["containerStatuses"][0];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Some(Seen {
            uid: text(&pod["metadata"]["uid"]),
            address: text(&pod["status"]["podIP"]),
            restarts: container["restartCount"].as_u64()?,
            started_at: text(&container["state"]["running"]["startedAt"]),
            last_reason: text(&container["lastState"]["terminated"]["reason"]),
            ready: container["ready"] == true,
        })
    }

    /// Waits until a pod's first container is as wanted.
    fn wait_until(&mut self, pod: &str, what: &str, wanted: impl Fn(&Seen) -> bool) -> Seen {
        let started = std::time::Instant::now();
        loop {
            let seen = self.seen(pod);
            if let Some(seen) = seen.clone().filter(|it| wanted(it)) {
                return seen;
            }
            if started.elapsed() > SOON {
                self.give_up(&format!(
                    "waited too long for {pod}: {what}; it is {seen:?}"
                ));
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    fn wait_ready(&mut self, pod: &str) -> Seen {
        self.wait_until(pod, "ready", |it| it.ready && !it.started_at.is_empty())
    }

    fn agent_pid(&mut self) -> String {
        self.check("systemctl show -P MainPID podling.service")
    }
}

fn boot() -> Node {
    let payload = Payload::new().unwrap();
    installation::add_to(&payload);
    let machine = Machine::boot(&Image::build().unwrap(), payload).unwrap();
    let mut node = Node { machine };
    node.check(&installation::script(&["hello", "sidecar"]));
    node
}

/// Event by event of a node's life, in one boot: an emulated machine takes a minute for it.
#[test]
fn a_node_lives_through_what_happens_to_it() {
    let mut node = boot();

    say("pods come up");
    let hello = node.wait_ready("hello");
    node.wait_ready("sidecar");
    say("a pod is a scope with its limits");
    scopes_and_limits(&mut node, &hello);
    say("a pod has the profiles of AppArmor that it asks for");
    app_armor(&mut node);
    say("a memory hog is killed alone");
    memory_hog(&mut node);
    say("a failed liveness probe restarts");
    liveness(&mut node);
    say("the agent is killed, the pods go on");
    agent_killed(&mut node);
    say("the agent is stopped, the pods go on and are restarted");
    agent_stopped(&mut node);
    say("the pods are stopped");
    pods_stopped(&mut node);
    say("the machine reboots");
    reboot(&mut node);
}

/// The limits of the manifest are in the kernel's files, and systemd knows the pod as a delegated scope.
fn scopes_and_limits(node: &mut Node, hello: &Seen) {
    let unit = format!("podling-pod{}.scope", hello.uid);
    let show = |property: &str| format!("systemctl show -P {property} {unit}");
    let path = node.check(&show("ControlGroup"));
    assert_eq!(path, format!("/podling.slice/{unit}"));
    assert_eq!(node.check(&show("Delegate")), "yes");
    assert_eq!(node.check(&show("ActiveState")), "active");
    assert_eq!(node.check(&show("Slice")), "podling.slice");
    for (file, value) in [
        // Beside other pods' scopes: 200m is 204 shares.
        ("cpu.weight", "29"),
        ("pod/web/memory.max", "209715200"),
        ("pod/web/cpu.max", "30000 100000"),
        // 200m is 204 shares.
        ("pod/web/cpu.weight", "29"),
        ("pod/web/memory.oom.group", "1"),
        ("pod/memory.oom.group", "0"),
    ] {
        let found = node.check(&format!("cat /sys/fs/cgroup{path}/{file}"));
        assert_eq!(found, value, "{file}");
    }
    let supervisor = node.check(&format!(
        "cat /proc/$(head -n 1 /sys/fs/cgroup{path}/supervisor/cgroup.procs)/comm"
    ));
    assert_eq!(supervisor, "podling-pod");
    // The agent's own cgroup holds no pod.
    let agent =
        node.check("cat /sys/fs/cgroup$(systemctl show -P ControlGroup podling)/cgroup.procs");
    assert_eq!(agent, node.agent_pid());
}

/// One container with the default profile, one whose profile an annotation names as before Kubernetes 1.30, and one whose
/// profile nobody loaded.
const CONFINED: &str = "set -e
install -D -m 644 /payload/units/podling-default.apparmor /etc/apparmor.d/podling-default
apparmor_parser --replace /etc/apparmor.d/podling-default
echo 'profile podling-other { file, network, capability, signal, }' | apparmor_parser --replace
cat >/etc/podling/manifests/confined.yaml <<END
apiVersion: v1
kind: Pod
metadata:
  name: confined
  annotations:
    container.apparmor.security.beta.kubernetes.io/annotated: localhost/podling-other
spec:
  terminationGracePeriodSeconds: 1
  securityContext:
    appArmorProfile: {type: RuntimeDefault}
  containers:
  - name: web
    image: podling.local/demo:latest
    args: [serve, --port, '8080']
  - name: annotated
    image: podling.local/demo:latest
    args: [serve, --port, '8082']
  - name: refused
    image: podling.local/demo:latest
    args: [serve, --port, '8081']
    securityContext:
      appArmorProfile: {type: Localhost, localhostProfile: podling-absent}
END";

/// A pod without the field is not confined; one with it, or with the annotation, is, or does not start and says why.
fn app_armor(node: &mut Node) {
    node.check(CONFINED);
    node.wait_for(
        "confined containers beside one that is not",
        "set -e
labels=$(for pid in $(cat /sys/fs/cgroup/podling.slice/*/pod/*/cgroup.procs); do cat /proc/$pid/attr/current; done)
echo \"$labels\" | grep -qx 'podling-default (enforce)'
echo \"$labels\" | grep -qx 'podling-other (enforce)'
echo \"$labels\" | grep -qx unconfined",
    );
    node.wait_for(
        "the reason why the other does not start",
        "podling get pods -o json 2>/dev/null | grep 'process.apparmorProfile' | grep 'podling-absent.* is not loaded'",
    );
    node.check("rm /etc/podling/manifests/confined.yaml");
    node.wait_for(
        "its end",
        "! podling get pods -o json 2>/dev/null | grep -q '\"confined\"'",
    );
}

fn memory_hog(node: &mut Node) {
    let other = node.wait_ready("sidecar");
    let hello = node.wait_ready("hello");
    // The server dies before it has answered.
    node.machine
        .run(&format!(
            "curl -s -m 60 http://{}:8080/fill-memory",
            hello.address
        ))
        .unwrap();
    let after = node.wait_until("hello", "killed and restarted", |it| {
        it.restarts > hello.restarts && it.ready
    });
    assert_eq!(after.last_reason, "OOMKilled");
    assert_eq!(
        node.wait_ready("sidecar"),
        other,
        "the other pod is left alone"
    );
}

fn liveness(node: &mut Node) {
    let before = node.wait_ready("hello");
    node.check(&format!(
        "curl -s -m 60 http://{}:8080/health/off",
        before.address
    ));
    node.wait_until("hello", "restarted by its probe", |it| {
        it.restarts > before.restarts && it.ready
    });
}

fn agent_killed(node: &mut Node) {
    let before = (node.wait_ready("hello"), node.wait_ready("sidecar"));
    let pid = node.agent_pid();
    node.check(&format!("kill -KILL {pid}"));
    node.wait_for(
        "another agent",
        &format!("pid=$(systemctl show -P MainPID podling.service); [ $pid -ne 0 ] && [ $pid -ne {pid} ] && systemctl -q is-active podling"),
    );
    let after = (node.wait_ready("hello"), node.wait_ready("sidecar"));
    assert_eq!(after, before, "the same containers since the same time");
}

/// `systemctl stop podling` leaves the pods, and they are still restarted and shown.
fn agent_stopped(node: &mut Node) {
    let before = node.wait_ready("hello");
    node.check("systemctl stop podling.service");
    assert_eq!(
        node.check("systemctl is-active podling.service || true"),
        "inactive"
    );
    assert_eq!(
        node.wait_until("hello", "shown without the agent", |it| it.restarts
            == before.restarts)
            .started_at,
        before.started_at
    );
    node.machine
        .run(&format!(
            "curl -s -m 60 http://{}:8080/crash",
            before.address
        ))
        .unwrap();
    let crashed = node.wait_until("hello", "restarted without the agent", |it| {
        it.restarts > before.restarts && !it.started_at.is_empty()
    });
    node.check("systemctl start podling.service");
    let after = node.wait_ready("hello");
    assert_eq!(
        (after.uid, after.restarts, after.started_at),
        (crashed.uid, crashed.restarts, crashed.started_at)
    );
}

/// `systemctl stop podling-pods` ends them gracefully, and the agent first.
fn pods_stopped(node: &mut Node) {
    node.check("systemctl stop podling-pods.service");
    assert_eq!(
        node.check("systemctl is-active podling.service || true"),
        "inactive"
    );
    node.wait_for(
        "no scope of a pod",
        "[ -z \"$(systemctl list-units --no-legend --state=active 'podling-pod*.scope')\" ]",
    );
    node.check("! pgrep -x podling-pod");
    node.check("systemctl start podling.service");
    node.wait_ready("hello");
    node.wait_ready("sidecar");
}

fn reboot(node: &mut Node) {
    let before = node.wait_ready("hello");
    if let Err(error) = node.machine.reboot() {
        node.give_up(&error.to_string());
    }
    node.wait_for("the agent", "systemctl -q is-active podling.service");
    let after = node.wait_ready("hello");
    node.wait_ready("sidecar");
    assert_eq!(after.uid, before.uid, "a pod keeps its identity");
}
