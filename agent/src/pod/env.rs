//! A container's environment, and `$(VAR)` in it.
//!
//! The rules are the kubelet's (`makeEnvironmentVariables` in `pkg/kubelet/kubelet_pods.go`, and
//! `third_party/forked/golang/expansion`): the image's variables, then `envFrom` in order, then `env` in order, each
//! replacing what came before; a reference sees `envFrom` and the entries of `env` above it, not the image's.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVar, EnvVarSource, ObjectFieldSelector, PodSpec,
    ResourceFieldSelector, Secret,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::resources::{self, Capacity};
use crate::manifest::quantity::{self, QuantityError};

/// Finds the ConfigMaps and Secrets of the pod's namespace.
pub trait Objects {
    /// The ConfigMap of this name.
    fn config_map(&self, name: &str) -> Option<Arc<ConfigMap>>;
    /// The Secret of this name.
    fn secret(&self, name: &str) -> Option<Arc<Secret>>;
}

/// For tests of pods that name none.
#[cfg(test)]
pub(crate) struct NoObjects;

#[cfg(test)]
impl Objects for NoObjects {
    fn config_map(&self, _: &str) -> Option<Arc<ConfigMap>> {
        None
    }
    fn secret(&self, _: &str) -> Option<Arc<Secret>> {
        None
    }
}

/// What the downward API can tell a container.
#[derive(Debug, Clone)]
pub struct PodFacts<'a> {
    /// The pod's metadata, with its UID.
    pub metadata: &'a ObjectMeta,
    /// The pod's spec, whose containers may be asked for each other's resources.
    pub spec: Option<&'a PodSpec>,
    /// `spec.serviceAccountName`.
    pub service_account: &'a str,
    /// The node's name.
    pub node_name: &'a str,
    /// The node's address.
    pub host_ip: IpAddr,
    /// The pod's addresses.
    pub pod_ips: &'a [IpAddr],
    /// What the machine has: the limit of a container without one.
    pub capacity: Capacity,
}

impl<'a> PodFacts<'a> {
    fn container(&self, name: &str) -> Option<&'a Container> {
        let spec = self.spec?;
        let inits = spec.init_containers.iter().flatten();
        inits
            .chain(&spec.containers)
            .find(|container| container.name == name)
    }
}

/// Why a container has no environment yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// A ConfigMap is not there.
    #[error("configmap \"{0}\" not found")]
    NoConfigMap(String),
    /// A Secret is not there.
    #[error("secret \"{0}\" not found")]
    NoSecret(String),
    /// A ConfigMap has no such key.
    #[error("couldn't find key {key} in ConfigMap {name}")]
    NoConfigMapKey {
        /// The ConfigMap.
        name: String,
        /// The key.
        key: String,
    },
    /// A Secret has no such key.
    #[error("couldn't find key {key} in Secret {name}")]
    NoSecretKey {
        /// The Secret.
        name: String,
        /// The key.
        key: String,
    },
    /// The value is not text, so it cannot be a variable.
    #[error(
        "the value of key {key} in {object} is not UTF-8, or holds a NUL: it cannot be an environment variable"
    )]
    NotText {
        /// The ConfigMap or Secret.
        object: String,
        /// The key.
        key: String,
    },
    /// A field that pods do not have.
    #[error("fieldRef: unsupported field path {0}")]
    Field(String),
    /// A resource that containers do not have.
    #[error("resourceFieldRef: unsupported resource {0}")]
    Resource(String),
    /// A container that the pod does not have.
    #[error("resourceFieldRef: there is no container {0}")]
    Container(String),
    /// An amount that is not a quantity.
    #[error(transparent)]
    Quantity(#[from] QuantityError),
}

/// Variables in order, each name once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variables {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Variables {
    /// Sets a variable; one that is there keeps its place.
    pub fn set(&mut self, name: &str, value: String) {
        if self.values.insert(name.to_owned(), value).is_none() {
            self.order.push(name.to_owned());
        }
    }

    /// The value of a variable.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// `NAME=value`, in order.
    #[must_use]
    pub fn to_strings(&self) -> Vec<String> {
        self.order
            .iter()
            .map(|name| format!("{name}={}", self.values[name]))
            .collect()
    }
}

/// The variables that the manifest gives to a container.
///
/// # Errors
/// When something it refers to is not there and is not optional.
pub fn variables(
    container: &Container,
    facts: &PodFacts<'_>,
    objects: &dyn Objects,
) -> Result<Variables, EnvError> {
    let mut variables = Variables::default();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let mut add = |key: &str, value: &str| {
            let name = format!("{prefix}{key}");
            if is_variable_name(&name) {
                variables.set(&name, value.to_owned());
            }
        };
        if let Some(reference) = &from.config_map_ref {
            match objects.config_map(&reference.name) {
                Some(map) => map.data.iter().flatten().for_each(|(k, v)| add(k, v)),
                None if reference.optional == Some(true) => {}
                None => return Err(EnvError::NoConfigMap(reference.name.clone())),
            }
        }
        if let Some(reference) = &from.secret_ref {
            match objects.secret(&reference.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        add(key, text(&value.0, "Secret", &reference.name, key)?);
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(EnvError::NoSecret(reference.name.clone())),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = value(variable, container, facts, objects, &variables)? {
            variables.set(&variable.name, value);
        }
    }
    Ok(variables)
}

/// The value of one entry of `env`; none when what it refers to is optional and not there.
fn value(
    variable: &EnvVar,
    container: &Container,
    facts: &PodFacts<'_>,
    objects: &dyn Objects,
    above: &Variables,
) -> Result<Option<String>, EnvError> {
    match &variable.value_from {
        None => {
            let text = variable.value.as_deref().unwrap_or_default();
            Ok(Some(expand(text, |name| above.get(name))))
        }
        Some(source) => value_from(source, container, facts, objects),
    }
}

fn value_from(
    source: &EnvVarSource,
    container: &Container,
    facts: &PodFacts<'_>,
    objects: &dyn Objects,
) -> Result<Option<String>, EnvError> {
    if let Some(field) = &source.field_ref {
        return field_value(field, facts).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        return resource_value(resource, Some(container), facts).map(Some);
    }
    if let Some(key) = &source.config_map_key_ref {
        let optional = key.optional == Some(true);
        let Some(map) = objects.config_map(&key.name) else {
            return if optional {
                Ok(None)
            } else {
                Err(EnvError::NoConfigMap(key.name.clone()))
            };
        };
        return match map.data.as_ref().and_then(|data| data.get(&key.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(EnvError::NoConfigMapKey {
                name: key.name.clone(),
                key: key.key.clone(),
            }),
        };
    }
    if let Some(key) = &source.secret_key_ref {
        let optional = key.optional == Some(true);
        let Some(secret) = objects.secret(&key.name) else {
            return if optional {
                Ok(None)
            } else {
                Err(EnvError::NoSecret(key.name.clone()))
            };
        };
        return match secret.data.as_ref().and_then(|data| data.get(&key.key)) {
            Some(value) => {
                text(&value.0, "Secret", &key.name, &key.key).map(|v| Some(v.to_owned()))
            }
            None if optional => Ok(None),
            None => Err(EnvError::NoSecretKey {
                name: key.name.clone(),
                key: key.key.clone(),
            }),
        };
    }
    // Strict parsing refuses unknown sources, and an empty one gives an empty value.
    Ok(Some(String::new()))
}

fn text<'a>(bytes: &'a [u8], kind: &str, name: &str, key: &str) -> Result<&'a str, EnvError> {
    std::str::from_utf8(bytes)
        .ok()
        .filter(|text| !text.contains('\0'))
        .ok_or_else(|| EnvError::NotText {
            object: format!("{kind} {name}"),
            key: key.to_owned(),
        })
}

/// The value of a field of the pod, for variables and downward API files.
///
/// # Errors
/// When pods have no such field.
pub fn field_value(field: &ObjectFieldSelector, facts: &PodFacts<'_>) -> Result<String, EnvError> {
    let metadata = facts.metadata;
    let joined = |ips: &[IpAddr]| {
        let texts: Vec<String> = ips.iter().map(IpAddr::to_string).collect();
        texts.join(",")
    };
    if let Some((map, key)) = subscript(&field.field_path) {
        let values = match map {
            "metadata.labels" => &metadata.labels,
            "metadata.annotations" => &metadata.annotations,
            _ => return Err(EnvError::Field(field.field_path.clone())),
        };
        return Ok(values
            .as_ref()
            .and_then(|values| values.get(key))
            .cloned()
            .unwrap_or_default());
    }
    Ok(match field.field_path.as_str() {
        "metadata.name" => metadata.name.clone().unwrap_or_default(),
        "metadata.namespace" => metadata.namespace.clone().unwrap_or_default(),
        "metadata.uid" => metadata.uid.clone().unwrap_or_default(),
        "metadata.labels" => key_values(metadata.labels.as_ref()),
        "metadata.annotations" => key_values(metadata.annotations.as_ref()),
        "spec.nodeName" => facts.node_name.to_owned(),
        "spec.serviceAccountName" => facts.service_account.to_owned(),
        "status.hostIP" | "status.hostIPs" => facts.host_ip.to_string(),
        "status.podIP" => facts
            .pod_ips
            .first()
            .map(IpAddr::to_string)
            .unwrap_or_default(),
        "status.podIPs" => joined(facts.pod_ips),
        other => return Err(EnvError::Field(other.to_owned())),
    })
}

/// `metadata.labels['key']` as map and key.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// `key="escaped value"` lines, sorted (`fieldpath.FormatMap`).
fn key_values(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    lines.join("\n")
}

/// The value of a resource of the container that is named, else of `own`, divided and rounded up.
///
/// # Errors
/// When the pod has no such container, containers have no such resource, or the divisor is not a quantity.
pub fn resource_value(
    selector: &ResourceFieldSelector,
    own: Option<&Container>,
    facts: &PodFacts<'_>,
) -> Result<String, EnvError> {
    let capacity = &facts.capacity;
    let name = selector.container_name.as_deref().unwrap_or_default();
    let container = match name {
        "" => own,
        name => facts.container(name),
    };
    let container = container.ok_or_else(|| EnvError::Container(name.to_owned()))?;
    let needs = resources::needs(container.resources.as_ref())?;
    let divisor = selector
        .divisor
        .as_ref()
        .map(|q| q.0.as_str())
        .filter(|q| *q != "0");
    let cpu = |millis: i64| -> Result<String, EnvError> {
        let divisor = quantity::millis(divisor.unwrap_or("1"))?.max(1);
        Ok(ceil_div(millis, divisor).to_string())
    };
    let bytes = |bytes: i64| -> Result<String, EnvError> {
        let divisor = quantity::units(divisor.unwrap_or("1"))?.max(1);
        Ok(ceil_div(bytes, divisor).to_string())
    };
    // A container without a limit can have all there is.
    let some = |amount: Option<i64>| amount.filter(|amount| *amount > 0);
    match selector.resource.as_str() {
        "limits.cpu" => cpu(some(needs.limits.cpu_millis).unwrap_or(capacity.cpu_millis)),
        "requests.cpu" => cpu(needs.requests.cpu_millis.unwrap_or(0)),
        "limits.memory" => bytes(some(needs.limits.memory_bytes).unwrap_or(capacity.memory_bytes)),
        "requests.memory" => bytes(needs.requests.memory_bytes.unwrap_or(0)),
        other => Err(EnvError::Resource(other.to_owned())),
    }
}

fn ceil_div(value: i64, divisor: i64) -> i64 {
    value / divisor + i64::from(value % divisor > 0)
}

/// Printable ASCII without `=` (Kubernetes' `IsRelaxedEnvVarName`).
#[must_use]
pub fn is_variable_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| matches!(byte, 0x20..=0x7e) && byte != b'=')
}

/// Replaces `$(NAME)` by the variable's value; one that is not there stays as it is, and `$$` is a `$`.
pub fn expand<'a>(input: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut output = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.find('$') {
        output.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        match after.chars().next() {
            None => {
                output.push('$');
                rest = after;
            }
            Some('$') => {
                output.push('$');
                rest = &after[1..];
            }
            Some('(') => match after.find(')') {
                Some(end) => {
                    let name = &after[1..end];
                    match lookup(name) {
                        Some(value) => output.push_str(value),
                        None => {
                            output.push_str("$(");
                            output.push_str(name);
                            output.push(')');
                        }
                    }
                    rest = &after[end + 1..];
                }
                None => {
                    output.push_str("$(");
                    rest = &after[1..];
                }
            },
            Some(other) => {
                output.push('$');
                output.push(other);
                rest = &after[other.len_utf8()..];
            }
        }
    }
    output.push_str(rest);
    output
}

#[cfg(test)]
#[path = "env_tests.rs"]
mod tests;
