//! Start and end of a node.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use podling_images::{ImageStore, PullOptions};
use podling_runtime::cgroup;
use podling_systemd::Systemd;

use super::config::CgroupDriver;
use super::garbage::{Collection, Garbage};
use super::handle::{NodeHandle, Options, Shutdown};
use super::scrub::Scrub;
use super::{Config, NodeError, Wait};
use crate::network::{Network, NetworkConfig};
use crate::pod::context::Context;
use crate::pod::resources::Capacity;
use crate::pod::supervisor::Program;
use crate::store::{Key, Store};

/// The running node.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) context: Arc<Context>,
    dispatcher: super::dispatcher::Handle,
    sources: Mutex<super::sources::Sources>,
    _collection: Collection,
    /// Ends with the node.
    _scrub: Option<Scrub>,
    /// Held as long as the node runs; the kernel lets go of it whatever happens.
    _lock: File,
    /// The same, for the cgroup below which its pods live; none where systemd makes their cgroups.
    _cgroup: Option<File>,
}

pub(super) async fn start(config: Config, options: Options) -> Result<NodeHandle, NodeError> {
    let config = config.resolve()?;
    for dir in [
        &config.data_dir,
        &config.run_dir,
        &config.pods_run_dir(),
        &config.pods_data_dir(),
    ] {
        ensure_private_dir(dir)?;
    }
    let lock = lock(&config)?;
    let supervisor = Program::open(config.supervisor_path()?)?;
    let node_name = config.node_name();
    let uid_seed = options
        .uid_seed
        .clone()
        .unwrap_or_else(|| config.uid_seed());
    let store = Store::open_seeded(&config.store_path(), &node_name, &uid_seed)?;
    let images = ImageStore::open(&config.images_dir())?.with_kept_blobs(config.images.keep_blobs);
    let network = Network::open(NetworkConfig {
        bridge: config.network.bridge.clone(),
        pod_cidr: config.network.pod_cidr.clone(),
        data_dir: config.data_dir.clone(),
        run_dir: config.run_dir.clone(),
    })
    .await?;
    for warning in network.warnings() {
        tracing::warn!("{warning}");
    }
    let layout = cgroup::Layout::detect()?;
    let systemd = systemd(&config, &layout).await?;
    let cgroup = match systemd {
        Some(_) => None,
        None => Some(claim_cgroup(&config.cgroup_parent, &layout)?),
    };
    let context = Arc::new(Context {
        pulls: tokio::sync::Semaphore::new(config.parallel_pulls),
        host_ip: crate::network::host_address(),
        node_name,
        capacity: Capacity::of_machine(),
        min_oom_score_adj: super::machine::min_oom_score_adj(),
        demo_image: tokio::sync::Mutex::new(()),
        garbage: Garbage::default(),
        waits: Mutex::new(HashMap::new()),
        systemd,
        supervisor,
        layout,
        store: store.clone(),
        images,
        network,
        config,
    });
    // The store still holds what the sources said last: pods are taken over before any source has answered.
    let dispatcher = super::dispatcher::spawn(Arc::clone(&context)).await;
    let sources = super::sources::start(&context.config, &options, &store)?;
    // Only now is known which images are needed.
    let collection = Collection::begin(&context);
    let scrub = scrub(&context)?;
    Ok(NodeHandle {
        inner: Arc::new(Inner {
            context,
            dispatcher,
            sources: Mutex::new(sources),
            _collection: collection,
            _scrub: scrub,
            _lock: lock,
            _cgroup: cgroup,
        }),
    })
}

impl Inner {
    pub(super) fn why(&self, namespace: &str, name: &str) -> Option<Vec<Wait>> {
        let object = self.context.store.get(&Key::pod(namespace, name))?;
        let waits = self
            .context
            .waits
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Some(waits.get(&object.uid).cloned().unwrap_or_default())
    }

    pub(super) async fn shutdown(&self, mode: Shutdown) -> Result<(), NodeError> {
        self.sources
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .stop();
        self.dispatcher.shutdown(mode).await;
        match mode {
            Shutdown::LeavePods => Ok(()),
            Shutdown::TerminatePods => {
                self.context.network.close().await?;
                self.context.remove_cgroups();
                Ok(())
            }
        }
    }
}

/// Begins the check of images in the background, where it is configured.
fn scrub(context: &Context) -> Result<Option<Scrub>, NodeError> {
    let config = &context.config;
    let options = PullOptions {
        registries: super::registries::settings(config),
        platform: config.platform(),
        ..PullOptions::default()
    };
    super::scrub::begin(
        &context.images,
        &context.store,
        &config.images.scrub,
        &config.data_dir,
        options,
    )
    .map_err(NodeError::Scrub)
}

/// Connects to systemd where pods are to get scopes.
async fn systemd(config: &Config, layout: &cgroup::Layout) -> Result<Option<Systemd>, NodeError> {
    match config.cgroup_driver {
        CgroupDriver::Cgroupfs => Ok(None),
        // Delegation needs the one hierarchy.
        CgroupDriver::Auto if !layout.is_v2() => Ok(None),
        CgroupDriver::Auto => Ok(Systemd::connect().await?),
        CgroupDriver::Systemd => Ok(Some(Systemd::connect().await?.ok_or(NodeError::NoSystemd)?)),
    }
}

/// Makes the cgroup of all pods, and keeps other agents off it: of two, each would give the classes of pods their shares
/// of the CPU by its own pods alone. The lock is on the cgroup itself, whatever mounts it is seen through.
fn claim_cgroup(parent: &Path, layout: &cgroup::Layout) -> Result<File, NodeError> {
    let cgroup = cgroup::Cgroup::create(layout, parent)?;
    let dir = cgroup
        .controller_dir("cpu")
        .or_else(|| cgroup.controller_dir("memory"))
        .ok_or(NodeError::Cgroups(cgroup::Error::NotMounted))?;
    let failed = |source| NodeError::Lock {
        path: dir.to_owned(),
        source,
    };
    let file = File::open(dir).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(NodeError::CgroupParent {
            cgroup: parent.to_owned(),
        }),
        Err(std::fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Makes a directory that only root can look into.
fn ensure_private_dir(path: &Path) -> Result<(), NodeError> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    let error = |source| NodeError::Directory {
        path: path.to_owned(),
        source,
    };
    if path.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(path)
        .map_err(error)?;
    // The umask may have taken bits away.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o711)).map_err(error)
}

fn lock(config: &Config) -> Result<File, NodeError> {
    let path = config.lock_path();
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| NodeError::Lock {
            path: path.clone(),
            source,
        })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(NodeError::Running {
            run_dir: config.run_dir.clone(),
        }),
        Err(std::fs::TryLockError::Error(source)) => Err(NodeError::Lock { path, source }),
    }
}
