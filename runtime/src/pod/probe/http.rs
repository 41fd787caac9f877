//! One HTTP/1.1 GET: the request's bytes, and as much of the response as a probe needs.

use std::fmt::Write;
use std::net::SocketAddr;

/// As much of a response as is looked at, in bytes; the kubelet's limit too.
pub const RESPONSE_MAX_BYTES: usize = 10 * 1024;

/// The bytes of a GET. The given headers replace those that are sent anyway (`Host`, `User-Agent`, `Accept`); a
/// `Host` can so name a virtual host.
pub fn request(address: SocketAddr, path: &str, headers: &[(String, String)]) -> Vec<u8> {
    let given = |name: &str| headers.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    let mut text = format!("GET {path} HTTP/1.1\r\n");
    let mut line = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        write!(text, "{name}: {value}\r\n").unwrap_or_default();
    };
    if !given("Host") {
        line("Host", &address.to_string());
    }
    if !given("User-Agent") {
        line(
            "User-Agent",
            concat!("podling-probe/", env!("CARGO_PKG_VERSION")),
        );
    }
    if !given("Accept") {
        line("Accept", "*/*");
    }
    for (name, value) in headers {
        if !name.eq_ignore_ascii_case("Connection") {
            line(name, value);
        }
    }
    line("Connection", "close");
    text.push_str("\r\n");
    text.into_bytes()
}

/// What is known of a response from the bytes so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// More bytes are needed.
    Incomplete,
    /// Its status, and where it leads to.
    Status {
        /// 200 to 999, or 101.
        status: u16,
        /// The `Location` header.
        location: Option<String>,
    },
    /// Not HTTP.
    Invalid(&'static str),
}

/// Looks for the final status: informational responses (1xx) before it are passed over.
pub fn parse(mut bytes: &[u8]) -> Response {
    loop {
        let Some(end) = find(bytes, b"\n") else {
            return if bytes.len() > RESPONSE_MAX_BYTES || !looks_like_http(bytes) {
                Response::Invalid("the answer is not HTTP")
            } else {
                Response::Incomplete
            };
        };
        let Some(status) = status_of(&bytes[..end]) else {
            return Response::Invalid("the answer is not HTTP");
        };
        let Some(head_end) = head_end(bytes) else {
            return if bytes.len() >= RESPONSE_MAX_BYTES {
                Response::Invalid("the answer's headers are too long")
            } else {
                Response::Incomplete
            };
        };
        if !(100..200).contains(&status) || status == 101 {
            return Response::Status {
                status,
                location: location(&bytes[..head_end]),
            };
        }
        bytes = &bytes[head_end..];
    }
}

/// The first `Location` of a head that says something.
fn location(head: &[u8]) -> Option<String> {
    let head = String::from_utf8_lossy(head);
    head.lines().skip(1).find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let value = value.trim();
        (name.eq_ignore_ascii_case("Location") && !value.is_empty()).then(|| value.to_owned())
    })
}

fn looks_like_http(start: &[u8]) -> bool {
    let magic = b"HTTP/";
    let n = start.len().min(magic.len());
    start[..n] == magic[..n]
}

/// `HTTP/1.1 200 OK`, the phrase being optional.
fn status_of(line: &[u8]) -> Option<u16> {
    let line = std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line).get(..12)?).ok()?;
    let (version, code) = line.split_once(' ')?;
    if !matches!(version, "HTTP/1.0" | "HTTP/1.1") {
        return None;
    }
    let status: u16 = code.parse().ok()?;
    (100..1000).contains(&status).then_some(status)
}

/// Just after the empty line.
fn head_end(bytes: &[u8]) -> Option<usize> {
    let crlf = find(bytes, b"\r\n\r\n").map(|i| i + 4);
    let lf = find(bytes, b"\n\n").map(|i| i + 2);
    match (crlf, lf) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|w| w == what)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(headers: &[(&str, &str)]) -> String {
        let headers: Vec<_> = headers
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()))
            .collect();
        let address = "10.88.0.2:8080".parse().expect("an address");
        String::from_utf8(request(address, "/healthz?a=b", &headers)).expect("text")
    }

    #[test]
    fn a_request_names_the_host_and_the_program() {
        assert_eq!(
            text(&[]),
            concat!(
                "GET /healthz?a=b HTTP/1.1\r\nHost: 10.88.0.2:8080\r\nUser-Agent: podling-probe/",
                env!("CARGO_PKG_VERSION"),
                "\r\nAccept: */*\r\nConnection: close\r\n\r\n"
            )
        );
    }

    #[test]
    fn given_headers_replace_and_add() {
        let text = text(&[("host", "shop.example"), ("X-Try", "1")]);
        assert!(text.contains("\r\nhost: shop.example\r\nX-Try: 1\r\n"));
        assert!(!text.contains("Host: 10.88"));
    }

    fn status(status: u16) -> Response {
        let location = None;
        Response::Status { status, location }
    }

    #[test]
    fn a_redirect_says_where_to() {
        assert_eq!(
            parse(b"HTTP/1.1 302 Found\r\nA: b\r\nlocation:  /login?x \r\n\r\n"),
            Response::Status {
                status: 302,
                location: Some("/login?x".to_owned())
            }
        );
        assert_eq!(
            parse(b"HTTP/1.1 302 Found\r\nLocation:\r\n\r\n"),
            status(302)
        );
    }

    #[test]
    fn the_final_status_counts() {
        let answer = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n";
        assert_eq!(parse(answer), status(204));
        assert_eq!(parse(b"HTTP/1.0 500\r\nA: b\r\n\r\nbody"), status(500));
        assert_eq!(parse(b"HTTP/1.1 302 Found\n\n"), status(302));
    }

    #[test]
    fn other_protocols_are_told_early() {
        assert!(matches!(parse(b"SSH-2.0-OpenSSH"), Response::Invalid(_)));
        assert!(matches!(parse(b"HTTP/2 200\r\n"), Response::Invalid(_)));
        assert!(matches!(parse(b"HTTP/1.1 99 No\r\n"), Response::Invalid(_)));
    }

    #[test]
    fn endless_headers_are_refused() {
        let mut answer = b"HTTP/1.1 200 OK\r\n".to_vec();
        answer.resize(RESPONSE_MAX_BYTES, b'x');
        assert!(matches!(parse(&answer), Response::Invalid(_)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes);
        }

        #[test]
        fn a_response_in_pieces_is_incomplete_until_its_head_is_there(code in 200_u16..600, cut in 0_usize..60) {
            let answer = format!("HTTP/1.1 {code} Some Words\r\nContent-Length: 2\r\n\r\n");
            let cut = cut.min(answer.len());
            let expected = if cut == answer.len() { status(code) } else { Response::Incomplete };
            prop_assert_eq!(parse(&answer.as_bytes()[..cut]), expected);
        }
    }
}
