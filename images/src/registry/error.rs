//! What goes wrong between this machine and a registry.

use std::path::PathBuf;
use std::time::Duration;

use super::connect::ConnectError;
use super::hosts_toml::HostsError;
use super::proxy::ProxyError;
use crate::digest::Digest;
use crate::reference::Reference;

/// A registry that does not give, or does not take, what it should.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No HTTP client can be made.
    #[error("cannot prepare a connection to {registry}: {reason}")]
    Client {
        /// The registry.
        registry: String,
        /// Why not.
        reason: String,
    },
    /// What the hosts directory says of the registry cannot be used.
    #[error("cannot tell how to speak to {registry}")]
    Hosts {
        /// The registry.
        registry: String,
        /// Which file, which line, and why not.
        #[source]
        source: HostsError,
    },
    /// A variable of the environment names a proxy that cannot be used.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The configuration has no host that may be asked for this.
    #[error(
        "no host of {registry} may be asked to {capability}: add `{capability}` to the capabilities of one in {file}"
    )]
    NoHost {
        /// The registry.
        registry: String,
        /// `pull`, `resolve` or `push`.
        capability: &'static str,
        /// The `hosts.toml` that says so.
        file: String,
    },
    /// The registry does not answer, or stops answering.
    #[error("cannot reach the registry {registry} by {scheme}")]
    Connect {
        /// The registry.
        registry: String,
        /// `https` or `http`.
        scheme: &'static str,
        /// Why not.
        #[source]
        source: ConnectError,
    },
    /// The registry was reached, and its answer is not whole: the connection broke, or its length is another than it says.
    #[error("the answer of {registry} broke off: {what} is not whole")]
    BrokenOff {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// Why it broke off.
        #[source]
        source: ConnectError,
    },
    /// The registry ended its answer as if all had come.
    #[error(
        "{registry} sent {bytes} of the {total_bytes} bytes of {what}, and ended as if that were all"
    )]
    TooShort {
        /// The registry.
        registry: String,
        /// What was asked for.
        what: String,
        /// How many bytes are here, with those of earlier answers.
        bytes: u64,
        /// How many there are.
        total_bytes: u64,
    },
    /// The registry answers, but not in time.
    #[error("{registry} is too slow: {what}")]
    TooSlow {
        /// The registry.
        registry: String,
        /// What did not come, and how long it was waited for.
        what: String,
    },
    /// The registry wants to know who we are, or does not like who we are.
    #[error(
        "{registry} refuses {reference} {}: check the name, and the credentials for {registry} (`docker login {registry}`)",
        if *.with_credentials { "with the credentials given" } else { "without credentials" }
    )]
    Unauthorized {
        /// What was asked for.
        reference: Box<Reference>,
        /// The registry.
        registry: String,
        /// Credentials were given.
        with_credentials: bool,
    },
    /// The registry let us in and then no more, while something large was on its way. A new token was fetched each time.
    #[error(
        "{registry} takes the token no more that it gave while {what} was sent: push again, and what it has is not sent again; \
         if that does not help, its tokens end too soon for this connection, which its operator can change"
    )]
    TokenExpired {
        /// The registry.
        registry: String,
        /// What was sent.
        what: String,
    },
    /// There is no such image.
    #[error("{registry} has no image {reference}: check the name and the tag")]
    NotFound {
        /// What was asked for.
        reference: Box<Reference>,
        /// The registry.
        registry: String,
    },
    /// The registry answers with another error.
    #[error(
        "{registry} answers {status} to the request for {what}: {message}{}",
        .retry_after.map(|wait| format!("; it asks to wait for {} s", wait.as_secs())).unwrap_or_default()
    )]
    Status {
        /// The registry.
        registry: String,
        /// The HTTP status.
        status: u16,
        /// What was asked for.
        what: String,
        /// What the registry says.
        message: String,
        /// When it wants to be asked again (`Retry-After`).
        retry_after: Option<Duration>,
    },
    /// Where the registry sends us for content does not give it.
    #[error("{host}, where {registry} keeps {what}, answers {status}")]
    Storage {
        /// The registry.
        registry: String,
        /// Where it redirected to.
        host: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
    },
    /// A web page came where a registry's answer should have.
    #[error(
        "{registry} is asked for {what}, and a web page of {host} comes (text/html): it is no registry, or a portal or proxy \
         stands between; check the image's name and the proxy, and see in a browser whether the network wants a login"
    )]
    WebPage {
        /// The registry.
        registry: String,
        /// Where the page came from: the registry, or where it redirected to.
        host: String,
        /// What was asked for.
        what: String,
    },
    /// The registry's answer is not what the protocol says.
    #[error("{registry} does not keep to the protocol: {what}")]
    Protocol {
        /// The registry.
        registry: String,
        /// What is wrong.
        what: String,
    },
    /// Credentials were found and cannot be used.
    #[error("cannot use the credentials for {registry} in {path}: {reason}")]
    Credentials {
        /// The registry.
        registry: String,
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Content has another digest than it should.
    #[error("{registry} sent {what} with the digest {actual} instead of {expected}")]
    Mismatch {
        /// The registry.
        registry: String,
        /// Manifest, configuration or layer.
        what: &'static str,
        /// What it should be.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// Several hosts were asked, and none helped.
    #[error("{}; then the last of them was asked in vain", .earlier.join("; "))]
    AllHosts {
        /// What each of the hosts before the last said.
        earlier: Vec<String>,
        /// What the last one said: the registry itself, mostly.
        #[source]
        last: Box<RegistryError>,
    },
    /// The runtime is shutting down.
    #[error("the request was cancelled")]
    Cancelled,
}

impl RegistryError {
    /// True when trying again later may help, without anybody changing anything.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self.decisive() {
            Self::Connect { .. }
            | Self::BrokenOff { .. }
            | Self::TooShort { .. }
            | Self::TooSlow { .. }
            | Self::TokenExpired { .. }
            | Self::Cancelled => true,
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..),
            // A signed address expires; the registry gives another.
            Self::Storage { status, .. } => matches!(status, 401 | 403 | 408 | 429 | 500..),
            _ => false,
        }
    }

    /// Of several hosts' errors the last one, which decides what may help; else the error itself.
    #[must_use]
    pub fn decisive(&self) -> &Self {
        match self {
            Self::AllHosts { last, .. } => last.decisive(),
            own => own,
        }
    }

    /// One error of what each host said, the last the last. There must be one.
    pub(super) fn of_all(mut attempts: Vec<Self>) -> Option<Self> {
        let last = attempts.pop()?;
        if attempts.is_empty() {
            return Some(last);
        }
        Some(Self::AllHosts {
            earlier: attempts.iter().map(chain).collect(),
            last: Box::new(last),
        })
    }
}

/// An error and its causes in one line.
pub(super) fn chain(error: &RegistryError) -> String {
    let first: &dyn std::error::Error = error;
    let causes = std::iter::successors(Some(first), |error| error.source());
    let texts: Vec<_> = causes.map(ToString::to_string).collect();
    texts.join(": ")
}
