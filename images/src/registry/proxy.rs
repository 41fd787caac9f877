//! Proxies by the usual variables, read as Go's `golang.org/x/net/http/httpproxy` does, and so as Docker, containerd and
//! the kubelet do.
//!
//! ```text
//! HTTPS_PROXY  https_proxy   for https://     [http://|https://][user:password@]host[:port]
//! HTTP_PROXY   http_proxy    for http://
//! NO_PROXY     no_proxy      comma-separated: *, address, address/prefix, name (and all below it), .name (only what
//!                            is below it), each but CIDRs with an optional :port
//! ```
//! The upper-case variable comes first. `localhost` and loopback addresses are never asked through a proxy. CIDRs match
//! hosts that are written as addresses: names are resolved by the proxy.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use reqwest::Url;

/// A variable of the environment that names no proxy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable} names the proxy `{value}`, which cannot be used: {reason}")]
pub struct ProxyError {
    /// The variable.
    pub variable: String,
    /// What it says, without a password.
    pub value: String,
    /// Why not.
    pub reason: String,
}

/// Which proxy is for which host.
#[derive(Debug, Clone, Default)]
pub(super) struct Proxies {
    http: Option<Url>,
    https: Option<Url>,
    never: Vec<Exception>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    All,
    Net(IpNet),
    Address(IpAddr, Option<u16>),
    /// With a leading dot: all names below it. `itself` too, unless it was written with a dot.
    Name {
        suffix: String,
        itself: bool,
        port: Option<u16>,
    },
}

impl Proxies {
    /// What the environment says.
    pub(super) fn from_environment() -> Result<Self, ProxyError> {
        Self::read(|name| std::env::var(name).ok())
    }

    pub(super) fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ProxyError> {
        let find = |name: &str| {
            [name.to_owned(), name.to_ascii_lowercase()]
                .into_iter()
                .find_map(|name| {
                    let value = variable(&name).filter(|value| !value.is_empty())?;
                    Some((name, value))
                })
        };
        let proxy = |name: &str| {
            let found = find(name);
            found
                .map(|(variable, value)| parse_proxy(&variable, &value))
                .transpose()
        };
        let never = find("NO_PROXY").map_or_else(Vec::new, |(_, value)| {
            value.split(',').filter_map(Exception::parse).collect()
        });
        Ok(Self {
            http: proxy("HTTP_PROXY")?,
            https: proxy("HTTPS_PROXY")?,
            never,
        })
    }

    /// The proxy for a request, if there is one.
    fn find(&self, url: &Url) -> Option<Url> {
        let proxy = match url.scheme() {
            "https" => self.https.as_ref()?,
            _ => self.http.as_ref()?,
        };
        let host = url.host_str()?.trim_end_matches('.').to_ascii_lowercase();
        let port = url.port_or_known_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let address = bare.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
        let is_local = host == "localhost" || address.is_some_and(|ip| ip.is_loopback());
        let matches = |exception: &Exception| exception.matches(&host, address, port);
        (!is_local && !self.never.iter().any(matches)).then(|| proxy.clone())
    }

    /// For the HTTP client, unless there is no proxy at all.
    pub(super) fn into_client_proxy(self) -> Option<reqwest::Proxy> {
        if self.http.is_none() && self.https.is_none() {
            return None;
        }
        let proxies = Arc::new(self);
        Some(reqwest::Proxy::custom(move |url| proxies.find(url)))
    }
}

fn parse_proxy(variable: &str, value: &str) -> Result<Url, ProxyError> {
    let failed = |reason: &str| ProxyError {
        variable: variable.to_owned(),
        // What is before an `@` may be a password.
        value: value.rsplit('@').next().unwrap_or(value).to_owned(),
        reason: reason.to_owned(),
    };
    // `proxy.example:3128` would be an address with the scheme `proxy.example`.
    let whole = match value.contains("://") {
        true => value.to_owned(),
        false => format!("http://{value}"),
    };
    let url = Url::parse(&whole).map_err(|e| failed(&e.to_string()))?;
    match url.scheme() {
        "http" | "https" if url.host_str().is_some() => Ok(url),
        "http" | "https" => Err(failed("it has no host")),
        "socks5" | "socks5h" | "socks4" | "socks4a" => Err(failed(
            "SOCKS is not supported: name an HTTP proxy, or unset the variable",
        )),
        _ => Err(failed("its scheme is neither http nor https")),
    }
}

impl Exception {
    /// One entry of `NO_PROXY`; none for one that means nothing.
    fn parse(entry: &str) -> Option<Self> {
        let entry = entry.trim().to_ascii_lowercase();
        if entry == "*" {
            return Some(Self::All);
        }
        if let Ok(net) = entry.parse() {
            return Some(Self::Net(net));
        }
        let bare = entry.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Some(Self::Address(address.to_canonical(), None));
        }
        let (host, port) = match entry.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (entry.as_str(), None),
        };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Some(Self::Address(address.to_canonical(), port));
        }
        let host = host.strip_prefix('*').unwrap_or(host);
        let name = host.trim_start_matches('.').trim_end_matches('.');
        (!name.is_empty()).then(|| Self::Name {
            suffix: format!(".{name}"),
            itself: !host.starts_with('.'),
            port,
        })
    }

    fn matches(&self, host: &str, address: Option<IpAddr>, port: Option<u16>) -> bool {
        match self {
            Self::All => true,
            Self::Net(net) => address.is_some_and(|ip| net.contains(&ip)),
            Self::Address(own, own_port) => {
                address == Some(*own) && (own_port.is_none() || *own_port == port)
            }
            Self::Name {
                suffix,
                itself,
                port: own_port,
            } => {
                let named = host.ends_with(suffix.as_str()) || *itself && host == &suffix[1..];
                named && (own_port.is_none() || *own_port == port)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Proxies, ProxyError> {
        Proxies::read(|name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    fn found(proxies: &Proxies, url: &str) -> Option<String> {
        let proxy = proxies.find(&Url::parse(url).unwrap())?;
        Some(proxy.to_string())
    }

    #[test]
    fn the_scheme_chooses_and_upper_case_comes_first() {
        let proxies = read(&[
            ("http_proxy", "lower.example:3128"),
            ("HTTP_PROXY", "http://upper.example:3128"),
            ("https_proxy", "https://user:secret@secure.example"),
        ]);
        let proxies = proxies.unwrap();
        assert_eq!(
            found(&proxies, "http://reg.example/v2/").as_deref(),
            Some("http://upper.example:3128/")
        );
        assert_eq!(
            found(&proxies, "https://reg.example/v2/").as_deref(),
            Some("https://user:secret@secure.example/")
        );
        let none = read(&[("HTTP_PROXY", "")]).unwrap();
        assert!(found(&none, "http://reg.example/").is_none());
        assert!(none.into_client_proxy().is_none());
    }

    #[test]
    fn the_exceptions_of_no_proxy() {
        for (exceptions, url, is_direct) in [
            ("", "https://reg.example/", false),
            ("*", "https://reg.example/", true),
            ("reg.example", "https://reg.example/", true),
            ("reg.example", "https://REG.example./", true),
            ("reg.example", "https://a.reg.example/", true),
            ("reg.example", "https://areg.example/", false),
            (".reg.example", "https://reg.example/", false),
            (".reg.example", "https://a.reg.example/", true),
            ("*.reg.example", "https://a.reg.example/", true),
            (" other, reg.example:443 ", "https://reg.example/", true),
            ("reg.example:444", "https://reg.example/", false),
            ("10.0.0.0/8", "https://10.1.2.3:5000/", true),
            ("10.0.0.0/8", "https://11.1.2.3:5000/", false),
            ("fd00::/8", "https://[fd00::1]:5000/", true),
            ("192.0.2.7", "https://192.0.2.7/", true),
            ("192.0.2.7:5000", "https://192.0.2.7:5000/", true),
            ("192.0.2.7:5000", "https://192.0.2.7/", false),
            ("[2001:db8::7]:5000", "https://[2001:db8::7]:5000/", true),
            ("2001:db8::7", "https://[2001:db8::7]:5000/", true),
            ("10.0.0.0/8", "https://ten.example/", false),
            ("", "https://localhost:5000/", true),
            ("", "https://127.0.0.2:5000/", true),
            ("", "https://[::1]/", true),
            (",,", "https://reg.example/", false),
        ] {
            let proxies = read(&[("HTTPS_PROXY", "p.example:1"), ("NO_PROXY", exceptions)]);
            let is = found(&proxies.unwrap(), url).is_none();
            assert_eq!(is, is_direct, "NO_PROXY={exceptions} {url}");
        }
    }

    #[test]
    fn what_is_no_proxy_is_refused_with_the_variable_and_without_the_password() {
        for (value, part) in [
            ("socks5://me:secret@p.example:1080", "SOCKS"),
            ("ftp://p.example", "scheme"),
            ("http://me:secret@", "cannot be used"),
        ] {
            let error = read(&[("https_proxy", value)]).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
            assert!(error.contains("https_proxy"), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
