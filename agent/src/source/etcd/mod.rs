//! etcd: manifests are read from it, statuses and a heartbeat are written to it.
//!
//! ```text
//! <prefix>/manifests/<anything>                a manifest: YAML or JSON, one or more objects       read
//! <prefix>/nodes/<node>                        who this node is, as JSON                           written
//! <prefix>/status/<node>/<namespace>/<pod>     a Pod with its status and without its spec, JSON    written
//! ```
//!
//! All that is written hangs on one lease: when the node dies, its keys go within [`reporter::LEASE_SECS`].
//!
//! Two tasks, each with a connection and a back-off of its own, so that a node that may read but not write still
//! follows its manifests:
//! - the [`follower`] lists once, then watches from the revision after; it resumes after a lost connection, and lists
//!   again when that revision has been compacted or belongs to another cluster;
//! - the [`reporter`] keeps the lease alive and writes what has changed, at most every so often.
//!
//! When etcd is away the node goes on with what it last knew, which the store remembers over restarts as well.
//! Absent on purpose: nothing here deletes or changes a manifest.

mod connection;
mod dial;
mod follower;
mod reporter;

#[allow(missing_docs, unreachable_pub, clippy::all)]
mod proto {
    pub mod mvccpb {
        tonic::include_proto!("mvccpb");
    }
    pub mod etcdserverpb {
        tonic::include_proto!("etcdserverpb");
    }
}

use std::path::PathBuf;
use std::time::Duration;

use super::Following;
use crate::node::config::EtcdConfig;
use crate::store::{Store, Writer};

use connection::Connector;
pub use connection::EtcdError;

/// The first delay after a failure; the next are twice as long each, with jitter.
const BACK_OFF_FIRST: Duration = Duration::from_millis(200);
/// The longest delay: an etcd that comes back is noticed within this time, and a thousand nodes do not storm it.
const BACK_OFF_MAX: Duration = Duration::from_secs(30);

/// The keys below a prefix.
#[derive(Debug, Clone)]
struct Keys {
    prefix: String,
}

impl Keys {
    fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.trim_end_matches('/').to_owned(),
        }
    }

    fn manifests(&self) -> String {
        format!("{}/manifests/", self.prefix)
    }

    /// The prefixes of what this node writes.
    fn written(&self) -> [String; 2] {
        ["nodes", "status"].map(|kind| format!("{}/{kind}/", self.prefix))
    }

    fn node(&self, node: &str) -> String {
        format!("{}/nodes/{node}", self.prefix)
    }

    fn status(&self, node: &str, namespace: &str, name: &str) -> String {
        format!("{}/status/{node}/{namespace}/{name}", self.prefix)
    }
}

/// The name under which the manifests below the configured prefix stand in the store.
pub fn writer(config: &EtcdConfig) -> Writer {
    Writer::etcd(&Keys::new(&config.prefix).prefix)
}

/// Follows the manifests below the configured prefix, and reports there. Returns at once: what the store remembers
/// counts until etcd answers.
///
/// # Errors
/// When the configuration is no good: an endpoint that is no URL, a file that cannot be read.
pub fn follow(store: &Store, config: &EtcdConfig) -> Result<Following, EtcdError> {
    let keys = Keys::new(&config.prefix);
    let writer = writer(config);
    let connector = Connector::new(config)?;
    let follower = follower::Follower::new(store, &writer, connector.clone(), &keys);
    let reporter = reporter::Reporter::new(store, connector, keys);
    Ok(Following {
        writer,
        tasks: vec![tokio::spawn(follower.run()), tokio::spawn(reporter.run())],
    })
}

/// A growing delay.
#[derive(Debug)]
struct BackOff {
    next: Duration,
}

impl BackOff {
    fn new() -> Self {
        Self {
            next: BACK_OFF_FIRST,
        }
    }

    fn reset(&mut self) {
        *self = Self::new();
    }

    /// Between half of the delay and all of it.
    fn delay(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(BACK_OFF_MAX);
        let jitter = f64::from(uuid::Uuid::new_v4().as_fields().0) / f64::from(u32::MAX);
        whole.mul_f64(0.5 + jitter / 2.0)
    }
}

/// A file of the configuration.
fn read_file(path: &PathBuf) -> Result<Vec<u8>, EtcdError> {
    std::fs::read(path).map_err(|source| EtcdError::File {
        path: path.clone(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_grows_to_its_limit_and_starts_over() {
        let mut back_off = BackOff::new();
        let mut longest = Duration::ZERO;
        for _ in 0..100 {
            let delay = back_off.delay();
            assert!(delay >= BACK_OFF_FIRST / 2 && delay <= BACK_OFF_MAX);
            longest = longest.max(delay);
        }
        assert!(longest > BACK_OFF_MAX / 3);
        back_off.reset();
        assert!(back_off.delay() <= BACK_OFF_FIRST);
    }

    #[test]
    fn keys_do_not_depend_on_a_slash_at_the_end_of_the_prefix() {
        for prefix in ["/podling", "/podling/"] {
            let keys = Keys::new(prefix);
            assert_eq!(keys.manifests(), "/podling/manifests/");
            assert_eq!(keys.node("n"), "/podling/nodes/n");
            assert_eq!(
                keys.status("n", "default", "p"),
                "/podling/status/n/default/p"
            );
        }
    }
}
