//! Manifests: from text to objects.
//!
//! ```text
//! text ─► syntax ─► trees with lines ─► List opened ─► decode (strict) ─► support ─► validate ─► defaults ─► Desired
//! ```
//!
//! A manifest, a file or the value of a key in etcd, is a unit: all of its objects are taken or none, and all that is
//! wrong is told at once, each with line, field path and remedy. Pure: no I/O, no clock but for the problems' times.

mod annotations;
mod decode;
mod defaults;
mod node;
pub mod pull_secret;
pub mod quantity;
pub mod support;
mod support_table;
mod syntax;
#[cfg(test)]
mod tests;
mod validate;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

pub use syntax::{DOCUMENTS_MAX, MANIFEST_BYTES_MAX};
pub(crate) use validate::{check_dns_name, check_label_key, check_label_value};

use crate::store::{Body, Desired, Key, Kind, Origin, Problem};
use decode::Fault;
use node::{Node, NodeValue};

/// The namespace of objects that name none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Reads a manifest for the node of this name.
///
/// # Errors
/// All that is wrong with it.
pub fn parse(text: &str, origin: &Origin, node_name: &str) -> Result<Vec<Desired>, Vec<Problem>> {
    let documents = syntax::documents(text).map_err(|error| {
        let mut problem = Problem::new(origin.at(0, error.line), error.message);
        problem.remedy = error.remedy;
        vec![problem]
    })?;
    let mut objects = Vec::new();
    let mut problems = Vec::new();
    let mut seen: BTreeMap<Key, Origin> = BTreeMap::new();
    for (at, document) in documents.iter().enumerate() {
        let number = u32::try_from(at + 1).unwrap_or(u32::MAX);
        for (node, prefix) in open_list(document) {
            let origin = origin.at(number, node.line);
            match parse_object(node, &origin, node_name) {
                Ok(desired) => match seen.insert(desired.key.clone(), origin.clone()) {
                    None => objects.push(desired),
                    Some(first) => problems.push(defined_twice(&desired, &first)),
                },
                Err(found) => problems.extend(found.into_iter().map(|problem| Problem {
                    field: problem.field.map(|field| format!("{prefix}{field}")),
                    ..problem
                })),
            }
        }
    }
    if objects.len() > DOCUMENTS_MAX {
        let message = format!("the manifest has more than {DOCUMENTS_MAX} objects");
        problems.push(Problem::new(origin.clone(), message).remedy("split it into several"));
    }
    if problems.is_empty() {
        Ok(objects)
    } else {
        Err(problems)
    }
}

/// The objects of a document, each with the prefix of its field paths.
fn open_list(document: &Node) -> Vec<(&Node, String)> {
    let kind = document.get("kind").and_then(Node::text);
    let items = document.get("items").map(|items| &items.value);
    match (kind, items) {
        (Some(kind), Some(NodeValue::List(items))) if is_list(kind) => items
            .iter()
            .enumerate()
            .map(|(at, item)| (item, format!("items[{at}].")))
            .collect(),
        _ => vec![(document, String::new())],
    }
}

/// `List`, and `PodList` and its like as `kubectl get -o yaml` once wrote them.
fn is_list(kind: &str) -> bool {
    kind.strip_suffix("List")
        .is_some_and(|kind| kind.is_empty() || kind.parse::<Kind>().is_ok())
}

fn defined_twice(desired: &Desired, first: &Origin) -> Problem {
    let message = format!("{} is already defined at {first}", desired.key);
    Problem::new(desired.origin.clone(), message)
        .object(Some(desired.key.clone()))
        .field("metadata.name")
        .remedy("remove one of the two, or give it another name or namespace")
}

fn parse_object(node: &Node, origin: &Origin, node_name: &str) -> Result<Desired, Vec<Problem>> {
    let (kind, key) = identify(node).map_err(|fault| vec![problem(origin, None, fault)])?;
    let body = match kind {
        Kind::Pod => pod(node, node_name).map(|pod| Body::Pod(Arc::new(pod))),
        Kind::ConfigMap => checked(node, validate::config_map, defaults::config_map)
            .map(|map: ConfigMap| Body::ConfigMap(Arc::new(map))),
        Kind::Secret => checked(node, validate::secret, defaults::secret)
            .map(|secret: Secret| Body::Secret(Arc::new(secret))),
        Kind::Namespace => checked(node, validate::namespace, defaults::namespace)
            .map(|namespace: Namespace| Body::Namespace(Arc::new(namespace))),
    };
    let body = body.map_err(|faults| {
        let faults = faults.into_iter();
        faults
            .map(|fault| problem(origin, key.clone(), fault))
            .collect::<Vec<_>>()
    })?;
    let metadata = body.metadata();
    let key = Key::new(
        kind,
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    );
    Ok(Desired {
        key,
        origin: origin.clone(),
        hash: hash(node),
        body,
    })
}

/// The kind, and the key as far as it can be told before anything is checked.
fn identify(node: &Node) -> Result<(Kind, Option<Key>), Fault> {
    let fault = |path: &str, message: String, remedy: &str| Fault {
        path: path.to_owned(),
        line: node.line_of(path),
        message,
        remedy: Some(remedy.to_owned()),
    };
    if !matches!(node.value, NodeValue::Map(_)) {
        let message = format!("expected an object, found {}", node.describe());
        return Err(fault(
            "",
            message,
            "begin with apiVersion, kind and metadata",
        ));
    }
    let text = |field: &str| node.get(field).and_then(Node::text).unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    if kind.is_empty() {
        return Err(fault(
            "kind",
            "required".to_owned(),
            "say what it is, such as `kind: Pod`",
        ));
    }
    let kind: Kind = kind.parse().map_err(|error| {
        let all = Kind::ALL.map(Kind::name);
        let remedy = match decode::nearest(kind, all) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("the kinds of this node are {}", all.join(", ")),
        };
        fault("kind", format!("{error}"), &remedy)
    })?;
    if api_version != kind.api_version() {
        let remedy = format!("write `apiVersion: {}`", kind.api_version());
        let message = match api_version {
            "" => "required".to_owned(),
            other => format!("there is no {kind} in `{other}`"),
        };
        return Err(fault("apiVersion", message, &remedy));
    }
    let metadata = node.get("metadata");
    let of = |field: &str| metadata?.get(field)?.text();
    let key = of("name").map(|name| {
        let namespace = if kind.is_namespaced() {
            of("namespace")
                .filter(|ns| !ns.is_empty())
                .unwrap_or(DEFAULT_NAMESPACE)
        } else {
            ""
        };
        Key::new(kind, namespace, name)
    });
    Ok((kind, key))
}

fn pod(node: &Node, node_name: &str) -> Result<Pod, Vec<Fault>> {
    let mut pod: Pod = decode::decode(node)?;
    let mut faults = Vec::new();
    support::check(node, &mut faults);
    faults.extend(
        validate::pod(&pod, node_name)
            .into_iter()
            .map(|fault| at_line(node, fault)),
    );
    if !faults.is_empty() {
        faults.sort_by_key(|fault| fault.line);
        return Err(faults);
    }
    defaults::pod(&mut pod);
    Ok(pod)
}

fn checked<T: DeserializeOwned>(
    node: &Node,
    validate: fn(&T) -> Vec<Fault>,
    apply_defaults: fn(&mut T),
) -> Result<T, Vec<Fault>> {
    let mut object: T = decode::decode(node)?;
    let faults = validate(&object);
    if !faults.is_empty() {
        return Err(faults
            .into_iter()
            .map(|fault| at_line(node, fault))
            .collect());
    }
    apply_defaults(&mut object);
    Ok(object)
}

fn at_line(node: &Node, fault: Fault) -> Fault {
    Fault {
        line: node.line_of(&fault.path),
        ..fault
    }
}

fn problem(origin: &Origin, key: Option<Key>, fault: Fault) -> Problem {
    let document = match origin {
        Origin::File { document, .. } | Origin::Etcd { document, .. } => *document,
        Origin::Api => 0,
    };
    let problem = Problem::new(origin.at(document, fault.line), fault.message)
        .object(key)
        .field(fault.path);
    match fault.remedy {
        Some(remedy) => problem.remedy(remedy),
        None => problem,
    }
}

/// A hash of the manifest as written, over sorted JSON.
fn hash(node: &Node) -> String {
    hex::encode(Sha256::digest(node.to_json().to_string().as_bytes()))
}
