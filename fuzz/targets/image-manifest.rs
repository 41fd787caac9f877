//! Manifests and indexes: any bytes are an image, an index, or refused with a short text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podling_images::{DocumentKind, check_document};

fuzz_target!(|json: &[u8]| {
    match check_document(json) {
        Ok(DocumentKind::Image(layers)) => assert!((1..=500).contains(&layers)),
        Ok(DocumentKind::Index(entries)) => assert!(entries > 0),
        Err(error) => assert!(error.to_string().len() <= 4096 + 8 * json.len()),
    }
});
