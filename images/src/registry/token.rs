//! Tokens: what a registry asks for with a 401 (distribution's "Token Authentication Specification").

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode, Url};

use super::auth::{self, Challenge, TokenAnswer};
use super::endpoint::{Endpoint, Purpose};
use super::host::Scheme;
use super::web_page::unless_page;
use super::{Credentials, RegistryError};

/// Tokens have some kilobytes.
const TOKEN_MAX_BYTES: u64 = 1 << 20;

impl Endpoint {
    /// Does what a 401 asks for: gives the header that answers it.
    pub(super) async fn authorize(
        &self,
        response: &Response,
    ) -> Result<HeaderValue, RegistryError> {
        let challenges = response.headers().get_all(WWW_AUTHENTICATE);
        let challenge = challenges
            .iter()
            .filter_map(|value| Challenge::parse(value.to_str().ok()?))
            .next()
            .ok_or_else(|| self.protocol("it asks for no known kind of credentials".to_owned()))?;
        let header = match (challenge, &self.credentials) {
            (Challenge::Basic, Some(Credentials::Basic { username, password })) => {
                auth::basic(username, password)
            }
            (Challenge::Basic, _) => None,
            (
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                },
                _,
            ) => self.token(&realm, service, scope).await?,
        };
        header.ok_or_else(|| self.unauthorized())
    }

    /// Fetches a token, in bounded time.
    pub(super) async fn token(
        &self,
        realm: &str,
        service: Option<String>,
        scope: Option<String>,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        if self.host.scheme == Scheme::Https && !realm.starts_with("https://") {
            return Err(self.protocol(format!(
                "it wants credentials sent to `{realm}`, which is not https"
            )));
        }
        let scope = scope.unwrap_or_else(|| self.scope());
        let request = self.token_request(realm, &service.unwrap_or_default(), &scope)?;
        let answer = async {
            let response = request.send().await.map_err(|e| self.connect(e))?;
            match response.status() {
                StatusCode::OK => {}
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.unauthorized()),
                _ => return Err(self.refusal(response, "a token").await),
            }
            let page = self.web_page(&response, "a token");
            let body = self.body(response, "the token", TOKEN_MAX_BYTES).await;
            unless_page(page, body)
        };
        let limit = self.patience().small_answer;
        let body = match tokio::time::timeout(limit, answer).await {
            Ok(body) => body?,
            Err(_) => return Err(self.too_slow("the token", limit)),
        };
        let answer: TokenAnswer = serde_json::from_slice(&body)
            .map_err(|e| self.protocol(format!("its token answer is malformed: {e}")))?;
        Ok(answer.into_header())
    }

    fn token_request(
        &self,
        realm: &str,
        service: &str,
        scope: &str,
    ) -> Result<reqwest::RequestBuilder, RegistryError> {
        let mut url = Url::parse(realm)
            .map_err(|e| self.protocol(format!("its token address `{realm}` is malformed: {e}")))?;
        if let Some(Credentials::IdentityToken(token)) = &self.credentials {
            let body = form(&[
                ("grant_type", "refresh_token"),
                ("service", service),
                ("client_id", "podling"),
                ("scope", scope),
                ("refresh_token", token),
            ]);
            let request = self.http.post(url).body(body);
            return Ok(request.header(CONTENT_TYPE, "application/x-www-form-urlencoded"));
        }
        url.query_pairs_mut().append_pair("service", service);
        // Several scopes are several parameters.
        for scope in scope.split(' ').filter(|scope| !scope.is_empty()) {
            url.query_pairs_mut().append_pair("scope", scope);
        }
        let request = self.http.get(url);
        match &self.credentials {
            Some(Credentials::Basic { username, password }) => {
                let value = auth::basic(username, password).ok_or_else(|| self.unauthorized())?;
                Ok(request.header(AUTHORIZATION, value))
            }
            _ => Ok(request),
        }
    }

    /// What a token must allow, where the registry does not say.
    fn scope(&self) -> String {
        let actions = match self.purpose {
            Purpose::Pull => "pull",
            Purpose::Push => "pull,push",
        };
        format!("repository:{}:{actions}", self.reference.repository())
    }
}

/// `application/x-www-form-urlencoded`.
fn form(pairs: &[(&str, &str)]) -> String {
    let mut url = match Url::parse("http://unused") {
        Ok(url) => url,
        Err(_) => return String::new(),
    };
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}
