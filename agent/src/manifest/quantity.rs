//! Kubernetes quantities: `100m`, `0.5`, `128Mi`, `1e3`.
//!
//! Syntax and limits as in the documentation of `resource.Quantity`: a signed decimal number with at most one
//! suffix of `n u m k M G T P E`, `Ki Mi Gi Ti Pi Ei`, or `e`/`E` and an exponent. Finer than 10^-9 is rounded up,
//! larger than 2^63-1 is refused here, where Kubernetes caps it.

/// What is wrong with a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not a number with a suffix.
    #[error("`{0}` is not a quantity")]
    Syntax(String),
    /// The number is fine, the suffix is none.
    #[error("`{0}` has an unknown suffix `{1}`")]
    Suffix(String, String),
    /// Larger than 2^63-1.
    #[error("`{0}` is too large")]
    TooLarge(String),
}

const NANO: i128 = 1_000_000_000;
/// 2^63 has 19 digits; 20 of them times 2^60 still fit an `i128`.
const DIGITS_MAX: usize = 20;
/// Finer than one part of the largest suffix.
const FRACTION_DIGITS_MAX: usize = 18;

/// The quantity in billionths.
///
/// # Errors
/// When it is not a quantity, or too large.
pub fn nanos(text: &str) -> Result<i128, QuantityError> {
    let syntax = || QuantityError::Syntax(text.to_owned());
    let too_large = || QuantityError::TooLarge(text.to_owned());
    let (negative, rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, suffix) = rest.split_at(end.unwrap_or(rest.len()));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return Err(syntax());
    }
    let factor = factor(text, suffix)?;
    let whole = whole.trim_start_matches('0');
    if whole.len() > DIGITS_MAX {
        return Err(too_large());
    }
    // The digits that do not fit are too small to matter: the number is rounded up.
    let room = (DIGITS_MAX - whole.len()).min(FRACTION_DIGITS_MAX);
    let (fraction, beyond) = fraction.split_at(fraction.len().min(room));
    let beyond = beyond.bytes().any(|digit| digit != b'0');
    let digits = whole.bytes().chain(fraction.bytes());
    let number = digits.fold(0, |number, digit| number * 10 + i128::from(digit - b'0'));
    let nanos = factor
        .scale(number, fraction.len(), beyond)
        .ok_or_else(too_large)?;
    if nanos > i128::from(i64::MAX) * NANO {
        return Err(too_large());
    }
    Ok(if negative { -nanos } else { nanos })
}

/// The quantity in thousandths, rounded up: cpu in millicores.
///
/// # Errors
/// As [`nanos`].
pub fn millis(text: &str) -> Result<i64, QuantityError> {
    let millis = div_up(nanos(text)?, NANO / 1000);
    i64::try_from(millis).map_err(|_| QuantityError::TooLarge(text.to_owned()))
}

/// The quantity in whole units, rounded up: memory in bytes.
///
/// # Errors
/// As [`nanos`].
pub fn units(text: &str) -> Result<i64, QuantityError> {
    let units = div_up(nanos(text)?, NANO);
    i64::try_from(units).map_err(|_| QuantityError::TooLarge(text.to_owned()))
}

fn div_up(value: i128, by: i128) -> i128 {
    value.div_euclid(by) + i128::from(value.rem_euclid(by) != 0)
}

/// What a suffix multiplies by.
#[derive(Debug, Clone, Copy)]
enum Factor {
    Binary(u32),
    Decimal(i32),
}

impl Factor {
    /// `number / 10^fraction_digits * factor`, in billionths, rounded up.
    fn scale(self, number: i128, fraction_digits: usize, beyond: bool) -> Option<i128> {
        let fraction_digits = i32::try_from(fraction_digits).ok()?;
        let (number, exponent) = match self {
            Factor::Binary(bits) => (number.checked_mul(1i128.checked_shl(bits)?)?, 9),
            Factor::Decimal(exponent) => (number, 9 + exponent),
        };
        let exponent = exponent - fraction_digits;
        let ten = |power: i32| 10i128.checked_pow(power.unsigned_abs());
        if number == 0 {
            return Some(i128::from(beyond));
        }
        if exponent >= 0 {
            let scaled = number.checked_mul(ten(exponent)?)?;
            return scaled.checked_add(i128::from(beyond));
        }
        match ten(exponent) {
            Some(divisor) => div_up(number, divisor).checked_add(i128::from(beyond)),
            // Far below a billionth.
            None => Some(1),
        }
    }
}

fn factor(text: &str, suffix: &str) -> Result<Factor, QuantityError> {
    let unknown = || QuantityError::Suffix(text.to_owned(), suffix.to_owned());
    Ok(match suffix {
        "n" => Factor::Decimal(-9),
        "u" => Factor::Decimal(-6),
        "m" => Factor::Decimal(-3),
        "" => Factor::Decimal(0),
        "k" => Factor::Decimal(3),
        "M" => Factor::Decimal(6),
        "G" => Factor::Decimal(9),
        "T" => Factor::Decimal(12),
        "P" => Factor::Decimal(15),
        "E" => Factor::Decimal(18),
        "Ki" => Factor::Binary(10),
        "Mi" => Factor::Binary(20),
        "Gi" => Factor::Binary(30),
        "Ti" => Factor::Binary(40),
        "Pi" => Factor::Binary(50),
        "Ei" => Factor::Binary(60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E']).ok_or_else(unknown)?;
            let exponent: i32 = exponent.parse().map_err(|_| unknown())?;
            // Beyond these the number is zero or too large, whatever its digits.
            Factor::Decimal(exponent.clamp(-60, 60))
        }
    })
}

/// What somebody who wrote this suffix meant.
pub fn suggestion(error: &QuantityError) -> Option<&'static str> {
    let QuantityError::Suffix(_, suffix) = error else {
        return None;
    };
    Some(match suffix.to_ascii_lowercase().as_str() {
        "kb" | "kib" => "Ki",
        "mb" | "mib" | "mi" => "Mi",
        "gb" | "gib" | "gi" => "Gi",
        "tb" | "tib" | "ti" => "Ti",
        "ki" => "Ki",
        "g" => "G",
        "t" => "T",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_of_the_documentation() {
        for (text, expected) in [
            ("0", 0),
            ("1", NANO),
            ("0.1", NANO / 10),
            ("100m", NANO / 10),
            ("250m", NANO / 4),
            (".5", NANO / 2),
            ("5.", 5 * NANO),
            ("1n", 1),
            ("0.1n", 1),
            ("1e3", 1000 * NANO),
            ("1E-3", NANO / 1000),
            ("12E", 12_000_000_000_000_000_000 / 2 * 2 * NANO),
            ("128Mi", 128 * 1024 * 1024 * NANO),
            ("1.5Gi", 3 * 512 * 1024 * 1024 * NANO),
            ("-1", -NANO),
            ("+1k", 1000 * NANO),
        ] {
            let found = nanos(text);
            if expected > i128::from(i64::MAX) * NANO {
                assert_eq!(found, Err(QuantityError::TooLarge(text.into())));
            } else {
                assert_eq!(found, Ok(expected), "{text}");
            }
        }
        assert_eq!(millis("0.0001"), Ok(1));
        assert_eq!(millis("200m"), Ok(200));
        assert_eq!(millis("2"), Ok(2000));
        assert_eq!(units("100Mi"), Ok(104_857_600));
        assert_eq!(units("1500m"), Ok(2));
        assert_eq!(
            units("0.00000000000000000000000000000000000000000001"),
            Ok(1)
        );
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in [
            "", "-", ".", "m", "1.2.3", "1 Mi", "1MB", "1mi", "1e", "0x10", "1,5", "١",
        ] {
            assert!(nanos(text).is_err(), "{text}");
        }
        let error = nanos("100Mb").expect_err("no suffix of Kubernetes");
        assert_eq!(suggestion(&error), Some("Mi"));
        let huge = "9".repeat(10_000_000);
        assert!(matches!(nanos(&huge), Err(QuantityError::TooLarge(_))));
        assert!(matches!(nanos("1e60"), Err(QuantityError::TooLarge(_))));
    }
}
