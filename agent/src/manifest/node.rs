//! A manifest as a tree that knows the line of each value.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    /// From 1; 0 when it is not known.
    pub(super) line: u32,
    pub(super) value: NodeValue,
}

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum NodeValue {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    /// In the order of the manifest; no key twice.
    Map(Vec<(String, Node)>),
}

impl Node {
    /// The value of a key of a map.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            NodeValue::Map(entries) => entries
                .iter()
                .find(|(name, _)| name == key)
                .map(|(_, node)| node),
            _ => None,
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            NodeValue::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn is_null(&self) -> bool {
        self.value == NodeValue::Null
    }

    /// The line of a field such as `spec.containers[0].image` or `metadata.labels[a.b/c]`, or of the nearest
    /// value around it that is there.
    pub(super) fn line_of(&self, path: &str) -> u32 {
        let mut node = self;
        let mut rest = path;
        while !rest.is_empty() {
            let segment;
            (segment, rest) = split_first(rest);
            let next = match &node.value {
                NodeValue::List(items) => segment.parse().ok().and_then(|at: usize| items.get(at)),
                NodeValue::Map(_) => node.get(segment),
                _ => None,
            };
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node.line
    }

    /// What it is, for messages.
    pub(super) fn describe(&self) -> String {
        match &self.value {
            NodeValue::Null => "nothing".to_owned(),
            NodeValue::Bool(value) => format!("the boolean {value}"),
            NodeValue::Integer(value) => format!("the number {value}"),
            NodeValue::Float(value) => format!("the number {value}"),
            NodeValue::Text(value) if value.chars().count() > 40 => "a long text".to_owned(),
            NodeValue::Text(value) => format!("the text `{value}`"),
            NodeValue::List(_) => "a list".to_owned(),
            NodeValue::Map(_) => "a map".to_owned(),
        }
    }

    /// The same value as JSON, whose maps are sorted: equal for equal manifests.
    pub(super) fn to_json(&self) -> serde_json::Value {
        use serde_json::Value;
        match &self.value {
            NodeValue::Null => Value::Null,
            NodeValue::Bool(value) => Value::Bool(*value),
            NodeValue::Integer(value) => serde_json::Number::from_i128(*value)
                .map_or_else(|| Value::String(value.to_string()), Value::Number),
            NodeValue::Float(value) => Value::from(*value),
            NodeValue::Text(text) => Value::String(text.clone()),
            NodeValue::List(items) => Value::Array(items.iter().map(Node::to_json).collect()),
            NodeValue::Map(entries) => {
                let entries = entries.iter();
                Value::Object(entries.map(|(k, v)| (k.clone(), v.to_json())).collect())
            }
        }
    }

    /// Takes the lines of a tree of the same shape.
    pub(super) fn take_lines(&mut self, from: &Node) {
        self.line = from.line;
        match (&mut self.value, &from.value) {
            (NodeValue::List(items), NodeValue::List(from)) => {
                for (item, from) in items.iter_mut().zip(from) {
                    item.take_lines(from);
                }
            }
            (NodeValue::Map(entries), NodeValue::Map(from)) => {
                for ((_, item), (_, from)) in entries.iter_mut().zip(from) {
                    item.take_lines(from);
                }
            }
            _ => {}
        }
    }
}

/// `a.b[c.d].e` into `a` and `b[c.d].e`; `[c.d].e` into `c.d` and `e`.
fn split_first(path: &str) -> (&str, &str) {
    if let Some(inner) = path.strip_prefix('[') {
        let (segment, rest) = inner.split_once(']').unwrap_or((inner, ""));
        return (segment, rest.strip_prefix('.').unwrap_or(rest));
    }
    match path.find(['.', '[']) {
        Some(end) if path.as_bytes()[end] == b'.' => (&path[..end], &path[end + 1..]),
        Some(end) => path.split_at(end),
        None => (path, ""),
    }
}

/// The path of a key below `parent`, in the notation of [`Node::line_of`].
pub(super) fn child_path(parent: &str, key: &str) -> String {
    let plain = !key.is_empty()
        && key
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '/'));
    match (parent.is_empty(), plain) {
        (true, true) => key.to_owned(),
        (false, true) => format!("{parent}.{key}"),
        (_, false) => format!("{parent}[{key}]"),
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_any(NodeVisitor::<Plain>::default())
            .map(|value| Node { line: 0, value })
    }
}

/// A node of a YAML document, with its line.
pub(super) struct Located(pub(super) Node);

impl<'de> Deserialize<'de> for Located {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<LocatedValue>::deserialize(deserializer)?;
        Ok(Located(Node {
            line: u32::try_from(spanned.referenced.line()).unwrap_or(0),
            value: spanned.value.0,
        }))
    }
}

struct LocatedValue(NodeValue);

impl<'de> Deserialize<'de> for LocatedValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let visitor = NodeVisitor::<Located>::default();
        deserializer.deserialize_any(visitor).map(LocatedValue)
    }
}

/// A node whose format has no lines to tell.
struct Plain(Node);

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Node::deserialize(deserializer).map(Plain)
    }
}

impl From<Plain> for Node {
    fn from(plain: Plain) -> Self {
        plain.0
    }
}

impl From<Located> for Node {
    fn from(located: Located) -> Self {
        located.0
    }
}

struct NodeVisitor<C>(std::marker::PhantomData<C>);

impl<C> Default for NodeVisitor<C> {
    fn default() -> Self {
        Self(std::marker::PhantomData)
    }
}

impl<'de, C: Deserialize<'de> + Into<Node>> Visitor<'de> for NodeVisitor<C> {
    type Value = NodeValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<NodeValue, E> {
        Ok(NodeValue::Null)
    }

    fn visit_none<E>(self) -> Result<NodeValue, E> {
        Ok(NodeValue::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<NodeValue, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<NodeValue, E> {
        Ok(NodeValue::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<NodeValue, E> {
        Ok(NodeValue::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<NodeValue, E> {
        Ok(NodeValue::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<NodeValue, E> {
        Ok(NodeValue::Integer(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<NodeValue, E> {
        Ok(NodeValue::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<NodeValue, E> {
        Ok(NodeValue::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<NodeValue, E> {
        Ok(NodeValue::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<NodeValue, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<C>()? {
            items.push(item.into());
        }
        Ok(NodeValue::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<NodeValue, A::Error> {
        let mut entries: Vec<(String, Node)> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if !seen.insert(key.clone()) {
                return Err(de::Error::custom(format_args!("duplicate key `{key}`")));
            }
            entries.push((key, map.next_value::<C>()?.into()));
        }
        Ok(NodeValue::Map(entries))
    }
}
