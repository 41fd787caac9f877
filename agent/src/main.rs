//! The `podling` command: the node agent, the tool that talks to it, and `podling run`.

use std::process::ExitCode;

fn main() -> ExitCode {
    podling_agent::cli::main()
}
