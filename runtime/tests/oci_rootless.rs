//! Containers of ordinary users.
#![cfg(feature = "privileged-tests")]

mod oci_support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use oci_spec::runtime::{
    LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespaceBuilder, LinuxNamespaceType,
};
use oci_support::{Bundle, stderr, stdout, until};

/// An ordinary user whom every Debian has: setuid helpers want one with a name.
const NOBODY: u32 = 65_534;

fn map(inside: u32, outside: u32, count: u32) -> LinuxIdMapping {
    let map = LinuxIdMappingBuilder::default()
        .container_id(inside)
        .host_id(outside)
        .size(count);
    map.build().expect("a map")
}

/// What an ordinary user may ask for: itself as the container's root.
fn rootless(script: &str) -> Bundle {
    let mut bundle = Bundle::sh(script);
    bundle.user = Some(NOBODY);
    let user = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::User);
    let linux = bundle.linux();
    let namespaces = linux.namespaces_mut().get_or_insert_default();
    namespaces.push(user.build().expect("a namespace"));
    linux
        .set_uid_mappings(Some(vec![map(0, NOBODY, 1)]))
        .set_gid_mappings(Some(vec![map(0, NOBODY, 1)]))
        .set_resources(None)
        .set_cgroups_path(None);
    for mount in bundle.spec.mounts_mut().iter_mut().flatten() {
        // The terminals' group is not mapped.
        if mount.typ().as_deref() == Some("devpts") {
            let options = mount.options_mut().get_or_insert_default();
            options.retain(|option| option != "gid=5");
        }
    }
    let mounts = bundle.spec.mounts_mut().get_or_insert_default();
    mounts.retain(|mount| mount.typ().as_deref() != Some("cgroup"));
    own(bundle.path());
    bundle
}

fn own(path: &Path) {
    chown(path, Some(NOBODY), Some(NOBODY)).expect("chown");
    for entry in fs::read_dir(path).expect("reads").flatten() {
        if entry.file_type().expect("a type").is_dir() {
            own(&entry.path());
        }
    }
}

#[test]
fn an_ordinary_user_runs_a_container() {
    let bundle = rootless(
        "id -u; id -g; cat /proc/self/uid_map; cat /proc/self/setgroups; touch /made; echo x > /dev/null; \
         ls /dev/pts/ptmx; hostname",
    );
    let out = bundle.run();
    let words: Vec<&str> = out.split_whitespace().collect();
    assert_eq!(
        words[..7],
        ["0", "0", "0", "65534", "1", "deny", "/dev/pts/ptmx"]
    );
    let made = fs::metadata(bundle.rootfs().join("made")).expect("made");
    assert_eq!((made.uid(), made.gid()), (NOBODY, NOBODY));
}

#[test]
fn an_ordinary_user_creates_starts_enters_and_deletes() {
    let bundle = rootless("touch /tmp/up; while true; do sleep 1000; done");
    bundle.create();
    assert_eq!(bundle.status(), "created");
    bundle.ok(&["start", &bundle.id]);
    until("the container is up", || {
        bundle.rootfs().join("tmp/up").exists()
    });
    let output = bundle.exec(&[
        "/bin/sh",
        "-c",
        "id -u; readlink /proc/self/ns/user; readlink /proc/1/ns/user; readlink /proc/self/ns/pid; \
         readlink /proc/1/ns/pid",
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let out = stdout(&output);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "0");
    assert_eq!(lines[1], lines[2]);
    assert_eq!(lines[3], lines[4]);
    bundle.ok(&["kill", &bundle.id, "KILL"]);
    until("it has ended", || bundle.status() == "stopped");
    bundle.ok(&["delete", &bundle.id]);
}

#[test]
fn an_ordinary_users_own_runtime_is_safe_from_its_containers() {
    let mut bundle = rootless("sleep 1000");
    let own = bundle.path().join("runtime");
    fs::copy(&bundle.runtime, &own).expect("copies");
    fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).expect("mode");
    chown(&own, Some(NOBODY), Some(NOBODY)).expect("chown");
    bundle.runtime = own;
    bundle.create();
    // The process that waits for its start is this program still, and its file is no file of the user's.
    let pid = bundle.state()["pid"].as_i64().expect("a pid");
    let program = fs::read_link(format!("/proc/{pid}/exe")).expect("a link");
    let program = program.to_string_lossy();
    assert!(program.starts_with("/memfd:"), "{program}");
    let written = fs::File::options()
        .write(true)
        .open(format!("/proc/{pid}/exe"))
        .and_then(|mut file| std::io::Write::write_all(&mut file, b"x"));
    assert!(written.is_err(), "the program was overwritten");
}

#[test]
fn a_limit_that_an_ordinary_user_cannot_give_is_refused() {
    let mut bundle = rootless("true");
    let resources = serde_json::from_str(r#"{"pids":{"limit":7}}"#).expect("resources");
    bundle.linux().set_resources(Some(resources));
    let message = bundle.run_fails();
    assert!(message.contains("linux.resources"), "{message}");
}

#[test]
fn an_ordinary_user_needs_a_user_namespace() {
    let mut bundle = rootless("true");
    let linux = bundle.linux();
    linux.set_uid_mappings(None).set_gid_mappings(None);
    let namespaces = linux.namespaces_mut().get_or_insert_default();
    namespaces.retain(|n| n.typ() != LinuxNamespaceType::User);
    let message = bundle.run_fails();
    assert!(message.contains("needs a user namespace"), "{message}");
}

#[test]
fn groups_need_a_range() {
    let mut bundle = rootless("true");
    bundle
        .process()
        .user_mut()
        .set_additional_gids(Some(vec![0]));
    let message = bundle.run_fails();
    assert!(message.contains("process.user.additionalGids"), "{message}");
}

#[test]
fn ranges_are_mapped_by_the_setuid_helpers() {
    let mut bundle = rootless("id -u; id -G; cat /proc/self/uid_map");
    // In this test's mount namespace only.
    for name in ["subuid", "subgid"] {
        let file = bundle.path().join(name);
        fs::write(&file, "nobody:300000:65536\n").expect("writes");
        let bound = nix::mount::mount(
            Some(&file),
            &Path::new("/etc").join(name),
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        );
        bound.expect("Debian's package uidmap");
    }
    let ranges = || Some(vec![map(0, NOBODY, 1), map(1, 300_000, 65_536)]);
    bundle
        .linux()
        .set_uid_mappings(ranges())
        .set_gid_mappings(ranges());
    let user = bundle.process().user_mut();
    user.set_uid(7)
        .set_gid(8)
        .set_additional_gids(Some(vec![9]));
    let out = bundle.run();
    let words: Vec<&str> = out.split_whitespace().collect();
    assert_eq!(words[..3], ["7", "8", "9"]);
    assert_eq!(words[3..], ["0", "65534", "1", "1", "300000", "65536"]);

    // A range that nobody gave it.
    let ranges = || Some(vec![map(0, NOBODY, 1), map(1, 900_000, 65_536)]);
    bundle
        .linux()
        .set_uid_mappings(ranges())
        .set_gid_mappings(ranges());
    let message = bundle.run_fails();
    assert!(
        message.contains("newuidmap") && message.contains("900000"),
        "{message}"
    );
}

#[test]
fn the_runtimes_own_rootless_spec_runs() {
    let mut bundle = rootless("true");
    let config = bundle.path().join("config.json");
    let spec = bundle
        .command()
        .args(["spec", "--rootless", "--bundle", &bundle.bundle_arg()])
        .output()
        .expect("runs");
    assert!(spec.status.success(), "{}", stderr(&spec));
    bundle.spec = oci_spec::runtime::Spec::load(&config).expect("a spec");
    bundle.args(&["/bin/id", "-u"]);
    bundle.process().set_terminal(Some(false));
    assert_eq!(bundle.run(), "0");
}

/// A cgroup that was delegated to the user is not the container's to change, though it is of the host's `/sys` and its
/// owner is the container's root: neither as `spec --rootless` has it, nor without a cgroup namespace.
#[test]
fn cve_2023_25809_the_users_cgroups_are_read_only_in_a_container() {
    let own_cgroups = |bundle: &Bundle| -> Vec<PathBuf> {
        let top = Path::new("/sys/fs/cgroup");
        let below = fs::read_dir(top).expect("cgroups").flatten();
        let hierarchies = std::iter::once(top.to_owned()).chain(below.map(|it| it.path()));
        let is_root = |path: &PathBuf| {
            path.join("cgroup.procs").exists() && !path.join("cgroup.type").exists()
        };
        hierarchies
            .filter(is_root)
            .map(|root| root.join(format!("{}-user", bundle.id)))
            .collect()
    };
    for has_namespace in [true, false] {
        let mut bundle = rootless("true");
        let delegated = own_cgroups(&bundle);
        assert!(!delegated.is_empty());
        for cgroup in &delegated {
            fs::create_dir(cgroup).expect("a cgroup");
            chown(cgroup, Some(NOBODY), Some(NOBODY)).expect("chown");
        }
        bundle.ok(&["spec", "--rootless", "-b", &bundle.bundle_arg()]);
        let path = bundle.path().join("config.json");
        let mut spec = oci_spec::runtime::Spec::load(&path).expect("a spec");
        let script = format!(
            "for d in $(find /sys/fs/cgroup -type d -name {}-user); do echo seen; mkdir $d/made && echo made; done; \
             mkdir /sys/fs/cgroup/made && echo made; true",
            bundle.id
        );
        if let Some(process) = spec.process_mut() {
            let args = ["/bin/sh".to_owned(), "-c".to_owned(), script];
            process
                .set_terminal(Some(false))
                .set_args(Some(args.into()));
        }
        if !has_namespace && let Some(linux) = spec.linux_mut() {
            let mut namespaces = linux.namespaces().clone().unwrap_or_default();
            namespaces.retain(|it| it.typ() != LinuxNamespaceType::Cgroup);
            linux.set_namespaces(Some(namespaces));
        }
        bundle.spec = spec;
        let said = bundle.run();
        // The attack is real: the user itself may.
        let control = |cgroup: &PathBuf| {
            let made = oci_support::as_user(NOBODY, Path::new("/bin/mkdir"))
                .arg(cgroup.join("made"))
                .status();
            let control =
                made.expect("runs").success() && fs::remove_dir(cgroup.join("made")).is_ok();
            fs::remove_dir(cgroup).expect("removes");
            control
        };
        let controls: Vec<bool> = delegated.iter().map(control).collect();
        assert!(!controls.contains(&false), "no control");
        assert!(!said.contains("made"), "{said}");
    }
}
