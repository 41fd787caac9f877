//! How long a container waits before it is started again.

use serde::{Deserialize, Serialize};

use crate::pod::plan::BackOff;

/// The crashes of a container that are not forgiven yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Crashes {
    count: u32,
}

impl Crashes {
    /// Counts one more end of a container that ran for `ran_ms`, and says how long to wait before the next start, in
    /// milliseconds: nothing, then `initial_ms`, doubling to `max_ms`.
    pub(super) fn count(&mut self, rules: &BackOff, ran_ms: u64) -> u64 {
        if ran_ms >= rules.reset_ms {
            self.count = 0;
        }
        let delay_ms = match self.count {
            0 => 0,
            n => rules
                .initial_ms
                .saturating_mul(1_u64.checked_shl(n - 1).unwrap_or(u64::MAX))
                .min(rules.max_ms),
        };
        self.count = self.count.saturating_add(1);
        delay_ms
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_restart_is_immediate_and_the_next_double_up_to_the_cap() {
        let rules = BackOff::default();
        let mut crashes = Crashes::default();
        let delays: Vec<u64> = (0..8).map(|_| crashes.count(&rules, 1_000)).collect();
        assert_eq!(
            delays,
            [0, 10_000, 20_000, 40_000, 80_000, 160_000, 300_000, 300_000]
        );
    }

    #[test]
    fn a_long_run_is_forgiven() {
        let rules = BackOff::default();
        let mut crashes = Crashes::default();
        for _ in 0..5 {
            crashes.count(&rules, 1_000);
        }
        assert_eq!(crashes.count(&rules, 600_000), 0);
        assert_eq!(crashes.count(&rules, 599_999), 10_000);
    }

    proptest! {
        #[test]
        fn delays_never_shrink_without_forgiveness(initial_ms in 0_u64..100_000, max_ms in 0_u64..1_000_000) {
            let rules = BackOff { initial_ms, max_ms, reset_ms: 1 };
            let mut crashes = Crashes::default();
            let mut before = 0;
            for _ in 0..100 {
                let delay_ms = crashes.count(&rules, 0);
                prop_assert!(delay_ms >= before && delay_ms <= max_ms);
                before = delay_ms;
            }
        }
    }
}
