//! The object store: what should run on this node, and how it is doing.
//!
//! ```text
//!  directory ─┐  replace_writer(all it wants)          ┌─► watch(): keys that changed
//!  etcd      ─┼─────────────► Store ───────────────────┼─► get, list
//!  (API)     ─┘                 ▲  set_status, finalize └─► problems
//!                               └──────────── pod workers
//! ```
//!
//! - **Writers** give full snapshots of what they want ([`Desired`]); the store works out what was added, changed
//!   and removed. Two writers that want the same object do not fight: the first keeps it, the other gets a
//!   [`Problem`] that names both, and takes over when the first lets go.
//! - **Desired state is durable** (`store.redb`, committed before anybody sees the change), so that a node without
//!   network, directory or clock starts what it last knew. Statuses and problems live in memory. Pod workers may
//!   prepare a pod while it is committed ([`Coming`]); they begin nothing before it is there.
//! - **Readers** list, then watch: a [`Watch`] yields the keys that changed, and says [`Batch::Relist`] when it has
//!   fallen behind the bounded history.
//! - **Pods are replaced, not edited**, unless [`change::between`] finds that the change can be applied in place:
//!   the running pod gets a deletion time, its pod worker ends it and calls [`Store::finalize`], and only then does
//!   its successor appear, under another UID.
//!
//! Absent on purpose: the store starts no tasks, knows no files and no network, and never calls its users.

pub mod change;
mod coming;
mod disk;
mod object;
mod opening;
mod problem;
mod state;
#[cfg(test)]
mod tests;
mod uid;
mod watch;
mod wishes;

pub use coming::Coming;
pub use disk::DiskError;
pub use object::{Body, Deletion, Desired, Key, Kind, Object, Origin, Writer};
pub use problem::Problem;
pub use state::{Store, StoreError};
pub use watch::{Batch, Change, Watch, What};
