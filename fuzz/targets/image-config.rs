//! Configurations of images, for any number of layers and any platform.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podling_images::{Platform, check_config};

fuzz_target!(|input: (u8, &str, &[u8])| {
    let (layers, platform, json) = input;
    let platform = platform.parse().unwrap_or_else(|_| Platform::current());
    check_config(json, layers.into(), &platform).ok();
    // What a container is made of.
    serde_json::from_slice::<podling_images::ImageConfiguration>(json).ok();
});
