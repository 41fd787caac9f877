//! Lengths of time as people write them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A length of time in a configuration: `2m`, `1h30m`, or a number of seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "String")]
pub struct Length(pub Duration);

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Seconds(u32),
    Text(String),
}

impl TryFrom<Written> for Length {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Seconds(seconds) => Ok(Self(Duration::from_secs(seconds.into()))),
            Written::Text(text) => parse_duration(&text).map(Self),
        }
    }
}

impl From<Length> for String {
    fn from(length: Length) -> Self {
        format!("{}s", length.0.as_secs())
    }
}

/// Reads `30s`, `5m`, `1h30m`, `2d`, `500ms`, or a number of seconds.
///
/// # Errors
/// What would be right.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    const HELP: &str = "give a time such as 30s, 5m, 1h30m or 2d";
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(Duration::from_secs(seconds.into()));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(HELP.to_owned());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or(HELP)?;
        let number: u32 = rest[..digits].parse().map_err(|_| HELP)?;
        rest = &rest[digits..];
        let unit_len = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        let unit = match &rest[..unit_len] {
            "ms" => Duration::from_millis(1),
            "s" => Duration::from_secs(1),
            "m" => Duration::from_secs(60),
            "h" => Duration::from_secs(3600),
            "d" => Duration::from_secs(86_400),
            _ => return Err(HELP.to_owned()),
        };
        rest = &rest[unit_len..];
        total = unit
            .checked_mul(number)
            .and_then(|d| total.checked_add(d))
            .ok_or(HELP)?;
    }
    Ok(total)
}
