//! `podling images` with the real program, on a store of its own: no agent, no registry, no root.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use sha2::Digest as _;

const NAME: &str = "localhost/app:1";
const MACHINE: &str = if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    "amd64"
};

struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_podling"));
        command.env("PODLING_RUN_DIR", self.path("run"));
        command.env("PODLING_CONFIG", self.path("config.yaml"));
        // The option, as people write it.
        command
            .args(["images", "--data-dir"])
            .arg(self.path("data"));
        command.args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        fs::write(self.path("config.yaml"), "{}").unwrap();
        self.command(arguments).output().unwrap()
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments)).unwrap()
    }

    /// What is said on standard error by a command that ends with this code.
    #[track_caller]
    fn said(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {output:?}"
        );
        String::from_utf8(output.stderr).unwrap()
    }

    /// A docker-archive of one image, with a layer for each set of files.
    fn archive(&self, file: &str, name: &str, layers: &[&[(&str, &str)]]) -> String {
        self.archive_for(MACHINE, file, name, layers)
    }

    fn archive_for(
        &self,
        machine: &str,
        file: &str,
        name: &str,
        layers: &[&[(&str, &str)]],
    ) -> String {
        let layers: Vec<_> = layers.iter().map(|files| tar(files)).collect();
        let diff_ids: Vec<_> = layers
            .iter()
            .map(|layer| format!("sha256:{}", sha256(layer)))
            .collect();
        let history: Vec<_> = (0..layers.len())
            .flat_map(|i| {
                [
                    json!({"created": "2026-01-02T03:04:05Z", "created_by": format!("COPY {i} /")}),
                    json!({"created_by": "ENV A=b", "empty_layer": true}),
                ]
            })
            .collect();
        let config = json!({
            "architecture": machine, "os": "linux", "created": "2026-01-02T03:04:05Z",
            "config": {"Cmd": ["/app"]}, "history": history,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        })
        .to_string();
        let names: Vec<_> = (0..layers.len()).map(|i| format!("{i}.tar")).collect();
        let config_name = format!("{}.json", sha256(config.as_bytes()));
        let manifest = json!([{"Config": config_name, "RepoTags": [name], "Layers": names}]);
        let mut files: Vec<(&str, &[u8])> = vec![(&config_name, config.as_bytes())];
        files.extend(
            names
                .iter()
                .map(String::as_str)
                .zip(layers.iter().map(Vec::as_slice)),
        );
        let manifest = manifest.to_string();
        files.push(("manifest.json", manifest.as_bytes()));
        let path = self.path(file);
        fs::write(&path, tar_of_bytes(&files)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    fn load(&self, name: &str, layers: &[&[(&str, &str)]]) {
        let archive = self.archive("load.tar", name, layers);
        self.ok(&["load", &archive]);
    }
}

fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let files: Vec<_> = files
        .iter()
        .map(|(name, text)| (*name, text.as_bytes()))
        .collect();
    tar_of_bytes(&files)
}

/// Of the caller, so that unpacking needs no root.
fn tar_of_bytes(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_uid(rustix::process::getuid().as_raw().into());
        header.set_gid(rustix::process::getgid().as_raw().into());
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, *content).unwrap();
    }
    tar.into_inner().unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    sha2::Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else {
            files.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    files
}

#[test]
fn list_tells_names_digests_sizes_platforms_and_layers() {
    let fixture = Fixture::new();
    assert_eq!(fixture.json(&["list", "-o", "json"]), json!([]));
    fixture.load(NAME, &[&[("base", "base")], &[("app", "application")]]);
    fixture.ok(&["tag", NAME, "localhost/again:2"]);
    let list = fixture.json(&["list", "-o", "json"]);
    let image = &list[0];
    assert_eq!(image["names"], json!(["localhost/again:2", NAME]));
    assert!(image["digest"].as_str().unwrap().starts_with("sha256:"));
    assert_eq!(image["size"], 15);
    assert_eq!(image["created"], "2026-01-02T03:04:05Z");
    assert!(image["platform"].as_str().unwrap().starts_with("linux/"));
    let layers = image["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    assert_eq!(
        (&layers[0]["size"], &layers[0]["kept"]),
        (&json!(4), &json!(true))
    );
    assert_eq!(fixture.json(&["list", "--json"]), list);
    assert_eq!(
        fixture.ok(&["list", "-o", "name"]),
        format!("localhost/again:2\n{NAME}\n")
    );
    let table = fixture.ok(&["list"]);
    let platform = image["platform"].as_str().unwrap();
    assert_eq!(table.matches(platform).count(), 2, "{table}");
    let wide = fixture.ok(&["list", "-o", "wide"]);
    assert!(
        wide.contains("PLATFORM") && wide.contains(image["digest"].as_str().unwrap()),
        "{wide}"
    );

    let inspected = fixture.json(&["inspect", NAME]);
    assert_eq!(inspected["names"], image["names"]);
    assert_eq!(inspected["config"]["config"]["Cmd"], json!(["/app"]));
    assert_eq!(inspected["directories"].as_array().unwrap().len(), 2);
    let manifest = fixture.ok(&["inspect", "--manifest", NAME]);
    assert_eq!(
        image["digest"],
        format!("sha256:{}", sha256(manifest.as_bytes()))
    );
    let config = fixture.ok(&["inspect", "--image-config", NAME]);
    assert_eq!(
        image["configDigest"],
        format!("sha256:{}", sha256(config.as_bytes()))
    );
}

#[test]
fn what_is_saved_loads_elsewhere_from_a_file_a_pipe_and_a_directory() {
    let (from, to) = (Fixture::new(), Fixture::new());
    from.load(NAME, &[&[("base", "base")], &[("app", "application")]]);
    let digest = from.json(&["list", "-o", "json"])[0]["digest"].clone();
    let path = |name: &str| from.path(name).to_str().unwrap().to_owned();
    let (oci, docker, dir) = (path("oci.tar"), path("docker.tar"), path("dir"));
    let told = from.run(&["save", NAME, "-o", &oci]);
    assert!(told.stdout.is_empty() && String::from_utf8_lossy(&told.stderr).contains("saved"));
    from.ok(&["save", NAME, "-o", &docker, "--format", "docker"]);
    from.ok(&["save", NAME, "-o", &dir, "--format", "oci-dir", "--quiet"]);
    for path in [&oci, &docker, &dir] {
        let loaded = to.json(&["load", path, "-o", "json"]);
        assert_eq!(loaded[0]["names"], json!([NAME]));
        assert_eq!(loaded[0]["digest"], digest, "{path}");
        let removed = to.json(&["rm", NAME, "-o", "json"]);
        assert_eq!(removed["removed"], json!([NAME]));
        assert!(
            removed["layers"] == 2 && removed["freed"].as_u64() > Some(0),
            "{removed}"
        );
    }
    // Through a pipe, and to a file that cannot be whole.
    let archive = from.run(&["save", NAME]).stdout;
    assert!(archive == fs::read(&oci).unwrap());
    let mut load = to
        .command(&["load", "-", "--name", "localhost/piped:1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    load.stdin.take().unwrap().write_all(&archive).unwrap();
    assert!(load.wait_with_output().unwrap().status.success());
    assert_eq!(to.ok(&["list", "-o", "name"]), "localhost/piped:1\n");
    // Compressed in a way that is not read here, which the error has a way around for.
    fs::write(&oci, [0xfd, b'7', b'z', b'X', b'Z', 0, 0, 0]).unwrap();
    let said = to.said(1, &["load", &oci]);
    assert!(
        said.contains("with xz") && said.contains("xz -dc FILE |"),
        "{said}"
    );
    assert!(
        from.said(2, &["save", NAME, "-o", &dir])
            .contains("--format oci-dir")
    );
    assert!(
        from.said(2, &["save", NAME, "--format", "oci-dir"])
            .contains("-o")
    );
    assert!(
        from.said(1, &["save", "localhost/none", "-o", &path("none.tar")])
            .contains("no image")
    );
    let left: Vec<_> = fs::read_dir(from.dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert!(
        left.iter()
            .all(|name| !name.to_string_lossy().contains("none.tar")),
        "{left:?}"
    );
}

/// An OCI layout whose image has an index for this machine and another, of which nothing is in the layout.
fn layout_of_an_index(fixture: &Fixture) -> String {
    let dir = fixture.path("layout");
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    let blob = |kind: &str, content: &[u8]| {
        let digest = sha256(content);
        fs::write(dir.join("blobs/sha256").join(&digest), content).unwrap();
        json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{digest}"), "size": content.len()})
    };
    let layer = tar(&[("app", "application")]);
    let config = json!({
        "architecture": MACHINE, "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))]},
    });
    let config = blob("config.v1+json", config.to_string().as_bytes());
    let manifest =
        json!({"schemaVersion": 2, "config": config, "layers": [blob("layer.v1.tar", &layer)]});
    let mut mine = blob("manifest.v1+json", manifest.to_string().as_bytes());
    mine["platform"] = json!({"os": "linux", "architecture": MACHINE});
    let mut other = mine.clone();
    other["digest"] = json!(format!("sha256:{}", sha256(b"not here")));
    other["platform"] = json!({"os": "linux", "architecture": "s390x"});
    let index = json!({"schemaVersion": 2, "manifests": [other, mine]});
    let mut index = blob("index.v1+json", index.to_string().as_bytes());
    index["annotations"] = json!({"org.opencontainers.image.ref.name": NAME});
    let layout = json!({"schemaVersion": 2, "manifests": [index]});
    fs::write(dir.join("index.json"), layout.to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    dir.to_str().unwrap().to_owned()
}

#[test]
fn all_platforms_are_saved_only_where_all_are_here() {
    let fixture = Fixture::new();
    let layout = layout_of_an_index(&fixture);
    fixture.ok(&["load", &layout]);
    let file = fixture.path("all.tar");
    let file = file.to_str().unwrap();
    let all = ["save", "--all-platforms", "--offline", NAME, "-o", file];
    let said = fixture.said(1, &all);
    assert!(said.contains("leave out --offline"), "{said}");
    assert!(said.contains(&sha256(b"not here")), "{said}");
    assert!(!Path::new(file).exists());
    // This machine's alone is.
    fixture.ok(&["save", "--offline", NAME, "-o", file]);
    // An image without an index is for one platform, which are all.
    fixture.load("localhost/plain:1", &[&[("app", "application")]]);
    let plain = ["save", "--all-platforms", "localhost/plain:1", "-o", file];
    fixture.ok(&plain);
    assert_eq!(
        fixture
            .said(1, &["load", "--platform", "linux/s390x", file])
            .lines()
            .count(),
        3
    );
}

#[test]
fn a_load_tells_when_a_name_changes_its_platform() {
    let fixture = Fixture::new();
    let layers: &[&[(&str, &str)]] = &[&[("app", "application")]];
    let own = fixture.archive("own.tar", NAME, layers);
    let foreign = fixture.archive_for("s390x", "foreign.tar", NAME, layers);
    let load_foreign = ["load", "--platform", "linux/s390x", foreign.as_str()];
    for arguments in [&["load", &own][..], &["load", &own]] {
        assert_eq!(fixture.said(0, arguments), "");
    }
    let said = fixture.said(0, &load_foreign);
    let told = format!("was the image for linux/{MACHINE} and is now that for linux/s390x");
    assert!(said.contains(&told), "{said}");
    // Nothing is lost where the image has another name.
    fixture.ok(&["tag", NAME, "localhost/kept:1"]);
    assert_eq!(fixture.said(0, &["load", &own]), "");
    let quiet = [&load_foreign[..], &["--quiet"]].concat();
    assert_eq!(fixture.said(0, &quiet), "");
}

#[test]
fn history_and_diff_tell_what_is_in_an_image() {
    let fixture = Fixture::new();
    fixture.load(
        NAME,
        &[&[("base", "base")], &[("app", "one"), ("gone", "x")]],
    );
    fixture.load(
        "localhost/app:2",
        &[&[("base", "base")], &[("app", "two!"), ("new", "y")]],
    );
    let history = fixture.json(&["history", NAME, "-o", "json"]);
    let steps = history.as_array().unwrap();
    assert_eq!(steps.len(), 4);
    assert_eq!(steps[0]["diffId"], Value::Null);
    assert_eq!(
        (&steps[1]["createdBy"], &steps[1]["size"]),
        (&json!("COPY 1 /"), &json!(4))
    );
    assert!(fixture.ok(&["history", NAME]).contains("COPY 0 /"));
    let diff = ["diff", NAME, "localhost/app:2"];
    assert_eq!(fixture.ok(&diff), "C /app  (content)\nD /gone\nA /new\n");
    let changes = fixture.json(&[&diff[..], &["-o", "json"]].concat());
    assert_eq!(
        changes[0],
        json!({"path": "/app", "change": "changed", "what": ["content"], "sizeBefore": 3, "sizeAfter": 4})
    );
    assert_eq!(fixture.ok(&["diff", "--exit-code", NAME, NAME]), "");
    fixture.said(1, &[&diff[..], &["--exit-code"]].concat());
}

#[test]
fn du_tells_what_is_shared_and_prune_frees_what_no_image_needs() {
    let fixture = Fixture::new();
    fixture.load(NAME, &[&[("base", "base")], &[("app", "one")]]);
    fixture.load(
        "localhost/app:2",
        &[&[("base", "base")], &[("app", "second")]],
    );
    let usage = fixture.json(&["du", "-o", "json"]);
    assert_eq!(usage["layers"]["count"], 3);
    assert_eq!(usage["unneeded"]["count"], 0);
    let images = usage["images"].as_array().unwrap();
    assert_eq!(images[0]["shared"], images[1]["shared"]);
    assert!(images[0]["shared"].as_u64() > Some(0) && images[0]["unique"].as_u64() > Some(0));
    assert!(fixture.ok(&["du"]).contains("localhost/app:2"));

    // A name that moves leaves an image that nobody names.
    fixture.load(NAME, &[&[("base", "base")], &[("app", "the third")]]);
    let before = fixture.json(&["du", "-o", "json"]);
    assert!(before["unneeded"]["count"].as_u64() > Some(0), "{before}");
    let would = fixture.json(&["prune", "--dry-run", "-o", "json"]);
    assert_eq!(would["freed"], before["unneeded"]["size"]);
    let pruned = fixture.json(&["prune", "-o", "json"]);
    assert_eq!(
        (&pruned["layers"], &pruned["removed"]),
        (&json!(1), &json!([]))
    );
    assert_eq!(fixture.json(&["du", "-o", "json"])["unneeded"]["count"], 0);
    assert_eq!(fixture.json(&["verify", "-o", "json"]), json!([]));
    let pruned = fixture.json(&["prune", "--all", "-o", "json"]);
    assert_eq!(pruned["removed"].as_array().unwrap().len(), 2);
    let total = fixture.json(&["du", "-o", "json"]);
    assert_eq!(total["total"], json!({"count": 0, "size": 0}), "{total}");
}

#[test]
fn verify_mends_a_layer_from_its_blob_and_tells_what_it_cannot_mend() {
    let fixture = Fixture::new();
    fixture.load(NAME, &[&[("app", "application")]]);
    assert_eq!(fixture.ok(&["verify"]), "all images are whole\n");
    let inspected = fixture.json(&["inspect", NAME]);
    let file = Path::new(inspected["directories"][0].as_str().unwrap()).join("app");
    fs::write(&file, "").unwrap();
    let found = fixture.run(&["verify", "--check", "-o", "json"]);
    assert_eq!(found.status.code(), Some(1));
    let problems: Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(problems.as_array().unwrap().len(), 1, "{problems}");
    assert_eq!(problems[0]["images"], json!([NAME]));
    assert_eq!(problems[0]["healed"], Value::Null);
    let told = fixture.run(&["verify", "--check"]);
    let told = String::from_utf8(told.stdout).unwrap();
    let remedy = format!("    needed by {NAME}: `podling images verify` mends it");
    assert!(told.contains(&remedy), "{told}");
    let healed = fixture.json(&["verify", "--offline", "-o", "json"]);
    assert_eq!(healed[0]["healed"], "unpacked");
    assert_eq!(fs::read(&file).unwrap(), b"application");
    assert_eq!(
        fixture.json(&["verify", "--check", "-o", "json"]),
        json!([])
    );

    // Without the blob there is nothing to mend it from.
    let digest = inspected["layers"][0]["digest"]
        .as_str()
        .unwrap()
        .replace(':', "/");
    fs::remove_file(fixture.path("data/images/blobs").join(digest)).unwrap();
    fs::write(&file, "").unwrap();
    let broken = fixture.run(&["verify", "--offline"]);
    assert_eq!(broken.status.code(), Some(1));
    let said = String::from_utf8_lossy(&broken.stdout);
    assert!(
        said.contains("cannot be mended") && said.contains("load or pull it again"),
        "{said}"
    );
}

#[test]
fn blobs_are_not_kept_where_the_configuration_says_so() {
    let fixture = Fixture::new();
    let archive = fixture.archive("load.tar", NAME, &[&[("app", "application")]]);
    fs::write(
        fixture.path("lean.yaml"),
        "images: {keepBlobs: false, pinned: [localhost/app:1]}",
    )
    .unwrap();
    let lean = fixture.path("lean.yaml").display().to_string();
    fixture.ok(&["load", &archive, "--config", &lean]);
    assert_eq!(
        fixture.json(&["list", "-o", "json"])[0]["layers"][0]["kept"],
        false
    );
    assert_eq!(fixture.json(&["verify", "-o", "json"]), json!([]));
    let output = fixture.path("x.tar").display().to_string();
    assert!(
        fixture
            .said(1, &["save", "--offline", NAME, "-o", &output])
            .contains("images.keepBlobs")
    );
    // What is pinned is not pruned.
    let pruned = fixture.json(&["prune", "--all", "--config", &lean, "-o", "json"]);
    assert_eq!(pruned["removed"], json!([]));
}

#[test]
fn wrong_names_and_files_are_refused_with_a_remedy() {
    let fixture = Fixture::new();
    fixture.load(NAME, &[&[("app", "application")]]);
    for (code, arguments, part) in [
        (2, &["list", "-o", "xml"][..], "possible values"),
        (2, &["save", "Not A Name"], "does not name an image"),
        (
            2,
            &["tag", NAME, "localhost/a@sha256:12"],
            "does not name an image",
        ),
        (
            1,
            &["tag", "localhost/none", "localhost/a"],
            "podling images pull localhost/none",
        ),
        (1, &["history", "localhost/none"], "there is no image"),
        (1, &["diff", NAME, "localhost/none"], "there is no image"),
        (1, &["load", "/nowhere.tar"], "/nowhere.tar"),
        (2, &["load", "--platform", "arm64", "x.tar"], "linux/arm/v7"),
        (2, &["load", "--name", "a", "x.tar", "y.tar"], "one by one"),
        (2, &["pull", "docker://nginx"], "without `docker://`"),
        (
            2,
            &["save", "--all-platforms", "--format", "docker", NAME],
            "several platforms",
        ),
    ] {
        let said = fixture.said(code, arguments);
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
    // A digest names one image and no other.
    let other = format!("localhost/app@sha256:{}", sha256(b"other"));
    assert!(
        fixture
            .said(2, &["tag", NAME, &other])
            .contains("another image")
    );
}

#[test]
fn looking_makes_no_store() {
    let fixture = Fixture::new();
    assert_eq!(fixture.json(&["list", "-o", "json"]), json!([]));
    for looking in [
        &["inspect", NAME][..],
        &["history", NAME],
        &["diff", NAME, NAME],
    ] {
        let output = fixture.run(looking);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains(NAME), "{error}");
    }
    fixture.ok(&["du"]);
    for arguments in [&["verify"][..], &["verify", "--check"]] {
        let output = fixture.run(arguments);
        assert_eq!(output.status.code(), Some(1));
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(error.contains("there is no image store in"), "{error}");
    }
    assert!(!fixture.path("data").exists());
}

#[test]
fn two_commands_work_on_one_store_at_once() {
    let fixture = Fixture::new();
    fs::write(fixture.path("config.yaml"), "{}").unwrap();
    let archives: Vec<_> = (0..6)
        .map(|i| {
            let (file, name) = (format!("{i}.tar"), format!("localhost/app:{i}"));
            fixture.archive(&file, &name, &[&[("base", "base")], &[("app", &file)]])
        })
        .collect();
    let start = |archive: &String| fixture.command(&["load", archive]).spawn().unwrap();
    let children: Vec<_> = archives.iter().map(start).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(
        fixture
            .json(&["list", "-o", "json"])
            .as_array()
            .unwrap()
            .len(),
        6
    );
    assert_eq!(fixture.json(&["verify", "-o", "json"]), json!([]));
    let layout = fixture.path("data/images");
    assert!(tree(&layout).contains_key(&layout.join("index.json")));
}

#[test]
fn the_configuration_file_says_where_the_store_is() {
    let fixture = Fixture::new();
    let file = fixture.path("own.yaml");
    let (data, run) = (fixture.path("of-file"), fixture.path("run"));
    fs::write(&file, format!("{{dataDir: {data:?}, runDir: {run:?}}}")).unwrap();
    let archive = fixture.archive("load.tar", NAME, &[&[("app", "application")]]);
    let podling = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_podling"));
        for name in ["PODLING_RUN_DIR", "PODLING_DATA_DIR", "PODLING_LOG_DIR"] {
            command.env_remove(name);
        }
        command.env("PODLING_CONFIG", &file).args(arguments);
        command
    };
    let loaded = podling(&["images", "load", &archive]).output().unwrap();
    assert!(loaded.status.success(), "{loaded:?}");
    assert!(data.join("images/index.json").exists());
    // The environment wins over the file, and an option over both.
    let (of_env, of_option) = (fixture.path("of-env"), fixture.path("of-option"));
    let mut load = podling(&["images", "load", &archive]);
    load.env("PODLING_DATA_DIR", &of_env);
    assert!(load.status().unwrap().success());
    assert!(of_env.join("images").exists());
    load.arg("--data-dir").arg(&of_option);
    assert!(load.status().unwrap().success());
    assert!(of_option.join("images").exists());

    // What cannot be used is no default, for any command.
    for text in [
        None,
        Some("dataDirectory: /x"),
        Some("images: {gc: {highThresholdPercent: 101}}"),
    ] {
        match text {
            Some(text) => fs::write(&file, text).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        for command in [&["images", "list"][..], &["get", "pods"], &["status"]] {
            let output = podling(command).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("cannot use the configuration"), "{said}");
            assert_eq!(output.status.code(), Some(1));
        }
    }
}

#[test]
fn rm_of_a_name_that_means_nothing_frees_nothing() {
    let fixture = Fixture::new();
    fixture.load(NAME, &[&[("app", "one")]]);
    // The first has no name any more.
    fixture.load(NAME, &[&[("app", "two")]]);
    let layers = || tree(&fixture.path("data").join("images/layers"));
    let before = layers();
    let output = fixture.run(&["rm", "localhost/nosuch"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty(), "{output:?}");
    assert_eq!(layers(), before);
}

#[test]
fn a_pull_that_is_terminated_says_so() {
    // Connections are taken by the kernel, and never answered.
    let registry = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = registry.local_addr().unwrap();
    let fixture = Fixture::new();
    let config = format!("registries: [{{host: '{address}', plainHttp: true}}]");
    fs::write(fixture.path("config.yaml"), config).unwrap();
    for (signal, code) in [("-INT", 130), ("-TERM", 143)] {
        let mut pull = fixture.command(&["pull", &format!("{address}/app:1")]);
        let pull = pull.stderr(Stdio::piped()).spawn().unwrap();
        // It has begun when it asks the registry.
        let _connection = registry.accept().unwrap();
        let pid = pull.id().to_string();
        Command::new("kill").args([signal, &pid]).status().unwrap();
        let output = pull.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("the pull was interrupted"), "{said}");
        assert_eq!(output.status.code(), Some(code));
    }
}

#[test]
fn prune_keeps_what_the_running_agent_has_pinned() {
    use podling_agent::{api, store::Store};
    let fixture = Fixture::new();
    fixture.load(NAME, &[&[("app", "pinned")]]);
    fixture.load("localhost/idle:1", &[&[("app", "idle")]]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let run = fixture.path("run");
    fs::create_dir_all(&run).unwrap();
    let info = api::NodeInfo {
        node: "n".into(),
        version: "0".into(),
        started_at: jiff::Timestamp::now(),
        pid: 1,
        sources: Vec::new(),
        run_dir: run.clone(),
        data_dir: fixture.path("data"),
        log_dir: fixture.path("logs"),
        pinned_images: vec![NAME.into()],
    };
    let waits = Box::new(|_: &str, _: &str| Vec::new());
    let server = api::Server::bind(&run, Store::in_memory("n"), info, waits).unwrap();
    runtime.spawn(server.serve(std::future::pending()));
    let pruned = fixture.json(&["prune", "--all", "-o", "json"]);
    assert_eq!(pruned["removed"], json!(["localhost/idle:1"]));
    assert_eq!(fixture.ok(&["list", "-o", "name"]), format!("{NAME}\n"));
}
