//! What all pod workers of a node share.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use podling_images::ImageStore;
use podling_runtime::cgroup::{Cgroup, Layout};
use tokio::sync::Semaphore;

use super::env::Objects;
use super::resources::{Capacity, Qos};
use super::supervisor::Program;
use crate::network::Network;
use crate::node::garbage::Garbage;
use crate::node::{Config, Wait};
use crate::store::{Key, Kind, Store};

/// What all pod workers of a node share.
#[derive(Debug)]
pub struct Context {
    /// The node's configuration, resolved.
    pub config: Config,
    /// Desired state in, status out.
    pub store: Store,
    /// The images.
    pub images: ImageStore,
    /// The pod network.
    pub network: Network,
    /// How cgroups are mounted.
    pub layout: Layout,
    /// systemd, where pods get scopes.
    pub systemd: Option<podling_systemd::Systemd>,
    /// The supervisor's program.
    pub supervisor: Program,
    /// The node's name.
    pub node_name: String,
    /// The node's address.
    pub host_ip: IpAddr,
    /// What the machine has.
    pub capacity: Capacity,
    /// The lowest OOM score that the agent may give.
    pub min_oom_score_adj: i32,
    /// One permit for each pull that may run at once.
    pub pulls: Semaphore,
    /// Held while the demo image is made, so that many pods at once make it once.
    pub demo_image: tokio::sync::Mutex<()>,
    /// Tells the collector of unneeded images, and keeps it off.
    pub garbage: Garbage,
    /// What each pod waits for, by UID; written by its worker alone.
    pub waits: Mutex<HashMap<String, Vec<Wait>>>,
}

impl Context {
    /// The supervisor's directory of a pod.
    #[must_use]
    pub fn run_dir(&self, uid: &str) -> PathBuf {
        self.config.pods_run_dir().join(uid)
    }

    /// The directory of a pod's volumes and writable layers.
    #[must_use]
    pub fn data_dir(&self, uid: &str) -> PathBuf {
        self.config.pods_data_dir().join(uid)
    }

    /// The directory of a pod's logs.
    #[must_use]
    pub fn log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.config
            .log_dir()
            .join(format!("{namespace}_{name}_{uid}"))
    }

    /// Says what a pod waits for.
    pub fn set_waits(&self, uid: &str, waits: Vec<Wait>) {
        let mut all = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        if waits.is_empty() {
            all.remove(uid);
        } else {
            all.insert(uid.to_owned(), waits);
        }
    }

    /// A pod's possible cgroups, one for each class: what a pod whose manifest is gone may have left.
    #[must_use]
    pub fn pod_cgroups(&self, uid: &str) -> [Cgroup; 3] {
        [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort].map(|class| {
            let path = class.pod_cgroup(&self.config.cgroup_parent, uid);
            Cgroup::open(&self.layout, &path)
        })
    }

    /// Removes the cgroups of all pods, for a node that ends for good.
    pub fn remove_cgroups(&self) {
        let parent: &Path = &self.config.cgroup_parent;
        for path in [
            Qos::Burstable.cgroup(parent),
            Qos::BestEffort.cgroup(parent),
            parent.join("supervisors"),
            parent.to_owned(),
        ] {
            if let Err(error) = Cgroup::open(&self.layout, &path).delete() {
                tracing::debug!(cgroup = %path.display(), %error, "cgroup stays");
            }
        }
    }

    /// The ConfigMaps and Secrets of a namespace.
    #[must_use]
    pub fn objects(&self, namespace: &str) -> NamespaceObjects {
        NamespaceObjects {
            store: self.store.clone(),
            namespace: namespace.to_owned(),
        }
    }
}

/// The ConfigMaps and Secrets of one namespace.
#[derive(Debug)]
pub struct NamespaceObjects {
    store: Store,
    namespace: String,
}

impl Objects for NamespaceObjects {
    fn config_map(&self, name: &str) -> Option<Arc<ConfigMap>> {
        let object = self
            .store
            .get(&Key::new(Kind::ConfigMap, &self.namespace, name))?;
        object.config_map().cloned()
    }

    fn secret(&self, name: &str) -> Option<Arc<Secret>> {
        let object = self
            .store
            .get(&Key::new(Kind::Secret, &self.namespace, name))?;
        object.secret().cloned()
    }
}
