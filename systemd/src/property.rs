//! Properties of units, as D-Bus takes them (org.freedesktop.systemd1(5)).

use zbus::zvariant::Value;

/// A property that a unit is made with, or that is changed while it runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Property {
    /// As `MemoryMax`.
    pub name: String,
    /// Its value; systemd refuses one of the wrong type.
    pub value: PropertyValue,
}

/// A property's value, in the types that systemd's properties have.
#[derive(Debug, Clone, PartialEq)]
pub enum PropertyValue {
    /// `b`
    Bool(bool),
    /// `i`
    I32(i32),
    /// `u`
    U32(u32),
    /// `x`
    I64(i64),
    /// `t`; [`PropertyValue::INFINITY`] is no limit.
    U64(u64),
    /// `d`
    Double(f64),
    /// `s`
    Text(String),
    /// `as`
    Texts(Vec<String>),
    /// `ay`, such as sets of processors.
    Bytes(Vec<u8>),
    /// `a(ss)`, such as devices with accesses.
    Pairs(Vec<(String, String)>),
    /// `a(st)`, such as devices with rates.
    Rates(Vec<(String, u64)>),
}

impl PropertyValue {
    /// No limit.
    pub const INFINITY: Self = Self::U64(u64::MAX);
}

impl Property {
    /// A property.
    pub fn new(name: impl Into<String>, value: PropertyValue) -> Self {
        Self {
            name: name.into(),
            value,
        }
    }

    /// A property with its value as text in GVariant's notation, as engines write it into annotations: `true`, `7`,
    /// `uint64 7`, `'text'`, `['a', 'b']`. A time whose name ends in `Sec`, not `USec`, is given in seconds, and becomes the
    /// property in microseconds that systemd has.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn parse(name: &str, text: &str) -> Result<Self, String> {
        let value = parse_value(text).ok_or_else(|| {
            format!(
                "{text:?} is no value that is understood, as true, uint64 7, 'text' or ['a', 'b']"
            )
        })?;
        let stem = name.strip_suffix("Sec").filter(|it| !it.ends_with('U'));
        let Some(stem) = stem else {
            return Ok(Self::new(name, value));
        };
        let usecs = match value {
            PropertyValue::I32(secs) => u64::try_from(secs).ok().map(|it| it * 1_000_000),
            PropertyValue::I64(secs) => u64::try_from(secs)
                .ok()
                .and_then(|it| it.checked_mul(1_000_000)),
            PropertyValue::U32(secs) => Some(u64::from(secs) * 1_000_000),
            PropertyValue::U64(u64::MAX) => Some(u64::MAX),
            PropertyValue::U64(secs) => secs.checked_mul(1_000_000),
            PropertyValue::Double(secs) if secs >= 0.0 => Some((secs * 1e6) as u64),
            _ => None,
        };
        let usecs = usecs.ok_or_else(|| format!("{text:?} is no number of seconds"))?;
        Ok(Self::new(format!("{stem}USec"), PropertyValue::U64(usecs)))
    }

    pub(crate) fn to_pair(&self) -> (&str, Value<'_>) {
        let value = match &self.value {
            PropertyValue::Bool(value) => Value::from(*value),
            PropertyValue::I32(value) => Value::from(*value),
            PropertyValue::U32(value) => Value::from(*value),
            PropertyValue::I64(value) => Value::from(*value),
            PropertyValue::U64(value) => Value::from(*value),
            PropertyValue::Double(value) => Value::from(*value),
            PropertyValue::Text(value) => Value::from(value.as_str()),
            PropertyValue::Texts(value) => Value::from(value.clone()),
            PropertyValue::Bytes(value) => Value::from(value.clone()),
            PropertyValue::Pairs(value) => Value::from(value.clone()),
            PropertyValue::Rates(value) => Value::from(value.clone()),
        };
        (&self.name, value)
    }
}

/// GVariant's text format, as far as properties use it.
fn parse_value(text: &str) -> Option<PropertyValue> {
    let text = text.trim();
    if let Some(text) = unquote(text) {
        return Some(PropertyValue::Text(text));
    }
    if let Some(list) = text.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
        return list_of_texts(list).map(PropertyValue::Texts);
    }
    match text {
        "true" => return Some(PropertyValue::Bool(true)),
        "false" => return Some(PropertyValue::Bool(false)),
        _ => {}
    }
    let Some((kind, number)) = text.split_once(' ') else {
        return match text.parse() {
            Ok(number) => Some(PropertyValue::I32(number)),
            Err(_) => text.parse().ok().map(PropertyValue::Double),
        };
    };
    let number = number.trim();
    match kind {
        "int32" => number.parse().ok().map(PropertyValue::I32),
        "uint32" => number.parse().ok().map(PropertyValue::U32),
        "int64" => number.parse().ok().map(PropertyValue::I64),
        "uint64" => number.parse().ok().map(PropertyValue::U64),
        "double" => number.parse().ok().map(PropertyValue::Double),
        "boolean" => number.parse().ok().map(PropertyValue::Bool),
        "string" => unquote(number).map(PropertyValue::Text),
        _ => None,
    }
}

/// `'text'` or `"text"` without quotes of its own kind inside.
fn unquote(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|it| matches!(it, '\'' | '"'))?;
    let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
    (!inner.contains([quote, '\\'])).then(|| inner.to_owned())
}

/// `'a', 'b'`
fn list_of_texts(list: &str) -> Option<Vec<String>> {
    if list.trim().is_empty() {
        return Some(Vec::new());
    }
    list.split(',').map(|item| unquote(item.trim())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_are_understood() {
        let value = |text| Property::parse("X", text).map(|it| it.value);
        assert_eq!(value("true"), Ok(PropertyValue::Bool(true)));
        assert_eq!(value("15"), Ok(PropertyValue::I32(15)));
        assert_eq!(value("uint64 10000000"), Ok(PropertyValue::U64(10_000_000)));
        assert_eq!(
            value("'inactive-or-failed'"),
            Ok(PropertyValue::Text("inactive-or-failed".to_owned()))
        );
        assert_eq!(
            value("['crio.service', \"x\"]"),
            Ok(PropertyValue::Texts(vec![
                "crio.service".into(),
                "x".into()
            ]))
        );
        assert_eq!(value("[]"), Ok(PropertyValue::Texts(Vec::new())));
        for wrong in ["", "'", "uint64 x", "[7]", "nonsense", "'a'b'"] {
            assert!(value(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn seconds_become_microseconds() {
        let property = Property::parse("TimeoutStopSec", "uint64 10").unwrap();
        assert_eq!(property.name, "TimeoutStopUSec");
        assert_eq!(property.value, PropertyValue::U64(10_000_000));
        assert!(Property::parse("TimeoutStopSec", "'x'").is_err());
        let property = Property::parse("TimeoutStopUSec", "uint64 10").unwrap();
        assert_eq!(property.value, PropertyValue::U64(10));
    }
}
