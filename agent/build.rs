//! Compiles etcd's API definition, without protoc, and tells the linker which functions of `podling` lie side by side
//! (`layout/hot.ld`).

use std::env;
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=layout");
    // Elsewhere linking often counts for more.
    if env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64")
        && env::var("PROFILE").as_deref() == Ok("release")
    {
        let directory = env::var("CARGO_MANIFEST_DIR")?;
        println!("cargo::rustc-link-arg-bin=podling=-Wl,-T,{directory}/layout/hot.ld");
    }
    let files = protox::compile(["rpc.proto"], ["proto/etcd"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(files)?;
    Ok(())
}
