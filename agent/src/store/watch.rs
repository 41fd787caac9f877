//! Watching the store: a bounded history of changed keys, read at each watcher's own pace.

use std::collections::VecDeque;

use tokio::sync::watch;

use super::object::Key;
use super::state::Store;

/// How many changes a slow watcher may be behind before it has to list again. A change is about a hundred bytes;
/// this covers the start of a thousand pods, each with some status changes.
const HISTORY: usize = 8192;

/// What of an object changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// It appeared, or its content or its deletion changed.
    Object,
    /// Its status changed.
    Status,
    /// It is gone.
    Removed,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The version that the change made.
    pub resource_version: u64,
    /// The object.
    pub key: Key,
    /// What of it.
    pub what: What,
}

/// What a [`Watch`] yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Batch {
    /// All changes since the last batch, in order; at least one.
    Changes(Vec<Change>),
    /// The watcher fell behind the history: list again, then go on watching.
    Relist,
}

/// Yields the changes of a store. Take it before listing, so that nothing is missed.
#[derive(Debug)]
pub struct Watch {
    store: Store,
    seen: u64,
    latest: watch::Receiver<u64>,
}

impl Watch {
    pub(super) fn new(store: Store, seen: u64, latest: watch::Receiver<u64>) -> Self {
        Self {
            store,
            seen,
            latest,
        }
    }

    /// Waits for the next changes. Cancel-safe.
    pub async fn next(&mut self) -> Batch {
        loop {
            // Marked as seen before reading, so that a change in between wakes the next wait.
            self.latest.borrow_and_update();
            if let Some(batch) = self.try_next() {
                return batch;
            }
            // The store holds the sender and this watch holds the store, so the channel cannot be closed.
            if self.latest.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// What has changed since the last batch, without waiting.
    pub fn try_next(&mut self) -> Option<Batch> {
        let (batch, seen) = self.store.changes_since(self.seen);
        self.seen = seen;
        batch
    }
}

/// The last changes, in order.
#[derive(Debug)]
pub(super) struct History {
    changes: VecDeque<Change>,
    /// Changes after this version are all there.
    complete_after: u64,
    limit: usize,
}

impl History {
    pub(super) fn new(version: u64) -> Self {
        Self {
            changes: VecDeque::new(),
            complete_after: version,
            limit: HISTORY,
        }
    }

    pub(super) fn push(&mut self, change: Change) {
        if self.changes.len() == self.limit
            && let Some(oldest) = self.changes.pop_front()
        {
            self.complete_after = oldest.resource_version;
        }
        self.changes.push_back(change);
    }

    pub(super) fn since(&self, version: u64) -> Option<Batch> {
        if version < self.complete_after {
            return Some(Batch::Relist);
        }
        let first = self
            .changes
            .partition_point(|change| change.resource_version <= version);
        (first < self.changes.len())
            .then(|| Batch::Changes(self.changes.range(first..).cloned().collect()))
    }

    #[cfg(test)]
    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }
}
