//! One moment, on two clocks: durations are measured on the monotonic one, people are told the other.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustix::time::{ClockId, clock_gettime};

/// One moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Milliseconds since the machine started, its sleep included (`CLOCK_BOOTTIME`): the same for every process,
    /// so that a deadline outlives a supervisor.
    pub ms: u64,
    /// What a clock on the wall shows.
    pub wall: Timestamp,
}

impl Now {
    /// Reads both clocks.
    pub fn read() -> Self {
        let boot = clock_gettime(ClockId::Boottime);
        let since_boot = Duration::try_from(boot).unwrap_or_default();
        Self {
            ms: u64::try_from(since_boot.as_millis()).unwrap_or(u64::MAX),
            wall: Timestamp::now(),
        }
    }

    /// What a clock on the wall will show at a monotonic time, if nobody sets it.
    pub fn wall_at(&self, ms: u64) -> Timestamp {
        let ahead = i64::try_from(ms.saturating_sub(self.ms)).unwrap_or(i64::MAX);
        self.wall
            .saturating_add(SignedDuration::from_millis(ahead))
            .unwrap_or(Timestamp::MAX)
    }
}
