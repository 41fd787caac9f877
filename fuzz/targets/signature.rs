//! Signature policies, the payloads of signatures, and sigstore bundles: any bytes are taken or refused. A policy that reads key files is not
//! tried: which files it reads would depend on the machine.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use podling_images::Policy;
use podling_images::trust::{bundle_claims, payload_claim, statement_claims};

fuzz_target!(|bytes: &[u8]| {
    payload_claim(bytes).ok();
    bundle_claims(bytes).ok();
    statement_claims(bytes).ok();
    let names_files = bytes.windows(7).any(|word| word == b"keyPath");
    // An escape could spell the word.
    if !names_files && !bytes.contains(&b'\\') {
        Policy::parse(Path::new("policy.json"), bytes).ok();
    }
});
