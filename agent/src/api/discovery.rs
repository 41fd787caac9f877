//! What the API has, for clients that ask before they use it, as kubectl does
//! (<https://kubernetes.io/docs/concepts/overview/kubernetes-api/#discovery-api>).

use axum::Json;
use serde_json::{Value, json};

/// The version of Kubernetes whose objects are shown (that of the `k8s-openapi` crate's feature).
const KUBERNETES_MINOR: &str = "34";

pub(super) async fn version() -> Json<Value> {
    let own = env!("CARGO_PKG_VERSION");
    Json(json!({
        "major": "1", "minor": KUBERNETES_MINOR,
        "gitVersion": format!("v1.{KUBERNETES_MINOR}.0+podling-{own}"),
        "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "rustc",
        "platform": format!("linux/{}", std::env::consts::ARCH),
    }))
}

pub(super) async fn versions() -> Json<Value> {
    Json(json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] }))
}

pub(super) async fn groups() -> Json<Value> {
    Json(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [] }))
}

pub(super) async fn resources() -> Json<Value> {
    Json(json!({
        "kind": "APIResourceList", "groupVersion": "v1",
        "resources": [{
            "name": "pods", "singularName": "pod", "shortNames": ["po"], "categories": ["all"],
            "kind": "Pod", "namespaced": true, "verbs": ["delete", "get", "list", "watch"],
        }],
    }))
}
