//! What the store holds: Kubernetes objects, who wants them and where they were written.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, PodStatus, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::{Deserialize, Serialize};

/// A kind of object that the node understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// `v1/Namespace`.
    Namespace,
    /// `v1/ConfigMap`.
    ConfigMap,
    /// `v1/Secret`.
    Secret,
    /// `v1/Pod`.
    Pod,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 4] = [Kind::Namespace, Kind::ConfigMap, Kind::Secret, Kind::Pod];

    /// As in `kind:` of a manifest.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Namespace => "Namespace",
            Kind::ConfigMap => "ConfigMap",
            Kind::Secret => "Secret",
            Kind::Pod => "Pod",
        }
    }

    /// As in `apiVersion:` of a manifest.
    pub fn api_version(self) -> &'static str {
        match self {
            Kind::Namespace | Kind::ConfigMap | Kind::Secret | Kind::Pod => "v1",
        }
    }

    /// True when objects of this kind belong to a namespace.
    pub fn is_namespaced(self) -> bool {
        match self {
            Kind::Namespace => false,
            Kind::ConfigMap | Kind::Secret | Kind::Pod => true,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Names one object: kind, namespace (empty for kinds without), name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// What it is.
    pub kind: Kind,
    /// `metadata.namespace`; empty for a Namespace.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl Key {
    /// The key of an object.
    pub fn new(kind: Kind, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            kind,
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The key of a pod.
    pub fn pod(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self::new(Kind::Pod, namespace, name)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// One who puts objects into the store, as a unit: each gives full snapshots of what it wants.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Writer(String);

impl Writer {
    /// The manifest directory or file at `path`.
    pub fn directory(path: &Path) -> Self {
        Self(format!("directory {}", path.display()))
    }

    /// The etcd prefix `prefix`. Endpoints are no part of the name: they may change while the content stays.
    pub fn etcd(prefix: &str) -> Self {
        Self(format!("etcd {prefix}"))
    }

    /// For people.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where an object, or a problem, was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Origin {
    /// A document of a file.
    File {
        /// The file.
        path: PathBuf,
        /// The document in it, from 1; 0 for the file as a whole.
        document: u32,
        /// The line, from 1; 0 when it is not known.
        line: u32,
    },
    /// The value of a key in etcd.
    Etcd {
        /// The key.
        key: String,
        /// The document in the value, from 1; 0 for the value as a whole.
        document: u32,
        /// The line in the value, from 1; 0 when it is not known.
        line: u32,
    },
    /// The node's API.
    Api,
}

impl Origin {
    /// The file at `path` as a whole.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::File {
            path: path.into(),
            document: 0,
            line: 0,
        }
    }

    /// The value of `key` in etcd as a whole.
    pub fn etcd(key: impl Into<String>) -> Self {
        Self::Etcd {
            key: key.into(),
            document: 0,
            line: 0,
        }
    }

    /// The same file or key, at another place in it.
    #[must_use]
    pub fn at(&self, document: u32, line: u32) -> Self {
        match self {
            Origin::File { path, .. } => Origin::File {
                path: path.clone(),
                document,
                line,
            },
            Origin::Etcd { key, .. } => Origin::Etcd {
                key: key.clone(),
                document,
                line,
            },
            Origin::Api => Origin::Api,
        }
    }

    /// The line in the file or value, if known.
    pub fn line(&self) -> Option<u32> {
        match self {
            Origin::File { line, .. } | Origin::Etcd { line, .. } => (*line > 0).then_some(*line),
            Origin::Api => None,
        }
    }

    /// The file or key as a whole: what a writer replaces at once.
    #[must_use]
    pub fn unit(&self) -> Self {
        self.at(0, 0)
    }
}

impl fmt::Display for Origin {
    /// `path:line`, which editors and terminals turn into a link.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::File { path, .. } => write!(f, "{}", path.display())?,
            Origin::Etcd { key, .. } => write!(f, "etcd:{key}")?,
            Origin::Api => f.write_str("api")?,
        }
        match self.line() {
            Some(line) => write!(f, ":{line}"),
            None => Ok(()),
        }
    }
}

/// What an object says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", content = "object")]
pub enum Body {
    /// A pod, with defaults applied and without a status.
    Pod(Arc<Pod>),
    /// A ConfigMap.
    ConfigMap(Arc<ConfigMap>),
    /// A Secret; `stringData` is merged into `data`.
    Secret(Arc<Secret>),
    /// A Namespace.
    Namespace(Arc<Namespace>),
}

impl Body {
    /// What it is.
    pub fn kind(&self) -> Kind {
        match self {
            Body::Pod(_) => Kind::Pod,
            Body::ConfigMap(_) => Kind::ConfigMap,
            Body::Secret(_) => Kind::Secret,
            Body::Namespace(_) => Kind::Namespace,
        }
    }

    /// The metadata as written.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Body::Pod(o) => &o.metadata,
            Body::ConfigMap(o) => &o.metadata,
            Body::Secret(o) => &o.metadata,
            Body::Namespace(o) => &o.metadata,
        }
    }
}

/// An object as a writer wants it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// Which object.
    pub key: Key,
    /// Where it was written.
    pub origin: Origin,
    /// A hash of the manifest as written: equal over key order, comments and versions of Podling.
    pub hash: String,
    /// What it says.
    pub body: Body,
}

/// A deletion that was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// When it was first asked for.
    pub requested_at: Timestamp,
    /// The grace period in seconds; None: the pod's own.
    pub grace_secs: Option<u64>,
}

/// An object in the store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Object {
    /// Which object.
    pub key: Key,
    /// Stable over restarts of the agent; another for each successor of a replaced pod.
    pub uid: String,
    /// Grows with each change of any object or status, over restarts of the agent too.
    pub resource_version: u64,
    /// Grows with each change of this object's content, from 1.
    pub generation: u64,
    /// Who wants it.
    pub writer: Writer,
    /// Where it was written.
    pub origin: Origin,
    /// [`Desired::hash`].
    pub hash: String,
    /// When the store first had it.
    pub created: Timestamp,
    /// Set while a pod is being ended.
    pub deletion: Option<Deletion>,
    /// What it says.
    pub body: Body,
}

impl Object {
    /// The pod, for objects of kind Pod.
    pub fn pod(&self) -> Option<&Arc<Pod>> {
        match &self.body {
            Body::Pod(pod) => Some(pod),
            Body::ConfigMap(_) | Body::Secret(_) | Body::Namespace(_) => None,
        }
    }

    /// The ConfigMap, for objects of that kind.
    pub fn config_map(&self) -> Option<&Arc<ConfigMap>> {
        match &self.body {
            Body::ConfigMap(map) => Some(map),
            Body::Pod(_) | Body::Secret(_) | Body::Namespace(_) => None,
        }
    }

    /// The Secret, for objects of that kind.
    pub fn secret(&self) -> Option<&Arc<Secret>> {
        match &self.body {
            Body::Secret(secret) => Some(secret),
            Body::Pod(_) | Body::ConfigMap(_) | Body::Namespace(_) => None,
        }
    }

    /// The grace period that its deletion asks for, in seconds: the deletion's, else the pod's own, else 30.
    pub fn grace_secs(&self) -> u64 {
        let own = || {
            let spec = self.pod()?.spec.as_ref()?;
            spec.termination_grace_period_seconds
        };
        self.deletion
            .and_then(|deletion| deletion.grace_secs)
            .or_else(|| own().map(|secs| u64::try_from(secs).unwrap_or(0)))
            .unwrap_or(30)
    }

    /// The metadata as an API server shows it: as written, with UID, versions and times.
    pub fn metadata(&self) -> ObjectMeta {
        let mut metadata = self.body.metadata().clone();
        metadata.uid = Some(self.uid.clone());
        metadata.resource_version = Some(self.resource_version.to_string());
        metadata.generation = i64::try_from(self.generation).ok();
        metadata.creation_timestamp = Some(Time(self.created));
        if let Some(deletion) = self.deletion {
            let grace = i64::try_from(self.grace_secs()).unwrap_or(i64::MAX);
            let at = jiff::SignedDuration::from_secs(grace);
            // Kubernetes' deletionTimestamp is the end of the grace period.
            metadata.deletion_timestamp = Some(Time(
                deletion
                    .requested_at
                    .checked_add(at)
                    .unwrap_or(Timestamp::MAX),
            ));
            metadata.deletion_grace_period_seconds = Some(grace);
        }
        metadata
    }

    /// The pod as an API server shows it, for objects of kind Pod.
    pub fn to_pod(&self, status: Option<&PodStatus>) -> Option<Pod> {
        self.pod().map(|pod| Pod {
            metadata: self.metadata(),
            spec: pod.spec.clone(),
            status: status.cloned(),
        })
    }
}

/// Error of [`Kind::from_str`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a kind that this node understands")]
pub struct UnknownKind(pub String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Kind::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| UnknownKind(text.to_owned()))
    }
}
