//! Options of mounts: mapped ids, recursive attributes, copies, links.
#![cfg(feature = "privileged-tests")]

mod oci_support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use oci_spec::runtime::{
    LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, MountBuilder,
};
use oci_support::Bundle;

const FIRST: u32 = 200_000;

fn map(inside: u32, outside: u32, count: u32) -> Vec<LinuxIdMapping> {
    let map = LinuxIdMappingBuilder::default()
        .container_id(inside)
        .host_id(outside)
        .size(count);
    vec![map.build().expect("a map")]
}

/// A directory of the host with a file of this owner.
fn data(bundle: &Bundle, owner: u32) -> std::path::PathBuf {
    let data = bundle.path().join("data");
    fs::create_dir(&data).expect("directory");
    fs::write(data.join("file"), "text").expect("file");
    for path in [&data, &data.join("file")] {
        chown(path, Some(owner), Some(owner)).expect("chown");
    }
    data
}

/// Binds it with these options and its own maps.
fn bind_mapped(bundle: &mut Bundle, source: &Path, options: &[&str], maps: Vec<LinuxIdMapping>) {
    bind_mapped_at(bundle, source, "/data", options, maps);
}

fn bind_mapped_at(
    bundle: &mut Bundle,
    source: &Path,
    destination: &str,
    options: &[&str],
    maps: Vec<LinuxIdMapping>,
) {
    let options: Vec<String> = options.iter().map(|&o| o.to_owned()).collect();
    bundle.mount(
        MountBuilder::default()
            .typ("bind")
            .source(source)
            .destination(destination)
            .options(options)
            .uid_mappings(maps.clone())
            .gid_mappings(maps)
            .build()
            .expect("a mount"),
    );
}

fn in_user_namespace(bundle: &mut Bundle) {
    let user = LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::User);
    let user = user.build().expect("a namespace");
    let linux = bundle.linux();
    linux.namespaces_mut().get_or_insert_default().push(user);
    linux
        .set_uid_mappings(Some(map(0, FIRST, 1000)))
        .set_gid_mappings(Some(map(0, FIRST, 1000)));
    fs::set_permissions(bundle.rootfs(), fs::Permissions::from_mode(0o777)).expect("mode");
}

fn tmpfs(bundle: &mut Bundle, destination: &str, options: &[&str]) {
    let options: Vec<String> = options.iter().map(|&o| o.to_owned()).collect();
    bundle.mount(
        MountBuilder::default()
            .typ("tmpfs")
            .source("tmpfs")
            .destination(destination)
            .options(options)
            .build()
            .expect("a mount"),
    );
}

#[test]
fn owners_are_mapped_as_the_mount_says() {
    let mut bundle = Bundle::sh("stat -c %u:%g /data/file; touch /data/made");
    let source = data(&bundle, 1000);
    // On disk 1000; here root.
    bind_mapped(&mut bundle, &source, &["rbind", "idmap"], map(1000, 0, 1));
    assert_eq!(bundle.run(), "0:0");
    let made = fs::metadata(source.join("made")).expect("made");
    assert_eq!((made.uid(), made.gid()), (1000, 1000));
}

#[test]
fn owners_are_mapped_without_the_option_too() {
    let mut bundle = Bundle::sh("stat -c %u:%g /data/file");
    let source = data(&bundle, 1000);
    bind_mapped(&mut bundle, &source, &["bind"], map(1000, 7, 1));
    assert_eq!(bundle.run(), "7:7");
}

#[test]
fn owners_are_mapped_as_in_the_containers_user_namespace() {
    let mut bundle = Bundle::sh("stat -c %u:%g /data/file; id -u");
    in_user_namespace(&mut bundle);
    let source = data(&bundle, 5);
    bundle.bind(&source, "/data", &["bind", "idmap"]);
    assert_eq!(bundle.run(), "5:5\n0");
}

#[test]
fn mounts_below_are_mapped_only_by_ridmap() {
    for (option, below) in [("idmap", "1000"), ("ridmap", "0")] {
        let mut bundle = Bundle::sh("stat -c %u /data/file /data/below/file");
        let source = data(&bundle, 1000);
        let under = bundle.path().join("under");
        fs::create_dir(&under).expect("directory");
        fs::write(under.join("file"), "").expect("file");
        chown(under.join("file"), Some(1000), Some(1000)).expect("chown");
        fs::create_dir(source.join("below")).expect("directory");
        nix::mount::mount(
            Some(&under),
            &source.join("below"),
            None::<&str>,
            nix::mount::MsFlags::MS_BIND,
            None::<&str>,
        )
        .expect("binds");
        bind_mapped(&mut bundle, &source, &["rbind", option], map(1000, 0, 1));
        assert_eq!(bundle.run(), format!("0\n{below}"), "{option}");
    }
}

#[test]
fn owners_are_mapped_by_cruns_option() {
    let mut bundle = Bundle::sh("stat -c %u:%g /data/file");
    let source = data(&bundle, 1000);
    bundle.bind(
        &source,
        "/data",
        &["bind", "idmap=uids=1000-3-1;gids=1000-4-1"],
    );
    assert_eq!(bundle.run(), "3:4");
}

#[test]
fn ids_that_cannot_be_mapped_are_refused() {
    let mut bundle = Bundle::sh("true");
    let source = data(&bundle, 0);
    bundle.bind(&source, "/data", &["bind", "idmap"]);
    let message = bundle.run_fails();
    assert!(
        message.contains("mounts (/data): idmap needs uidMappings"),
        "{message}"
    );
    bundle.spec.mounts_mut().as_mut().expect("mounts").pop();
    // A procfs maps no ids.
    bind_mapped(&mut bundle, Path::new("/proc"), &["bind"], map(0, 1, 1));
    let message = bundle.run_fails();
    assert!(
        message.contains("map the ids of the mount at /data"),
        "{message}"
    );
    bundle.spec.mounts_mut().as_mut().expect("mounts").pop();
    tmpfs(&mut bundle, "/data", &["idmap"]);
    let message = bundle.run_fails();
    assert!(message.contains("idmap is for bind mounts"), "{message}");
}

#[test]
fn recursive_attributes_reach_the_mounts_below() {
    let mut bundle = Bundle::sh(
        "grep ' /data' /proc/self/mountinfo | cut -d' ' -f6; touch /data/x || echo ro; \
         touch /data/below/x || echo ro",
    );
    let source = data(&bundle, 0);
    fs::create_dir(source.join("below")).expect("directory");
    nix::mount::mount(
        Some("tmpfs"),
        &source.join("below"),
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        None::<&str>,
    )
    .expect("mounts");
    bundle.bind(
        &source,
        "/data",
        &[
            "rbind",
            "rro",
            "rnosuid",
            "rnodev",
            "rnoexec",
            "rnosymfollow",
            "rnoatime",
            "rnodiratime",
        ],
    );
    let out = bundle.run_with_any_exit();
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.len(), 4, "{out}");
    for line in &lines[..2] {
        for option in [
            "ro",
            "nosuid",
            "nodev",
            "noexec",
            "noatime",
            "nodiratime",
            "nosymfollow",
        ] {
            assert!(line.split(',').any(|o| o == option), "{option} in {line}");
        }
    }
    assert_eq!(lines[2..], ["ro", "ro"]);
}

#[test]
fn a_tmpfs_begins_with_what_it_covers() {
    let mut bundle = Bundle::sh(
        "cat /etc/covered/sub/file; readlink /etc/covered/link; stat -c %a:%u /etc/covered /etc/covered/sub; \
         touch /etc/covered/new; stat -f -c %T /etc/covered",
    );
    let covered = bundle.rootfs().join("etc/covered");
    fs::create_dir_all(covered.join("sub")).expect("directory");
    fs::write(covered.join("sub/file"), "text\n").expect("file");
    symlink("sub/file", covered.join("link")).expect("link");
    fs::set_permissions(&covered, fs::Permissions::from_mode(0o711)).expect("mode");
    chown(covered.join("sub"), Some(7), Some(7)).expect("chown");
    tmpfs(&mut bundle, "/etc/covered", &["tmpcopyup", "size=1m"]);
    assert_eq!(bundle.run(), "text\nsub/file\n711:0\n755:7\ntmpfs");
    assert!(!covered.join("new").exists(), "the image was written to");
}

#[test]
fn a_tmpfs_too_small_for_what_it_covers_is_an_error() {
    let mut bundle = Bundle::sh("true");
    let covered = bundle.rootfs().join("covered");
    fs::create_dir(&covered).expect("directory");
    fs::write(covered.join("file"), vec![1; 1 << 20]).expect("file");
    tmpfs(&mut bundle, "/covered", &["tmpcopyup", "size=64k"]);
    let message = bundle.run_fails();
    assert!(
        message.contains("/covered") && message.contains("No space"),
        "{message}"
    );
}

#[test]
fn a_link_is_copied_or_bound_itself() {
    let mut bundle = Bundle::sh("readlink /copied; readlink /bound; cat /followed");
    fs::write(bundle.path().join("file"), "text\n").expect("file");
    let link = bundle.path().join("link");
    symlink("file", &link).expect("link");
    symlink("nowhere", bundle.rootfs().join("bound")).expect("link");
    bundle.bind(&link, "/copied", &["bind", "copy-symlink"]);
    bundle.bind(&link, "/bound", &["bind", "src-nofollow", "dest-nofollow"]);
    bundle.bind(&link, "/followed", &["bind"]);
    assert_eq!(bundle.run(), "file\nfile\ntext");
}

#[test]
fn a_mount_is_changed_by_remount() {
    let mut bundle = Bundle::sh("touch /data/x || echo ro");
    let source = data(&bundle, 0);
    bundle.bind(&source, "/data", &["bind"]);
    bundle.bind(&source, "/data", &["bind", "remount", "ro"]);
    assert_eq!(bundle.run(), "ro");
    // What is no mount cannot be changed.
    let mut bundle = Bundle::sh("true");
    bundle.bind(Path::new("/"), "/bin", &["remount", "ro"]);
    let message = bundle.run_fails();
    assert!(message.contains("/bin"), "{message}");
}

#[test]
fn options_of_the_whole_file_system_are_its_own() {
    let mut bundle = Bundle::sh("grep ' /data ' /proc/self/mountinfo");
    tmpfs(
        &mut bundle,
        "/data",
        &["sync", "dirsync", "mode=750", "nr_inodes=100", "silent"],
    );
    let out = bundle.run();
    for option in ["sync", "dirsync", "mode=750", "nr_inodes=100"] {
        assert!(out.contains(option), "{option} in {out}");
    }
    let mut bundle = Bundle::sh("true");
    let source = data(&bundle, 0);
    bundle.bind(&source, "/data", &["bind", "sync"]);
    let message = bundle.run_fails();
    assert!(
        message.contains("mounts (/data): a bind mount has no option sync"),
        "{message}"
    );
}

/// Each option that `features` names does what it says, or asks for what is so anyway: none is refused.
#[test]
fn every_option_of_features_is_taken() {
    let mut bundle =
        Bundle::sh("grep -c ' /mnt/' /proc/self/mountinfo; readlink /mnt/copy-symlink");
    let source = data(&bundle, 0);
    let link = bundle.path().join("link");
    symlink("target", &link).expect("link");
    let features: serde_json::Value =
        serde_json::from_str(&bundle.ok(&["features"])).expect("JSON");
    let options: Vec<String> =
        serde_json::from_value(features["mountOptions"].clone()).expect("options");
    let mut count = 0;
    for option in &options {
        let place = format!("/mnt/{option}");
        match option.as_str() {
            "bind" | "rbind" | "src-nofollow" | "dest-nofollow" => {
                bundle.bind(&source, &place, &["bind", option]);
            }
            "idmap" | "ridmap" => {
                bind_mapped_at(&mut bundle, &source, &place, &[option], map(0, FIRST, 10));
            }
            "copy-symlink" => {
                bundle.bind(&link, &place, &["bind", option]);
                continue;
            }
            "remount" => {
                bundle.bind(&source, &place, &["bind"]);
                bundle.bind(&source, &place, &["bind", option, "ro"]);
            }
            _ => tmpfs(&mut bundle, &place, &[option]),
        }
        count += 1;
    }
    assert_eq!(bundle.run(), format!("{count}\ntarget"));
}
