//! Maps of JSON in which no key may be given twice: two readers could take different ones.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A map that has each key once; serde's own takes the last.
pub(super) struct Once<T>(pub(super) BTreeMap<String, T>);

impl<T> Default for Once<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Once<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Once<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Once<T>, A::Error> {
                let mut once = BTreeMap::new();
                while let Some((key, value)) = entries.next_entry::<String, T>()? {
                    if once.contains_key(&key) {
                        let twice = format!("duplicate field `{key}`");
                        return Err(serde::de::Error::custom(twice));
                    }
                    once.insert(key, value);
                }
                Ok(Once(once))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}
