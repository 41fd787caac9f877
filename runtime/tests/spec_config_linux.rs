//! runtime-spec `config-linux.md` and `config.md#linux-process`: what no other test of this directory shows, most of it
//! found by other runtimes' suites.
#![cfg(feature = "privileged-tests")]

mod oci_support;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use nix::mount::MsFlags;
use oci_spec::runtime::{
    LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceType, MountBuilder, PosixRlimitBuilder,
    PosixRlimitType, User,
};
use oci_support::{Bundle, stderr, stdout};

fn add_user_namespace(bundle: &mut Bundle) {
    let mut user = LinuxNamespace::default();
    user.set_typ(LinuxNamespaceType::User);
    let mut all = bundle.linux().namespaces().clone().unwrap_or_default();
    all.push(user);
    bundle.linux().set_namespaces(Some(all));
}

/// `#namespaces`: as on every machine that systemd started, all mounts are shared.
#[test]
fn a_user_namespace_works_where_the_hosts_mounts_are_shared() {
    let mut bundle = Bundle::sh("id -u");
    add_user_namespace(&mut bundle);
    let map = LinuxIdMappingBuilder::default()
        .container_id(0_u32)
        .host_id(0_u32)
        .size(1000_u32)
        .build()
        .expect("a map");
    bundle
        .linux()
        .set_uid_mappings(Some(vec![map]))
        .set_gid_mappings(Some(vec![map]));
    nix::mount::mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_SHARED,
        None::<&str>,
    )
    .expect("shares, in this thread's mount namespace only");
    assert_eq!(bundle.run(), "0");
}

/// `#user-namespace-mappings`: optional. A root that asks for none keeps its ids.
#[test]
fn a_user_namespace_without_maps_has_the_callers_ids() {
    let mut bundle = Bundle::sh("cat /proc/self/uid_map; readlink /proc/self/ns/user");
    add_user_namespace(&mut bundle);
    let said = bundle.run();
    let (map, namespace) = said.split_once('\n').expect("two lines");
    let own = fs::read_to_string("/proc/self/uid_map").expect("a map");
    let words = |text: &str| {
        text.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(words(map)[0], words(&own)[0]);
    assert_eq!(words(map)[2], words(&own)[2]);
    let outside = fs::read_link("/proc/self/ns/user").expect("a namespace");
    assert_ne!(outside.to_str(), Some(namespace));
}

/// `#namespaces`: a new network namespace has its loopback interface up, as with runc and crun.
#[test]
fn a_new_network_namespace_has_loopback_up() {
    let bundle = Bundle::sh("cat /proc/net/if_inet6 /proc/net/fib_trie 2>/dev/null");
    let said = bundle.run();
    assert!(said.contains("127.0.0.1"), "{said}");
}

/// `config.md#mounts`: `bind` beside `rbind` takes nothing back.
#[test]
fn rbind_beside_bind_is_recursive() {
    let mut bundle = Bundle::sh("cat /in/below/file");
    let source = bundle.path().join("source");
    fs::create_dir_all(source.join("below")).expect("directories");
    nix::mount::mount(
        Some("none"),
        &source.join("below"),
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .expect("mounts");
    fs::write(source.join("below/file"), "below\n").expect("a file");
    bundle.bind(&source, "/in", &["rbind", "bind"]);
    assert_eq!(bundle.run(), "below");
}

/// `config.md#mounts`: a tmpfs without a mode looks like the directory that it covers.
#[test]
fn a_tmpfs_has_the_mode_of_what_it_covers() {
    let mut bundle = Bundle::sh("stat -c %a /covered /new");
    let covered = bundle.rootfs().join("covered");
    fs::create_dir(&covered).expect("a directory");
    fs::set_permissions(&covered, fs::Permissions::from_mode(0o712)).expect("mode");
    for destination in ["/covered", "/new"] {
        let mount = MountBuilder::default()
            .typ("tmpfs")
            .source("tmpfs")
            .destination(destination)
            .build()
            .expect("a mount");
        bundle.mount(mount);
    }
    assert_eq!(bundle.run(), "712\n1777");
}

/// `config.md#mounts`: what other programs trust procfs for is not covered.
#[test]
fn a_link_of_procfs_is_not_covered() {
    let mut bundle = Bundle::sh("readlink /proc/self");
    let link = bundle.path().join("link");
    symlink("elsewhere", &link).expect("a link");
    bundle.bind(
        &link,
        "/proc/self",
        &["bind", "src-nofollow", "dest-nofollow"],
    );
    let message = bundle.run_fails();
    assert!(message.contains("a link of procfs"), "{message}");
}

/// `config.md#posix-process`: a limit that cannot be set is an error of create.
#[test]
fn a_limit_that_cannot_be_set_stops_the_creation() {
    let mut bundle = Bundle::sh("true");
    let limit = PosixRlimitBuilder::default()
        .typ(PosixRlimitType::RlimitNofile)
        .soft(u64::MAX)
        .hard(u64::MAX)
        .build()
        .expect("a limit");
    bundle.process().set_rlimits(Some(vec![limit]));
    bundle.write();
    let message = bundle.fails(&["create", "-b", &bundle.bundle_arg(), &bundle.id]);
    assert!(message.contains("RLIMIT_NOFILE"), "{message}");
    assert!(!bundle.cgroup_exists());
}

/// `config.md#posix-process`: a limit on descriptors, however tight, does not keep the start from being heard.
#[test]
fn a_tight_limit_on_descriptors_is_set() {
    let mut bundle = Bundle::sh("ulimit -n");
    let limit = PosixRlimitBuilder::default()
        .typ(PosixRlimitType::RlimitNofile)
        .soft(3_u64)
        .hard(3_u64)
        .build()
        .expect("a limit");
    bundle.process().set_rlimits(Some(vec![limit]));
    assert_eq!(bundle.run(), "3");
}

/// `config.md#user`: the process's user can open its own pipes again, by user and group.
#[test]
fn pipes_belong_to_the_containers_user() {
    let mut bundle = Bundle::sh("stat -L -c %u:%g /proc/self/fd/1");
    let mut user = User::default();
    user.set_uid(1234_u32).set_gid(2345_u32);
    bundle.process().set_user(user);
    bundle.write();
    // `output` makes pipes.
    let output = bundle
        .command()
        .args(["run", "-b", &bundle.bundle_arg(), &bundle.id])
        .output()
        .expect("runs");
    assert_eq!(stdout(&output), "1234:2345", "{}", stderr(&output));
}

/// crun's annotation, which podman sets for `--group-add keep-groups`.
#[test]
fn the_callers_groups_stay_where_the_annotation_says_so() {
    for (value, kept) in [("1", true), ("0", false)] {
        let mut bundle = Bundle::sh("grep ^Groups: /proc/self/status");
        let annotation = ("run.oci.keep_original_groups".to_owned(), value.to_owned());
        bundle.spec.set_annotations(Some([annotation].into()));
        bundle.write();
        let script = "exec setpriv --groups 4321 \"$@\"";
        let output = std::process::Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(&bundle.runtime)
            .arg("--root")
            .arg(bundle.state_directory())
            .args(["run", "-b", &bundle.bundle_arg(), &bundle.id])
            .output()
            .expect("runs");
        assert_eq!(
            stdout(&output).contains("4321"),
            kept,
            "{}",
            stderr(&output)
        );
    }
}
