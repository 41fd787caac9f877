//! `podling status`: the node at a glance.

use clap::Args;

use super::{CommandError, Directories, Exit};

/// Show the node: version, sources, pods, and what is wrong with manifests
#[derive(Debug, Args)]
#[command(after_help = "Exit status: 0 if there are no problems, 1 otherwise.")]
pub struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(_args: &StatusArgs, _directories: &Directories) -> Result<Exit, CommandError> {
    Err(CommandError::new("not yet"))
}
