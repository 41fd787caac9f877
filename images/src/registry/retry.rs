//! Waits between tries, and who is told of them: a registry that hangs and is tried again for minutes must not look like
//! one that does nothing.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::error::chain;
use super::{Patience, RegistryError};

/// A try that failed, and is made again after a wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Why it failed, with the causes.
    pub reason: String,
    /// Which try is the next: the second, at the least. Tries that bring something begin to count anew.
    pub attempt: u32,
    /// After how many it is given up.
    pub attempts: u32,
    /// How long it is until the next.
    pub wait: Duration,
}

/// Told of each [`Retry`], at the begin of its wait.
#[derive(Clone, Default)]
pub(crate) struct RetryListener(Option<Arc<dyn Fn(Retry) + Send + Sync>>);

impl RetryListener {
    /// Hands each on to the listener of a pull or push, as one of its events.
    pub(crate) fn of<P: 'static>(
        progress: Option<&Arc<dyn Fn(P) + Send + Sync>>,
        event: fn(Retry) -> P,
    ) -> Self {
        let progress = progress.cloned();
        Self(progress.map(|progress| {
            let listener: Arc<dyn Fn(Retry) + Send + Sync> =
                Arc::new(move |retry| progress(event(retry)));
            listener
        }))
    }

    /// Waits until it is time for the next try after so many failures.
    ///
    /// # Errors
    /// The error itself, when there is no use in another.
    pub(crate) async fn wait(
        &self,
        patience: &Patience,
        error: RegistryError,
        failures: u32,
    ) -> Result<(), RegistryError> {
        let Some(wait) = patience.wait_after(&error, failures) else {
            return Err(error);
        };
        let reason = chain(&error);
        tracing::debug!(
            reason,
            failures,
            ?wait,
            "a registry is asked again after a wait"
        );
        if let Some(tell) = &self.0 {
            tell(Retry {
                reason,
                attempt: failures.saturating_add(1),
                attempts: patience.tries,
                wait,
            });
        }
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

impl fmt::Debug for RetryListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RetryListener")
            .field(&self.0.is_some())
            .finish()
    }
}
