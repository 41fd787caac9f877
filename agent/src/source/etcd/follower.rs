//! Reads the manifests: a listing, then a watch.
//!
//! ```text
//!        ┌──────────── compacted, or another cluster ◄───────────┐
//!        ▼                                                       │
//!   connect ─► list all pages at one revision ─► watch from revision + 1 ─► changes ─► Units ─► store
//!        ▲                                               │
//!        └──── back-off ◄── lost: next endpoint, resume ◄┘
//! ```

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::{FutureExt, StreamExt, stream};
use tokio::sync::oneshot;
use tonic::metadata::MetadataValue;

use super::connection::{Connection, Connector, EtcdError, range_end, within};
use super::proto::etcdserverpb::watch_request::RequestUnion;
use super::proto::etcdserverpb::{
    RangeRequest, ResponseHeader, WatchCreateRequest, WatchRequest, WatchResponse,
};
use super::proto::mvccpb::event::EventType;
use super::proto::mvccpb::{Event, KeyValue};
use super::{BackOff, Keys};
use crate::source::units::Units;
use crate::store::{Origin, Problem, Store, Writer};
use podling_runtime::chain;

/// Keys in one page of a listing: etcd takes values up to 1.5 MiB, so at worst 48 MiB at once.
const PAGE: i64 = 32;

/// Where in a cluster's history the follower is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    cluster: u64,
    revision: i64,
}

/// Why a watch ended well.
#[derive(Debug, PartialEq, Eq)]
enum WatchEnd {
    /// The history that it needs is gone, or is not this cluster's.
    Relist,
}

/// Follows the manifests.
pub(super) struct Follower {
    connector: Connector,
    manifests: String,
    /// Shared with the thread that takes in changes, one at a time.
    units: Arc<Mutex<Units>>,
    position: Option<Position>,
    back_off: BackOff,
    /// Failures in a row.
    failures: usize,
}

impl Follower {
    pub(super) fn new(store: &Store, writer: &Writer, connector: Connector, keys: &Keys) -> Self {
        Self {
            connector,
            manifests: keys.manifests(),
            units: Arc::new(Mutex::new(Units::remembered(store, writer))),
            position: None,
            back_off: BackOff::new(),
            failures: 0,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            let Err(error) = self.session().await;
            if matches!(error, EtcdError::Stopping) {
                return;
            }
            self.tell_trouble(&error).await;
            self.failures += 1;
            // The other endpoints are tried at once.
            if self.failures.is_multiple_of(self.connector.endpoints()) {
                tokio::time::sleep(self.back_off.delay()).await;
            }
        }
    }

    /// One connection, for as long as it lasts.
    async fn session(&mut self) -> Result<Infallible, EtcdError> {
        let connection = self.connector.connect().await?;
        loop {
            let position = match self.position {
                Some(position) => position,
                None => self.list(&connection).await?,
            };
            match self.watch(&connection, position).await? {
                WatchEnd::Relist => self.position = None,
            }
        }
    }

    /// Reads all manifests as they were at one moment.
    async fn list(&mut self, connection: &Connection) -> Result<Position, EtcdError> {
        let mut found: Vec<KeyValue> = Vec::new();
        let mut from = self.manifests.clone().into_bytes();
        let mut revision = 0;
        let position = loop {
            let page = RangeRequest {
                key: from,
                range_end: range_end(&self.manifests),
                limit: PAGE,
                revision,
                ..RangeRequest::default()
            };
            let page = connection
                .request("list the manifests", |mut connection| {
                    let page = page.clone();
                    async move { connection.kv.range(page).await }
                })
                .await?;
            let position = position_of(page.header.as_ref())?;
            // All pages are of the revision of the first.
            if revision == 0 {
                revision = position.revision;
            }
            let more = page.more;
            found.extend(page.kvs);
            match found.last() {
                Some(last) if more => {
                    from = last.key.clone();
                    from.push(0);
                }
                _ => {
                    break Position {
                        revision,
                        ..position
                    };
                }
            }
        };
        let count = found.len();
        self.take_in(move |units| {
            let there: BTreeSet<Origin> = found.iter().map(|kv| origin(&kv.key)).collect();
            for kv in &found {
                units.set(&origin(&kv.key), &kv.value);
            }
            units.retain(&there);
        })
        .await?;
        tracing::info!(
            endpoint = connection.endpoint,
            revision = position.revision,
            manifests = count,
            "listed the manifests in etcd"
        );
        self.position = Some(position);
        Ok(position)
    }

    async fn watch(
        &mut self,
        connection: &Connection,
        position: Position,
    ) -> Result<WatchEnd, EtcdError> {
        let create = WatchCreateRequest {
            key: self.manifests.clone().into_bytes(),
            range_end: range_end(&self.manifests),
            start_revision: position.revision + 1,
            progress_notify: true,
            fragment: true,
            ..WatchCreateRequest::default()
        };
        let create = WatchRequest {
            request_union: Some(RequestUnion::CreateRequest(create)),
        };
        // The transport holds the stream of requests, and with it the watch, until that ends: it must not outlive
        // this function.
        let (_here, gone) = oneshot::channel::<()>();
        let gone = gone.shared();
        let mut responses = connection
            .request("watch the manifests", |mut connection| {
                let create = stream::once(std::future::ready(create.clone()));
                let requests = create.chain(stream::pending()).take_until(gone.clone());
                let mut requests = tonic::Request::new(requests);
                // A member that has lost its leader says so instead of being silent.
                let yes = MetadataValue::from_static("true");
                requests.metadata_mut().insert("hasleader", yes);
                async move { connection.watch.watch(requests).await }
            })
            .await?;
        let first = within("watch the manifests", responses.next()).await?;
        let mut next = first;
        loop {
            let response = match next {
                Some(Ok(response)) => response,
                Some(Err(status)) => return Err(EtcdError::Request("go on watching", status)),
                None => return Err(EtcdError::WatchEnded("closed".to_owned())),
            };
            if let Some(end) = self.take_response(response, position.cluster).await? {
                return Ok(end);
            }
            next = responses.next().await;
        }
    }

    async fn take_response(
        &mut self,
        response: WatchResponse,
        cluster: u64,
    ) -> Result<Option<WatchEnd>, EtcdError> {
        let now = position_of(response.header.as_ref())?;
        let reached = self.position.map_or(0, |position| position.revision);
        if response.canceled {
            if response.compact_revision > 0 {
                tracing::info!(
                    reached,
                    compacted = response.compact_revision,
                    "etcd has forgotten what happened meanwhile: listing again"
                );
                return Ok(Some(WatchEnd::Relist));
            }
            return Err(EtcdError::WatchEnded(response.cancel_reason));
        }
        if now.cluster != cluster || (response.created && now.revision < reached) {
            tracing::info!("this is another etcd, or an older copy of it: listing again");
            return Ok(Some(WatchEnd::Relist));
        }
        if response.created {
            self.told_well().await?;
            return Ok(None);
        }
        let last = response.events.last().and_then(|event| event.kv.as_ref());
        // As etcd's own client: events say how far they reach; a progress notification, that nothing happened
        // until now. A part of a fragmented response reaches only as far as the one before.
        let reaches = match last {
            Some(last) => last.mod_revision,
            None => now.revision,
        };
        let whole = !response.fragment;
        if !response.events.is_empty() {
            self.take_in(move |units| apply(units, &response.events))
                .await?;
        }
        if whole {
            self.position = Some(Position {
                cluster,
                revision: reaches.max(reached),
            });
        }
        Ok(None)
    }

    /// Changes the units and tells the store, on a thread that may block.
    async fn take_in(
        &self,
        change: impl FnOnce(&mut Units) + Send + 'static,
    ) -> Result<(), EtcdError> {
        let units = self.units.clone();
        let taken = tokio::task::spawn_blocking(move || {
            let mut units = units.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut units);
            units.publish()
        });
        match taken.await {
            Ok(published) => published.map_err(EtcdError::Store),
            Err(_) => Err(EtcdError::Stopping),
        }
    }

    async fn told_well(&mut self) -> Result<(), EtcdError> {
        if self.failures > 0 {
            tracing::info!("following etcd again");
        }
        self.failures = 0;
        self.back_off.reset();
        self.take_in(|units| {
            units.set_trouble(None);
        })
        .await
    }

    async fn tell_trouble(&self, error: &EtcdError) {
        let message = chain(error);
        // Once for each outage.
        if self.failures == 0 {
            tracing::warn!(
                error = message,
                "lost etcd; going on with what it last said"
            );
        }
        let trouble = Problem::new(Origin::etcd(&self.manifests), message)
            .remedy("the node goes on with what it last knew, and keeps trying");
        // What cannot be stored now is still unpublished, and goes with the next success.
        if let Err(error) = self
            .take_in(move |units| {
                units.set_trouble(Some(trouble));
            })
            .await
        {
            tracing::debug!(error = %error, "cannot publish the trouble with etcd");
        }
    }
}

fn apply(units: &mut Units, events: &[Event]) {
    for event in events {
        let Some(kv) = &event.kv else { continue };
        match event.r#type() {
            EventType::Put => units.set(&origin(&kv.key), &kv.value),
            EventType::Delete => units.remove(&origin(&kv.key)),
        }
    }
}

fn origin(key: &[u8]) -> Origin {
    Origin::etcd(String::from_utf8_lossy(key))
}

fn position_of(header: Option<&ResponseHeader>) -> Result<Position, EtcdError> {
    let header = header.ok_or(EtcdError::Nonsense("a response without a header"))?;
    Ok(Position {
        cluster: header.cluster_id,
        revision: header.revision,
    })
}
