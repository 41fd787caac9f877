//! What holds for any text.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in ".{0,400}") {
        let _checked = read(&text);
    }

    #[test]
    fn no_edit_of_a_manifest_makes_the_parser_panic(
        at in 0..HELLO.len(),
        len in 0..40usize,
        inserted in "[-{}\\[\\]:,&*!|>'\"%@a0 \n\t]{0,8}",
    ) {
        let end = (at + len).min(HELLO.len());
        let _checked = read(&format!("{}{inserted}{}", &HELLO[..at], &HELLO[end..]));
    }

    #[test]
    fn quantities_never_panic(text in "[-+]?[0-9.]{0,45}[eEmkMGKi]{0,3}[-+0-9]{0,12}") {
        let _checked = quantity::nanos(&text);
    }

    #[test]
    fn the_hash_does_not_depend_on_the_order_of_keys(seed in any::<u64>()) {
        let json: serde_json::Value = serde_json::from_str(
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"m","labels":{"a":"1","b":"2"}},
                "data":{"x":"1","y":"2","z":"3"}}"#,
        ).expect("JSON");
        let written = shuffled(&json, seed);
        let (a, b) = (read(&json.to_string()), read(&written));
        prop_assert_eq!(&a.expect("good")[0].hash, &b.expect("good")[0].hash);
    }
}

/// JSON with the keys of each map in another order.
fn shuffled(value: &serde_json::Value, seed: u64) -> String {
    match value {
        serde_json::Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            let len = entries.len().max(1);
            entries.rotate_left(usize::try_from(seed % 7).unwrap_or(0) % len);
            if seed.is_multiple_of(2) {
                entries.reverse();
            }
            let entries = entries
                .iter()
                .map(|(k, v)| format!("\"{k}\": {}", shuffled(v, seed / 3)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}
