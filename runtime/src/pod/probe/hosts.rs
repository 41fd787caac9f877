//! A probe's `host`: an address, or a name of `/etc/hosts`. DNS is deliberately absent: a health check must not
//! depend on it, and a lookup would block the supervisor.

use std::fs;
use std::io;
use std::net::IpAddr;

use thiserror::Error;

const HOSTS_FILE: &str = "/etc/hosts";

/// Why a host is refused.
#[derive(Debug, Error)]
pub enum HostError {
    /// The file of names cannot be read.
    #[error("cannot look up {host:?}: {HOSTS_FILE} cannot be read ({source})")]
    Read {
        /// The name.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// No such name.
    #[error(
        "the host {host:?} is neither an address nor a name in this machine's {HOSTS_FILE}; probes do not ask DNS"
    )]
    Unknown {
        /// The name.
        host: String,
    },
}

/// The address of a probe's `host`.
pub fn resolve(host: &str) -> Result<IpAddr, HostError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse() {
        return Ok(address);
    }
    let text = fs::read_to_string(HOSTS_FILE).map_err(|source| HostError::Read {
        host: host.to_owned(),
        source,
    })?;
    find(&text, host).ok_or_else(|| HostError::Unknown {
        host: host.to_owned(),
    })
}

/// The first address of a name, as hosts(5) describes the file.
fn find(text: &str, host: &str) -> Option<IpAddr> {
    text.lines().find_map(|line| {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words
            .any(|name| name.eq_ignore_ascii_case(host))
            .then_some(address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_the_hosts_file_s_syntax() {
        let text = "# 10.0.0.9 web\n127.0.0.1\tlocalhost  loop # web\n::1 six\nrubbish web\n10.0.0.1 WEB\n";
        assert_eq!(find(text, "loop"), "127.0.0.1".parse().ok());
        assert_eq!(find(text, "web"), "10.0.0.1".parse().ok());
        assert_eq!(find(text, "six"), "::1".parse().ok());
        assert_eq!(find(text, "nowhere"), None);
    }

    #[test]
    fn addresses_need_no_file() {
        assert_eq!(resolve("10.1.2.3").ok(), "10.1.2.3".parse().ok());
        assert_eq!(resolve("[::1]").ok(), "::1".parse().ok());
    }
}
