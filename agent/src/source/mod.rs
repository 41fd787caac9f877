//! Where manifests come from. A source writes into the store, and nothing else does.
//!
//! ```text
//! directory: inotify ─► changed files ─┐
//! etcd:      watch ───► changed keys ──┴─► Units (last good version of each) ─► Store::replace_writer
//! ```
//!
//! Each source is one task that owns its [`Units`](units::Units). A file or key that cannot be understood keeps its
//! last good version, over restarts too, and is a problem in the store until it is put right.

pub mod directory;
pub mod etcd;
mod units;

use crate::store::Writer;

/// A source that is being followed; dropping it stops that, and what it said stays wanted.
#[derive(Debug)]
pub struct Following {
    writer: Writer,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Following {
    /// The name under which it writes into the store.
    pub fn writer(&self) -> &Writer {
        &self.writer
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
