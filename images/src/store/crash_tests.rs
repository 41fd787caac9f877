//! A power cut at any instant leaves the old or the new state. Every prefix of what the store does to the disk is
//! replayed with what the cut may lose, opened, and verified: see replay.rs. `tests/crash.rs` kills a real process.

use std::collections::HashSet;

use super::journal;
use super::replay::{Cut, Disk};
use super::tests::{Fixture, image, reference};
use super::*;
use crate::load::LoadOptions;
use crate::test_archive::TestImage;
use crate::unpack::{Limits, Wanted, pieces, unpack_stream};

/// What must be true from a number of steps on, until another.
struct Promise {
    name: &'static str,
    digest: Digest,
    from: usize,
    until: usize,
}

/// Records what `work` does, and replays it. It is given the store, and gives promises about names.
fn replay(work: impl FnOnce(&Fixture) -> Vec<Promise>) -> usize {
    let fixture = Fixture::new();
    let dir = fixture.store.dir().to_owned();
    journal::begin(&dir);
    let promises = work(&fixture);
    let steps = journal::end(&dir);
    let mut disk = Disk::default();
    // What was made before the recording began.
    for name in ["oci-layout", "index.json"] {
        let content = br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec();
        disk.apply(&journal::Step::Write(dir.join(name), content));
    }
    disk.apply(&journal::Step::SyncAll(dir.clone()));
    let mut states = 0;
    for done in 0..=steps.len() {
        if done > 0 {
            disk.apply(&steps[done - 1]);
        }
        let seed = done as u64 * 7919;
        let cuts = [
            Cut::Nothing,
            Cut::All,
            Cut::Zeroes,
            Cut::Contents,
            Cut::Some(seed + 1),
            Cut::Some(seed + 0x9e37_79b9),
        ];
        let cuts = if disk.has_unsynced() {
            &cuts[..]
        } else {
            &cuts[..1]
        };
        for cut in cuts {
            states += 1;
            let after = memory_dir();
            disk.write(*cut, &dir, after.path());
            let what = format!("{cut:?} after {done} steps: {:?}", steps[..done].last());
            check(after.path(), done, &promises, &what);
        }
    }
    states
}

/// In memory, where syncing costs nothing: there are many states.
fn memory_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

fn check(dir: &Path, done: usize, promises: &[Promise], what: &str) {
    let store = ImageStore::open(dir).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(store.verify().unwrap(), [], "{what}");
    for promise in promises {
        let found = store.resolve(&reference(promise.name)).unwrap();
        if (promise.from..promise.until).contains(&done) {
            assert!(found.is_some(), "{what}: {} is lost", promise.name);
        }
        if let Some(found) = found {
            assert_eq!(found.digest, promise.digest, "{what}");
            for layer in &found.layers {
                let content = std::fs::read(layer.join("content")).unwrap_or_default();
                assert!(
                    content.is_empty() || content.starts_with(b"content "),
                    "{what}"
                );
            }
        }
    }
    assert_eq!(disk::names(&dir.join("tmp")).unwrap().len(), 0, "{what}");
    let index: serde_json::Value = disk::read_json(&dir.join("index.json")).unwrap();
    let listed = index["manifests"].as_array().unwrap().len();
    let names: usize = store
        .list()
        .unwrap()
        .iter()
        .map(|i| i.references.len())
        .sum();
    assert_eq!(listed, names, "{what}");
    store.gc(&HashSet::new()).unwrap();
    assert_eq!(store.verify().unwrap(), [], "{what}, collected");
}

/// Loads, and promises that the name stays from the end on.
fn load(fixture: &Fixture, test: &TestImage, name: &'static str) -> Promise {
    let loaded = fixture.load_layout(test, name);
    Promise {
        name,
        digest: loaded.digest,
        from: journal::len(fixture.store.dir()),
        until: usize::MAX,
    }
}

#[test]
fn a_power_cut_at_any_instant_of_loading_and_removing_leaves_a_whole_store() {
    let states = replay(|fixture| {
        let mut promises = vec![
            load(fixture, &image(b"content one"), "app:1"),
            // Shares a layer.
            load(fixture, &image(b"content two"), "app:2"),
        ];
        let tagged = fixture.store.tag(&reference("app:1"), &reference("app:3"));
        promises.push(Promise {
            name: "app:3",
            digest: tagged.unwrap().unwrap().digest,
            from: journal::len(fixture.store.dir()),
            until: usize::MAX,
        });
        promises[1].until = journal::len(fixture.store.dir());
        fixture.store.remove(&reference("app:2")).unwrap();
        fixture.store.gc(&HashSet::new()).unwrap();
        promises
    });
    assert!(states > 300, "{states}");
}

#[test]
fn a_power_cut_while_a_damaged_layer_is_replaced_leaves_one_of_both() {
    let states = replay(|fixture| {
        let test = image(b"content one");
        let mut promise = load(fixture, &test, "app:1");
        let loaded = fixture.store.resolve(&reference("app:1")).unwrap().unwrap();
        let info = loaded.layers[1].parent().unwrap().join("layer.json");
        // Damaged, but not so that it shows: the layer must be there at every instant.
        promise.until = usize::MAX;
        let session = Session::begin(&fixture.store).unwrap();
        let diff_id = &loaded.parts[1].diff_id;
        let _lock = session.lock_layer(diff_id).unwrap();
        assert!(info.exists());
        let file = fixture.store.open_blob(&Digest::sha256(&test.blobs[1]));
        let file = file.unwrap().unwrap();
        session
            .put_layer(diff_id, None, |target| -> Result<_, StoreError> {
                let wanted = Wanted::Any(diff_id.algorithm());
                let (keep, limits) = (|_: &[u8]| Ok(()), Limits::default());
                let size = test.blobs[1].len() as u64;
                let both = (wanted, wanted);
                Ok(unpack_stream(pieces(file), keep, size, target, both, &limits).unwrap())
            })
            .unwrap();
        drop(session);
        fixture.store.gc(&HashSet::new()).unwrap();
        vec![promise]
    });
    assert!(states > 100, "{states}");
}

/// A blob that is received in two goes, as a pull does it.
#[test]
fn a_power_cut_while_a_blob_is_received_leaves_a_partial_that_can_be_gone_on_with() {
    let states = replay(|fixture| {
        let test = image(b"content one");
        let (blob, tar) = (&test.blobs[1], &test.tars[1]);
        let (digest, diff_id) = (Digest::sha256(blob), Digest::sha256(tar));
        let size = blob.len() as u64;
        let session = Session::begin(&fixture.store).unwrap();
        let mut first = session.receive(&digest, size).unwrap();
        first.keep(&blob[..20]).unwrap();
        first.keep(&blob[20..50]).unwrap();
        drop((first, session));
        let session = Session::begin(&fixture.store).unwrap();
        let lock = session.lock_layer(&diff_id).unwrap();
        let mut ingest = session.receive(&digest, size).unwrap();
        assert_eq!(ingest.before(), 50);
        let before = ingest.pieces_before().unwrap();
        let source = before.chain(pieces(&blob[50..]));
        let path = ingest.path().to_owned();
        session
            .put_layer(&diff_id, Some(&path), |target| -> Result<_, StoreError> {
                let wanted = (Wanted::Digest(&digest), Wanted::Digest(&diff_id));
                let keep = |piece: &[u8]| ingest.keep(piece);
                let limits = Limits::default();
                Ok(unpack_stream(source, keep, size, target, wanted, &limits).unwrap())
            })
            .unwrap();
        drop((ingest, lock, session));
        vec![load(fixture, &test, "app:1")]
    });
    assert!(states > 150, "{states}");
}

/// The replay itself: a store that did not sync would be found out.
#[test]
fn the_replay_finds_what_was_not_synced() {
    let mut disk = Disk::default();
    let (dir, after) = (PathBuf::from("/s"), tempfile::tempdir().unwrap());
    let path = |name: &str| dir.join(name);
    disk.apply(&journal::Step::Write(path("new"), b"content".to_vec()));
    disk.apply(&journal::Step::Rename(path("new"), path("name")));
    disk.apply(&journal::Step::SyncDir(dir.clone()));
    disk.write(Cut::Zeroes, &dir, after.path());
    assert_eq!(std::fs::read(after.path().join("name")).unwrap(), [0; 7]);
    disk.apply(&journal::Step::SyncFile(path("name")));
    assert!(!disk.has_unsynced());
    disk.write(Cut::All, &dir, after.path());
    assert_eq!(
        std::fs::read(after.path().join("name")).unwrap(),
        b"content"
    );
    disk.apply(&journal::Step::Rename(path("name"), path("other")));
    disk.write(Cut::All, &dir, after.path());
    assert!(!after.path().join("other").exists());
}

#[test]
fn the_exchange_is_recorded() {
    let fixture = Fixture::new();
    let dir = fixture.store.dir().to_owned();
    let test = image(b"content one");
    let loaded = fixture.load_layout(&test, "app:1");
    std::fs::remove_file(loaded.layers[1].parent().unwrap().join("layer.json")).unwrap();
    journal::begin(&dir);
    let layout = fixture.path("layout");
    let again = fixture.store.load(&layout, &LoadOptions::default());
    assert_eq!(again.unwrap()[0].layers, loaded.layers);
    let steps = journal::end(&dir);
    let exchanges = |step: &journal::Step| matches!(step, journal::Step::Exchange(..));
    assert_eq!(steps.iter().filter(|step| exchanges(step)).count(), 1);
}
