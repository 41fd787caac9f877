//! `config.json` and `process.json`, read: what is wrong in them is told with the field's path.
//!
//! The usual way is one pass over the text. Only when that fails it is read again: values that the specification lets
//! a runtime leave out, or that the parser spells in another way, are mended; for all else the field is looked for.

use std::collections::BTreeSet;

use oci_spec::runtime::{Capability, LinuxResources, Process, Spec};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Why a configuration could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no JSON.
    #[error("it is not JSON")]
    Syntax(#[source] serde_json::Error),
    /// A value is not one that the specification allows.
    #[error("{field}: {}", reason.trim_end())]
    Field {
        /// As `process.user.uid`; `.` for the whole.
        field: String,
        /// What is wrong.
        reason: String,
    },
}

/// Reads a container's configuration.
///
/// # Errors
/// With the path of the first field that is wrong.
pub fn parse_spec(text: &[u8]) -> Result<Spec, Error> {
    let mut spec: Spec = parse(text, &["process"])?;
    if let Some(linux) = spec.linux_mut()
        && let Some(resources) = linux.resources_mut()
    {
        leave_out_pids(resources, text, "/linux/resources/pids/limit");
    }
    Ok(spec)
}

/// Reads the limits of a container that runs (`update --resources`).
///
/// # Errors
/// With the path of the first field that is wrong.
pub fn parse_resources(text: &[u8]) -> Result<LinuxResources, Error> {
    let mut resources = parse(text, &[])?;
    leave_out_pids(&mut resources, text, "/pids/limit");
    Ok(resources)
}

/// A limit of 0 is one (runtime-spec config-linux.md#pids), and none is what the parser gives for 0 as well: then the
/// text tells them apart.
fn leave_out_pids(resources: &mut LinuxResources, text: &[u8], limit: &str) {
    let is_zero =
        |resources: &LinuxResources| matches!(resources.pids(), Some(pids) if pids.limit() == 0);
    if is_zero(resources)
        && let Ok(value) = serde_json::from_slice::<Value>(text)
        && value.pointer(limit).is_none()
    {
        resources.set_pids(None);
    }
}

/// Reads a process to run in a container (`exec --process`).
///
/// # Errors
/// With the path of the first field that is wrong.
pub fn parse_process(text: &[u8]) -> Result<Process, Error> {
    parse(text, &[])
}

fn parse<T: DeserializeOwned>(text: &[u8], process: &[&str]) -> Result<T, Error> {
    if let Ok(parsed) = serde_json::from_slice(text) {
        return Ok(parsed);
    }
    let mut value: Value = serde_json::from_slice(text).map_err(Error::Syntax)?;
    let there = process
        .iter()
        .try_fold(&mut value, |value, name| value.get_mut(name));
    if let Some(process) = there {
        let unknown = leave_out_capabilities(process);
        if !unknown.is_empty() {
            // runc's words, which callers look for.
            let names = Vec::from_iter(unknown).join(" ");
            tracing::warn!("ignoring unknown or unavailable capabilities: [{names}]");
        }
        respell_flags(process);
        fill_in_user(process);
    }
    serde_path_to_error::deserialize(value).map_err(|error| Error::Field {
        field: error.path().to_string(),
        reason: error.inner().to_string(),
    })
}

/// "Any value which cannot be mapped to a relevant kernel interface … MUST be logged as a warning by the runtime"
/// (runtime-spec config.md#linux-process). Returns the names that no set has any more.
fn leave_out_capabilities(process: &mut Value) -> BTreeSet<String> {
    let mut unknown = BTreeSet::new();
    let sets = process
        .get_mut("capabilities")
        .and_then(Value::as_object_mut);
    for names in sets.into_iter().flat_map(|sets| sets.values_mut()) {
        let Some(names) = names.as_array_mut() else {
            continue;
        };
        names.retain(|name| match name.as_str() {
            Some(text) if Capability::deserialize(name).is_err() => {
                unknown.insert(text.to_owned());
                false
            }
            _ => true,
        });
    }
    unknown
}

/// Scheduling flags whose names in oci-spec's types are not those of the specification.
const RESPELLED: [(&str, &str); 2] = [
    ("SCHED_FLAG_RESET_ON_FORK", "SCHED_RESET_ON_FORK"),
    ("SCHED_FLAG_DL_OVERRUN", "SCHED_FLAG_D_L_OVERRUN"),
];

fn respell_flags(process: &mut Value) {
    let flags = process
        .pointer_mut("/scheduler/flags")
        .and_then(Value::as_array_mut);
    for flag in flags.into_iter().flatten() {
        if let Some((_, ours)) = RESPELLED.iter().find(|(theirs, _)| flag == theirs) {
            *flag = Value::from(*ours);
        }
    }
}

/// The schema does not require a user (config-schema.json): the process is root's then, as with runc and crun.
fn fill_in_user(process: &mut Value) {
    if let Some(process) = process.as_object_mut() {
        process
            .entry("user")
            .or_insert_with(|| serde_json::json!({ "uid": 0, "gid": 0 }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_limit_of_no_processes_is_not_a_missing_one() {
        let of = |pids: &str| {
            let text = format!(r#"{{"pids":{pids}}}"#);
            let resources = parse_resources(text.as_bytes()).expect("parses");
            let spec = format!(r#"{{"ociVersion":"1.3.0","linux":{{"resources":{text}}}}}"#);
            let spec = parse_spec(spec.as_bytes()).expect("parses");
            let linux = spec.linux().as_ref().expect("linux");
            assert_eq!(linux.resources().as_ref(), Some(&resources), "{pids}");
            resources.pids().map(|pids| pids.limit())
        };
        assert_eq!(of(r#"{"limit":0}"#), Some(0));
        assert_eq!(of(r#"{"limit":-1}"#), Some(-1));
        assert_eq!(of("{}"), None);
    }
    use serde_json::json;

    #[test]
    fn a_process_without_a_user_is_roots() {
        let process = parse_process(br#"{"args": ["true"], "cwd": "/"}"#).expect("reads");
        assert_eq!((process.user().uid(), process.user().gid()), (0, 0));
        let mut spec = example();
        spec["process"]
            .as_object_mut()
            .expect("an object")
            .remove("user");
        let spec = parse_spec(spec.to_string().as_bytes()).expect("reads");
        let process = spec.process().as_ref().expect("a process");
        assert_eq!((process.user().uid(), process.user().gid()), (0, 0));
    }

    fn example() -> Value {
        json!({
            "ociVersion": "1.3.0",
            "root": {"path": "rootfs", "readonly": true},
            "hostname": "a",
            "process": {
                "terminal": false, "user": {"uid": 0, "gid": 0, "umask": 18, "additionalGids": [1]},
                "args": ["sh"], "env": ["PATH=/bin"], "cwd": "/",
                "capabilities": {"bounding": ["CAP_CHOWN"], "ambient": []},
                "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}],
                "scheduler": {"policy": "SCHED_BATCH", "nice": 1, "flags": []},
                "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 4},
                "execCPUAffinity": {"initial": "0", "final": "0-1"}},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/data", "type": "bind", "source": "/tmp", "options": ["rbind", "ro", "nosuid"]},
                {"destination": "/tmp", "type": "tmpfs", "options": ["size=1m", "mode=1777"]}],
            "hooks": {"createRuntime": [{"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 1}]},
            "annotations": {"a": "b"},
            "linux": {
                "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "uts"}, {"type": "network"}],
                "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438}],
                "sysctl": {"net.core.somaxconn": "7"},
                "maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"],
                "rootfsPropagation": "rslave",
                "personality": {"domain": "LINUX"},
                "memoryPolicy": {"mode": "MPOL_BIND", "nodes": "0"},
                "resources": {"memory": {"limit": 1_000_000}, "devices": [{"allow": false, "access": "rwm"}]},
                "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                    {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
                     "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}]}}
        })
    }

    fn refused(change: impl FnOnce(&mut Value)) -> String {
        let mut value = example();
        change(&mut value);
        parse_spec(value.to_string().as_bytes())
            .expect_err("refused")
            .to_string()
    }

    #[test]
    fn unknown_capabilities_leave_all_sets_and_are_told_once() {
        let mut process = json!({"capabilities": {
            "bounding": ["CAP_FLY", "CAP_KILL", "CAP_FLY"], "effective": ["CAP_DIG", "CAP_FLY", 7]}});
        let unknown = leave_out_capabilities(&mut process);
        assert_eq!(Vec::from_iter(unknown), ["CAP_DIG", "CAP_FLY"]);
        let left = json!({"bounding": ["CAP_KILL"], "effective": [7]});
        assert_eq!(process["capabilities"], left);
    }

    #[test]
    fn the_field_is_named() {
        let message = refused(|v| v["process"]["user"]["uid"] = json!("root"));
        assert!(message.starts_with("process.user.uid: "), "{message}");
        let message = refused(|v| v["linux"]["namespaces"][1]["type"] = json!("moon"));
        assert!(
            message.starts_with("linux.namespaces[1].type: "),
            "{message}"
        );
        let message = refused(|v| v["process"]["rlimits"][0]["type"] = json!("RLIMIT_NICENESS"));
        assert!(
            message.starts_with("process.rlimits[0].type: "),
            "{message}"
        );
        assert!(matches!(parse_spec(b"{"), Err(Error::Syntax(_))));
    }

    #[test]
    fn an_unknown_capability_is_left_out() {
        let mut value = example();
        value["process"]["capabilities"]["bounding"] = json!(["CAP_FLY", "CAP_KILL"]);
        let spec = parse_spec(value.to_string().as_bytes()).expect("parses");
        let process = spec.process().as_ref().expect("a process");
        let set = process.capabilities().as_ref().expect("sets").bounding();
        assert_eq!(set.as_ref(), Some(&[Capability::Kill].into()));
        assert!(parse_process(value["process"].to_string().as_bytes()).is_ok());
        // What is no name at all is wrong.
        value["process"]["capabilities"]["bounding"] = json!([7]);
        assert!(parse_spec(value.to_string().as_bytes()).is_err());
    }

    #[test]
    fn every_scheduling_flag_of_the_specification_is_read() {
        let flags = [
            "RESET_ON_FORK",
            "RECLAIM",
            "DL_OVERRUN",
            "KEEP_POLICY",
            "KEEP_PARAMS",
            "UTIL_CLAMP_MIN",
            "UTIL_CLAMP_MAX",
        ]
        .map(|f| format!("SCHED_FLAG_{f}"));
        let mut value = example();
        value["process"]["scheduler"]["flags"] = json!(flags);
        parse_spec(value.to_string().as_bytes()).expect("parses");
    }

    #[test]
    fn the_example_is_a_container() {
        let spec = parse_spec(example().to_string().as_bytes()).expect("parses");
        crate::container::validate(&spec).expect("valid");
    }

    /// Any JSON, small.
    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            "[a-zA-Z0-9_/.:,\\-\\x00 ]{0,12}".prop_map(Value::from),
            Just(Value::from("\u{0}")),
            Just(Value::from("/../..")),
        ];
        leaf.prop_recursive(2, 8, 3, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                proptest::collection::btree_map("[a-z]{1,6}", inner, 0..3)
                    .prop_map(Value::from_iter),
            ]
        })
    }

    /// All places in a value, as JSON pointers.
    fn places(value: &Value, at: &str, all: &mut Vec<String>) {
        all.push(at.to_owned());
        match value {
            Value::Object(map) => {
                for (name, value) in map {
                    places(value, &format!("{at}/{}", name.replace('/', "~1")), all);
                }
            }
            Value::Array(list) => {
                for (index, value) in list.iter().enumerate() {
                    places(value, &format!("{at}/{index}"), all);
                }
            }
            _ => {}
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(600))]

        /// A configuration with a wrong value anywhere is taken or refused; it never ends this process.
        #[test]
        fn no_configuration_panics(changes in proptest::collection::vec((any::<proptest::sample::Index>(), any_value()), 1..3)) {
            let mut value = example();
            for (place, new) in changes {
                let mut all = Vec::new();
                places(&value, "", &mut all);
                let place = place.get(&all).clone();
                if let Some(old) = value.pointer_mut(&place) {
                    *old = new;
                }
            }
            if let Ok(spec) = parse_spec(value.to_string().as_bytes())
                && crate::container::validate(&spec).is_ok()
            {
                // What is valid can be planned, whatever the host makes of it.
                let planned = crate::container::plan_mounts(&spec).expect("planned");
                prop_assert_eq!(planned, spec.mounts().as_ref().map_or(0, Vec::len));
            }
        }

        #[test]
        fn no_text_panics(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse_spec(&text).ok();
            parse_process(&text).ok();
        }
    }
}
