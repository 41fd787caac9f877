//! The node's local API: HTTP/1 over `<run-dir>/agent.sock`, shaped as Kubernetes', read from the store.
//!
//! ```text
//! GET    /healthz
//! GET    /api/v1/pods                              PodList; ?watch=1&resourceVersion=N: a line for each event
//!                                                  ?labelSelector=, ?fieldSelector=
//! GET    /api/v1/namespaces/{ns}/pods              the same of one namespace
//! GET    /api/v1/namespaces/{ns}/pods/{name}       Pod
//! DELETE /api/v1/namespaces/{ns}/pods/{name}       ?gracePeriodSeconds=N, ?restart=true
//! GET    /podling/v1/status                        NodeStatus
//! GET    /podling/v1/why/{ns}/{name}               Explanation
//! GET    /version, /api, /apis, /api/v1            discovery
//! ```
//!
//! Pods come as objects, or as a Table to who prefers that: `kubectl get`, `describe` and `delete` work through anything
//! that carries HTTP to the socket. Deliberately absent: what streams (log, exec, attach, port-forward), events, and
//! every way to write but the deletion of pods.
//!
//! Errors are Kubernetes `Status` objects. The socket has mode 0660 and belongs to the group `podling` if there is
//! one: whoever may write to it may end pods. Nothing here holds state: every answer is made from the store.
//! Requests' size is bounded by hyper's limit on heads and by [`MAX_BODY_BYTES`]; their number by [`MAX_CONNECTIONS`];
//! their time by [`HEAD_TIMEOUT`] and, but for watches, [`ANSWER_TIMEOUT`].

pub(crate) mod age;
mod discovery;
pub mod explain;
mod pods;
mod selector;
mod server;
mod status;
pub(crate) mod summary;
mod table;

pub use explain::{Explanation, Reason, explain};
pub use pods::{ORIGIN_ANNOTATION, WatchEvent};
pub use selector::{FieldSelector, LabelSelector};
pub use server::{ServeError, Server, Waits};
pub use status::{NodeInfo, NodeStatus, PodCounts, ProblemView};

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use rustix::fs::{Mode, OFlags};
use tokio::net::UnixStream;

use crate::store::Store;

/// The socket's name in the run directory.
pub const SOCKET_FILE: &str = "agent.sock";

/// A client has this long to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// No answer takes this long, but for watches.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The options of a deletion are the only body there is.
const MAX_BODY_BYTES: usize = 64 << 10;
/// More connections at once wait: each watch is one, and local tools need few.
const MAX_CONNECTIONS: usize = 256;

/// All pods of a store, as the API shows them.
#[must_use]
pub fn pods(store: &Store) -> Vec<Pod> {
    pods::pods(store, None)
}

/// Connects to the agent of this run directory.
///
/// # Errors
/// When nobody listens there.
pub async fn connect(run_dir: &Path) -> io::Result<UnixStream> {
    let (_dir, path) = short_path(run_dir)?;
    UnixStream::connect(path).await
}

/// A path to the socket that is short enough for one, however long the directory's is: a socket's path has at most
/// 107 bytes. It is good as long as the descriptor is open.
fn short_path(run_dir: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let dir = rustix::fs::open(
        run_dir,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let path = PathBuf::from(format!("/proc/self/fd/{}/{SOCKET_FILE}", dir.as_raw_fd()));
    Ok((dir, path))
}
