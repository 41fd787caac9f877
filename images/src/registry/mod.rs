//! Registries, by the OCI Distribution API 1.1: what pulls, pushes and signatures have in common.
//!
//! ```text
//! Repository ── hosts in order: mirrors, then the registry (`hosts.toml`, or the agent's `registries`)
//!   └─ Endpoint ── one host: requests, redirects, tokens, retries
//!        └─ client ── TLS, proxies, names
//! ```
//! Reading order: `host` and `hosts_toml` (who is asked), `repository` (in which order), `endpoint` and `token` (how),
//! `blob` (large content), `patience` (how long), `referrers` (what belongs to an image).
//!
//! Invariants: credentials and own headers go to the host they are for and to no other, whatever it redirects to. No
//! answer is read without a limit of bytes and of time. HTTP without TLS is spoken only to hosts that are configured so.
//!
//! Deliberately absent: registries of schema 1, and layers at foreign URLs (`urls` of a descriptor).

mod auth;
mod blob;
mod client;
mod connect;
mod endpoint;
mod error;
mod host;
mod hosts_toml;
mod keyring;
mod patience;
mod proxy;
mod referrers;
mod repository;
mod retry;
mod token;
mod web_page;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

pub use connect::{ConnectError, ConnectKind};
pub(crate) use endpoint::{Endpoint, Purpose, Request};
pub use error::RegistryError;
pub use hosts_toml::HostsError;
pub use keyring::{Keyring, KeyringError};
pub use patience::Patience;
pub use proxy::ProxyError;
pub(crate) use repository::Repository;
pub use retry::Retry;
pub(crate) use retry::RetryListener;

/// Who we are to a registry.
#[derive(Clone, PartialEq, Eq)]
pub enum Credentials {
    /// Name and password, used with basic authentication or to get a token.
    Basic {
        /// The name.
        username: String,
        /// The password or access token.
        password: String,
    },
    /// A refresh token, as `docker login` stores it (`identitytoken`).
    IdentityToken(String),
    /// A token that the registry takes as it is.
    Bearer(String),
}

/// Which registries are spoken to how. Registries are named as in references, such as `localhost:5000`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegistriesConfig {
    /// Spoken to by HTTP without TLS.
    pub plain_http: BTreeSet<String>,
    /// Tried before the registry itself, in order: registry to hosts with the same repositories.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// PEM files with certificate authorities to trust for a registry or mirror, besides the system's.
    pub ca_files: BTreeMap<String, Vec<PathBuf>>,
    /// containerd's directory of `hosts.toml` files, for the registries that are not named above.
    pub hosts_directory: Option<PathBuf>,
    /// How long a registry is waited for.
    pub patience: Patience,
}

impl RegistriesConfig {
    /// Something is said of this registry, so that the hosts directory is not asked.
    fn knows(&self, registry: &str) -> bool {
        self.plain_http.contains(registry)
            || self.mirrors.contains_key(registry)
            || self.ca_files.contains_key(registry)
    }
}

/// How registries are reached, and as whom.
#[derive(Clone, Default)]
pub(crate) struct Access {
    /// For the registry itself; without them, those of the keyring and of the Docker configuration.
    pub(crate) credentials: Option<Credentials>,
    /// Tried before the Docker configuration: all that match, one after the other.
    pub(crate) keyring: Keyring,
    /// Without it `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`.
    pub(crate) docker_config: Option<PathBuf>,
    pub(crate) registries: RegistriesConfig,
    /// Told of tries that failed and are made again.
    pub(crate) retries: RetryListener,
}

/// Runs what blocks on a thread for that.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(RegistryError::Cancelled),
        },
    }
}

#[cfg(test)]
pub(crate) mod test_server;
