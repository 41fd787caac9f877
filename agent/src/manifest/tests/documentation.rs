//! The table of supported fields: it is whole, and the documentation is made from it.

use std::collections::BTreeSet;

use super::*;

/// The table and the documentation made from it.
#[test]
fn documentation_of_fields_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/manifest-fields.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, support::markdown()).expect("the documentation is written");
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    let hint = "docs/manifest-fields.md is old: run `UPDATE_DOCS=1 cargo test -p podling-agent documentation`";
    assert!(found == support::markdown(), "{hint}");
}

#[test]
fn the_table_names_no_field_twice_and_all_fields_of_kubernetes() {
    let mut seen = BTreeSet::new();
    for field in support_table::FIELDS {
        assert!(seen.insert(field.path), "{} stands twice", field.path);
    }
    let mut known = BTreeSet::new();
    schema::fields_of::<Pod>(&mut known);
    let forgotten: Vec<&String> = known.iter().filter(|path| !is_covered(path)).collect();
    assert!(
        forgotten.is_empty(),
        "the table says nothing about {forgotten:#?}"
    );
    // And nothing that Kubernetes does not have.
    let invented = support_table::FIELDS
        .iter()
        .filter(|field| !field.path.ends_with('*') && !known.contains(field.path));
    assert_eq!(
        invented.map(|field| field.path).collect::<Vec<_>>(),
        [""; 0]
    );
}

fn is_covered(path: &str) -> bool {
    let path = path
        .replace("spec.initContainers", "spec.containers")
        .replace(".readinessProbe", ".livenessProbe")
        .replace(".startupProbe", ".livenessProbe")
        .replace(".postStart", ".preStop");
    let mut end = path.len();
    loop {
        let rule = support::rule(path[..end].trim_end_matches("[]"));
        match rule.map(|field| field.support) {
            Some(support::Support::Applied) => return end == path.len(),
            Some(_) => return true,
            None => {}
        }
        match path[..end].rfind('.') {
            Some(dot) => end = dot,
            None => return false,
        }
    }
}

/// Finds the fields of a type by deserializing it from something that has all of them.
mod schema {
    use std::collections::BTreeSet;

    use serde::de::value::{Error, StrDeserializer};
    use serde::de::{
        DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess,
        Visitor,
    };

    pub(super) fn fields_of<T: DeserializeOwned>(found: &mut BTreeSet<String>) {
        let all = All {
            path: String::new(),
            found,
        };
        T::deserialize(all)
            .map(drop)
            .expect("a value with all fields");
    }

    struct All<'a> {
        path: String,
        found: &'a mut BTreeSet<String>,
    }

    impl<'de> Deserializer<'de> for All<'_> {
        type Error = Error;

        fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.visit_i64(1)
        }

        fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.visit_bool(true)
        }

        fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            // The one text that is also a time.
            match self.path.as_str() {
                "kind" => visitor.visit_str("Pod"),
                "apiVersion" => visitor.visit_str("v1"),
                _ => visitor.visit_str("2020-01-01T00:00:00Z"),
            }
        }

        fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.deserialize_str(visitor)
        }

        fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.visit_some(self)
        }

        fn deserialize_newtype_struct<V: Visitor<'de>>(
            self,
            _name: &'static str,
            visitor: V,
        ) -> Result<V::Value, Error> {
            visitor.visit_newtype_struct(self)
        }

        fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.visit_seq(One {
                path: format!("{}[]", self.path),
                found: self.found,
                done: false,
            })
        }

        fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.visit_map(Fields {
                path: self.path,
                fields: &[],
                at: 0,
                found: self.found,
            })
        }

        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _name: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, Error> {
            visitor.visit_map(Fields {
                path: self.path,
                fields,
                at: 0,
                found: self.found,
            })
        }

        serde::forward_to_deserialize_any! {
            i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct tuple
            tuple_struct enum identifier ignored_any
        }
    }

    struct One<'a> {
        path: String,
        found: &'a mut BTreeSet<String>,
        done: bool,
    }

    impl<'de> SeqAccess<'de> for One<'_> {
        type Error = Error;

        fn next_element_seed<T: DeserializeSeed<'de>>(
            &mut self,
            seed: T,
        ) -> Result<Option<T::Value>, Error> {
            if std::mem::replace(&mut self.done, true) {
                return Ok(None);
            }
            let path = self.path.clone();
            seed.deserialize(All {
                path,
                found: self.found,
            })
            .map(Some)
        }
    }

    struct Fields<'a> {
        path: String,
        fields: &'static [&'static str],
        at: usize,
        found: &'a mut BTreeSet<String>,
    }

    impl<'de> MapAccess<'de> for Fields<'_> {
        type Error = Error;

        fn next_key_seed<K: DeserializeSeed<'de>>(
            &mut self,
            seed: K,
        ) -> Result<Option<K::Value>, Error> {
            let Some(field) = self.fields.get(self.at) else {
                return Ok(None);
            };
            let key: StrDeserializer<'_, Error> = (*field).into_deserializer();
            seed.deserialize(key).map(Some)
        }

        fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
            let field = self.fields[self.at];
            self.at += 1;
            let path = match self.path.as_str() {
                "" => field.to_owned(),
                parent => format!("{parent}.{field}"),
            };
            self.found.insert(path.clone());
            seed.deserialize(All {
                path,
                found: self.found,
            })
        }
    }
}
