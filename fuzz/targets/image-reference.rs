//! Image references: any text is taken or refused, and what is taken is written as it is read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podling_images::Reference;

fuzz_target!(|text: &str| {
    let Ok(reference) = Reference::parse(text) else {
        return;
    };
    for again in [reference.to_string(), reference.familiar()] {
        assert_eq!(Reference::parse(&again).as_ref(), Ok(&reference), "{again}");
    }
    let canonical = reference.canonical();
    assert_eq!(canonical.canonical(), canonical);
    // Names become paths and URLs.
    assert!(!reference.repository().split('/').any(|part| part == ".." || part.is_empty()));
    assert!(reference.tag().is_some() || reference.digest().is_some());
});
