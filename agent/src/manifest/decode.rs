//! From a tree to a Kubernetes type, strictly: each unknown field and the first wrong type is reported with its
//! path and line.
//!
//! The Kubernetes types skip unknown fields by asking for an "ignored" value; this deserializer takes note of each.

use std::cell::RefCell;
use std::fmt;

use serde::de::{
    self, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor,
};

use super::node::{Node, NodeValue, child_path};

/// A field that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) path: String,
    pub(super) line: u32,
    pub(super) message: String,
    pub(super) remedy: Option<String>,
}

/// Decodes a tree. All unknown fields are reported, and the first wrong type.
pub(super) fn decode<T: de::DeserializeOwned>(node: &Node) -> Result<T, Vec<Fault>> {
    let faults = RefCell::new(Vec::new());
    let cursor = Cursor {
        node,
        path: String::new(),
        unknown_among: None,
        faults: &faults,
    };
    let decoded = T::deserialize(cursor);
    let mut faults = faults.into_inner();
    match decoded {
        Ok(value) if faults.is_empty() => Ok(value),
        Ok(_) => Err(faults),
        Err(error) => {
            faults.push(error.0);
            Err(faults)
        }
    }
}

/// The known name nearest to `name`, if it is near enough to be meant.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_lowercase();
    let distance = |candidate: &str| edit_distance(&lower, &candidate.to_lowercase());
    let nearest = known
        .into_iter()
        .min_by_key(|candidate| distance(candidate))?;
    (distance(nearest) <= (name.chars().count() / 3).max(1)).then_some(nearest)
}

/// Levenshtein's distance, of names up to 64 characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// A wrong type, with where it is.
#[derive(Debug)]
struct DecodeError(Fault);

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for DecodeError {}

impl de::Error for DecodeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        DecodeError(Fault {
            path: String::new(),
            line: 0,
            message: message.to_string(),
            remedy: None,
        })
    }
}

struct Cursor<'a> {
    node: &'a Node,
    path: String,
    /// Set for the value of a field: its siblings' names.
    unknown_among: Option<&'static [&'static str]>,
    faults: &'a RefCell<Vec<Fault>>,
}

impl<'a> Cursor<'a> {
    fn fault(&self, message: String, remedy: Option<String>) -> Fault {
        Fault {
            path: self.path.clone(),
            line: self.node.line,
            message,
            remedy,
        }
    }

    /// Tells an error where it happened, unless somebody deeper did.
    fn locate<T>(path: &str, line: u32, result: Result<T, DecodeError>) -> Result<T, DecodeError> {
        result.map_err(|DecodeError(fault)| {
            DecodeError(if fault.line == 0 && fault.path.is_empty() {
                Fault {
                    path: path.to_owned(),
                    line,
                    ..fault
                }
            } else {
                fault
            })
        })
    }

    fn wrong<T>(&self, expected: &str) -> Result<T, DecodeError> {
        let scalar = matches!(
            self.node.value,
            NodeValue::Bool(_) | NodeValue::Integer(_) | NodeValue::Float(_)
        );
        let remedy = match (expected, &self.node.value) {
            ("a text", _) if scalar => Some("put it in quotes".to_owned()),
            ("a number" | "a boolean", NodeValue::Text(_)) => {
                Some("write it without quotes".to_owned())
            }
            ("a list", NodeValue::Map(_)) => {
                Some("begin the line with `- ` to make it an item of a list".to_owned())
            }
            _ => None,
        };
        let message = format!("expected {expected}, found {}", self.node.describe());
        Err(DecodeError(self.fault(message, remedy)))
    }

    fn any<'de, V: Visitor<'de>>(
        self,
        visitor: V,
        fields: Option<&'static [&'static str]>,
    ) -> Result<V::Value, DecodeError> {
        let (path, line) = (self.path.clone(), self.node.line);
        let result = match &self.node.value {
            NodeValue::Null => visitor.visit_unit(),
            NodeValue::Bool(value) => visitor.visit_bool(*value),
            NodeValue::Integer(value) => match (i64::try_from(*value), u64::try_from(*value)) {
                (Ok(value), _) => visitor.visit_i64(value),
                (_, Ok(value)) => visitor.visit_u64(value),
                _ => visitor.visit_i128(*value),
            },
            NodeValue::Float(value) => visitor.visit_f64(*value),
            NodeValue::Text(text) => visitor.visit_str(text),
            NodeValue::List(items) => visitor.visit_seq(Items {
                items: items.iter().enumerate(),
                path: &path,
                faults: self.faults,
            }),
            NodeValue::Map(entries) => visitor.visit_map(Entries {
                entries: entries.iter(),
                value: None,
                path: &path,
                fields,
                faults: self.faults,
            }),
        };
        Self::locate(&path, line, result)
    }
}

macro_rules! integers {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
            match &self.node.value {
                NodeValue::Integer(_) => self.any(visitor, None),
                // YAML's `1.0` is the number 1, as in JSON.
                NodeValue::Float(value) if value.fract() == 0.0 && value.abs() < 1e15 => {
                    let (path, line) = (self.path.clone(), self.node.line);
                    Self::locate(&path, line, visitor.visit_i64(*value as i64))
                }
                _ => self.wrong("a number"),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Cursor<'_> {
    type Error = DecodeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.any(visitor, None)
    }

    integers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.node.value {
            NodeValue::Bool(_) => self.any(visitor, None),
            _ => self.wrong("a boolean"),
        }
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.node.value {
            NodeValue::Integer(_) | NodeValue::Float(_) => self.any(visitor, None),
            _ => self.wrong("a number"),
        }
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.node.value {
            NodeValue::Text(_) => self.any(visitor, None),
            _ => self.wrong("a text"),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        if self.node.is_null() {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        self.any(visitor, None)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.any(visitor, None)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        let (path, line) = (self.path.clone(), self.node.line);
        // `cpu: 1` and `cpu: 0.5` are quantities as well as `cpu: "1"`.
        let number = match &self.node.value {
            NodeValue::Integer(value) if name == "Quantity" => Some(value.to_string()),
            NodeValue::Float(value) if name == "Quantity" => Some(value.to_string()),
            _ => None,
        };
        let result = match number {
            Some(number) => visitor.visit_newtype_struct(number.into_deserializer()),
            None => visitor.visit_newtype_struct(self),
        };
        Self::locate(&path, line, result)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.node.value {
            NodeValue::List(_) => self.any(visitor, None),
            _ => self.wrong("a list"),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        match self.node.value {
            NodeValue::Map(_) => self.any(visitor, None),
            _ => self.wrong("a map"),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DecodeError> {
        match self.node.value {
            NodeValue::Map(_) => self.any(visitor, Some(fields)),
            _ => self.wrong("a map"),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, DecodeError> {
        // No type of the Kubernetes API is a Rust enum on the wire.
        self.wrong("another type")
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DecodeError> {
        let name = self.path.rsplit('.').next().unwrap_or_default();
        let known = self.unknown_among.unwrap_or_default();
        let remedy = match nearest(name, known.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => "remove it, or check its indentation".to_owned(),
        };
        let fault = self.fault("Kubernetes has no such field".to_owned(), Some(remedy));
        self.faults.borrow_mut().push(fault);
        visitor.visit_unit()
    }
}

struct Items<'a> {
    items: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
    path: &'a str,
    faults: &'a RefCell<Vec<Fault>>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = DecodeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, DecodeError> {
        let Some((at, node)) = self.items.next() else {
            return Ok(None);
        };
        let cursor = Cursor {
            node,
            path: format!("{}[{at}]", self.path),
            unknown_among: None,
            faults: self.faults,
        };
        seed.deserialize(cursor).map(Some)
    }
}

struct Entries<'a> {
    entries: std::slice::Iter<'a, (String, Node)>,
    value: Option<(&'a str, &'a Node)>,
    path: &'a str,
    fields: Option<&'static [&'static str]>,
    faults: &'a RefCell<Vec<Fault>>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = DecodeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, DecodeError> {
        let Some((key, node)) = self.entries.next() else {
            return Ok(None);
        };
        self.value = Some((key, node));
        let key: de::value::StrDeserializer<'_, DecodeError> = key.as_str().into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(
        &mut self,
        seed: V,
    ) -> Result<V::Value, DecodeError> {
        let (key, node) = self
            .value
            .take()
            .ok_or_else(|| de::Error::custom("a value was asked for before its key"))?;
        let path = child_path(self.path, key);
        let cursor = Cursor {
            node,
            path: path.clone(),
            unknown_among: self.fields,
            faults: self.faults,
        };
        Cursor::locate(&path, node.line, seed.deserialize(cursor))
    }
}
