//! The command line's end of the agent's API: HTTP/1 over `<run-dir>/agent.sock`.

use std::future::Future;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use k8s_openapi::List;
use k8s_openapi::api::core::v1::Pod;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{CommandError, Directories};
use crate::api::{self, LabelSelector};

/// An answer takes milliseconds; an agent that takes this long hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer that is taken, in bytes: a few thousand pods.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// Why the agent could not be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum AgentError {
    /// Nobody listens.
    #[error("no agent answers at {socket}")]
    Away {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Somebody listens, but not to us.
    #[error("not allowed to speak to the agent at {socket}")]
    Forbidden {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It listens but does not answer.
    #[error("the agent does not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Silent,
    /// The conversation broke.
    #[error("the connection to the agent broke")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It refused.
    #[error("{message}")]
    Refused {
        code: u16,
        reason: String,
        message: String,
    },
    /// It answered something else than was asked for.
    #[error("the agent's answer is not understood")]
    Answer(#[source] serde_json::Error),
}

/// What to do when nobody answers.
const START_IT: &str = "start it with `systemctl start podling` or `podling agent`; a node of its own directories \
                        needs --run-dir here too";

impl AgentError {
    pub(super) fn is_away(&self) -> bool {
        matches!(self, Self::Away { .. })
    }

    pub(super) fn is_forbidden(&self) -> bool {
        matches!(self, Self::Forbidden { .. })
    }

    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code: 404, .. })
    }

    pub(super) fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused { code: 409, .. })
    }

    /// As the error of a command that cannot do without the agent.
    pub(super) fn into_command_error(self, what: String) -> CommandError {
        let (forbidden, away) = (matches!(self, Self::Forbidden { .. }), self.is_away());
        let error = match self {
            Self::Refused { message, .. } => return CommandError::new(what).because(message),
            other => CommandError::new(what).because(other),
        };
        if forbidden {
            error.hint("be root, or a member of the group `podling`")
        } else if away {
            error.hint(START_IT).hint(
                "pods go on without the agent: `podling get pods`, `why`, `logs` and `exec` still work",
            )
        } else {
            error
        }
    }

    /// As the error of a command that asked the supervisors too, and there are none.
    pub(super) fn without_pods(self, what: String, directories: &Directories) -> CommandError {
        if !self.is_away() {
            return self.into_command_error(what);
        }
        let here = format!(
            "no pod runs without it: {} is empty",
            directories.run.display()
        );
        CommandError::new(what)
            .because(self)
            .hint(START_IT)
            .hint(here)
    }
}

/// Speaks to one agent.
#[derive(Debug, Clone)]
pub(super) struct AgentClient {
    run_dir: PathBuf,
}

impl AgentClient {
    pub(super) fn new(directories: &Directories) -> Self {
        Self {
            run_dir: directories.run.clone(),
        }
    }

    /// The pods of a namespace, or of all, that a selector means.
    pub(super) fn pods(
        &self,
        namespace: Option<&str>,
        selector: Option<&LabelSelector>,
    ) -> Result<List<Pod>, AgentError> {
        let query = selector.map(|selector| format!("?labelSelector={}", encoded(selector)));
        let path = pods_path(namespace) + &query.unwrap_or_default();
        self.get(&path)
    }

    /// Any GET of a JSON answer.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AgentError> {
        self.request(Method::GET, path)
    }

    /// Asks for a pod's end.
    pub(super) fn delete_pod(
        &self,
        namespace: &str,
        name: &str,
        grace_secs: Option<u32>,
        restart: bool,
    ) -> Result<Pod, AgentError> {
        let mut path = format!("{}/{name}?restart={restart}", pods_path(Some(namespace)));
        if let Some(grace) = grace_secs {
            path.push_str(&format!("&gracePeriodSeconds={grace}"));
        }
        self.request(Method::DELETE, &path)
    }

    /// Gives each change after `version` to `on_event`, until it says stop or the agent ends.
    pub(super) fn watch_pods(
        &self,
        namespace: Option<&str>,
        selector: Option<&LabelSelector>,
        version: &str,
        mut on_event: impl FnMut(api::WatchEvent) -> ControlFlow<()>,
    ) -> Result<(), AgentError> {
        let mut path = format!("{}?watch=1&resourceVersion={version}", pods_path(namespace));
        if let Some(selector) = selector {
            path.push_str(&format!("&labelSelector={}", encoded(selector)));
        }
        block_on(async {
            let mut body = self.send(Method::GET, &path).await?.into_body();
            let mut pending = Vec::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|e| AgentError::Broken(e.into()))?;
                let Ok(data) = frame.into_data() else {
                    continue;
                };
                pending.extend_from_slice(&data);
                while let Some(end) = pending.iter().position(|b| *b == b'\n') {
                    let line: Vec<u8> = pending.drain(..=end).collect();
                    let event = serde_json::from_slice(&line).map_err(AgentError::Answer)?;
                    if on_event(event).is_break() {
                        return Ok(());
                    }
                }
            }
            Ok(())
        })
    }

    fn request<T: DeserializeOwned>(&self, method: Method, path: &str) -> Result<T, AgentError> {
        block_on(async {
            let answer = async {
                let response = self.send(method, path).await?;
                let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES);
                body.collect().await.map_err(AgentError::Broken)
            };
            let body = tokio::time::timeout(ANSWER_TIMEOUT, answer)
                .await
                .map_err(|_| AgentError::Silent)??;
            serde_json::from_slice(&body.to_bytes()).map_err(AgentError::Answer)
        })
    }

    async fn send(&self, method: Method, path: &str) -> Result<Response<Incoming>, AgentError> {
        let socket = self.run_dir.join(api::SOCKET_FILE);
        let stream = api::connect(&self.run_dir).await.map_err(|source| {
            if source.kind() == io::ErrorKind::PermissionDenied {
                AgentError::Forbidden { socket, source }
            } else {
                AgentError::Away { socket, source }
            }
        })?;
        let broken = |e: hyper::Error| AgentError::Broken(e.into());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        // It ends with the request's connection; what goes wrong in it shows in the answer.
        tokio::spawn(async move { drop(connection.await) });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("accept", "application/json")
            .body(Empty::<Bytes>::new())
            .map_err(|e| AgentError::Broken(e.into()))?;
        let response = tokio::time::timeout(ANSWER_TIMEOUT, sender.send_request(request))
            .await
            .map_err(|_| AgentError::Silent)?
            .map_err(broken)?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(refusal(response).await)
    }
}

/// A Kubernetes Status, or whatever else came instead.
async fn refusal(response: Response<Incoming>) -> AgentError {
    let code = response.status();
    let body = match Limited::new(response.into_body(), 1 << 20).collect().await {
        Ok(body) => body.to_bytes(),
        Err(e) => return AgentError::Broken(e),
    };
    let status: Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = |field: &str| status[field].as_str().map(str::to_owned);
    AgentError::Refused {
        code: code.as_u16(),
        reason: text("reason").unwrap_or_default(),
        message: text("message").unwrap_or_else(|| {
            let reason = StatusCode::canonical_reason(&code).unwrap_or("an error");
            format!("the agent answers {}: {reason}", code.as_u16())
        }),
    }
}

fn pods_path(namespace: Option<&str>) -> String {
    match namespace {
        Some(namespace) => format!("/api/v1/namespaces/{namespace}/pods"),
        None => "/api/v1/pods".to_owned(),
    }
}

/// For a query (RFC 3986, 2.1): all but unreserved characters by their number.
fn encoded(selector: &LabelSelector) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        _ => format!("%{byte:02X}"),
    };
    selector.to_string().bytes().map(encode).collect()
}

fn block_on<T>(future: impl Future<Output = Result<T, AgentError>>) -> Result<T, AgentError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| AgentError::Broken(e.into()))?
        .block_on(future)
}
