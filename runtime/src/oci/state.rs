//! `state`, and how a container is described.

use std::fs;

use serde_json::{Value, json};

use super::error::Result;
use super::print;
use super::store::{Record, Status, Store};

/// Options of `state`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The container's name
    pub id: String,
}

/// Prints a container's state (runtime-spec `runtime.md#state`), with what runc adds.
pub(super) fn state(store: &Store, options: &Options) -> Result<()> {
    let entry = store.entry(&options.id)?;
    let record = entry.load()?;
    let status = entry.full_status(&record)?;
    let spec = entry.spec()?;
    let mut state = describe(&record, status);
    state["annotations"] = json!(spec.annotations().clone().unwrap_or_default());
    print::json(&state)
}

/// A container as `state` and `list` show it.
pub(super) fn describe(record: &Record, status: Status) -> Value {
    json!({
        "ociVersion": record.oci_version,
        "id": record.id,
        "pid": shown_pid(record, status),
        "status": status.name(),
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": record.created,
        "owner": owner(record),
    })
}

/// The first process while it lives; 0 after.
pub(super) fn shown_pid(record: &Record, status: Status) -> i32 {
    match status {
        Status::Stopped => 0,
        Status::Created | Status::Running | Status::Paused => record.pid,
    }
}

/// The name of the user who created the container, as runc prints it; the number where there is no name.
pub(super) fn owner(record: &Record) -> String {
    // NSS is not to be had in a static program.
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    name_in(&users, record.owner).unwrap_or_else(|| record.owner.to_string())
}

/// passwd(5): `name:password:uid:…`
fn name_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_have_names() {
        let passwd = "# a comment\nroot:x:0:0:root:/root:/bin/sh\nann:x:1000:1000::/home/ann:\n";
        assert_eq!(name_in(passwd, 1000).as_deref(), Some("ann"));
        assert_eq!(name_in(passwd, 1001), None);
    }
}
