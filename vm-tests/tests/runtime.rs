//! The runtime's tests of cgroups, on a kernel and a systemd with cgroup v2.
#![cfg(feature = "vm")]

use std::path::PathBuf;
use std::process::Command;

use podling_vm_tests::image::Image;
use podling_vm_tests::machine::Machine;
use podling_vm_tests::payload::Payload;
use podling_vm_tests::workspace;

/// Builds a test binary of the runtime and says where it is.
fn test_binary(name: &str) -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .current_dir(workspace())
        .args([
            "test",
            "-p",
            "podling-runtime",
            "--features",
            "privileged-tests",
            "--no-run",
        ])
        .args(["--test", name, "--message-format", "json"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .expect("cargo names the test's executable")
}

#[test]
fn cgroup_v2_does_what_the_runtime_asks() {
    let payload = Payload::new().unwrap();
    payload.add_file(&test_binary("cgroup"), "cgroup").unwrap();
    let mut machine = Machine::boot(&Image::build().unwrap(), payload).unwrap();

    let mounts = machine.check("cat /proc/mounts").unwrap();
    assert!(mounts.contains("cgroup2 /sys/fs/cgroup"), "{mounts}");
    let result = machine.check("/payload/cgroup --test-threads 1").unwrap();
    assert!(result.contains("test result: ok"), "{result}");
    println!("{result}");
    machine
        .check("! ls -d /sys/fs/cgroup/podling-test-*")
        .unwrap();
}
