//! Spans of time for people, as kubectl prints them: `45s`, `5m30s`, `3h`, `12d`.

use jiff::Timestamp;

/// How long ago `then` was; `<unknown>` without it.
pub(crate) fn since(then: Option<Timestamp>, now: Timestamp) -> String {
    match then {
        Some(then) => span(now.as_second().saturating_sub(then.as_second())),
        None => "<unknown>".to_owned(),
    }
}

/// A number of seconds, with the two units that matter; a clock that went back shows as 0.
pub(crate) fn span(seconds: i64) -> String {
    const MINUTE: i64 = 60;
    const HOUR: i64 = 60 * MINUTE;
    const DAY: i64 = 24 * HOUR;
    let seconds = seconds.max(0);
    let two = |big: i64, big_name: &str, small: i64, small_name: &str| match small {
        0 => format!("{big}{big_name}"),
        _ => format!("{big}{big_name}{small}{small_name}"),
    };
    match seconds {
        s if s < 2 * MINUTE => format!("{s}s"),
        s if s < 10 * MINUTE => two(s / MINUTE, "m", s % MINUTE, "s"),
        s if s < 3 * HOUR => format!("{}m", s / MINUTE),
        s if s < 8 * HOUR => two(s / HOUR, "h", s % HOUR / MINUTE, "m"),
        s if s < 2 * DAY => format!("{}h", s / HOUR),
        s if s < 8 * DAY => two(s / DAY, "d", s % DAY / HOUR, "h"),
        s => format!("{}d", s / DAY),
    }
}

#[cfg(test)]
mod tests {
    use super::span;

    #[test]
    fn as_kubectl_prints_them() {
        let cases = [
            (-5, "0s"),
            (119, "119s"),
            (120, "2m"),
            (330, "5m30s"),
            (3600, "60m"),
            (11_000, "3h3m"),
            (86_400, "24h"),
            (200_000, "2d7h"),
            (1_000_000, "11d"),
        ];
        for (seconds, text) in cases {
            assert_eq!(span(seconds), text, "{seconds}");
        }
    }
}
