//! User and time namespaces of containers, new and joined by path.
#![cfg(feature = "privileged-tests")]

mod oci_support;

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use oci_spec::runtime::{
    LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceBuilder,
    LinuxNamespaceType, LinuxTimeOffset,
};
use oci_support::{Bundle, stderr, stdout, until};

/// Where the test's user namespaces begin on the host.
const FIRST: u32 = 200_000;
const COUNT: u32 = 65_536;

fn map() -> Vec<LinuxIdMapping> {
    let map = LinuxIdMappingBuilder::default()
        .container_id(0_u32)
        .host_id(FIRST)
        .size(COUNT);
    vec![map.build().expect("a map")]
}

fn namespace(typ: LinuxNamespaceType, path: Option<PathBuf>) -> LinuxNamespace {
    let builder = LinuxNamespaceBuilder::default().typ(typ);
    match path {
        Some(path) => builder.path(path),
        None => builder,
    }
    .build()
    .expect("a namespace")
}

/// Adds a namespace, in place of one of that type.
fn with(bundle: &mut Bundle, typ: LinuxNamespaceType, path: Option<PathBuf>) {
    let namespaces = bundle.linux().namespaces_mut().get_or_insert_default();
    namespaces.retain(|n| n.typ() != typ);
    namespaces.push(namespace(typ, path));
}

fn without(bundle: &mut Bundle, typ: LinuxNamespaceType) {
    let namespaces = bundle.linux().namespaces_mut().get_or_insert_default();
    namespaces.retain(|n| n.typ() != typ);
}

/// Gives the bundle a new user namespace, and its root file system to that one's root.
fn in_user_namespace(bundle: &mut Bundle) {
    with(bundle, LinuxNamespaceType::User, None);
    bundle
        .linux()
        .set_uid_mappings(Some(map()))
        .set_gid_mappings(Some(map()));
    give(&bundle.rootfs());
}

fn give(path: &Path) {
    chown(path, Some(FIRST), Some(FIRST)).expect("chown");
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).expect("reads").flatten() {
            if !entry.path().is_symlink() {
                give(&entry.path());
            }
        }
    }
}

fn own_namespace(name: &str) -> String {
    fs::read_link(format!("/proc/thread-self/ns/{name}"))
        .expect("a namespace")
        .to_string_lossy()
        .into_owned()
}

/// A process of the host in namespaces of its own.
struct Holder(Child);

impl Holder {
    /// `unshare` with these options.
    fn new(options: &[&str]) -> Self {
        let child = Command::new("unshare")
            .args(options)
            .args(["/bin/busybox", "sleep", "1000"])
            .spawn()
            .expect("unshare of util-linux");
        let holder = Self(child);
        until("the holder is there", || {
            fs::read_to_string(format!("/proc/{}/comm", holder.0.id()))
                .is_ok_and(|name| name.trim() == "busybox" || name.trim() == "sleep")
        });
        holder
    }

    fn namespace(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/{name}", self.0.id()))
    }

    fn shown(&self, name: &str) -> String {
        fs::read_link(self.namespace(name))
            .expect("a namespace")
            .to_string_lossy()
            .into_owned()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().expect("kills");
        self.0.wait().expect("waits");
    }
}

#[test]
fn the_root_of_a_user_namespace_is_nobody_outside() {
    let mut bundle = Bundle::sh(
        "id -u; id -g; cat /proc/self/uid_map; touch /made; grep -c Groups:.[0-9] /proc/self/status; \
         grep CapEff /proc/self/status; stat -c %u:%g /proc/1",
    );
    in_user_namespace(&mut bundle);
    let lines = bundle.run_with_any_exit();
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines[..2], ["0", "0"]);
    assert_eq!(
        lines[2].split_whitespace().collect::<Vec<_>>(),
        ["0", "200000", "65536"]
    );
    assert_eq!(lines[3], "0", "the caller's groups are gone");
    let made = fs::metadata(bundle.rootfs().join("made")).expect("made");
    assert_eq!((made.uid(), made.gid()), (FIRST, FIRST));
}

#[test]
fn a_user_of_a_user_namespace_keeps_what_was_asked_for() {
    let mut bundle = Bundle::sh("id -u; id -g; id -G; grep CapEff /proc/self/status; pwd");
    in_user_namespace(&mut bundle);
    bundle.process().user_mut().set_uid(7).set_gid(8);
    bundle
        .process()
        .user_mut()
        .set_additional_gids(Some(vec![9, 10]));
    let out = bundle.run();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[..3], ["7", "8", "8 9 10"]);
    assert_eq!(lines[4], "/");
}

#[test]
fn devices_of_a_user_namespace_are_the_hosts() {
    let mut bundle =
        Bundle::sh("echo x > /dev/null && head -c 3 /dev/zero | wc -c; stat -c %t:%T /dev/full");
    in_user_namespace(&mut bundle);
    assert_eq!(bundle.run(), "3\n1:7");
}

#[test]
fn namespaces_beside_a_user_namespace_belong_to_it() {
    // Changing the host name, an address or a mount takes rights in the namespace that owns theirs.
    let mut bundle =
        Bundle::sh("hostname inside && hostname; mount -t tmpfs x /tmp && echo mounted");
    in_user_namespace(&mut bundle);
    let all: std::collections::HashSet<_> = [oci_spec::runtime::Capability::SysAdmin].into();
    let mut sets = oci_spec::runtime::LinuxCapabilities::default();
    sets.set_bounding(Some(all.clone()))
        .set_effective(Some(all.clone()))
        .set_permitted(Some(all))
        .set_inheritable(None)
        .set_ambient(None);
    bundle.process().set_capabilities(Some(sets));
    assert_eq!(bundle.run(), "inside\nmounted");
}

#[test]
fn the_root_of_a_user_namespace_needs_pivot_root() {
    let mut bundle = Bundle::sh("true");
    in_user_namespace(&mut bundle);
    bundle.write();
    let bundle_arg = bundle.bundle_arg();
    let message = bundle.fails(&["create", "--no-pivot", "-b", &bundle_arg, &bundle.id]);
    assert!(
        message.contains("linux.namespaces") && message.contains("--no-pivot"),
        "{message}"
    );
    bundle.fails(&["state", &bundle.id]);
}

#[test]
fn kernel_parameters_are_set_in_a_user_namespace() {
    let mut bundle = Bundle::sh("cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni");
    in_user_namespace(&mut bundle);
    let sysctls = [
        ("net.ipv4.ip_forward".to_owned(), "1".to_owned()),
        ("kernel.shmmni".to_owned(), "77".to_owned()),
    ];
    bundle.linux().set_sysctl(Some(sysctls.into()));
    assert_eq!(bundle.run(), "1\n77");
}

#[test]
fn bind_sources_that_only_the_caller_may_enter_are_found() {
    let mut bundle = Bundle::sh("cat /data/file");
    in_user_namespace(&mut bundle);
    let private = bundle.path().join("private");
    fs::create_dir_all(private.join("data")).expect("directory");
    fs::write(private.join("data/file"), "found").expect("file");
    fs::set_permissions(
        &private,
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .expect("mode");
    chown(&private, Some(77), Some(77)).expect("chown");
    bundle.bind(&private.join("data"), "/data", &["bind", "ro"]);
    assert_eq!(bundle.run(), "found");
}

#[test]
fn a_root_file_system_that_only_the_caller_may_enter_is_found() {
    let mut bundle = Bundle::sh("id -u");
    in_user_namespace(&mut bundle);
    fs::set_permissions(
        bundle.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .expect("mode");
    chown(bundle.path(), Some(77), Some(77)).expect("chown");
    assert_eq!(bundle.run(), "0");
}

#[test]
fn exec_enters_the_user_namespace() {
    let mut bundle = Bundle::sh("touch /tmp/up; while true; do sleep 1000; done");
    in_user_namespace(&mut bundle);
    with(&mut bundle, LinuxNamespaceType::Time, None);
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    until("the container is up", || {
        bundle.rootfs().join("tmp/up").exists()
    });
    let output = bundle.exec(&[
        "/bin/sh",
        "-c",
        "id -u; cat /proc/self/uid_map; touch /made; for p in 1 self; do cd /proc/$p/ns; for n in user pid mnt time; do readlink $n; done; done",
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let out = stdout(&output);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "0");
    assert!(lines[1].contains("200000"), "{out}");
    assert_eq!(lines[2..6], lines[6..10]);
    let made = fs::metadata(bundle.rootfs().join("made")).expect("made");
    assert_eq!(made.uid(), FIRST);
}

#[test]
fn a_user_namespace_is_joined_with_others_it_owns() {
    let holder = Holder::new(&["--user", "--net", "--ipc"]);
    for name in ["uid_map", "gid_map"] {
        let path = format!("/proc/{}/{name}", holder.0.id());
        fs::write(path, format!("0 {FIRST} {COUNT}")).expect("maps");
    }
    let mut bundle = Bundle::sh(
        "cd /proc/self/ns; for n in user net ipc pid; do readlink $n; done; id -u; hostname x && hostname",
    );
    give(&bundle.rootfs());
    with(
        &mut bundle,
        LinuxNamespaceType::User,
        Some(holder.namespace("user")),
    );
    with(
        &mut bundle,
        LinuxNamespaceType::Network,
        Some(holder.namespace("net")),
    );
    with(
        &mut bundle,
        LinuxNamespaceType::Ipc,
        Some(holder.namespace("ipc")),
    );
    let out = bundle.run_with_any_exit();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], holder.shown("user"));
    assert_eq!(lines[1], holder.shown("net"));
    assert_eq!(lines[2], holder.shown("ipc"));
    assert_ne!(lines[3], own_namespace("pid"));
    assert_eq!(lines[4], "0");
}

#[test]
fn maps_beside_a_joined_user_namespace_must_be_its_own() {
    let holder = Holder::new(&["--user"]);
    for name in ["uid_map", "gid_map"] {
        let path = format!("/proc/{}/{name}", holder.0.id());
        fs::write(path, format!("0 {FIRST} {COUNT}")).expect("maps");
    }
    let mut bundle = Bundle::sh("id -u");
    give(&bundle.rootfs());
    with(
        &mut bundle,
        LinuxNamespaceType::User,
        Some(holder.namespace("user")),
    );
    bundle
        .linux()
        .set_uid_mappings(Some(map()))
        .set_gid_mappings(Some(map()));
    assert_eq!(bundle.run(), "0");
    let other = LinuxIdMappingBuilder::default()
        .container_id(0_u32)
        .host_id(FIRST + 1)
        .size(COUNT);
    let other = vec![other.build().expect("a map")];
    bundle.linux().set_gid_mappings(Some(other));
    let message = bundle.run_fails();
    assert!(
        message.contains("linux.gidMappings: is not the map of the user namespace"),
        "{message}"
    );
}

#[test]
fn names_set_as_kernel_parameters_work_in_a_user_namespace() {
    let mut bundle = Bundle::sh("cat /proc/sys/kernel/domainname");
    in_user_namespace(&mut bundle);
    let sysctls = [("kernel.domainname".to_owned(), "inside".to_owned())];
    bundle.linux().set_sysctl(Some(sysctls.into()));
    assert_eq!(bundle.run(), "inside");
}

#[test]
fn a_network_namespace_of_the_host_is_joined_beside_a_new_user_namespace() {
    let holder = Holder::new(&["--net", "--uts"]);
    let mut bundle = Bundle::sh("cd /proc/self/ns; for n in net uts; do readlink $n; done; id -u");
    in_user_namespace(&mut bundle);
    with(
        &mut bundle,
        LinuxNamespaceType::Network,
        Some(holder.namespace("net")),
    );
    with(
        &mut bundle,
        LinuxNamespaceType::Uts,
        Some(holder.namespace("uts")),
    );
    bundle.spec.set_hostname(None);
    // A network namespace that the user namespace does not own shows no sysfs of its own.
    bundle
        .spec
        .mounts_mut()
        .get_or_insert_default()
        .retain(|m| m.typ().as_deref() != Some("sysfs"));
    let out = bundle.run();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(
        lines,
        [holder.shown("net"), holder.shown("uts"), "0".to_owned()]
    );
}

#[test]
fn a_namespace_of_another_type_is_refused() {
    let mut bundle = Bundle::sh("true");
    with(
        &mut bundle,
        LinuxNamespaceType::Network,
        Some("/proc/self/ns/uts".into()),
    );
    let message = bundle.run_fails();
    assert!(
        message.contains("linux.namespaces: /proc/self/ns/uts is no network namespace"),
        "{message}"
    );
    with(
        &mut bundle,
        LinuxNamespaceType::Network,
        Some("/etc/passwd".into()),
    );
    let message = bundle.run_fails();
    assert!(message.contains("/etc/passwd is no namespace"), "{message}");
}

#[test]
fn a_shared_network_shows_the_hosts_sysfs_in_a_user_namespace() {
    let mut bundle = Bundle::sh("ls /sys | grep -c class; touch /sys/x || echo denied");
    in_user_namespace(&mut bundle);
    without(&mut bundle, LinuxNamespaceType::Network);
    assert_eq!(bundle.run(), "1\ndenied");
}

fn offset(secs: i64) -> LinuxTimeOffset {
    let mut offset = LinuxTimeOffset::default();
    offset.set_secs(Some(secs)).set_nanosecs(Some(5));
    offset
}

/// Seconds since boot as a `/proc/uptime` tells.
fn uptime(text: &str) -> f64 {
    let first = text.split_whitespace().next().expect("a number");
    first.parse().expect("a number")
}

#[test]
fn clocks_of_a_time_namespace_have_its_offsets() {
    let mut bundle =
        Bundle::sh("cat /proc/uptime; cat /proc/self/timens_offsets; readlink /proc/self/ns/time");
    with(&mut bundle, LinuxNamespaceType::Time, None);
    let offsets = [
        ("boottime".to_owned(), offset(1_000_000)),
        ("monotonic".to_owned(), offset(2_000_000)),
    ];
    bundle.linux().set_time_offsets(Some(offsets.into()));
    let before = uptime(&fs::read_to_string("/proc/uptime").expect("uptime"));
    let out = bundle.run();
    let lines: Vec<&str> = out.lines().collect();
    assert!(uptime(lines[0]) >= before + 1_000_000.0, "{out}");
    let words: Vec<&str> = out.split_whitespace().collect();
    assert!(
        words.contains(&"2000000") && words.contains(&"1000000"),
        "{out}"
    );
    assert_ne!(*lines.last().expect("a line"), own_namespace("time"));
}

#[test]
fn time_offsets_and_a_user_namespace_go_together() {
    let mut bundle = Bundle::sh("cat /proc/uptime; id -u; echo $$");
    in_user_namespace(&mut bundle);
    with(&mut bundle, LinuxNamespaceType::Time, None);
    let offsets = [("boottime".to_owned(), offset(1_000_000))];
    bundle.linux().set_time_offsets(Some(offsets.into()));
    let out = bundle.run();
    let lines: Vec<&str> = out.lines().collect();
    assert!(uptime(lines[0]) >= 1_000_000.0, "{out}");
    assert_eq!(lines[1..], ["0", "1"]);
}

#[test]
fn a_time_namespace_is_joined() {
    let holder = Holder::new(&["--time", "--boottime", "500000"]);
    let children = format!("/proc/{}/ns/time_for_children", holder.0.id());
    let mut bundle = Bundle::sh("cat /proc/uptime; readlink /proc/self/ns/time");
    with(&mut bundle, LinuxNamespaceType::Time, Some(children.into()));
    let out = bundle.run();
    assert!(uptime(&out) >= 500_000.0, "{out}");
    assert!(out.ends_with(&holder.shown("time_for_children")), "{out}");
}

/// Leaves out what a container in somebody else's mount namespace cannot have.
fn as_guest(bundle: &mut Bundle) {
    bundle.spec.set_mounts(None);
    bundle
        .linux()
        .set_masked_paths(None)
        .set_readonly_paths(None);
}

#[test]
fn a_mount_namespace_is_joined_and_left_as_it_is() {
    let holder = Holder::new(&["--mount", "--propagation", "private"]);
    let mounts =
        || fs::read_to_string(format!("/proc/{}/mountinfo", holder.0.id())).expect("mounts");
    let before = mounts();
    let mut bundle = Bundle::sh(
        "touch /tmp/up; pwd; ls -d /bin /etc /../../bin; while true; do sleep 1000; done",
    );
    as_guest(&mut bundle);
    with(
        &mut bundle,
        LinuxNamespaceType::Mount,
        Some(holder.namespace("mnt")),
    );
    bundle.create();
    bundle.ok(&["start", &bundle.id]);
    until("the container is up", || {
        bundle.rootfs().join("tmp/up").exists()
    });
    let pid = bundle.state()["pid"].as_i64().expect("a pid");
    let shown = |what: &str| fs::read_link(format!("/proc/{pid}/{what}")).expect("a link");
    assert_eq!(shown("ns/mnt").to_string_lossy(), holder.shown("mnt"));
    assert_eq!(shown("root"), bundle.rootfs());
    // A process that enters has the same root.
    let output = bundle.exec(&["/bin/sh", "-c", "ls /..; ls -d /etc"]);
    let said = stdout(&output) + &stderr(&output);
    assert!(
        said.contains("bin") && said.contains("/etc: No such file"),
        "{said}"
    );
    assert_eq!(mounts(), before, "nothing was mounted");
}

#[test]
fn a_guest_in_the_hosts_mount_namespace_has_its_root_directory() {
    let mut bundle = Bundle::sh("ls /");
    as_guest(&mut bundle);
    without(&mut bundle, LinuxNamespaceType::Mount);
    let before = oci_support::mounts();
    let out = bundle.run();
    assert!(out.contains("bin") && !out.contains("etc"), "{out}");
    assert_eq!(oci_support::mounts(), before);
}

#[test]
fn what_needs_a_mount_namespace_is_refused_without_one() {
    let mut bundle = Bundle::sh("true");
    with(
        &mut bundle,
        LinuxNamespaceType::Mount,
        Some("/proc/self/ns/mnt".into()),
    );
    let message = bundle.run_fails();
    assert!(
        message.contains("mounts: needs a mount namespace"),
        "{message}"
    );
    as_guest(&mut bundle);
    let chroot: std::collections::HashSet<_> = [oci_spec::runtime::Capability::SysChroot].into();
    let mut sets = oci_spec::runtime::LinuxCapabilities::default();
    sets.set_bounding(Some(chroot))
        .set_effective(None)
        .set_permitted(None)
        .set_inheritable(None)
        .set_ambient(None);
    bundle.process().set_capabilities(Some(sets));
    let message = bundle.run_fails();
    assert!(message.contains("CAP_SYS_CHROOT leads out"), "{message}");
}

/// Has the runtime itself run as the root of a user namespace, which has one id and denies setgroups.
fn nest(bundle: &mut Bundle) {
    let script = bundle.path().join("nested");
    let text = format!(
        "#!/bin/sh\nexec unshare --user --map-root-user --mount {} \"$@\"\n",
        bundle.runtime.display()
    );
    fs::write(&script, text).expect("writes");
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("mode");
    bundle.runtime = script;
}

#[test]
fn a_caller_in_a_user_namespace_runs_containers_in_it() {
    let mut bundle =
        Bundle::sh("id -u; cat /proc/self/setgroups; echo x > /dev/null; stat -c %t:%T /dev/zero");
    nest(&mut bundle);
    bundle.linux().set_resources(None);
    for mount in bundle.spec.mounts_mut().iter_mut().flatten() {
        let options = mount.options_mut().get_or_insert_default();
        options.retain(|option| option != "gid=5");
    }
    assert_eq!(bundle.run(), "0\ndeny\n1:5");
}

#[test]
fn user_namespaces_nest() {
    let mut bundle = Bundle::sh("id -u; cat /proc/self/uid_map; echo x > /dev/null");
    in_user_namespace(&mut bundle);
    let own = LinuxIdMappingBuilder::default()
        .container_id(0_u32)
        .host_id(0_u32)
        .size(1_u32);
    let own = vec![own.build().expect("a map")];
    bundle
        .linux()
        .set_uid_mappings(Some(own.clone()))
        .set_gid_mappings(Some(own))
        .set_resources(None);
    for mount in bundle.spec.mounts_mut().iter_mut().flatten() {
        let options = mount.options_mut().get_or_insert_default();
        options.retain(|option| option != "gid=5");
    }
    chown(bundle.rootfs(), Some(0), Some(0)).expect("chown");
    nest(&mut bundle);
    let out = bundle.run();
    let words: Vec<&str> = out.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "0", "1"]);
}

#[test]
fn a_failure_in_a_user_namespace_leaves_nothing() {
    let mut bundle = Bundle::sh("true");
    in_user_namespace(&mut bundle);
    bundle.args(&["/bin/nothing"]);
    let message = bundle.run_fails();
    assert!(message.contains("nothing"), "{message}");
    // The same by way of a forerunner.
    with(&mut bundle, LinuxNamespaceType::Time, None);
    let offsets = [("boottime".to_owned(), offset(-1_000_000_000))];
    bundle.linux().set_time_offsets(Some(offsets.into()));
    let message = bundle.run_fails();
    assert!(message.contains("time offsets"), "{message}");
}
