//! Scopes of the systemd that runs the machine, with cgroup v2. Elsewhere these tests say so and pass: the virtual machine
//! tests run them where one does.
#![cfg(feature = "privileged-tests")]
#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use podling_systemd::{Bus, Error, Property, PropertyValue, Scope, Systemd};

fn cpu_weight(weight: u64) -> [Property; 1] {
    [Property::new("CPUWeight", PropertyValue::U64(weight))]
}

fn scope<'a>(name: &'a str, pids: &'a [u32], properties: &'a [Property]) -> Scope<'a> {
    Scope {
        name,
        slice: "podlingtest.slice",
        description: "A test of Podling's",
        pids,
        stop_timeout: Duration::from_secs(5),
        before: &["multi-user.target"],
        properties,
    }
}

fn sleeper() -> Child {
    Command::new("sleep").arg("1000").spawn().unwrap()
}

fn no_systemd() -> bool {
    let needed = ["/run/systemd/system", "/sys/fs/cgroup/cgroup.controllers"];
    let none = !needed.iter().all(|path| Path::new(path).exists());
    if none {
        eprintln!("skipped: systemd does not run this machine with cgroup v2");
    }
    none
}

async fn connect() -> Option<Systemd> {
    if no_systemd() {
        return None;
    }
    let systemd = Systemd::connect().await.unwrap();
    Some(systemd.expect("systemd runs the machine"))
}

#[tokio::test]
async fn a_scope_holds_its_process_and_ends_with_it() {
    let Some(systemd) = connect().await else {
        return;
    };
    let mut child = sleeper();
    let name = "podlingtest-one.scope";
    let pids = [child.id()];
    let path = systemd
        .start_scope(&scope(name, &pids, &cpu_weight(35)))
        .await
        .unwrap();
    assert!(
        path.0.ends_with(format!("podlingtest.slice/{name}")),
        "{path:?}"
    );
    assert_eq!(
        systemd.scope_path(name).await.unwrap().as_ref(),
        Some(&path)
    );
    let weight =
        || std::fs::read_to_string(format!("/sys/fs/cgroup{}/cpu.weight", path.0.display()));
    assert_eq!(weight().unwrap().trim(), "35");
    systemd.set_properties(name, &cpu_weight(59)).await.unwrap();
    assert_eq!(weight().unwrap().trim(), "59");
    let own = std::fs::read_to_string(format!("/proc/{}/cgroup", child.id())).unwrap();
    assert!(own.contains(path.0.to_str().unwrap()), "{own}");

    let again = systemd
        .start_scope(&scope(name, &pids, &cpu_weight(35)))
        .await;
    assert!(matches!(again, Err(Error::Exists { .. })), "{again:?}");

    systemd.stop_scope(name).await.unwrap();
    assert!(!child.wait().unwrap().success());
    assert_eq!(systemd.scope_path(name).await.unwrap(), None);
    systemd.stop_scope(name).await.unwrap();
}

#[tokio::test]
async fn a_scope_without_processes_is_refused() {
    let Some(systemd) = connect().await else {
        return;
    };
    let empty = scope("podlingtest-empty.scope", &[], &[]);
    assert!(systemd.start_scope(&empty).await.is_err());
}

#[tokio::test]
async fn a_scope_whose_process_was_killed_can_be_made_again() {
    let Some(systemd) = connect().await else {
        return;
    };
    let name = "podlingtest-again.scope";
    for _ in 0..3 {
        let mut child = sleeper();
        systemd
            .start_scope(&scope(name, &[child.id()], &[]))
            .await
            .unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        while systemd.scope_path(name).await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// As the OCI command does it: no asynchronous runtime, and one thread afterwards.
#[test]
fn a_scope_can_be_made_without_a_runtime_of_the_callers() {
    if no_systemd() {
        return;
    }
    let mut child = sleeper();
    let name = "podlingtest-blocking.scope";
    let pids = [child.id()];
    let properties = [
        Property::new("MemoryMax", PropertyValue::U64(64 << 20)),
        Property::new("AllowedCPUs", PropertyValue::Bytes(vec![1])),
    ];
    let own_scope = scope(name, &pids, &properties);
    let path = podling_systemd::blocking::start_scope(Bus::System, &own_scope).unwrap();
    let file = |name: &str| {
        let path = Path::new("/sys/fs/cgroup")
            .join(path.strip_prefix("/").unwrap())
            .join(name);
        std::fs::read_to_string(path).unwrap().trim().to_owned()
    };
    assert_eq!(file("memory.max"), (64 << 20).to_string());
    assert_eq!(file("cpuset.cpus"), "0");
    let more = [Property::new("TasksMax", PropertyValue::U64(44))];
    podling_systemd::blocking::set_properties(Bus::System, name, &more).unwrap();
    assert_eq!(file("pids.max"), "44");
    podling_systemd::blocking::stop_scope(Bus::System, name).unwrap();
    assert!(!child.wait().unwrap().success());
}
