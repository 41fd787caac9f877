//! The scrub of damaged stores, and what it remembers.

use super::*;

fn supply(dir: &Path, name: &str, files: &[(&str, &str)]) {
    let dir = dir.join(name);
    fs::create_dir_all(&dir).expect("directory");
    for (name, text) in files {
        fs::write(dir.join(name), format!("{text}\n")).expect("file");
    }
}

#[test]
fn a_machine_is_on_battery_when_nothing_else_supplies_it() {
    let dir = tempfile::tempdir().expect("directory");
    assert!(!is_on_battery(&dir.path().join("none")));
    supply(
        dir.path(),
        "hid",
        &[
            ("type", "Battery"),
            ("scope", "Device"),
            ("status", "Discharging"),
        ],
    );
    assert!(!is_on_battery(dir.path()));
    supply(
        dir.path(),
        "BAT0",
        &[("type", "Battery"), ("status", "Discharging")],
    );
    supply(dir.path(), "AC", &[("type", "Mains"), ("online", "0")]);
    assert!(is_on_battery(dir.path()));
    supply(dir.path(), "AC", &[("type", "Mains"), ("online", "1")]);
    assert!(!is_on_battery(dir.path()));
    supply(dir.path(), "AC", &[("online", "0")]);
    supply(dir.path(), "BAT0", &[("status", "Charging")]);
    assert!(!is_on_battery(dir.path()));
}

/// A store with one image of one file, which belongs to whoever runs the test.
fn store(dir: &Path) -> ImageStore {
    let tar = |files: &[(&str, &[u8])]| {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_uid(rustix::process::getuid().as_raw().into());
            header.set_gid(rustix::process::getgid().as_raw().into());
            header.set_mode(0o644);
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, name, *content).expect("entry");
        }
        tar.into_inner().expect("archive")
    };
    let layer = tar(&[("file", b"content")]);
    let platform = podling_images::Platform::current();
    let config = serde_json::json!({
        "os": platform.os, "architecture": platform.architecture,
        "rootfs": {"type": "layers", "diff_ids": [podling_images::Digest::sha256(&layer)]},
    });
    let manifest = serde_json::json!([
        {"Config": "config.json", "RepoTags": ["localhost/app:1"], "Layers": ["layer.tar"]}
    ]);
    let archive = tar(&[
        ("manifest.json", manifest.to_string().as_bytes()),
        ("config.json", config.to_string().as_bytes()),
        ("layer.tar", &layer),
    ]);
    let file = dir.join("image.tar");
    fs::write(&file, archive).expect("file");
    let store = ImageStore::open(&dir.join("images")).expect("store");
    store.load(&file, &Default::default()).expect("image");
    store
}

#[tokio::test]
async fn on_battery_nothing_is_checked_unless_it_is_configured() {
    let dir = tempfile::tempdir().expect("directory");
    let supplies = dir.path().join("power_supply");
    let discharging = [("type", "Battery"), ("status", "Discharging")];
    supply(&supplies, "BAT0", &discharging);
    let mut scrubber = Scrubber {
        store: store(dir.path()),
        problems: Store::in_memory("node"),
        config: ScrubConfig::default(),
        file: dir.path().join("scrub.json"),
        power_supplies: supplies.clone(),
        pull_options: PullOptions::default(),
        runtime: Handle::current(),
        stop: Arc::default(),
    };
    // It waits, and only the end of the node ends that.
    drop(Scrub {
        stop: Arc::clone(&scrubber.stop),
    });
    let mut progress = Progress::default();
    assert!(scrubber.check_all(&mut progress));
    assert_eq!(progress, Progress::default());

    scrubber.stop = Arc::default();
    scrubber.config.on_battery = true;
    assert!(!scrubber.check_all(&mut progress));
    assert!(progress.last_end.is_some());

    // With the mains it need not be.
    scrubber.config.on_battery = false;
    supply(&supplies, "AC", &[("type", "Mains"), ("online", "1")]);
    progress = Progress::default();
    assert!(!scrubber.check_all(&mut progress));
    assert!(progress.last_end.is_some());
}

#[test]
fn a_check_is_due_after_the_interval_and_when_the_clock_was_set_back() {
    let at = |hours: i64| Timestamp::from_second(1_800_000_000 + hours * 3600).expect("time");
    let week = Duration::from_secs(168 * 3600);
    assert!(!is_due(at(0), at(167), week));
    assert!(is_due(at(0), at(168), week));
    assert!(is_due(at(0), at(-5), week));
    assert!(!is_due(at(0), at(0), week));
}

#[test]
fn a_check_goes_on_after_the_part_that_was_checked_last() {
    let part = |kind: &str, byte: char| -> Part {
        let hex: String = std::iter::repeat_n(byte, 64).collect();
        format!("{kind} sha256:{hex}").parse().expect("part")
    };
    let (document, layer, blob) = (part("document", 'f'), part("layer", 'b'), part("blob", 'a'));
    assert!(is_after(&document, None));
    assert!(is_after(&layer, Some(&document)));
    assert!(is_after(&part("layer", 'c'), Some(&layer)));
    assert!(!is_after(&layer, Some(&layer)));
    assert!(!is_after(&layer, Some(&blob)));
}

#[test]
fn the_rate_is_kept_to_and_the_end_is_not_waited_for() {
    let stop = Arc::new(Stop::default());
    let mut pace = Pace::new(1000, &stop);
    pace.bytes = 2500;
    assert_eq!(pace.due(), Duration::from_millis(2500));
    drop(Scrub {
        stop: Arc::clone(&stop),
    });
    // A day, if it were waited for.
    pace.take(86_400_000);
    assert!(stop.sleep(Duration::from_secs(86_400)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_mended_is_a_problem_until_it_is_whole_or_gone() {
    let dir = tempfile::tempdir().expect("directory");
    let scrubber = Scrubber {
        store: store(dir.path()),
        problems: Store::in_memory("node"),
        config: ScrubConfig {
            on_battery: true,
            ..ScrubConfig::default()
        },
        file: dir.path().join("scrub.json"),
        power_supplies: dir.path().join("none"),
        pull_options: PullOptions::default(),
        runtime: Handle::current(),
        stop: Arc::default(),
    };
    tokio::task::spawn_blocking(move || {
        let document = |store: &ImageStore| {
            let parts = store.parts_to_verify().expect("parts");
            let part = parts.into_iter().find_map(|(part, _)| match part {
                Part::Document(digest) => Some(digest),
                Part::Record(_) | Part::Layer(_) | Part::Blob(_) => None,
            });
            let digest = part.expect("a document");
            dir.path().join("images/blobs/sha256").join(digest.hex())
        };
        let file = document(&scrubber.store);
        let whole = fs::read(&file).expect("file");
        let damage = vec![b' '; whole.len()];
        let write = |bytes: &[u8]| {
            let new = dir.path().join("new");
            fs::write(&new, bytes).expect("file");
            fs::rename(new, &file).expect("file");
        };
        write(&damage);
        let mut progress = Progress::default();
        assert!(!scrubber.check_all(&mut progress));
        let problems = scrubber.problems.problems();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            problems[0].message.contains("localhost/app:1"),
            "{problems:?}"
        );

        // An agent that starts anew knows it.
        scrubber.problems.set_problems(PROBLEMS, Vec::new());
        assert_eq!(scrubber.load(), progress);
        scrubber.tell(&scrubber.load());
        assert_eq!(scrubber.problems.problems().len(), 1);

        write(&whole);
        assert!(!scrubber.check_damaged(&mut progress));
        assert!(scrubber.problems.problems().is_empty());
        assert!(progress.damaged.is_empty());

        write(&damage);
        assert!(!scrubber.check_all(&mut progress));
        assert_eq!(scrubber.problems.problems().len(), 1);
        write(&whole);
        let name = "localhost/app:1".parse().expect("a name");
        scrubber.store.remove(&name).expect("removed");
        assert!(!scrubber.check_damaged(&mut progress));
        assert!(scrubber.problems.problems().is_empty());
    })
    .await
    .expect("checked");
}
