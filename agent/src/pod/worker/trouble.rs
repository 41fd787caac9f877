//! Steps that fail are tried again, later and later; and when a worker looks again although nothing happens.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::Worker;

/// The first delay after a step that failed.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// The longest: most failures wait for a person, who should not wait for the node.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A supervisor that lived for less is not started again at once for ever: it dies of something that stays.
const SUPERVISOR_SETTLED: Duration = Duration::from_secs(10);

/// A step that failed.
pub(super) struct Trouble {
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) since: Timestamp,
    pub(super) retry: Instant,
    pub(super) retry_at: Timestamp,
}

impl Worker {
    /// All steps have been done.
    pub(super) fn forget_trouble(&mut self) {
        self.trouble = None;
        self.failures = 0;
    }

    pub(super) fn note_trouble(&mut self, reason: &'static str, message: String) {
        let factor = 1_u32.checked_shl(self.failures.min(10)).unwrap_or(u32::MAX);
        let delay = RETRY_FIRST.saturating_mul(factor).min(RETRY_MAX);
        self.failures = self.failures.saturating_add(1);
        let is_news = self
            .trouble
            .as_ref()
            .is_none_or(|before| before.message != message);
        if is_news {
            let pod = self.key.as_ref().map(ToString::to_string);
            tracing::warn!(uid = self.uid, pod, reason, "{message}");
        }
        let now = Timestamp::now();
        let since = match &self.trouble {
            Some(before) if !is_news => before.since,
            _ => now,
        };
        let retry_at = now + jiff::SignedDuration::try_from(delay).unwrap_or_default();
        self.trouble = Some(Trouble {
            reason,
            message,
            since,
            retry: Instant::now() + delay,
            retry_at,
        });
    }

    /// The first supervisor that is lost is replaced at once; when its successors do not live either, with a delay.
    pub(super) fn note_loss(&mut self, message: String) {
        let begun = self.begun.take();
        if begun.is_none_or(|at| at.elapsed() >= SUPERVISOR_SETTLED) {
            self.losses = 0;
            return;
        }
        self.losses = self.losses.saturating_add(1);
        if self.losses > 1 {
            self.failures = self.losses - 2;
            self.note_trouble("SupervisorFailed", message);
        }
    }
}

/// The next of these times. One that had come when the worker last looked does not come again: it was seen, and
/// there was nothing to do. While a failed step waits for its next try, that alone counts.
pub(super) fn next_alarm(
    retry: Option<Instant>,
    others: &[Option<Instant>],
    looked_at: Instant,
) -> Option<Instant> {
    let is_ahead = |at: &Instant| *at > looked_at;
    retry
        .filter(is_ahead)
        .or_else(|| others.iter().copied().flatten().filter(is_ahead).min())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_that_was_seen_does_not_ring_again() {
        let looked_at = Instant::now() + Duration::from_secs(60);
        let (before, after) = (
            looked_at - Duration::from_secs(1),
            looked_at + Duration::from_secs(1),
        );
        let later = after + Duration::from_secs(1);
        // An image's next try, while the pod is being ended and needs it no more.
        assert_eq!(next_alarm(None, &[Some(before), None], looked_at), None);
        assert_eq!(
            next_alarm(None, &[Some(before), Some(later), Some(after)], looked_at),
            Some(after)
        );
    }

    #[test]
    fn a_step_that_waits_for_its_next_try_is_not_tried_before() {
        let looked_at = Instant::now();
        let soon = looked_at + Duration::from_secs(1);
        let retry = looked_at + Duration::from_secs(30);
        assert_eq!(
            next_alarm(Some(retry), &[Some(soon)], looked_at),
            Some(retry)
        );
        assert_eq!(
            next_alarm(Some(looked_at), &[Some(soon)], looked_at),
            Some(soon)
        );
    }
}
