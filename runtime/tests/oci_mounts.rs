//! A container's root file system and mounts, on real containers; and image tricks that must stay inside.
#![cfg(feature = "privileged-tests")]

mod oci_support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::mount::MsFlags;
use oci_spec::runtime::{Capability, MountBuilder};
use oci_support::{Bundle, mounts, stderr, stdout, until};

/// A directory of the host that a container must not reach, beside the bundle's root file system.
fn outside(bundle: &Bundle) -> std::path::PathBuf {
    let outside = bundle.path().join("outside");
    fs::create_dir(&outside).expect("directory");
    outside
}

fn tmpfs(at: &Path) {
    nix::mount::mount(
        Some("tmpfs"),
        at,
        Some("tmpfs"),
        MsFlags::empty(),
        None::<&str>,
    )
    .expect("mounts");
}

fn add_sys_admin(bundle: &mut Bundle) {
    let mut capabilities = bundle
        .process()
        .capabilities()
        .clone()
        .expect("capabilities");
    let mut set = capabilities.bounding().clone().unwrap_or_default();
    set.insert(Capability::SysAdmin);
    capabilities
        .set_bounding(Some(set.clone()))
        .set_permitted(Some(set.clone()))
        .set_effective(Some(set));
    bundle.process().set_capabilities(Some(capabilities));
}

#[test]
fn file_systems_are_mounted_as_containers_have_them() {
    let bundle = Bundle::sh(
        "for m in /proc /dev /dev/pts /dev/shm /dev/mqueue /sys; do grep \" $m \" /proc/mounts; done",
    );
    let said = bundle.run();
    let types: Vec<&str> = said
        .lines()
        .filter_map(|line| line.split(' ').nth(2))
        .collect();
    assert_eq!(
        types,
        ["proc", "tmpfs", "devpts", "tmpfs", "mqueue", "sysfs"],
        "{said}"
    );
}

#[test]
fn options_reach_the_file_system() {
    let mut bundle = Bundle::sh("grep ' /scratch ' /proc/mounts; stat -c %a /scratch");
    bundle.mount(
        MountBuilder::default()
            .destination("/scratch")
            .typ("tmpfs")
            .source("scratch")
            .options(["nosuid", "noexec", "noatime", "size=64k", "mode=1750"].map(str::to_owned))
            .build()
            .expect("a mount"),
    );
    let said = bundle.run();
    for option in ["nosuid", "noexec", "noatime", "size=64k", "\n1750"] {
        assert!(said.contains(option), "{option}: {said}");
    }
}

#[test]
fn an_option_that_the_file_system_does_not_know_is_told() {
    let mut bundle = Bundle::sh("true");
    bundle.mount(
        MountBuilder::default()
            .destination("/scratch")
            .typ("tmpfs")
            .source("scratch")
            .options(["colour=blue".to_owned()])
            .build()
            .expect("a mount"),
    );
    let message = bundle.run_fails();
    assert!(message.contains("/scratch (tmpfs: colour)"), "{message}");
}

#[test]
fn the_default_devices_work() {
    let bundle = Bundle::sh(
        "echo x >/dev/null && head -c 4 /dev/zero | wc -c 2>/dev/null
         for d in null zero full random urandom tty; do stat -c '%n %t:%T %a' /dev/$d; done
         for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done",
    );
    let said = bundle.run();
    for want in [
        "/dev/null 1:3 666",
        "/dev/zero 1:5 666",
        "/dev/full 1:7 666",
        "/dev/random 1:8 666",
        "/dev/urandom 1:9 666",
        "/dev/tty 5:0 666",
        "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx",
    ] {
        assert!(said.contains(want), "{want}: {said}");
    }
}

#[test]
fn bind_mounts_are_writable_or_not() {
    let mut bundle = Bundle::sh("touch /rw/file; touch /ro/file 2>&1; cat /conf");
    let source = outside(&bundle);
    fs::write(bundle.path().join("conf"), "from the host").expect("file");
    bundle.bind(&source, "/rw", &["bind", "nosuid"]);
    bundle.bind(&source, "/ro", &["rbind", "ro"]);
    // A file, onto a path that does not exist.
    let conf = bundle.path().join("conf");
    bundle.bind(&conf, "/conf", &["bind", "ro"]);
    let said = bundle.run();
    assert!(said.contains("/ro/file: Read-only file system"), "{said}");
    assert!(said.ends_with("from the host"), "{said}");
    assert!(source.join("file").exists());
}

#[test]
fn recursive_read_only_covers_mounts_below() {
    let mut bundle = Bundle::sh("touch /ro/sub/a 2>&1; touch /rro/sub/a 2>&1");
    let source = outside(&bundle);
    fs::create_dir(source.join("sub")).expect("sub");
    tmpfs(&source.join("sub"));
    bundle.bind(&source, "/ro", &["rbind", "ro"]);
    bundle.bind(&source, "/rro", &["rbind", "rro"]);
    let said = bundle.run_with_any_exit();
    assert!(!said.contains("/ro/sub/a"), "{said}");
    assert!(said.contains("/rro/sub/a: Read-only file system"), "{said}");
}

#[test]
fn a_plain_bind_does_not_take_mounts_below_along() {
    let mut bundle = Bundle::sh("ls /plain/sub; ls /recursive/sub");
    let source = outside(&bundle);
    fs::create_dir(source.join("sub")).expect("sub");
    tmpfs(&source.join("sub"));
    fs::write(source.join("sub/file"), "").expect("file");
    bundle.bind(&source, "/plain", &["bind"]);
    bundle.bind(&source, "/recursive", &["rbind"]);
    assert_eq!(bundle.run(), "file");
}

#[test]
fn a_missing_source_is_named_and_nothing_is_left() {
    let mut bundle = Bundle::sh("true");
    let source = bundle.path().join("not-there");
    bundle.bind(&source, "/data", &["bind"]);
    let message = bundle.run_fails();
    assert!(
        message.contains("cannot open the mount source"),
        "{message}"
    );
    assert!(message.contains("not-there"), "{message}");
}

/// An image whose directory is a link to the host's: the mount, and what is made for it, must stay inside.
#[test]
fn a_source_of_another_kind_than_its_target_is_told() {
    for (source, target, why) in [
        ("config.json", "/tmp", "a file does not go onto a directory"),
        (
            "rootfs",
            "/bin/busybox",
            "a directory does not go onto a file",
        ),
    ] {
        let mut bundle = Bundle::sh("true");
        let source = bundle.path().join(source);
        bundle.bind(&source, target, &["bind"]);
        let message = bundle.run_fails();
        assert!(message.contains(&format!("{target} ({why})")), "{message}");
    }
}

#[test]
fn a_link_in_the_image_does_not_lead_a_mount_outside() {
    let mut bundle = Bundle::sh("ls /data/volume; grep -c volume /proc/mounts");
    let outside = outside(&bundle);
    let source = bundle.path().join("source");
    fs::create_dir(&source).expect("source");
    fs::write(source.join("file"), "").expect("file");
    symlink(&outside, bundle.rootfs().join("data")).expect("link");
    bundle.bind(&source, "/data/volume", &["bind"]);
    assert_eq!(bundle.run(), "file\n1");
    assert_eq!(
        fs::read_dir(&outside).expect("reads").count(),
        0,
        "something was made outside"
    );
}

#[test]
fn a_relative_link_in_the_image_does_not_lead_a_mount_outside() {
    let mut bundle = Bundle::sh("ls /data/volume");
    let outside = outside(&bundle);
    let source = bundle.path().join("source");
    fs::create_dir(&source).expect("source");
    fs::write(source.join("file"), "").expect("file");
    symlink(
        "../../../../../../../../outside",
        bundle.rootfs().join("data"),
    )
    .expect("link");
    bundle.bind(&source, "/data/volume", &["bind"]);
    assert_eq!(bundle.run(), "file");
    assert!(!outside.join("volume").exists());
    assert!(bundle.rootfs().join("outside/volume").exists());
}

#[test]
fn dots_in_a_target_stay_inside() {
    let mut bundle = Bundle::sh("ls /outside/volume");
    let outside = outside(&bundle);
    let source = bundle.path().join("source");
    fs::create_dir(&source).expect("source");
    fs::write(source.join("file"), "").expect("file");
    bundle.bind(&source, "/../../outside/volume", &["bind"]);
    assert_eq!(bundle.run(), "file");
    assert!(!outside.join("volume").exists());
}

/// An image whose `/dev` is a link to the host's. (`/proc` and `/sys` may be no links: escapes_mounts.rs.)
#[test]
fn a_link_for_dev_stays_inside() {
    let bundle = Bundle::sh("echo $$ >/dev/null; ls /sys/kernel >/dev/null");
    let outside = outside(&bundle);
    symlink(&outside, bundle.rootfs().join("dev")).expect("link");
    bundle.run();
    assert_eq!(
        fs::read_dir(&outside).expect("reads").count(),
        0,
        "something was made outside"
    );
}

/// An image that brings a file where a device belongs.
#[test]
fn a_false_device_in_the_image_is_refused() {
    let mut bundle = Bundle::sh("true");
    let mounts = bundle.spec.mounts().clone().unwrap_or_default();
    let without_dev = mounts
        .into_iter()
        .filter(|m| !m.destination().starts_with("/dev"))
        .collect();
    bundle.spec.set_mounts(Some(without_dev));
    fs::create_dir(bundle.rootfs().join("dev")).expect("dev");
    fs::write(bundle.rootfs().join("dev/null"), "").expect("file");
    let message = bundle.run_fails();
    assert!(
        message.contains("cannot make the device /dev/null"),
        "{message}"
    );
}

#[test]
fn masked_paths_show_nothing() {
    let mut bundle = Bundle::sh(
        "cat /secret/file /secret-file; ls /secret; touch /secret/x 2>&1; ls -A /sys/firmware",
    );
    fs::create_dir(bundle.rootfs().join("secret")).expect("directory");
    fs::create_dir(bundle.rootfs().join("other")).expect("directory");
    fs::write(bundle.rootfs().join("secret/file"), "seen").expect("file");
    fs::write(bundle.rootfs().join("secret-file"), "seen").expect("file");
    let masked = [
        "/secret",
        "/other",
        "/secret-file",
        "/sys/firmware",
        "/not/there",
    ];
    bundle
        .linux()
        .set_masked_paths(Some(masked.map(str::to_owned).into()));
    let said = bundle.run_with_any_exit();
    assert_eq!(said, "touch: /secret/x: Read-only file system");
}

#[test]
fn a_path_that_is_masked_twice_is_covered_once() {
    let mut bundle = Bundle::sh("grep -c ' /proc/keys ' /proc/self/mountinfo");
    let twice = ["/proc/keys", "/proc/keys"].map(str::to_owned).to_vec();
    bundle.linux().set_masked_paths(Some(twice));
    assert_eq!(bundle.run(), "1");
}

/// The devices, the terminals' file system and the places of mounts are made first.
#[test]
fn a_read_only_dev_has_its_devices() {
    let mut bundle = Bundle::sh(
        "echo x >/dev/null; echo y >/dev/shm/y && cat /dev/shm/y; stat -c %F /dev/ptmx /dev/tty; \
         touch /dev/new 2>&1; grep -c '^tmpfs /dev tmpfs ro,' /proc/mounts",
    );
    let mounts = bundle.spec.mounts_mut().as_mut().expect("mounts");
    let dev = mounts
        .iter_mut()
        .find(|mount| mount.destination() == Path::new("/dev"));
    let dev = dev.expect("/dev");
    let mut options = dev.options().clone().unwrap_or_default();
    options.push("ro".to_owned());
    dev.set_options(Some(options));
    let said = bundle.run();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        lines[..3],
        ["y", "symbolic link", "character special file"],
        "{said}"
    );
    assert!(lines[3].contains("Read-only file system"), "{said}");
    assert_eq!(lines[4], "1", "{said}");
}

#[test]
fn read_only_paths_cannot_be_written() {
    let mut bundle =
        Bundle::sh("touch /tmp/x 2>&1; echo 1 2>&1 >/proc/sys/kernel/hostname; touch /free");
    bundle.linux().set_readonly_paths(Some(vec![
        "/tmp".into(),
        "/proc/sys".into(),
        "/not/there".into(),
    ]));
    let said = bundle.run();
    assert!(said.contains("/tmp/x: Read-only file system"), "{said}");
    assert!(bundle.rootfs().join("free").exists());
}

#[test]
fn a_read_only_root_cannot_be_written_but_its_mounts_can() {
    let mut bundle = Bundle::sh("touch /x 2>&1; touch /dev/shm/x && echo fine");
    if let Some(root) = bundle.spec.root_mut() {
        root.set_readonly(Some(true));
    }
    let said = bundle.run();
    assert!(said.contains("/x: Read-only file system"), "{said}");
    assert!(said.ends_with("fine"), "{said}");
}

#[test]
fn the_hosts_file_system_is_gone() {
    let bundle = Bundle::sh("cat /proc/self/mountinfo");
    let said = bundle.run();
    // One root, and nothing mounted over or under it.
    assert_eq!(
        said.lines()
            .filter(|l| l.split(' ').nth(4) == Some("/"))
            .count(),
        1,
        "{said}"
    );
    // Nothing of the bundle's directory but the root itself.
    assert_eq!(said.matches(&bundle.bundle_arg()).count(), 1, "{said}");
}

#[test]
fn no_mount_reaches_the_host() {
    let bundle = Bundle::sh("true");
    let before = mounts();
    bundle.create();
    assert_eq!(mounts(), before);
    bundle.ok(&["start", &bundle.id]);
    until("it has ended", || bundle.status() == "stopped");
    assert_eq!(mounts(), before);
}

/// A directory of the host's where mounts are seen by all who have it.
fn shared_outside(bundle: &Bundle) -> std::path::PathBuf {
    let source = outside(bundle);
    tmpfs(&source);
    let none = None::<&str>;
    nix::mount::mount(none, &source, none, MsFlags::MS_SHARED, none).expect("shares");
    source
}

#[test]
fn a_mount_in_the_container_reaches_the_host_only_if_shared() {
    for (propagation, reaches) in [("rprivate", false), ("rslave", false), ("rshared", true)] {
        let mut bundle = Bundle::sh(
            "mkdir -p /data/sub && mount -t tmpfs none /data/sub && touch /data/sub/file",
        );
        let source = shared_outside(&bundle);
        bundle.bind(&source, "/data", &["rbind", propagation]);
        add_sys_admin(&mut bundle);
        bundle.run();
        assert_eq!(source.join("sub/file").exists(), reaches, "{propagation}");
    }
}

/// config-linux.md, "Rootfs Mount Propagation": the root's comes first, and what a mount asks for itself stands.
#[test]
fn a_mounts_own_propagation_stands_under_a_private_root_or_a_slave() {
    for root in ["private", "rprivate", "slave", "rslave"] {
        let mut bundle = Bundle::sh(
            "cat /proc/self/mountinfo
            mkdir -p /data/sub && mount -t tmpfs none /data/sub && touch /data/sub/file",
        );
        let source = shared_outside(&bundle);
        bundle.bind(&source, "/data", &["rbind", "rshared"]);
        bundle.linux().set_rootfs_propagation(Some(root.to_owned()));
        add_sys_admin(&mut bundle);
        let said = bundle.run();
        assert!(source.join("sub/file").exists(), "{root}: {said}");
        let is_shared = |line: &&str| line.contains(" shared:");
        let shared: Vec<_> = said.lines().filter(is_shared).collect();
        assert_eq!(shared.len(), 1, "{root}: {said}");
        assert!(shared[0].contains(" /data "), "{root}: {said}");
    }
}

#[test]
fn a_mount_on_the_host_reaches_a_slave() {
    for (propagation, reaches) in [("rprivate", false), ("rslave", true)] {
        let mut bundle = Bundle::sh("touch /tmp/up; while true; do sleep 1000; done");
        let source = shared_outside(&bundle);
        fs::create_dir(source.join("sub")).expect("sub");
        bundle.bind(&source, "/data", &["rbind", propagation]);
        bundle.create();
        bundle.ok(&["start", &bundle.id]);
        until("the container is up", || {
            bundle.rootfs().join("tmp/up").exists()
        });
        tmpfs(&source.join("sub"));
        fs::write(source.join("sub/file"), "").expect("file");
        let seen = stdout(&bundle.exec(&["ls", "/data/sub"]));
        assert_eq!(seen == "file", reaches, "{propagation}: {seen}");
    }
}

#[test]
fn the_container_sees_its_own_cgroup_only() {
    let bundle = Bundle::sh(
        "cat /proc/self/cgroup; find /sys/fs/cgroup -name 'podling*' 2>/dev/null; ls /sys/fs/cgroup",
    );
    let said = bundle.run_with_any_exit();
    assert!(!said.contains("podling-test"), "{said}");
    let namespaced = said
        .lines()
        .filter(|l| l.contains(':'))
        .all(|l| l.ends_with(":/"));
    assert!(namespaced, "{said}");
}

#[test]
fn a_mount_over_the_root_is_the_root() {
    let mut bundle =
        Bundle::sh("cat /which /early/file /late/file; ls /proc/self/status; touch /x");
    let root = bundle.path().join("other");
    oci_support::make_rootfs(&root);
    fs::write(root.join("which"), "other\n").expect("file");
    fs::create_dir(root.join("early")).expect("directory");
    fs::write(root.join("early/file"), "of the new root\n").expect("file");
    let data = bundle.path().join("data");
    fs::create_dir(&data).expect("directory");
    fs::write(data.join("file"), "of a volume\n").expect("file");
    // What is mounted before is covered; what is mounted after is in the new root.
    let mut mounts = bundle.spec.mounts().clone().unwrap_or_default();
    bundle.spec.set_mounts(None);
    bundle.bind(&data, "/early", &["rbind"]);
    bundle.bind(&root, "/", &["rbind", "ro"]);
    bundle.bind(&data, "/late", &["rbind"]);
    let all = bundle.spec.mounts_mut().get_or_insert_default();
    all.append(&mut mounts);
    // A read-only root has its mount targets.
    for place in ["late", "dev", "proc", "sys"] {
        fs::create_dir(root.join(place)).expect("directory");
    }
    bundle.write();
    let output = bundle.runtime(&["run", "-b", &bundle.bundle_arg(), &bundle.id]);
    assert_eq!(
        stdout(&output),
        "other\nof the new root\nof a volume\n/proc/self/status",
        "{}",
        stderr(&output)
    );
    assert!(stderr(&output).contains("Read-only"), "{}", stderr(&output));
    assert!(!bundle.rootfs().join("late").exists());
}

#[test]
fn a_root_that_is_no_directory_is_refused_by_field() {
    let mut bundle = Bundle::sh("true");
    fs::write(bundle.path().join("file"), "").expect("file");
    for (path, reason) in [
        ("", "root.path: is missing"),
        ("file", "root.path: file is not a directory"),
    ] {
        bundle
            .spec
            .root_mut()
            .get_or_insert_default()
            .set_path(path.into());
        let said = bundle.run_fails();
        assert!(said.contains(reason), "{said}");
    }
    // The bundle was not taken for the root.
    assert!(!bundle.path().join("proc").exists());
}

#[test]
fn a_file_system_over_a_file_is_refused_as_that() {
    let mut bundle = Bundle::sh("true");
    fs::write(bundle.rootfs().join("file"), "").expect("file");
    bundle.mount(
        MountBuilder::default()
            .typ("tmpfs")
            .destination("/file")
            .build()
            .expect("builds"),
    );
    let said = bundle.run_fails();
    assert!(
        said.contains("cannot open or make the mount target /file: Not a directory"),
        "{said}"
    );
}
