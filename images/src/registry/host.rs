//! One host that serves a registry's repositories: the registry itself, or a mirror.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::{HeaderName, HeaderValue};

use super::hosts_toml::{self, Found};
use super::{RegistriesConfig, RegistryError};

/// Docker's registry, whose API is at another host than its name.
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_API: &str = "registry-1.docker.io";
/// Where the API is below a host (distribution-spec, "Endpoints").
pub(super) const API_PATH: &str = "/v2";

/// How a host is spoken to, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    /// As credentials name it: `docker.io`, `mirror.example:5000`.
    pub(super) name: String,
    pub(super) scheme: Scheme,
    /// Host and port to connect to.
    pub(super) authority: String,
    /// What comes before the repository, mostly [`API_PATH`].
    pub(super) path: String,
    pub(super) capabilities: Capabilities,
    /// Authorities to trust besides the system's, PEM.
    pub(super) ca_files: Vec<PathBuf>,
    pub(super) client_certificates: Vec<ClientCertificate>,
    /// The host's certificate is not verified.
    pub(super) skip_verify: bool,
    /// Sent with each request to this host.
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) dial_timeout: Option<Duration>,
    /// It is asked for the repositories of another.
    pub(super) is_mirror: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// What a host may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// Content by its digest.
    pub(super) pull: bool,
    /// What a tag means: only who is trusted to know.
    pub(super) resolve: bool,
    /// New content.
    pub(super) push: bool,
}

impl Capabilities {
    pub(super) const ALL: Self = Self {
        pull: true,
        resolve: true,
        push: true,
    };
}

/// Who we are, by TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClientCertificate {
    /// PEM, with the chain.
    pub(super) certificate: PathBuf,
    /// PEM; none when the key is in the same file.
    pub(super) key: Option<PathBuf>,
}

impl Host {
    /// A host that is spoken to as the API says, by TLS.
    pub(super) fn new(name: &str) -> Self {
        let authority = match name {
            DOCKER_HUB => DOCKER_HUB_API,
            other => other,
        };
        Self {
            name: name.to_owned(),
            scheme: Scheme::Https,
            authority: authority.to_owned(),
            path: API_PATH.to_owned(),
            capabilities: Capabilities::ALL,
            ca_files: Vec::new(),
            client_certificates: Vec::new(),
            skip_verify: false,
            headers: Vec::new(),
            dial_timeout: None,
            is_mirror: false,
        }
    }

    /// A host of the agent's own `registries`.
    fn configured(name: &str, config: &RegistriesConfig) -> Self {
        let own = Self::new(name);
        let plain = config.plain_http.contains(name);
        Self {
            scheme: if plain { Scheme::Http } else { own.scheme },
            ca_files: config.ca_files.get(name).cloned().unwrap_or_default(),
            ..own
        }
    }

    /// The name that credentials are for: that of Docker's registry is not that of its API.
    pub(super) fn name_of(authority: &str) -> &str {
        match authority {
            DOCKER_HUB_API | "index.docker.io" => DOCKER_HUB,
            other => other,
        }
    }
}

/// The hosts to ask for a registry's repositories, in order, and the file that names them if it is not the agent's own.
///
/// What the agent's configuration says of a registry wins over the hosts directory.
pub(super) fn hosts_of(registry: &str, config: &RegistriesConfig) -> Result<Found, RegistryError> {
    if !config.knows(registry)
        && let Some(directory) = &config.hosts_directory
        && let Some(found) = read_directory(directory, registry)?
    {
        return Ok(found);
    }
    let mirrors = config.mirrors.get(registry).into_iter().flatten();
    let mirrors = mirrors.map(|mirror| Host {
        is_mirror: true,
        ..Host::configured(mirror, config)
    });
    let hosts = mirrors.chain([Host::configured(registry, config)]);
    Ok((hosts.collect(), None))
}

fn read_directory(directory: &Path, registry: &str) -> Result<Option<Found>, RegistryError> {
    hosts_toml::read(directory, registry).map_err(|source| RegistryError::Hosts {
        registry: registry.to_owned(),
        source,
    })
}
