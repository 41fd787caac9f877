//! Names and links that lead out of the layer.

use tar::EntryType;

use super::tests::unpack;
use crate::test_archive::Tar;

#[test]
fn dot_dot_in_a_name_is_refused() {
    for name in ["../outside", "a/../../outside", "a/.."] {
        let layer = unpack(Tar::new().dir("a").file(name, b"evil"));
        assert!(layer.error().contains("holds `..`"), "{}", layer.error());
    }
}

#[test]
fn an_absolute_name_stays_in_the_layer() {
    let layer = unpack(Tar::new().file("/etc/passwd", b"mine"));
    layer.result.as_ref().unwrap();
    assert_eq!(layer.read("etc/passwd"), "mine");
}

#[test]
fn a_file_through_a_symlink_that_leads_out_stays_in_the_layer() {
    for target in ["..", "/", "../../../../../../.."] {
        let layer = unpack(Tar::new().symlink("up", target).file("up/outside", b"evil"));
        // The link leads to the layer's root, as it does in the container.
        layer.result.as_ref().unwrap();
        assert_eq!(layer.read("outside"), "evil");
    }
}

#[test]
fn a_file_over_a_symlink_replaces_the_link() {
    let layer = unpack(
        Tar::new()
            .symlink("link", "../outside")
            .file("link", b"new"),
    );
    layer.result.as_ref().unwrap();
    assert!(
        std::fs::symlink_metadata(layer.path("link"))
            .unwrap()
            .is_file()
    );
    assert_eq!(layer.read("link"), "new");
}

#[test]
fn a_directory_entry_over_a_symlink_does_not_change_what_the_link_leads_to() {
    let layer = unpack(
        Tar::new()
            .symlink("link", "..")
            .entry("link", EntryType::Directory, 0o777, "", b"")
            .file("link/file", b"x"),
    );
    layer.result.as_ref().unwrap();
    assert_eq!(layer.read("link/file"), "x");
}

#[test]
fn a_dangling_parent_link_is_refused() {
    let layer = unpack(
        Tar::new()
            .symlink("link", "/nowhere")
            .file("link/file", b"x"),
    );
    assert!(
        layer.error().contains("not a directory"),
        "{}",
        layer.error()
    );
}

#[test]
fn a_hard_link_out_of_the_layer_is_refused() {
    for target in ["../outside", "a/../../outside"] {
        let layer = unpack(Tar::new().hard_link("link", target));
        assert!(layer.error().contains("leads out"), "{}", layer.error());
    }
    let layer = unpack(Tar::new().hard_link("link", "/etc/passwd"));
    assert!(
        layer.error().contains("find the target"),
        "{}",
        layer.error()
    );
    let through_link = Tar::new()
        .symlink("up", "..")
        .hard_link("link", "up/outside");
    let layer = unpack(through_link);
    assert!(
        layer.error().contains("find the target"),
        "{}",
        layer.error()
    );
}
