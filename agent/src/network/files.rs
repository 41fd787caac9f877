//! A pod's `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`, as text.
//!
//! Pure but for [`ResolvConf::of_host`], which reads the host's file. The rules are the kubelet's
//! (`pkg/kubelet/kubelet_pods.go`, `pkg/kubelet/network/dns/dns.go`), with one difference: Podling has no cluster DNS
//! yet, so `ClusterFirst` and `ClusterFirstWithHostNet` do what the kubelet does when it has no cluster DNS address:
//! they fall back to `Default`, the host's resolver.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{HostAlias, PodDNSConfig};

/// The most name servers a resolver uses (`MAXNS` of resolv.conf(5); Kubernetes' `MaxDNSNameservers`).
pub const MAX_NAMESERVERS: usize = 3;
/// The most search domains (Kubernetes' `MaxDNSSearchPaths`).
pub const MAX_SEARCHES: usize = 32;
/// The longest search list, with its spaces (Kubernetes' `MaxDNSSearchListChars`).
pub const MAX_SEARCH_CHARS: usize = 2048;
/// The longest host name (`HOST_NAME_MAX` is 64 with the final NUL; Kubernetes' `hostnameMaxLen`).
pub const MAX_HOSTNAME_CHARS: usize = 63;

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

/// Who a pod is on the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName {
    /// What `hostname` says.
    pub short: String,
    /// With `subdomain`: `<short>.<subdomain>.<namespace>.svc.<cluster domain>`.
    pub fqdn: Option<String>,
}

impl HostName {
    /// A pod's host name: `spec.hostname`, else the pod's name cut to 63 characters.
    pub fn of_pod(
        pod_name: &str,
        hostname: Option<&str>,
        subdomain: Option<&str>,
        namespace: &str,
        cluster_domain: &str,
    ) -> HostName {
        let wanted = hostname.filter(|name| !name.is_empty()).unwrap_or(pod_name);
        let cut: String = wanted.chars().take(MAX_HOSTNAME_CHARS).collect();
        let short = cut.trim_end_matches(['-', '.']).to_string();
        let fqdn = subdomain
            .filter(|name| !name.is_empty())
            .map(|subdomain| format!("{short}.{subdomain}.{namespace}.svc.{cluster_domain}"));
        HostName { short, fqdn }
    }

    /// The text of `/etc/hostname`.
    pub fn file(&self) -> String {
        format!("{}\n", self.short)
    }
}

/// The text of `/etc/hosts` of a pod with a network namespace of its own.
pub fn hosts(name: &HostName, addresses: &[IpAddr], aliases: &[HostAlias]) -> String {
    let mut text = String::from(
        "# Made by Podling for this pod.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    for address in addresses {
        match &name.fqdn {
            Some(fqdn) => push_line(&mut text, &format!("{address}\t{fqdn}\t{}", name.short)),
            None => push_line(&mut text, &format!("{address}\t{}", name.short)),
        }
    }
    push_aliases(&mut text, aliases);
    text
}

/// The text of `/etc/hosts` of a pod in the host's network: the host's own file and the pod's aliases.
pub fn hosts_of_host_network(host_file: &str, aliases: &[HostAlias]) -> String {
    let mut text = String::from("# The host's file, read by Podling when this pod was made.\n");
    text.push_str(host_file);
    if !text.ends_with('\n') {
        text.push('\n');
    }
    push_aliases(&mut text, aliases);
    text
}

fn push_aliases(text: &mut String, aliases: &[HostAlias]) {
    if aliases.is_empty() {
        return;
    }
    text.push_str("\n# hostAliases\n");
    for alias in aliases {
        let names = alias.hostnames.as_deref().unwrap_or_default();
        if !names.is_empty() {
            push_line(text, &format!("{}\t{}", alias.ip, names.join("\t")));
        }
    }
}

fn push_line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
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
        let conf = ResolvConf::parse(&read(Path::new(HOST_RESOLV_CONF))?);
        if conf.nameservers.iter().any(|server| !is_loopback(server)) {
            return Ok(conf.without_loopback());
        }
        let upstream = ResolvConf::parse(&read(Path::new(RESOLVED_UPSTREAM))?);
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
