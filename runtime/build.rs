//! Tells the linker where `podling-runtime` starts (`src/sys/entry.rs`).

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64") {
        println!("cargo::rustc-link-arg-bin=podling-runtime=-Wl,-e,podling_entry");
    }
}
