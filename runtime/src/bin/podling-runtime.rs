//! The OCI runtime command.

use std::process::ExitCode;

fn main() -> ExitCode {
    podling_runtime::oci::main()
}
