//! What is seen of the objects, and of what could not become one: statuses, pods that end with the node, problems. It
//! lives in memory alone; a new agent sees it again.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;

use super::super::object::Key;
use super::super::problem::Problem;
use super::super::watch::What;
use super::{Store, VERSION_BLOCK};

impl Store {
    /// The status of the pod `key`.
    pub fn status(&self, key: &Key) -> Option<Arc<PodStatus>> {
        let state = self.read();
        state.statuses.get(key).map(|(_, status)| status.clone())
    }

    /// Sets the status of the pod `key` with this UID. False: there is no such pod (any more), or the status is
    /// what it was.
    pub fn set_status(&self, key: &Key, uid: &str, status: PodStatus) -> bool {
        let mut disk = None;
        loop {
            let mut state = self.write();
            let Some(entry) = state.entries.get(key) else {
                return false;
            };
            let same = |(of, old): &(String, Arc<PodStatus>)| of == uid && **old == status;
            if entry.object.uid != uid || state.statuses.get(key).is_some_and(same) {
                return false;
            }
            if state.version < state.reserved {
                let status = Arc::new(status);
                state.statuses.insert(key.clone(), (uid.to_owned(), status));
                state.record(key.clone(), What::Status);
                let version = state.version;
                drop(state);
                self.shared.latest.send_replace(version);
                return true;
            }
            drop(state);
            // Once in a million changes. A disk that does not take it must not stop statuses.
            if let Err(error) =
                self.commit(disk.get_or_insert_with(|| self.lock_disk()), Vec::new())
            {
                tracing::warn!(%error, "cannot reserve resource versions");
                self.write().reserved += VERSION_BLOCK;
            }
        }
    }

    /// What writers want and do not get, and whatever else [`Store::set_problems`] was told.
    pub fn problems(&self) -> Vec<Problem> {
        let state = self.read();
        let told = state.problems.values().flatten();
        told.chain(&state.conflicts).cloned().collect()
    }

    /// Replaces the problems of one source, which chooses a name of its own.
    pub fn set_problems(&self, source: &str, problems: Vec<Problem>) {
        let mut state = self.write();
        let before = state.problems.remove(source).unwrap_or_default();
        if !problems.is_empty() {
            let problems = keep_first_seen(&before, problems);
            state.problems.insert(source.to_owned(), problems);
        }
    }

    /// Notes that the node ends the pod `key` with this UID, since now, though its writer still wants it. Readers show
    /// it as being deleted; the store goes on holding it.
    pub fn set_ending(&self, key: &Key, uid: &str) {
        let mut state = self.write();
        let is_there = state.entries.get(key).is_some_and(|e| e.object.uid == uid);
        if !is_there || state.endings.contains_key(uid) {
            return;
        }
        state.endings.insert(uid.to_owned(), Timestamp::now());
        state.record(key.clone(), What::Status);
        let version = state.version;
        drop(state);
        self.shared.latest.send_replace(version);
    }

    /// Since when the node has been ending the pod with this UID, as [`Store::set_ending`] said.
    pub fn ending(&self, uid: &str) -> Option<Timestamp> {
        self.read().endings.get(uid).copied()
    }
}

/// A problem that stays keeps the time when it was first seen.
pub(super) fn keep_first_seen(before: &[Problem], now: Vec<Problem>) -> Vec<Problem> {
    let since = |problem: &Problem| {
        let old = before.iter().find(|old| old.is_same(problem))?;
        Some(old.since)
    };
    now.into_iter()
        .map(|problem| Problem {
            since: since(&problem).unwrap_or(problem.since),
            ..problem
        })
        .collect()
}
