//! Which `podling-runtime` is tested.

/// The one that `PODLING_RUNTIME` told the compiler (`make test`: of the target that it is shipped for), or this target's.
pub const RUNTIME: &str = match option_env!("PODLING_RUNTIME") {
    Some(path) => path,
    None => env!("CARGO_BIN_EXE_podling-runtime"),
};
