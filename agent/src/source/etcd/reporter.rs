//! Writes who this node is and how its pods are, under one lease.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, stream};
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::connection::{Connection, Connector, EtcdError};
use super::proto::etcdserverpb::{
    DeleteRangeRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    PutRequest,
};
use super::{BackOff, Keys};
use crate::store::{Batch, Key, Kind, Origin, Problem, Store, Watch, What};
use podling_runtime::chain;

/// A node that is silent for this long counts as gone, and its keys go, in seconds.
pub(super) const LEASE_SECS: i64 = 30;
/// The lease is renewed this often: two renewals may fail.
const RENEWAL: Duration = Duration::from_secs(LEASE_SECS as u64 / 3);
/// Changes within this time of the last write are written together: five writes a second at most for each pod.
const MERGE: Duration = Duration::from_millis(200);

/// Reports to etcd.
pub(super) struct Reporter {
    store: Store,
    connector: Connector,
    keys: Keys,
    back_off: BackOff,
    failures: usize,
}

impl Reporter {
    pub(super) fn new(store: &Store, connector: Connector, keys: Keys) -> Self {
        Self {
            store: store.clone(),
            connector,
            keys,
            back_off: BackOff::new(),
            failures: 0,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            let Err(error) = self.session().await;
            self.tell_trouble(&error);
            self.failures += 1;
            if self.failures.is_multiple_of(self.connector.endpoints()) {
                tokio::time::sleep(self.back_off.delay()).await;
            }
        }
    }

    /// Once for each outage in the log. A user who may not write is a problem too, which a person has to solve; the
    /// follower makes one of an etcd that is away.
    fn tell_trouble(&self, error: &EtcdError) {
        if self.failures == 0 {
            tracing::warn!(error = chain(error), "cannot report to etcd; trying again");
        }
        let forbidden = error.is_forbidden().then(|| {
            let prefixes = self.keys.written();
            let [nodes, status] = &prefixes;
            Problem::new(Origin::etcd(nodes), format!("the node cannot report: {}", chain(error)))
                .remedy(format!(
                    "manifests are followed; let the user write as well: `etcdctl role grant-permission ROLE --prefix \
                     readwrite {nodes}`, and the same for {status}"
                ))
        });
        self.set_problem(forbidden);
    }

    fn set_problem(&self, problem: Option<Problem>) {
        let source = format!("reports to {}", self.keys.prefix);
        self.store
            .set_problems(&source, problem.into_iter().collect());
    }

    async fn session(&mut self) -> Result<Infallible, EtcdError> {
        let connection = self.connector.connect().await?;
        loop {
            let Err(error) = self.report(&connection).await;
            match error {
                // The connection is fine: a new lease, under which all is written again.
                EtcdError::LeaseLost => tracing::info!("the lease in etcd is lost: taking another"),
                error => return Err(error),
            }
        }
    }

    /// Writes all there is, then what changes, for as long as the lease is kept.
    async fn report(&mut self, connection: &Connection) -> Result<Infallible, EtcdError> {
        let grant = LeaseGrantRequest {
            ttl: LEASE_SECS,
            id: 0,
        };
        let lease = connection
            .request("grant a lease", |mut connection| async move {
                connection.lease.lease_grant(grant).await
            })
            .await?;
        // The transport holds the stream of renewals, and with it the lease, until that ends: it must not outlive
        // this function.
        let (_here, gone) = oneshot::channel::<()>();
        let mut renewals = renew(connection, lease.id, gone).await?;
        // Watching before listing, so that nothing is missed in between.
        let mut watch = self.store.watch();
        let mut report = Report {
            store: &self.store,
            keys: &self.keys,
            lease: lease.id,
            written: BTreeMap::new(),
            changed: BTreeSet::new(),
        };
        report.write_node(connection).await?;
        report.mark_all();
        // Before all is declared well: a user may be allowed to write the one and not the other.
        report.write(connection).await?;
        let mut write_at = Instant::now() + MERGE;
        if self.failures > 0 {
            tracing::info!("reporting to etcd again");
        }
        self.set_problem(None);
        self.failures = 0;
        self.back_off.reset();
        let mut next_change = Box::pin(next_change(&mut watch));
        loop {
            tokio::select! {
                renewal = timeout(Duration::from_secs(LEASE_SECS as u64), renewals.next()) => {
                    is_kept(renewal)?;
                }
                batch = &mut next_change => {
                    let (watch, batch) = batch;
                    report.mark(batch);
                    next_change = Box::pin(self::next_change(watch));
                }
                () = sleep_until(write_at), if !report.changed.is_empty() => {
                    report.write(connection).await?;
                    write_at = Instant::now() + MERGE;
                }
            }
        }
    }
}

async fn next_change(watch: &mut Watch) -> (&mut Watch, Batch) {
    let batch = watch.next().await;
    (watch, batch)
}

async fn renew(
    connection: &Connection,
    lease: i64,
    gone: oneshot::Receiver<()>,
) -> Result<tonic::Streaming<LeaseKeepAliveResponse>, EtcdError> {
    let requests = move |gone| {
        let mut ticks = interval(RENEWAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let requests = stream::unfold(ticks, move |mut ticks| async move {
            ticks.tick().await;
            Some((LeaseKeepAliveRequest { id: lease }, ticks))
        });
        requests.take_until(gone)
    };
    let gone = gone.shared();
    connection
        .request("renew the lease", |mut connection| {
            let requests = requests(gone.clone());
            async move { connection.lease.lease_keep_alive(requests).await }
        })
        .await
}

type Renewal = Option<Result<LeaseKeepAliveResponse, tonic::Status>>;

fn is_kept(renewal: Result<Renewal, tokio::time::error::Elapsed>) -> Result<(), EtcdError> {
    match renewal {
        Ok(Some(Ok(kept))) if kept.ttl > 0 => Ok(()),
        // etcd says so of a lease that it does not know (any more).
        Ok(Some(Ok(_))) => Err(EtcdError::LeaseLost),
        Ok(Some(Err(status))) => Err(EtcdError::Request("renew the lease", status)),
        Ok(None) | Err(_) => Err(EtcdError::Timeout("renew the lease")),
    }
}

/// What has been written under one lease, and what is to be.
struct Report<'a> {
    store: &'a Store,
    keys: &'a Keys,
    lease: i64,
    written: BTreeMap<Key, Vec<u8>>,
    changed: BTreeSet<Key>,
}

impl Report<'_> {
    fn mark(&mut self, batch: Batch) {
        match batch {
            Batch::Relist => self.mark_all(),
            Batch::Changes(changes) => {
                let pods = changes.into_iter().filter(|change| {
                    change.key.kind == Kind::Pod
                        && matches!(change.what, What::Status | What::Removed)
                });
                self.changed.extend(pods.map(|change| change.key));
            }
        }
    }

    fn mark_all(&mut self) {
        let pods = self.store.list(Kind::Pod);
        self.changed.extend(pods.iter().map(|pod| pod.key.clone()));
        self.changed.extend(self.written.keys().cloned());
    }

    async fn write_node(&self, connection: &Connection) -> Result<(), EtcdError> {
        let node = serde_json::json!({
            "name": self.store.node(),
            "version": env!("CARGO_PKG_VERSION"),
        });
        let key = self.keys.node(self.store.node());
        self.put(connection, key, node.to_string().into_bytes())
            .await
    }

    async fn write(&mut self, connection: &Connection) -> Result<(), EtcdError> {
        while let Some(key) = self.changed.pop_first() {
            let path = self
                .keys
                .status(self.store.node(), &key.namespace, &key.name);
            match self.value(&key) {
                Some(value) if self.written.get(&key) != Some(&value) => {
                    self.put(connection, path, value.clone()).await?;
                    self.written.insert(key, value);
                }
                Some(_) => {}
                None => {
                    if self.written.remove(&key).is_some() {
                        let delete = DeleteRangeRequest {
                            key: path.into_bytes(),
                            range_end: Vec::new(),
                        };
                        connection
                            .request("delete a status", |mut connection| {
                                let delete = delete.clone();
                                async move { connection.kv.delete_range(delete).await }
                            })
                            .await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The pod without its spec, which is in etcd already and may hold secrets of the environment.
    fn value(&self, key: &Key) -> Option<Vec<u8>> {
        let object = self.store.get(key)?;
        let status = self.store.status(key)?;
        let value = serde_json::json!({
            "apiVersion": key.kind.api_version(),
            "kind": key.kind.name(),
            "metadata": {
                "name": key.name,
                "namespace": key.namespace,
                "uid": object.uid,
                "generation": object.generation,
            },
            "status": &*status,
        });
        Some(value.to_string().into_bytes())
    }

    async fn put(
        &self,
        connection: &Connection,
        key: String,
        value: Vec<u8>,
    ) -> Result<(), EtcdError> {
        let put = PutRequest {
            key: key.into_bytes(),
            value,
            lease: self.lease,
        };
        let written = connection.request("write a status", |mut connection| {
            let put = put.clone();
            async move { connection.kv.put(put).await }
        });
        match written.await {
            Ok(_) => Ok(()),
            // The lease ended since it was last renewed.
            Err(EtcdError::Request(_, status))
                if status.code() == tonic::Code::NotFound && status.message().contains("lease") =>
            {
                Err(EtcdError::LeaseLost)
            }
            Err(error) => Err(error),
        }
    }
}
