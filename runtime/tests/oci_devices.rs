//! runtime-spec config-linux.md, section "Devices", on real containers with a user namespace.
#![cfg(feature = "privileged-tests")]

mod oci_support;

use std::os::unix::fs::lchown;

use oci_spec::runtime::{
    LinuxDeviceBuilder, LinuxDeviceType, LinuxIdMappingBuilder, LinuxNamespaceBuilder,
    LinuxNamespaceType,
};
use oci_support::Bundle;

/// The first of 65536 ids that are the container's outside.
const FIRST: u32 = 200_000;

fn in_user_namespace(script: &str) -> Bundle {
    let mut bundle = Bundle::sh(script);
    let user = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::User);
    let map = LinuxIdMappingBuilder::default();
    let map = map.container_id(0_u32).host_id(FIRST).size(65_536_u32);
    let map = vec![map.build().expect("a map")];
    let linux = bundle.linux();
    let namespaces = linux.namespaces_mut().get_or_insert_default();
    namespaces.push(user.build().expect("a namespace"));
    linux
        .set_uid_mappings(Some(map.clone()))
        .set_gid_mappings(Some(map));
    for directory in ["", "tmp"] {
        lchown(bundle.rootfs().join(directory), Some(FIRST), Some(FIRST)).expect("chown");
    }
    bundle
}

/// `/dev/zero` under another name, which the host does not have.
fn zero(path: &str, mode: u32, uid: u32, gid: u32) -> LinuxDeviceBuilder {
    LinuxDeviceBuilder::default()
        .path(path)
        .typ(LinuxDeviceType::C)
        .major(1)
        .minor(5)
        .file_mode(mode)
        .uid(uid)
        .gid(gid)
}

#[test]
fn a_device_of_a_user_namespace_has_the_owner_and_mode_that_was_asked_for() {
    let mut bundle = in_user_namespace(
        "stat -c '%n %a %u:%g %t:%T' /dev/podling-a /dev/sub/podling-b /dev/null; \
         head -c 3 /dev/podling-a | wc -c",
    );
    let devices = [
        zero("/dev/podling-a", 0o157, 10, 11),
        zero("/dev/sub/podling-b", 0o622, 0, 0),
    ];
    let devices = devices.map(|device| device.build().expect("a device"));
    bundle.linux().set_devices(Some(devices.to_vec()));
    let said = bundle.run();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "/dev/podling-a 157 10:11 1:5");
    assert_eq!(lines[1], "/dev/sub/podling-b 622 0:0 1:5");
    assert!(lines[2].starts_with("/dev/null 666 "), "the host's");
    assert_eq!(lines[3], "3", "it can be read");
    assert!(!std::path::Path::new("/dev/podling-a").exists());
}

#[test]
fn a_device_whose_owner_is_not_mapped_is_the_hosts() {
    let mut bundle = in_user_namespace("stat -c '%a %t:%T' /dev/zero");
    let device = zero("/dev/zero", 0o600, 4_000_000, 0).build();
    bundle
        .linux()
        .set_devices(Some(vec![device.expect("a device")]));
    assert_eq!(bundle.run(), "666 1:5");
}
