//! Where a redirected probe goes, as with the kubelet (`pkg/probe/http/http.go`, `RedirectChecker`) and Go's client:
//! on the same host it is followed, up to ten requests; to any other host it is not, and the answer counts as success,
//! since the server is there to send it.

use std::net::IpAddr;

use crate::pod::plan::Handler;

/// Requests that one try may take: `defaultCheckRedirect` of Go's `net/http`.
pub const REQUESTS_MAX: u32 = 10;

/// What a redirecting answer means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redirect {
    /// Ask there.
    Follow(Handler),
    /// It leads to another host: its name, or the whole `Location` if it has none.
    Elsewhere(String),
    /// It leads nowhere.
    Invalid(String),
}

/// True for the statuses that Go's client follows.
pub fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

/// Resolves the `Location` of an answer to a request (RFC 3986, section 5.2). `pod` is the host of requests that name
/// none.
pub fn resolve(request: &Handler, pod: IpAddr, location: &str) -> Redirect {
    let Handler::Http {
        tls,
        host,
        port,
        path,
        headers,
    } = request
    else {
        return Redirect::Invalid(format!("{location:?} answers no HTTP request"));
    };
    let location = location.split('#').next().unwrap_or_default();
    let visible = |c: char| c.is_ascii_graphic();
    if !location.chars().all(visible) {
        return Redirect::Invalid(format!("the redirect to {location:?} is malformed"));
    }
    let (scheme, rest) = split_scheme(location);
    let Some(authority) = rest.strip_prefix("//") else {
        return match scheme {
            None => Redirect::Follow(Handler::Http {
                tls: *tls,
                host: host.clone(),
                port: *port,
                path: resolve_path(path, rest),
                headers: headers.clone(),
            }),
            Some(_) => Redirect::Elsewhere(location.to_owned()),
        };
    };
    let end = authority.find(['/', '?']).unwrap_or(authority.len());
    let (authority, rest) = authority.split_at(end);
    let Some((name, given_port)) = split_authority(authority) else {
        return Redirect::Invalid(format!("the redirect to {location:?} is malformed"));
    };
    let own = host.clone().unwrap_or_else(|| pod.to_string());
    if !is_same_host(&own, name) {
        return Redirect::Elsewhere(name.to_owned());
    }
    let tls = match scheme.map(str::to_ascii_lowercase).as_deref() {
        None => *tls,
        Some("http") => false,
        Some("https") => true,
        Some(other) => return Redirect::Invalid(format!("a redirect to {other}: is not followed")),
    };
    Redirect::Follow(Handler::Http {
        tls,
        host: host.clone(),
        port: given_port.unwrap_or(if tls { 443 } else { 80 }),
        path: resolve_path("/", rest),
        // The name that the request gave was for the server that it was sent to; the new one is in the redirect.
        headers: headers
            .iter()
            .filter(|(name, _)| !name.eq_ignore_ascii_case("Host"))
            .cloned()
            .collect(),
    })
}

/// `scheme:rest`; a colon behind a slash or a question mark is none of a scheme's.
fn split_scheme(location: &str) -> (Option<&str>, &str) {
    let is_scheme = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || b"+-.".contains(&c))
    };
    match location.split_once(':') {
        Some((scheme, rest)) if is_scheme(scheme) => (Some(scheme), rest),
        _ => (None, location),
    }
}

/// Host and port of `user@host:port`, the host without brackets.
fn split_authority(authority: &str) -> Option<(&str, Option<u16>)> {
    let host = authority.rsplit('@').next()?;
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (name, port) = rest.split_once(']')?;
            (name, port.strip_prefix(':').unwrap_or(port))
        }
        None => host.split_once(':').unwrap_or((host, "")),
    };
    let port = match port {
        "" => None,
        digits => Some(digits.parse().ok().filter(|port| *port != 0)?),
    };
    Some((name, port))
}

fn is_same_host(a: &str, b: &str) -> bool {
    let bare = |host: &str| {
        host.trim_start_matches('[')
            .trim_end_matches(']')
            .to_ascii_lowercase()
    };
    let (a, b) = (bare(a), bare(b));
    a == b || matches!((a.parse::<IpAddr>(), b.parse::<IpAddr>()), (Ok(a), Ok(b)) if a == b)
}

/// Path and query of a reference, seen from the path and query of the request.
fn resolve_path(base: &str, reference: &str) -> String {
    let (base_path, base_query) = base
        .split_once('?')
        .map_or((base, None), |(p, q)| (p, Some(q)));
    let (path, query) = reference
        .split_once('?')
        .map_or((reference, None), |(p, q)| (p, Some(q)));
    let (path, query) = if path.is_empty() {
        (base_path.to_owned(), query.or(base_query))
    } else if path.starts_with('/') {
        (remove_dots(path), query)
    } else {
        let parent = base_path.rfind('/').map_or("/", |at| &base_path[..=at]);
        (remove_dots(&format!("{parent}{path}")), query)
    };
    match query {
        Some(query) => format!("{path}?{query}"),
        None => path,
    }
}

/// RFC 3986, section 5.2.4.
fn remove_dots(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if is_last {
                    kept.push("");
                }
            }
            other => kept.push(other),
        }
    }
    format!("/{}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 2, 3));

    fn request(host: Option<&str>) -> Handler {
        Handler::Http {
            tls: false,
            host: host.map(str::to_owned),
            port: 8080,
            path: "/a/b?c=d".to_owned(),
            headers: vec![
                ("Host".to_owned(), "shop".to_owned()),
                ("X".to_owned(), "1".to_owned()),
            ],
        }
    }

    /// As `scheme port path`, with the number of headers.
    fn followed(location: &str) -> String {
        match resolve(&request(None), POD, location) {
            Redirect::Follow(Handler::Http {
                tls,
                port,
                path,
                headers,
                ..
            }) => format!(
                "{} {port} {path} {}",
                if tls { "https" } else { "http" },
                headers.len()
            ),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn redirects_on_the_same_host_are_followed() {
        for (location, expected) in [
            ("/login", "http 8080 /login 2"),
            ("login?x=1#top", "http 8080 /a/login?x=1 2"),
            ("../up/./here/", "http 8080 /up/here/ 2"),
            ("?only=query", "http 8080 /a/b?only=query 2"),
            ("", "http 8080 /a/b?c=d 2"),
            ("//10.1.2.3:9000/x", "http 9000 /x 1"),
            ("http://10.1.2.3/x", "http 80 /x 1"),
            ("HTTPS://10.1.2.3", "https 443 / 1"),
            ("https://user@10.1.2.3:8443?q", "https 8443 /?q 1"),
            ("/../../etc", "http 8080 /etc 2"),
        ] {
            assert_eq!(followed(location), expected, "{location}");
        }
    }

    #[test]
    fn redirects_to_other_hosts_are_not() {
        for (location, host) in [
            ("https://shop.example/", "shop.example"),
            ("http://10.1.2.4:8080/", "10.1.2.4"),
            ("//[::1]/", "::1"),
            ("mailto:admin@shop", "mailto:admin@shop"),
        ] {
            let expected = Redirect::Elsewhere(host.to_owned());
            assert_eq!(resolve(&request(None), POD, location), expected);
        }
        assert!(matches!(
            resolve(&request(Some("Localhost")), POD, "http://localhost:1/"),
            Redirect::Follow(Handler::Http { port: 1, .. })
        ));
        assert!(matches!(
            resolve(&request(Some("::1")), POD, "http://[0:0::1]/"),
            Redirect::Follow(_)
        ));
    }

    #[test]
    fn what_leads_nowhere_fails() {
        for location in [
            "ftp://10.1.2.3/",
            "http://10.1.2.3:0/",
            "http://10.1.2.3:99999/",
            "/a b",
            "//[::1/",
        ] {
            let redirect = resolve(&request(None), POD, location);
            assert!(
                matches!(redirect, Redirect::Invalid(_)),
                "{location}: {redirect:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_location_makes_a_request_that_is_one_line(location in ".{0,60}") {
            if let Redirect::Follow(Handler::Http { path, .. }) = resolve(&request(None), POD, &location) {
                prop_assert!(path.starts_with('/'));
                prop_assert!(path.chars().all(|c| c.is_ascii_graphic()));
            }
        }
    }
}
