//! One repository, wherever it is: the hosts that have it, asked in order.
//!
//! A host that fails is passed over for the next; when all fail, the error tells what each said. The host that answered
//! is asked first from then on.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::blob::BlobStream;
use super::endpoint::{Endpoint, Purpose};
use super::host::{Capabilities, Host, hosts_of};
use super::{Access, Credentials, Patience, RegistryError, RetryListener, auth};
use crate::digest::Digest;
use crate::manifest::Descriptor;
use crate::reference::Reference;

/// A repository at a registry and its mirrors.
pub(crate) struct Repository {
    reference: Reference,
    access: Access,
    purpose: Purpose,
    sites: Vec<Site>,
    /// The file that names the hosts, if it is not the agent's configuration.
    file: Option<PathBuf>,
    /// The site that answered last.
    preferred: AtomicUsize,
}

struct Site {
    host: Host,
    /// With the credentials that were taken.
    endpoint: OnceLock<Arc<Endpoint>>,
}

impl Repository {
    /// Finds out which hosts to ask. Nothing is asked yet.
    pub(crate) fn open(
        reference: &Reference,
        access: &Access,
        purpose: Purpose,
    ) -> Result<Self, RegistryError> {
        let (hosts, file) = hosts_of(reference.registry(), &access.registries)?;
        let sites = hosts.into_iter().map(|host| Site {
            host,
            endpoint: OnceLock::new(),
        });
        Ok(Self {
            reference: reference.clone(),
            access: access.clone(),
            purpose,
            sites: sites.collect(),
            file,
            preferred: AtomicUsize::new(0),
        })
    }

    /// The name of the host that answered last, for messages.
    pub(crate) fn registry(&self) -> &str {
        let preferred = self.sites.get(self.preferred.load(Ordering::Relaxed));
        preferred.map_or(self.reference.registry(), |site| &site.host.name)
    }

    /// How long its hosts are waited for.
    pub(super) fn patience(&self) -> &Patience {
        &self.access.registries.patience
    }

    /// Who is told of tries that failed.
    pub(super) fn retries(&self) -> &RetryListener {
        &self.access.retries
    }

    /// A manifest or index: the one with this digest, or the one that the tag means.
    pub(crate) async fn manifest(
        &self,
        digest: Option<&Digest>,
    ) -> Result<(Digest, Vec<u8>), RegistryError> {
        match digest {
            Some(digest) => self.manifest_named(&digest.to_string(), Some(digest)).await,
            None => self.manifest_named(self.tag(), None).await,
        }
    }

    fn tag(&self) -> &str {
        self.reference.tag().unwrap_or("latest")
    }

    async fn manifest_named(
        &self,
        name: &str,
        digest: Option<&Digest>,
    ) -> Result<(Digest, Vec<u8>), RegistryError> {
        let capability = if digest.is_some() {
            Capability::Pull
        } else {
            Capability::Resolve
        };
        let mut attempts = Vec::new();
        for at in self.sites_for(capability)? {
            match self.manifest_at(at, name, digest).await {
                Ok(found) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return Ok(found);
                }
                Err(e) => attempts.push(self.failed(at, e)),
            }
        }
        Err(self.none_helped(attempts, capability))
    }

    async fn manifest_at(
        &self,
        at: usize,
        name: &str,
        digest: Option<&Digest>,
    ) -> Result<(Digest, Vec<u8>), RegistryError> {
        let mut candidates = self.candidates(at).await?;
        loop {
            let endpoint = candidates.endpoint()?;
            let found = if self.sites[at].host.capabilities.pull {
                endpoint.manifest(name, digest).await
            } else {
                // It may tell what the tag means, and no more.
                match endpoint.resolve(name).await {
                    Ok(Some(digest)) => {
                        candidates.settle(endpoint);
                        let name = digest.to_string();
                        return Box::pin(self.manifest_named(&name, Some(&digest))).await;
                    }
                    Ok(None) => {
                        Err(endpoint.protocol(format!("it does not say which digest {name} has")))
                    }
                    Err(e) => Err(e),
                }
            };
            match found {
                Ok(found) => {
                    candidates.settle(endpoint);
                    return Ok(found);
                }
                Err(e) => candidates.next_after(e)?,
            }
        }
    }

    /// What the tag means now, without fetching it; none if the registry does not say.
    pub(crate) async fn resolve(&self) -> Result<Option<Digest>, RegistryError> {
        let mut attempts = Vec::new();
        for at in self.sites_for(Capability::Resolve)? {
            match self.resolve_at(at).await {
                Ok(found) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return Ok(found);
                }
                Err(e) => attempts.push(self.failed(at, e)),
            }
        }
        Err(self.none_helped(attempts, Capability::Resolve))
    }

    async fn resolve_at(&self, at: usize) -> Result<Option<Digest>, RegistryError> {
        let mut candidates = self.candidates(at).await?;
        loop {
            let endpoint = candidates.endpoint()?;
            match endpoint.resolve(self.tag()).await {
                Ok(found) => {
                    candidates.settle(endpoint);
                    return Ok(found);
                }
                Err(e) => candidates.next_after(e)?,
            }
        }
    }

    /// A blob that fits into memory.
    pub(crate) async fn small_blob(
        &self,
        descriptor: &Descriptor,
        what: &'static str,
        max_bytes: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut attempts = Vec::new();
        for at in self.sites_for(Capability::Pull)? {
            match self.small_blob_at(at, descriptor, what, max_bytes).await {
                Ok(content) => return Ok(content),
                Err(e) => attempts.push(self.failed(at, e)),
            }
        }
        Err(self.none_helped(attempts, Capability::Pull))
    }

    async fn small_blob_at(
        &self,
        at: usize,
        descriptor: &Descriptor,
        what: &'static str,
        max_bytes: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut candidates = self.candidates(at).await?;
        loop {
            let endpoint = candidates.endpoint()?;
            match endpoint.small_blob(descriptor, what, max_bytes).await {
                Ok(content) => {
                    candidates.settle(endpoint);
                    return Ok(content);
                }
                Err(e) => candidates.next_after(e)?,
            }
        }
    }

    /// The bytes of a blob from an offset to its end, whatever breaks in between. They are not checked against the
    /// digest: that takes those before the offset too.
    pub(crate) fn blob(self: &Arc<Self>, descriptor: &Descriptor, offset: u64) -> BlobStream {
        BlobStream::new(Arc::clone(self), descriptor.clone(), offset)
    }

    /// The host to push to: the first that may be pushed to and lets us in.
    pub(crate) async fn for_push(&self) -> Result<Vec<Arc<Endpoint>>, RegistryError> {
        let mut endpoints = Vec::new();
        if let Some(&at) = self.sites_for(Capability::Push)?.first() {
            let mut candidates = self.candidates(at).await?;
            loop {
                endpoints.push(candidates.endpoint()?);
                if !candidates.advance() {
                    break;
                }
            }
        }
        Ok(endpoints)
    }

    /// The sites that may be asked for this, in order, the one that answered last first.
    pub(super) fn sites_for(&self, capability: Capability) -> Result<Vec<usize>, RegistryError> {
        let mut found: Vec<_> = (0..self.sites.len())
            .filter(|at| capability.is_of(self.sites[*at].host.capabilities))
            .collect();
        let preferred = self.preferred.load(Ordering::Relaxed);
        if let Some(position) = found.iter().position(|at| *at == preferred) {
            found[..=position].rotate_right(1);
        }
        if found.is_empty() {
            return Err(self.none_helped(Vec::new(), capability));
        }
        Ok(found)
    }

    /// The endpoints of a site, one for each of the credentials that may be for it.
    pub(super) async fn candidates(&self, at: usize) -> Result<Candidates<'_>, RegistryError> {
        let site = &self.sites[at];
        let credentials = match site.endpoint.get() {
            Some(_) => Vec::new(),
            None => auth::candidates(&site.host.name, &self.reference, &self.access).await?,
        };
        Ok(Candidates {
            repository: self,
            site,
            credentials,
            at: 0,
        })
    }

    /// Notes a failure for the error of all.
    fn failed(&self, at: usize, error: RegistryError) -> RegistryError {
        let (host, reference) = (&self.sites[at].host.name, &self.reference);
        tracing::debug!(%host, %reference, %error, "the host does not help");
        error
    }

    fn none_helped(&self, attempts: Vec<RegistryError>, capability: Capability) -> RegistryError {
        RegistryError::of_all(attempts).unwrap_or_else(|| RegistryError::NoHost {
            registry: self.reference.registry().to_owned(),
            capability: capability.name(),
            file: match &self.file {
                Some(path) => path.display().to_string(),
                None => "its hosts.toml".to_owned(),
            },
        })
    }
}

/// What a host is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Capability {
    Pull,
    Resolve,
    Push,
}

impl Capability {
    fn is_of(self, capabilities: Capabilities) -> bool {
        match self {
            Self::Pull => capabilities.pull,
            Self::Resolve => capabilities.resolve,
            Self::Push => capabilities.push,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Resolve => "resolve",
            Self::Push => "push",
        }
    }
}

/// The credentials to try at a site, one after the other as long as it refuses them. A registry that hides what is not
/// for everybody says that there is no such image.
pub(super) struct Candidates<'a> {
    repository: &'a Repository,
    site: &'a Site,
    credentials: Vec<Credentials>,
    at: usize,
}

impl Candidates<'_> {
    /// The endpoint to try now.
    pub(super) fn endpoint(&self) -> Result<Arc<Endpoint>, RegistryError> {
        if let Some(settled) = self.site.endpoint.get() {
            return Ok(Arc::clone(settled));
        }
        let repository = self.repository;
        let endpoint = Endpoint::new(
            &self.site.host,
            &repository.reference,
            &repository.access,
            repository.purpose,
            self.credentials.get(self.at).cloned(),
        )?;
        Ok(Arc::new(endpoint))
    }

    /// These credentials are right: they are used from now on.
    pub(super) fn settle(&self, endpoint: Arc<Endpoint>) {
        // Another task may have settled the site meanwhile, as well.
        self.site.endpoint.get_or_init(|| endpoint);
    }

    /// Goes on to the next credentials if others may help, else gives the error back.
    pub(super) fn next_after(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        let others_may_help = matches!(
            error,
            RegistryError::Unauthorized { .. } | RegistryError::NotFound { .. }
        );
        if others_may_help && self.advance() {
            return Ok(());
        }
        Err(error)
    }

    /// False at the end.
    fn advance(&mut self) -> bool {
        self.at += 1;
        self.at < self.credentials.len()
    }
}
