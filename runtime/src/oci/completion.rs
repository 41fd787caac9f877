//! `completion`

use clap::CommandFactory;
use clap_complete::Shell;

use super::cli::Cli;
use super::error::Result;
use super::print;

/// Options of `completion`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// For which shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Prints the script that a shell sources.
pub(super) fn completion(options: &Options) -> Result<()> {
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut command, name, &mut script);
    print::line(String::from_utf8_lossy(&script).trim_end())
}
