//! Tests of the store.

use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodStatus};

use super::change::{Verdict, between};
use super::*;

const POD: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {a: b}}
spec:
  initContainers: [{name: init, image: i:1}]
  containers:
  - name: web
    image: i:1
    resources: {requests: {cpu: 100m}, limits: {cpu: 200m}}
    livenessProbe: {tcpSocket: {port: 80}}
";

fn desired_in(file: &str, text: &str) -> Vec<Desired> {
    crate::manifest::parse(text, &Origin::file(file), "node").expect("a good manifest")
}

fn desired(text: &str) -> Vec<Desired> {
    desired_in("/m/a.yaml", text)
}

fn writer() -> Writer {
    Writer::directory(&PathBuf::from("/m"))
}

fn web() -> Key {
    Key::pod("default", "web")
}

fn put(store: &Store, text: &str) {
    store
        .replace_writer(&writer(), desired(text))
        .expect("the store takes it");
}

fn get(store: &Store) -> Arc<Object> {
    store.get(&web()).expect("the pod is there")
}

#[test]
fn objects_come_change_and_go() {
    let store = Store::in_memory("node");
    let mut watch = store.watch();
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {a: b}\n";
    put(&store, map);
    let key = Key::new(Kind::ConfigMap, "default", "m");
    let first = store.get(&key).expect("it is there");
    assert_eq!((first.generation, first.resource_version), (1, 1));
    put(&store, map);
    assert_eq!(store.get(&key), Some(first.clone()), "nothing changed");
    put(&store, &map.replace("a: b", "a: c"));
    let second = store.get(&key).expect("it is there");
    assert_eq!((second.generation, second.resource_version), (2, 2));
    assert_eq!(second.uid, first.uid);
    store
        .replace_writer(&writer(), Vec::new())
        .expect("the store takes it");
    assert_eq!(store.get(&key), None);
    let change = |resource_version, what| Change {
        resource_version,
        key: key.clone(),
        what,
    };
    assert_eq!(
        watch.try_next(),
        Some(Batch::Changes(vec![
            change(1, What::Object),
            change(2, What::Object),
            change(3, What::Removed)
        ]))
    );
    assert_eq!(watch.try_next(), None);
}

#[test]
fn a_removed_pod_goes_when_it_has_ended() {
    let store = Store::in_memory("node");
    put(&store, POD);
    let pod = get(&store);
    let finalized = store.finalize(&web(), &pod.uid).expect("no disk");
    assert!(!finalized, "nobody wants it gone");
    store
        .replace_writer(&writer(), Vec::new())
        .expect("the store takes it");
    assert_eq!(get(&store).grace_secs(), 30);
    assert!(get(&store).deletion.is_some());
    assert!(!store.finalize(&web(), "another").expect("no disk"));
    assert!(store.finalize(&web(), &pod.uid).expect("no disk"));
    assert_eq!(store.get(&web()), None);
    // The next of this name is another one.
    put(&store, POD);
    assert_ne!(get(&store).uid, pod.uid);
}

#[test]
fn a_pod_that_ends_with_the_node_is_told_so_and_stays_wanted() {
    let store = Store::in_memory("node");
    put(&store, POD);
    let pod = get(&store);
    let mut watch = store.watch();
    store.set_ending(&web(), "another");
    assert_eq!(watch.try_next(), None);
    store.set_ending(&web(), &pod.uid);
    let since = store.ending(&pod.uid);
    assert!(since.is_some() && watch.try_next().is_some());
    store.set_ending(&web(), &pod.uid);
    assert_eq!(store.ending(&pod.uid), since);
    assert_eq!(get(&store).deletion, None);
}

#[test]
fn pods_of_another_seed_are_other_pods() {
    let dir = tempfile::tempdir().expect("a directory");
    let uids = ["node", "node", "run"].map(|seed| {
        let path = dir.path().join("store.redb");
        let store = Store::open_seeded(&path, "node", seed).expect("a store");
        put(&store, POD);
        let uid = get(&store).uid.clone();
        drop(store);
        std::fs::remove_file(path).expect("the store's file");
        uid
    });
    assert_eq!(uids[0], uids[1]);
    assert_ne!(uids[1], uids[2]);
}

#[test]
fn a_pod_is_replaced_after_its_end_unless_the_change_is_applied_in_place() {
    let store = Store::in_memory("node");
    put(&store, POD);
    let first = get(&store);
    put(&store, &POD.replace("200m", "300m"));
    let resized = get(&store);
    assert_eq!((&resized.uid, resized.generation), (&first.uid, 2));
    assert_eq!(resized.deletion, None);

    let changed = POD.replace("name: web\n", "name: web\n    env: [{name: A, value: b}]\n");
    put(&store, &changed);
    let ending = get(&store);
    assert_eq!((&ending.uid, ending.generation), (&first.uid, 2));
    assert!(ending.deletion.is_some());
    assert!(store.finalize(&web(), &first.uid).expect("no disk"));
    let second = get(&store);
    assert_ne!(second.uid, first.uid);
    assert_eq!((second.deletion, second.generation), (None, 1));
    let pod = second
        .pod()
        .and_then(|pod| pod.spec.as_ref())
        .expect("a spec");
    assert!(pod.containers[0].env.is_some());
}

#[test]
fn a_pod_that_comes_back_while_it_ends_starts_again() {
    let store = Store::in_memory("node");
    put(&store, POD);
    let first = get(&store);
    store
        .replace_writer(&writer(), Vec::new())
        .expect("the store takes it");
    put(&store, POD);
    assert_eq!(get(&store).uid, first.uid);
    assert!(store.finalize(&web(), &first.uid).expect("no disk"));
    assert_ne!(get(&store).uid, first.uid);
    // And one that changes its mind does not.
    let second = get(&store);
    store.delete(&web(), Some(5)).expect("it is there");
    store
        .replace_writer(&writer(), Vec::new())
        .expect("the store takes it");
    assert!(store.finalize(&web(), &second.uid).expect("no disk"));
    assert_eq!(store.get(&web()), None);
}

#[test]
fn a_deleted_pod_that_a_file_wants_comes_back() {
    let store = Store::in_memory("node");
    put(&store, POD);
    let first = store.delete(&web(), Some(60)).expect("it is there");
    assert_eq!(first.grace_secs(), 60);
    assert_eq!(
        store
            .delete(&web(), Some(2))
            .expect("it is there")
            .grace_secs(),
        2
    );
    assert_eq!(
        store
            .delete(&web(), Some(9))
            .expect("it is there")
            .grace_secs(),
        2
    );
    assert!(store.finalize(&web(), &first.uid).expect("no disk"));
    let second = get(&store);
    assert!(second.uid != first.uid && second.deletion.is_none());
    assert!(matches!(
        store.delete(&Key::pod("x", "y"), None),
        Err(StoreError::NotFound(_))
    ));
}

#[test]
fn the_same_object_from_two_writers_is_refused_with_both_names() {
    let store = Store::in_memory("node");
    let etcd = Writer::etcd("/podling");
    let key = Origin::etcd("/podling/manifests/web");
    let from_etcd = crate::manifest::parse(POD, &key, "node").expect("a good manifest");
    store
        .replace_writer(&etcd, from_etcd)
        .expect("the store takes it");
    let first = get(&store);
    // Writers in the order of their names would give it to the directory: who has it keeps it.
    put(&store, POD);
    assert_eq!(get(&store).uid, first.uid);
    assert_eq!(get(&store).writer, etcd);
    let problems = store.problems();
    assert_eq!(problems.len(), 1);
    let text = problems[0].to_string();
    for name in [
        "/m/a.yaml",
        "directory /m",
        "etcd:/podling/manifests/web",
        "etcd /podling",
    ] {
        assert!(text.contains(name), "{text}");
    }
    // When the first lets go, the other takes over, and the same pod goes on.
    store
        .replace_writer(&etcd, Vec::new())
        .expect("the store takes it");
    assert_eq!(get(&store).uid, first.uid);
    assert_eq!(get(&store).writer, writer());
    assert_eq!(get(&store).deletion, None);
    assert_eq!(store.problems(), []);
}

#[test]
fn the_same_object_from_two_files_is_refused_with_both_names() {
    let store = Store::in_memory("node");
    let mut both = desired_in("/m/b.yaml", POD);
    both.extend(desired_in("/m/a.yaml", &POD.replace("a: b", "a: c")));
    store
        .replace_writer(&writer(), both.clone())
        .expect("the store takes it");
    assert_eq!(get(&store).origin.unit(), Origin::file("/m/b.yaml"));
    both.reverse();
    store
        .replace_writer(&writer(), both)
        .expect("the store takes it");
    assert_eq!(
        get(&store).origin.unit(),
        Origin::file("/m/b.yaml"),
        "who has it keeps it"
    );
    assert_eq!(store.problems()[0].origin.unit(), Origin::file("/m/a.yaml"));
}

#[test]
fn statuses_are_of_one_uid_and_are_watched() {
    let store = Store::in_memory("node");
    put(&store, POD);
    let pod = get(&store);
    let mut watch = store.watch();
    let status = PodStatus {
        phase: Some("Running".into()),
        ..PodStatus::default()
    };
    assert!(!store.set_status(&web(), "another", status.clone()));
    assert!(store.set_status(&web(), &pod.uid, status.clone()));
    assert!(
        !store.set_status(&web(), &pod.uid, status.clone()),
        "it is the same"
    );
    assert_eq!(store.status(&web()).as_deref(), Some(&status));
    let Some(Batch::Changes(changes)) = watch.try_next() else {
        panic!("a change");
    };
    assert_eq!((changes.len(), changes[0].what), (1, What::Status));
    let shown = pod.to_pod(Some(&status)).expect("a pod");
    assert_eq!(shown.metadata.uid.as_deref(), Some(pod.uid.as_str()));
    assert_eq!(shown.status, Some(status));
}

#[test]
fn a_watcher_that_falls_behind_is_told_to_list_again() {
    let store = Store::in_memory("node");
    store.set_history_limit(4);
    put(&store, POD);
    let uid = get(&store).uid.clone();
    let mut slow = store.watch();
    let mut quick = store.watch();
    for at in 0..10 {
        let status = PodStatus {
            message: Some(at.to_string()),
            ..PodStatus::default()
        };
        assert!(store.set_status(&web(), &uid, status));
        assert!(matches!(quick.try_next(), Some(Batch::Changes(changes)) if changes.len() == 1));
    }
    assert_eq!(slow.try_next(), Some(Batch::Relist));
    assert_eq!(slow.try_next(), None);
}

#[tokio::test]
async fn a_watch_wakes_up() {
    let store = Store::in_memory("node");
    let mut watch = store.watch();
    let other = store.clone();
    let next = tokio::spawn(async move { watch.next().await });
    tokio::task::yield_now().await;
    put(&other, POD);
    assert!(matches!(next.await, Ok(Batch::Changes(changes)) if changes[0].key == web()));
}

#[test]
fn desired_state_survives_a_restart_and_statuses_do_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.redb");
    let (uid, version) = {
        let store = Store::open(&path, "node").expect("a new store");
        put(&store, POD);
        let pod = get(&store);
        assert!(store.set_status(&web(), &pod.uid, PodStatus::default()));
        assert!(matches!(
            Store::open(&path, "node"),
            Err(StoreError::Disk(DiskError::InUse(_)))
        ));
        (pod.uid.clone(), store.version())
    };
    let changed = POD.replace("- name: web", "- name: other");
    {
        let store = Store::open(&path, "node").expect("the same store");
        assert_eq!(get(&store).uid, uid);
        assert_eq!(store.status(&web()), None);
        assert!(store.version() > version, "versions grow");
        assert_eq!(store.wanted_by(&writer()).len(), 1);
        // The same manifest means no change.
        let before = store.version();
        put(&store, POD);
        assert_eq!(store.version(), before);
        put(&store, &changed);
        assert!(get(&store).deletion.is_some());
    }
    {
        // The agent ended while the pod was being replaced.
        let store = Store::open(&path, "node").expect("the same store");
        assert!(get(&store).deletion.is_some());
        assert_eq!(store.wanted_by(&writer()), desired(&changed));
        assert!(store.finalize(&web(), &uid).expect("the disk takes it"));
    }
    let store = Store::open(&path, "node").expect("the same store");
    assert_ne!(get(&store).uid, uid);
    assert_eq!(get(&store).deletion, None);
    store.retain_writers(&[]).expect("the store takes it");
    assert!(
        get(&store).deletion.is_some(),
        "nobody is left who wants it"
    );
}

#[test]
fn a_damaged_store_is_moved_aside_and_pods_keep_their_uids() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.redb");
    let uid = {
        let store = Store::open(&path, "node").expect("a new store");
        put(&store, POD);
        get(&store).uid.clone()
    };
    for damage in [&b"this is no database"[..], &b""[..]] {
        std::fs::write(&path, damage).expect("damaged");
        let store = Store::open(&path, "node").expect("an empty store");
        assert_eq!(store.list(Kind::Pod), []);
        put(&store, POD);
        assert_eq!(get(&store).uid, uid);
    }
    let aside = std::fs::read_dir(dir.path()).expect("the directory");
    let aside = aside.filter_map(Result::ok);
    let names = aside.map(|entry| entry.file_name().to_string_lossy().into_owned());
    assert!(names.into_iter().any(|name| name.contains("damaged-")));
}

#[test]
fn a_store_whose_opening_ends_the_agent_is_moved_aside_in_the_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.redb");
    put(&Store::open(&path, "node").expect("a new store"), POD);
    // What agents that aborted while they opened it leave behind.
    std::fs::write(path.with_extension("opening"), "2").expect("marked");
    let store = Store::open(&path, "node").expect("the same store");
    assert_eq!(store.list(Kind::Pod).len(), 1);
    drop(store);
    std::fs::write(path.with_extension("opening"), "3").expect("marked");
    let store = Store::open(&path, "node").expect("an empty store");
    assert_eq!(store.list(Kind::Pod), []);
}

#[test]
fn a_store_of_another_content_is_moved_aside() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.redb");
    {
        let database = redb::Database::create(&path).expect("a database");
        let write = database.begin_write().expect("a transaction");
        {
            let meta = redb::TableDefinition::<&str, u64>::new("meta");
            let mut meta = write.open_table(meta).expect("a table");
            meta.insert("format", 1).expect("inserted");
            let objects = redb::TableDefinition::<&str, &[u8]>::new("objects");
            let mut objects = write.open_table(objects).expect("a table");
            objects
                .insert("Pod/default/x", b"{".as_slice())
                .expect("inserted");
        }
        write.commit().expect("committed");
    }
    let store = Store::open(&path, "node").expect("an empty store");
    assert_eq!(store.list(Kind::Pod), []);
}

#[test]
fn a_store_of_a_later_version_is_not_touched() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("store.redb");
    {
        let database = redb::Database::create(&path).expect("a database");
        let write = database.begin_write().expect("a transaction");
        {
            let meta = redb::TableDefinition::<&str, u64>::new("meta");
            let mut meta = write.open_table(meta).expect("a table");
            meta.insert("format", 99).expect("inserted");
        }
        write.commit().expect("committed");
    }
    assert!(matches!(
        Store::open(&path, "node"),
        Err(StoreError::Disk(DiskError::Format { found: 99, .. }))
    ));
}

#[test]
fn problems_keep_the_time_when_they_were_first_seen() {
    let store = Store::in_memory("node");
    let problem = |message: &str| Problem::new(Origin::file("/m/x.yaml"), message);
    let first = problem("broken");
    store.set_problems("here", vec![first.clone()]);
    store.set_problems("here", vec![problem("broken"), problem("more")]);
    assert_eq!(store.problems()[0].since, first.since);
    assert_eq!(store.problems().len(), 2);
    store.set_problems("here", Vec::new());
    assert_eq!(store.problems(), []);
}

fn pod(text: &str) -> Pod {
    let desired = desired(text).remove(0);
    match desired.body {
        Body::Pod(pod) => (*pod).clone(),
        other => panic!("a pod, not {other:?}"),
    }
}

#[test]
fn which_changes_are_applied_in_place() {
    let old = pod(POD);
    assert_eq!(between(&old, &old), Verdict::Same);
    for (from, to, field) in [
        ("a: b", "a: c", "metadata.labels"),
        ("200m", "300m", "spec.containers[0].resources"),
        (
            "web\n    image: i:1",
            "web\n    image: i:2",
            "spec.containers[0].image",
        ),
        ("port: 80", "port: 81", "spec.containers[0].livenessProbe"),
        (
            "spec:",
            "spec:\n  terminationGracePeriodSeconds: 3",
            "spec.terminationGracePeriodSeconds",
        ),
    ] {
        let verdict = between(&old, &pod(&POD.replace(from, to)));
        assert_eq!(verdict, Verdict::InPlace(vec![field.to_owned()]), "{to}");
    }
    for (from, to, field) in [
        (
            "init, image: i:1",
            "init, image: i:2",
            "spec.initContainers[0].image",
        ),
        ("spec:", "spec:\n  hostNetwork: true", "spec.hostNetwork"),
        (
            "    image: i:1",
            "    image: i:1\n    command: [a]",
            "spec.containers[0].command",
        ),
        ("name: web\n", "name: web2\n", "spec.containers"),
        ("{cpu: 200m}", "{cpu: 200m, memory: 1Gi}", "-"),
        (
            "    resources: {requests: {cpu: 100m}, limits: {cpu: 200m}}\n",
            "",
            "QoS class Burstable to BestEffort",
        ),
    ] {
        let verdict = between(&old, &pod(&POD.replace(from, to)));
        match field {
            "-" => assert!(!verdict.is_replacement(), "{to}: {verdict}"),
            field => assert_eq!(verdict, Verdict::Replace(vec![field.to_owned()]), "{to}"),
        }
    }
}

#[test]
fn a_new_pod_is_foreseen_while_it_is_stored() {
    let dir = tempfile::tempdir().expect("directory");
    let store = Store::open(&dir.path().join("store.redb"), "node").expect("opens");
    let mut coming = store.coming().watch();
    let mut was_foreseen = || {
        let changed = coming.has_changed().expect("the store is there");
        coming.mark_unchanged();
        changed
    };
    put(&store, POD);
    assert!(was_foreseen());
    assert_eq!(store.coming().get(&get(&store).uid), None, "it is stored");
    // A worker is there already.
    put(&store, &POD.replace("200m", "300m"));
    assert!(!was_foreseen());
    // It may need the other, which is not to be had before it is stored.
    let other = POD.replace("name: web, labels", "name: other, labels");
    let map = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {a: b}\n";
    put(&store, &format!("{POD}---\n{other}{map}"));
    assert!(!was_foreseen());
    assert!(store.get(&Key::pod("default", "other")).is_some());
}

#[tokio::test]
async fn who_prepares_a_pod_waits_until_it_is_settled() {
    let store = Store::in_memory("node");
    put(&store, POD);
    let pod = get(&store);
    let coming = store.coming();
    // One that is not coming is settled.
    coming.settled(&pod.uid).await;
    let announced = coming.announce(vec![pod.clone()]);
    assert_eq!(coming.get(&pod.uid), Some(pod.clone()));
    let mut settled = std::pin::pin!(coming.settled(&pod.uid));
    tokio::select! {
        biased;
        () = &mut settled => panic!("it is still coming"),
        () = std::future::ready(()) => {}
    }
    drop(announced);
    settled.await;
    assert_eq!(coming.get(&pod.uid), None);
}
