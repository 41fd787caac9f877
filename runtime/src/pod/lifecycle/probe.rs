//! Counting the results of a container's probe, as the kubelet's `prober/worker.go` does.

use serde::{Deserialize, Serialize};

use crate::pod::plan::Probe;

/// What a probe decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeKind {
    /// Whether the container is started.
    Startup,
    /// Whether it must be restarted.
    Liveness,
    /// Whether it is ready.
    Readiness,
}

impl ProbeKind {
    /// All, in the order in which they matter.
    pub const ALL: [Self; 3] = [Self::Startup, Self::Liveness, Self::Readiness];

    /// As in a snapshot.
    pub fn name(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
        }
    }
}

/// The tries of one probe in one run of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tries {
    /// What enough tries in a row agreed on last.
    verdict: Option<bool>,
    /// The last try's result.
    last: bool,
    /// How many tries in a row had it.
    in_a_row: u32,
    /// When the next try is due, in milliseconds of the monotonic clock; none before the first.
    due_ms: Option<u64>,
    /// A try is under way. It is lost with the supervisor.
    #[serde(skip)]
    in_flight: bool,
}

impl Tries {
    /// What enough tries in a row agreed on last; none before that.
    pub(super) fn verdict(&self) -> Option<bool> {
        self.verdict
    }

    /// Failures in a row.
    pub(super) fn failures(&self) -> u32 {
        if self.last { 0 } else { self.in_a_row }
    }

    /// When the next try is due in a container that started at `started_ms`; none while one is under way.
    pub(super) fn due_ms(&self, probe: &Probe, started_ms: u64) -> Option<u64> {
        if self.in_flight {
            return None;
        }
        let first_ms = started_ms.saturating_add(probe.initial_delay_ms);
        Some(self.due_ms.unwrap_or(first_ms))
    }

    /// A try begins.
    pub(super) fn begin(&mut self, probe: &Probe, now_ms: u64) {
        self.in_flight = true;
        // A period of 0 would let the supervisor spin.
        self.due_ms = Some(now_ms.saturating_add(probe.period_ms.max(1)));
    }

    /// A try has ended; the new verdict if it changed.
    pub(super) fn end(&mut self, probe: &Probe, success: bool) -> Option<bool> {
        self.in_flight = false;
        if self.last == success && self.in_a_row > 0 {
            self.in_a_row = self.in_a_row.saturating_add(1);
        } else {
            self.last = success;
            self.in_a_row = 1;
        }
        let needed = if success {
            probe.success_threshold
        } else {
            probe.failure_threshold
        };
        if self.in_a_row < needed || self.verdict == Some(success) {
            return None;
        }
        self.verdict = Some(success);
        self.verdict
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pod::plan::Handler;

    fn probe(success_threshold: u32, failure_threshold: u32) -> Probe {
        Probe {
            handler: Handler::Tcp {
                host: None,
                port: 80,
            },
            initial_delay_ms: 500,
            period_ms: 1_000,
            timeout_ms: 1_000,
            success_threshold,
            failure_threshold,
            termination_grace_secs: None,
        }
    }

    #[test]
    fn thresholds_count_results_in_a_row() {
        let probe = probe(2, 3);
        let mut tries = Tries::default();
        let verdicts: Vec<_> = [true, true, false, false, true, false, false, false, true]
            .into_iter()
            .map(|success| tries.end(&probe, success))
            .collect();
        let none = None;
        assert_eq!(
            verdicts,
            [
                none,
                Some(true),
                none,
                none,
                none,
                none,
                none,
                Some(false),
                none
            ]
        );
        assert_eq!(tries.verdict(), Some(false));
    }

    #[test]
    fn the_first_try_waits_for_the_initial_delay_and_the_next_for_the_period() {
        let probe = probe(1, 1);
        let mut tries = Tries::default();
        assert_eq!(tries.due_ms(&probe, 10_000), Some(10_500));
        tries.begin(&probe, 10_600);
        assert_eq!(tries.due_ms(&probe, 10_000), None);
        tries.end(&probe, true);
        assert_eq!(tries.due_ms(&probe, 10_000), Some(11_600));
    }

    proptest! {
        #[test]
        fn a_verdict_is_what_the_last_tries_agreed_on(
            results in proptest::collection::vec(any::<bool>(), 1..60),
            success_threshold in 1_u32..4,
            failure_threshold in 1_u32..4,
        ) {
            let probe = probe(success_threshold, failure_threshold);
            let mut tries = Tries::default();
            let mut expected = None;
            for (i, &success) in results.iter().enumerate() {
                tries.end(&probe, success);
                let needed = if success { success_threshold } else { failure_threshold } as usize;
                if i + 1 >= needed && results[i + 1 - needed..=i].iter().all(|&r| r == success) {
                    expected = Some(success);
                }
                prop_assert_eq!(tries.verdict(), expected);
            }
        }
    }
}
