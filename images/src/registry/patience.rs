//! How long a registry is waited for. Whatever it does, a pull costs bounded time: each wait has a deadline, each retry
//! is counted, and a download that crawls is given up.

use std::time::{Duration, SystemTime};

use super::RegistryError;

/// How long a registry is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patience {
    /// For a connection with its TLS handshake.
    pub connect: Duration,
    /// For the next byte of an answer. Also the time over which the rate is measured.
    pub idle: Duration,
    /// A download that brings less over [`Patience::idle`] is as good as dead: it goes on by another connection.
    pub min_bytes_per_second: u64,
    /// For the whole of a small answer: a manifest, a configuration, a token, an error.
    pub small_answer: Duration,
    /// Longer than this, `Retry-After` is not obeyed but reported.
    pub retry_after_max: Duration,
    /// Tries in a row that bring nothing, before a request or download is given up.
    pub tries: u32,
    /// The first wait between tries; it doubles with each.
    pub back_off_min: Duration,
    /// The longest wait between tries.
    pub back_off_max: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            // Handshakes around the world take a second or two; lost SYNs are sent again after 1, 3 and 7 s.
            connect: Duration::from_secs(15),
            // As long as Docker and containerd wait for a byte, about.
            idle: Duration::from_secs(60),
            // The slowest link that is worth a try is GPRS, with some 4 KiB/s.
            min_bytes_per_second: 1024,
            // 4 MiB, the largest manifest, at 35 KiB/s.
            small_answer: Duration::from_secs(120),
            // The agent has a back-off of its own, of at most 5 minutes.
            retry_after_max: Duration::from_secs(60),
            tries: 5,
            back_off_min: Duration::from_millis(500),
            back_off_max: Duration::from_secs(8),
        }
    }
}

impl Patience {
    /// The wait after so many failures, with a jitter of up to a half so that nodes do not come back together.
    pub(super) fn back_off(&self, failures: u32) -> Duration {
        let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
        let wait = self.back_off_min.saturating_mul(doubled);
        let wait = wait.min(self.back_off_max);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let jitter = now.map_or(0, |now| now.subsec_nanos() % 500);
        wait + wait * jitter / 1000
    }

    /// How long to wait before the next try; none when there should be none.
    pub(crate) fn wait_after(&self, error: &RegistryError, failures: u32) -> Option<Duration> {
        if !error.is_transient() || failures >= self.tries {
            return None;
        }
        match error {
            // Who is not there at all is reported at once: the caller has a back-off of its own.
            RegistryError::Connect { source, .. } if source.is_at_connect() => None,
            RegistryError::Status {
                retry_after: Some(wait),
                ..
            } => (*wait <= self.retry_after_max).then_some(*wait),
            _ => Some(self.back_off(failures)),
        }
    }

    /// What a download must bring in so long.
    pub(super) fn least_bytes(&self, elapsed: Duration) -> u64 {
        let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        self.min_bytes_per_second.saturating_mul(millis) / 1000
    }
}

/// The wait that a `Retry-After` header asks for: seconds, or a date (RFC 9110, section 10.2.3). A date that is past
/// is no wait.
pub(super) fn retry_after(header: &str, now: jiff::Timestamp) -> Option<Duration> {
    let header = header.trim();
    if let Ok(secs) = header.parse() {
        return Some(Duration::from_secs(secs));
    }
    let until = jiff::fmt::rfc2822::DateTimeParser::new()
        .parse_timestamp(header)
        .ok()?;
    Some(Duration::try_from(until.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for (header, expected) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("Thu, 01 Jan 2026 00:01:30 GMT", Some(90)),
            ("Wed, 31 Dec 2025 23:00:00 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            let expected = expected.map(Duration::from_secs);
            assert_eq!(retry_after(header, now), expected, "{header}");
        }
    }

    #[test]
    fn the_wait_doubles_up_to_a_limit() {
        let patience = Patience::default();
        for (failures, least_ms) in [(1, 500), (2, 1000), (5, 8000), (60, 8000)] {
            let wait = patience.back_off(failures).as_millis();
            assert!(wait >= least_ms && wait <= least_ms * 3 / 2, "{wait}");
        }
    }
}
