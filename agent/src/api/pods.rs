//! Pods as Kubernetes' API has them: list, get, watch, delete.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use k8s_openapi::List;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ListMeta, Time};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::explain::{Explanation, Reason, explain};
use super::selector::{FieldSelector, LabelSelector};
use super::server::{Api, Refusal};
use super::table::{Form, table};
use crate::store::{Batch, Key, Kind, Object, Origin, Problem, Store, StoreError, What};

/// Where a pod was written: `path:line`, or its key in etcd.
pub const ORIGIN_ANNOTATION: &str = "podling.io/origin";

/// An event of a watch, one line of JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WatchEvent {
    /// `ADDED`, `MODIFIED`, `DELETED`, or `ERROR` when the watcher fell behind and must list again.
    #[serde(rename = "type")]
    pub kind: String,
    /// The pod; for `ERROR` a Status.
    pub object: Value,
}

/// What a query asks for, or why it cannot be understood, which is told as a Status.
type Asked<T> = Result<Query<T>, QueryRejection>;

/// What a list may ask for.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ListQuery {
    #[serde(default)]
    watch: Option<String>,
    #[serde(default)]
    resource_version: Option<String>,
    #[serde(default)]
    label_selector: String,
    #[serde(default)]
    field_selector: String,
    /// For how long the client waits; for a watch it ends the connection itself.
    #[serde(default, rename = "timeout")]
    _timeout: Option<String>,
    /// Accepted because every Kubernetes client sends them; an answer is small enough to be whole and in time, and a
    /// Table's rows have the metadata of their pods in any case.
    #[serde(default, rename = "includeObject")]
    _include_object: Option<String>,
    #[serde(default, rename = "limit")]
    _limit: Option<u64>,
    #[serde(default, rename = "timeoutSeconds")]
    _timeout_seconds: Option<u64>,
    #[serde(default, rename = "allowWatchBookmarks")]
    _allow_watch_bookmarks: Option<String>,
}

/// Which pods a list or a watch is about.
#[derive(Debug, Default)]
struct Filter {
    namespace: Option<String>,
    labels: LabelSelector,
    fields: FieldSelector,
}

impl Filter {
    fn new(namespace: Option<String>, query: &ListQuery) -> Result<Self, Refusal> {
        Ok(Self {
            namespace,
            labels: query.label_selector.parse().map_err(Refusal::bad_request)?,
            fields: query.field_selector.parse().map_err(Refusal::bad_request)?,
        })
    }

    fn is_about(&self, key: &Key) -> bool {
        let mut namespace = self.namespace.iter();
        key.kind == Kind::Pod && namespace.all(|namespace| *namespace == key.namespace)
    }

    fn matches(&self, pod: &Pod) -> bool {
        self.labels.matches(pod.metadata.labels.as_ref()) && self.fields.matches(pod)
    }

    fn pods(&self, store: &Store) -> Vec<Pod> {
        let mut pods = pods(store, self.namespace.as_deref());
        pods.retain(|pod| self.matches(pod));
        pods
    }
}

/// What a deletion may ask for.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct DeleteQuery {
    #[serde(default)]
    grace_period_seconds: Option<u64>,
    /// For how long the client waits.
    #[serde(default, rename = "timeout")]
    _timeout: Option<String>,
    /// End a pod although its manifest starts it again.
    #[serde(default)]
    restart: bool,
}

/// What a deletion's body may ask for (`DeleteOptions` of `meta/v1`). What becomes of dependents is no question here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DeleteOptions {
    #[serde(default)]
    grace_period_seconds: Option<u64>,
    #[serde(default)]
    dry_run: Vec<String>,
    #[serde(default)]
    preconditions: Preconditions,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Preconditions {
    #[serde(default)]
    uid: Option<String>,
    #[serde(default)]
    resource_version: Option<String>,
}

impl DeleteOptions {
    fn parse(body: &[u8]) -> Result<Self, Refusal> {
        if body.is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_slice(body)
            .map_err(|e| Refusal::bad_request(format!("the body is not DeleteOptions: {e}")))
    }

    fn check(&self, pod: &Pod) -> Result<(), Refusal> {
        if !self.dry_run.is_empty() {
            return Err(Refusal::bad_request(
                "this node does not try deletions without doing them (dryRun)".to_owned(),
            ));
        }
        let Preconditions {
            uid,
            resource_version,
        } = &self.preconditions;
        for (what, wanted, found) in [
            ("uid", uid, &pod.metadata.uid),
            (
                "resourceVersion",
                resource_version,
                &pod.metadata.resource_version,
            ),
        ] {
            if wanted.is_some() && wanted != found {
                return Err(Refusal::conflict(format!(
                    "the pod of that name has another {what} than the one to delete"
                )));
            }
        }
        Ok(())
    }
}

pub(super) async fn list_all(
    api: State<Arc<Api>>,
    query: Asked<ListQuery>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    list(&api, None, &query?.0, Form::accepted(&headers))
}

pub(super) async fn list_namespace(
    api: State<Arc<Api>>,
    Path(namespace): Path<String>,
    query: Asked<ListQuery>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    list(&api, Some(namespace), &query?.0, Form::accepted(&headers))
}

fn list(
    api: &Api,
    namespace: Option<String>,
    query: &ListQuery,
    form: Form,
) -> Result<Response, Refusal> {
    let filter = Filter::new(namespace, query)?;
    if matches!(query.watch.as_deref(), Some("1" | "true")) {
        let version = match query.resource_version.as_deref() {
            None | Some("" | "0") => None,
            Some(text) => Some(text.parse().map_err(|_| {
                Refusal::bad_request(format!("resourceVersion `{text}` is not a number"))
            })?),
        };
        return Ok(watch(&api.store, filter, form, version));
    }
    // Taken before the list: what changes in between is seen again by a watch, never missed.
    let version = api.store.version();
    let items = filter.pods(&api.store);
    if form == Form::Table {
        return Ok(axum::Json(table(&items, Some(&version.to_string()))).into_response());
    }
    Ok(axum::Json(List {
        items,
        metadata: ListMeta {
            resource_version: Some(version.to_string()),
            ..ListMeta::default()
        },
    })
    .into_response())
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let pod = find(&api.store, &namespace, &name)?.1;
    Ok(axum::Json(Form::accepted(&headers).pod(&pod)).into_response())
}

pub(super) async fn why(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    let key = Key::pod(&namespace, &name);
    let problems = api.store.problems().into_iter();
    let problems: Vec<Problem> = problems
        .filter(|problem| problem.object.as_ref() == Some(&key))
        .collect();
    let found = find(&api.store, &namespace, &name);
    let (mut explanation, object) = match found {
        Ok((object, pod)) => {
            let mut explanation = explain(&pod);
            explanation.add_waits((api.waits)(&namespace, &name));
            (explanation, Some(object))
        }
        Err(refusal) if problems.is_empty() => return Err(refusal),
        Err(_) => (Explanation::refused(&name), None),
    };
    for problem in problems {
        // Of two manifests for one pod the first counts, and has no version before.
        let goes_on = object
            .as_ref()
            .is_some_and(|object| object.origin.unit() == problem.origin.unit());
        explanation.reasons.push(refused(problem, goes_on));
    }
    Ok(axum::Json(explanation).into_response())
}

/// What is wrong with a manifest of a pod; whether the version before goes on until it is right.
fn refused(problem: Problem, goes_on: bool) -> Reason {
    let field = problem.field.map(|f| format!("{f}: ")).unwrap_or_default();
    let next = if goes_on {
        "; until it is put right, the version before goes on"
    } else {
        ""
    };
    let what = format!("{}: {field}{}{next}", problem.origin, problem.message);
    Reason::manifest(what, problem.remedy)
}

pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    Path((namespace, name)): Path<(String, String)>,
    query: Asked<DeleteQuery>,
    body: Bytes,
) -> Result<Response, Refusal> {
    let query = query?;
    let options = DeleteOptions::parse(&body)?;
    let (object, pod) = find(&api.store, &namespace, &name)?;
    options.check(&pod)?;
    if !query.restart && object.origin != Origin::Api {
        return Err(Refusal::conflict(format!(
            "pod {name} belongs to {}, which would bring it back: remove it there; or restart the pod",
            object.origin
        )));
    }
    let store = api.store.clone();
    let grace = query.grace_period_seconds.or(options.grace_period_seconds);
    let deleted = tokio::task::spawn_blocking(move || store.delete(&object.key, grace))
        .await
        .map_err(|e| Refusal::internal(e.to_string()))?;
    match deleted {
        Ok(object) => Ok(axum::Json(pod_of(&api.store, &object)).into_response()),
        Err(e @ StoreError::NotFound(_)) => Err(Refusal::not_found(e.to_string())),
        Err(e) => Err(Refusal::internal(e.to_string())),
    }
}

/// The pod as an API server shows it, with where it was written. One that ends with the node is being deleted.
pub(super) fn pod_of(store: &Store, object: &Object) -> Option<Pod> {
    let status = store.status(&object.key);
    let mut pod = object.to_pod(status.as_deref())?;
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(ORIGIN_ANNOTATION.to_owned(), object.origin.to_string());
    let ending = store.ending(&object.uid).map(Time);
    pod.metadata.deletion_timestamp = pod.metadata.deletion_timestamp.or(ending);
    if let Some(spec) = &mut pod.spec {
        spec.node_name = Some(store.node().to_owned());
    }
    Some(pod)
}

/// All pods of a namespace, or of all, by namespace and name.
pub(super) fn pods(store: &Store, namespace: Option<&str>) -> Vec<Pod> {
    let all = store.list(Kind::Pod);
    let wanted = all
        .iter()
        .filter(|o| namespace.is_none_or(|n| n == o.key.namespace));
    wanted.filter_map(|o| pod_of(store, o)).collect()
}

fn find(store: &Store, namespace: &str, name: &str) -> Result<(Arc<Object>, Pod), Refusal> {
    store
        .get(&Key::pod(namespace, name))
        .and_then(|object| pod_of(store, &object).map(|pod| (object, pod)))
        .ok_or_else(|| {
            Refusal::not_found(format!("there is no pod {name} in namespace {namespace}"))
        })
}

/// The state of one watch: which pods the client has been told of, and how they were.
struct Watching {
    store: Store,
    filter: Filter,
    form: Form,
    watch: crate::store::Watch,
    /// The last version of each pod, for the event of its end, and whether this client has been told of it.
    told: std::collections::HashMap<Key, (Pod, bool)>,
    /// Events of the first list, if the client did not say from which version.
    first: Option<String>,
    ended: bool,
}

/// Without a version: all pods as added, then changes.
fn watch(store: &Store, filter: Filter, form: Form, version: Option<u64>) -> Response {
    let watch = match version {
        Some(version) => store.watch_from(version),
        None => store.watch(),
    };
    let mut told = std::collections::HashMap::new();
    let mut first = None;
    for pod in filter.pods(store) {
        if version.is_none() {
            first
                .get_or_insert_with(String::new)
                .push_str(&line("ADDED", &form.pod(&pod)));
        }
        // What changed after the client's version may be in it already: the first event always counts.
        told.insert(key_of(&pod), (pod, version.is_none()));
    }
    let state = Watching {
        store: store.clone(),
        filter,
        form,
        watch,
        told,
        first,
        ended: false,
    };
    let lines = stream::unfold(state, |mut state| async move {
        let text = state.next().await?;
        Some((Ok::<_, Infallible>(Bytes::from(text)), state))
    });
    let json = (header::CONTENT_TYPE, "application/json");
    (StatusCode::OK, [json], Body::from_stream(lines)).into_response()
}

impl Watching {
    /// The next lines; None after an error, which ends a watch.
    async fn next(&mut self) -> Option<String> {
        if self.ended {
            return None;
        }
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        loop {
            let text = match self.watch.next().await {
                Batch::Changes(changes) => changes
                    .iter()
                    .filter(|c| self.filter.is_about(&c.key))
                    .map(|c| (c.key.clone(), c.what))
                    .collect::<Vec<_>>()
                    .into_iter()
                    .filter_map(|(key, what)| self.event(&key, what))
                    .collect(),
                Batch::Relist => {
                    self.ended = true;
                    let status = status_object(410, "Expired", "too old resource version");
                    line("ERROR", &status)
                }
            };
            if !text.is_empty() {
                return Some(text);
            }
        }
    }

    fn event(&mut self, key: &Key, what: What) -> Option<String> {
        if what == What::Removed {
            let last = match self.told.remove(key) {
                Some((pod, _)) => pod,
                // It ended before this watch began, after the version that the client knows.
                None => last_known(key),
            };
            return Some(line("DELETED", &self.form.pod(&last)));
        }
        // Several changes in one batch show as the state after all of them.
        let pod = pod_of(&self.store, &*self.store.get(key)?)?;
        if !self.filter.matches(&pod) {
            // For this client it is gone.
            self.told.remove(key)?;
            return Some(line("DELETED", &self.form.pod(&pod)));
        }
        let kind = match self.told.get(key) {
            Some((before, true)) if *before == pod => return None,
            Some(_) => "MODIFIED",
            None => "ADDED",
        };
        let text = line(kind, &self.form.pod(&pod));
        self.told.insert(key.clone(), (pod, true));
        Some(text)
    }
}

/// All that is known of a pod that is gone.
fn last_known(key: &Key) -> Pod {
    let mut pod = Pod::default();
    pod.metadata.namespace = Some(key.namespace.clone());
    pod.metadata.name = Some(key.name.clone());
    pod
}

fn key_of(pod: &Pod) -> Key {
    let text = |t: &Option<String>| t.clone().unwrap_or_default();
    Key::pod(text(&pod.metadata.namespace), text(&pod.metadata.name))
}

fn line(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({ "type": kind, "object": object }))
}

/// A Kubernetes `Status`.
pub(super) fn status_object(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}
