//! What concerns a pod as a whole.

use std::collections::BTreeSet;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{PodDNSConfig, PodSecurityContext, PodSpec};

use super::{Faults, container, text, volume};

/// A pod's spec, for the node of this name.
pub(super) fn spec(spec: &PodSpec, node_name: &str, faults: &mut Faults) {
    let policies = ["Always", "OnFailure", "Never"];
    faults.one_of(
        "spec.restartPolicy",
        spec.restart_policy.as_deref(),
        &policies,
    );
    let policies = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    faults.one_of("spec.dnsPolicy", spec.dns_policy.as_deref(), &policies);
    let grace = spec.termination_grace_period_seconds;
    faults.between("spec.terminationGracePeriodSeconds", grace, 0, i64::MAX);
    let most = i64::from(i32::MAX);
    faults.between(
        "spec.activeDeadlineSeconds",
        spec.active_deadline_seconds,
        1,
        most,
    );
    if let Some(wanted) = spec.node_name.as_deref().filter(|name| !name.is_empty())
        && wanted != node_name
    {
        faults.add_with(
            "spec.nodeName",
            format!("the pod is for node `{wanted}`, this is `{node_name}`"),
            "remove the field, or give the manifest to that node",
        );
    }
    names(spec, faults);
    dns(spec, faults);
    for (at, secret) in spec.image_pull_secrets.iter().flatten().enumerate() {
        if secret.name.is_empty() {
            faults.add(format!("spec.imagePullSecrets[{at}].name"), "required");
        }
    }
    for (at, alias) in spec.host_aliases.iter().flatten().enumerate() {
        let path = format!("spec.hostAliases[{at}]");
        if alias.ip.parse::<IpAddr>().is_err() {
            faults.add(
                format!("{path}.ip"),
                format!("`{}` is not an address", alias.ip),
            );
        }
        for (at, name) in alias.hostnames.iter().flatten().enumerate() {
            if let Err(message) = text::dns_subdomain(name) {
                faults.add(format!("{path}.hostnames[{at}]"), message);
            }
        }
    }
    if spec.share_process_namespace == Some(true) && spec.host_pid == Some(true) {
        let message = "not together with hostPID";
        faults.add("spec.shareProcessNamespace", message);
    }
    if let Some(context) = &spec.security_context {
        security(context, spec, faults);
    }
    volume::volumes(spec, faults);
    container::containers(spec, faults);
}

fn names(spec: &PodSpec, faults: &mut Faults) {
    for (path, name) in [
        ("spec.hostname", spec.hostname.as_deref()),
        ("spec.subdomain", spec.subdomain.as_deref()),
    ] {
        if let Some(name) = name.filter(|name| !name.is_empty())
            && let Err(message) = text::dns_label(name)
        {
            faults.add(path, message);
        }
    }
}

fn dns(spec: &PodSpec, faults: &mut Faults) {
    let empty = PodDNSConfig::default();
    let config = spec.dns_config.as_ref().unwrap_or(&empty);
    let servers = config.nameservers.as_deref().unwrap_or_default();
    if spec.dns_policy.as_deref() == Some("None") && servers.is_empty() {
        let message = "dnsPolicy None needs at least one name server";
        faults.add("spec.dnsConfig.nameservers", message);
    }
    // The limits of the API: 3 servers as in resolv.conf(5), 32 search domains of 2048 characters.
    if servers.len() > 3 {
        faults.add("spec.dnsConfig.nameservers", "at most 3 are allowed");
    }
    for (at, server) in servers.iter().enumerate() {
        if server.parse::<IpAddr>().is_err() {
            let path = format!("spec.dnsConfig.nameservers[{at}]");
            faults.add(path, format!("`{server}` is not an address"));
        }
    }
    let searches = config.searches.as_deref().unwrap_or_default();
    let total: usize = searches.iter().map(|search| search.len() + 1).sum();
    if searches.len() > 32 || total > 2048 {
        faults.add(
            "spec.dnsConfig.searches",
            "at most 32, of 2048 characters, are allowed",
        );
    }
    for (at, search) in searches.iter().enumerate() {
        // `.` means: no domain. Underscores are common in search domains.
        let name = search.strip_suffix('.').unwrap_or(search).replace('_', "-");
        if search != "." && text::dns_subdomain(&name).is_err() {
            let path = format!("spec.dnsConfig.searches[{at}]");
            faults.add(path, format!("`{search}` is not a DNS name"));
        }
    }
    for (at, option) in config.options.iter().flatten().enumerate() {
        let path = format!("spec.dnsConfig.options[{at}]");
        let name = option.name.as_deref().unwrap_or_default();
        let value = option.value.as_deref().unwrap_or_default();
        let bad = |text: &str| text.chars().any(|c| c.is_whitespace() || c.is_control());
        if name.is_empty() || bad(name) || bad(value) {
            faults.add(
                path,
                "an option is a word, with an optional word as its value",
            );
        }
    }
}

fn security(context: &PodSecurityContext, spec: &PodSpec, faults: &mut Faults) {
    let path = "spec.securityContext";
    let most = i64::from(i32::MAX);
    faults.between(&format!("{path}.runAsUser"), context.run_as_user, 0, most);
    faults.between(&format!("{path}.runAsGroup"), context.run_as_group, 0, most);
    faults.between(&format!("{path}.fsGroup"), context.fs_group, 0, most);
    for (at, group) in context.supplemental_groups.iter().flatten().enumerate() {
        faults.between(
            &format!("{path}.supplementalGroups[{at}]"),
            Some(*group),
            0,
            most,
        );
    }
    let policy = context.supplemental_groups_policy.as_deref();
    faults.one_of(
        &format!("{path}.supplementalGroupsPolicy"),
        policy,
        &["Merge", "Strict"],
    );
    container::seccomp(path, context.seccomp_profile.as_ref(), faults);
    container::app_armor(path, context.app_armor_profile.as_ref(), faults);
    let mut seen = BTreeSet::new();
    for (at, sysctl) in context.sysctls.iter().flatten().enumerate() {
        let path = format!("{path}.sysctls[{at}].name");
        let name = sysctl.name.replace('/', ".");
        if !seen.insert(name.clone()) {
            faults.add(&path, format!("`{name}` is there twice"));
        }
        match sysctl_namespace(&sysctl.name) {
            None => faults.add(
                path,
                format!(
                    "`{}` belongs to the whole machine, not to a pod",
                    sysctl.name
                ),
            ),
            Some("network") if spec.host_network == Some(true) => {
                faults.add(
                    path,
                    "the pod uses the host's network, whose settings it may not change",
                );
            }
            Some("ipc") if spec.host_ipc == Some(true) => {
                faults.add(
                    path,
                    "the pod uses the host's IPC, whose settings it may not change",
                );
            }
            Some(_) => {}
        }
    }
}

/// The namespace that a kernel parameter belongs to: the list of Kubernetes (`pkg/kubelet/sysctl/namespace.go`).
fn sysctl_namespace(name: &str) -> Option<&'static str> {
    let name = name.replace('/', ".");
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
    if !name.bytes().all(plain) || name.split('.').any(str::is_empty) {
        return None;
    }
    let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."];
    if name == "kernel.sem" || ipc.iter().any(|prefix| name.starts_with(prefix)) {
        Some("ipc")
    } else if name.starts_with("net.") {
        Some("network")
    } else {
        None
    }
}
