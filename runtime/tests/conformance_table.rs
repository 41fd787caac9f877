//! Every test that CONFORMANCE.md names is there.

use std::fs;
use std::path::Path;

#[test]
fn the_tests_that_the_table_names_exist() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(here.join("CONFORMANCE.md")).expect("the document");
    let names = text.split('`').skip(1).step_by(2);
    let mut seen = 0;
    for name in names {
        let (file, test) = match name.split_once("::") {
            Some((file, test)) => (file, Some(test)),
            None => (name, None),
        };
        if !file.ends_with(".rs") {
            continue;
        }
        let source = fs::read_to_string(here.join("tests").join(file))
            .unwrap_or_else(|error| panic!("{file}: {error}"));
        if let Some(test) = test {
            assert!(source.contains(&format!("fn {test}()")), "{name}");
        }
        seen += 1;
    }
    assert!(seen > 40, "the table was not read");
}
