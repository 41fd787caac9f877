//! What lies beside an image: signatures, attestations and the like (distribution-spec 1.1, "Listing Referrers").
//!
//! A registry that does not know the question answers 404; then an index with the tag `<algorithm>-<hex>` lists what
//! there is ("Backwards Compatibility", "Referrers Tag Schema").

use reqwest::header::{ACCEPT, HeaderMap, HeaderValue, LINK};
use reqwest::{Method, Url};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::RegistryError;
use super::endpoint::{Endpoint, Request};
use super::repository::{Capability, Repository};
use crate::digest::Digest;
use crate::manifest::{MANIFEST_MAX_BYTES, OCI_INDEX};

/// An image has a few signatures; more pages than this are a registry's mistake.
const PAGES_MAX: usize = 32;
/// All pages together: some ten thousand referrers.
const PAGES_MAX_BYTES: usize = 2 * MANIFEST_MAX_BYTES as usize;
/// What registries answer to an interface that they do not know, or for something that is not there.
const ABSENT: [u16; 5] = [400, 404, 405, 406, 415];

impl Repository {
    /// Something small that belongs to the image, such as a signature, by its path below the repository; none where no
    /// host has it. The caller checks its digest.
    pub(crate) async fn beside(
        &self,
        path: &str,
        accept: &str,
        what: &str,
        max_bytes: u64,
    ) -> Result<Option<Vec<u8>>, RegistryError> {
        let mut attempts = Vec::new();
        let mut is_absent = false;
        for at in self.sites_for(Capability::Pull)? {
            match self.beside_at(at, path, accept, what, max_bytes).await {
                Ok(Some(content)) => return Ok(Some(content)),
                Ok(None) => is_absent = true,
                Err(e) => attempts.push(e),
            }
        }
        match RegistryError::of_all(attempts) {
            // Who did not answer may have it.
            Some(error) => Err(error),
            None => {
                debug_assert!(is_absent, "a site was asked");
                Ok(None)
            }
        }
    }

    async fn beside_at(
        &self,
        at: usize,
        path: &str,
        accept: &str,
        what: &str,
        max_bytes: u64,
    ) -> Result<Option<Vec<u8>>, RegistryError> {
        let mut candidates = self.candidates(at).await?;
        loop {
            let endpoint = candidates.endpoint()?;
            let url = endpoint.url(path);
            match endpoint.optional(url, path, accept, what, max_bytes).await {
                Ok(found) => {
                    // That there is nothing does not prove the credentials.
                    if found.is_some() {
                        candidates.settle(endpoint);
                    }
                    return Ok(found.map(|(_, content)| content));
                }
                Err(e) => candidates.next_after(e)?,
            }
        }
    }

    /// The pages of the index of all that names `subject` as its subject; none if there is nothing. A mirror may have the
    /// image and nothing beside it: then the next host is asked.
    pub(crate) async fn referrers(&self, subject: &Digest) -> Result<Vec<Vec<u8>>, RegistryError> {
        let mut attempts = Vec::new();
        for at in self.sites_for(Capability::Pull)? {
            let endpoint = self.candidates(at).await?.endpoint()?;
            match endpoint.referrers(subject).await {
                Ok(Some(pages)) if !pages.iter().all(|page| is_empty(page)) => return Ok(pages),
                Ok(_) => {}
                Err(e) => attempts.push(e),
            }
        }
        if let Some(error) = RegistryError::of_all(attempts) {
            return Err(error);
        }
        let path = format!("manifests/{}-{}", subject.algorithm().name(), subject.hex());
        let what = "the list of referrers";
        let found = self.beside(&path, OCI_INDEX, what, MANIFEST_MAX_BYTES);
        Ok(found.await?.into_iter().collect())
    }
}

/// True for a list that says that there is nothing.
fn is_empty(page: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Index {
        manifests: Vec<IgnoredAny>,
    }
    let index: Result<Index, _> = serde_json::from_slice(page);
    index.is_ok_and(|index| index.manifests.is_empty())
}

impl Endpoint {
    /// None when the registry does not know the question.
    async fn referrers(&self, subject: &Digest) -> Result<Option<Vec<Vec<u8>>>, RegistryError> {
        let path = format!("referrers/{subject}");
        let mut url = self.url(&path);
        let what = "the list of referrers";
        let (mut pages, mut bytes) = (Vec::new(), 0);
        for _ in 0..PAGES_MAX {
            let page = self
                .optional(url.clone(), &path, OCI_INDEX, what, MANIFEST_MAX_BYTES)
                .await?;
            let Some((headers, page)) = page else {
                return Ok(None);
            };
            bytes += page.len();
            pages.push(page);
            if bytes > PAGES_MAX_BYTES {
                break;
            }
            match next_page(&url, &headers) {
                Some(next) => url = next,
                None => return Ok(Some(pages)),
            }
        }
        Err(self.protocol(format!(
            "{what} of {subject} has more than {PAGES_MAX} pages, or {PAGES_MAX_BYTES} bytes"
        )))
    }

    /// A manifest or an index that may be absent.
    pub(crate) async fn manifest_if_any(
        &self,
        name: &str,
        accept: &str,
        max_bytes: u64,
    ) -> Result<Option<Vec<u8>>, RegistryError> {
        let path = format!("manifests/{name}");
        let url = self.url(&path);
        let found = self.optional(url, &path, accept, "the manifest", max_bytes);
        Ok(found.await?.map(|(_, content)| content))
    }

    /// What may be absent.
    async fn optional(
        &self,
        url: Url,
        path: &str,
        accept: &str,
        what: &str,
        max_bytes: u64,
    ) -> Result<Option<(HeaderMap, Vec<u8>)>, RegistryError> {
        let accept = HeaderValue::try_from(accept);
        let request = Request {
            method: Method::GET,
            url,
            headers: accept
                .ok()
                .map(|value| (ACCEPT, value))
                .into_iter()
                .collect(),
            body: None,
            what: path,
        };
        match self.small_answer(&request, what, max_bytes).await {
            Ok(answer) => Ok(Some(answer)),
            // Where the registry has a web interface, that answers what the registry does not know.
            Err(RegistryError::NotFound { .. } | RegistryError::WebPage { .. }) => Ok(None),
            Err(RegistryError::Status { status, .. } | RegistryError::Storage { status, .. })
                if ABSENT.contains(&status) =>
            {
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }
}

/// Where `Link: <…>; rel="next"` leads to, if that is at the same host (RFC 8288).
fn next_page(from: &Url, headers: &HeaderMap) -> Option<Url> {
    let links = headers.get_all(LINK).iter();
    let mut links = links.filter_map(|value| value.to_str().ok());
    let link = links.find(|link| link.contains("rel=\"next\"") || link.contains("rel=next"))?;
    let target = link.trim().strip_prefix('<')?.split('>').next()?;
    let next = from.join(target).ok()?;
    (next.origin() == from.origin()).then_some(next)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::registry::test_server::{Reply, serve};
    use crate::registry::{Access, Purpose, RegistriesConfig};

    fn repository(registry: &str) -> Repository {
        let access = Access {
            docker_config: Some("/nonexistent/config.json".into()),
            registries: RegistriesConfig {
                plain_http: [registry.to_owned()].into(),
                ..RegistriesConfig::default()
            },
            ..Access::default()
        };
        let reference = format!("{registry}/team/app:1").parse().unwrap();
        Repository::open(&reference, &access, Purpose::Pull).unwrap()
    }

    #[tokio::test]
    async fn referrers_come_in_pages() {
        let registry = serve(|request| match request.path.split_once('?') {
            Some((_, "page=2")) => Reply::new(200, b"two"),
            _ if request.path.contains("/referrers/sha256:") => {
                let next = format!("<{}?page=2>; rel=\"next\"", request.path);
                Reply::new(200, b"one").header("Link", &next)
            }
            _ => Reply::new(404, b""),
        })
        .await;
        let pages = repository(&registry).referrers(&Digest::sha256(b"x")).await;
        assert_eq!(pages.unwrap(), [b"one", b"two"]);
    }

    #[tokio::test]
    async fn without_the_api_a_tag_lists_the_referrers() {
        for has_tag in [true, false] {
            let registry = serve(move |request| {
                let tag = format!("/manifests/sha256-{}", Digest::sha256(b"x").hex());
                match request.path.ends_with(&tag) && has_tag {
                    true => Reply::new(200, b"list"),
                    false => Reply::new(404, b"404 page not found"),
                }
            })
            .await;
            let pages = repository(&registry).referrers(&Digest::sha256(b"x")).await;
            assert_eq!(pages.unwrap().len(), usize::from(has_tag));
        }
    }

    #[tokio::test]
    async fn pages_without_end_are_refused() {
        let requests = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&requests);
        let registry = serve(move |request| {
            count.fetch_add(1, Ordering::SeqCst);
            let next = format!("<{}>; rel=\"next\"", request.path);
            Reply::new(200, b"{}").header("Link", &next)
        })
        .await;
        let pages = repository(&registry).referrers(&Digest::sha256(b"x")).await;
        let error = pages.unwrap_err().to_string();
        assert!(error.contains("more than 32 pages"), "{error}");
        assert_eq!(requests.load(Ordering::SeqCst), PAGES_MAX);
    }
}
