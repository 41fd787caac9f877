//! `podling demo get`: an HTTP GET, for images that have no curl.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use super::super::{CommandError, Exit};

/// The most that is read of an answer, in bytes: enough for any page of the demo server.
const MAX_ANSWER_BYTES: u64 = 16 << 20;

/// Fetches `url` and prints the body.
pub(super) fn get(url: &str, timeout: Duration) -> Result<Exit, CommandError> {
    let failed = |e: io::Error| CommandError::new(format!("cannot get {url}")).because(e);
    let target = parse(url)?;
    let address = resolve(&target)?;
    let mut stream = TcpStream::connect_timeout(&address, timeout).map_err(failed)?;
    stream.set_read_timeout(Some(timeout)).map_err(failed)?;
    stream.set_write_timeout(Some(timeout)).map_err(failed)?;
    write!(
        stream,
        "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nUser-Agent: podling-demo\r\n\r\n",
        target.path, target.authority
    )
    .map_err(failed)?;
    let mut answer = Vec::new();
    stream
        .take(MAX_ANSWER_BYTES)
        .read_to_end(&mut answer)
        .map_err(failed)?;
    let (status, body) = split(&answer)
        .ok_or_else(|| CommandError::new(format!("{url} does not answer with HTTP/1")))?;
    let mut out = io::stdout().lock();
    out.write_all(body)
        .and_then(|()| out.flush())
        .map_err(|e| CommandError::new("cannot write to standard output").because(e))?;
    if (200..400).contains(&status) {
        Ok(Exit::Done)
    } else {
        Err(CommandError::new(format!("{url} answers {status}")))
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Target<'a> {
    authority: &'a str,
    host: &'a str,
    port: u16,
    path: &'a str,
}

fn parse(url: &str) -> Result<Target<'_>, CommandError> {
    let wrong = || CommandError::usage(format!("`{url}` is not of the form http://HOST:PORT/PATH"));
    let rest = url.strip_prefix("http://").ok_or_else(wrong)?;
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, "/"),
    };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| wrong())?),
        _ => (authority, 80),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() {
        return Err(wrong());
    }
    Ok(Target {
        authority,
        host,
        port,
        path,
    })
}

/// An address, or a name of /etc/hosts. A static program has no resolver of its own worth trusting.
fn resolve(target: &Target<'_>) -> Result<SocketAddr, CommandError> {
    if let Ok(ip) = target.host.parse::<IpAddr>() {
        return Ok((ip, target.port).into());
    }
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    lookup(&hosts, target.host)
        .map(|ip| (ip, target.port).into())
        .ok_or_else(|| {
            CommandError::new(format!("{} is not in /etc/hosts", target.host))
                .hint("give an address: the demo image has no DNS resolver")
        })
}

fn lookup(hosts: &str, name: &str) -> Option<IpAddr> {
    hosts.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let ip = words.next()?.parse().ok()?;
        words.any(|w| w.eq_ignore_ascii_case(name)).then_some(ip)
    })
}

/// The status and the body of an answer that was closed at its end.
fn split(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let status = head.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
    Some((status, &answer[end + 4..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let target = parse("http://127.0.0.1:8080/a?b").expect("a URL");
        assert_eq!(
            (target.host, target.port, target.path),
            ("127.0.0.1", 8080, "/a?b")
        );
        let target = parse("http://[::1]/").expect("a URL");
        assert_eq!((target.host, target.port), ("::1", 80));
        assert!(parse("https://x/").is_err());
        assert!(parse("http://:80/").is_err());
    }

    #[test]
    fn names_come_from_the_hosts_file() {
        let hosts = "# comment\n127.0.0.1\tlocalhost\n10.0.0.2 web other # x\n";
        assert_eq!(lookup(hosts, "OTHER"), "10.0.0.2".parse().ok());
        assert_eq!(lookup(hosts, "x"), None);
    }
}
