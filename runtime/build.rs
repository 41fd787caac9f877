//! Tells the linker where `podling-runtime` starts (`src/sys/entry.rs`), which functions lie side by side
//! (`layout/hot.ld`, then `layout/warm.ld`), and which constants behind all others (`layout/cold.ld`).

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=layout");
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("x86_64") {
        return;
    }
    println!("cargo::rustc-link-arg-bin=podling-runtime=-Wl,-e,podling_entry");
    // Elsewhere linking often counts for more.
    if env::var("PROFILE").as_deref() == Ok("release")
        && let Ok(directory) = env::var("CARGO_MANIFEST_DIR")
    {
        for script in ["hot", "warm", "cold"] {
            println!(
                "cargo::rustc-link-arg-bin=podling-runtime=-Wl,-T,{directory}/layout/{script}.ld"
            );
        }
    }
}
