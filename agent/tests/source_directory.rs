//! Point 2: manifests of a directory become objects, and every change is noticed.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use podling_agent::source::directory;
use podling_agent::store::{Key, Kind, Store};
use tempfile::TempDir;

/// No test here waits for more than milliseconds, unless the machine is busy.
const PATIENCE: Duration = Duration::from_secs(30);

fn map(name: &str, value: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{k: {value}}}\n")
}

fn value(store: &Store, name: &str) -> Option<String> {
    let object = store.get(&Key::new(Kind::ConfigMap, "default", name))?;
    object.config_map()?.data.as_ref()?.get("k").cloned()
}

async fn wait_for(store: &Store, what: &str, is_so: impl Fn(&Store) -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so(store) {
        assert!(
            Instant::now() < deadline,
            "not in time: {what}; {:?}",
            store.problems()
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn wait_for_value(store: &Store, name: &str, expected: Option<&str>) {
    let what = format!("{name} is {expected:?}");
    wait_for(store, &what, |store| {
        value(store, name).as_deref() == expected
    })
    .await;
}

fn write(dir: &TempDir, name: &str, text: &str) {
    fs::write(dir.path().join(name), text).expect("written");
}

#[tokio::test]
async fn files_are_read_on_start_and_followed() {
    let dir = TempDir::new().expect("a directory");
    write(&dir, "a.yaml", &map("a", "one"));
    write(
        &dir,
        "b.json",
        r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"b"},"data":{"k":"one"}}"#,
    );
    let store = Store::in_memory("node");
    let following = directory::follow(&store, dir.path()).expect("followed");
    // Before `follow` returns.
    assert_eq!(value(&store, "a").as_deref(), Some("one"));
    assert_eq!(value(&store, "b").as_deref(), Some("one"));

    write(&dir, "a.yaml", &map("a", "two"));
    wait_for_value(&store, "a", Some("two")).await;
    write(&dir, "c.yml", &map("c", "one"));
    wait_for_value(&store, "c", Some("one")).await;
    fs::remove_file(dir.path().join("b.json")).expect("removed");
    wait_for_value(&store, "b", None).await;
    // An atomic replacement, as editors and configuration management do it.
    write(&dir, ".a.yaml.tmp", &map("a", "three"));
    fs::rename(dir.path().join(".a.yaml.tmp"), dir.path().join("a.yaml")).expect("renamed");
    wait_for_value(&store, "a", Some("three")).await;
    // Renamed to a name that is not read.
    fs::rename(dir.path().join("c.yml"), dir.path().join("c.yml.off")).expect("renamed");
    wait_for_value(&store, "c", None).await;

    drop(following);
    assert_eq!(
        value(&store, "a").as_deref(),
        Some("three"),
        "what it said stays wanted"
    );
}

#[tokio::test]
async fn editor_and_backup_files_are_not_read() {
    let dir = TempDir::new().expect("a directory");
    for name in [
        ".a.yaml",
        ".a.yaml.swp",
        "a.yaml~",
        "a.yaml.bak",
        "#a.yaml#",
        "a.yaml.orig",
        "4913",
        "a.txt",
        ".#a.yaml",
        "a.yaml.rpmsave",
        "a.yaml.dpkg-old",
    ] {
        write(&dir, name, &map("a", "wrong"));
    }
    fs::create_dir(dir.path().join("sub")).expect("a directory");
    fs::write(dir.path().join("sub/b.yaml"), map("b", "wrong")).expect("written");
    let store = Store::in_memory("node");
    let _following = directory::follow(&store, dir.path()).expect("followed");
    assert_eq!(store.list(Kind::ConfigMap), []);
    write(&dir, "z.yaml", &map("z", "right"));
    wait_for_value(&store, "z", Some("right")).await;
    assert_eq!(store.list(Kind::ConfigMap).len(), 1);
    assert_eq!(store.problems(), []);
}

#[tokio::test]
async fn a_broken_file_keeps_its_last_good_version_and_others_go_on() {
    let dir = TempDir::new().expect("a directory");
    write(
        &dir,
        "a.yaml",
        &format!("{}---\n{}", map("a", "one"), map("a2", "one")),
    );
    write(&dir, "b.yaml", &map("b", "one"));
    let data = TempDir::new().expect("a directory");
    let database = data.path().join("store.redb");
    {
        let store = Store::open(&database, "node").expect("a store");
        let _following = directory::follow(&store, dir.path()).expect("followed");
        write(
            &dir,
            "a.yaml",
            &format!("{}---\n{}", map("a", "two"), "kind: ConfigMop\n"),
        );
        wait_for(&store, "the problem", |store| store.problems().len() == 1).await;
        let problem = store.problems().remove(0).to_string();
        assert!(problem.contains("a.yaml:6: kind: "), "{problem}");
        assert!(problem.contains("did you mean `ConfigMap`?"), "{problem}");
        write(&dir, "b.yaml", &map("b", "two"));
        wait_for_value(&store, "b", Some("two")).await;
        assert_eq!(value(&store, "a").as_deref(), Some("one"));
        assert_eq!(value(&store, "a2").as_deref(), Some("one"));
    }
    // Over a restart too. The task of the first store ends with its next breath, and lets go of the file.
    let deadline = Instant::now() + PATIENCE;
    let store = loop {
        match Store::open(&database, "node") {
            Ok(store) => break store,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    };
    let _following = directory::follow(&store, dir.path()).expect("followed");
    assert_eq!(value(&store, "a").as_deref(), Some("one"));
    assert_eq!(value(&store, "a2").as_deref(), Some("one"));
    assert_eq!(store.problems().len(), 1);
    write(&dir, "a.yaml", &map("a", "three"));
    wait_for_value(&store, "a", Some("three")).await;
    wait_for_value(&store, "a2", None).await;
    assert_eq!(store.problems(), []);
    // A broken file that is removed is gone.
    write(&dir, "b.yaml", "{");
    wait_for(&store, "the problem", |store| !store.problems().is_empty()).await;
    fs::remove_file(dir.path().join("b.yaml")).expect("removed");
    wait_for_value(&store, "b", None).await;
    wait_for(&store, "no problem", |store| store.problems().is_empty()).await;
}

/// The layout of a mounted ConfigMap: links through `..data`, which is replaced atomically.
#[tokio::test]
async fn links_of_a_mounted_config_map_are_followed() {
    let dir = TempDir::new().expect("a directory");
    let link = |target: &str, name: &str| {
        std::os::unix::fs::symlink(target, dir.path().join(name)).expect("linked");
    };
    fs::create_dir(dir.path().join("..1")).expect("a directory");
    fs::write(dir.path().join("..1/a.yaml"), map("a", "one")).expect("written");
    link("..1", "..data");
    link("..data/a.yaml", "a.yaml");
    let store = Store::in_memory("node");
    let _following = directory::follow(&store, dir.path()).expect("followed");
    assert_eq!(value(&store, "a").as_deref(), Some("one"));
    fs::create_dir(dir.path().join("..2")).expect("a directory");
    fs::write(dir.path().join("..2/a.yaml"), map("a", "two")).expect("written");
    link("..2", "..data_tmp");
    fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).expect("renamed");
    wait_for_value(&store, "a", Some("two")).await;
    // A link that appears is a file that appears.
    let elsewhere = TempDir::new().expect("a directory");
    write(&elsewhere, "b", &map("b", "one"));
    link(&elsewhere.path().join("b").to_string_lossy(), "b.yaml");
    wait_for_value(&store, "b", Some("one")).await;
}

#[tokio::test]
async fn a_link_that_leads_nowhere_is_a_problem_and_keeps_what_was_there() {
    let dir = TempDir::new().expect("a directory");
    let link = |target: &str, name: &str| {
        std::os::unix::fs::symlink(target, dir.path().join(name)).expect("linked");
    };
    write(&dir, "kept", &map("kept", "one"));
    link("kept", "kept.yaml");
    link("nowhere", "new.yaml");
    let store = Store::in_memory("node");
    let _following = directory::follow(&store, dir.path()).expect("followed");
    let said = |store: &Store, what: &str| {
        let mut problems = store.problems().into_iter();
        problems.any(|problem| problem.to_string().contains(what))
    };
    assert!(
        said(&store, "it is a link to nowhere, which is not there"),
        "{:?}",
        store.problems()
    );
    link("gone", "kept.new");
    fs::rename(dir.path().join("kept.new"), dir.path().join("kept.yaml")).expect("renamed");
    wait_for(&store, "the problem", |store| said(store, "a link to gone")).await;
    assert_eq!(value(&store, "kept").as_deref(), Some("one"));
    fs::remove_file(dir.path().join("kept.yaml")).expect("removed");
    fs::remove_file(dir.path().join("new.yaml")).expect("removed");
    wait_for_value(&store, "kept", None).await;
    wait_for(&store, "no problem", |store| store.problems().is_empty()).await;
}

#[tokio::test]
async fn a_directory_that_is_not_there_changes_nothing_and_is_found_when_it_comes() {
    let parent = TempDir::new().expect("a directory");
    let path = parent.path().join("manifests");
    let store = Store::in_memory("node");
    let _following = directory::follow(&store, &path).expect("followed");
    let text = store.problems().remove(0).to_string();
    assert!(text.contains("cannot read the manifests"), "{text}");
    fs::create_dir(&path).expect("a directory");
    fs::write(path.join("a.yaml"), map("a", "one")).expect("written");
    wait_for_value(&store, "a", Some("one")).await;
    assert_eq!(store.problems(), []);
    fs::remove_dir_all(&path).expect("removed");
    wait_for(&store, "the problem", |store| {
        store
            .problems()
            .iter()
            .any(|problem| problem.to_string().contains("cannot read the manifests"))
    })
    .await;
}

#[tokio::test]
async fn a_directory_whose_parents_are_not_there_either_is_found_when_it_comes() {
    let root = TempDir::new().expect("a directory");
    let path = root.path().join("etc/podling/manifests");
    let store = Store::in_memory("node");
    let _following = directory::follow(&store, &path).expect("followed");
    for _ in 0..2 {
        for directory in [root.path().join("etc"), root.path().join("etc/podling")] {
            fs::create_dir(&directory).expect("a directory");
        }
        fs::create_dir(root.path().join("new")).expect("a directory");
        fs::write(root.path().join("new/a.yaml"), map("a", "one")).expect("written");
        fs::rename(root.path().join("new"), &path).expect("renamed");
        wait_for(&store, "no problem", |store| store.problems().is_empty()).await;
        assert_eq!(value(&store, "a").as_deref(), Some("one"));
        fs::remove_dir_all(root.path().join("etc")).expect("removed");
        wait_for(&store, "the problem", |store| !store.problems().is_empty()).await;
    }
}

#[tokio::test]
async fn what_is_no_readable_text_is_a_problem() {
    let dir = TempDir::new().expect("a directory");
    fs::write(dir.path().join("binary.yaml"), [0xff, 0xfe, 0]).expect("written");
    fs::create_dir(dir.path().join("directory.yaml")).expect("a directory");
    let fifo = dir.path().join("fifo.yaml");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).expect("a FIFO");
    write(&dir, "good.yaml", &map("good", "one"));
    let store = Store::in_memory("node");
    let _following = directory::follow(&store, dir.path()).expect("followed");
    assert_eq!(value(&store, "good").as_deref(), Some("one"));
    let problems: Vec<String> = store.problems().iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 3, "{problems:?}");
    assert!(problems[0].contains("not UTF-8"), "{problems:?}");
    assert!(problems[1].contains("not a regular file"), "{problems:?}");
    assert!(problems[2].contains("not a regular file"), "{problems:?}");
}

#[tokio::test]
async fn a_single_file_is_followed_whatever_its_name() {
    let dir = TempDir::new().expect("a directory");
    write(&dir, "pod.txt", &map("a", "one"));
    write(&dir, "other.yaml", &map("b", "one"));
    let store = Store::in_memory("node");
    let path: &Path = &dir.path().join("pod.txt");
    let _following = directory::follow(&store, path).expect("followed");
    assert_eq!(value(&store, "a").as_deref(), Some("one"));
    write(&dir, "pod.txt", &map("a", "two"));
    wait_for_value(&store, "a", Some("two")).await;
    assert_eq!(value(&store, "b"), None);
    fs::remove_file(path).expect("removed");
    wait_for_value(&store, "a", None).await;
}
