//! Validation beyond types, as the API server does it (`pkg/apis/core/validation` of Kubernetes), as far as it
//! matters on one node. Before defaults: paths and values are those of the manifest.

mod annotations;
mod container;
mod pod;
mod probe;
mod text;
mod volume;

pub(crate) use text::{
    dns_subdomain as check_dns_name, label_value as check_label_value,
    qualified_name as check_label_key,
};

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::decode::Fault;
use super::pull_secret;

/// What a ConfigMap or Secret may hold, in bytes.
const DATA_BYTES_MAX: usize = 1 << 20;
/// What all annotations of an object may hold, in bytes.
const ANNOTATIONS_BYTES_MAX: usize = 256 << 10;
/// The label of a namespace whose pods have to keep to a pod security standard.
const POD_SECURITY: &str = "pod-security.kubernetes.io/enforce";

/// Collects faults.
#[derive(Debug, Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.push(path.into(), message.into(), None);
    }

    fn add_with(
        &mut self,
        path: impl Into<String>,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        self.push(path.into(), message.into(), Some(remedy.into()));
    }

    fn push(&mut self, path: String, message: String, remedy: Option<String>) {
        self.0.push(Fault {
            path,
            line: 0,
            message,
            remedy,
        });
    }

    /// A text that must be one of a few.
    fn one_of(&mut self, path: &str, value: Option<&str>, allowed: &[&str]) {
        let Some(value) = value.filter(|value| !value.is_empty()) else {
            return;
        };
        if !allowed.contains(&value) {
            let remedy = match super::decode::nearest(value, allowed.iter().copied()) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("use one of {}", allowed.join(", ")),
            };
            self.add_with(
                path,
                format!("`{value}` is not a value of this field"),
                remedy,
            );
        }
    }

    /// A number with bounds.
    fn between(&mut self, path: &str, value: Option<i64>, least: i64, most: i64) {
        if let Some(value) = value.filter(|value| *value < least || *value > most) {
            let message = if value > most {
                format!("{value} is too large: at most {most}")
            } else if most == i64::MAX || most == i64::from(i32::MAX) {
                format!("{value} is too small: at least {least}")
            } else {
                format!("{value} is not between {least} and {most}")
            };
            self.add(path, message);
        }
    }
}

/// A Pod, for the node of this name.
pub(super) fn pod(object: &Pod, node_name: &str) -> Vec<Fault> {
    let mut faults = Faults::default();
    metadata(&object.metadata, text::dns_subdomain, &mut faults);
    annotations::annotations(object, &mut faults);
    match &object.spec {
        Some(spec) => pod::spec(spec, node_name, &mut faults),
        None => faults.add("spec", "required"),
    }
    faults.0
}

/// A ConfigMap.
pub(super) fn config_map(object: &ConfigMap) -> Vec<Fault> {
    let mut faults = Faults::default();
    metadata(&object.metadata, text::dns_subdomain, &mut faults);
    let texts = object.data.iter().flatten();
    let binaries = object.binary_data.iter().flatten();
    let sizes = texts
        .map(|(key, value)| ("data", key, value.len()))
        .chain(binaries.map(|(key, value)| ("binaryData", key, value.0.len())));
    data(sizes, &mut faults);
    for key in object.data.iter().flatten().map(|(key, _)| key) {
        let also = object
            .binary_data
            .as_ref()
            .is_some_and(|data| data.contains_key(key));
        if also {
            faults.add(format!("binaryData[{key}]"), "the same key is in `data`");
        }
    }
    faults.0
}

/// A Secret.
pub(super) fn secret(object: &Secret) -> Vec<Fault> {
    let mut faults = Faults::default();
    metadata(&object.metadata, text::dns_subdomain, &mut faults);
    let binaries = object.data.iter().flatten();
    let texts = object.string_data.iter().flatten();
    let sizes = binaries
        .map(|(key, value)| ("data", key, value.0.len()))
        .chain(texts.map(|(key, value)| ("stringData", key, value.len())));
    data(sizes, &mut faults);
    if pull_secret::is_one(object)
        && let Err(why) = pull_secret::read(object)
    {
        faults.add_with(
            "data",
            format!("not what its type says: {why}"),
            "`kubectl create secret docker-registry --dry-run=client -o yaml` writes such a Secret",
        );
    }
    faults.0
}

/// A Namespace.
pub(super) fn namespace(object: &Namespace) -> Vec<Fault> {
    let mut faults = Faults::default();
    metadata(&object.metadata, text::dns_label, &mut faults);
    if object
        .metadata
        .namespace
        .as_deref()
        .is_some_and(|ns| !ns.is_empty())
    {
        faults.add("metadata.namespace", "a Namespace is in no namespace");
    }
    let labels = object.metadata.labels.iter().flatten();
    for (key, level) in labels.filter(|(key, _)| *key == POD_SECURITY) {
        if !matches!(level.as_str(), "" | "privileged") {
            let message = "not supported: pods are not checked against the pod security standards";
            faults.add_with(
                format!("metadata.labels[{key}]"),
                message,
                "remove the label, and check manifests before this node gets them",
            );
        }
    }
    faults.0
}

fn data<'a>(entries: impl Iterator<Item = (&'a str, &'a String, usize)>, faults: &mut Faults) {
    let mut total = 0;
    for (field, key, bytes) in entries {
        total += key.len() + bytes;
        if let Err(message) = text::data_key(key) {
            faults.add(format!("{field}[{key}]"), message);
        }
    }
    if total > DATA_BYTES_MAX {
        faults.add(
            "data",
            format!("{total} bytes; at most {DATA_BYTES_MAX} are allowed"),
        );
    }
}

fn metadata(
    metadata: &ObjectMeta,
    check_name: fn(&str) -> Result<(), String>,
    faults: &mut Faults,
) {
    match metadata.name.as_deref().unwrap_or_default() {
        "" => faults.add("metadata.name", "required"),
        name => {
            if let Err(message) = check_name(name) {
                faults.add_with(
                    "metadata.name",
                    message,
                    "use lower case letters, digits and `-`",
                );
            }
        }
    }
    if let Some(namespace) = metadata.namespace.as_deref().filter(|ns| !ns.is_empty())
        && let Err(message) = text::dns_label(namespace)
    {
        faults.add("metadata.namespace", message);
    }
    labels("metadata.labels", metadata.labels.as_ref(), faults);
    let mut bytes = 0;
    for (key, value) in metadata.annotations.iter().flatten() {
        bytes += key.len() + value.len();
        if let Err(message) = text::qualified_name(key) {
            faults.add(format!("metadata.annotations[{key}]"), message);
        }
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        let message = format!("{bytes} bytes; at most {ANNOTATIONS_BYTES_MAX} are allowed");
        faults.add("metadata.annotations", message);
    }
}

fn labels(path: &str, labels: Option<&BTreeMap<String, String>>, faults: &mut Faults) {
    for (key, value) in labels.into_iter().flatten() {
        let checked = text::qualified_name(key).and_then(|()| text::label_value(value));
        if let Err(message) = checked {
            faults.add(format!("{path}[{key}]"), message);
        }
    }
}
