//! Web pages in the place of a registry's answers: captive portals, proxies that want a password, and addresses that
//! are no registry's.
//!
//! Only a 200 counts: registries that are web applications send their empty answers (201, 202, 204) as `text/html`. What
//! states a digest, or is JSON for all that it says of itself, is taken as what it is.

use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Response, StatusCode};

use super::RegistryError;
use super::endpoint::{CONTENT_DIGEST, Endpoint};

impl Endpoint {
    /// The error of an answer that says that it is a web page; none for any other.
    pub(crate) fn web_page(&self, response: &Response, what: &str) -> Option<RegistryError> {
        let headers = response.headers();
        let is_page = response.status() == StatusCode::OK
            && is_html(headers)
            && !headers.contains_key(CONTENT_DIGEST);
        is_page.then(|| RegistryError::WebPage {
            registry: self.registry().to_owned(),
            host: response.url().host_str().unwrap_or_default().to_owned(),
            what: what.to_owned(),
        })
    }
}

/// What was read of an answer, unless that is the page that it says it is.
pub(super) fn unless_page(
    page: Option<RegistryError>,
    body: Result<Vec<u8>, RegistryError>,
) -> Result<Vec<u8>, RegistryError> {
    match (page, body) {
        (Some(page), Ok(body)) if !is_json(&body) => Err(page),
        // A page may be larger than the answer may be.
        (Some(page), Err(RegistryError::Protocol { .. })) => Err(page),
        (_, body) => body,
    }
}

fn is_html(headers: &HeaderMap) -> bool {
    let media_type = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    media_type.is_some_and(|text| {
        let text = text.split(';').next().unwrap_or_default().trim();
        text.eq_ignore_ascii_case("text/html")
    })
}

fn is_json(body: &[u8]) -> bool {
    matches!(body.trim_ascii_start().first(), Some(b'{' | b'['))
}
