//! One task that watches the store and owns the pod workers.

use std::sync::Arc;

use super::handle::Shutdown;
use crate::pod::context::Context;

/// The running dispatcher.
#[derive(Debug)]
pub(super) struct Handle {}

impl Handle {
    pub(super) async fn shutdown(&self, _mode: Shutdown) {}
}

pub(super) async fn spawn(_context: Arc<Context>) -> Handle {
    Handle {}
}
