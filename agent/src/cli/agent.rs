//! `podling agent`: the node, until it is told to stop.

use std::io::ErrorKind;
use std::path::PathBuf;

use clap::Args;
use jiff::Timestamp;
use podling_images::StoreError as ImageStoreError;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::dirs::DirectoryArgs;
use super::{CommandError, Exit, log};
use crate::api::{NodeInfo, Server};
use crate::network::Error as NetworkError;
use crate::node::config::{DEFAULT_MANIFEST_DIR, EtcdConfig};
use crate::node::{Config, Node, NodeError, NodeHandle, Options, Shutdown};
use crate::store::{DiskError, Kind, StoreError};

/// Run the node: take manifests from a directory or etcd, and keep what they say running
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  podling agent                                  as configured in /etc/podling/config.yaml
  podling agent --manifests ./pods --data-dir ./data --run-dir ./run
  podling agent --etcd https://10.0.0.1:2379 --etcd-prefix /podling/nodes/a/ --etcd-ca ca.pem

Options here win over the configuration file. SIGTERM and ctrl-C end the agent and leave the pods running; the next \
agent takes them over. `podling run` is the one that stops what it started.")]
pub struct AgentArgs {
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
    /// What to log: error, warn, info, debug, trace, or a filter such as info,podling_agent::node=debug [default: info]
    #[arg(
        long,
        value_name = "FILTER",
        env = "PODLING_LOG",
        hide_env_values = true
    )]
    pub log: Option<String>,
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

pub(super) fn run(args: AgentArgs, directories: &DirectoryArgs) -> Result<Exit, CommandError> {
    let config = directories.configuration_with(|config| args.lay_over(config))?;
    log::to_journal_or_stderr(args.log.as_deref().unwrap_or("info"))?;
    runtime()?.block_on(keep(config))
}

/// The threads that a node runs on: two, for what one pod's files make wait must not hold up another's.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, CommandError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|e| CommandError::new("cannot start threads").because(e))
}

impl AgentArgs {
    fn lay_over(&self, config: &mut Config) {
        if let Some(parent) = &self.cgroup_parent {
            config.cgroup_parent.clone_from(parent);
        }
        if self.node_name.is_some() {
            config.node_name.clone_from(&self.node_name);
        }
        if self.pod_cidr.is_some() {
            config.network.pod_cidr.clone_from(&self.pod_cidr);
        }
        if self.bridge.is_some() {
            config.network.bridge.clone_from(&self.bridge);
        }
        if !self.manifests.is_empty() {
            config.manifests.clone_from(&self.manifests);
        }
        self.etcd.lay_over(config);
        if config.manifests.is_empty() && config.etcd.is_none() {
            config.manifests.push(DEFAULT_MANIFEST_DIR.into());
        }
    }
}

impl EtcdArgs {
    fn lay_over(&self, config: &mut Config) {
        if self.endpoints.is_empty() {
            return;
        }
        config.etcd = Some(EtcdConfig {
            endpoints: self.endpoints.clone(),
            prefix: self
                .prefix
                .clone()
                .unwrap_or_else(EtcdConfig::default_prefix),
            ca_file: self.ca.clone(),
            cert_file: self.cert.clone(),
            key_file: self.key.clone(),
            username: self.user.clone(),
            password_file: self.password_file.clone(),
        });
    }
}

/// Runs the node until it is told to stop.
async fn keep(config: Config) -> Result<Exit, CommandError> {
    let signal =
        |kind| signal(kind).map_err(|e| CommandError::new("cannot listen to signals").because(e));
    // Before anything is started: a signal that comes early is not lost.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let node = Node::start(config, Options::default())
        .await
        .map_err(cannot_start)?;
    let api = LocalApi::start(&node)?;
    let info = api.info.clone();
    tracing::info!(node = info.node, version = info.version, sources = ?info.sources, "ready");
    tell(podling_systemd::service::ready(&format!(
        "{} pods",
        node.store().list(Kind::Pod).len()
    )));
    let mut alive = podling_systemd::service::watchdog_interval().map(tokio::time::interval);
    loop {
        let tick = async {
            match &mut alive {
                Some(interval) => interval.tick().await,
                None => std::future::pending().await,
            }
        };
        // All are cancel-safe.
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = tick => tell(podling_systemd::service::watchdog()),
        }
    }
    tracing::info!("stopping; pods go on");
    tell(podling_systemd::service::stopping("pods go on"));
    api.stop().await;
    node.shutdown(Shutdown::LeavePods)
        .await
        .map_err(|e| CommandError::new("the node did not stop cleanly").because(e))?;
    Ok(Exit::Done)
}

/// systemd not hearing is worth a line, not an end.
fn tell(said: std::io::Result<()>) {
    if let Err(error) = said {
        tracing::warn!(%error, "cannot tell systemd");
    }
}

/// What can be done about a node that does not start.
pub(super) fn cannot_start(e: NodeError) -> CommandError {
    let hint = if rustix::process::geteuid().is_root() {
        remedy(&e)
    } else {
        Some("a node needs root: try with sudo")
    };
    let error = CommandError::new("the node cannot start").because(e);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// What root can do about it, where the error itself does not say it.
fn remedy(e: &NodeError) -> Option<&'static str> {
    match e {
        NodeError::Running { .. } => Some("`podling status` asks the one that runs"),
        NodeError::Directory { .. } | NodeError::Lock { .. } => {
            Some("--run-dir and --data-dir must be directories that can be written to")
        }
        NodeError::Store(StoreError::Disk(DiskError::InUse(_))) => Some(
            "another agent uses this data directory; give each its own --run-dir and --data-dir",
        ),
        NodeError::Store(StoreError::Disk(DiskError::Open { .. } | DiskError::Commit { .. })) => {
            Some("--data-dir must be on a file system with space that can be written to")
        }
        NodeError::Images(e) => images_remedy(e),
        NodeError::Network(NetworkError::Kernel { .. })
        | NodeError::Scrub(_)
        | NodeError::Cgroups(_)
        | NodeError::Supervisor(_)
        | NodeError::Systemd(_) => Some("`podling check` shows what this machine lacks"),
        // They name what to change.
        NodeError::Config(_)
        | NodeError::CgroupParent { .. }
        | NodeError::Store(_)
        | NodeError::Network(_)
        | NodeError::NoSystemd
        | NodeError::Source { .. } => None,
    }
}

/// What helps where the image store cannot be opened: its other errors name what to do.
fn images_remedy(e: &ImageStoreError) -> Option<&'static str> {
    let ImageStoreError::Io { source, .. } = e else {
        return None;
    };
    match source.kind() {
        ErrorKind::StorageFull
        | ErrorKind::QuotaExceeded
        | ErrorKind::ReadOnlyFilesystem
        | ErrorKind::PermissionDenied => {
            Some("--data-dir must be on a file system with space that can be written to")
        }
        _ => Some(
            "the image store is damaged there: check its file system, then move what is named aside and start again",
        ),
    }
}

/// The API of a node in this process.
pub(super) struct LocalApi {
    pub(super) info: NodeInfo,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl LocalApi {
    pub(super) fn start(node: &NodeHandle) -> Result<Self, CommandError> {
        let config = node.config();
        let mut sources: Vec<String> = config
            .manifests
            .iter()
            .map(|p| p.display().to_string())
            .collect();
        if let Some(etcd) = &config.etcd {
            sources.push(format!(
                "etcd {} below {}",
                etcd.endpoints.join(" "),
                etcd.prefix
            ));
        }
        let info = NodeInfo {
            node: config.node_name(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: Timestamp::now(),
            pid: std::process::id(),
            sources,
            run_dir: config.run_dir.clone(),
            data_dir: config.data_dir.clone(),
            log_dir: config.log_dir(),
            pinned_images: config.images.pinned.clone(),
        };
        let waits = {
            let node = node.clone();
            Box::new(move |namespace: &str, name: &str| {
                node.why(namespace, name).unwrap_or_default()
            })
        };
        let server = Server::bind(&config.run_dir, node.store().clone(), info.clone(), waits)
            .map_err(|e| CommandError::new("cannot serve the local API").because(e))?;
        let stop = CancellationToken::new();
        let task = tokio::spawn(server.serve(stop.clone().cancelled_owned()));
        Ok(Self { info, stop, task })
    }

    pub(super) async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::warn!(%error, "the local API did not end well");
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command};
    use super::*;

    fn configured(arguments: &[&str]) -> Config {
        let cli = Cli::try_parse_from([&["podling", "agent"], arguments].concat())
            .expect("a command line");
        let Command::Agent(args) = cli.command else {
            panic!("not the agent");
        };
        let mut config = Config::default();
        args.lay_over(&mut config);
        config
    }

    #[test]
    fn options_win_over_the_file_and_the_default_directory_is_only_for_a_node_without_sources() {
        assert_eq!(
            configured(&[]).manifests,
            [PathBuf::from(DEFAULT_MANIFEST_DIR)]
        );
        let config = configured(&[
            "--etcd",
            "http://e:2379",
            "--cgroup-parent",
            "/r",
            "--pod-cidr",
            "10.9.0.0/24",
        ]);
        assert!(config.manifests.is_empty());
        assert_eq!(config.cgroup_parent, PathBuf::from("/r"));
        assert_eq!(config.network.pod_cidr.as_deref(), Some("10.9.0.0/24"));
        assert_eq!(config.etcd.map(|e| e.prefix), Some("/podling/".to_owned()));
    }

    #[test]
    fn the_hint_for_an_image_store_that_cannot_be_opened_fits_the_cause() {
        let hint = |kind: ErrorKind| {
            images_remedy(&ImageStoreError::Io {
                action: "make",
                path: "/data/images/locks".into(),
                source: kind.into(),
            })
        };
        let full = hint(ErrorKind::StorageFull).expect("a hint");
        assert!(full.contains("with space"), "{full}");
        let damaged = hint(ErrorKind::NotADirectory).expect("a hint");
        assert!(damaged.contains("damaged"), "{damaged}");
        let told = ImageStoreError::Damaged {
            path: "/data/images/index.json".into(),
            what: "not JSON".to_owned(),
        };
        assert_eq!(images_remedy(&told), None);
    }

    #[test]
    fn options_of_etcd_need_etcd() {
        assert!(Cli::try_parse_from(["podling", "agent", "--etcd-ca", "x"]).is_err());
    }
}
