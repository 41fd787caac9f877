//! A pod's `/etc/resolv.conf`, as text.
//!
//! Pure but for [`ResolvConf::of_host`], which reads the host's file. The rules are the kubelet's
//! (`pkg/kubelet/network/dns/dns.go`), with one difference: Podling has no cluster DNS yet, so `ClusterFirst` and
//! `ClusterFirstWithHostNet` do what the kubelet does when it has no cluster DNS address: they fall back to `Default`, the
//! host's resolver.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::PodDNSConfig;

use super::files::push_line;

/// The most name servers a resolver uses (`MAXNS` of resolv.conf(5); Kubernetes' `MaxDNSNameservers`).
pub const MAX_NAMESERVERS: usize = 3;
/// The most search domains (Kubernetes' `MaxDNSSearchPaths`).
pub const MAX_SEARCHES: usize = 32;
/// The longest search list, with its spaces (Kubernetes' `MaxDNSSearchListChars`).
pub const MAX_SEARCH_CHARS: usize = 2048;

/// Where the host keeps its resolver's configuration.
const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved keeps the name servers behind its own stub at 127.0.0.53 (systemd-resolved.service(8)).
const RESOLVED_UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";

/// What can be wrong with a pod's DNS wishes or the host's resolver file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The host's file is there but cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// `dnsPolicy` is not one of Kubernetes'.
    #[error(
        "dnsPolicy {0:?} is unknown; use ClusterFirst, ClusterFirstWithHostNet, Default or None"
    )]
    Policy(String),
    /// `dnsPolicy: None` without a name server.
    #[error("dnsPolicy None needs at least one address in dnsConfig.nameservers")]
    NoNameserver,
    /// Too many name servers.
    #[error("{0} name servers, at most {MAX_NAMESERVERS} are allowed")]
    TooManyNameservers(usize),
    /// A name server that is no address.
    #[error("name server {0:?} is not an IP address")]
    Nameserver(String),
    /// Too many search domains.
    #[error("{0} search domains, at most {MAX_SEARCHES} are allowed")]
    TooManySearches(usize),
    /// Search domains too long.
    #[error(
        "the search domains are {0} characters long together, at most {MAX_SEARCH_CHARS} are allowed"
    )]
    SearchesTooLong(usize),
}

/// Where a pod's resolver configuration comes from (`spec.dnsPolicy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsPolicy {
    /// The cluster's DNS; without one, the host's.
    ClusterFirst,
    /// The same, for a pod in the host's network.
    ClusterFirstWithHostNet,
    /// The host's.
    Default,
    /// Only `dnsConfig`.
    None,
}

impl DnsPolicy {
    /// Reads `spec.dnsPolicy`; Kubernetes' default is `ClusterFirst`.
    pub fn parse(text: Option<&str>) -> Result<DnsPolicy, Error> {
        match text {
            None | Some("ClusterFirst") => Ok(DnsPolicy::ClusterFirst),
            Some("ClusterFirstWithHostNet") => Ok(DnsPolicy::ClusterFirstWithHostNet),
            Some("Default") => Ok(DnsPolicy::Default),
            Some("None") => Ok(DnsPolicy::None),
            Some(other) => Err(Error::Policy(other.to_string())),
        }
    }
}

/// The content of a `resolv.conf` (resolv.conf(5)).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolvConf {
    /// `nameserver` lines. Text, since they may have a scope: `fe80::1%eth0`.
    pub nameservers: Vec<String>,
    /// `search` domains; `domain` is the same with one.
    pub searches: Vec<String>,
    /// `options`, each `name` or `name:value`.
    pub options: Vec<String>,
}

impl ResolvConf {
    /// Reads the text of a file. Unknown lines and comments are left out, as resolvers do.
    pub fn parse(text: &str) -> ResolvConf {
        let mut conf = ResolvConf::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => conf.nameservers.extend(words.next().map(str::to_string)),
                // The last of these lines counts.
                Some("search" | "domain") => conf.searches = words.map(str::to_string).collect(),
                Some("options") => conf.options.extend(words.map(str::to_string)),
                _ => {}
            }
        }
        conf
    }

    /// The host's resolver configuration as a pod can use it. Name servers at a loopback address, such as
    /// systemd-resolved's stub, cannot be reached from a pod's network namespace: if there are only such, the file
    /// that resolved keeps with the real ones is used; what is still loopback is left out. A missing file is an empty
    /// one.
    pub fn of_host() -> Result<ResolvConf, Error> {
        Self::of_host_file(Path::new(HOST_RESOLV_CONF))
    }

    /// The same from a file that is configured instead of `/etc/resolv.conf`.
    pub fn of_host_file(resolv_conf: &Path) -> Result<ResolvConf, Error> {
        Self::of_host_files(resolv_conf, Path::new(RESOLVED_UPSTREAM))
    }

    fn of_host_files(resolv_conf: &Path, behind_the_stub: &Path) -> Result<ResolvConf, Error> {
        let conf = ResolvConf::parse(&read(resolv_conf)?);
        if conf.nameservers.iter().any(|server| !is_loopback(server)) {
            return Ok(conf.without_loopback());
        }
        let upstream = ResolvConf::parse(&read(behind_the_stub)?);
        Ok(if upstream.nameservers.is_empty() {
            conf
        } else {
            upstream
        }
        .without_loopback())
    }

    /// The host's resolver configuration, unchanged, for a pod in the host's network.
    pub fn of_host_unchanged() -> Result<ResolvConf, Error> {
        Ok(ResolvConf::parse(&read(Path::new(HOST_RESOLV_CONF))?))
    }

    fn without_loopback(mut self) -> ResolvConf {
        self.nameservers.retain(|server| !is_loopback(server));
        self
    }

    /// A pod's resolver configuration: the policy's, then what `dnsConfig` adds. Name servers and search domains are
    /// appended without doubles; an option of the same name is replaced.
    ///
    /// A host's file may hold more than a pod may have: its surplus is cut, as the kubelet does. What the pod itself
    /// asks for is refused when it is too much.
    pub fn of_pod(
        policy: DnsPolicy,
        host: &ResolvConf,
        config: Option<&PodDNSConfig>,
    ) -> Result<ResolvConf, Error> {
        let mut conf = match policy {
            DnsPolicy::None => ResolvConf::default(),
            DnsPolicy::ClusterFirst | DnsPolicy::ClusterFirstWithHostNet | DnsPolicy::Default => {
                host.clone()
            }
        };
        if let Some(config) = config {
            conf.merge(config)?;
        }
        if policy == DnsPolicy::None && conf.nameservers.is_empty() {
            return Err(Error::NoNameserver);
        }
        conf.cut();
        Ok(conf)
    }

    fn merge(&mut self, config: &PodDNSConfig) -> Result<(), Error> {
        let nameservers = config.nameservers.as_deref().unwrap_or_default();
        if nameservers.len() > MAX_NAMESERVERS {
            return Err(Error::TooManyNameservers(nameservers.len()));
        }
        for server in nameservers {
            if server.parse::<IpAddr>().is_err() {
                return Err(Error::Nameserver(server.clone()));
            }
            push_new(&mut self.nameservers, server);
        }
        let searches = config.searches.as_deref().unwrap_or_default();
        if searches.len() > MAX_SEARCHES {
            return Err(Error::TooManySearches(searches.len()));
        }
        let chars = searches
            .iter()
            .map(|domain| domain.len() + 1)
            .sum::<usize>()
            .saturating_sub(1);
        if chars > MAX_SEARCH_CHARS {
            return Err(Error::SearchesTooLong(chars));
        }
        for domain in searches {
            push_new(&mut self.searches, domain);
        }
        for option in config.options.as_deref().unwrap_or_default() {
            let Some(name) = option.name.as_deref() else {
                continue;
            };
            let word = match option.value.as_deref() {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.to_string(),
            };
            self.options
                .retain(|old| old.split(':').next() != Some(name));
            self.options.push(word);
        }
        Ok(())
    }

    fn cut(&mut self) {
        self.nameservers.truncate(MAX_NAMESERVERS);
        self.searches.truncate(MAX_SEARCHES);
        while self.searches.join(" ").len() > MAX_SEARCH_CHARS {
            self.searches.pop();
        }
    }

    /// The text of `/etc/resolv.conf`.
    pub fn file(&self) -> String {
        let mut text = String::new();
        for server in &self.nameservers {
            push_line(&mut text, &format!("nameserver {server}"));
        }
        if !self.searches.is_empty() {
            push_line(&mut text, &format!("search {}", self.searches.join(" ")));
        }
        if !self.options.is_empty() {
            push_line(&mut text, &format!("options {}", self.options.join(" ")));
        }
        text
    }
}

fn push_new(list: &mut Vec<String>, word: &str) {
    if !list.iter().any(|old| old == word) {
        list.push(word.to_string());
    }
}

fn is_loopback(server: &str) -> bool {
    server
        .parse::<IpAddr>()
        .is_ok_and(|address| address.is_loopback())
}

fn read(path: &Path) -> Result<String, Error> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(Error::Read {
            path: path.to_path_buf(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PodDNSConfigOption;

    use super::*;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_string()).collect()
    }

    fn config(
        nameservers: &[&str],
        searches: &[&str],
        options: &[(&str, Option<&str>)],
    ) -> PodDNSConfig {
        PodDNSConfig {
            nameservers: Some(words(nameservers)),
            searches: Some(words(searches)),
            options: Some(
                options
                    .iter()
                    .map(|(name, value)| PodDNSConfigOption {
                        name: Some((*name).to_string()),
                        value: value.map(str::to_string),
                    })
                    .collect(),
            ),
        }
    }

    fn host() -> ResolvConf {
        ResolvConf::parse(
            "# by dhcp\ndomain old.example\nsearch lan example.org\nnameserver 192.0.2.53 \noptions ndots:2 rotate\n",
        )
    }

    #[test]
    fn policies_choose_where_the_resolver_comes_from() {
        for (policy, expected) in [
            (
                None,
                "nameserver 192.0.2.53\nsearch lan example.org\noptions ndots:2 rotate\n",
            ),
            (
                Some("Default"),
                "nameserver 192.0.2.53\nsearch lan example.org\noptions ndots:2 rotate\n",
            ),
            (
                Some("ClusterFirst"),
                "nameserver 192.0.2.53\nsearch lan example.org\noptions ndots:2 rotate\n",
            ),
            (
                Some("ClusterFirstWithHostNet"),
                "nameserver 192.0.2.53\nsearch lan example.org\noptions ndots:2 rotate\n",
            ),
        ] {
            let policy = DnsPolicy::parse(policy).unwrap();
            assert_eq!(
                ResolvConf::of_pod(policy, &host(), None).unwrap().file(),
                expected,
                "{policy:?}"
            );
        }
        assert!(matches!(
            DnsPolicy::parse(Some("default")),
            Err(Error::Policy(_))
        ));
    }

    #[test]
    fn what_the_pod_asks_for_is_added_once_and_its_options_win() {
        let asked = config(
            &["192.0.2.53", "192.0.2.54"],
            &["lan", "shop.example"],
            &[("ndots", Some("5")), ("edns0", None), ("use-vc", Some(""))],
        );
        let merged = ResolvConf::of_pod(DnsPolicy::Default, &host(), Some(&asked)).unwrap();
        assert_eq!(
            merged.file(),
            "nameserver 192.0.2.53\nnameserver 192.0.2.54\nsearch lan example.org shop.example\n\
             options rotate ndots:5 edns0 use-vc\n"
        );
        let alone = ResolvConf::of_pod(DnsPolicy::None, &host(), Some(&asked)).unwrap();
        assert_eq!(
            alone.file(),
            "nameserver 192.0.2.53\nnameserver 192.0.2.54\nsearch lan shop.example\noptions ndots:5 edns0 use-vc\n"
        );
    }

    #[test]
    fn too_much_is_refused_from_a_pod_and_cut_from_the_host() {
        let many: Vec<String> = (0..33).map(|n| format!("d{n}.example")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let long = "x".repeat(2049);
        let refused = |config: &PodDNSConfig| {
            ResolvConf::of_pod(DnsPolicy::Default, &host(), Some(config)).unwrap_err()
        };
        let four = config(
            &["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"],
            &[],
            &[],
        );
        assert!(matches!(refused(&four), Error::TooManyNameservers(4)));
        assert!(matches!(
            refused(&config(&["dns.example"], &[], &[])),
            Error::Nameserver(_)
        ));
        assert!(matches!(
            refused(&config(&[], &many, &[])),
            Error::TooManySearches(33)
        ));
        assert!(matches!(
            refused(&config(&[], &[&long], &[])),
            Error::SearchesTooLong(2049)
        ));
        let none = ResolvConf::of_pod(DnsPolicy::None, &host(), Some(&config(&[], &["lan"], &[])));
        assert!(matches!(none, Err(Error::NoNameserver)));

        let rich = ResolvConf {
            nameservers: words(&["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"]),
            searches: words(&many),
            options: Vec::new(),
        };
        let cut = ResolvConf::of_pod(DnsPolicy::Default, &rich, None).unwrap();
        assert_eq!(
            (cut.nameservers.len(), cut.searches.len()),
            (MAX_NAMESERVERS, MAX_SEARCHES)
        );
    }

    #[test]
    fn resolvers_on_loopback_are_of_no_use_to_a_pod() {
        for (server, expected) in [
            ("127.0.0.53", true),
            ("127.0.0.1", true),
            ("::1", true),
            ("192.0.2.1", false),
            ("fe80::1%eth0", false),
        ] {
            assert_eq!(is_loopback(server), expected, "{server}");
        }
        let conf =
            ResolvConf::parse("nameserver 127.0.0.1\nnameserver 192.0.2.1\n").without_loopback();
        assert_eq!(conf.nameservers, ["192.0.2.1"]);
    }

    #[test]
    fn systemd_resolveds_stub_is_replaced_by_what_is_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let (stub, upstream) = (dir.path().join("stub"), dir.path().join("upstream"));
        std::fs::write(&stub, "nameserver 127.0.0.53\noptions edns0\nsearch lan\n").unwrap();
        let missing = ResolvConf::of_host_files(&stub, &upstream).unwrap();
        assert_eq!(
            missing.file(),
            "search lan\noptions edns0\n",
            "nothing is behind it"
        );
        std::fs::write(&upstream, "nameserver 192.0.2.1\nsearch lan\n").unwrap();
        assert_eq!(
            ResolvConf::of_host_files(&stub, &upstream).unwrap().file(),
            "nameserver 192.0.2.1\nsearch lan\n"
        );
        std::fs::write(&stub, "nameserver 192.0.2.7\n").unwrap();
        assert_eq!(
            ResolvConf::of_host_files(&stub, &upstream).unwrap().file(),
            "nameserver 192.0.2.7\n"
        );
        let nothing = dir.path().join("nothing");
        assert_eq!(
            ResolvConf::of_host_files(&nothing, &nothing).unwrap(),
            ResolvConf::default()
        );
    }
}
