//! Pods whose commit is being written. The disk takes milliseconds, as does making ready what a pod needs: the two go
//! on side by side.
//!
//! ```text
//!  commit ─┬─ announce ──► pod worker: images, network, supervisor, volumes
//!          ├─ disk                         │
//!          └─ shown, or failed ──► settled ┴─► the supervisor begins, or all is taken back
//! ```
//!
//! What is foreseen is not desired yet: nobody is told of it, nothing of it runs, and what is prepared for it is such
//! as the next start of the agent clears up where the store knows of no pod.

use std::sync::Arc;

use tokio::sync::watch;

use super::object::Object;

/// The pods that the commit under way will bring: there is one commit at a time.
#[derive(Debug)]
pub struct Coming {
    pods: watch::Sender<Vec<Arc<Object>>>,
}

impl Default for Coming {
    fn default() -> Self {
        Self {
            pods: watch::Sender::new(Vec::new()),
        }
    }
}

/// Pods stay announced until this is dropped.
#[derive(Debug)]
pub(super) struct Foreseen<'a> {
    coming: Option<&'a Coming>,
}

impl Drop for Foreseen<'_> {
    fn drop(&mut self) {
        if let Some(coming) = self.coming {
            coming.pods.send_replace(Vec::new());
        }
    }
}

impl Coming {
    pub(super) fn announce(&self, pods: Vec<Arc<Object>>) -> Foreseen<'_> {
        if pods.is_empty() {
            return Foreseen { coming: None };
        }
        self.pods.send_replace(pods);
        Foreseen { coming: Some(self) }
    }

    /// Sees the pods of each commit from now on; none when it has ended.
    pub fn watch(&self) -> watch::Receiver<Vec<Arc<Object>>> {
        self.pods.subscribe()
    }

    /// The pod with this UID, if it is coming. Ask this first and the store second: a pod that is neither is not to be.
    pub fn get(&self, uid: &str) -> Option<Arc<Object>> {
        let pods = self.pods.borrow();
        pods.iter().find(|pod| pod.uid == uid).cloned()
    }

    /// Waits until the pod with this UID is not coming any more: it is in the store, or it is not to be. Cancel-safe.
    pub async fn settled(&self, uid: &str) {
        let mut pods = self.pods.subscribe();
        let settled = pods.wait_for(|pods| pods.iter().all(|pod| pod.uid != uid));
        if settled.await.is_err() {
            // The sender is borrowed here: it cannot be gone.
            tracing::error!(uid, "nobody tells whether the pod is stored");
        }
    }
}
