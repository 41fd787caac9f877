use super::*;

struct Directory(tempfile::TempDir);

impl Directory {
    fn new(files: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        Self(dir)
    }

    fn read(&self, registry: &str) -> Option<Vec<Host>> {
        let found = read(self.0.path(), registry).unwrap();
        found.map(|(hosts, _)| hosts)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }
}

fn addresses(hosts: &[Host]) -> Vec<String> {
    let address = |h: &Host| format!("{}://{}{}", h.scheme.name(), h.authority, h.path);
    hosts.iter().map(address).collect()
}

#[test]
fn all_that_a_file_may_say() {
    let text = r#"
server = "https://registry.example"
ca = "/etc/own.crt"

[host."https://z.example:8443/team"]
  capabilities = ["pull"]
  ca = ["a.crt", "/abs/b.crt"]
  client = [["c.cert", "c.key"], ["both.pem"], "same.pem"]
  skip_verify = true
  dial_timeout = "1m30s500ms"
  [host."https://z.example:8443/team".header]
x-one = "1"
x-many = ["2", "3"]

[host."http://a.example/v2/mirror/"]
  override_path = true

[host."b.example/v2"]
  client = "pair.pem"
"#;
    let dir = Directory::new(&[("registry.example/hosts.toml", text)]);
    let hosts = dir.read("registry.example").unwrap();
    // The order of the file, not of the alphabet; the server last.
    assert_eq!(
        addresses(&hosts),
        [
            "https://z.example:8443/team/v2",
            "http://a.example/v2/mirror",
            "https://b.example/v2",
            "https://registry.example/v2",
        ]
    );
    let first = &hosts[0];
    let capabilities = Capabilities {
        pull: true,
        resolve: false,
        push: false,
    };
    assert_eq!(first.capabilities, capabilities);
    assert_eq!(first.name, "z.example:8443");
    let own = dir.path("registry.example/a.crt");
    assert_eq!(first.ca_files, [own, PathBuf::from("/abs/b.crt")]);
    let keys: Vec<_> = first.client_certificates.iter().map(|c| &c.key).collect();
    let key = Some(dir.path("registry.example/c.key"));
    assert_eq!(keys, [&key, &None, &None]);
    assert!(first.skip_verify && first.is_mirror);
    assert_eq!(first.dial_timeout, Some(Duration::from_millis(90_500)));
    let headers: Vec<_> = first
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
        .collect();
    assert_eq!(headers, [("x-one", "1"), ("x-many", "2"), ("x-many", "3")]);
    assert_eq!(hosts[1].capabilities, Capabilities::ALL);
    let server = &hosts[3];
    assert!(!server.is_mirror && !server.skip_verify);
    assert_eq!(server.ca_files, [PathBuf::from("/etc/own.crt")]);
}

#[test]
fn directories_are_found_as_containerd_finds_them() {
    let mirror = |name: &str| format!("[host.\"https://{name}\"]\n");
    let dir = Directory::new(&[
        ("docker.io/hosts.toml", &mirror("hub")),
        ("reg.example:5000/hosts.toml", &mirror("colon")),
        ("other.example_5000_/hosts.toml", &mirror("underscores")),
        ("_default/hosts.toml", &mirror("default")),
        ("docker.example/ca.crt", ""),
        ("docker.example/client.cert", ""),
        ("empty.example/note.txt", ""),
    ]);
    for (registry, expected) in [
        (
            "docker.io",
            ["https://hub/v2", "https://registry-1.docker.io/v2"],
        ),
        (
            "reg.example:5000",
            ["https://colon/v2", "https://reg.example:5000/v2"],
        ),
        (
            "other.example:5000",
            ["https://underscores/v2", "https://other.example:5000/v2"],
        ),
        (
            "reg.example",
            ["https://default/v2", "https://reg.example/v2"],
        ),
        (
            "empty.example",
            ["https://default/v2", "https://empty.example/v2"],
        ),
        (
            "[::1]:5000",
            ["https://default/v2", "https://[::1]:5000/v2"],
        ),
    ] {
        let hosts = dir.read(registry).unwrap();
        assert_eq!(addresses(&hosts), expected, "{registry}");
        assert!(!hosts[1].is_mirror, "{registry}");
    }
    let hosts = dir.read("docker.example").unwrap();
    assert_eq!(addresses(&hosts), ["https://docker.example/v2"]);
    assert_eq!(hosts[0].ca_files, [dir.path("docker.example/ca.crt")]);
    let key = &hosts[0].client_certificates[0].key;
    assert_eq!(*key, Some(dir.path("docker.example/client.key")));
    assert!(Directory::new(&[]).read("reg.example").is_none());
}

#[test]
fn another_server_is_a_mirror_and_is_asked_once() {
    let text = "server = \"http://cache.example:5000\"\n[host.\"http://cache.example:5000\"]\n";
    let dir = Directory::new(&[("_default/hosts.toml", text)]);
    let hosts = dir.read("reg.example").unwrap();
    assert_eq!(addresses(&hosts), ["http://cache.example:5000/v2"]);
    assert!(hosts[0].is_mirror);
    let hub = "server = \"https://registry-1.docker.io\"\n";
    let dir = Directory::new(&[("docker.io/hosts.toml", hub)]);
    let hosts = dir.read("docker.io").unwrap();
    assert!(!hosts[0].is_mirror);
    assert_eq!(hosts[0].name, "docker.io");
}

#[test]
fn bad_files_are_refused_with_file_line_and_key() {
    for (text, line, key, part) in [
        ("server = ", 1, "", "string"),
        (
            "\nservre = \"x\"",
            2,
            "servre",
            "known are server, host, capabilities",
        ),
        ("server = 7", 1, "server", "type integer"),
        ("server = \"ftp://x\"", 1, "server", "registry host"),
        (
            "server = \"https://me:pw@x\"",
            1,
            "server",
            "imagePullSecrets",
        ),
        ("server = \"https://x?y\"", 1, "server", "query"),
        ("host = 1", 1, "host", "table"),
        (
            "[host]\n\"https://x\" = 1",
            2,
            "host.\"https://x\"",
            "table",
        ),
        (
            "[host.\"https://x\"]\n\n  capabilites = [\"pull\"]",
            3,
            "host.\"https://x\".capabilites",
            "unknown key; known are capabilities",
        ),
        (
            "[host.\"https://x\"]\ncapabilities = [\"pull\", \"fetch\"]",
            2,
            "host.\"https://x\".capabilities",
            "`fetch`",
        ),
        ("ca = [1]", 1, "ca", "array of strings"),
        ("client = [[\"a\", \"b\", \"c\"]]", 1, "client", "pairs"),
        ("client = 1", 1, "client", "pairs"),
        ("skip_verify = \"yes\"", 1, "skip_verify", "true or false"),
        ("dial_timeout = \"5 s\"", 1, "dial_timeout", "duration"),
        (
            "[header]\n\"a b\" = \"x\"",
            2,
            "header.\"a b\"",
            "HTTP header",
        ),
        ("[header]\na = \"x\\ny\"", 2, "header.a", "value"),
        ("rewrite = {}", 1, "rewrite", "unknown key"),
    ] {
        let dir = Directory::new(&[("_default/hosts.toml", text)]);
        let error = read(dir.0.path(), "reg.example").unwrap_err();
        let HostsError::Invalid {
            path,
            line: found,
            key: found_key,
            ..
        } = &error
        else {
            panic!("{error}");
        };
        assert_eq!(*path, dir.path("_default/hosts.toml"));
        assert_eq!((*found, found_key.as_str()), (line, key), "{text}: {error}");
        assert!(error.to_string().contains(part), "{text}: {error}");
    }
    let dir = Directory::new(&[("_default/hosts.toml/x", "")]);
    assert!(matches!(
        read(dir.0.path(), "reg.example"),
        Err(HostsError::Read { .. })
    ));
}

proptest::proptest! {
    /// Any damage to a file gives hosts, or an error that names a line of it.
    #[test]
    fn damaged_files_end_in_peace(
        damage in proptest::collection::vec((0_usize..400, proptest::char::any()), 0..4),
        text in "[a-z\"\\[\\].= \n]{0,80}",
        is_damaged in proptest::bool::ANY,
    ) {
        let whole = "server = \"https://r.example\"\n[host.\"https://m.example:5000/x\"]\n\
            capabilities = [\"pull\"]\nca = [\"a\"]\nclient = [[\"c\", \"k\"], \"both\"]\n\
            dial_timeout = \"5s\"\n[host.\"https://m.example:5000/x\".header]\na = [\"b\"]\n";
        let mut chars: Vec<char> = whole.chars().collect();
        for (at, c) in damage {
            let at = at % chars.len();
            chars[at] = c;
        }
        let text = if is_damaged { chars.into_iter().collect() } else { text };
        match parse(Path::new("/certs.d/hosts.toml"), &text, "r.example") {
            Ok(hosts) => proptest::prop_assert!(!hosts.is_empty()),
            Err(HostsError::Invalid { line, .. }) => {
                proptest::prop_assert!(line <= text.lines().count().max(1) + 1);
            }
            Err(e @ HostsError::Read { .. }) => panic!("{e}"),
        }
    }
}

#[test]
fn durations_are_as_in_go() {
    for (text, millis) in [("5s", Some(5000)), ("1h2m", Some(3_720_000)), ("5", None)] {
        let expected = millis.map(Duration::from_millis);
        assert_eq!(parse_duration(text), expected, "{text}");
    }
}
