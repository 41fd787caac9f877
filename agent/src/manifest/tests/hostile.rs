//! Text that is meant to hurt, or was never meant to be YAML.

use super::*;

#[test]
fn hostile_yaml_alias_bomb_is_refused() {
    let mut text = String::from(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bomb}\nx0: &x0 [a,a,a,a,a,a,a,a,a,a]\n",
    );
    for at in 1..12 {
        let refs = vec![format!("*x{}", at - 1); 10].join(",");
        text.push_str(&format!("x{at}: &x{at} [{refs}]\n"));
    }
    let found = only_problem(&text);
    assert!(found.contains("its aliases stand for too much"), "{found}");
}

#[test]
fn hostile_manifest_of_100_mb_is_refused() {
    let text = format!("# {}\n{HELLO}", "x".repeat(100 << 20));
    assert!(only_problem(&text).contains("at most 8 MiB (8388608 bytes) are read"));
}

#[test]
fn hostile_nesting_is_refused() {
    for text in [
        format!("a: {}", "[".repeat(100_000)),
        format!("{}1", "{\"a\":".repeat(100_000)),
        (0..5000)
            .map(|depth| format!("{}a:\n", " ".repeat(depth)))
            .collect::<String>(),
    ] {
        assert!(!problems(&text).is_empty());
    }
}

#[test]
fn hostile_flood_of_documents_is_refused() {
    assert!(!problems(&"---\na\n".repeat(50_000)).is_empty());
    let items = "- {apiVersion: v1, kind: ConfigMap, metadata: {name: a}}\n".repeat(2000);
    assert!(!problems(&format!("apiVersion: v1\nkind: List\nitems:\n{items}")).is_empty());
}

#[test]
fn duplicate_keys_are_refused() {
    let found = only_problem(&HELLO.replace("    image:", "    name: again\n    image:"));
    assert!(
        found.starts_with("9 ") && found.contains("the key `name` is there twice"),
        "{found}"
    );
    let found = only_problem("{\"apiVersion\":\"v1\",\n\"apiVersion\":\"v1\"}");
    assert!(found.contains("duplicate"), "{found}");
}

#[test]
fn tabs_are_explained() {
    let found = only_problem("apiVersion: v1\nkind: Pod\nmetadata:\n\tname: x\n");
    assert!(found.contains("does not take tabs"), "{found}");
}
