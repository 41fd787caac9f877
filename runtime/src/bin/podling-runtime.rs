//! The OCI runtime command.
#![no_main]

use dlmalloc::GlobalDlmalloc;

/// musl's own maps and unmaps memory more than a dozen times in a short command.
#[global_allocator]
static ALLOCATOR: GlobalDlmalloc = GlobalDlmalloc;

mod sys {
    //! The C library's way into this program ([`podling_runtime::start`]).
    #![allow(unsafe_code)]

    use std::ffi::{c_char, c_int};

    use podling_runtime::start;

    // SAFETY: the one `main` of this program, with the C library's idea of it.
    #[unsafe(no_mangle)]
    extern "C" fn main(count: c_int, arguments: *const *const c_char) -> c_int {
        // SAFETY: they are what `main` was given.
        let arguments = unsafe { start::arguments(count, arguments) };
        start::run(&arguments, podling_runtime::oci::main)
    }
}
