//! Kubernetes quantities (`100m`, `1.5Gi`, `2e3`) as whole numbers.
//!
//! The grammar is that of `k8s.io/apimachinery/pkg/api/resource`: a decimal number and one suffix. Values are rounded
//! up, as there: a request is never less than what was written.

/// A text that is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a quantity: use a number with one of n, u, m, k, M, G, T, P, E, Ki, Mi, Gi, Ti, Pi, Ei"
)]
pub struct QuantityError(pub String);

/// The whole units in a quantity, rounded up: bytes of a memory size.
///
/// # Errors
/// When the text is not a quantity, or is too large.
pub fn units(text: &str) -> Result<i64, QuantityError> {
    scaled(text, 1)
}

/// The thousandths in a quantity, rounded up: millicores of a CPU share.
///
/// # Errors
/// When the text is not a quantity, or is too large.
pub fn millis(text: &str) -> Result<i64, QuantityError> {
    scaled(text, 1000)
}

/// `text * scale`, rounded away from zero.
fn scaled(text: &str, scale: i128) -> Result<i64, QuantityError> {
    let error = || QuantityError(text.to_owned());
    let (negative, rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let number_len = rest
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(number_len);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || fraction.contains('.') || number.len() > 30 {
        return Err(error());
    }
    let mut numerator: i128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        numerator = numerator * 10 + i128::from(digit - b'0');
    }
    let mut denominator = 10_i128
        .checked_pow(u32::try_from(fraction.len()).map_err(|_| error())?)
        .ok_or_else(error)?;
    let (up, down) = multiplier(suffix).ok_or_else(error)?;
    numerator = numerator
        .checked_mul(up)
        .and_then(|n| n.checked_mul(scale))
        .ok_or_else(error)?;
    denominator = denominator.checked_mul(down).ok_or_else(error)?;
    let rounded = numerator / denominator + i128::from(numerator % denominator != 0);
    let value = i64::try_from(rounded).map_err(|_| error())?;
    Ok(if negative { -value } else { value })
}

/// A suffix as a factor: numerator and denominator.
fn multiplier(suffix: &str) -> Option<(i128, i128)> {
    let decimal = |power: u32| 10_i128.pow(power);
    let binary = |power: u32| 1_i128 << (10 * power);
    Some(match suffix {
        "n" => (1, decimal(9)),
        "u" => (1, decimal(6)),
        "m" => (1, decimal(3)),
        "" => (1, 1),
        "k" => (decimal(3), 1),
        "M" => (decimal(6), 1),
        "G" => (decimal(9), 1),
        "T" => (decimal(12), 1),
        "P" => (decimal(15), 1),
        "E" => (decimal(18), 1),
        "Ki" => (binary(1), 1),
        "Mi" => (binary(2), 1),
        "Gi" => (binary(3), 1),
        "Ti" => (binary(4), 1),
        "Pi" => (binary(5), 1),
        "Ei" => (binary(6), 1),
        exponent => {
            let power: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let size = decimal(
                u32::try_from(power.unsigned_abs())
                    .ok()
                    .filter(|p| *p <= 18)?,
            );
            if power < 0 { (1, size) } else { (size, 1) }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn suffixes() {
        for (text, expected) in [
            ("0", 0),
            ("128974848", 128_974_848),
            ("129e6", 129_000_000),
            ("129M", 129_000_000),
            ("123Mi", 128_974_848),
            ("1.5Gi", 1_610_612_736),
            ("0.5", 1),
            ("1E", 1_000_000_000_000_000_000),
            ("100m", 1),
            ("-1", -1),
            ("+2k", 2000),
            (".5k", 500),
        ] {
            assert_eq!(units(text), Ok(expected), "{text}");
        }
        for (text, expected) in [
            ("100m", 100),
            ("0.1", 100),
            ("2", 2000),
            ("1500u", 2),
            ("1n", 1),
        ] {
            assert_eq!(millis(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn not_quantities() {
        for text in [
            "", "m", "1.2.3", "1 Gi", "1gi", "0x10", "1e", "1e99", "16Ei", "--1", "1mm", "é",
        ] {
            assert!(units(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "[-+.0-9eEkKMGTPmunié ]{0,24}") {
            let known = units(&text).is_ok();
            prop_assert!(!known || !text.is_empty());
        }

        #[test]
        fn plain_numbers_are_themselves(value in 0..i64::MAX / 1000) {
            prop_assert_eq!(units(&value.to_string()), Ok(value));
            prop_assert_eq!(millis(&format!("{value}m")), Ok(value));
        }
    }
}
