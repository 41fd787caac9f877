//! The OCI runtime command.
#![no_main]

mod sys {
    //! The C library's way into this program ([`podling_runtime::start`]).
    #![allow(unsafe_code)]

    // SAFETY: the one `main` of this program, with the C library's idea of it: its arguments may be left out.
    #[unsafe(no_mangle)]
    extern "C" fn main() -> i32 {
        podling_runtime::start::run(podling_runtime::oci::main)
    }
}
