//! The socket and what listens on it.

use std::fs::{self, Permissions};
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::extract::rejection::QueryRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::pods::{self, status_object};
use super::status::{NodeInfo, NodeStatus};
use super::{
    ANSWER_TIMEOUT, HEAD_TIMEOUT, MAX_BODY_BYTES, MAX_CONNECTIONS, SOCKET_FILE, discovery,
    short_path,
};
use crate::node::Wait;
use crate::store::Store;

/// The group whose members may use the socket.
const GROUP: &str = "podling";

/// After a failure to accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket cannot be made.
    #[error("cannot listen on {path}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be given its mode or group.
    #[error("cannot protect {path}")]
    Protect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// What every request may read.
pub(super) struct Api {
    pub(super) store: Store,
    pub(super) info: NodeInfo,
    pub(super) waits: Waits,
}

/// What a pod's worker waits for, by namespace and name.
pub type Waits = Box<dyn Fn(&str, &str) -> Vec<Wait> + Send + Sync>;

/// The API, listening.
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
    api: Arc<Api>,
}

impl Server {
    /// Makes the socket, in place of what a dead agent left. The caller holds the run directory's lock.
    ///
    /// # Errors
    /// When the socket cannot be made or protected.
    pub fn bind(
        run_dir: &Path,
        store: Store,
        info: NodeInfo,
        waits: Waits,
    ) -> Result<Self, ServeError> {
        let path = run_dir.join(SOCKET_FILE);
        let listener = listen(run_dir).map_err(|source| ServeError::Listen {
            path: path.clone(),
            source,
        })?;
        protect(&path).map_err(|source| ServeError::Protect {
            path: path.clone(),
            source,
        })?;
        Ok(Self {
            listener,
            path,
            api: Arc::new(Api { store, info, waits }),
        })
    }

    /// Answers until `stop` is ready, then removes the socket. Watches are cut off.
    pub async fn serve(self, stop: impl Future<Output = ()>) {
        let router = router(Arc::clone(&self.api));
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let tasks = TaskTracker::new();
        tokio::pin!(stop);
        let cancel = tokio_util::sync::CancellationToken::new();
        loop {
            let connection = async {
                let slot = Arc::clone(&slots).acquire_owned().await;
                (slot, self.listener.accept().await)
            };
            // Cancel-safe: a connection that is not accepted stays in the queue, a slot goes back.
            let (slot, stream) = tokio::select! {
                () = &mut stop => break,
                (slot, accepted) = connection => match accepted {
                    Ok((stream, _)) => (slot, stream),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection to the local API");
                        // Out of descriptors: accepting again at once would spin.
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            let service = TowerToHyperService::new(router.clone());
            let cancel = cancel.clone();
            tasks.spawn(async move {
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    result = connection => if let Err(error) = result {
                        tracing::debug!(%error, "a connection to the local API broke");
                    },
                    () = cancel.cancelled() => {}
                }
                drop(slot);
            });
        }
        cancel.cancel();
        tasks.close();
        tasks.wait().await;
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove the socket");
        }
    }
}

fn listen(run_dir: &Path) -> io::Result<UnixListener> {
    let (_dir, path) = short_path(run_dir)?;
    match fs::remove_file(&path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e),
    }
    UnixListener::bind(path)
}

/// Root, and the group if there is one.
fn protect(path: &Path) -> io::Result<()> {
    // Not by getgrnam(3): a statically linked program cannot load the modules that it may want (nss(5)).
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    if let Some(gid) = group_id(&groups, GROUP) {
        std::os::unix::fs::chown(path, None, Some(gid))?;
    }
    fs::set_permissions(path, Permissions::from_mode(0o660))
}

/// The number of a group in the text of group(5).
fn group_id(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name).then(|| fields.nth(1)?.parse().ok())?
    })
}

fn router(api: Arc<Api>) -> axum::Router {
    let named = routing::get(pods::get).delete(pods::delete);
    axum::Router::new()
        .route("/healthz", routing::get(async || "ok"))
        .route("/version", routing::get(discovery::version))
        .route("/api", routing::get(discovery::versions))
        .route("/apis", routing::get(discovery::groups))
        .route("/api/v1", routing::get(discovery::resources))
        .route("/podling/v1/status", routing::get(node_status))
        .route(
            "/podling/v1/why/{namespace}/{name}",
            routing::get(pods::why),
        )
        .route("/api/v1/pods", routing::get(pods::list_all))
        .route(
            "/api/v1/namespaces/{namespace}/pods",
            routing::get(pods::list_namespace),
        )
        .route("/api/v1/namespaces/{namespace}/pods/{name}", named)
        .fallback(async || {
            Refusal::not_found("the server could not find the requested resource".to_owned())
        })
        .method_not_allowed_fallback(async || {
            Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "MethodNotAllowed",
                "this node's API does not do that",
            )
        })
        .layer(axum::extract::DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(axum::middleware::from_fn(in_time))
        .with_state(api)
}

/// Every answer begins in time; the lines of a watch come later, in its body.
async fn in_time(request: axum::extract::Request, next: axum::middleware::Next) -> Response {
    match tokio::time::timeout(ANSWER_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Refusal::new(
            StatusCode::GATEWAY_TIMEOUT,
            "Timeout",
            "the request took too long",
        )
        .into_response(),
    }
}

async fn node_status(State(api): State<Arc<Api>>) -> axum::Json<NodeStatus> {
    axum::Json(NodeStatus::of(&api.info, &api.store))
}

/// An error as a Kubernetes `Status`.
#[derive(Debug)]
pub(super) struct Refusal {
    code: StatusCode,
    reason: &'static str,
    message: String,
}

impl Refusal {
    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
        }
    }

    pub(super) fn not_found(message: String) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", message)
    }

    pub(super) fn bad_request(message: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub(super) fn conflict(message: String) -> Self {
        Self::new(StatusCode::CONFLICT, "Conflict", message)
    }

    pub(super) fn internal(message: String) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
    }
}

impl From<QueryRejection> for Refusal {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad_request(rejection.body_text())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = status_object(self.code.as_u16(), self.reason, &self.message);
        (self.code, axum::Json(status)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::group_id;

    #[test]
    fn groups_are_found_by_name() {
        let groups = "root:x:0:\npodling:x:997:alice,bob\n";
        assert_eq!(group_id(groups, "podling"), Some(997));
        assert_eq!(group_id(groups, "pod"), None);
    }
}
