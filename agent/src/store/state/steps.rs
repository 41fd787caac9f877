//! The steps from what is there to what is wanted, one key at a time. Pure but for the clock.

use std::sync::Arc;

use jiff::Timestamp;

use super::super::change;
use super::super::disk::Entry;
use super::super::object::{Body, Deletion, Key, Kind, Object};
use super::super::uid::uid;
use super::super::wishes::Wanted;

/// What to do with one key, decided before it is committed.
#[derive(Debug)]
pub(super) enum Step {
    Put { entry: Entry, shows: bool },
    Remove { successor: Option<Entry> },
}

/// The `incarnation`-th object of its key. UIDs are made of `uid_seed`.
pub(super) fn new_object(uid_seed: &str, wanted: &Wanted, incarnation: u64) -> Object {
    let desired = &wanted.desired;
    Object {
        key: desired.key.clone(),
        uid: uid(uid_seed, &desired.key, incarnation),
        resource_version: 0,
        generation: 1,
        writer: wanted.writer.clone(),
        origin: desired.origin.clone(),
        hash: desired.hash.clone(),
        created: Timestamp::now(),
        deletion: None,
        body: desired.body.clone(),
    }
}

/// The step from an object that is there to one that is wanted.
pub(super) fn update(entry: &Entry, wanted: Wanted) -> Option<Step> {
    let object = &entry.object;
    if object.deletion.is_some() {
        let same = entry.successor.as_ref() == Some(&wanted);
        return (!same).then(|| Step::Put {
            entry: Entry {
                object: object.clone(),
                successor: Some(wanted),
            },
            shows: false,
        });
    }
    let moved = object.origin != wanted.desired.origin || object.writer != wanted.writer;
    let changed = object.hash != wanted.desired.hash;
    if !moved && !changed {
        return None;
    }
    let mut next = (**object).clone();
    let replace = match (&object.body, &wanted.desired.body) {
        _ if !changed => false,
        (Body::Pod(old), Body::Pod(new)) => {
            let verdict = change::between(old, new);
            tracing::info!(object = %object.key, %verdict, "the pod changed");
            verdict.is_replacement()
        }
        _ => false,
    };
    if replace {
        next.deletion = Some(Deletion {
            requested_at: Timestamp::now(),
            grace_secs: None,
        });
        return Some(Step::Put {
            entry: Entry {
                object: Arc::new(next),
                successor: Some(wanted),
            },
            shows: true,
        });
    }
    next.writer = wanted.writer;
    next.origin = wanted.desired.origin;
    if changed {
        next.hash = wanted.desired.hash;
        next.generation += 1;
        next.body = wanted.desired.body;
    }
    Some(Step::Put {
        entry: Entry {
            object: Arc::new(next),
            successor: None,
        },
        shows: changed,
    })
}

/// The step for an object that nobody wants.
pub(super) fn withdraw(key: &Key, entry: &Entry) -> Option<Step> {
    let object = &entry.object;
    match key.kind {
        Kind::ConfigMap | Kind::Secret | Kind::Namespace => Some(Step::Remove { successor: None }),
        Kind::Pod if object.deletion.is_some() => entry.successor.is_some().then(|| Step::Put {
            entry: Entry {
                object: object.clone(),
                successor: None,
            },
            shows: false,
        }),
        Kind::Pod => {
            let mut next = (**object).clone();
            next.deletion = Some(Deletion {
                requested_at: Timestamp::now(),
                grace_secs: None,
            });
            Some(Step::Put {
                entry: Entry {
                    object: Arc::new(next),
                    successor: None,
                },
                shows: true,
            })
        }
    }
}
