//! What each field of a Pod means on this node: one table, which manifests are checked against and which the
//! documentation is made from.
//!
//! Nothing is silently ignored. A field is applied, or refused with a message, or accepted without effect for a
//! reason that stands here and in the documentation; then leaving it out would change nothing for the pod.

use super::annotations;
use super::decode::Fault;
use super::node::{Node, NodeValue, child_path};
use super::support_table::FIELDS;

/// What the node does with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// It does what Kubernetes says.
    Applied,
    /// As [`Support::Applied`], for everything below as well.
    AppliedWhole,
    /// It does a part of what Kubernetes says: this one.
    AppliedPart(&'static str),
    /// Only these values, written as JSON, are taken; each means what Kubernetes says. The text says why.
    Only(&'static [&'static str], &'static str),
    /// Refused, for this reason.
    Refused(&'static str),
    /// Accepted without effect, for this reason.
    NoEffect(&'static str),
}

/// A field and what the node does with it.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Such as `spec.containers[].image`. A last segment `*` stands for all names that are not in the table.
    pub path: &'static str,
    /// What the node does with it.
    pub support: Support,
}

/// The rule for a path such as `spec.containers[].image`.
pub(super) fn rule(pattern: &str) -> Option<&'static Field> {
    let exact = FIELDS.iter().find(|field| field.path == pattern);
    exact.or_else(|| {
        let (parent, _) = pattern.rsplit_once('.')?;
        let matches = |field: &&Field| field.path.strip_suffix(".*") == Some(parent);
        FIELDS.iter().find(matches)
    })
}

/// Checks a Pod manifest, whose fields are all known to Kubernetes.
pub(super) fn check(pod: &Node, faults: &mut Vec<Fault>) {
    check_fields(pod, "", "", faults);
}

fn check_fields(node: &Node, path: &str, pattern: &str, faults: &mut Vec<Fault>) {
    match &node.value {
        NodeValue::Map(entries) => {
            for (key, value) in entries {
                let pattern = canonical(pattern, key);
                check_field(value, &child_path(path, key), &pattern, faults);
            }
        }
        NodeValue::List(items) => {
            for (at, item) in items.iter().enumerate() {
                check_fields(item, &format!("{path}[{at}]"), pattern, faults);
            }
        }
        _ => {}
    }
}

fn check_field(node: &Node, path: &str, pattern: &str, faults: &mut Vec<Fault>) {
    if is_empty(node) {
        return;
    }
    let below = match node.value {
        NodeValue::List(_) => format!("{pattern}[]"),
        _ => pattern.to_owned(),
    };
    let refuse = |message: String, remedy: &str| Fault {
        path: path.to_owned(),
        line: node.line,
        message,
        remedy: Some(remedy.to_owned()),
    };
    match rule(pattern).map(|field| field.support) {
        Some(Support::Applied) => check_fields(node, path, &below, faults),
        Some(Support::AppliedWhole | Support::AppliedPart(_) | Support::NoEffect(_)) => {}
        Some(Support::Only(values, why)) => {
            let json = node.to_json();
            if !values.iter().any(|value| json_is(value, &json)) {
                let message = format!("only {} is supported: {why}", values.join(" or "));
                faults.push(refuse(message, "remove the field or change its value"));
            }
        }
        // `nodeSelector: {}` selects every node; `downwardAPI: {}` is a volume.
        Some(Support::Refused(_)) if is_empty_map(node) && !pattern.starts_with("spec.volumes") => {
        }
        Some(Support::Refused(why)) => {
            faults.push(refuse(format!("not supported: {why}"), "remove the field"));
        }
        // A field of the Kubernetes API that the table forgot; a test looks for them.
        None => faults.push(refuse("not supported".to_owned(), "remove the field")),
    }
}

/// Empty values mean the same as none, in each field of the API that is not applied.
fn is_empty(node: &Node) -> bool {
    match &node.value {
        NodeValue::Null => true,
        NodeValue::Text(text) => text.is_empty(),
        NodeValue::List(items) => items.is_empty(),
        // `emptyDir: {}` says something; what is below an empty map does not.
        NodeValue::Map(_) | NodeValue::Bool(_) | NodeValue::Integer(_) | NodeValue::Float(_) => {
            false
        }
    }
}

fn is_empty_map(node: &Node) -> bool {
    matches!(&node.value, NodeValue::Map(entries) if entries.is_empty())
}

fn json_is(expected: &str, found: &serde_json::Value) -> bool {
    serde_json::from_str::<serde_json::Value>(expected).is_ok_and(|expected| expected == *found)
}

/// The pattern of a key: init containers and the three probes share their rules with what they resemble.
fn canonical(parent: &str, key: &str) -> String {
    let key = match (parent, key) {
        ("spec", "initContainers") => "containers",
        ("spec.containers[]", "readinessProbe" | "startupProbe") => "livenessProbe",
        ("spec.containers[].lifecycle", "postStart") => "preStop",
        (_, key) => key,
    };
    if parent.is_empty() {
        key.to_owned()
    } else {
        format!("{parent}.{key}")
    }
}

/// The documentation, as Markdown.
pub fn markdown() -> String {
    let mut out = String::from(
        "# Fields of a Pod\n\n\
         Made from the table that manifests are checked against (`agent/src/manifest/support_table.rs`); a test \
         keeps the two equal. `spec.initContainers[]` has the rules of `spec.containers[]`, `readinessProbe` and \
         `startupProbe` those of `livenessProbe`, `postStart` those of `preStop`. A `*` stands for all other \
         names. An empty value is the same as none. A field that Kubernetes does not have is always refused. \
         AppArmor's `RuntimeDefault` is the profile `podling-default`, which is installed in `/etc/apparmor.d` and must \
         be loaded, as those that `Localhost` names; a pod without `appArmorProfile` has none.\n\n\
         | Field | On this node |\n|---|---|\n",
    );
    for field in FIELDS {
        let says = match field.support {
            Support::Applied => "applied".to_owned(),
            Support::AppliedWhole => "applied, with all below".to_owned(),
            Support::AppliedPart(part) => format!("applied in part: {part}"),
            Support::Only(values, why) => {
                let values: Vec<String> = values.iter().map(|v| format!("`{v}`")).collect();
                format!("only {}: {why}", values.join(", "))
            }
            Support::Refused(why) => format!("**refused**: {why}"),
            Support::NoEffect(why) => format!("accepted without effect: {why}"),
        };
        out.push_str(&format!("| `{}` | {says} |\n", field.path));
    }
    out.push_str(&annotations::markdown());
    out
}
