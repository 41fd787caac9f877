//! runtime-spec config-linux.md, section "Network Devices", on real containers and veth devices.
#![cfg(feature = "privileged-tests")]

mod oci_support;

use std::process::Command;

use oci_spec::runtime::LinuxNetDevice;
use oci_support::{Bundle, stderr, stdout};

/// `ip` in this test's network namespace.
fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("Debian's package iproute2");
    assert!(output.status.success(), "{arguments}: {}", stderr(&output));
    stdout(&output)
}

/// A container with a veth device `host0` whose other end stays here.
fn with_device(script: &str, name: Option<&str>) -> Bundle {
    let mut bundle = Bundle::sh(script);
    ip("link add host0 mtu 1400 address 02:00:00:00:00:07 type veth peer name peer0");
    ip("addr add 10.9.8.7/24 dev host0");
    ip("addr add fd00::7/64 dev host0 nodad");
    ip("addr add 10.9.9.9/32 dev host0 scope link");
    ip("link set host0 up");
    ip("link set peer0 up");
    let mut device = LinuxNetDevice::default();
    device.set_name(name.map(str::to_owned));
    bundle
        .linux()
        .set_net_devices(Some([("host0".to_owned(), device)].into()));
    bundle
}

const SHOW: &str = "cat /proc/net/dev | grep -o '[a-z]*[0-9]:'; cat /sys/class/net/*[0-9]/mtu \
                    /sys/class/net/*[0-9]/address /sys/class/net/*[0-9]/flags; cat /proc/net/fib_trie \
                    /proc/net/if_inet6";

#[test]
fn a_device_moves_with_its_name_addresses_and_settings() {
    let bundle = with_device(SHOW, None);
    let out = bundle.run();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[..3], ["host0:", "1400", "02:00:00:00:00:07"], "{out}");
    let flags = u32::from_str_radix(lines[3].trim_start_matches("0x"), 16).expect("flags");
    assert_eq!(flags & 1, 1, "it is up");
    assert!(out.contains("10.9.8.7"), "{out}");
    assert!(out.contains("fd000000000000000000000000000007"), "{out}");
    assert!(
        !out.contains("10.9.9.9"),
        "an address of the link only: {out}"
    );
    assert!(
        !ip("link show").contains("host0"),
        "it is not here any more"
    );
}

#[test]
fn a_device_gets_another_name() {
    let bundle = with_device(SHOW, Some("net7"));
    assert!(bundle.run().starts_with("net7:\n1400"));
    let bundle = with_device(SHOW, Some("eth%d"));
    assert!(bundle.run().starts_with("eth0:\n1400"));
}

#[test]
fn a_name_that_is_taken_is_refused() {
    let mut bundle = with_device("true", Some("lo"));
    let message = bundle.run_fails();
    assert!(
        message.contains("host0") && message.contains("File exists"),
        "{message}"
    );
    assert!(ip("addr show host0").contains("10.9.8.7/24"));
    bundle.linux().set_net_devices(Some(
        [("nothing0".to_owned(), LinuxNetDevice::default())].into(),
    ));
    let message = bundle.run_fails();
    assert!(
        message.contains("nothing0") && message.contains("No such device"),
        "{message}"
    );
    // The loopback device cannot leave its namespace.
    let mut device = LinuxNetDevice::default();
    device.set_name(Some("other0".to_owned()));
    bundle
        .linux()
        .set_net_devices(Some([("lo".to_owned(), device)].into()));
    let message = bundle.run_fails();
    assert!(message.contains("network device lo"), "{message}");
}

#[test]
fn a_container_that_cannot_be_made_gives_its_devices_back() {
    let mut bundle = with_device("true", Some("net7"));
    bundle.args(&["/bin/nothing"]);
    bundle.run_fails();
    let shown = ip("addr show host0");
    for kept in [
        "10.9.8.7/24",
        "fd00::7/64",
        "mtu 1400",
        "02:00:00:00:00:07",
        "UP",
    ] {
        assert!(shown.contains(kept), "{kept} in {shown}");
    }
}

#[test]
fn a_device_needs_a_network_namespace_to_move_to() {
    let mut bundle = with_device("true", None);
    let namespaces = bundle.linux().namespaces_mut().get_or_insert_default();
    namespaces.retain(|n| n.typ() != oci_spec::runtime::LinuxNamespaceType::Network);
    let message = bundle.run_fails();
    assert!(message.contains("linux.netDevices (host0)"), "{message}");
    assert!(ip("link show").contains("host0"));
}
