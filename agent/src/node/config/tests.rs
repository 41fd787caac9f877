use super::*;

#[test]
fn an_empty_file_is_the_default() {
    assert_eq!(Config::parse("").expect("empty"), Config::default());
    assert_eq!(
        Config::parse("# nothing\n\n").expect("comment"),
        Config::default()
    );
}

/// The names of all fields, at any depth.
fn names(value: &serde_json::Value, found: &mut std::collections::BTreeSet<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                found.insert(name.clone());
                names(value, found);
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| names(item, found)),
        _ => {}
    }
}

#[test]
fn the_documentation_has_every_field_and_the_defaults() {
    let text = include_str!("../../../../docs/configuration.md");
    let example = text
        .split("```")
        .nth(1)
        .and_then(|block| block.strip_prefix("yaml\n"));
    let example = example.expect("an example");
    let mut config = Config::parse(example).expect("valid");
    let mut fields = std::collections::BTreeSet::new();
    names(&serde_json::to_value(&config).expect("JSON"), &mut fields);
    for field in fields {
        assert!(
            example.contains(&format!("{field}:")),
            "{field} is not documented"
        );
    }
    let default = Config::default();
    assert!(config.etcd.is_some() && config.registries.len() == 3);
    // The choices of the example's own.
    config.node_name = None;
    config.etcd = None;
    config.registries.clear();
    config.images.pinned.clear();
    config.network = NetworkConfig::default();
    config.platform = None;
    config.supervisor = None;
    config.log_dir = None;
    config.images.signature_policy = None;
    config.images.hosts_directory = None;
    config.manifests.clear();
    assert_eq!(config, default);
}

#[test]
fn a_typo_is_an_error() {
    let message = Config::parse("dataDri: /x\n").expect_err("unknown field");
    assert!(message.contains("dataDri"), "{message}");
    assert!(Config::parse("network: { brigde: x }\n").is_err());
}

#[test]
fn fields_are_read() {
    let config = Config::parse(
        "nodeName: edge-1\nmanifests: [/m]\ndataDir: /d\netcd: { endpoints: ['http://e:2379'] }\n\
         logs: { maxBytes: 5000 }\nbackOff: { initialMs: 100 }\n",
    )
    .expect("valid");
    assert_eq!(config.node_name(), "edge-1");
    assert_eq!(config.log_dir(), Path::new("/d/logs/pods"));
    assert_eq!(
        config.etcd.as_ref().map(|etcd| etcd.prefix.as_str()),
        Some("/podling/")
    );
    assert_eq!(config.logs.max_files, 5);
    assert_eq!(config.back_off.max_ms, 300_000);
}

#[test]
fn the_default_log_directory_follows_the_data_directory() {
    assert_eq!(Config::default().log_dir(), Path::new(DEFAULT_LOG_DIR));
}

#[test]
fn unusable_values_are_refused() {
    let with = |edit: fn(&mut Config)| {
        let mut config = Config::default();
        edit(&mut config);
        config.resolve()
    };
    assert!(with(|_| ()).is_ok());
    assert!(with(|c| c.cgroup_parent = PathBuf::from("/")).is_err());
    assert!(with(|c| c.cgroup_parent = PathBuf::from("relative")).is_err());
    assert!(with(|c| c.cgroup_parent = PathBuf::from("/a/../b")).is_err());
    assert!(with(|c| c.network.bridge = Some("sixteen-bytes-xx".to_owned())).is_err());
    assert!(with(|c| c.node_name = Some("edge-1.site".to_owned())).is_ok());
    for name in ["", " ", "a/b", "../x", "a\nb", "Edge", &"x".repeat(254)] {
        let config = Config {
            node_name: Some(name.to_owned()),
            ..Config::default()
        };
        assert!(config.resolve().is_err(), "{name}");
    }
    assert!(with(|c| c.parallel_pulls = 0).is_err());
    assert!(with(|c| c.platform = Some("arm64".to_owned())).is_err());
    assert!(with(|c| c.platform = Some("linux/arm64/v8".to_owned())).is_ok());
}

#[test]
fn any_name_of_a_host_makes_a_name_of_a_node() {
    for (host, name) in [
        ("vm", "vm"),
        ("Edge-1.Site", "edge-1.site"),
        ("my_host", "my-host"),
        ("(none)", "none"),
        ("..", "localhost"),
        ("", "localhost"),
    ] {
        assert_eq!(name_of_host(host), name, "{host}");
    }
}

#[test]
fn nodes_of_one_machine_give_pods_different_uids() {
    let seed = |dir: &str| {
        let config = Config {
            node_name: Some("edge-1".to_owned()),
            run_dir: dir.into(),
            ..Config::default()
        };
        config.uid_seed()
    };
    assert_eq!(seed(DEFAULT_RUN_DIR), "edge-1");
    assert_ne!(seed("/run/a"), seed("/run/b"));
}
