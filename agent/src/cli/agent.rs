//! `podling agent`: the node, until it is told to stop.

use std::path::PathBuf;

use clap::Args;

use super::dirs::DirectoryArgs;
use super::{CommandError, Exit};

/// Read if it is there and none is named.
pub(super) const DEFAULT_CONFIG: &str = "/etc/podling/config.yaml";

/// Run the node: take manifests from a directory or etcd, and keep what they say running
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podling agent                                  as configured in /etc/podling/config.yaml
  podling agent --manifests ./pods --data-dir ./data --run-dir ./run
  podling agent --etcd https://10.0.0.1:2379 --etcd-prefix /podling/nodes/a/ --etcd-ca ca.pem

Options here win over the configuration file. SIGTERM and ctrl-C end the agent and leave the pods running; the next
agent takes them over. `podling run` is the one that stops what it started.")]
pub struct AgentArgs {
    /// The configuration file [default: /etc/podling/config.yaml, if there is one]
    #[arg(
        long,
        value_name = "FILE",
        env = "PODLING_CONFIG",
        hide_env_values = true
    )]
    pub config: Option<PathBuf>,
    /// A directory of manifests: every *.yaml, *.yml and *.json in it [default: /etc/podling/manifests]
    #[arg(long, value_name = "DIR")]
    pub manifests: Vec<PathBuf>,
    /// The node's name [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Where pods' addresses are taken from, such as 10.88.0.0/16
    #[arg(long, value_name = "CIDR")]
    pub pod_cidr: Option<String>,
    /// The name of the pods' bridge
    #[arg(long, value_name = "NAME")]
    pub bridge: Option<String>,
    /// Where pods' cgroups are made, such as /podling
    #[arg(long, value_name = "PATH")]
    pub cgroup_parent: Option<PathBuf>,
    /// What to log: error, warn, info, debug, trace, or a filter such as info,podling_agent::node=debug
    #[arg(
        long,
        value_name = "FILTER",
        env = "PODLING_LOG",
        default_value = "info",
        hide_env_values = true
    )]
    pub log: String,
    #[command(flatten)]
    pub etcd: EtcdArgs,
}

/// A control plane's etcd.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Manifests from etcd")]
pub struct EtcdArgs {
    /// An endpoint; give it once for each member
    #[arg(long = "etcd", value_name = "URL")]
    pub endpoints: Vec<String>,
    /// Keys below this are manifests
    #[arg(long = "etcd-prefix", value_name = "PREFIX", requires = "endpoints")]
    pub prefix: Option<String>,
    /// The authority that signed the servers' certificates
    #[arg(long = "etcd-ca", value_name = "FILE", requires = "endpoints")]
    pub ca: Option<PathBuf>,
    /// This node's certificate
    #[arg(
        long = "etcd-cert",
        value_name = "FILE",
        requires = "endpoints",
        requires = "key"
    )]
    pub cert: Option<PathBuf>,
    /// Its key
    #[arg(long = "etcd-key", value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// A user name
    #[arg(
        long = "etcd-user",
        value_name = "NAME",
        requires = "endpoints",
        requires = "password_file"
    )]
    pub user: Option<String>,
    /// A file with its password
    #[arg(long = "etcd-password-file", value_name = "FILE", requires = "user")]
    pub password_file: Option<PathBuf>,
}

pub(super) fn run(_args: AgentArgs, _directories: &DirectoryArgs) -> Result<Exit, CommandError> {
    Err(CommandError::new("not yet"))
}
