//! What the parts below the agent do on a machine with systemd and cgroup v2: their own privileged tests, and the
//! unit files.
#![cfg(feature = "vm")]

use std::path::{Path, PathBuf};
use std::process::Command;

use podling_vm_tests::image::Image;
use podling_vm_tests::machine::Machine;
use podling_vm_tests::payload::Payload;
use podling_vm_tests::workspace;

/// Builds the integration tests of a package and gives their names and executables.
fn test_binaries(package: &str, feature: &str, names: &[&str]) -> Vec<(String, PathBuf)> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .current_dir(workspace())
        .args(["test", "-p", package, "--features", feature, "--no-run"])
        .args(["--message-format", "json"]);
    for name in names {
        cargo.args(["--test", name]);
    }
    let output = cargo.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["kind"][0] == "test")
        .filter_map(|message| {
            let name = message["target"]["name"].as_str()?.to_owned();
            Some((name, PathBuf::from(message["executable"].as_str()?)))
        })
        .collect()
}

/// Runs test executables in the guest and shows what they say.
fn run_tests(machine: &mut Machine, names: &[String]) {
    for name in names {
        let result = machine
            .check(&format!("/payload/{name} --test-threads 2"))
            .unwrap();
        println!("--- {name} in the guest\n{result}");
        assert!(result.contains("test result: ok"), "{result}");
    }
}

#[test]
fn the_parts_work_with_systemd_and_cgroup_v2() {
    let payload = Payload::new().unwrap();
    let mut tests = test_binaries("podling-runtime", "privileged-tests", &["cgroup"]);
    tests.extend(test_binaries("podling-systemd", "systemd-tests", &["bus"]));
    assert_eq!(tests.len(), 2, "{tests:?}");
    for (name, executable) in &tests {
        payload.add_file(executable, name).unwrap();
    }
    let units = workspace().join("systemd/units");
    payload.add_directory(&units, "units").unwrap();
    let mut machine = Machine::boot(&Image::build().unwrap(), payload).unwrap();

    let mounts = machine.check("cat /proc/mounts").unwrap();
    assert!(mounts.contains("cgroup2 /sys/fs/cgroup"), "{mounts}");
    let names: Vec<String> = tests.into_iter().map(|(name, _)| name).collect();
    run_tests(&mut machine, &names);
    machine
        .check("! ls -d /sys/fs/cgroup/podling-test-*")
        .unwrap();
    check_unit_files(&mut machine, &units);
}

/// systemd's own tools find nothing to say about the unit files.
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
