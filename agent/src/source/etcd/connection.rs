//! A connection to one of etcd's endpoints, with its credentials.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tonic::Code;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::proto::etcdserverpb::AuthenticateRequest;
use super::proto::etcdserverpb::auth_client::AuthClient;
use super::proto::etcdserverpb::kv_client::KvClient;
use super::proto::etcdserverpb::lease_client::LeaseClient;
use super::proto::etcdserverpb::watch_client::WatchClient;
use super::{dial, read_file};
use crate::node::config::EtcdConfig;

/// An etcd across the world answers within this time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// etcd gives up a request of its own after 5 s and some election timeouts.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A watch is silent for as long as nothing changes: pings find out that the other side is gone.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// A page of a listing at its worst, and some.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// Where distributions keep the certificate authorities that the machine trusts.
const SYSTEM_CA_FILES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// What can go wrong with etcd.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// No endpoint is configured.
    #[error("no etcd endpoint is configured")]
    NoEndpoint,
    /// An endpoint is no URL.
    #[error("`{0}` is not an etcd endpoint: write it like `http://host:2379`")]
    Endpoint(String, #[source] tonic::transport::Error),
    /// A file of the configuration cannot be read.
    #[error("cannot read {path}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A certificate is given without its key, a user without a password, or the like.
    #[error("{0} is configured without {1}")]
    Incomplete(&'static str, &'static str),
    /// The endpoint does not answer.
    #[error("cannot connect to etcd at {0}")]
    Connect(String, #[source] tonic::transport::Error),
    /// The user or the password is refused.
    #[error("etcd does not let user `{0}` in")]
    Authenticate(String, #[source] tonic::Status),
    /// A request failed.
    #[error("etcd did not {0}")]
    Request(&'static str, #[source] tonic::Status),
    /// A request took too long.
    #[error("etcd did not {0} in time")]
    Timeout(&'static str),
    /// The watch ended.
    #[error("the watch of etcd ended: {0}")]
    WatchEnded(String),
    /// The lease was not kept.
    #[error("the lease in etcd is lost")]
    LeaseLost,
    /// An answer makes no sense.
    #[error("etcd answered nonsense: {0}")]
    Nonsense(&'static str),
    /// The store could not take what etcd says.
    #[error("cannot take in the manifests of etcd")]
    Store(#[source] crate::store::StoreError),
    /// The runtime is shutting down.
    #[error("the node is stopping")]
    Stopping,
}

impl EtcdError {
    /// True when another token may help: it has expired, or users were changed since it was given (`rpctypes` of
    /// etcd: `ErrInvalidAuthToken`, `ErrAuthOldRevision`).
    fn is_stale_token(&self) -> bool {
        match self {
            Self::Request(_, status) => match status.code() {
                Code::Unauthenticated => true,
                Code::InvalidArgument => status.message().contains("revision of auth store"),
                _ => false,
            },
            _ => false,
        }
    }

    /// True when the user may not do this.
    pub(super) fn is_forbidden(&self) -> bool {
        matches!(self, Self::Request(_, status) if status.code() == Code::PermissionDenied)
    }
}

/// Makes connections, to one endpoint after the other.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    endpoints: Vec<(String, Endpoint)>,
    next: usize,
    user: Option<(String, String)>,
}

/// Adds the token to requests: one for all clients of a connection, since it is replaced when it has expired.
#[derive(Debug, Clone, Default)]
pub(super) struct Token(Arc<RwLock<Option<MetadataValue<Ascii>>>>);

impl Token {
    fn get(&self) -> Option<MetadataValue<Ascii>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set(&self, token: Option<MetadataValue<Ascii>>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = token;
    }
}

impl Interceptor for Token {
    fn call(
        &mut self,
        mut request: tonic::Request<()>,
    ) -> Result<tonic::Request<()>, tonic::Status> {
        if let Some(token) = self.get() {
            request.metadata_mut().insert("token", token);
        }
        Ok(request)
    }
}

type Authorized = InterceptedService<Channel, Token>;

/// A connection.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    pub(super) endpoint: String,
    pub(super) kv: KvClient<Authorized>,
    pub(super) watch: WatchClient<Authorized>,
    pub(super) lease: LeaseClient<Authorized>,
    login: Login,
}

/// How a connection gets its token.
#[derive(Debug, Clone)]
struct Login {
    channel: Channel,
    user: Option<(String, String)>,
    token: Token,
}

impl Connector {
    pub(super) fn new(config: &EtcdConfig) -> Result<Self, EtcdError> {
        if config.endpoints.is_empty() {
            return Err(EtcdError::NoEndpoint);
        }
        let tls = tls(config)?;
        let endpoints = config.endpoints.iter().map(|url| endpoint(url, &tls));
        let user = match (&config.username, &config.password_file) {
            (None, None) => None,
            (Some(_), None) => return Err(EtcdError::Incomplete("username", "passwordFile")),
            (None, Some(_)) => return Err(EtcdError::Incomplete("passwordFile", "username")),
            (Some(user), Some(file)) => {
                let password = read_file(file)?;
                let password = String::from_utf8_lossy(&password);
                Some((
                    user.clone(),
                    password.trim_end_matches(['\r', '\n']).to_owned(),
                ))
            }
        };
        Ok(Self {
            endpoints: endpoints.collect::<Result<_, _>>()?,
            next: 0,
            user,
        })
    }

    /// How many endpoints there are to try before waiting makes sense.
    pub(super) fn endpoints(&self) -> usize {
        self.endpoints.len()
    }

    /// Connects to the next endpoint, and logs in.
    pub(super) async fn connect(&mut self) -> Result<Connection, EtcdError> {
        let (url, endpoint) = self.endpoints[self.next].clone();
        self.next = (self.next + 1) % self.endpoints.len();
        let connecting = endpoint.connect_with_connector(tower::service_fn(dial::dial));
        let channel = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(channel) => channel.map_err(|source| EtcdError::Connect(url.clone(), source))?,
            Err(_) => return Err(EtcdError::Timeout("accept a connection")),
        };
        let token = Token::default();
        let login = Login {
            channel: channel.clone(),
            user: self.user.clone(),
            token: token.clone(),
        };
        login.renew().await?;
        let kv = KvClient::with_interceptor(channel.clone(), token.clone());
        let watch = WatchClient::with_interceptor(channel.clone(), token.clone());
        let lease = LeaseClient::with_interceptor(channel, token);
        Ok(Connection {
            endpoint: url,
            kv: kv.max_decoding_message_size(MESSAGE_BYTES_MAX),
            watch: watch.max_decoding_message_size(MESSAGE_BYTES_MAX),
            lease,
            login,
        })
    }
}

impl Connection {
    /// A request with a deadline. A token lives for as long as it is used, or for a fixed time: when it has expired,
    /// another is taken, and the request is made once more.
    pub(super) async fn request<T, R>(
        &self,
        what: &'static str,
        make: impl Fn(Self) -> R,
    ) -> Result<T, EtcdError>
    where
        R: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        match request(what, make(self.clone())).await {
            Err(error) if error.is_stale_token() && self.login.user.is_some() => {
                tracing::debug!(endpoint = self.endpoint, "etcd's token has expired");
                self.login.renew().await?;
                request(what, make(self.clone())).await
            }
            outcome => outcome,
        }
    }
}

impl Login {
    /// Takes a token, if there is a user.
    async fn renew(&self) -> Result<(), EtcdError> {
        let Some((name, password)) = &self.user else {
            return Ok(());
        };
        let request = AuthenticateRequest {
            name: name.clone(),
            password: password.clone(),
        };
        let mut auth = AuthClient::new(self.channel.clone());
        let answer = tokio::time::timeout(REQUEST_TIMEOUT, auth.authenticate(request)).await;
        let answer = answer.map_err(|_| EtcdError::Timeout("log in"))?;
        let answer = answer.map_err(|status| EtcdError::Authenticate(name.clone(), status))?;
        let token = MetadataValue::try_from(answer.into_inner().token);
        let token = token.map_err(|_| EtcdError::Nonsense("the token is no text"))?;
        self.token.set(Some(token));
        Ok(())
    }
}

fn endpoint(url: &str, tls: &ClientTlsConfig) -> Result<(String, Endpoint), EtcdError> {
    let full = if url.contains("://") {
        url.to_owned()
    } else {
        format!("http://{url}")
    };
    let bad = |error| EtcdError::Endpoint(url.to_owned(), error);
    let mut endpoint = Endpoint::from_shared(full.clone())
        .map_err(bad)?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true);
    if full.starts_with("https://") {
        endpoint = endpoint.tls_config(tls.clone()).map_err(bad)?;
    }
    Ok((full, endpoint))
}

fn tls(config: &EtcdConfig) -> Result<ClientTlsConfig, EtcdError> {
    let mut tls = ClientTlsConfig::new();
    let uses_tls = config
        .endpoints
        .iter()
        .any(|url| url.starts_with("https://"));
    if let Some(file) = &config.ca_file {
        tls = tls.ca_certificate(Certificate::from_pem(read_file(file)?));
    } else if uses_tls
        && let Some(pem) = SYSTEM_CA_FILES
            .iter()
            .find_map(|file| std::fs::read(file).ok())
    {
        tls = tls.ca_certificate(Certificate::from_pem(pem));
    }
    match (&config.cert_file, &config.key_file) {
        (None, None) => Ok(tls),
        (Some(_), None) => Err(EtcdError::Incomplete("certFile", "keyFile")),
        (None, Some(_)) => Err(EtcdError::Incomplete("keyFile", "certFile")),
        (Some(cert), Some(key)) => {
            Ok(tls.identity(Identity::from_pem(read_file(cert)?, read_file(key)?)))
        }
    }
}

/// A request with a deadline.
async fn request<T>(
    what: &'static str,
    request: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, EtcdError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(EtcdError::Request(what, status)),
        Err(_) => Err(EtcdError::Timeout(what)),
    }
}

/// The outcome of something that is not a request of its own, with the same deadline.
pub(super) async fn within<T>(
    what: &'static str,
    outcome: impl Future<Output = T>,
) -> Result<T, EtcdError> {
    let outcome = tokio::time::timeout(REQUEST_TIMEOUT, outcome).await;
    outcome.map_err(|_| EtcdError::Timeout(what))
}

/// The end of the range of all keys that begin with `prefix`.
pub(super) fn range_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // etcd's word for "all keys after".
    vec![0]
}
