//! Host names to addresses: /etc/hosts first, then the name servers of /etc/resolv.conf.
//!
//! Not libc's `getaddrinfo`: a statically linked program cannot use it, since glibc loads its parts at run time. The
//! agent resolves its other peers here too, so that all of the node has one idea of what a name means.
//!
//! Both files are read again for each name: they change when the network does. Deliberately absent: a cache, since
//! connections are long and few, and a wrong answer that is remembered outlives the outage that caused it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use hickory_resolver::TokioResolver;
use hickory_resolver::net::NetError;

const HOSTS_FILE: &str = "/etc/hosts";

/// A name without an address.
#[derive(Debug, thiserror::Error)]
pub enum NameError {
    /// There is nobody to ask.
    #[error(
        "cannot resolve `{host}`: it is not in {HOSTS_FILE}, and /etc/resolv.conf names no server to ask"
    )]
    NoServer {
        /// The name.
        host: String,
        /// What is wrong with the file.
        #[source]
        source: NetError,
    },
    /// The name servers do not know it, or only without an address.
    #[error(
        "cannot resolve `{host}`: it is not in {HOSTS_FILE}, and the servers of /etc/resolv.conf know no address of it"
    )]
    NotFound {
        /// The name.
        host: String,
    },
    /// The name servers do not answer.
    #[error(
        "cannot resolve `{host}`: it is not in {HOSTS_FILE}, and the servers of /etc/resolv.conf do not answer"
    )]
    NoAnswer {
        /// The name.
        host: String,
        /// What happened instead.
        #[source]
        source: NetError,
    },
}

/// All addresses of a host, the preferred first; at least one. An address stands for itself, with or without the
/// brackets of a URL.
///
/// # Errors
/// When nobody knows the name.
pub async fn resolve(host: &str) -> Result<Vec<IpAddr>, NameError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse() {
        return Ok(vec![address]);
    }
    let local = in_hosts_file(Path::new(HOSTS_FILE), host);
    if !local.is_empty() {
        return Ok(local);
    }
    // RFC 6761, section 6.3: localhost needs no name server.
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    if name == "localhost" || name.ends_with(".localhost") {
        return Ok(vec![
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ]);
    }
    let resolver = TokioResolver::builder_tokio()
        .and_then(|builder| builder.build())
        .map_err(|source| NameError::NoServer {
            host: host.to_owned(),
            source,
        })?;
    let found = resolver.lookup_ip(host).await;
    let found = found.map_err(|source| explain(host, source))?;
    Ok(found.iter().collect())
}

/// What the resolver says of a name that is not known, is made for its own authors.
fn explain(host: &str, source: NetError) -> NameError {
    let host = host.to_owned();
    match source.is_no_records_found() {
        true => NameError::NotFound { host },
        false => NameError::NoAnswer { host, source },
    }
}

/// What the hosts file says of a name (hosts(5)); nothing when there is no such file.
fn in_hosts_file(path: &Path, host: &str) -> Vec<IpAddr> {
    let text = std::fs::read(path).unwrap_or_default();
    let host = host.trim_end_matches('.');
    let mut found = Vec::new();
    for line in String::from_utf8_lossy(&text).lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let address = words.next().and_then(|word| word.parse().ok());
        if let Some(address) = address
            && words.any(|name| name.eq_ignore_ascii_case(host))
            && !found.contains(&address)
        {
            found.push(address);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_file_gives_all_addresses_of_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hosts");
        let text = "# 10.0.0.9 etcd\n10.0.0.1\tetcd.example ETCD # etcd2\n::1 etcd\nnonsense etcd\n10.0.0.1 etcd\n10.0.0.2\n";
        std::fs::write(&path, text).unwrap();
        let expected: Vec<IpAddr> = vec!["10.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
        assert_eq!(in_hosts_file(&path, "etcd"), expected);
        assert_eq!(in_hosts_file(&path, "Etcd.Example."), expected[..1]);
        assert!(in_hosts_file(&path, "etcd2").is_empty());
        assert!(in_hosts_file(&dir.path().join("none"), "etcd").is_empty());
    }

    #[tokio::test]
    async fn addresses_and_localhost_need_no_name_server() {
        for (host, first) in [
            ("192.0.2.7", "192.0.2.7"),
            ("[2001:db8::7]", "2001:db8::7"),
            ("x.localhost", "127.0.0.1"),
        ] {
            let found = resolve(host).await.unwrap();
            assert_eq!(found[0], first.parse::<IpAddr>().unwrap(), "{host}");
        }
    }
}
