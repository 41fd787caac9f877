//! Pods as rows, for clients that ask the server to print: `kubectl get` does
//! (<https://kubernetes.io/docs/reference/using-api/api-concepts/#receiving-resources-as-tables>). The columns are those
//! of `k8s.io/kubernetes/pkg/printers/internalversion`.

use axum::http::{HeaderMap, header};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::summary::Summary;

/// How a client wants to have pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As they are.
    Objects,
    /// As a `meta.k8s.io/v1` Table.
    Table,
}

impl Form {
    /// What the `Accept` header prefers.
    pub(super) fn accepted(headers: &HeaderMap) -> Self {
        let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
        let first = accept.and_then(|all| all.split(',').next());
        let mut parameters = first.unwrap_or_default().split(';').map(str::trim);
        match parameters.any(|parameter| parameter == "as=Table") {
            true => Self::Table,
            false => Self::Objects,
        }
    }

    /// One pod.
    pub(super) fn pod(self, pod: &Pod) -> Value {
        match self {
            Self::Objects => json!(pod),
            Self::Table => {
                let version = pod.metadata.resource_version.clone();
                table(std::slice::from_ref(pod), version.as_deref())
            }
        }
    }
}

/// Pods as a Table.
pub(super) fn table(pods: &[Pod], version: Option<&str>) -> Value {
    let now = Timestamp::now();
    let rows: Vec<Value> = pods.iter().map(|pod| row(pod, now)).collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1",
        "metadata": { "resourceVersion": version.unwrap_or_default() },
        "columnDefinitions": columns(),
        "rows": rows,
    })
}

fn columns() -> Value {
    let column = |name: &str, kind: &str, format: &str, priority: u8, description: &str| json!({ "name": name, "type": kind, "format": format, "priority": priority, "description": description });
    json!([
        column("Name", "string", "name", 0, "The pod's name"),
        column(
            "Ready",
            "string",
            "",
            0,
            "Containers that are ready, of all"
        ),
        column(
            "Status",
            "string",
            "",
            0,
            "What the pod does, or why it does not"
        ),
        column(
            "Restarts",
            "string",
            "",
            0,
            "Restarts of its containers, and when the last was"
        ),
        column("Age", "string", "", 0, "Since the node knows of it"),
        column("IP", "string", "", 1, "Its address"),
        column("Node", "string", "", 1, "The node that it runs on"),
        column("Nominated Node", "string", "", 1, "Not used here"),
        column(
            "Readiness Gates",
            "string",
            "",
            1,
            "Gates that are open, of all"
        ),
    ])
}

fn row(pod: &Pod, now: Timestamp) -> Value {
    let summary = Summary::of(pod, now);
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
    json!({
        "cells": [
            summary.name,
            format!("{}/{}", summary.ready, summary.containers),
            summary.state,
            summary.restarts,
            summary.age,
            summary.ip,
            node.unwrap_or("<none>"),
            "<none>",
            gates(pod),
        ],
        "object": {
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": pod.metadata,
        },
    })
}

/// `1/2`, or that there are none.
fn gates(pod: &Pod) -> String {
    let gates = pod.spec.as_ref().and_then(|s| s.readiness_gates.as_deref());
    let gates = gates.unwrap_or_default();
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref());
    let conditions = conditions.unwrap_or_default();
    let is_open = |kind: &str| {
        let mut of_kind = conditions.iter().filter(|c| c.type_ == kind);
        of_kind.any(|c| c.status == "True")
    };
    match gates.len() {
        0 => "<none>".to_owned(),
        all => {
            let open = gates.iter().filter(|g| is_open(&g.condition_type));
            format!("{}/{all}", open.count())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_what_the_client_prefers() {
        let form = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().expect("a value"));
            Form::accepted(&headers)
        };
        let kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        assert_eq!(form(kubectl), Form::Table);
        assert_eq!(form("application/json"), Form::Objects);
        assert_eq!(form("application/json, text/x;as=Table"), Form::Objects);
        assert_eq!(Form::accepted(&HeaderMap::new()), Form::Objects);
    }

    #[test]
    fn a_row_has_a_cell_for_each_column() {
        let table = table(&[Pod::default()], Some("7"));
        let cells = table["rows"][0]["cells"].as_array().map(Vec::len);
        assert_eq!(cells, table["columnDefinitions"].as_array().map(Vec::len));
        assert_eq!(table["metadata"]["resourceVersion"], "7");
    }
}
