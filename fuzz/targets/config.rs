//! The configuration parser and the validation of what it read: any bytes are taken or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podling_runtime::container;

fuzz_target!(|text: &[u8]| {
    if let Ok(spec) = container::config::parse_spec(text) {
        container::validate(&spec).ok();
    }
    container::config::parse_process(text).ok();
});
