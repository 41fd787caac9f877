//! A pod's `/etc/hosts` and `/etc/hostname`, as text. The rules are the kubelet's (`pkg/kubelet/kubelet_pods.go`).

use std::net::IpAddr;

use k8s_openapi::api::core::v1::HostAlias;

/// The longest host name (`HOST_NAME_MAX` is 64 with the final NUL; Kubernetes' `hostnameMaxLen`).
pub const MAX_HOSTNAME_CHARS: usize = 63;

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

pub(super) fn push_line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_is_the_pods_name_cut_to_what_the_kernel_takes() {
        let long = format!("{}-x", "a".repeat(62));
        let cut = "a".repeat(62);
        for (pod, hostname, subdomain, short, fqdn) in [
            ("web", None, None, "web", None),
            ("web", Some(""), Some(""), "web", None),
            ("web", Some("front"), None, "front", None),
            (
                "web",
                Some("front"),
                Some("shop"),
                "front",
                Some("front.shop.default.svc.cluster.local"),
            ),
            (long.as_str(), None, None, cut.as_str(), None),
        ] {
            let name = HostName::of_pod(pod, hostname, subdomain, "default", "cluster.local");
            assert_eq!(
                (name.short.as_str(), name.fqdn.as_deref()),
                (short, fqdn),
                "{pod}"
            );
        }
        assert_eq!(
            HostName::of_pod("web", None, None, "default", "cluster.local").file(),
            "web\n"
        );
    }

    #[test]
    fn a_pods_hosts_file_names_localhost_the_pod_and_its_aliases() {
        let name = HostName::of_pod("web", None, Some("shop"), "default", "cluster.local");
        let alias = HostAlias {
            ip: "192.0.2.9".to_string(),
            hostnames: Some(["db", "db.lan"].map(str::to_owned).to_vec()),
        };
        let empty = HostAlias {
            ip: "192.0.2.10".to_string(),
            hostnames: None,
        };
        let text = hosts(
            &name,
            &["10.214.0.2".parse().unwrap()],
            &[alias.clone(), empty],
        );
        for line in [
            "127.0.0.1\tlocalhost",
            "::1\tlocalhost ip6-localhost ip6-loopback",
            "10.214.0.2\tweb.shop.default.svc.cluster.local\tweb",
            "192.0.2.9\tdb\tdb.lan",
        ] {
            assert!(
                text.lines().any(|l| l == line),
                "{line:?} is not in\n{text}"
            );
        }
        assert!(!text.contains("192.0.2.10"));
        let plain = HostName {
            short: "web".to_string(),
            fqdn: None,
        };
        assert!(
            hosts(&plain, &["10.214.0.2".parse().unwrap()], &[]).ends_with("\n10.214.0.2\tweb\n")
        );
        let text = hosts_of_host_network("127.0.0.1 localhost", &[alias]);
        assert!(
            text.ends_with("127.0.0.1 localhost\n\n# hostAliases\n192.0.2.9\tdb\tdb.lan\n"),
            "{text}"
        );
    }
}
