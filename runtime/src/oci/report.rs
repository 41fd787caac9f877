//! `state`, `list`, `ps`, `spec` and `features`: commands that print.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use oci_spec::runtime::{ContainerState, Spec};
use serde_json::{Value, json};

use super::cli::{List, ListFormat};
use super::delete::{cgroup_error, cgroup_of};
use super::error::{Error, Result, file};
use super::store::{Record, Store};

/// `state`
pub(super) fn state(store: &Store, id: &str) -> Result<()> {
    let entry = store.entry(id)?;
    let record = entry.load()?;
    let (status, _) = entry.status(&record)?;
    let spec = entry.spec()?;
    let mut state = describe(&record, status);
    state["annotations"] = json!(spec.annotations().clone().unwrap_or_default());
    print_json(&state)
}

/// A container as `state` and `list` show it.
fn describe(record: &Record, status: ContainerState) -> Value {
    let pid = match status {
        ContainerState::Stopped => 0,
        _ => record.pid,
    };
    json!({
        "ociVersion": record.oci_version,
        "id": record.id,
        "status": super::status_name(status),
        "pid": pid,
        "bundle": record.bundle,
        "created": record.created,
        "owner": record.owner,
    })
}

/// `list`
pub(super) fn list(store: &Store, options: &List) -> Result<()> {
    let mut containers = Vec::new();
    for record in store.list()? {
        let (status, _) = store.entry(&record.id)?.status(&record)?;
        containers.push((status, record));
    }
    if options.quiet {
        let names: Vec<&str> = containers.iter().map(|(_, r)| r.id.as_str()).collect();
        return print(&names.join("\n"));
    }
    if options.format == ListFormat::Json {
        let all: Vec<Value> = containers
            .iter()
            .map(|(status, record)| describe(record, *status))
            .collect();
        return print_json(&json!(all));
    }
    let width = containers
        .iter()
        .map(|(_, r)| r.id.len())
        .max()
        .unwrap_or(0)
        .max(2);
    let mut lines = vec![format!(
        "{:width$}  {:>7}  {:8}  {:20}  BUNDLE",
        "ID", "PID", "STATUS", "CREATED"
    )];
    for (status, record) in &containers {
        let pid = if *status == ContainerState::Stopped {
            0
        } else {
            record.pid
        };
        lines.push(format!(
            "{:width$}  {pid:>7}  {:8}  {:20.0}  {}",
            record.id,
            super::status_name(*status),
            record.created,
            record.bundle.display(),
        ));
    }
    print(&lines.join("\n"))
}

/// `ps`
pub(super) fn ps(store: &Store, id: &str, format: ListFormat) -> Result<()> {
    let record = store.entry(id)?.load()?;
    let pids = cgroup_of(&record)?
        .processes()
        .map_err(cgroup_error("look at", &record))?;
    match format {
        ListFormat::Json => print_json(&json!(pids)),
        ListFormat::Table => {
            let lines: Vec<String> = pids.iter().map(ToString::to_string).collect();
            print(&lines.join("\n"))
        }
    }
}

/// `spec`: never over a file that is there.
pub(super) fn spec(bundle: &Path) -> Result<()> {
    let path = bundle.join("config.json");
    let mut spec = Spec::default();
    spec.set_hostname(Some("podling".to_owned()));
    let mut text = serde_json::to_vec_pretty(&spec).map_err(|source| Error::Json {
        path: path.clone(),
        source,
    })?;
    text.push(b'\n');
    fs::File::options()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&path)
        .and_then(|mut f| f.write_all(&text))
        .map_err(file("write", path))
}

/// `features`: runtime-spec `features.md`
pub(super) fn features() -> Result<()> {
    let mut capabilities: Vec<String> = caps::all().iter().map(ToString::to_string).collect();
    capabilities.sort();
    print_json(&json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.1",
        "hooks": [
            "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop",
        ],
        "mountOptions": [
            "atime", "bind", "defaults", "dev", "diratime", "exec", "noatime", "nodev", "nodiratime",
            "noexec", "norelatime", "nostrictatime", "nosuid", "nosymfollow", "private", "ratime", "rbind",
            "rdev", "rdiratime", "relatime", "rexec", "rnoatime", "rnodev", "rnodiratime", "rnoexec",
            "rnorelatime", "rnostrictatime", "rnosuid", "rnosymfollow", "ro", "rprivate", "rrelatime",
            "rro", "rrw", "rshared", "rslave", "rstrictatime", "rsuid", "rsymfollow", "runbindable", "rw",
            "shared", "slave", "strictatime", "suid", "symfollow", "unbindable",
        ],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities,
            "cgroup": {
                "v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": true,
            },
            "seccomp": {"enabled": true},
            "apparmor": {"enabled": false},
            "selinux": {"enabled": false},
            "intelRdt": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": false}},
            "netDevices": {"enabled": false},
        },
    }))
}

fn print_json(value: &Value) -> Result<()> {
    print(&format!("{value:#}"))
}

/// A reader that has gone away is fine.
fn print(text: &str) -> Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    match writeln!(io::stdout(), "{text}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(file("write", "standard output")(error))
        }
        _ => Ok(()),
    }
}
