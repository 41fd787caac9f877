//! Starting a node, talking to it, ending it.

use std::sync::Arc;

use podling_images::ImageStore;

use super::{Config, NodeError, Wait};
use crate::network::Network;
use crate::store::Store;

/// How a node runs, beyond its configuration.
#[derive(Debug, Clone)]
pub struct Options {
    /// Follow changes of manifest files; otherwise they are read once.
    pub watch: bool,
    /// What the UIDs of pods are made of, beside their names: pods of another word are other pods. None: the node's
    /// name, so that an agent finds its pods again.
    pub uid_seed: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            watch: true,
            uid_seed: None,
        }
    }
}

/// What becomes of the pods when the node ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// They go on; the next agent takes them over.
    LeavePods,
    /// They are terminated, each in its grace period, and nothing is left behind: no mount, cgroup, network
    /// namespace, address, packet filter rule, or process.
    TerminatePods,
}

/// A node. [`Node::start`] makes it run.
#[derive(Debug)]
pub struct Node;

impl Node {
    /// Starts a node: opens its stores and network, takes over the pods that run already, and follows its sources.
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When another agent runs on the same run directory, or when something that the node needs cannot be opened.
    pub async fn start(config: Config, options: Options) -> Result<NodeHandle, NodeError> {
        super::start::start(config, options).await
    }
}

/// A running node. Cheap to clone; the node goes on when all handles are dropped.
#[derive(Debug, Clone)]
pub struct NodeHandle {
    pub(super) inner: Arc<super::start::Inner>,
}

impl NodeHandle {
    /// What should run, how it is doing, and what was refused. Subscribe with [`Store::watch`].
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.inner.context.store
    }

    /// The images.
    #[must_use]
    pub fn images(&self) -> &ImageStore {
        &self.inner.context.images
    }

    /// The pod network.
    #[must_use]
    pub fn network(&self) -> &Network {
        &self.inner.context.network
    }

    /// The configuration, resolved.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.inner.context.config
    }

    /// What a pod waits for, now. None: there is no such pod.
    #[must_use]
    pub fn why(&self, namespace: &str, name: &str) -> Option<Vec<Wait>> {
        self.inner.why(namespace, name)
    }

    /// Ends the node. With [`Shutdown::TerminatePods`] it returns when all pods are gone. Asked again, it does
    /// nothing more for [`Shutdown::LeavePods`], and kills what is left without further grace for
    /// [`Shutdown::TerminatePods`].
    ///
    /// # Errors
    /// When the network cannot be taken down.
    pub async fn shutdown(&self, mode: Shutdown) -> Result<(), NodeError> {
        self.inner.shutdown(mode).await
    }
}
