//! `podling check`: what this machine can and cannot do, each found by really trying it, harmlessly.

use clap::Args;

use super::{CommandError, Exit};

/// Check what this machine can do, and what is missing
#[derive(Debug, Args)]
#[command(after_help = "Exit status: 0 if nothing that is needed is missing, 1 otherwise.")]
pub struct CheckArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(_args: &CheckArgs) -> Result<Exit, CommandError> {
    Err(CommandError::new("not yet"))
}
