//! The seccomp compiler: a profile is refused, or becomes a program that the kernel would take.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oci_spec::runtime::LinuxSeccomp;
use podling_runtime::seccomp;

fuzz_target!(|text: &[u8]| {
    let Ok(profile) = serde_json::from_slice::<LinuxSeccomp>(text) else {
        return;
    };
    if let Ok(filter) = seccomp::compile(&profile) {
        assert!((1..=4096).contains(&filter.instructions()));
        let again = seccomp::compile(&profile).expect("it compiled before");
        assert_eq!(filter, again, "one profile has one program: the cache depends on it");
    }
});
