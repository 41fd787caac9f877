//! A pod's place on the network: a namespace with addresses, or the host's.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use podling_runtime::pod::plan::NetworkPlan;

use super::context::Context;
use super::worker::Step;
use crate::network::files::{self, HostName};
use crate::network::resolv_conf::{self, DnsPolicy, ResolvConf};
use crate::network::{AttachSpec, HostPort, Protocol};
use podling_runtime::chain;

/// What a pod got of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// For the plan.
    pub plan: NetworkPlan,
    /// For the status and the downward API.
    pub pod_ips: Vec<IpAddr>,
}

impl Connection {
    /// Gives the pod its network. Idempotent.
    pub(super) async fn make(context: &Context, uid: &str, pod: &Pod) -> Step<Self> {
        let spec = pod.spec.clone().unwrap_or_default();
        if spec.host_network == Some(true) {
            return Ok(Self {
                plan: NetworkPlan::Host {
                    probe_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
                },
                pod_ips: vec![context.host_ip],
            });
        }
        let attachment = context
            .network
            .attach(
                uid,
                AttachSpec {
                    pod: display_name(pod),
                    host_ports: host_ports(&spec),
                },
            )
            .await
            .map_err(|error| ("NetworkNotReady", chain(&error)))?;
        Ok(Self {
            plan: NetworkPlan::Namespace {
                path: attachment.netns,
                addresses: attachment.addresses.clone(),
            },
            pod_ips: attachment.addresses,
        })
    }
}

/// `namespace/name`.
fn display_name(pod: &Pod) -> String {
    let metadata = &pod.metadata;
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    format!(
        "{namespace}/{}",
        metadata.name.as_deref().unwrap_or_default()
    )
}

/// The host's ports that lead to the pod.
fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let all = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers);
    all.flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            Some(HostPort {
                host_ip: port
                    .host_ip
                    .as_deref()
                    .and_then(|ip| ip.parse().ok())
                    .filter(|ip: &Ipv4Addr| !ip.is_unspecified()),
                host_port: u16::try_from(port.host_port?)
                    .ok()
                    .filter(|port| *port > 0)?,
                container_port: u16::try_from(port.container_port).ok()?,
                protocol: match port.protocol.as_deref() {
                    Some("UDP") => Protocol::Udp,
                    _ => Protocol::Tcp,
                },
            })
        })
        .collect()
}

/// The pod's host name.
pub(super) fn host_name(context: &Context, pod: &Pod) -> HostName {
    let spec = pod.spec.clone().unwrap_or_default();
    if spec.host_network == Some(true) && spec.hostname.is_none() {
        return HostName {
            short: rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
            fqdn: None,
        };
    }
    HostName::of_pod(
        pod.metadata.name.as_deref().unwrap_or_default(),
        spec.hostname.as_deref(),
        spec.subdomain.as_deref(),
        pod.metadata.namespace.as_deref().unwrap_or_default(),
        &context.config.dns.cluster_domain,
    )
}

/// The texts of `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`.
pub(super) fn texts(context: &Context, pod: &Pod, connection: &Connection) -> Step<[String; 3]> {
    let spec = pod.spec.clone().unwrap_or_default();
    let name = host_name(context, pod);
    let aliases = spec.host_aliases.clone().unwrap_or_default();
    let host_network = spec.host_network == Some(true);
    let hosts = if host_network {
        let host_file = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        files::hosts_of_host_network(&host_file, &aliases)
    } else {
        files::hosts(&name, &connection.pod_ips, &aliases)
    };
    let resolver = |error: resolv_conf::Error| ("DNSConfigForming", chain(&error));
    let policy = DnsPolicy::parse(spec.dns_policy.as_deref()).map_err(resolver)?;
    let configured: &Path = &context.config.dns.resolv_conf;
    let host = if policy == DnsPolicy::None {
        ResolvConf::default()
    } else if host_network {
        ResolvConf::of_host_unchanged().map_err(resolver)?
    } else {
        ResolvConf::of_host_file(configured).map_err(resolver)?
    };
    let conf = ResolvConf::of_pod(policy, &host, spec.dns_config.as_ref()).map_err(resolver)?;
    Ok([hosts, name.file(), conf.file()])
}
